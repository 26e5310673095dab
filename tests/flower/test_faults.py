"""Sites that fail, lie, are late or are not there; a server that stops and goes on."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import ray
import torch
from flwr.app import Array, ArrayRecord, Message

from deploy.messages import pack_weights, unpack_weights
from deploy.simulation import TRIES, ray_started
from tests.flower.conftest import ROUNDS, Result
from tests.flower.local_grid import LocalGrid, run_rounds
from tests.helpers import PROJECT
from utils.errors import UserError

BAD_ROUND = 2


def honest(client: int, round: int, answer: Message) -> Message:
    return answer


def in_bad_round(change):
    """`change` what client 1 answers in BAD_ROUND; everything else is as it was."""

    def tamper(client: int, round: int, answer: Message) -> Message | None:
        return change(answer) if (client, round) == (1, BAD_ROUND) else answer

    return tamper


def with_nan(answer: Message) -> Message:
    packed = answer.content["weights"]["weights"].numpy().copy()
    packed[:4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    answer.content["weights"] = ArrayRecord({"weights": Array(packed)})
    return answer


def with_fewer_bytes(answer: Message) -> Message:
    packed = answer.content["weights"]["weights"].numpy()[:-8].copy()
    answer.content["weights"] = ArrayRecord({"weights": Array(packed)})
    return answer


def nothing(grid: LocalGrid) -> None:
    """The grid as it is."""


def log_of(folder) -> str:
    return (folder / "log.txt").read_text()


@pytest.mark.parametrize("change", [with_nan, with_fewer_bytes])
def test_bad_answer_is_skipped_and_its_memory_too(change, flags, tmp_path):
    folder = tmp_path / "run"
    policy = ["--on_bad_client", "skip", "--min_clients", "1"]
    grid = run_rounds(folder, [*flags, *policy], in_bad_round(change), nothing)
    result = Result(folder)
    assert [row["clients_skipped"] for row in result.metrics()] == ["0", "0", "1", "0"]
    assert f"left out of this round: client 1, round {BAD_ROUND}:" in log_of(folder)
    assert all(value.isfinite().all() for value in result.state()["weights"].values())
    # Client 1 trained in round 2, but goes on from what it remembered after round 1.
    assert (1, BAD_ROUND + 1, BAD_ROUND - 1) in grid.asked
    assert (0, BAD_ROUND + 1, BAD_ROUND) in grid.asked


def test_bad_answer_stops_the_run_by_default_and_it_goes_on_with_the_same_bits(
    loop, flags, tmp_path
):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=f"client 1, round {BAD_ROUND}: its weights are not finite"):
        run_rounds(folder, flags, in_bad_round(with_nan), nothing)
    run_rounds(folder, [], honest, nothing)
    weights, expected = Result(folder).state()["weights"], loop.state()["weights"]
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert Result(folder).metrics() == loop.metrics()


def test_client_that_does_not_answer_is_left_out_by_policy_only(flags, tmp_path):
    run_rounds(tmp_path / "some", [*flags, "--min_clients", "1"], in_bad_round(lose), nothing)
    assert f"client 1: no answer in time: left out of round {BAD_ROUND}" in log_of(
        tmp_path / "some"
    )
    rows = Result(tmp_path / "some").metrics()
    assert [row["clients_unlabeled"] for row in rows] == ["0", "1", "0", "1"]
    with pytest.raises(UserError, match=f"round {BAD_ROUND}: 1 of 2 clients answered"):
        run_rounds(tmp_path / "all", flags, in_bad_round(lose), nothing)
    assert len(Result(tmp_path / "all").state(BAD_ROUND)["history"]) == BAD_ROUND


def lose(answer: Message) -> None:
    """The answer never arrives: too slow, or killed."""


def test_site_that_lost_its_memory_begins_anew_and_says_so(flags, tmp_path):
    folder = tmp_path / "run"

    def forget(client: int, round: int, answer: Message) -> Message:
        if (client, round) == (1, BAD_ROUND):
            for path in (folder / "clients").glob("client_1_*.pth"):
                path.unlink()
        return answer

    run_rounds(folder, flags, forget, nothing)
    assert "client 1 has lost its memory and began anew" in log_of(folder)


def test_too_few_sites_end_in_one_line_after_the_timeout(flags, tmp_path):
    def alone(grid: LocalGrid) -> None:
        del grid.nodes[100]  # the labelled one

    patience = ["--client_timeout", "2", "--min_clients", "1"]
    with pytest.raises(UserError, match="round 0: 0 of 0 clients are there"):
        run_rounds(tmp_path / "run", [*flags, *patience], honest, alone)


def test_by_default_a_run_begins_with_every_site_or_not_at_all(flags, tmp_path, capsys):
    def alone(grid: LocalGrid) -> None:
        del grid.nodes[101]

    patience = ["--client_timeout", "2"]
    with pytest.raises(UserError, match=r"1 of 2 clients are there \(0\), --min_clients 0; bring"):
        run_rounds(tmp_path / "run", [*flags, *patience], honest, alone)
    assert not (tmp_path / "run" / "args.json").exists()
    one = [*patience, "--min_clients", "1", "--rounds", "1"]
    run_rounds(tmp_path / "run", [*flags, *one], honest, alone)
    said = capsys.readouterr().out
    assert "1 of 2 clients are there (0): beginning without the others" in said
    assert len(Result(tmp_path / "run").metrics()) == 1


def test_who_is_turned_away_at_first_has_no_memory_of_it(flags, tmp_path):
    """Client 1 takes part from round 1 on."""

    def tamper(client: int, round: int, answer: Message) -> Message:
        return with_nan(answer) if (client, round) == (1, 1) else answer

    policy = ["--on_bad_client", "skip", "--min_clients", "1"]
    grid = run_rounds(tmp_path / "run", [*flags, *policy], tamper, nothing)
    assert [asked for client, _, asked in grid.asked if client == 1][:3] == [-1, -1, 2]


def test_second_node_of_a_client_is_refused(flags, tmp_path, capsys):
    def twice(grid: LocalGrid) -> None:
        grid.nodes[102] = 1

    run_rounds(tmp_path / "run", flags, honest, twice)
    assert "node 102 refused: client 1 is there already" in capsys.readouterr().out
    assert Result(tmp_path / "run").state()["next_round"] == ROUNDS


def test_process_that_waits_for_ever_ends_with_its_parent():
    waiting = "import threading; threading.Event().wait(60)"
    child = f"from deploy.server import *; end_with_parent(0.2); print('up', flush=True); {waiting}"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=PROJECT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.kill()
    process.communicate(timeout=60)  # the pipe closes when the child has ended, too


def test_weights_travel_without_a_change_and_nothing_else_passes_for_them():
    like = {
        "counter": torch.tensor(7),
        "half": torch.randn(3, dtype=torch.float16),
        "picture": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    there = unpack_weights(pack_weights(like), like)
    assert list(there) == list(like)
    assert all(torch.equal(there[k], v) and there[k].dtype == v.dtype for k, v in like.items())
    wrong = (
        ArrayRecord({"weights": Array(np.zeros(5, np.uint8))}),
        ArrayRecord({"weights": Array(np.zeros(398 // 4, np.float32))}),
        ArrayRecord({"other": pack_weights(like)["weights"]}),
    )
    for record in wrong:
        with pytest.raises(ValueError, match="weights"):
            unpack_weights(record, like)


def test_ray_that_is_late_is_started_again_and_one_that_never_comes_is_one_line(monkeypatch):
    """Ray ends its own start after 30 seconds, which a busy machine takes."""
    late, starts = [True, False], []

    def start(**_) -> None:
        starts.append(signal.signal(signal.SIGTERM, signal.SIG_IGN))
        if late.pop(0):
            raise Exception("The current node timed out\nduring startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", start)
    ours = signal.getsignal(signal.SIGTERM)
    with ray_started():
        assert len(starts) == 2 and signal.getsignal(signal.SIGTERM) is ours
    late[:] = [True] * 10
    with pytest.raises(UserError, match="Ray does not start: .* timed out during startup"):
        with ray_started():
            raise AssertionError("it never came")
    assert len(starts) == 2 + TRIES and signal.getsignal(signal.SIGTERM) is ours
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # somebody else's: asked once
    with pytest.raises(UserError, match="Ray does not start"):
        with ray_started():
            raise AssertionError("it never came")
    assert len(starts) == 3 + TRIES
