"""The labelled client against plain loops, and what it remembers between rounds."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from confuse_matrix import RelationMatrix
from local_supervised import SupervisedLocalUpdate
from local_update import Stopped
from tasks.classification import Classification
from tests.helpers.small_clients import (
    CLASSES,
    CPU,
    adam,
    assert_identical,
    copy_of,
    gradients_of,
    make_args,
    plain_matrix,
    relative_error,
    saved,
    stop_at_forward,
    with_draws,
)

INDICES = torch.tensor([0, 1, 2, 3, 5, 6, 8, 10, 13])  # batches of 4 and 5; no image of class 4


def make_client(dataset, preset="official", *flags) -> SupervisedLocalUpdate:
    return SupervisedLocalUpdate(make_args(preset, *flags), dataset, INDICES, 1, Classification())


def plain_round(client, net, optimizer, round, smoothing, views):
    """One round of eq. 7, left: (losses, batch matrices, logits and labels of each epoch)."""
    with_draws(net, client, round)
    losses, matrices, epochs = [], [], []
    for _, batches in client.epochs(views, round, CPU):
        epochs.append([])
        for batch in batches:
            outputs = [net(view)[1] for view in batch.views]
            loss = sum(
                cross_entropy(out, batch.labels, label_smoothing=smoothing) for out in outputs
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            matrices.append(plain_matrix(outputs[0].detach(), batch.labels)[0])
            epochs[-1].append((outputs[0].detach(), batch.labels))
    return losses, matrices, epochs


def test_official_round_equals_a_plain_loop(dataset, net, weights):
    client = make_client(dataset, "official", "--local_ep", "2")
    reference = copy_of(net, weights)
    losses, matrices, _ = plain_round(
        client, reference, adam(reference, client.args, 2e-4), 3, smoothing=0.1, views=2
    )
    update = client.train(net, weights, 3, {})

    assert len(losses) == 4
    assert update.stats["loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert update.stats["supervised_loss"] == update.stats["loss"]
    assert update.num_samples == len(INDICES)
    assert_identical(update.weights, dict(reference.state_dict()))
    # mean over batches and local epochs; class 4 is absent and has a uniform row that counts
    ours = RelationMatrix.from_named(update.shared).probabilities()
    torch.testing.assert_close(ours, torch.stack(matrices).mean(dim=0))
    torch.testing.assert_close(ours[4], torch.full((5,), 0.2))


def test_paper_round_equals_a_plain_loop(dataset, net, weights):
    client = make_client(dataset, "paper", "--local_ep", "2")
    reference = copy_of(net, weights)
    optimizer = adam(reference, client.args, 2e-4)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    losses, _, epochs = plain_round(client, reference, optimizer, 0, smoothing=0.0, views=1)
    update = client.train(net, weights, 0, {})

    assert update.stats["loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert_identical(update.weights, dict(reference.state_dict()))
    # per-class means over the data of the last local epoch; the absent class has no row
    last = [torch.cat(parts) for parts in zip(*epochs[-1], strict=True)]
    expected, present = plain_matrix(*last)
    assert (
        RelationMatrix.from_named(update.shared).present.tolist()
        == present.tolist()
        == [True] * 4 + [False]
    )
    torch.testing.assert_close(
        RelationMatrix.from_named(update.shared).probabilities()[:4], expected[:4]
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_by_hand(dataset, net, weights, smoothing):
    args = make_args("slides", "--local_ep", "1", "--label_smoothing", str(smoothing))
    client = SupervisedLocalUpdate(args, dataset, INDICES[:4], 1, Classification())  # a single step
    update = client.train(net, weights, 0, {})
    reference = with_draws(copy_of(net, weights), client, 0)
    ((_, batches),) = client.epochs(1, 0, CPU)
    (batch,) = batches
    logits = reference(batch.views[0])[1]
    log_probabilities = logits - logits.exp().sum(dim=1, keepdim=True).log()
    of_label = -log_probabilities[range(4), batch.labels]
    loss = ((1 - smoothing) * of_label - smoothing * log_probabilities.mean(dim=1)).mean()
    loss.backward()
    assert update.stats["loss"] == pytest.approx(loss.item(), rel=1e-5)
    errors = [
        relative_error(ours, parameter.grad + 5e-4 * parameter)  # Adam's L2 penalty
        for ours, parameter in zip(
            gradients_of(client).values(), reference.parameters(), strict=True
        )
    ]
    assert sorted(errors)[len(errors) // 2] < 1e-4


def test_adam_goes_on_where_the_round_before_ended(dataset, net, weights):
    client = make_client(dataset, "slides", "--local_ep", "1")
    reference = copy_of(net, weights)
    optimizer = adam(reference, client.args, 1e-3)
    first = client.train(net, weights, 0, {})
    second = client.train(net, first.weights, 1, {})
    for round in (0, 1):
        plain_round(client, reference, optimizer, round, smoothing=0.0, views=1)
    steps = {int(state["step"]) for state in client.state_dict()["optimizer"]["state"].values()}
    assert steps == {4}
    assert_identical(second.weights, dict(reference.state_dict()))
    fresh = make_client(dataset, "slides", "--local_ep", "1").train(net, first.weights, 1, {})
    name = "densenet121.classifier.0.weight"
    assert (fresh.weights[name] - second.weights[name]).abs().max() > 1e-4


def test_remembers_across_a_file_to_the_bit(dataset, net, weights):
    client = make_client(dataset)
    first = client.train(net, weights, 0, {})
    restored = make_client(dataset)
    restored.load_state_dict(torch.load(saved(client.state_dict()), weights_only=True))
    ours, theirs = (c.train(net, first.weights, 1, {}) for c in (restored, client))
    assert_identical(ours.weights, theirs.weights)
    assert_identical(restored.state_dict(), client.state_dict())
    assert ours.stats["loss"] == theirs.stats["loss"]


def test_stopped_client_is_as_before_the_round(dataset, net, weights):
    client = make_client(dataset)
    first = client.train(net, weights, 0, {})
    before = torch.load(saved(client.state_dict()), weights_only=True)
    handle = stop_at_forward(client, net, number=2)  # within the first of two steps
    with pytest.raises(Stopped):
        client.train(net, first.weights, 1, {})
    handle.remove()
    assert_identical(client.state_dict(), before)
    client.stop.clear()
    fresh = make_client(dataset)
    fresh.load_state_dict(before)
    ours, theirs = (c.train(net, first.weights, 1, {}) for c in (client, fresh))
    assert_identical(ours.weights, theirs.weights)


def test_update_shares_no_memory_and_leaves_the_input(dataset, net, weights):
    before = {name: value.clone() for name, value in weights.items()}
    update = make_client(dataset).train(net, weights, 0, {})
    assert_identical(weights, before)
    kept = {name: value.clone() for name, value in update.weights.items()}
    for parameter in net.parameters():
        parameter.data.add_(1)
    assert_identical(update.weights, kept)
    assert not any(value.requires_grad for value in update.weights.values())
    assert update.shown == {}
    assert RelationMatrix.from_named(update.shared).log_rows.shape == (CLASSES, CLASSES)


@pytest.mark.parametrize(
    ("preset", "round", "rate"),
    [
        ("slides", 0, 1e-3),
        ("slides", 10, 1e-3),  # 10 rounds of 2 epochs are 20: not yet more than 20
        ("slides", 11, 3e-4),
        ("official", 20, 2e-4),
        ("official", 21, 3e-4),
        ("paper", 0, 2e-4),
        ("paper", 99, 2e-4),
    ],
)
def test_learning_rate(dataset, preset, round, rate):
    assert make_client(dataset, preset).learning_rate(round) == rate


def test_learning_rate_reaches_adam_after_a_restart(dataset, net, weights):
    client = make_client(dataset, "official")
    client.train(net, weights, 20, {})
    assert client.state_dict()["optimizer"]["param_groups"][0]["lr"] == 2e-4
    client.train(net, weights, 21, {})
    assert client.state_dict()["optimizer"]["param_groups"][0]["lr"] == 3e-4
