"""Files that lie: refused by what they say, before anything is expanded, allocated or run."""

import io
import json
import struct
import tracemalloc
import zipfile

import pytest
import torch

from dataloaders.overlap import Listed
from dataloaders.preparation import read_preparation
from networks.densenet import load_imagenet_weights
from networks.kinds import HEAD
from networks.saved import load_model
from predict.card import describe_run
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.json_files import read_json
from utils.report.page import rebuild_report
from utils.schema import Mismatch, mapping, number, record, sequence, shown, tensor, text, whole

ARCHITECTURE = {"mode": "U-Ones", "drop_rate": 0.2, "attention": "none"}


def refusal(function, *arguments, **options) -> str:
    """The one line with which a call is refused, having reserved little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            function(*arguments, **options)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value) and "torch.load" not in str(error.value)
    return str(error.value)


def model(**changes) -> dict:
    content = {
        "state_dict": {HEAD: torch.zeros(2, 1024)},
        "class_names": ["cat", "dog"],
        "architecture": ARCHITECTURE,
        "preprocessing": {"image_size": 64, "dicom": {"window": "triple", "size": 128}},
        "preset": "slides",
        "round": 3,
    }
    return content | changes


# ---- sizes that the file's bytes cannot hold


def test_a_compressed_file_is_not_inflated(tmp_path):
    torch.save({"x": torch.zeros(50_000_000)}, tmp_path / "plain.pth")
    path = tmp_path / "small.pth"
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for part in plain.infolist():
                packed.writestr(part.filename, plain.read(part))
    (tmp_path / "plain.pth").unlink()
    assert path.stat().st_size < 300_000
    assert "compressed inside" in refusal(load_checkpoint, path)


NOBODY = Listed([], None, "PatientID")


@pytest.mark.parametrize("kind", ["zip", "old format"])
def test_one_number_stretched_over_a_tensor_is_refused(tmp_path, kind):
    path = tmp_path / "a.pth"
    content = {"state_dict": {HEAD: torch.zeros(1).expand(10**7, 10**7)}}
    torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    assert path.stat().st_size < 2000
    assert "larger than the bytes" in refusal(load_model, path, ("a", "b"))


def test_an_old_file_that_claims_more_than_it_has_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1000)}, buffer, _use_new_zipfile_serialization=False)
    raw = buffer.getvalue()
    at = raw.rindex(struct.pack("<q", 1000))
    (tmp_path / "a.pth").write_bytes(raw[:at] + struct.pack("<q", 10**12) + raw[at + 8 :])
    assert "bytes are missing" in refusal(load_checkpoint, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(raw)
    assert torch.equal(load_checkpoint(tmp_path / "a.pth")["x"], torch.zeros(1000))


def test_a_tensor_of_more_bytes_than_its_record_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1000)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole_file:
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as changed:
            for part in whole_file.infolist():
                content = whole_file.read(part)
                short = "/data/" in part.filename
                changed.writestr(part.filename, content[:100] if short else content)
    assert "does not fit the bytes" in refusal(load_checkpoint, tmp_path / "a.pth")


def test_lists_of_the_same_lists_are_not_walked(tmp_path):
    laugh = [0] * 10
    for _ in range(15):
        laugh = [laugh] * 10  # 10**16 entries in 2 kB
    torch.save({"x": laugh}, tmp_path / "a.pth")
    assert "expands to far more" in refusal(load_checkpoint, tmp_path / "a.pth")


def as_archive(path, pickled: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (b"\x80\x02}X\x01\0\0\0x" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"s.", "expands"),
        (b"\x80\x02}" + b")" + b"\x85" * 10**5 + b"Ns.", "names that are neither"),  # its hash
        (b"\x80\x02}\x8f.", "something else"),  # a set
        (b"\x80\x02cbuiltins\neval\n.", "holds builtins.eval"),
        (b"\x80\x02}r\xff\xff\xff\xff.", "names and values"),  # a memory of 2**32 places
        (b"\x80\x02X\xff\xff\xff\xff.", "damaged"),  # a text of 4 GB
    ],
)
def test_pickles_made_to_hurt(tmp_path, pickled, reason):
    path = tmp_path / "a.pth"
    as_archive(path, pickled)
    if reason == "names and values":
        assert load_checkpoint(path) == {}
    else:
        assert reason in refusal(load_checkpoint, path)


# ---- what a checkpoint says about itself


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preprocessing": {"image_size": 10**30}}, "preprocessing/image_size is a number of 100"),
        ({"preprocessing": {"image_size": True}}, "preprocessing/image_size is True"),
        ({"preprocessing": {"image_size": 64, "colour": "sepia"}}, "'colour' in preprocessing"),
        ({"preprocessing": {"dicom": {"window": "x", "size": 9}}}, "preprocessing/dicom/size is 9"),
        ({"class_names": ["cat", "cat"]}, "names a class twice"),
        ({"class_names": ["cat", "x" * 10**6]}, "class_names/1 is 'xxx"),
        ({"architecture": ARCHITECTURE | {"drop_rate": float("nan")}}, "drop_rate is nan"),
        ({"architecture": ARCHITECTURE | {"mode": "U-Twos"}}, "architecture/mode is 'U-Twos'"),
        ({"architecture": ARCHITECTURE | {"experts": 8}}, "unknown to this version"),
        ({"round": -1}, "round is -1"),
        ({"round": "three"}, "round is 'three'"),
        ({"mixture": 5}, "'mixture': unknown to this version of the program; a newer one made it?"),
        ({"state_dict": {HEAD: torch.zeros(2, 1024, dtype=torch.int32)}}, "holds int32"),
        ({"state_dict": {HEAD: torch.zeros(2, 4, 4)}}, "is 2 x 4 x 4, not any x any"),
    ],
)
def test_the_entry_at_fault_is_named(tmp_path, changes, words):
    path = tmp_path / "odd.pth"
    save_checkpoint(path, model())
    load_model(path)
    torch.save(model(**changes), path)
    assert words in refusal(load_model, path)


def test_the_released_programs_other_entries_are_not_read(tmp_path):
    path = tmp_path / "theirs.pth"
    weights = {"module." + HEAD: torch.zeros(2, 1024)}
    torch.save({"state_dict": weights, "epoch": 7, "optimizer": {"lr": [1, 2]}}, path)
    loaded, about = load_model(path, ("a", "b"))
    assert list(loaded) == [HEAD] and "epoch" not in about


def test_published_weights_are_read_the_same_way(tmp_path):
    path = tmp_path / "densenet121.pth"
    torch.save({"features.conv0.weight": torch.zeros(1).expand(10**9)}, path)
    assert "larger than the bytes" in refusal(load_imagenet_weights, None, path)


# ---- JSON


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 10**5, '{"x": ' + "9" * 5000 + "}", "\ufeff{}", "5", "nul"]
)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("evaluation.json", rebuild_report),
        ("split.json", lambda folder: describe_run(folder, NOBODY)),
        ("seen.json", lambda folder: describe_run(folder, NOBODY)),
        ("manifest.json", lambda folder: read_preparation(folder / "images")),
        ("any.json", lambda folder: read_json(folder / "any.json")),
    ],
)
def test_json_that_is_none_is_one_line_wherever_it_is_read(tmp_path, content, name, read):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert name in refusal(read, tmp_path)


@pytest.mark.parametrize(
    ("name", "read", "content", "words"),
    [
        ("evaluation.json", rebuild_report, {"threshold": 5, "sweep": True}, "threshold is 5"),
        ("evaluation.json", rebuild_report, {"threshold": "0.4"}, "no sweep"),
        (
            "evaluation.json",
            rebuild_report,
            {"threshold": "0.4", "sweep": False, "facts": {"task": [1]}},
            "facts/task is a list",
        ),
        (
            "split.json",
            lambda folder: describe_run(folder, NOBODY),
            {
                **{"format": 1, "csv": "a", "how": "iid", "seed": 1},
                **{"labelled_clients": [3], "clients": [["a"]]},
            },
            "give ids from 0 to 0",
        ),
        (
            "split.json",
            lambda folder: describe_run(folder, NOBODY),
            {"format": 1, "csv": "a", "how": "iid"},
            "no seed",
        ),
        (
            "seen.json",
            lambda folder: describe_run(folder, NOBODY),
            {"format": 1, "sets": {"train": {"names": ["a"], "pixels": None, "groups": [3]}}},
            "sets/train/groups/0 is 3",
        ),
        (
            "manifest.json",
            lambda folder: read_preparation(folder / "images"),
            {"preprocessing": {"window": "brain", "size": 10**9}},
            "preprocessing/size is 1000000000",
        ),
        (
            "manifest.json",
            lambda folder: read_preparation(folder / "images"),
            {"files": 3},
            "preprocessing is None",
        ),
    ],
)
def test_json_of_other_content_names_the_entry(tmp_path, name, read, content, words):
    (tmp_path / name).write_text(json.dumps(content))
    message = refusal(read, tmp_path)
    assert name in message and words in message


# ---- the checks themselves


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (whole(1, 5), [1, 5], [0, 6, True, 2.0, "2", None, 10**5000]),
        (number(0, 1), [0, 0.5, 1], [float("nan"), float("inf"), -0.1, True, "0", 10**400]),
        (text(3), ["", "abc"], ["abcd", b"abc", 3, None]),
        (sequence(whole(0, 9), 1, 2), [[1], (1, 2)], [[], [1, 2, 3], [10], "1", {1: 1}]),
        (mapping(text(2), whole(0, 9), 2), [{}, {"a": 1}], [[], {"abc": 1}, {1: 1}, {"a": 10}]),
        (record({"a": whole(0, 9)}, {"b": text()}), [{"a": 1}], [{}, {"a": 1, "c": 2}, {"b": ""}]),
        (
            tensor((torch.float32,), (2, None)),
            [torch.zeros(2, 7)],
            [torch.zeros(2), torch.zeros(3, 7), torch.zeros(2, 7, dtype=torch.int64), [1], None],
        ),
    ],
)
def test_checks(check, good, bad):
    for value in good:
        check(value, "x")
    for value in bad:
        with pytest.raises(Mismatch) as error:
            check(value, "x")
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_strangers_value_is_shown_short_and_plain():
    assert shown("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"
    assert len(shown("x" * 10**6)) < 60 and len(shown(10**10**5)) < 60
