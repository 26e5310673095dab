"""Long trials of what docs/RELIABILITY.md promises: `python -m tests.torture --help`."""
