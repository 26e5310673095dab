"""`pip install .`: what the wheel holds, its command, and what is said without its packages."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version

import pytest

from fedirm.__main__ import COMMANDS, usage
from tests.helpers import PROJECT
from utils.commands import INSTALLED, as_typed, command_line

BUILT = ("fedirm", "dataloaders", "deploy", "methods", "networks", "paper", "predict", "record")
BUILT += ("tasks", "utils")


def test_every_command_has_a_program_and_is_what_messages_name():
    typed = {}
    for command, (program, _) in COMMANDS.items():
        assert command in usage()
        place = program if program.endswith(".py") else program.replace(".", "/")
        assert any((PROJECT / f"{place}{end}").exists() for end in ("", ".py"))
        words = program if program.endswith(".py") else f"-m {program}"
        typed.setdefault(f"python {words}", f"fedirm {command}")
    assert typed == INSTALLED


def test_messages_name_the_command_that_its_reader_has(monkeypatch):
    monkeypatch.delenv("FEDIRM_COMMAND", raising=False)
    assert as_typed("see python train_main.py --help") == "see python train_main.py --help"
    assert command_line("test.py", {"resume": "a b"}) == "python test.py --resume 'a b'"
    monkeypatch.setenv("FEDIRM_COMMAND", "1")
    assert as_typed("see python train_main.py --help") == "see fedirm train --help"
    assert command_line("test.py", {"resume": "a b"}) == "fedirm test --resume 'a b'"
    assert command_line("-m utils.tables", {}, "x") == "fedirm tables x"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel puts into site-packages."""
    try:
        if int(version("setuptools").split(".")[0]) < 77:
            pytest.skip("setuptools is older than 77")
        version("pip")
    except PackageNotFoundError as missing:
        pytest.skip(f"no {missing} here to build a wheel with")
    folder = tmp_path_factory.mktemp("wheel")
    for path in (*PROJECT.glob("*.*"), PROJECT / "LICENSE"):
        if path.is_file():
            shutil.copy2(path, folder)
    for name in BUILT:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", "wheels", "."]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = (folder / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_module_below_one_name(installed):
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert names == {"fedirm"}
    ours = {path for name in BUILT for path in (PROJECT / name).rglob("*.py")} | {
        *PROJECT.glob("*.py")
    }
    expected = {str(path.relative_to(PROJECT)) for path in ours}
    found = {str(path.relative_to(installed)) for path in installed.rglob("*.py")}
    assert {name.removeprefix("fedirm/house/") for name in found} == expected


def test_the_installed_command_runs_from_any_folder(installed, tmp_path):
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "fedirm", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(installed)},
        )

    helped = run("tables", "--help")
    assert helped.stdout.startswith("usage: fedirm tables") and helped.returncode == 0
    refused = run("train", "--prest", "demo")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: unrecognized arguments: --prest demo; did you mean --preset? (all flags: fedirm "
        "train --help)\n"
    )
    assert run("trian").stderr == "error: no command 'trian' (fedirm --help lists them)\n"


@pytest.mark.parametrize(
    "words", [("train_main.py", "--preset", "demo"), ("test.py",), ("reproduce.py", "table1")]
)
def test_without_its_packages_a_program_says_what_to_type(words):
    ended = subprocess.run(
        [sys.executable, "-S", *words], cwd=PROJECT, capture_output=True, text=True
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} has no torch, ")
    assert "type make demo" in line or "type . " in line
