"""An unlabelled client's whole rounds against a plain loop, and what it remembers."""

import math

import pytest
import torch

from confuse_matrix import RelationMatrix, kd_loss
from local_unsupervised import UnsupervisedLocalUpdate
from local_update import Stopped
from methods.self_training import SelfTrainingLocalUpdate
from tasks.classification import Classification
from tests.helpers.small_clients import (
    CLASSES,
    CPU,
    adam,
    assert_identical,
    copy_of,
    gradients_of,
    make_args,
    make_target,
    saved,
    stop_at_forward,
    with_draws,
)
from tests.helpers.unlabeled_clients import (
    HEAD,
    INDICES,
    OFFICIAL,
    PAPER,
    fresh_meter,
    make_client,
    set_momentum,
    statistics_of,
)
from utils.losses import mean_prediction, predictive_entropy, softmax_mse_loss

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
