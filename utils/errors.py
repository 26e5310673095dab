"""Errors that the user can mend, and how a command ends on one."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from utils.commands import as_typed
from utils.signals import ending_on_signals
from utils.text import make_output_plain, printable


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad flag as this project reports every mistake: in one line. `prog` is needed."""

    def parse_args(self, args=None, namespace=None):
        """The flags; an unknown one is an error that names the nearest known ones."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def format_help(self) -> str:
        return as_typed(super().format_help())

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (all flags: {self.prog} --help)")


def whole_number(flag: str, lowest: int, highest: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `lowest` to `highest`; else `UserError`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise UserError(f"{flag} {text}: give a whole number from {lowest} to {highest}")
        return int(text)

    return parse


EXIT_USER_ERROR = 2
EXIT_CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE ended


class UserError(Exception):
    """One line that names the file, row or flag at fault and what to do about it."""


def check_flags(parse: Callable[[], object]) -> None:
    """Answer --help and end on a mistyped flag: for a command to call before its heavy imports."""
    try:
        parse()
    except UserError as error:
        _print_error(error)
        sys.exit(EXIT_USER_ERROR)


def _print_error(error: UserError) -> None:
    """One line, whatever a file's name or a cell has in it."""
    make_output_plain()
    print(f"error: {printable(as_typed(str(error)))}", file=sys.stderr)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line's `main` and exit with its status.

    A `UserError` is printed as one line and exits with status 2; any other exception is a defect
    of this program and keeps its traceback. Where the reader of standard output has gone, as in
    `... | head -1`, the command ends quietly; on a signal as `ending_on_signals` says.
    """
    make_output_plain()
    try:
        with ending_on_signals():
            status = main()
        sys.stdout.flush()
    except UserError as error:
        _print_error(error)
        status = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # Python flushes once more at its end, into nothing then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_CLOSED_PIPE
    sys.exit(status or 0)
