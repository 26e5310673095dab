"""`--engine flower` computes what the loop computes, calls nobody, stops and goes on like it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.flower.conftest import ENVIRONMENT, FENCE, Result, assert_same, check, train_main
from tests.helpers.small_clients import assert_identical


def test_same_bits_numbers_and_lines_as_the_loop(loop, simulation):
    assert_same(loop, simulation.result)


def test_clients_remember_the_same(loop, simulation):
    """Adam's moments, the teacher and its steps, in the files of either engine."""
    for client in (0, 1):
        name = f"client_{client}_000003.pth"
        mine = torch.load(simulation.result.folder / "clients" / name, weights_only=True)
        theirs = torch.load(loop.folder / "checkpoints" / "clients" / name, weights_only=True)
        assert_identical(mine["memory"], theirs["memory"])


def test_nothing_is_sent_beyond_this_machine(simulation):
    assert simulation.destinations == []


def test_the_fence_sees_a_packet(tmp_path):
    """What the test above rests on: a program that calls out is caught."""
    call = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.9', 53))"
    report = tmp_path / "packets.json"
    fenced = ["unshare", "--map-root-user", "--net", sys.executable, str(FENCE), str(report)]
    check([*fenced, sys.executable, "-c", call])
    assert "192.0.2.9 17/53" in report.read_text()


def test_stopped_and_resumed_run_ends_with_the_same_bits(loop, flags, tmp_path):
    folder = tmp_path / "run"
    command = train_main(folder, *flags, "--engine", "flower")
    with open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
        )
        wait_for("com_round = 2", tmp_path / "output.txt", process)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143
    said = (tmp_path / "output.txt").read_text()
    assert "finished rounds are kept" in said
    assert "Traceback" not in said
    check([*command[:2], "--resume", str(folder)])
    resumed = Result(folder)
    state, whole = resumed.state(), loop.state()
    assert all(torch.equal(v, whole["weights"][k]) for k, v in state["weights"].items())
    assert resumed.metrics() == loop.metrics()


def wait_for(text: str, file: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while text not in file.read_text():
        assert process.poll() is None and time.monotonic() < deadline, file.read_text()[-2000:]
        time.sleep(0.2)
