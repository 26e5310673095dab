"""Every command line that a program prints can be typed, and does what was promised."""

import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from dataloaders.phantom import __main__ as phantom_command
from options import args_parser
from predict.card import test_command as command_to_test
from record.run import Run
from tests.helpers import PROJECT
from tests.helpers.typed_commands import type_command
from tests.helpers.used_run import run_test_py
from utils.commands import command_line
from utils.metrics.predictions import read_predictions


def test_words_are_quoted_and_what_is_not_set_is_left_out():
    flags = {"a": None, "b": False, "c": True, "d": 0, "e": ["x y", 2], "f": Path("it's")}
    line = command_line("-m utils.metrics", flags, "my file.csv")
    assert line == "python -m utils.metrics 'my file.csv' --c --d 0 --e 'x y' 2 --f 'it'\"'\"'s'"
    assert shlex.split(line)[-1] == "it's"


@pytest.fixture(scope="module")
def drop_folder(tmp_path_factory):
    """Phantom pictures as `python -m dataloaders.phantom` leaves them, in a folder whose name has
    a space, and the commands it printed."""
    folder = tmp_path_factory.mktemp("typed here")
    flags = ["--out", str(folder / "my phantom"), "--patients", "16", "--size", "32"]
    flags += ["--mixed", "0.3", "--seed", "2"]
    with mock.patch.object(sys, "argv", ["phantom", *flags]):
        with mock.patch("builtins.print") as said:
            phantom_command.main()
    printed = "\n".join(str(call.args[0]) for call in said.call_args_list)
    commands = printed[printed.index("next: ") :].removeprefix("next: ").splitlines()
    return folder, [command.strip() for command in commands]


def inside_project(command: str) -> str:
    return type_command(command, PROJECT)


def test_what_the_phantom_says_comes_next_works(drop_folder):
    folder, (divide, train) = drop_folder
    assert "'my phantom'" not in divide and str(folder / "my phantom") in shlex.split(divide)
    inside_project(divide)
    assert (folder / "my phantom" / "training.csv").exists()
    planned = inside_project(f"{train} --multi_label drop --dry_run")
    assert "clients:" in planned


def test_what_the_phantom_says_of_dicom_is_understood(tmp_path):
    args = Namespace(out=tmp_path, format="dicom", size=64)
    words = shlex.split(phantom_command._what_next(args).removeprefix("next: "))
    assert words[:4] == ["python", "-m", "dataloaders.prepare", "rsna"]
    assert words[4:6] == ["--dicom_dir", str(tmp_path / "stage_2_train")]


def test_testing_again_gives_the_numbers_of_the_report(drop_folder, tmp_path):
    """Though rows of several classes were left out and the threshold was another one."""
    folder, (divide, train) = drop_folder
    if not (folder / "my phantom" / "training.csv").exists():
        inside_project(divide)
    run = tmp_path / "a run"
    typed = {"multi_label": "drop", "threshold": 0.3, "cache_dir": tmp_path / "its cache"}
    typed |= {"rounds": 1, "num_users": 2, "num_labeled": 1, "batch_size": 16, "run_dir": run}
    printed = inside_project(train + " " + command_line("", typed).removeprefix("python "))
    again = printed[printed.index("test again with: ") :].splitlines()[0]
    program, script, *flags = shlex.split(again.removeprefix("test again with: "))
    assert (program, script) == ("python", "test.py")
    scored = run_test_py(*flags, "--out", tmp_path / "again")
    for name in ("tables/per_class.csv", "tables/overall.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()
    first, second = (
        read_predictions(place / "predictions_test.csv") for place in (run, tmp_path / "again")
    )
    assert first.names == second.names
    score = scored[scored.index("score again: ") :].splitlines()[0].removeprefix("score again: ")
    assert "threshold: 0.3 for every class" in inside_project(score)


def test_a_medmnist_run_is_tested_on_its_file():
    args = args_parser(["--medmnist", "my set.npz", "--preset", "paper", "--pretrained", "0"])
    line = command_to_test(Path("runs/A/checkpoints/epoch_0.pth"), args)
    assert shlex.split(line)[-2:] == ["--medmnist", "my set.npz"]


@pytest.mark.parametrize("engine", ["loop", "sites"])
def test_going_on_is_one_command_for_any_folder(tmp_path, engine):
    folder = tmp_path / "it's a run"
    folder.mkdir()
    (folder / "args.json").write_text("{}")
    run = SimpleNamespace(folder=folder, args=Namespace(engine=engine, state_every=5), unsaved=None)
    said = Run.next_command(run)
    assert said.startswith("finished rounds are kept: ")
    run.unsaved = "a round that has no state yet"
    assert Run.next_command(run).startswith(
        "rounds are kept up to the last state (--state_every 5)"
    )
    words = shlex.split(said.partition("go on with ")[2])
    if engine == "loop":
        assert words == ["python", "train_main.py", "--resume", str(folder)]
    else:
        assert words[:4] == ["flwr", "run", ".", "--run-config"]
        flags = json.loads(words[4].removeprefix("flags="))  # TOML
        assert shlex.split(flags) == ["--resume", str(folder)]
