"""Who trains when and where, and how updates come together, without training anything."""

import threading
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import options as options_module
import train_main
from confuse_matrix import RelationMatrix
from dataloaders.split import Split
from federation import METHODS, build_networks, clients_taking_part, first_weights
from local_update import ClientUpdate
from networks.devices import choose_devices, refuse_endless_run
from networks.kinds import NETWORKS
from options import args_parser
from record.rounds import RoundMatrices, is_scored, round_row
from record.state import Progress
from server import RelationServer, Server
from tasks import TASKS
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError


def options(*flags: str) -> Namespace:
    return args_parser(["--medmnist", "none.npz", *flags])


def participants(labeled: int, unlabeled: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(client=number, labeled=number < labeled, stop=threading.Event())
        for number in range(labeled + unlabeled)
    ]


def numbers(clients) -> list[int]:
    return [client.client for client in clients]


def update(value: float, size: int, labeled: bool = True) -> ClientUpdate:
    matrix = RelationMatrix(torch.full((2, 2), 0.5).log(), torch.ones(2).bool())
    stats = {"loss": value, "supervised_loss": value, "seconds": 1.0, "learning_rate": 3e-4}
    if not labeled:
        names = ("consistency_loss", "relation_loss", "consistency_weight", "reliable_share")
        stats = dict.fromkeys(("loss", *names), value) | {"seconds": 3.0, "learning_rate": 2e-4}
    shared = matrix.named() if labeled else {}
    return ClientUpdate({"w": torch.full((3,), value)}, size, labeled, shared, stats, {})


class FakeExchange:
    """Takes what an exchange is told, and lends out no memory."""

    def __init__(self):
        self.started, self.averaged = [], []

    def start_client(self, client):
        self.started.append(client.client)

    def done(self, update):
        self.averaged.append(update.stats["loss"])

    def memory_of(self, client):
        return threading.Lock()  # any context

    def accept(self, *_):
        return True


# ---- who


@pytest.mark.parametrize(
    ("preset", "round", "expected"),
    [
        ("paper", 0, [0, 1, 2, 3]),
        ("paper", 99, [0, 1, 2, 3]),
        ("official", 20, [0, 1]),  # 20 is not more than 20
        ("official", 21, [0, 1, 2, 3]),
        ("official", 199, [0, 1, 2, 3]),
        ("slides", 10, [0, 1]),
        ("slides", 11, [0, 1, 2, 3]),
        ("slides", 99, [0, 1, 2, 3]),
        ("slides", 100, [2, 3]),  # 100 rounds of 2 epochs: as the published log shows
        ("slides", 199, [2, 3]),
    ],
)
def test_who_trains_when(preset, round, expected):
    assert numbers(Server(options("--preset", preset)).active(participants(2, 2), round)) == (
        expected
    )


def test_labelled_clients_without_others_never_stop():
    for round in (0, 50, 100, 199):
        assert numbers(Server(options()).active(participants(3, 0), round)) == [0, 1, 2]


def test_labelled_clients_go_on_until_others_have_joined():
    args = options("--join_epoch", "300", "--labeled_stop", "200")
    assert numbers(Server(args).active(participants(1, 1), 120)) == [0]
    assert numbers(Server(args).active(participants(1, 1), 151)) == [1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [0, 1, 2, 3, 4]),
        (["--num_unlabeled", "2"], [0, 1, 2, 4]),
        (["--num_unlabeled", "0"], [1, 4]),
        (["--method", "fedavg"], [1, 4]),
        (["--method", "fed_selftraining", "--num_unlabeled", "1"], [0, 1, 4]),
    ],
)
def test_who_takes_part(flags, expected):
    split = Split([np.arange(2)] * 5, (1, 4), 0, "by hand")
    assert clients_taking_part(options(*flags), split) == expected


# ---- where


def test_devices(monkeypatch):
    said = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_devices("0,1", said.append) == [torch.device("cpu")]
    assert len(said) == 1 and "\n" not in said[0] and "0,1" in said[0]
    assert choose_devices("cpu", said.append) == [torch.device("cpu")]
    assert choose_devices("cpu, cpu", said.append) == [torch.device("cpu")] * 2
    assert len(said) == 1
    assert choose_devices("0", said.append, default="0") == [torch.device("cpu")]
    with pytest.raises(UserError, match="--gpu 0: there is no device 0, this machine has 0"):
        choose_devices("0", said.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90", "compute_90"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_devices("1,0", said.append) == [torch.device("cuda:1"), torch.device("cuda:0")]
    with pytest.raises(UserError, match="--gpu 1,0,7: there is no device 7, this machine has 2"):
        choose_devices("1,0,7", said.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_devices("0,1", said.append) == [torch.device("cuda:0")]  # the flag's own default
    for capability, runs in (((8, 6), True), ((12, 0), True), ((7, 5), False), ((6, 0), False)):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, found=capability: found
        )
        if runs:
            assert choose_devices("0", said.append) == [torch.device("cuda:0")]
        else:
            with pytest.raises(UserError, match="Tesla P100 has compute .* built for sm_80"):
                choose_devices("0", said.append)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx900", "gfx90a", "gfx1100"])
    assert choose_devices("0", said.append) == [torch.device("cuda:0")]  # AMD's: not looked at
    for wrong in ("", "gpu", "0,cpu", "-1", "cuda:0"):
        with pytest.raises(UserError, match="--gpu"):
            choose_devices(wrong, said.append)


def test_a_run_meant_for_a_gpu_does_not_begin_by_itself_where_it_would_take_days():
    paper, cpu = options("--preset", "paper"), [torch.device("cpu")]
    with pytest.raises(UserError, match="no GPU here: 100 rounds of 17503 .* 4 days .*--gpu cpu"):
        refuse_endless_run(paper, cpu, 17_503, (3, 224, 224))
    refuse_endless_run(paper, [torch.device("cuda", 0)], 17_503, (3, 224, 224))
    refuse_endless_run(paper, cpu, 1_750, (3, 224, 224))
    refuse_endless_run(options("--preset", "paper", "--gpu", "cpu"), cpu, 17_503, (3, 224, 224))


class Network:
    """Holds whom it trains, and notices two at once."""

    def __init__(self):
        self.busy = threading.Lock()


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_updates_come_in_the_clients_order(devices):
    clients = participants(2, 5)
    overlaps = []

    def train(client, net, weights, round, target):
        if not net.busy.acquire(blocking=False):
            overlaps.append(client)
        threading.Event().wait(0.01 * (7 - client))  # the first are the slowest
        net.busy.release()
        return update(float(client), 1)

    for client in clients:
        client.train = lambda *arguments, number=client.client: train(number, *arguments)
    exchange, networks = FakeExchange(), [Network() for _ in range(devices)]
    updates = train_main.train_clients(clients, networks, {}, 0, None, exchange)
    assert [found.stats["loss"] for found in updates] == list(range(7))
    assert sorted(exchange.started) == list(range(7)) and overlaps == []


def test_an_error_on_one_device_stops_the_others():
    clients = participants(2, 4)
    reached = threading.Event()

    def fail(*_):
        reached.wait(5)
        raise UserError("a client failed")

    def train_until_stopped(client):
        reached.set()
        assert client.stop.wait(5)
        return update(0.0, 1)

    clients[0].train = fail
    for client in clients[1:]:
        client.train = lambda *_, client=client: train_until_stopped(client)
    exchange = FakeExchange()
    with pytest.raises(UserError, match="a client failed"):
        list(train_main.train_clients(clients, [Network(), Network()], {}, 0, None, exchange))
    assert all(client.stop.is_set() for client in clients)
    assert len(exchange.started) < 6


# ---- how


@pytest.mark.parametrize(("weighting", "expected"), [("equal", 2.0), ("size", 1.5)])
def test_average_by_size_or_head(weighting, expected):
    exchange = FakeExchange()
    updates = iter([update(1.0, 30), update(3.0, 10, labeled=False)])
    server = Server(options("--fedavg_weights", weighting))
    weights, reports = server.average(updates, {}, 0, torch.device("cpu"), exchange.done)
    assert weights["w"].tolist() == [expected] * 3
    assert [report.num_samples for report in reports] == [30, 10]
    assert all(report.weights == {} for report in reports)
    assert exchange.averaged == [1.0, 3.0]


def rounds_of(server: Server, trained: dict[int, list[ClientUpdate]]) -> dict[int, float]:
    """The average of each round: two labelled clients, and one without labels."""
    found = {}
    for round, updates in trained.items():
        server.active(participants(2, 1), round)
        weights, _ = server.average(iter(updates), {}, round, torch.device("cpu"), lambda _: None)
        found[round] = float(weights["w"][0])
    return found


# The labelled stop once two epochs are done, after round 1.
STOPPING = ("--join_epoch", "-1", "--local_ep", "1", "--labeled_stop", "2")
TRAINED = {
    0: [update(1.0, 10), update(2.0, 30), update(6.0, 20, labeled=False)],
    1: [update(3.0, 10), update(5.0, 30), update(7.0, 20, labeled=False)],
    2: [update(10.0, 20, labeled=False)],
    3: [update(13.0, 20, labeled=False)],
}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--stopped_clients", "average"], {0: 3.0, 1: 5.0, 2: 6.0, 3: 7.0}),  # (3 + 5 + w) / 3
        (["--stopped_clients", "leave"], {0: 3.0, 1: 5.0, 2: 10.0, 3: 13.0}),
        # (10 * 3 + 30 * 5 + 20 w) / 60
        (["--fedavg_weights", "size"], {0: 190 / 60, 1: 320 / 60, 2: 380 / 60, 3: 440 / 60}),
        (["--aggregate", "median"], {0: 2.0, 1: 5.0, 2: 5.0, 3: 5.0}),
    ],
)
def test_the_last_models_of_stopped_clients_stay_in_the_average(flags, expected):
    found = rounds_of(Server(options(*STOPPING, *flags)), TRAINED)
    assert found == pytest.approx(expected)


def test_a_resumed_server_still_has_the_models_of_stopped_clients(tmp_path):
    first = Server(options(*STOPPING))
    before = {round: TRAINED[round] for round in (0, 1)}
    rounds_of(first, before)
    save_checkpoint(tmp_path / "state.pth", first.state_dict())
    resumed = Server(options(*STOPPING))
    resumed.load_state_dict(load_checkpoint(tmp_path / "state.pth"))
    after = {round: TRAINED[round] for round in (2, 3)}
    assert rounds_of(resumed, after) == rounds_of(first, after)


def test_nothing_is_remembered_where_nobody_stops():
    for flags, clients in ((("--labeled_stop", "0"), (2, 1)), ((), (2, 0))):
        server = Server(options(*STOPPING, *flags))
        server.active(participants(*clients), 1)
        server.average(iter(TRAINED[1][:2]), {}, 1, torch.device("cpu"), lambda _: None)
        assert server.state_dict() == {}
        assert server.models_remembered(participants(*clients)) == 0
    stopping = Server(options(*STOPPING))
    assert stopping.models_remembered(participants(2, 1)) == 2


@pytest.mark.parametrize("preset", ["official", "slides", "paper"])
def test_the_head_begins_without_a_preference_as_in_the_released_program(preset):
    args = options("--preset", preset, "--pretrained", "0")
    (net,) = build_networks(args, ("a", "b"), [torch.device("cpu")])
    weights = first_weights(args, Progress({}, {}, 0), net)
    bias = weights["densenet121.classifier.0.bias"]
    assert bool(bias.any()) == (preset == "paper")
    assert weights["densenet121.classifier.0.weight"].any()


@pytest.mark.parametrize(
    ("weighting", "weight", "expected"),
    # (4 * 1 + 3) / 5; (4 * 30 * 1 + 10 * 3) / 130
    [("equal", "4", 7 / 5), ("size", "4", 150 / 130), ("equal", "0.5", 7 / 3)],
)
def test_labelled_clients_count_so_many_times(weighting, weight, expected):
    server = Server(options("--fedavg_weights", weighting, "--labeled_weight", weight))
    updates = [update(1.0, 30), update(3.0, 10, labeled=False)]
    weights, _ = server.average(iter(updates), {}, 0, torch.device("cpu"), lambda _: None)
    assert weights["w"].tolist() == pytest.approx([expected] * 3)


def test_mean_relation_stays_where_nobody_measures():
    measured = [update(0.0, 1), update(0.0, 1, labeled=False)]
    server = RelationServer(options())
    mean = server.shared(measured, {})
    found = RelationMatrix.from_named(mean).probabilities()
    torch.testing.assert_close(found, torch.full((2, 2), 0.5))
    assert server.shared(measured[1:], mean) is mean
    assert server.shared(measured[1:], {}) == {}
    assert Server(options()).shared(measured, mean) == {}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--preset", "official"], [*range(0, 200, 10), 199]),
        (["--preset", "slides"], list(range(200))),
        (["--preset", "paper", "--eval_every", "40"], [39, 79, 99]),
    ],
)
def test_which_rounds_are_scored(flags, expected):
    args = options(*flags)
    assert [round for round in range(args.rounds) if is_scored(round, args)] == expected


def test_round_as_a_row():
    reports = [update(1.0, 5), update(3.0, 5), update(0.5, 5, labeled=False)]
    row = round_row(7, reports)
    assert row == {
        "round": 7,
        "phase": "all",
        "learning_rate_labeled": 3e-4,
        "learning_rate_unlabeled": 2e-4,
        "loss": 1.5,
        "supervised_loss": 2.0,
        "consistency_loss": 0.5,
        "relation_loss": 0.5,
        "consistency_weight": 0.5,
        "reliable_share": 0.5,
        "clients_labeled": 2,
        "clients_unlabeled": 1,
        "seconds_labeled": 1.0,
        "seconds_unlabeled": 3.0,
    }
    only = round_row(0, reports[:2])
    assert only["phase"] == "labeled" and "relation_loss" not in only
    assert round_row(0, reports[2:])["phase"] == "unlabeled"


def test_matrices_of_a_round():
    reports = [update(1.0, 1), update(1.0, 1, labeled=False)]
    matrices = RoundMatrices.of_round(3, RelationServer(options()).pictures(reports))
    assert matrices.round == 3 and matrices.means.keys() == {"labeled_mean"}
    assert np.array(matrices.means["labeled_mean"]) == pytest.approx(np.full((2, 2), 0.5))


# ---- the registries


def test_every_choice_of_method_task_and_network_is_in_its_registry():
    assert tuple(METHODS) == options_module.METHODS
    assert tuple(TASKS) == options_module.TASKS
    assert tuple(NETWORKS) == options_module.NETWORKS


def test_a_statistic_reaches_the_row_by_its_own_name_whoever_reports_it():
    reports = [update(1.0, 5), update(3.0, 5, labeled=False)]
    reports[0].stats["new_of_labeled"], reports[1].stats["new_of_unlabeled"] = 7.0, 9.0
    row = round_row(0, reports)
    assert (row["new_of_labeled"], row["new_of_unlabeled"]) == (7.0, 9.0)


def test_a_labelled_client_that_shares_nothing_counts_as_labelled():
    row = round_row(0, [update(1.0, 5)._replace(shared={})])
    assert (row["phase"], row["clients_labeled"]) == ("labeled", 1)
