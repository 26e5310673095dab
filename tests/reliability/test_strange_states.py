"""States and memories that were saved whole and hold something odd: one line, never a traceback."""

import shutil

import pytest
import torch

from record.state import check_state
from tests.reliability.conftest import SMALL, refused
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


def test_an_odd_memory_is_one_line(train, begun):
    state_path = begun / "checkpoints" / "state_000002.pth"
    state = load_checkpoint(state_path)
    name, digest = state["clients"][2]
    memory_path = begun / "checkpoints" / "clients" / name
    content = load_checkpoint(memory_path, digest)
    new = save_checkpoint(memory_path, content | {"memory": {}})
    clients = state["clients"] | {2: (name, new)}
    save_checkpoint(state_path, state | {"clients": clients})
    words = refused(train("--resume", begun, "--rounds", 3))
    assert f"{name}: not a checkpoint that is read: memory has 0 entries, not 1 to 100" in words


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
