"""Tests that need Flower: collected by `make test-flower` alone."""
