"""Work done ahead of its use, and copies of many tensors at once."""

import threading

import pytest
import torch

from dataloaders.pixels import computed_ahead
from utils.tensors import set_tensors, to_host


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_order_and_values_are_those_of_map(ahead):
    assert list(computed_ahead(lambda number: number**2, range(7), ahead)) == [
        0,
        1,
        4,
        9,
        16,
        25,
        36,
    ]
    assert list(computed_ahead(str, [], ahead)) == []


def test_two_results_wait_and_no_more():
    begun, done = [], threading.Semaphore(0)

    def work(number: int) -> int:
        begun.append(number)
        done.release()
        return number

    results = computed_ahead(work, range(10), 2)
    assert begun == []
    assert next(results) == 0
    for _ in range(3):  # one handed out, two ahead
        assert done.acquire(timeout=10)
    assert begun == [0, 1, 2]
    results.close()
    assert begun == [0, 1, 2]


def test_an_error_comes_where_its_result_would():
    results = computed_ahead(lambda number: 1 / number, [1, 2, 0, 4], 3)
    assert next(results) == 1 and next(results) == 0.5
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_to_host_keeps_the_nesting():
    state = {"a": [torch.ones(2), 3], "b": None, "c": (torch.zeros(1, dtype=torch.int64),)}
    copied = to_host(state)
    assert copied["a"][0].tolist() == [1, 1] and copied["a"][1] == 3 and copied["b"] is None
    assert isinstance(copied["c"], tuple) and copied["c"][0].dtype == torch.int64


def test_set_tensors_goes_by_name():
    targets = {"a": torch.zeros(2), "b": torch.zeros(1, dtype=torch.int64)}
    kept = targets["a"]
    set_tensors(targets, {"c": torch.ones(9), "b": torch.tensor([7]), "a": torch.tensor([1.0, 2])})
    assert kept.tolist() == [1, 2] and targets["b"].item() == 7
    with pytest.raises(KeyError):
        set_tensors(targets, {"a": torch.zeros(2)})
    with pytest.raises(RuntimeError):
        set_tensors({"a": torch.zeros(2)}, {"a": torch.zeros(3)})
