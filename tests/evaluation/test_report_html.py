"""report.html: one file that needs nothing else, readable on a screen and on a telephone."""

import html
import re

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.test_report import picture
from tests.helpers.browser import find_browser, in_frames
from tests.helpers.examples import example_predictions
from utils.report.blocks import (
    Heading,
    Items,
    Picture,
    TableBlock,
    Text,
    page_html,
    page_markdown,
)
from utils.report.page import write_report
from utils.text import markdown_text

needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")
ROWS = [["b & <b>", "0.9"], ["a", "NA"], ["c", "0.10"], ["all", "0.5"]]
TABLE = TableBlock("Scores", ["class", "AUROC"], ROWS, "tables/scores.csv", 1)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "example"
    folder.mkdir()
    (folder / "args.json").write_text('{"csv_file_train": "' + "long/" * 60 + 'train.csv"}')
    write_report(folder, example_predictions(seed=0), load_image=picture)
    return folder


def test_the_page_asks_for_nothing_from_elsewhere(report):
    page = (report / "report.html").read_text()
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,40})", page)
    assert sources and all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "@import" not in page and "url(" not in page and "http-equiv" not in page
    assert page.count("<img ") == len(list((report / "figures").glob("*.png")))


def test_both_forms_say_the_same(tmp_path):
    (tmp_path / "figures").mkdir()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "figures" / "roc.png")
    blocks = [
        Text("A **bold** word & `code`."),
        Heading("Tables"),
        TABLE,
        Items(["one", "two"]),
        Picture("figures/roc.png", "The curve."),
    ]
    assert page_markdown("A page", blocks) == (
        "# A page\n\nA **bold** word & `code`.\n\n## Tables\n\n**Scores** (tables/scores.csv)\n\n"
        "| class | AUROC |\n|---|---|\n| b & &lt;b&gt; | 0.9 |\n| a | NA |\n| c | 0.10 |\n"
        "| all | 0.5 |\n\n- one\n- two\n\n![roc](figures/roc.png)\n\nThe curve.\n"
    )
    page = page_html("A page", blocks, tmp_path)
    assert "A <strong>bold</strong> word &amp; <code>code</code>." in page
    assert "<td>b &amp; &lt;b&gt;</td><td class=n>0.9</td>" in page
    assert "<tfoot><tr><td>all</td>" in page and '<h2 id="tables">' in page


def test_what_a_user_named_stays_text(tmp_path):
    name = "<b>*a*</b> `x` [y](z) & 1"
    blocks = [Text(f"**Class**: {markdown_text(name)}"), TableBlock(name, [name], [[name]])]
    page = page_html(name, blocks, tmp_path)
    plain = re.sub(r"<[^>]*>", "|", page.partition("<body>")[2].partition("<script>")[0])
    assert html.unescape(plain).count(name) == 5  # title, paragraph, table's title, head, cell
    assert "<b>" not in page and "<strong>Class</strong>: " in page


@needs_browser
def test_it_is_no_wider_than_a_screen_or_a_telephone(report, tmp_path):
    script = "document.documentElement.scrollWidth + ' of ' + document.documentElement.clientWidth"
    page = (report / "report.html").read_text()
    told = in_frames(page, (1280, 390), script, tmp_path)
    assert told == {1280: "1280 of 1280", 390: "390 of 390"}


@needs_browser
def test_a_click_on_a_columns_name_sorts_the_rows_and_leaves_the_totals(tmp_path):
    page = page_html("A page", [TABLE], tmp_path)
    order = "[...document.querySelectorAll('tr')].map(row => row.cells[0].textContent).join()"
    click = "document.querySelectorAll('th button')[{}].click()"
    script = f"({click.format(1)}, {order}) + ' ' + ({click.format(1)}, {order}) + ' ' + "
    script += f"({click.format(0)}, {order})"
    told = in_frames(page, (600,), script, tmp_path)
    assert told == {600: "class,c,b & <b>,a,all class,b & <b>,c,a,all class,a,b & <b>,c,all"}
