"""Clipping and noise: what they change, what they leave, and what they cost."""

import math
import shlex

import pytest
import torch

from deploy.privacy import add_noise, clip_update, epsilon, guarantee, noise_deviation
from FedAvg import FedAvg
from options import args_parser
from tests.flower.conftest import Result
from tests.flower.local_grid import run_rounds
from tests.flower.test_faults import honest, nothing
from utils.errors import UserError


def test_update_is_scaled_as_one_vector_and_statistics_are_not():
    received = {"a": torch.zeros(1), "b": torch.ones(2), "running_var": torch.ones(1)}
    weights = {
        "a": torch.tensor([3.0]),
        "b": torch.tensor([1.0, 5.0]),
        "running_var": torch.tensor([9.0]),
    }
    clipped = clip_update(weights, received, ["a", "b"], norm=1.0)  # the change is 5 long
    assert torch.allclose(clipped["a"], torch.tensor([0.6]))
    assert torch.allclose(clipped["b"], torch.tensor([1.0, 1.8]))
    assert clipped["running_var"] is weights["running_var"]
    unclipped = clip_update(weights, received, ["a", "b"], norm=5.1)
    assert torch.equal(unclipped["b"], weights["b"])


def test_noise_has_the_deviation_it_is_given_and_spares_statistics():
    weights = {"a": torch.zeros(100_000), "running_var": torch.ones(3)}
    noised = add_noise(weights, ["a"], 0.5, torch.Generator().manual_seed(1))
    assert abs(noised["a"].std().item() - 0.5) < 0.01
    assert noised["running_var"] is weights["running_var"]
    assert noise_deviation(2.0, 3.0, [1, 1, 1, 1]) == 1.5
    assert noise_deviation(2.0, 3.0, [10, 30]) == 4.5


def test_noise_covers_a_client_whose_change_is_replaced_by_none_not_one_who_is_left_out():
    """Two clients at the ends of what a clip of 2 allows; the second has three quarters."""

    def mean(*clients: tuple[float, int]) -> float:
        return FedAvg(({"a": torch.tensor([value])}, share) for value, share in clients)["a"].item()

    both, moved = mean((-2.0, 10), (2.0, 30)), noise_deviation(1.0, 2.0, [10, 30])
    assert both - mean((-2.0, 10), (0.0, 30)) == moved
    assert both - mean((-2.0, 10)) == 2 * moved


def test_epsilon_by_hand():
    # One round at multiplier 1: rho = 1/2.
    assert epsilon(1.0, 1) == pytest.approx(0.5 + 2 * math.sqrt(0.5 * math.log(1e5)))
    assert epsilon(10.0, 100) == pytest.approx(epsilon(1.0, 1))
    assert "epsilon 8.0 at delta 1e-05 after all rounds" in guarantee(6.904, 100)


def test_noise_without_a_clip_is_refused():
    with pytest.raises(UserError, match="needs --dp_clip"):
        args_parser(["--preset", "demo", "--engine", "flower", "--dp_noise", "1"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--aggregate median", "of --aggregate mean alone"),
        ("--method rscfed", "not of --method rscfed, whose shares follow from the models"),
        ("--method cbafed", "not of --method cbafed, whose average takes in"),
        ("--labeled_stop 5", "not of models that stay in the average"),
        ("--labeled_stop 5 --stopped_clients leave", None),
        ("--labeled_stop 5 --method fedavg", None),  # nobody carries on: nobody stops
        ("--labeled_stop 5 --num_unlabeled 0", None),
        ("--labeled_stop 5 --num_labeled 10", None),
        ("--labeled_stop 99", None),
        ("--method fed_consistency --labeled_weight 4", None),
    ],
)
def test_noise_is_promised_of_a_mean_with_public_weights_alone(flags, words):
    argv = shlex.split(f"--preset demo --engine flower --dp_clip 1 --dp_noise 1 {flags}")
    if words is None:
        assert args_parser(argv).dp_noise == 1
        return
    with pytest.raises(UserError, match=words):
        args_parser(argv)


def test_running_variances_stay_positive_under_noise(flags, tmp_path):
    private = ["--dp_clip", "1", "--dp_noise", "0.01", "--rounds", "1", "--fedavg_weights", "equal"]
    run_rounds(tmp_path / "run", [*flags, *private], honest, nothing)
    weights = Result(tmp_path / "run").state(1)["weights"]
    variances = torch.cat([v for k, v in weights.items() if k.endswith("running_var")])
    assert (variances > 0).all()
    assert "epsilon" in (tmp_path / "run" / "log.txt").read_text()
