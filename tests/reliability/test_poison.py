"""A round that one client poisons: seen, named, not committed, and gone back from."""

from types import SimpleNamespace

import pytest
import torch

import record.held_updates
from local_update import ClientUpdate
from predict.inference import gives_finite_output, predict
from record.held_updates import HeldUpdates
from record.outliers import BUCKETS, FAR, Outliers, distances
from record.state import ClientStore, Progress, RunState, StateFiles
from server import Server
from tests.helpers.small_clients import make_dataset, make_network
from utils.errors import UserError

ARGS = SimpleNamespace(fedavg_weights="equal", labeled_weight=1.0, aggregate="mean", bad_clients=1)


# ---- outliers


def test_distances_in_units_of_the_spread():
    points = torch.tensor([[0.0], [1.0], [2.0], [103.0]])
    # Medians of the distances to the others: 2, 1, 2, 102; their median 2.
    assert distances(points) == [1, 0.5, 1, 51]


def model(seed: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {
        "w": size * torch.randn(50, 100, generator=draws),
        "n.running_mean": size * torch.randn(300, generator=draws),
        "n.num_batches_tracked": torch.tensor(3),
    }


ZERO = {name: torch.zeros_like(value) for name, value in model(0).items()}


def test_sketches_keep_the_distances_of_models():
    outliers = Outliers()
    first, second = model(1)["w"].flatten(), model(2)["w"].flatten()
    sketches = [outliers._sketch([first]), outliers._sketch([second])]
    assert sketches[0].shape == (BUCKETS,)
    found = (sketches[0] - sketches[1]).norm().item()
    assert found == pytest.approx((first - second).norm().item(), rel=0.1)
    single = torch.zeros(5000)
    single[17] = 3e5  # one number in thousands is not lost
    assert outliers._sketch([single]).norm().item() == pytest.approx(3e5)


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        ({"w": 100 * model(9)["w"]}, "parameters"),
        ({"n.running_mean": torch.full((300,), 1e5)}, "BatchNorm statistics"),
    ],
)
def test_who_lies_far_outside_is_named_with_what(lie, what):
    outliers = Outliers()
    outliers.start_round()
    for client in (2, 3, 5, 7):
        outliers.add(client, model(client), ZERO)
    assert outliers.lines() == []
    outliers.add(8, model(8) | lie, ZERO)
    (line,) = outliers.lines()
    assert line.startswith(f"client 8: its {what} lie ")
    outliers.start_round()
    assert outliers.lines() == []


def test_two_clients_have_no_outlier():
    outliers = Outliers()
    outliers.start_round()
    outliers.add(0, model(0), ZERO)
    outliers.add(1, model(1, 1e6), ZERO)
    assert outliers.lines() == [] and FAR > 1


# ---- a network's output


def test_a_network_of_damaged_statistics_is_found_where_it_is_used():
    net, images = make_network(), make_dataset()
    assert gives_finite_output(net, images)
    statistics = net.state_dict()["densenet121.features.norm5.running_var"]
    statistics.fill_(-1.0)
    assert not gives_finite_output(net, images)
    with pytest.raises(UserError, match="no finite output for 16 of 16 images, the first is 0.png"):
        predict(net, images, 4)
    with pytest.raises(UserError, match="2 of 2 images, the first is 5.png"):
        predict(net, images, 4, torch.tensor([5, 3]))


# ---- whose fault it is


def update(value: float) -> ClientUpdate:
    return ClientUpdate({"w": torch.tensor([value])}, 4, True, {}, {"loss": 1.0}, {})


def refusal(values: dict[int, float], is_sound, model_bytes: int = 4) -> str:
    held = HeldUpdates()
    held.start_round(len(values), model_bytes)
    for client, value in values.items():
        held.add(client, update(value), {"w": torch.zeros(1)})
    with pytest.raises(UserError) as error:
        held.refuse_round(Server(ARGS), 7, torch.device("cpu"), is_sound)
    assert "\n" not in str(error.value)
    return str(error.value)


def small(weights: dict) -> bool:
    return bool(weights["w"].abs() < 10)


def test_the_client_without_whom_the_round_is_sound_is_named():
    message = refusal({1: 1.0, 4: 900.0, 6: 2.0}, small)
    assert message.startswith(
        "round 7: the averaged model gives no finite output, without client 4"
    )
    assert "client 1" not in message and "nothing of this round was kept" in message


def test_two_that_are_wrong_together_are_not_pinned_on_one():
    assert "nor without any one client" in refusal({1: 1.0, 4: 900.0, 6: -800.0, 8: 99.0}, small)
    assert "nor without any one client" in refusal({1: 99.0}, small)


def test_rounds_too_large_to_hold_are_said_to_be(monkeypatch):
    monkeypatch.setattr(record.held_updates, "HELD_BYTES", 10)
    assert "too large to find out" in refusal({1: 1.0, 4: 900.0, 6: 2.0}, small)


# ---- going back


def state_of(round: int) -> RunState:
    return RunState(Progress({"w": torch.full((2,), float(round))}, {}, round), {}, [], [], {}, {})


def test_one_goes_back_as_many_rounds_as_were_kept(tmp_path):
    def opened(kept: int) -> StateFiles:
        return StateFiles(tmp_path, ClientStore(tmp_path / "clients", "disk"), kept)

    states = opened(4)
    for round in range(1, 8):
        states.store.remember(0, round, {"value": torch.tensor(round)})
        states.save(state_of(round))
        if round == 6:  # and on in another process, which must keep the older ones' files too
            states.store.close()
            states = opened(4)
            states.restore(str)
    states.store.close()
    assert [path.name for path in states.paths()] == [f"state_00000{i}.pth" for i in (7, 6, 5, 4)]
    for newer in (7, 6, 5):
        (tmp_path / f"state_00000{newer}.pth").unlink()
    states = opened(4)
    assert states.restore(str).progress.next_round == 4
    assert states.store.recall(0)["value"] == 4
    states.store.close()
