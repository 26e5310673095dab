"""Command lines that are printed for a user to type."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence


def command_line(program: str, flags: Mapping[str, object], *operands: object) -> str:
    """`python PROGRAM OPERAND ... --flag value ...`, quoted for a shell.

    program: "test.py", or "-m utils.metrics". A flag of value None or False is left out, one of
    True has no value, one of a list or tuple several.
    """
    words = [*as_typed(f"python {program}").split(), *map(str, operands)]
    for name, value in flags.items():
        words += _flag_words(f"--{name}", value)
    return shlex.join(words)


# A program in a checkout -> the installed command, see `fedirm.__main__`.
INSTALLED = {
    "python train_main.py": "fedirm train",
    "python test.py": "fedirm test",
    "python reproduce.py": "fedirm reproduce",
    "python -m dataloaders.prepare": "fedirm prepare",
    "python -m dataloaders.partition": "fedirm partition",
    "python -m utils.tables": "fedirm tables",
    "python -m utils.plots": "fedirm plots",
    "python -m utils.report": "fedirm report",
    "python -m utils.metrics": "fedirm metrics",
}
_PROGRAMS = re.compile("|".join(map(re.escape, INSTALLED)))


def as_typed(text: str) -> str:
    """`text` with the commands in it as its reader types them: the installed ones, where that is
    how this program was started."""
    if "FEDIRM_COMMAND" not in os.environ:
        return text
    return _PROGRAMS.sub(lambda found: INSTALLED[found[0]], text)


def _flag_words(flag: str, value: object) -> Sequence[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, list | tuple):
        return [flag, *map(str, value)]
    return [flag, str(value)]
