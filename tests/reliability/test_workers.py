"""A program ends when it is told to, whatever its threads were at."""

import subprocess
import sys

from tests.helpers import PROJECT

# A signal arrives while the second owner's thread is being started, as Ctrl-C may.
PROGRAM = """
import threading
from concurrent.futures import ThreadPoolExecutor
from utils.workers import on_each, shared_out

class Owner: pass

started = []
real = threading.Thread.start

def start(self):
    real(self)
    if self.name.startswith("network"):
        started.append(self)
        if len(started) == 2:
            raise KeyboardInterrupt

threading.Thread.start = start
owners, stopped = [Owner(), Owner()], threading.Event()
try:
    list({call})
except KeyboardInterrupt:
    print("interrupted", stopped.is_set())
"""
CALLS = {
    "shared_out(lambda owner, item: stopped.wait(60), owners, range(9), stopped.set)": True,
    "on_each(lambda owner: None, owners)": False,
}


def test_an_interrupt_while_a_thread_starts_leaves_none_behind():
    for call, stops in CALLS.items():
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM.replace("{call}", call)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == f"interrupted {stops}\n"
