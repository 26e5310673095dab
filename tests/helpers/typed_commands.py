"""The commands of a Markdown page, and typing them."""

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

from tests.helpers import PROJECT

PROGRAMS = ("python ", "make ")


def commands_of(page: str) -> list[str]:
    """Every command of a page, in its order, each once: what begins with a program's name in a
    block or between backticks. Comments are left out, lines that end in \\ are joined."""
    fence = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    lines = [line for block in fence.findall(page) for line in _joined(block).splitlines()]
    lines += re.findall(r"`([^`\n]+)`", fence.sub("", page))
    words = [shlex.split(line, comments=True) for line in lines if line.startswith(PROGRAMS)]
    return list(dict.fromkeys(" ".join(command) for command in words))


def blocks_of(page: str, language: str) -> list[str]:
    """The blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def _joined(block: str) -> str:
    lines = [line.strip() for line in block.splitlines()]
    return re.sub(r" *\\\n", " ", "\n".join(lines))


def type_command(command: str, folder: Path) -> str:
    """Run `command` in `folder` in a process of its own; what it printed. It must succeed."""
    words = [sys.executable, *shlex.split(command)[1:]]
    result = subprocess.run(
        ["bash", "-c", " ".join(word if "*" in word else shlex.quote(word) for word in words)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@contextlib.contextmanager
def _inside(folder: Path):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def type_here(command: str, folder: Path) -> str:
    """The same for a script, in this process: importing torch costs seconds, and it is there."""
    _, script, *words = shlex.split(command)
    output, status = io.StringIO(), None
    try:
        with (
            _inside(folder),
            contextlib.redirect_stdout(output),
            mock.patch.object(sys, "argv", [script, *words]),
        ):
            runpy.run_path(str(PROJECT / script), run_name="__main__")
    except SystemExit as end:
        status = end.code
    assert not status, f"{command}\n{output.getvalue()}"
    return output.getvalue()
