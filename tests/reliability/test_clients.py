"""What clients remember, where it waits, and what one client got wrong."""

import errno
import os
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import record.state
from confuse_matrix import RelationMatrix
from local_update import ClientUpdate
from record.guard import ClientGuard, find_bad_number, find_misfit
from record.state import ClientStore, Progress, RunState, StateFiles, choose_placement
from server import RelationServer
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

NAN, INF = float("nan"), float("inf")


def memory(value: float) -> dict:
    """Shaped like an unlabelled client's."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.full((2, 3, 1, 1), value)}
    return {
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "teacher": {"weight": torch.full((4,), value)},
        "step": 7,
    }


def value_of(state: dict) -> float:
    return state["teacher"]["weight"][0].item()


@pytest.fixture(params=["device", "host", "disk"])
def store(request, tmp_path):
    store = ClientStore(tmp_path, request.param)
    yield store
    store.close()


# ---- the store


def test_what_was_remembered_last_is_recalled_here_and_in_a_later_process(store, tmp_path):
    assert store.recall(3) is None
    for round in range(2):
        for client in (3, 12):
            store.remember(client, round, memory(10 * round + client))
        assert value_of(store.recall(3)) == 10 * round + 3
    files = store.flush()
    assert list(files) == [3, 12] and files[3].name == "client_3_000001.pth"
    later = ClientStore(tmp_path, store.placement)
    later.adopt({client: tuple(file) for client, file in files.items()})
    recalled = later.recall(12)
    assert value_of(recalled) == 22 and recalled["step"] == 7
    assert recalled["optimizer"]["param_groups"] == [{"lr": 1e-3, "params": [0]}]
    later.close()


def test_memory_holds_states_only_where_the_placement_says(tmp_path):
    for placement, held in (("device", 2), ("host", 2), ("disk", 0)):
        store = ClientStore(tmp_path / placement, placement)
        for client in range(2):
            store.remember(client, 0, memory(client))
        store.flush()
        assert len(store._memory) == held
        store.close()


def test_a_client_that_rests_keeps_its_file_and_older_generations_go(store, tmp_path):
    kept = []
    for round in range(4):
        for client in (0, 1) if round == 0 else (1,):
            store.remember(client, round, memory(round))
        files = store.flush()
        kept = [*kept[-1:], {file.name for file in files.values()}]
        store.commit(set().union(*kept))
    expected = ["client_0_000000.pth", "client_1_000002.pth", "client_1_000003.pth"]
    assert sorted(path.name for path in tmp_path.glob("client_*")) == expected


def test_the_trainer_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    gate, real = threading.Event(), record.state.save_checkpoint
    monkeypatch.setattr(record.state, "save_checkpoint", lambda *a: (gate.wait(10), real(*a))[1])
    store = ClientStore(tmp_path, "host")
    for client in range(2):
        store.remember(client, 0, memory(client))  # returns while nothing is written
    assert not list(tmp_path.glob("client_*")) and store.files == {}
    threading.Timer(0.1, gate.set).start()
    store.remember(2, 0, memory(2))  # the third waits until the first is written
    assert gate.is_set() and len(store.flush()) == 3
    store.close()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "other round"])
def test_a_damaged_file_is_not_adopted(store, tmp_path, damage):
    store.remember(0, 0, memory(1))
    files = dict(store.flush())
    path = tmp_path / files[0].name
    if damage == "flip":
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    else:
        store.remember(0, 0, memory(2))
        store.flush()
    with pytest.raises(UserError, match=str(path)):
        store.adopt(files)


def test_a_round_is_committed_when_every_client_is_on_the_disk_and_not_before(
    tmp_path, monkeypatch
):
    gate, real, order = threading.Event(), record.state.save_checkpoint, []

    def save(path, content):
        gate.wait(10)
        order.append(path.name)
        return real(path, content)

    monkeypatch.setattr(record.state, "save_checkpoint", save)
    monkeypatch.setattr(record.state, "save_checkpoint", save)
    store = ClientStore(tmp_path / "clients", "host")
    states = StateFiles(tmp_path, store)
    for client in range(2):
        store.remember(client, 0, memory(client))
    threading.Timer(0.1, gate.set).start()
    weights = {"weight": torch.ones(2)}
    states.save(RunState(Progress(weights, {}, 1), {}, [], [], {"train": "a"}, {"seed": 1}))
    assert order == ["client_0_000000.pth", "client_1_000000.pth", "state_000001.pth"]
    later = StateFiles(tmp_path, ClientStore(tmp_path / "clients", "host"))
    restored = later.restore(str)
    assert restored.progress.next_round == 1 and restored.flags == {"seed": 1}
    assert value_of(later.store.recall(1)) == 1
    for each in (store, later.store):
        each.close()


@contextmanager
def no_room(*_arguments, **_options):
    raise UserError(f"disk full {errno.ENOSPC}")
    yield


def test_a_failed_write_stops_the_run_and_leaves_only_committed_files(tmp_path, monkeypatch):
    store = ClientStore(tmp_path, "host")
    store.remember(0, 0, memory(1))
    store.commit({file.name for file in store.flush().values()})
    store.remember(0, 1, memory(2))
    store.flush()  # written, but its round is never committed
    monkeypatch.setattr("utils.checkpoint.atomic_write", no_room)
    store.remember(1, 1, memory(3))
    with pytest.raises(UserError, match="disk full"):
        store.flush()
    store.close()
    assert os.listdir(tmp_path) == ["client_0_000000.pth"]


def test_a_memory_that_is_not_finite_is_not_written(tmp_path):
    store = ClientStore(tmp_path, "host")
    store.remember(0, 0, memory(NAN))
    with pytest.raises(UserError, match="optimizer/state/0/exp_avg"):
        store.flush()
    store.close()
    assert os.listdir(tmp_path) == []


def test_auto_takes_memory_while_it_lasts(monkeypatch):
    cpu = torch.device("cpu")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert choose_placement("auto", 10**6, [cpu]) == "host"
    assert choose_placement("auto", machine, [cpu]) == "disk"
    assert choose_placement("device", machine, [cpu]) == "device"
    gpus = [torch.device("cuda", 0), torch.device("cuda", 1)]
    free = {gpus[0]: 8 * 10**9, gpus[1]: 4 * 10**9}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 9 * 10**9))
    assert choose_placement("auto", 19 * 10**8, gpus) == "device"
    assert choose_placement("auto", 21 * 10**8, gpus) == "host"
    assert choose_placement("auto", 10**8, gpus, reserved=39 * 10**8) == "device"
    assert choose_placement("auto", 10**8, gpus, reserved=4 * 10**9) == "host"


# ---- updates

RECEIVED = {
    "weight": torch.zeros(5, 3),
    "bias": torch.zeros(5),
    "norm.running_var": torch.ones(5),
    "steps": torch.tensor(4),
}
STATE = memory(1.0)


def matrix(logits: torch.Tensor | None = None) -> RelationMatrix:
    logits = torch.arange(25.0).reshape(5, 5) if logits is None else logits
    return RelationMatrix(logits.log_softmax(dim=1), torch.ones(5, dtype=torch.bool))


def update(weights: dict | None = None, **changes) -> ClientUpdate:
    fine = {name: value.clone() for name, value in RECEIVED.items()} | (weights or {})
    fine = {name: value for name, value in fine.items() if value is not None}
    content = {
        "num_samples": 4,
        "labeled": True,
        "shared": matrix().named(),
        "stats": {"loss": changes.pop("loss", 1.5), "seconds": 0.1},
        "shown": {},
        "suspects": (0, 2),
    }
    return ClientUpdate(fine, **(content | changes))


def shares(relation: RelationMatrix) -> ClientUpdate:
    return update(shared=relation.named())


def guard_of(policy: str, say=str) -> ClientGuard:
    return ClientGuard(policy, say, RelationServer(None).find_fault)


def test_a_sound_update_is_accepted():
    assert find_misfit(update(), RECEIVED) is None
    assert find_bad_number(update(), STATE) is None
    skipping = RelationMatrix(matrix().log_rows, torch.zeros(5, dtype=torch.bool))
    assert offer(guard_of("stop"), update(shared=skipping.named()))
    unlabeled = update(labeled=False, shared={}, shown=matrix().named())
    assert offer(guard_of("stop"), unlabeled)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (update({"bias": None}), "bias is missing"),
        (update({"extra": torch.zeros(1)}), "extra is unknown"),
        (update({"weight": torch.zeros(3, 5)}), r"weight is \(3, 5\)"),
        (update({"bias": torch.zeros(5, dtype=torch.float64)}), "bias is .* torch.float64"),
        (update(num_samples=0), "trained on 0 images, and has 4"),
        (update(num_samples=10**12), "images, and has 4"),
        (shares(RelationMatrix(torch.zeros(4, 5), torch.ones(4, dtype=bool))), "shape"),
        (shares(RelationMatrix(torch.zeros(5, 5), torch.ones(5))), "shape"),
        (shares(matrix()._replace(log_rows=torch.zeros(5, 5))), "no set of distributions"),
        (update(shared=matrix().named() | {"more": torch.ones(1)}), "method does not know"),
        (update(shared={"more": torch.ones(1)}), "method does not know"),
        (update(shown={"more": torch.ones(1)}), "method does not know"),
        (update(labeled=False), "without labels shares a relation matrix"),
    ],
)
def test_an_update_that_does_not_fit_is_named(bad, reason):
    with pytest.raises(UserError, match=f"client 6, round 9: .*{reason}"):
        offer(guard_of("stop"), bad)


@pytest.mark.parametrize(
    ("bad", "state", "reason"),
    [
        (update(loss=NAN), STATE, "its loss is nan"),
        (update(loss=INF), STATE, "its loss is inf"),
        (update(loss=1e38), STATE, "its loss is 1e[+]38"),
        (update(stats={"loss": 1.0, "relation_loss": NAN}), STATE, "a term of its loss"),
        (update({"weight": torch.full((5, 3), NAN)}), STATE, "entry weight"),
        (update({"bias": torch.tensor([0, 0, 0, 0, -INF])}), STATE, "entry bias"),
        (update({"bias": torch.tensor([0, 0, 0, 0, 1e38])}), STATE, "larger than 1e[+]06 .*bias"),
        (
            update({"norm.running_var": torch.tensor([1, 1, 0, 1, -1e-6])}),
            STATE,
            "variance .* below 0 .entry norm.running_var",
        ),
        (update({"steps": torch.tensor(-1)}), STATE, "step counter"),
        (update({"steps": torch.tensor(2**62)}), STATE, "step counter"),
        (shares(matrix(torch.full((5, 5), NAN))), STATE, "what it shares .*relation_log_rows"),
        (shares(matrix(torch.eye(5) * 1e38)), STATE, "what it shares .*relation_log_rows"),
        (update(shown=matrix(torch.full((5, 5), NAN)).named()), STATE, "what it shares"),
        (update(), memory(INF), "what it remembers .*exp_avg"),
    ],
)
def test_a_bad_number_is_named_with_client_round_and_images(bad, state, reason):
    with pytest.raises(UserError, match=f"client 6, round 9: .*{reason}") as error:
        offer(guard_of("stop"), bad, state)
    assert "on the images ID_a, ID_c;" in str(error.value) and "\n" not in str(error.value)


def offer(
    guard: ClientGuard, candidate: ClientUpdate, state: dict = STATE, client: int = 6
) -> bool:
    dataset = SimpleNamespace(names=["ID_a", "ID_b", "ID_c"])
    trainer = SimpleNamespace(client=client, dataset=dataset, num_samples=4)
    return guard.accept(trainer, 9, candidate, RECEIVED, state)


def test_skip_leaves_out_says_so_and_counts():
    said = []
    guard = guard_of("skip", said.append)
    guard.start_round(3, [])
    assert [offer(guard, u, client=i) for i, u in enumerate([update(), update(loss=NAN)])] == [1, 0]
    assert guard.skipped == [1] and "left out of this round: client 1, round 9" in said[0]


def test_who_lay_far_outside_in_the_round_before_is_named_beside_who_fails_now():
    """A poisoned model makes honest clients fail in the next round."""
    said = []
    guard = guard_of("skip", said.append)
    guard.start_round(4, [])
    for client in range(4):
        size = 1e5 if client == 2 else 1.0
        assert offer(guard, update({"bias": size * torch.eye(5)[client]}), client=client)
    guard.start_round(4, [0])
    assert not offer(guard, update(loss=NAN), client=0)
    assert "client 0, round 9: its loss is nan" in said[-1]
    assert "(in the round before, client 2: its parameters lie" in said[-1]


def test_nobody_left_stops_the_run():
    guard = guard_of("skip")
    guard.start_round(2, [])
    assert not offer(guard, update(loss=NAN), client=0)
    with pytest.raises(UserError, match="no client of this round is left"):
        offer(guard, update(loss=NAN), client=1)


@pytest.mark.parametrize(
    ("before", "stops"),
    [([], False), ([1], False), ([0, 1], False), ([1, 2], True), ([3, 1, 0, 1], False)],
)
def test_three_rounds_in_a_row_with_a_bad_client_stop_the_run(before, stops):
    guard = guard_of("skip")
    guard.start_round(5, before)
    assert offer(guard, update())
    if stops:
        with pytest.raises(UserError, match="3rd round in a row"):
            offer(guard, update(loss=NAN))
    else:
        assert not offer(guard, update(loss=NAN))


def test_a_store_written_by_the_background_thread_is_a_checkpoint_like_any_other(store, tmp_path):
    store.remember(4, 2, memory(1))
    name, digest = store.flush()[4]
    content = load_checkpoint(tmp_path / name, digest)
    assert content["client"] == 4 and content["round"] == 2 and value_of(content["memory"]) == 1
