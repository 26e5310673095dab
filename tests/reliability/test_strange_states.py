"""States and memories that were saved whole and hold something odd: one line, never a traceback."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from options import args_parser
from record.opening import open_folder
from record.state import check_state
from tests.reliability.conftest import SMALL, refused
from tests.torture.runs import differences, outcome
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.schema import Mismatch


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where the run of two rounds lies that `begun` copies."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def begun(train, phantom_folder, finished, tmp_path):
    """A run of two rounds, to be changed."""
    if not finished.exists():
        ended = train(*SMALL, *phantom_folder.flags(), "--rounds", 2, "--run_dir", finished)
        assert ended.status == 0, ended.error
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def first_weight(state) -> str:
    return next(iter(state["weights"]))


ODD = {
    "no weights": lambda state: state | {"weights": {}},
    "weights that are none": lambda state: state | {"weights": {first_weight(state): 3}},
    "weights without a name": lambda state: state | {"weights": [torch.zeros(3)]},
    "a round before the first": lambda state: state | {"next_round": -1},
    "a round that is a text": lambda state: state | {"next_round": "2"},
    "a history of numbers": lambda state: state | {"history": [1, 2]},
    "no history": lambda state: {k: v for k, v in state.items() if k != "history"},
    "matrices without a round": lambda state: state | {"matrices": [({"a": [[1.0]]},)]},
    "matrices of one row": lambda state: state | {"matrices": [(0, {"a": [0.5, 0.5]})]},
    "an identity of numbers": lambda state: state | {"identity": {"train": 7}},
    "flags that are none": lambda state: state | {"flags": "paper"},
    "clients without a digest": lambda state: state | {"clients": {0: ("client_0.pth",)}},
    "clients by name": lambda state: state | {"clients": {"a": ("client_0.pth", "00")}},
    "shared numbers": lambda state: state | {"shared": {"relation_log_rows": 1.0}},
    "what only a newer version knows": lambda state: state | {"momentum": 0.9},
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_state_is_passed_over_for_the_one_before(train, begun, odd):
    path = begun / "checkpoints" / "state_000002.pth"
    save_checkpoint(path, ODD[odd](load_checkpoint(path)))
    ended = train("--resume", begun, "--rounds", 3)
    assert ended.status == 0, ended.error
    assert "state_000002.pth: not a checkpoint that is read: " in ended.said
    assert "going back to the round before" in ended.said and "Traceback" not in ended.error
    assert "going on with round 1 of 3" in ended.said


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ({}, "not a checkpoint that is read: memory has 0 entries, not 1 to 100"),
        ({"momentum": 1}, "client 2: what it remembers is not what --method has its clients"),
    ],
)
def test_an_odd_memory_is_one_line(train, begun, memory, words):
    state_path = begun / "checkpoints" / "state_000002.pth"
    state = load_checkpoint(state_path)
    name, digest = state["clients"][2]
    memory_path = begun / "checkpoints" / "clients" / name
    content = load_checkpoint(memory_path, digest)
    new = save_checkpoint(memory_path, content | {"memory": memory})
    clients = state["clients"] | {2: (name, new)}
    save_checkpoint(state_path, state | {"clients": clients})
    assert words in refused(train("--resume", begun, "--rounds", 3))


def test_states_of_the_version_before_are_still_read():
    weights = {"w": torch.zeros(3)}
    old = {"weights": weights, "matrix": None, "next_round": 1, "history": [{"round": 0}]}
    old |= {
        "matrices": [(0, [[0.5, 0.5], [1.0, 0.0]], None)],
        "identity": {},
        "flags": {},
        "clients": {},
    }
    check_state(old, "")
    with pytest.raises(Mismatch, match="no weights"):
        check_state({name: value for name, value in old.items() if name != "weights"}, "")


# ---- args.json

ODD_FLAGS = {
    "rounds": ("many", 'rounds is "many", not a whole number'),
    "base_lr": (True, "base_lr is true, not a number"),
    "method": ("fedprox", 'method is "fedprox", not one of fedirm, '),
    "follow_links": (1, "follow_links is 1, not true or false"),
    "phantom_split": (0.5, "phantom_split is 0.5, not a list, each a number"),
    "cache_dir": (["a"], 'cache_dir is ["a"], not a text'),
    "seed": (None, "seed is null, not a whole number"),
}


@pytest.mark.parametrize("name", ODD_FLAGS)
def test_an_odd_args_file_is_one_line(train, begun, name):
    path = begun / "args.json"
    value, words = ODD_FLAGS[name]
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert f"{path}: {words}" in refused(train("--resume", begun, "--rounds", 3))


# ---- going back, and two that begin at once


def test_a_run_goes_back_behind_its_last_rounds(train, begun, tmp_path, phantom_folder):
    assert train("--resume", begun, "--rounds", 4, "--keep_rounds", 3).status == 0
    whole = outcome(begun)
    words = refused(train("--resume", begun, "--rounds", 4, "--go_back", 3))
    assert "--go_back 3: " in words and "has states of 3 rounds" in words
    ended = train("--resume", begun, "--rounds", 4, "--go_back", 2)
    assert ended.status == 0 and "going on with round 2 of 4" in ended.said, ended.error
    assert differences(whole, outcome(begun)) == []
    args = [*SMALL, *phantom_folder.flags(), "--go_back", 1, "--run_dir", tmp_path / "new"]
    assert "--go_back: needs --resume" in refused(train(*args))


def test_runs_that_begin_in_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("record.opening.default_folder", lambda args: Path("runs/now"))
    locks = []
    for number in range(3):
        args, folder, lock = open_folder(args_parser(["--medmnist", "none.npz"]), [])
        locks.append(lock)
        assert (
            args.run_dir == folder == Path("runs/now" if number == 0 else f"runs/now-{number + 1}")
        )
    (tmp_path / "runs/now/args.json").write_text("{}")
    locks[0].release(keep_folder=True)
    assert open_folder(args_parser(["--medmnist", "none.npz"]), [])[1] == Path("runs/now-4")
