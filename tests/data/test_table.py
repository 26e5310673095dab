"""The CSV of images: what is read, and that everything else is refused in one helpful line."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from dataloaders.table import read_table, read_unlabeled_table
from utils.errors import UserError

GOOD = (
    "ImageID,PatientID,site,client,epidural,subdural,other\n"
    "a.png,p1,north,0,1,0,0\n"
    "b.png,p1,north,0,0,1,0\n"
    "c.png,p2,south,1,0,0,1\n"
    "d.png,p3,south,1,0,1,0\n"
)
GOOD_CELLS = [line.split(",") for line in GOOD.splitlines()]


def write(folder: Path, content: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_table(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_reads_every_column_by_its_name(tmp_path):
    table = read_table(write(tmp_path, GOOD))
    assert table.names == ["a.png", "b.png", "c.png", "d.png"]
    assert table.class_names == ("epidural", "subdural", "other")
    assert table.labels.tolist() == [0, 1, 2, 1] and table.labels.dtype == np.int64
    assert table.groups == ["p1", "p1", "p2", "p3"]
    assert table.sites == ["north", "north", "south", "south"]
    assert table.clients.tolist() == [0, 0, 1, 1]
    assert table.line_numbers.tolist() == [2, 3, 4, 5]
    assert (len(table), table.dropped) == (4, 0)
    assert table.class_counts().tolist() == [1, 2, 1]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_semicolons_and_tabs_separate_cells_as_well(tmp_path, separator):
    """As Excel writes them where the comma is the decimal point, and as Dataverse does."""
    expected = read_table(write(tmp_path, GOOD))
    text = GOOD.replace(",", separator)
    found = read_table(write(tmp_path, text, "other.csv"))
    assert found.names == expected.names and found.groups == expected.groups
    assert found.labels.tolist() == expected.labels.tolist()


def test_select_keeps_the_rows_together(tmp_path):
    chosen = read_table(write(tmp_path, GOOD)).select([3, 0])
    assert chosen.names == ["d.png", "a.png"]
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.groups == ["p3", "p1"] and chosen.sites == ["south", "north"]
    assert chosen.clients.tolist() == [1, 0] and chosen.line_numbers.tolist() == [5, 2]
    assert chosen.class_counts().tolist() == [1, 1, 0]


def test_agrees_with_pandas_on_a_thousand_rows(tmp_path):
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 4, 1000)
    frame = pandas.DataFrame(np.eye(4, dtype=int)[labels], columns=list("wxyz"))
    frame.insert(0, "ID", [f"{n:04d}.jpg" for n in generator.permutation(1000)])
    frame.to_csv(tmp_path / "labels.csv", index=False)
    table = read_table(tmp_path / "labels.csv")
    reference = pandas.read_csv(tmp_path / "labels.csv")
    assert table.names == reference["ID"].tolist()
    assert np.array_equal(table.labels, reference[list("wxyz")].to_numpy().argmax(axis=1))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        GOOD.replace("\n", "\n\n").encode(),
        GOOD.rstrip("\n").encode(),
        GOOD.replace(",", " , ").encode(),
        re.sub(r"([^,\n]+)", r'"\1"', GOOD).encode(),
        re.sub(r"\b([01])\b(?=(,[01])*\n)", r"\1.0", GOOD).encode(),
    ],
    ids=["bom", "crlf", "cr", "blank-lines", "no-last-newline", "spaces", "quoted", "floats"],
)
def test_same_table_however_it_was_saved(tmp_path, content):
    plain, other = read_table(write(tmp_path, GOOD)), read_table(write(tmp_path, content, "x.csv"))
    assert (other.names, other.class_names) == (plain.names, plain.class_names)
    assert np.array_equal(other.labels, plain.labels) and other.groups == plain.groups


def test_line_numbers_count_blank_lines(tmp_path):
    table = read_table(write(tmp_path, "ID,a,b\n\nx,1,0\n\n\ny,0,1\n"))
    assert table.line_numbers.tolist() == [3, 6]


def test_isic_ground_truth_as_published(tmp_path):
    header = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
    table = read_table(write(tmp_path, header + "ISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n"))
    assert table.class_names == ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
    assert table.names == ["ISIC_0024306"] and table.labels.tolist() == [1]
    assert table.groups is None and table.sites is None and table.clients is None


def test_a_label_of_minus_one_is_what_the_flag_says(tmp_path):
    path = write(tmp_path, "ID,a,b\nw,1,0\nx,-1,0\ny,-1.0,1\nz,0,-1\n")
    ones = read_table(path, "U-Ones", multi_label="drop")
    assert (ones.names, ones.labels.tolist(), ones.dropped) == (["w", "x", "z"], [0, 0, 1], 1)
    zeros = read_table(path, "U-Zeros", multi_label="drop")
    assert (zeros.names, zeros.labels.tolist(), zeros.dropped) == (["w", "y"], [0, 1], 2)
    multi = read_table(path, "U-MultiClass")
    assert multi.class_names == ("a", "b", "uncertain")
    assert multi.labels.tolist() == [0, 2, 2, 2]


def test_the_uncertain_class_exists_in_a_file_without_one(tmp_path):
    table = read_table(write(tmp_path, "ID,a,b\nx,1,0\n"), "U-MultiClass")
    assert table.class_names == ("a", "b", "uncertain")
    message = refusal(write(tmp_path, "ID,a,uncertain\nx,1,0\n"), label_uncertainty="U-MultiClass")
    assert "exists already" in message


def test_rows_of_no_or_several_classes(tmp_path):
    path = write(tmp_path, "ID,a,b,c\nw,1,0,0\nx,1,1,0\ny,0,0,0\nz,0,0,1\n")
    message = refusal(path)
    assert "line 3" in message and "'x'" in message and "a, b" in message
    assert "--multi_label drop" in message and "2 of 4 rows" in message
    table = read_table(path, multi_label="drop")
    assert table.names == ["w", "z"] and table.labels.tolist() == [0, 2] and table.dropped == 2
    assert table.line_numbers.tolist() == [2, 5]
    nothing = write(tmp_path, "ID,a,b\nx,1,1\n", "none.csv")
    assert "none is left" in refusal(nothing, multi_label="drop")


def test_other_columns_can_hold_groups_and_sites(tmp_path):
    path = write(tmp_path, "ID,ward,scanner,a,b\nx,w1,s1,1,0\ny,w2,s1,0,1\n")
    table = read_table(path, group_column="ward", site_column="scanner")
    assert table.groups == ["w1", "w2"] and table.sites == ["s1", "s1"]
    assert table.class_names == ("a", "b")
    assert "no column 'wards'" in refusal(path, group_column="wards", site_column="scanner")


def changed(row: int, column: int, text: str) -> str:
    cells = [list(line) for line in GOOD_CELLS]
    cells[row][column] = text
    return "".join(",".join(line) + "\n" for line in cells)


LONG = "ID,Label\nID_00001_epidural,0\nID_00001_any,1\n"
MUTATIONS = {
    "empty": ("", ["the file is empty"]),
    "only-bom": (b"\xef\xbb\xbf", ["the file is empty"]),
    "only-blanks": (" \n\n \n", ["the file is empty"]),
    "header-only": (GOOD_CELLS[0][0] + ",a,b\n", ["no rows"]),
    "kaggle-long": (LONG, ["dataloaders.prepare rsna", "--labels", "long label file"]),
    "kaggle-long-renamed": (LONG.replace("Label", "label"), ["dataloaders.prepare rsna"]),
    "kaggle-long-imageid": (LONG.replace("ID,", "ImageID,"), ["dataloaders.prepare rsna"]),
    "one-class": ("ID,bleed\nx,1\ny,0\n", ["only class column", "'bleed'"]),
    "no-class": ("ID,PatientID\nx,p\n", ["no class column"]),
    "any-column": ("ID,a,b,any\nx,1,0,1\n", ["line 1", "'any'"]),
    "ham-metadata": ("lesion_id,image_id,dx,age\nH,I,nv,30\n", ["dataloaders.prepare isic"]),
    "no-image-column": (changed(0, 0, "picture"), ["no image column", "ImageID"]),
    "misspelt-image": (changed(0, 0, "Image_ID"), ["no image column", "did you mean"]),
    "two-image-columns": (changed(0, 2, "ID"), ["two image columns"]),
    "misspelt-patient": (changed(0, 1, "patient_id"), ["'patient_id'", "PatientID"]),
    "misspelt-client": (changed(0, 3, "Client"), ["'Client'", "rename it client"]),
    "near-patient": (changed(0, 1, "PatientIDs"), ["line 2", "did you mean PatientID"]),
    "unnamed-column": (changed(0, 2, ""), ["column 3 has no name", "index=False"]),
    "pandas-index": ("," + GOOD.replace("\n", "\n0,")[:-2], ["column 1 has no name"]),
    "repeated-column": (changed(0, 5, "epidural"), ["'epidural' stands twice"]),
    "repeated-image": (changed(3, 0, "a.png"), ["line 4", "'a.png'", "line 2"]),
    "no-header": (GOOD.split("\n", 1)[1], ["line 1", "no image column"]),
    "label-two": (changed(2, 4, "2"), ["line 3", "'epidural'", "'2'"]),
    "label-half": (changed(2, 4, "0.5"), ["line 3", "'0.5'"]),
    "label-word": (changed(4, 6, "True"), ["line 5", "'other'", "'True'"]),
    "label-nan": (changed(1, 4, "nan"), ["line 2", "'nan'"]),
    "label-arabic-digit": (changed(1, 4, "\u0661"), ["line 2", "'epidural'"]),
    "label-minus-two": (changed(1, 4, "-2"), ["line 2", "'-2'"]),
    "label-empty": (changed(3, 5, ""), ["line 4", "'subdural'", "missing"]),
    "extra-text-column": (changed(0, 2, "age"), ["line 2", "'age'", "'north'"]),
    "no-class-row": (changed(1, 4, "0"), ["line 2", "'a.png'", "no class"]),
    "two-class-row": (changed(3, 4, "1"), ["line 4", "epidural, other"]),
    "image-empty": (changed(2, 0, ""), ["line 3", "'ImageID' is empty"]),
    "patient-empty": (changed(2, 1, " "), ["line 3", "'PatientID' is empty"]),
    "site-empty": (changed(4, 2, ""), ["line 5", "'site' is empty"]),
    "client-word": (changed(2, 3, "zero"), ["line 3", "'zero'", "client"]),
    "client-negative": (changed(2, 3, "-1"), ["line 3", "'-1'", "client"]),
    "too-few-cells": (GOOD.replace("0,0,1\n", "0,0\n"), ["line 4", "6 cells", "7"]),
    "too-many-cells": (GOOD.replace("0,0,1\n", "0,0,1,\n"), ["line 4", "8 cells", "7"]),
    "cut-off": (GOOD[:-7], ["line 5", "cells"]),
    "bars": (GOOD.replace(",", "|"), ["line 1", "bars"]),
    "open-quote": (changed(2, 0, '"b.png'), ["line 3", "quote"]),
    "open-quote-closed-later": (
        GOOD.replace("b.png", '"b.png').replace("d.png", 'd.png"'),
        ["line 3", "quote"],
    ),
    "text-after-quote": (changed(2, 0, '"b"png'), ["line 3", "quotes"]),
    "open-quote-in-header": (changed(0, 0, '"ImageID'), ["line 1", "quote"]),
    "latin-1": (changed(3, 2, "süd").encode("latin-1"), ["line 4", "UTF-8"]),
    "utf-16": (GOOD.encode("utf-16"), ["UTF-16"]),
    "utf-16-without-mark": (GOOD.encode("utf-16-le"), ["NUL", "line 1"]),
    "nul": (changed(3, 0, "c\0.png"), ["line 4", "NUL"]),
    "png-file": (b"\x89PNG\r\n\x1a\n\0\0", ["PNG image"]),
    "excel-file": (b"PK\x03\x04" + bytes(40), ["Excel"]),
    "gzip-file": (b"\x1f\x8b\x08" + bytes(40), ["gzip"]),
    "random-bytes": (bytes(range(256)) * 8, ["NUL"]),
    "huge-cell": (changed(2, 2, "x" * 200_000), ["line 3", "field"]),
    "huge-label": (changed(2, 4, "x" * 100_000), ["line 3", "'epidural'"]),
}


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutated_files_are_refused_with_place_and_remedy(tmp_path, kind):
    content, expected = MUTATIONS[kind]
    path = write(tmp_path, content)
    message = refusal(path)
    assert message.startswith(str(path))
    for part in expected:
        assert part in message
    assert re.search(r"; \w|make it with|see python", message), "no remedy"


def test_paths_that_are_no_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.csv")
    assert "folder" in refusal(tmp_path)
    assert "cannot be read" in refusal(Path("a\0b.csv"))
    os.mkfifo(tmp_path / "pipe.csv")
    assert "regular file" in refusal(tmp_path / "pipe.csv")


def mutate(content: bytes, generator: random.Random) -> bytes:
    """One to four random edits of bytes, lines or cells."""
    tokens = [b",", b'"', b"\n", b"\r", b"\0", b"\xff", b";", b"-1", b"2", b"nan", b"1e400", b""]
    tokens += ["\u2028".encode(), b"../x.png", b"ID", b"any", b"dx", b"uncertain", b"9" * 400]
    for _ in range(generator.randint(1, 4)):
        kind = generator.randrange(5)
        at = generator.randrange(len(content) + 1)
        if kind == 0:
            content = content[:at] + generator.choice(tokens) + content[at:]
        elif kind == 1:
            content = content[:at] + content[at + generator.randint(1, 30) :]
        elif kind == 2:
            content = content[:at] + bytes([generator.randrange(256)]) + content[at + 1 :]
        elif kind == 3:
            lines = content.split(b"\n")
            lines.insert(generator.randrange(len(lines) + 1), generator.choice(lines))
            content = b"\n".join(lines)
        else:
            cells = re.split(rb"([,\n])", content)
            cells[generator.randrange(len(cells))] = generator.choice(tokens)
            content = b"".join(cells)
    return content


def test_a_fuzzed_file_is_read_or_refused_but_never_breaks(tmp_path):
    generator = random.Random(11)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(1500):
        path = write(tmp_path, mutate(GOOD.encode(), generator))
        options = {
            "label_uncertainty": generator.choice(("U-Ones", "U-Zeros", "U-MultiClass")),
            "multi_label": generator.choice(("refuse", "drop")),
        }
        try:
            table = read_table(path, **options)
        except UserError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert len(table) == len(set(table.names)) == len(table.labels) > 0
        assert table.labels.min() >= 0 and table.labels.max() < len(table.class_names)
        assert len(table.class_names) >= 2 and len(set(table.class_names)) == len(table.class_names)
    assert min(outcomes.values()) > 50, outcomes


def test_importing_the_reader_loads_no_network():
    code = "import sys, dataloaders.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "text", ["lesion_id,image_id,dx\nHAM_1,ISIC_1,nv\n", "ID,Label\nISIC_1,0\n"]
)
def test_of_a_list_without_labels_only_the_images_column_is_read(tmp_path, text):
    """HAM10000's metadata and the RSNA challenge's form: labels in them are not asked for."""
    path = tmp_path / "list.csv"
    path.write_text(text)
    assert read_unlabeled_table(path, ("a", "b")).names == ["ISIC_1"]
    with pytest.raises(UserError):
        read_table(path)
