"""What a flag of train_main.py is: one row of a table, without argparse."""

from pathlib import Path
from typing import NamedTuple

# What a flag is when a run goes on:
FIXED = "fixed"  # it decides what is computed and stays
FREE = "free"  # it may differ
DATA = "data"  # where data lie, which may be elsewhere by then: their content is checked
ONCE = "once"  # it is said of one start and not kept


class Flag(NamedTuple):
    """One flag.

    kind: turns its text into a value; None takes the text. limits: the lowest and the highest
    value allowed, both included. nargs: of flags with several values, as argparse has it.
    switch: it takes no value, its default is False. before: what runs did before there was this
    flag, where that is not its default.
    """

    name: str
    kind: type | None
    default: object
    help: str
    on_resume: str = FIXED
    limits: tuple[float, float] | None = None
    choices: tuple | None = None
    nargs: int | str | None = None
    metavar: str | tuple[str, ...] | None = None
    switch: bool = False
    before: object = None

    @property
    def unsaid(self) -> object:
        """Its value in a run whose flags are older than it, as the parser would give it."""
        value = self.default if self.before is None else self.before
        return list(value) if isinstance(value, tuple) else value

    def fault(self, value: object) -> str | None:
        """What is wanted instead of a saved value (of args.json) that no parser gives; or None."""
        if value is None and self.default is None:
            return None
        if self.nargs is not None:
            values = value if isinstance(value, list) else [()]
        else:
            values = [value]
        kinds = {int: int, float: (int, float)}.get(self.kind, str)
        if any(not isinstance(item, kinds) or isinstance(item, bool) for item in values):
            switched = self.switch and isinstance(value, bool)
            return None if switched else self._wanted()
        if self.choices is not None and not all(item in self.choices for item in values):
            return f"one of {', '.join(map(str, self.choices))}"
        return None

    def _wanted(self) -> str:
        words = {int: "a whole number", float: "a number"}.get(self.kind, "a text")
        words = "true or false" if self.switch else words
        return words if self.nargs is None else f"a list, each {words}"

    def argument(self) -> dict:
        """What `ArgumentParser.add_argument` wants to know of it beside its name."""
        if self.switch:
            return {"action": "store_true", "help": self.help}
        default = list(self.default) if isinstance(self.default, tuple) else self.default
        wanted = {"type": self.kind, "choices": self.choices, "nargs": self.nargs}
        return wanted | {"default": default, "help": self.help, "metavar": self.metavar}


def number(
    name: str,
    default: float | None,
    limits: tuple[float, float],
    help: str,
    on_resume: str = FIXED,
    kind: type | None = None,
    before: float | None = None,
) -> Flag:
    """A whole or real number, as its default is; `kind` says it where that is None."""
    kind = kind or type(default)
    return Flag(name, kind, default, help, on_resume, limits, before=before)


def choice(
    name: str,
    default: object,
    choices: tuple,
    help: str,
    on_resume: str = FIXED,
    before: object = None,
) -> Flag:
    """One of a few words or whole numbers."""
    kind = int if isinstance(default, int) else None
    return Flag(name, kind, default, help, on_resume, choices=choices, before=before)


def several(
    name: str,
    kind: type,
    nargs: int | str,
    default: tuple | None,
    help: str,
    metavar: str | tuple[str, ...] | None = None,
    choices: tuple | None = None,
) -> Flag:
    """A list of numbers."""
    return Flag(name, kind, default, help, nargs=nargs, metavar=metavar, choices=choices)


def path(
    name: str,
    help: str,
    on_resume: str = FIXED,
    default: Path | None = None,
    metavar: str | None = None,
) -> Flag:
    """A file or folder."""
    return Flag(name, Path, default, help, on_resume, metavar=metavar)


def text(name: str, default: str, help: str, on_resume: str = FIXED) -> Flag:
    """Words as they are typed."""
    return Flag(name, None, default, help, on_resume)


def switch(name: str, help: str, on_resume: str = FIXED) -> Flag:
    """On where it is typed."""
    return Flag(name, None, False, help, on_resume, switch=True)
