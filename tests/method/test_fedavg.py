"""The average of state dicts, on small arrays made by hand."""

import weakref
from collections import OrderedDict

import pytest
import torch

from FedAvg import FedAvg


def model(weight, steps) -> OrderedDict:
    return OrderedDict(
        weight=torch.tensor(weight, dtype=torch.float32),
        steps=torch.tensor(steps, dtype=torch.int64),
    )


def random_models(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "conv.weight": torch.randn(8, 3, 3, 3, generator=generator),
            "norm.running_var": 100 * torch.rand(8, generator=generator),
            "norm.num_batches_tracked": torch.randint(1000, (), generator=generator),
        }
        for _ in range(count)
    ]


def test_equal_weights_give_the_mean():
    average = FedAvg([(model([1.0, 2.0], 4), 1), (model([3.0, 6.0], 6), 1)])
    assert average["weight"].tolist() == [2.0, 4.0]
    assert average["steps"].item() == 5


def test_sizes_give_each_image_one_vote():
    average = FedAvg([(model([1.0], 10), 30), (model([5.0], 50), 10)])
    assert average["weight"].item() == 2.0  # (30 * 1 + 10 * 5) / 40
    assert average["steps"].item() == 20


def test_only_the_proportions_of_the_weights_count():
    models = random_models(3)
    shares = (1.0, 2.0, 5.0)
    whole = FedAvg(zip(models, shares, strict=True))
    scaled = FedAvg((weights, 1024 * share) for weights, share in zip(models, shares, strict=True))
    for name in whole:
        assert torch.equal(whole[name], scaled[name])


@pytest.mark.parametrize("count", [1, 2, 10, 40])
def test_equals_the_sum_in_float64(count):
    models = random_models(count)
    sizes = [37 + 11 * (k % 5) for k in range(count)]
    average = FedAvg(zip(models, sizes, strict=True))
    for name in ("conv.weight", "norm.running_var"):
        parts = [size * weights[name].double() for weights, size in zip(models, sizes, strict=True)]
        expected = sum(parts) / sum(sizes)
        torch.testing.assert_close(average[name].double(), expected, rtol=1e-6, atol=1e-6)


def test_integers_stay_integers_and_are_rounded():
    average = FedAvg([(model([0.0], 1), 1), (model([0.0], 2), 1), (model([0.0], 2), 1)])
    assert average["steps"].dtype == torch.int64
    assert average["steps"].item() == 2  # 5 / 3
    large = 2**40 + 1
    assert FedAvg([(model([0.0], large), 3), (model([0.0], large), 7)])["steps"].item() == large


def test_dtypes_and_shapes_are_kept():
    weights = {
        "half": torch.ones(2, dtype=torch.float16),
        "double": torch.ones(3, 1, dtype=torch.float64),
        "flag": torch.tensor([True, False]),
    }
    average = FedAvg([(weights, 1), (weights, 2)])
    for name, value in weights.items():
        assert average[name].dtype == value.dtype
        assert torch.equal(average[name], value)


def test_inputs_are_not_changed_and_no_memory_is_shared():
    models = random_models(3)
    before = [{name: value.clone() for name, value in weights.items()} for weights in models]
    average = FedAvg((weights, 1) for weights in models)
    for weights, copies in zip(models, before, strict=True):
        for name, value in weights.items():
            assert torch.equal(value, copies[name])
    for value in average.values():
        value.fill_(-1)
    for weights, copies in zip(models, before, strict=True):
        for name, value in weights.items():
            assert torch.equal(value, copies[name])


def test_a_single_client_comes_back_as_it_is():
    (weights,) = random_models(1)
    for name, value in FedAvg([(weights, 17)]).items():
        assert torch.equal(value, weights[name])


def test_equal_models_stay_equal_to_the_bit():
    (weights,) = random_models(1)
    average = FedAvg((weights, share) for share in (3.0, 0.1, 7.7, 1e-3, 12.0))
    for name, value in average.items():
        assert torch.equal(value, weights[name])


def test_no_gradient_is_kept():
    weights = {"weight": torch.ones(2, requires_grad=True)}
    average = FedAvg([(weights, 1), (weights, 1)])
    assert not average["weight"].requires_grad


def test_clients_are_consumed_one_by_one():
    alive = []

    class Update(dict):
        """A dict that can be watched."""

    def updates():
        for number in range(4):
            assert [reference for reference in alive if reference() is not None] == []
            weights = Update(model([float(number)], number))
            alive.append(weakref.ref(weights))
            alive.append(weakref.ref(weights["weight"]))
            yield weights, 1
            del weights

    assert FedAvg(updates())["weight"].item() == 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("steps"), "'steps' is not in every"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' is not in every"),
        (lambda w: w.update(weight=torch.zeros(3)), r"'weight' has shape \(3,\).*has \(2,\)"),
    ],
)
def test_models_that_differ_are_refused_by_name(change, message):
    odd = model([1.0, 2.0], 3)
    change(odd)
    with pytest.raises(ValueError, match=message):
        FedAvg([(model([1.0, 2.0], 3), 1), (odd, 1)])


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_that_weigh_nothing_are_refused(weight):
    with pytest.raises(ValueError, match="must be positive"):
        FedAvg([(model([1.0], 1), 1), (model([1.0], 1), weight)])


def test_nobody_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        FedAvg([])
