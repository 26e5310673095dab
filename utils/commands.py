"""Command lines that are printed for a user to type."""

import shlex
from collections.abc import Mapping, Sequence


def command_line(program: str, flags: Mapping[str, object], *operands: object) -> str:
    """`python PROGRAM OPERAND ... --flag value ...`, quoted for a shell.

    program: "test.py", or "-m utils.metrics". A flag of value None or False is left out, one of
    True has no value, one of a list or tuple several.
    """
    words = ["python", *program.split(), *map(str, operands)]
    for name, value in flags.items():
        words += _flag_words(f"--{name}", value)
    return shlex.join(words)


def _flag_words(flag: str, value: object) -> Sequence[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, list | tuple):
        return [flag, *map(str, value)]
    return [flag, str(value)]
