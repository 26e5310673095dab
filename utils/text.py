"""A user's text, class names, ids and paths, where it is shown: it stays text.

A terminal would obey its control characters, a spreadsheet its formulas, Markdown and LaTeX its
markup. Each place has its function here.
"""

import errno
import re
import sys
import unicodedata
from collections.abc import Sequence

_SPREADSHEET_FORMULA = re.compile(r"'*\s*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?( ?%)?|[+-]?(inf|nan)", re.IGNORECASE)
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
_GREEK = {
    letter: unicodedata.name(letter).split()[-1].replace("LAMDA", "LAMBDA")
    for letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"
}
_LATEX = str.maketrans(
    {
        letter: rf"$\{name.lower() if letter.islower() else name.title()}$"
        for letter, name in _GREEK.items()
    }
    | {character: "\\" + character for character in "&%_#${}"}
    | {
        "±": r"$\pm$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\char34{}",
        "[": "{[}",  # at a row's beginning it would belong to the \\ before it, as * would
        "*": "{*}",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
    }
)
# What pdfLaTeX has no glyph for as it comes; from U+0180 on it has those of _LATEX_PUNCTUATION.
_NO_GLYPH = "«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"
_LATEX_PUNCTUATION = "“”‘’–—…†‡•€™ȘșȚț"


def printable(text: str, kept: str = "") -> str:
    """`text` with every character that has no picture (control characters, line breaks, lone
    surrogates, marks that turn the writing's direction) as its escape, but for those in `kept`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in kept else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def first_difference(names: Sequence[str], others: Sequence[str]) -> str:
    """Where two lists of names differ first, in words: "number 12 is 'a', not 'b'"."""
    for number, (name, other) in enumerate(zip(names, others, strict=False), start=1):
        if name != other:
            return f"number {number} is {name!r}, not {other!r}"
    return f"they are {len(names)}, not {len(others)}"


def csv_cell(text: str) -> str:
    """A cell that a spreadsheet shows as it is: a formula gets an apostrophe in front."""
    is_formula = _SPREADSHEET_FORMULA.match(text) and not _NUMBER.fullmatch(text.strip())
    return f"'{text}" if is_formula else text


def from_csv_cell(text: str) -> str:
    """What `csv_cell` was given."""
    return text[1:] if text.startswith("'") and csv_cell(text[1:]) == text else text


def markdown_text(text: str) -> str:
    """`text` for Markdown, a table's cell included: on one line, without markup or HTML."""
    return _MARKDOWN.sub(_markdown_escape, printable(text))


def _markdown_escape(found: re.Match) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(found[0], "\\" + found[0])


def latex_text(text: str) -> str:
    """`text` for LaTeX, a table's cell included. A letter that pdfLaTeX cannot print is given by
    its number, as [U+809D]; Greek ones are mathematics."""
    return "".join(map(_latex_character, printable(text)))


def _latex_character(character: str) -> str:
    if ord(character) in _LATEX:
        return _LATEX[ord(character)]
    known = character not in _NO_GLYPH if character < "\u0180" else character in _LATEX_PUNCTUATION
    return character if known else f"[U+{ord(character):04X}]"


class PlainOutput:
    """Standard output that shows text and obeys none of it, on any terminal.

    Control characters but line breaks and tabs come out as escapes, and so do letters that the
    terminal's encoding lacks. Once the terminal is closed, what is printed goes nowhere: a run
    goes on with its log.
    """

    def __init__(self, stream):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write `text`; its length. `BrokenPipeError` where the reader has gone."""
        self._survive(self._stream.write, printable(text, kept="\n\t"))
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        self._survive(self._stream.flush)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    @staticmethod
    def _survive(function, *arguments) -> None:
        try:
            function(*arguments)
        except OSError as error:
            if error.errno != errno.EIO:  # what a closed terminal answers
                raise


def make_output_plain() -> None:
    """Print as `PlainOutput` from now on; errors' letters that the terminal lacks are escaped."""
    if not isinstance(sys.stdout, PlainOutput):
        sys.stdout = PlainOutput(sys.stdout)
    if hasattr(sys.stderr, "reconfigure"):
        sys.stderr.reconfigure(errors="backslashreplace")
