"""Tables of runs from their log files alone: `python -m utils.tables`."""

from utils.errors import run_command
from utils.tables.tables import main

run_command(main)
