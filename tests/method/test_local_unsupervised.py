"""A step of the unlabelled client: eq. 1 and 3 to 7 against plain loops, gradients, teacher."""

import pytest
import torch
from scipy.stats import ks_2samp

from dataloaders.dataset import Batch
from local_unsupervised import update_ema_variables
from tests.helpers.small_clients import (
    CPU,
    assert_identical,
    copy_of,
    make_target,
    relative_error,
    with_draws,
)
from tests.helpers.unlabeled_clients import (
    HEAD,
    INDICES,
    OFFICIAL,
    PAPER,
    losses_of,
    make_client,
    plain_losses,
    set_momentum,
    statistics_of,
)
from utils.losses import mean_prediction, predictive_entropy


@pytest.fixture(scope="module")
def batch(dataset):
    client = make_client(dataset, "paper")
    client.indices = torch.arange(8)
    client.args.batch_size = 8
    ((_, batches),) = client.epochs(2, 0, CPU)
    return next(batches)


# ---- one step against the formulas


@pytest.mark.parametrize(
    ("preset", "values", "scale"), [("paper", PAPER, 1.0), ("official", OFFICIAL, 0.5)]
)
def test_losses_equal_the_plain_formulas(dataset, net, weights, batch, preset, values, scale):
    client = make_client(dataset, preset, "--batch_size", "48")
    if preset == "official":  # the head of a young network: not every prediction is sure
        weights = weights | {HEAD: weights[HEAD] / 20}
    consistency, relation, reliable = losses_of(client, net, weights, batch)
    reference = with_draws(copy_of(net, weights), client, 0)
    plain_consistency, plain_relation, plain_reliable = plain_losses(
        client, reference, batch, **values
    )
    assert reliable.tolist() == plain_reliable.tolist()
    assert 0 < reliable.sum() < len(reliable)
    assert consistency.item() == pytest.approx(plain_consistency.item(), rel=1e-4)
    assert relation.item() == pytest.approx(scale * plain_relation.item(), rel=1e-4)
    assert consistency > 1e-3 and relation > 1e-3

    net.zero_grad()
    (consistency + relation).backward()
    (plain_consistency + scale * plain_relation).backward()
    pairs = zip(net.parameters(), reference.parameters(), strict=True)
    errors = sorted(relative_error(ours.grad, theirs.grad) for ours, theirs in pairs)
    assert errors[len(errors) // 2] < 1e-3


def test_nothing_reliable_leaves_consistency_alone(dataset, net, weights, batch):
    client = make_client(dataset, "paper", "--entropy_threshold", "0")
    consistency, relation, reliable = losses_of(client, net, weights, batch)
    assert relation.item() == 0 and not reliable.any() and consistency > 0
    net.zero_grad()
    relation.backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in net.parameters())


def test_without_a_target_there_is_no_relation_loss(dataset, net, weights, batch):
    client = make_client(dataset, "paper")
    consistency, relation, reliable = losses_of(client, net, weights, batch, target=None)
    assert relation.item() == 0 and not relation.requires_grad
    assert consistency > 0 and reliable.any()


def test_wasserstein_is_another_number(dataset, net, weights, batch):
    distances = [
        losses_of(make_client(dataset, "paper", "--relation_distance", name), net, weights, batch)
        for name in ("kl", "wasserstein")
    ]
    assert distances[0][0].item() == distances[1][0].item()
    assert abs(distances[0][1].item() - distances[1][1].item()) > 1e-3


# ---- gradients and the teacher


def test_the_student_gets_gradients_and_the_teacher_none(dataset, net, weights, batch):
    client = make_client(dataset, "paper")
    teacher = net.twin()
    target = make_target()
    target.log_rows.requires_grad_()
    for parameter in teacher.parameters():
        parameter.requires_grad_()
    consistency, relation, _ = losses_of(client, net, weights, batch, target=target)
    net.zero_grad()
    (consistency + relation).backward()
    teacher.requires_grad_(False)
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert sum(parameter.grad.abs().sum() for parameter in net.parameters()) > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert target.log_rows.grad is None


@pytest.mark.parametrize("ema_consistency", [0, 1])
def test_the_teachers_pass_leaves_the_students_statistics(
    dataset, net, weights, batch, ema_consistency
):
    client = make_client(dataset, "paper", "--ema_consistency", str(ema_consistency))
    teacher = {name: value.detach() + 0.01 for name, value in net.named_parameters()}
    losses_of(client, net, weights, batch, teacher if ema_consistency else None)
    after = statistics_of(net)
    reference = copy_of(net, weights)
    set_momentum(reference, 0.1)
    reference(batch.views[0])
    assert_identical(after, statistics_of(reference))


def test_the_teacher_gives_the_targets(dataset, net, weights, batch):
    """With the teacher's head at zero its prediction is uniform."""
    client = make_client(dataset, "paper")
    teacher = {name: value.detach().clone() for name, value in net.named_parameters()}
    for name in (HEAD, HEAD.replace("weight", "bias")):
        teacher[name].zero_()
    consistency, _, _ = losses_of(client, net, weights, batch, teacher)
    reference = with_draws(copy_of(net, weights), client, 0)
    student = reference(batch.views[0])[1].softmax(dim=1)
    expected = ((student - 0.2) ** 2).sum().item() / 8
    assert consistency.item() == pytest.approx(expected, rel=1e-4)


def test_ema_by_hand():
    student, teacher = [torch.tensor([2.0]), torch.tensor([[4.0]])], None
    for step, alpha in ((0, 0.0), (1, 0.5), (3, 0.75), (99, 0.99), (100, 0.99), (10**9, 0.99)):
        teacher = [torch.tensor([1.0]), torch.tensor([[0.0]])]
        update_ema_variables(student, teacher, 0.99, step)
        assert teacher[0].item() == pytest.approx(alpha * 1 + (1 - alpha) * 2, rel=1e-6)
        assert teacher[1].item() == pytest.approx((1 - alpha) * 4, rel=1e-6)
    assert student[0].item() == 2.0


def test_teacher_moves_by_exactly_one_minus_alpha(dataset, net, weights):
    client = make_client(dataset, "paper", "--global_step", "1000000", "--ema_decay", "0.9")
    client.indices = INDICES[:4]  # a single step
    update = client.train(net, weights, 20, make_target().named())
    parameters = dict(net.named_parameters())
    assert client.state_dict()["teacher"].keys() == parameters.keys()
    moved = 0.0
    for name, teacher in client.state_dict()["teacher"].items():
        expected = 0.9 * weights[name].double() + 0.1 * update.weights[name].double()
        torch.testing.assert_close(teacher.double(), expected, rtol=1e-6, atol=1e-8)
        moved = max(moved, (teacher - weights[name]).abs().max().item())
    assert moved > 1e-6


def test_first_step_makes_the_teacher_the_student(dataset, net, weights):
    client = make_client(dataset, "paper")
    client.indices = INDICES[:4]
    update = client.train(net, weights, 20, make_target().named())
    state = client.state_dict()
    assert state["step"] == 1
    assert_identical(state["teacher"], {name: update.weights[name] for name in state["teacher"]})


def test_teacher_is_made_once_and_never_synchronised(dataset, net, weights):
    client = make_client(dataset, "paper", "--global_step", "1000000")
    client.indices = INDICES[:4]
    client.train(net, weights, 20, make_target().named())
    before = {name: value.clone() for name, value in client.state_dict()["teacher"].items()}
    received = {name: value + (name == HEAD) for name, value in weights.items()}
    update = client.train(net, received, 21, make_target().named())
    expected = 0.99 * before[HEAD] + 0.01 * update.weights[HEAD]
    torch.testing.assert_close(client.state_dict()["teacher"][HEAD], expected, rtol=1e-5, atol=1e-6)
    assert client.state_dict()["step"] == 1000002


# ---- T stochastic passes that share one backbone


def test_features_are_the_same_in_every_pass(net, weights, batch):
    net.load_state_dict(weights)
    net.train().dropout.generator = None
    with torch.no_grad():
        first, first_logits = net(batch.views[0])
        second, second_logits = net(batch.views[0])
    assert torch.equal(first, second)
    assert not torch.equal(first_logits, second_logits)


def test_full_passes_equal_draws_behind_one_backbone_pass(net, weights, batch):
    """The same masks give the same logits, pass by pass."""
    net.load_state_dict(weights)
    net.train()
    with torch.no_grad():
        net.dropout.generator = torch.Generator().manual_seed(11)
        full = torch.stack([net(batch.views[0])[1] for _ in range(3)])
        net.dropout.generator = torch.Generator().manual_seed(11)
        activations = net.pooled(batch.views[0])
        shared = net.classify(activations.expand(3, *activations.shape))
    torch.testing.assert_close(full, shared)


def test_entropy_is_distributed_as_with_full_passes(net, weights):
    """30 estimates from 3 full passes each against 2000 from one backbone pass."""
    net.load_state_dict(weights | {HEAD: weights[HEAD] / 2})
    net.train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(12))
    with torch.no_grad():
        net.dropout.generator = torch.Generator().manual_seed(21)
        full = torch.stack([net(images)[1] for _ in range(90)]).unflatten(0, (30, 3))
        net.dropout.generator = torch.Generator().manual_seed(22)
        activations = net.pooled(images)
        shared = net.classify(activations.expand(2000, 3, *activations.shape))
    for average in ("probabilities", "logits"):
        of_full, of_shared, of_one_pass = (
            torch.stack([predictive_entropy(mean_prediction(drawn, average)) for drawn in draws])
            for draws in (full, shared, shared[:, :1])
        )
        for sample in range(4):
            assert of_shared[:, sample].std() > 0.01
            # eight comparisons at 1% together
            assert ks_2samp(of_full[:, sample], of_shared[:, sample]).pvalue > 0.01 / 8
        # the same comparison notices a T of 1
        values = [ks_2samp(of_full[:, k], of_one_pass[:, k]).pvalue for k in range(4)]
        assert min(values) < 0.01 / 8


def test_every_pass_has_a_closed_form(dataset, net, weights, batch):
    client = make_client(dataset, "official")
    assert client.batchnorm_momentum() == pytest.approx(0.717570463519)
    images = batch.views[0][:4]
    reference = copy_of(net, weights)
    set_momentum(reference, 0.1)
    with torch.no_grad():
        for _ in range(12):
            reference(images)
    net.load_state_dict(weights)
    net.train().dropout.generator = None
    set_momentum(net, client.batchnorm_momentum())
    with torch.no_grad():
        net(images)
    ours = statistics_of(net)
    for name, expected in statistics_of(reference).items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-6)


def test_once_is_batchnorms_own_momentum(dataset):
    assert make_client(dataset, "paper").batchnorm_momentum() == 0.1


def test_batch_is_two_views(batch):
    assert isinstance(batch, Batch) and len(batch.views) == 2
    assert not torch.equal(*batch.views)
