"""The report of a finished run, built again: `python -m utils.report`."""

from utils.errors import run_command
from utils.report.page import main

run_command(main)
