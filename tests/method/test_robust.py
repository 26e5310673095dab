"""Robust averages against numbers computed by hand, and against one client that lies."""

import pytest
import torch

from FedAvg import FedAvg
from robust import (
    AGGREGATES,
    clip_lengths,
    clipped,
    groups,
    krum_scores,
    median,
    squared_distances,
    trimmed_mean,
)


def models(*values: float, dtype=torch.float32) -> list[dict[str, torch.Tensor]]:
    return [{"weight": torch.tensor([value, 0.0], dtype=dtype)} for value in values]


# ---- by hand


def test_median_of_an_odd_and_of_an_even_number():
    assert median(models(1, 5, 2))["weight"].tolist() == [2, 0]
    assert median(models(1, 5, 2, 4))["weight"].tolist() == [3, 0]
    assert median(models(7))["weight"].tolist() == [7, 0]


def test_the_median_is_taken_coordinate_by_coordinate():
    rows = [[1.0, 30.0], [2.0, 10.0], [3.0, 20.0]]
    assert median([{"w": torch.tensor(row)} for row in rows])["w"].tolist() == [2, 20]


def test_trimmed_mean_leaves_out_both_ends():
    found = trimmed_mean(models(-1000, 1, 2, 6, 1e9), 1)["weight"]
    assert found.tolist() == [3, 0]  # (1 + 2 + 6) / 3
    assert trimmed_mean(models(1, 2, 6), 0)["weight"].tolist() == [3, 0]
    with pytest.raises(ValueError, match="none is left"):
        trimmed_mean(models(1, 2), 1)


def test_integers_are_averaged_and_rounded():
    steps = [{"num_batches_tracked": torch.tensor(value)} for value in (3, 4, 10**9)]
    found = median(steps)["num_batches_tracked"]
    assert found.item() == 4 and found.dtype == torch.int64
    assert trimmed_mean(steps[:2], 0)["num_batches_tracked"].item() == 4  # 3.5, to even


def test_krum_scores():
    """Points 0, 1, 3 and 10 on a line, one liar: each one's 4 - 1 - 2 = 1 nearest neighbour."""
    points = torch.tensor([0.0, 1.0, 3.0, 10.0])
    squares = (points[:, None] - points[None]).square()
    assert krum_scores(squares, 1).tolist() == [1, 1, 4, 49]
    assert krum_scores(squares, 0).tolist() == [1 + 9, 1 + 4, 4 + 9, 49 + 81]
    assert krum_scores(squares, 9).tolist() == [1, 1, 4, 49]  # one neighbour at least


def test_distances_of_parameters_and_of_statistics_count_alike():
    def model(weight: float, mean: float) -> dict:
        return {"w": torch.tensor([weight]), "bn.running_mean": torch.tensor([mean])}

    found = squared_distances([model(0.0, 0.0), model(1.0, 1000.0), model(2.0, 2000.0)])
    # Pairs of w: 1, 1, 4, median 1; of the statistics a million times as much, median likewise.
    assert found.tolist() == [[0, 2, 8], [2, 0, 2], [8, 2, 0]]


def test_changes_are_clipped_to_the_median_length():
    assert clip_lengths([1, 2, 8]) == [1, 1, 0.25]
    assert clip_lengths([0, 0, 8]) == [1, 1, 0]
    assert clip_lengths([3.0]) == [1]


def test_parameters_and_statistics_are_clipped_apart_and_from_where_the_round_began():
    received = {"w": torch.tensor([10.0, 0.0]), "bn.running_var": torch.tensor([1.0])}

    def changed(weight: list, variance: float) -> dict:
        return {
            "w": received["w"] + torch.tensor(weight),
            "bn.running_var": torch.tensor([variance]),
        }

    sent = [changed([3.0, 4.0], 1.0), changed([0.0, 5.0], 3.0), changed([0.0, 500.0], 401.0)]
    found = clipped(sent, received)
    assert found[0]["w"] is sent[0]["w"] and found[1]["w"] is sent[1]["w"]  # as they were
    assert torch.allclose(found[2]["w"], torch.tensor([10.0, 5.0]))
    assert torch.allclose(found[2]["bn.running_var"], torch.tensor([3.0]))
    assert sent[2]["w"].tolist() == [10, 500]  # no input is changed


def test_groups_are_parameters_and_batchnorms_statistics():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    parameters, statistics = groups(net.state_dict())
    assert parameters == [name for name, _ in net.named_parameters()]
    assert statistics == ["1.running_mean", "1.running_var"]
    assert groups(torch.nn.Linear(2, 2).state_dict()) == [["weight", "bias"]]


# ---- what every rule has in common


def honest(seed: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {
        "w": 1 + 0.1 * torch.randn(20, generator=draws),
        "bn.running_mean": 5 + 0.1 * torch.randn(4, generator=draws),
        "bn.running_var": 2 + 0.1 * torch.rand(4, generator=draws),
        "bn.num_batches_tracked": torch.tensor(7),
    }


RECEIVED = {
    "w": torch.ones(20),
    "bn.running_mean": torch.full((4,), 5.0),
    "bn.running_var": torch.full((4,), 2.0),
    "bn.num_batches_tracked": torch.tensor(0),
}


def aggregate(name: str, sent: list[dict], weights=None, liars: int = 1):
    weights = weights or [1] * len(sent)
    return AGGREGATES[name](iter(list(zip(sent, weights, strict=True))), RECEIVED, liars)


@pytest.mark.parametrize("name", AGGREGATES)
def test_equal_models_stay_what_they_are(name):
    sent = [honest(3) for _ in range(5)]
    found = aggregate(name, sent)
    for entry, value in sent[0].items():
        assert torch.allclose(found[entry], value) and found[entry].dtype == value.dtype
    assert list(found) == list(sent[0])


@pytest.mark.parametrize("name", AGGREGATES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_clients_are_no_error(name, count):
    found = aggregate(name, [honest(seed) for seed in range(count)], liars=3)
    assert all(value.isfinite().all() for value in found.values())
    assert all(found[entry].data_ptr() != value.data_ptr() for entry, value in RECEIVED.items())


def test_mean_is_fedavg_to_the_bit():
    pairs = [(honest(seed), seed + 1.0) for seed in range(4)]
    ours, theirs = AGGREGATES["mean"](iter(pairs), RECEIVED, 1), FedAvg(iter(pairs))
    assert all(torch.equal(ours[entry], theirs[entry]) for entry in theirs)


LIES = {
    "weights x 1000": lambda model: model | {"w": model["w"] * 1000},
    "running mean 1e5": lambda model: model | {"bn.running_mean": torch.full((4,), 1e5)},
    "running variance 0": lambda model: model | {"bn.running_var": torch.zeros(4)},
    "noise": lambda model: model | {"w": 5 * torch.randn(20)},
    "flip x 10": lambda model: model | {"w": RECEIVED["w"] - 10 * (model["w"] - RECEIVED["w"])},
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", [name for name in AGGREGATES if name != "mean"])
@pytest.mark.parametrize("liar", [0, 4])
def test_one_liar_of_five_moves_the_model_no_further_than_honest_clients_differ(name, lie, liar):
    torch.manual_seed(0)
    sent = [honest(seed) for seed in range(5)]
    sent[liar] = LIES[lie](sent[liar])
    found = aggregate(name, sent)
    for entry in ("w", "bn.running_mean", "bn.running_var"):
        together = torch.stack([model[entry] for i, model in enumerate(sent) if i != liar])
        away = (found[entry] - together.mean(dim=0)).norm()
        assert away <= torch.cdist(together, together).max()


@pytest.mark.parametrize("lie", ["weights x 1000", "running mean 1e5"])
def test_the_mean_is_taken_over_by_one(lie):
    sent = [honest(seed) for seed in range(4)] + [LIES[lie](honest(4))]
    found = aggregate("mean", sent)
    assert max((found[e] - RECEIVED[e]).abs().max() for e in ("w", "bn.running_mean")) > 100


def test_a_claim_of_many_images_owns_the_mean_but_no_rule_that_counts_clients():
    sent, claims = [honest(seed) for seed in range(5)], [1, 1, 1, 1, 1e12]
    sent[4] = sent[4] | {"w": torch.full((20,), 9.0)}
    assert torch.allclose(aggregate("mean", sent, claims)["w"], torch.full((20,), 9.0), atol=1e-3)
    for name in ("median", "trimmed_mean", "krum"):
        assert aggregate(name, sent, claims)["w"].max() < 2
