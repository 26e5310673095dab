"""Figures of finished runs: `python -m utils.plots`."""

from utils.errors import run_command
from utils.plots.runs import main

run_command(main)
