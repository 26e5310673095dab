"""`python -m dataloaders.prepare` as a user types it, and what the tests of it share."""

import subprocess
import sys
from pathlib import Path

from tests.helpers import PROJECT

PREPARE = [sys.executable, "-m", "dataloaders.prepare"]


def prepare(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*PREPARE, *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def rsna(hospital: Path, out: Path, *more: object) -> subprocess.CompletedProcess:
    """`prepare rsna` on a folder with stage_2_train/ and labels.csv."""
    return prepare(
        *("rsna", "--dicom_dir", hospital / "stage_2_train", "--labels", hospital / "labels.csv"),
        *("--out", out, "--size", 24, "--workers", 1),
        *more,
    )


def one_line_error(done: subprocess.CompletedProcess) -> str:
    """The error of a command that the user can mend: exit status 2, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def write_labels(path: Path, lines: list[str], header: str = "ID,Label") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path
