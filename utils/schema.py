"""What a file or a message of a stranger may hold, said once and checked before it is used.

A check takes a value and its place ("clients/3") and raises `Mismatch`, one line that names the
place and what was expected, where the value is anything else. Checks are made of checks:

    record({"round": whole(0, 10**6), "weights": mapping(text(), tensor())})
"""

from collections.abc import Callable, Collection, Mapping

import torch

Check = Callable[[object, str], None]
LONGEST_SHOWN = 40  # characters of a stranger's value in a message


class Mismatch(ValueError):  # noqa: N818
    """The value at one place is not what the check expects; the message is one line."""


def refuse(place: str, expected: str, value: object) -> None:
    """Raise `Mismatch` for `value` at `place`."""
    raise Mismatch(f"{place or 'the content'} is {shown(value)}, not {expected}")


def shown(value: object) -> str:
    """A stranger's value in a message: its kind, and the value itself where that is short."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        clipped = value if len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "..."
        return ascii(clipped)
    if hasattr(value, "shape"):
        return f"a tensor of the shape {shown_shape(tuple(value.shape))}"
    return f"a {type(value).__name__}"


def shown_shape(shape: tuple) -> str:
    """The shape of a tensor in a message."""
    return " x ".join(map(shown, shape)) or "()"


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`; True and False are none."""

    def check(value: object, place: str) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(place, f"a whole number from {low} to {high}", value)

    return check


def number(low: float, high: float) -> Check:
    """A finite number, whole or not, from `low` to `high`; True and False are none."""

    def check(value: object, place: str) -> None:
        if type(value) not in (int, float) or not low <= value <= high:
            refuse(place, f"a number from {low:g} to {high:g}", value)

    return check


def any_number(value: object, place: str) -> None:
    """A number, NaN and the infinities among them, within what a float holds."""
    if type(value) not in (int, float) or (type(value) is int and value.bit_length() > 1024):
        refuse(place, "a number", value)


def text(longest: int = 1000) -> Check:
    """A text of at most `longest` characters."""

    def check(value: object, place: str) -> None:
        if not isinstance(value, str) or len(value) > longest:
            refuse(place, f"a text of at most {longest} characters", value)

    return check


def choice(*values: object) -> Check:
    """One of `values`."""

    def check(value: object, place: str) -> None:
        if not any(type(value) is type(known) and value == known for known in values):
            refuse(place, f"one of {', '.join(map(str, values))}", value)

    return check


def nothing_or(inner: Check) -> Check:
    """None, or what `inner` takes."""

    def check(value: object, place: str) -> None:
        if value is not None:
            inner(value, place)

    return check


def sequence(inner: Check, shortest: int, longest: int) -> Check:
    """A list or tuple of `shortest` to `longest` values that `inner` takes."""

    def check(value: object, place: str) -> None:
        if not isinstance(value, (list, tuple)) or not shortest <= len(value) <= longest:
            found = f"{len(value)} values" if isinstance(value, (list, tuple)) else shown(value)
            raise Mismatch(
                f"{place or 'the content'} is {found}, not a list of {shortest} to {longest}"
            )
        for at, item in enumerate(value):
            inner(item, f"{place}/{at}")

    return check


def entries(*inner: Check) -> Check:
    """A list or tuple of just so many values, each as its own check takes it."""

    def check(value: object, place: str) -> None:
        sequence(anything, len(inner), len(inner))(value, place)
        for at, (item, known) in enumerate(zip(value, inner, strict=True)):
            known(item, f"{place}/{at}")

    return check


def mapping(key: Check, inner: Check, largest: int, fewest: int = 0) -> Check:
    """Names with values: `fewest` to `largest` keys that `key` takes, values that `inner` does."""

    def check(value: object, place: str) -> None:
        if not isinstance(value, Mapping):
            refuse(place, "names with values", value)
        if not fewest <= len(value) <= largest:
            raise Mismatch(
                f"{place or 'the content'} has {len(value)} entries, not {fewest} to {largest}"
            )
        for name, item in value.items():
            key(name, f"a name in {place or 'the content'}")
            inner(item, joined(place, name))

    return check


def record(
    required: Mapping[str, Check],
    optional: Mapping[str, Check] | None = None,
    rest: Check | None = None,
) -> Check:
    """Exactly the entries of `required`, perhaps some of `optional`, and no others; with `rest`
    a few hundred others that it takes."""
    optional = optional or {}

    def check(value: object, place: str) -> None:
        if not isinstance(value, Mapping):
            refuse(place, "names with values", value)
        where = f" in {place}" if place else ""
        missing = [name for name in required if name not in value]
        if missing:
            raise Mismatch(f"no {missing[0]}{where}")
        unknown = [name for name in value if name not in required and name not in optional]
        if unknown and rest is not None:
            mapping(text(100), rest, largest=300)({name: value[name] for name in unknown}, place)
        elif unknown:
            raise Mismatch(
                f"{', '.join(map(shown, unknown[:5]))}{where}: unknown to this version of the "
                "program; a newer one made it?"
            )
        for name, item in value.items():
            if known := required.get(name) or optional.get(name):
                known(item, joined(place, name))

    return check


def tensor(
    dtypes: Collection[torch.dtype] | None = None, shape: tuple[int | None, ...] | None = None
) -> Check:
    """A tensor, or a `TensorClaim`, of one of `dtypes` and of `shape`, None being any length."""

    def check(value: object, place: str) -> None:
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            refuse(place, "a tensor", value)
        if dtypes is not None and value.dtype not in dtypes:
            names = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise Mismatch(f"{place} holds {str(value.dtype).removeprefix('torch.')}, not {names}")
        found = tuple(value.shape)
        fits = shape is None or (
            len(found) == len(shape)
            and all(wanted in (None, length) for wanted, length in zip(shape, found, strict=True))
        )
        if not fits:
            wanted = " x ".join("any" if length is None else str(length) for length in shape)
            raise Mismatch(f"{place} is {shown_shape(found)}, not {wanted or '()'}")

    return check


def anything(value: object, place: str) -> None:
    """Takes every value: what is meant for others."""


def joined(place: str, name: object) -> str:
    """The place of an entry below `place`."""
    name = str(name) if isinstance(name, str) and len(name) <= 100 else shown(name)
    return f"{place}/{name}" if place else name
