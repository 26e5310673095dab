"""A report as a list of blocks, and its two forms: REPORT.md, and report.html in one file.

A paragraph, an item or a caption may hold **bold** and `code`; what a user named comes into it by
`markdown_text`. Titles and cells are plain text. The HTML page has its pictures inside and asks for
nothing from elsewhere; a click on a column's name sorts the table.
"""

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.files import write_text
from utils.metrics.evaluation import Table
from utils.table_files import to_markdown
from utils.text import markdown_text, printable

MARKDOWN_FILE, HTML_FILE = "REPORT.md", "report.html"
REBUILD = (
    "Rebuild this page, tables/ and figures/ without images or a GPU: `python -m utils.report "
    "RUN_FOLDER`."
)


class Heading(NamedTuple):
    """The beginning of a section."""

    text: str


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Items(NamedTuple):
    """A list, an item a line."""

    items: Sequence[str]


class TableBlock(NamedTuple):
    """A table under its title. files: where its cells lie, in words. totals: how many of the last
    rows are sums or means of the others and stay at the end. folded: shown in HTML on a click."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    files: str = ""
    totals: int = 0
    folded: bool = False


class Picture(NamedTuple):
    """A PNG file, relative to the report's folder."""

    file: str
    caption: str


Block = Heading | Text | Items | TableBlock | Picture


def write_page(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """Write REPORT.md and report.html to `folder`."""
    write_text(folder / MARKDOWN_FILE, page_markdown(title, blocks))
    write_text(folder / HTML_FILE, page_html(title, blocks, folder))


def page_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures are named."""
    parts = [f"# {markdown_text(title)}", *map(_markdown, blocks)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Items):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, TableBlock):
        files = f" ({block.files})" if block.files else ""
        title = f"**{block.title}**{files}\n\n" if block.title else ""
        return title + to_markdown(block.header, block.rows)
    return f"![{Path(block.file).stem}]({block.file})\n\n{block.caption}"


def page_html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The page as one HTML file; the pictures are read from `folder`."""
    headings = [block.text for block in blocks if isinstance(block, Heading)]
    links = " ".join(f'<a href="#{_anchor(text)}">{html.escape(text)}</a>' for text in headings)
    parts = [_html(block, folder) for block in blocks]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{html.escape(title)}</h1>\n<nav>{links}</nav>",
            *parts,
            f"<script>{SORTING}</script>\n</body>\n</html>\n",
        ]
    )


def _html(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f'<h2 id="{_anchor(block.text)}">{html.escape(block.text)}</h2>'
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, TableBlock):
        return _html_table(block)
    content = base64.b64encode((folder / block.file).read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{html.escape(block.caption)}" src="data:image/png;base64,{content}">'
        f"<figcaption>{_inline(block.caption)}</figcaption></figure>"
    )


def _html_table(block: TableBlock) -> str:
    head = "".join(f"<th><button>{html.escape(cell)}</button></th>" for cell in block.header)
    body = block.rows[: len(block.rows) - block.totals]
    totals = block.rows[len(block.rows) - block.totals :]
    foot = f"<tfoot>{_html_rows(totals)}</tfoot>" if totals else ""
    table = (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{_html_rows(body)}</tbody>{foot}</table></div>"
    )
    files = f' <span class="files">{html.escape(block.files)}</span>' if block.files else ""
    if block.folded:
        return f"<details><summary>{html.escape(block.title)}{files}</summary>{table}</details>"
    return (f"<h3>{html.escape(block.title)}{files}</h3>" if block.title else "") + table


def _html_rows(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows)


def _html_cell(cell: str) -> str:
    is_number = re.fullmatch(r"[-+]?[\d.,]+%?|NA|\[[\d., -]+\]", cell) is not None
    return f"<td{' class=n' if is_number else ''}>{html.escape(printable(str(cell)))}</td>"


def _inline(text: str) -> str:
    """A paragraph's text as HTML: its markup, its escapes (see `markdown_text`), and no other."""
    entities = re.sub(r"\\(.)", lambda found: f"&#{ord(found[1])};", text)
    parts = re.split(r"(&(?:lt|gt|amp|#\d+);)", entities)
    escaped = "".join(html.escape(part) if at % 2 == 0 else part for at, part in enumerate(parts))
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escaped)


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 72rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { margin-top: 2.5rem; font-size: 1.25rem; }
h2 { border-bottom: 1px solid #ccc; } h3 { font-size: 1rem; margin: 1.75rem 0 .4rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .9rem; }
a { color: #00568a; } code { background: #f1f1f1; padding: 0 .2em; font-size: .9em; }
.files { color: #6a6a6a; font-weight: normal; font-size: .85rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e2e2e2;
  vertical-align: top; overflow-wrap: normal; min-width: 3.5rem; max-width: 32rem; }
td { overflow-wrap: break-word; } td.n { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { vertical-align: bottom; } th:first-child, td:first-child { position: sticky; left: 0;
  background: #fff; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0;
  cursor: pointer; text-align: left; color: inherit; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tfoot td { border-top: 1px solid #999; font-weight: 600; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #444; } details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 40rem) { .files { display: none; } }
@media print { nav { display: none; } details > * { display: block; } }
"""

SORTING = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const column = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
    const key = row => row.cells[column].textContent.replace(/^\\[/, "");
    const rows = [...body.rows], keys = new Map(rows.map(row => [row, key(row)]));
    const numeric = rows.every(row => keys.get(row) === "NA" || !isNaN(parseFloat(keys.get(row))));
    const absent = row => numeric && keys.get(row) === "NA";
    rows.sort((a, b) => {
      if (absent(a) || absent(b)) return absent(a) - absent(b);
      const order = numeric ? parseFloat(keys.get(a)) - parseFloat(keys.get(b))
        : keys.get(a).localeCompare(keys.get(b), undefined, {numeric: true});
      return down ? -order : order;
    });
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  });
}
"""


def picture_blocks(folder: Path, captions: dict[str, str]) -> list[Picture]:
    """A block for each PNG in `folder`/figures: those with a caption in the captions' order, then
    the others."""
    names = [path.stem for path in sorted((folder / "figures").glob("*.png"))]
    ordered = [name for name in captions if name in names]
    ordered += [name for name in names if name not in captions]
    return [Picture(f"figures/{name}.png", captions.get(name, name)) for name in ordered]


def table_blocks(tables: Mapping[str, Table], totals: Mapping[str, int]) -> list[TableBlock]:
    """The blocks of tables by file stem; `totals` as in `TableBlock`, for those that have any."""
    return [
        TableBlock(
            table.title,
            table.header,
            table.rows,
            f"tables/{stem}.csv, .md, .tex",
            totals.get(stem, 0),
        )
        for stem, table in tables.items()
    ]


def settings_block(title: str, settings: Mapping) -> Block:
    """Names and values of a JSON file, or that it is not there."""
    if not settings:
        return Text(f"{title}: not in this folder.")
    rows = [
        [name, value if isinstance(value, str) else json.dumps(value)]
        for name, value in settings.items()
    ]
    return TableBlock(title, ["name", "value"], rows, folded=True)
