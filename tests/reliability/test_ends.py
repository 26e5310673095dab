"""How a command ends while it still loads its packages, and what loading them says."""

import os
import subprocess
import sys

from tests.helpers import PROJECT

STOPPED = """
import os, signal, sys
from utils.packages import check_installed
check_installed()
os.kill(os.getpid(), signal.SIGINT)
for _ in range(10**9): pass
"""


def test_ctrl_c_while_packages_are_loaded_is_one_line():
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (130, "stopped by Ctrl-C\n")


def test_a_home_that_cannot_be_written_to_is_not_spoken_of(tmp_path):
    (tmp_path / "home").write_text("a file, in which no folder can be made")
    home = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    ended = subprocess.run(
        [sys.executable, "-c", "import utils.plots.style"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if k != "MPLCONFIGDIR"} | home,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
