"""The unlabelled client: eq. 1 and 3 to 7 against plain loops, gradients, teacher and memory."""

import math

import pytest
import torch
from scipy.stats import ks_2samp

from confuse_matrix import RelationMatrix, RelationMeter, kd_loss
from dataloaders.dataset import Batch
from federation import METHODS
from local_unsupervised import UnsupervisedLocalUpdate, update_ema_variables
from local_update import Stopped
from methods.self_training import SelfTrainingLocalUpdate
from tasks.classification import Classification
from tests.helpers.small_clients import (
    CLASSES,
    CPU,
    adam,
    assert_identical,
    copy_of,
    entropy_of,
    gradients_of,
    make_args,
    make_target,
    plain_distance,
    plain_matrix,
    relative_error,
    saved,
    stop_at_forward,
    with_draws,
)
from utils.losses import mean_prediction, predictive_entropy, softmax_mse_loss
from utils.tensors import copy_weights

INDICES = torch.tensor([1, 2, 4, 7, 9, 11, 12])  # batches of 4 and 3
HEAD = "densenet121.classifier.0.weight"


@pytest.fixture(scope="module")
def batch(dataset):
    client = make_client(dataset, "paper")
    client.indices = torch.arange(8)
    client.args.batch_size = 8
    ((_, batches),) = client.epochs(2, 0, CPU)
    return next(batches)


def make_client(dataset, preset="official", *flags) -> UnsupervisedLocalUpdate:
    args = make_args(preset, *flags)
    return METHODS[args.method].unlabeled(args, dataset, INDICES, 4, Classification())


def set_momentum(net, momentum):
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum


def statistics_of(net) -> dict[str, torch.Tensor]:
    return {name: value for name, value in copy_weights(net).items() if ".running_" in name}


def fresh_meter(args) -> RelationMeter:
    return RelationMeter(args.temperature, args.absent_class, "batches")


def losses_of(client, net, weights, batch, teacher=None, target="mean"):
    """`client.losses` on `net` with `weights`, with the draws of round 0."""
    net.load_state_dict(weights)
    with_draws(net.train(), client, 0)
    set_momentum(net, 0.1)
    client.teacher = teacher
    target = make_target() if target == "mean" else target
    meter = fresh_meter(client.args)
    return client.losses(net, client.teacher_network(net), batch, target, meter)


# ---- one step against the formulas


def plain_losses(client, net, batch, passes, average, entropy_limit, confidence, scores, size):
    """Eq. 1 to 6 in their plain forms: (L_c, L_KL + L_KL, reliable), the student its own teacher.

    Dropout masks are drawn in the trainer's order: student, teacher, stochastic passes.
    """
    student_logits = net(batch.views[0])[1]
    student = student_logits.softmax(dim=1)
    with torch.no_grad():
        teacher = net(batch.views[1])[1].softmax(dim=1)
        stochastic = torch.stack([net(batch.views[0])[1] for _ in range(passes)])
        if average == "probabilities":
            mean = stochastic.softmax(dim=2).mean(dim=0)
        else:
            mean = stochastic.mean(dim=0).softmax(dim=1)
        reliable = (entropy_of(mean) < entropy_limit) & (student.max(dim=1).values >= confidence)
    consistency = ((student - teacher) ** 2).sum() / size
    pseudo_labels = student.argmax(dim=1)
    averaged = student_logits if scores == "logits" else student
    relation, present = plain_matrix(averaged, pseudo_labels, reliable)
    target = make_target()
    rows = target.present & present if scores == "probabilities" else target.present
    return consistency, plain_distance(relation, target.log_rows.exp(), rows), reliable


PAPER = {
    "passes": 8,
    "average": "probabilities",
    "entropy_limit": math.log(2),
    "confidence": 0.0,
    "scores": "probabilities",
    "size": 8,
}
OFFICIAL = {
    "passes": 11,
    "average": "logits",
    "entropy_limit": 2.0,
    "confidence": 0.3,
    "scores": "logits",
    "size": 48,
}


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


# ---- whole rounds


def plain_round(client, net, teacher, optimizer, round, lambdas, values):
    """One round as the released program runs it: a teacher network, T whole forward passes.

    values: passes, average, entropy_limit, confidence, scores, size, scale, weight of eq. 7.
    """
    args, target = client.args, make_target()
    with_draws(net, client, round)
    teacher.dropout.generator = net.dropout.generator
    rows, step = [], 0
    for (_, batches), lambda_ in zip(client.epochs(2, round, CPU), lambdas, strict=True):
        for batch in batches:
            _, logits = net(batch.views[0])
            probabilities = logits.softmax(dim=1)
            with torch.no_grad():
                teacher_logits = teacher(batch.views[1])[1]
                passes = torch.stack([net(batch.views[0])[1] for _ in range(values["passes"])])
                entropy = predictive_entropy(mean_prediction(passes, values["average"]))
                confident = probabilities.amax(dim=1) >= values["confidence"]
                reliable = (entropy < values["entropy_limit"]) & confident
            scores = logits if values["scores"] == "logits" else probabilities
            meter = fresh_meter(args)
            relation = meter.add(scores, probabilities.argmax(dim=1), reliable)
            consistency = softmax_mse_loss(logits, teacher_logits, values["size"])
            distance = values["scale"] * kd_loss(relation, target)
            loss = values["weight"] * lambda_ * (consistency + distance)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            alpha = min(1 - 1 / (step + 1), 0.99)
            with torch.no_grad():
                for old, new in zip(teacher.parameters(), net.parameters(), strict=True):
                    old.lerp_(new, 1 - alpha)
            step += 1
            share = reliable.float().mean()
            rows.append([part.item() for part in (loss, consistency, distance, share)])
    return torch.tensor(rows).mean(dim=0).tolist()


@pytest.mark.parametrize(
    ("preset", "values", "lambdas"),
    [
        # by local epoch: round 10 of 2 epochs is epochs 20 and 21
        (
            "official",
            OFFICIAL | {"size": 4, "scale": 0.5, "weight": 15},
            [math.exp(-5 * (1 - t / 30) ** 2) for t in (20, 21)],
        ),
        # by federated round, without the square
        (
            "paper",
            PAPER | {"size": 4, "scale": 1.0, "weight": 1},
            [math.exp(-5 * (1 - 10 / 30))] * 2,
        ),
    ],
)
def test_round_equals_a_plain_loop(dataset, net, weights, preset, values, lambdas):
    client = make_client(dataset, preset, "--local_ep", "2")
    client.indices = torch.arange(8)  # batches of 4: the flag and the batch are of one size
    reference, teacher = copy_of(net, weights), copy_of(net, weights)
    set_momentum(reference, 0.1)
    optimizer = adam(reference, client.args, 2e-4)
    expected = plain_round(client, reference, teacher, optimizer, 10, lambdas, values)
    update = client.train(net, weights, 10, make_target().named())

    names = ("consistency_loss", "relation_loss", "reliable_share")
    ours = [update.stats["loss"], *(update.stats[name] for name in names)]
    assert ours == pytest.approx(expected, rel=1e-5)
    assert update.stats["consistency_weight"] == pytest.approx(lambdas[-1])
    assert update.shared == {} and update.num_samples == 8
    assert RelationMatrix.from_named(update.shown).log_rows.shape == (CLASSES, CLASSES)
    for name, value in reference.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if ".running_" not in name:
            assert torch.equal(update.weights[name], value), name
        elif preset == "official":  # 12 updates a step against their closed form
            torch.testing.assert_close(update.weights[name], value, rtol=1e-4, atol=1e-5)
    parameters = dict(teacher.named_parameters())
    assert_identical(client.state_dict()["teacher"], dict(parameters))


def test_paper_updates_the_statistics_once_a_step(dataset, net, weights):
    client = make_client(dataset, "paper")
    client.indices = INDICES[:4]
    update = client.train(net, weights, 20, make_target().named())
    ((_, batches),) = client.epochs(2, 20, CPU)
    reference = copy_of(net, weights)
    set_momentum(reference, 0.1)
    with torch.no_grad():
        reference(next(batches).views[0])
    for name, value in statistics_of(reference).items():
        assert torch.equal(update.weights[name], value)


@pytest.mark.parametrize(
    ("preset", "round", "epoch", "expected"),
    [
        ("slides", 0, 0, math.exp(-5)),
        ("slides", 5, 1, math.exp(-5 * (19 / 30) ** 2)),
        ("slides", 15, 0, 1.0),
        ("official", 15, 0, math.exp(-5 / 4)),
        ("paper", 15, 0, math.exp(-5 / 2)),
        ("paper", 15, 1, math.exp(-5 / 2)),
    ],
)
def test_lambda_clocks(dataset, preset, round, epoch, expected):
    client = make_client(dataset, preset)
    assert client.consistency_weight(round, epoch) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("flags", "rate"),
    [([], 2e-4), (["--unlabeled_lr", "7e-3"], 7e-3), (["--base_lr", "5e-4"], 5e-4)],
)
@pytest.mark.parametrize("trainer", [UnsupervisedLocalUpdate, SelfTrainingLocalUpdate])
def test_learning_rate_reaches_adam(dataset, net, weights, trainer, flags, rate):
    client = trainer(make_args("official", *flags), dataset, INDICES, 3, Classification())
    for round in (0, 1):  # the second with the moments, and what came with them, of the first
        update = client.train(net, weights, round, {})
        assert client.state_dict()["optimizer"]["param_groups"][0]["lr"] == rate
        assert update.stats["learning_rate"] == rate


def test_fed_consistency_measures_relations_but_does_not_match_them(dataset, net, weights):
    arguments = ("official", "--method", "fed_consistency")
    clients = [make_client(dataset, *arguments), make_client(dataset, *arguments)]
    clients.append(make_client(dataset, "official"))
    for client in clients:
        client.indices = INDICES[:4]
    with_target = clients[0].train(net, weights, 25, make_target().named())
    without = clients[1].train(net, weights, 25, {})
    assert with_target.stats["relation_loss"] > 0
    assert_identical(with_target.weights, without.weights)
    assert with_target.stats["loss"] == without.stats["loss"]
    fedirm = clients[2].train(net, weights, 25, make_target().named())
    assert not torch.equal(fedirm.weights[HEAD], without.weights[HEAD])


# ---- memory


def test_remembers_across_a_file_to_the_bit(dataset, net, weights):
    client = make_client(dataset)
    first = client.train(net, weights, 24, make_target().named())
    assert client.state_dict()["step"] == 2
    restored = make_client(dataset)
    restored.load_state_dict(torch.load(saved(client.state_dict()), weights_only=True))
    ours, theirs = (
        c.train(net, first.weights, 25, make_target().named()) for c in (restored, client)
    )
    assert_identical(ours.weights, theirs.weights)
    assert_identical(restored.state_dict(), client.state_dict())
    assert client.state_dict()["step"] == 4
    steps = {int(entry["step"]) for entry in client.state_dict()["optimizer"]["state"].values()}
    assert steps == {4}


def test_stopped_client_is_as_before_the_round(dataset, net, weights):
    client = make_client(dataset)
    client.indices = INDICES[:4]
    first = client.train(net, weights, 24, make_target().named())
    before = torch.load(saved(client.state_dict()), weights_only=True)
    client.indices = INDICES  # asked to stop in the first of two steps
    handle = stop_at_forward(client, net, number=1)
    with pytest.raises(Stopped):
        client.train(net, first.weights, 25, make_target().named())
    handle.remove()
    assert_identical(client.state_dict(), before)


def test_update_shares_no_memory(dataset, net, weights):
    client = make_client(dataset)
    client.indices = INDICES[:4]
    update = client.train(net, weights, 24, make_target().named())
    teacher = client.state_dict()["teacher"]
    kept, kept_teacher = update.weights[HEAD].clone(), teacher[HEAD].clone()
    net.densenet121.classifier[0].weight.data.add_(1)
    assert torch.equal(update.weights[HEAD], kept)
    assert torch.equal(teacher[HEAD], kept_teacher)
    assert gradients_of(client)[0].shape == weights["densenet121.features.conv0.weight"].shape


def test_batch_is_two_views(batch):
    assert isinstance(batch, Batch) and len(batch.views) == 2
    assert not torch.equal(*batch.views)
