"""What several command lines have a use for."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from utils.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad flag as this project reports every mistake: in one line. `prog` is needed."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (all flags: {self.prog} --help)")


def whole_number(flag: str, lowest: int, highest: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `lowest` to `highest`; else `UserError`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise UserError(f"{flag} {text}: give a whole number from {lowest} to {highest}")
        return int(text)

    return parse
