"""Flags that more than one command line has a use for."""

from collections.abc import Callable

from utils.errors import UserError


def whole_number(flag: str, lowest: int, highest: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `lowest` to `highest`; else `UserError`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise UserError(f"{flag} {text}: give a whole number from {lowest} to {highest}")
        return int(text)

    return parse
