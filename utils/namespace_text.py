"""Reads `Namespace(...)`, the first line of a log, back into values without running anything."""

import ast
import re

_NAMESPACE = "Namespace("
_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "'\""
# What ends a first line that was cut off before its closing bracket.
_NEXT_RECORD = re.compile(r"\[\d\d:\d\d:\d\d\.\d{3}\]|Training Data Size:|Begin: com_round")


def parse_namespace(text: str, start: int = 0) -> tuple[dict[str, object], int, bool]:
    """Read the `Namespace(` that stands at `text[start:]`.

    Returns its arguments, the position after it and whether its closing bracket was found. Line
    breaks inside it (a wrapped line) are dropped. A value that is no Python literal stays the
    text it was; of a line that was cut off, only the arguments before the last comma count.
    """
    limit = _NEXT_RECORD.search(text, start)
    body_start = start + len(_NAMESPACE)
    body_end, commas, closed = _scan(text, body_start, limit.start() if limit else len(text))
    edges = [body_start - 1, *commas] + ([body_end] if closed else [])
    parts = [text[left + 1 : right] for left, right in zip(edges, edges[1:], strict=False)]
    pairs = ("".join(map(str.strip, part.splitlines())).partition("=") for part in parts)
    arguments = {name: _value(value) for name, equals, value in pairs if equals}
    return arguments, body_end + closed, closed


def _scan(text: str, start: int, limit: int) -> tuple[int, list[int], bool]:
    """Where the closing bracket is (or `limit`), the commas at the top level, and if it closed."""
    depth, quote, commas, position = 0, "", [], start
    while position < limit:
        character = text[position]
        if quote:
            position += character == "\\"
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            if depth == 0:
                return position, commas, True
            depth -= 1
        elif character == "," and depth == 0:
            commas.append(position)
        position += 1
    return limit, commas, False


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
