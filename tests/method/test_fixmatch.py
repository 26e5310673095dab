"""FixMatch + FedAvg: the loss by hand, the strong view, and a client that reads no labels."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from methods.fixmatch import FixMatchLocalUpdate, fixmatch_loss, strong_view
from tasks.classification import Classification
from tests.helpers.small_clients import (
    CPU,
    assert_identical,
    copy_of,
    gradients_of,
    make_args,
    make_dataset,
    relative_error,
    saved,
    with_draws,
)

INDICES = torch.tensor([1, 2, 4, 7])  # one batch


def test_the_loss_by_hand():
    weak = torch.tensor([[3.0, 0.0], [0.2, 0.0], [0.0, 5.0]], requires_grad=True)
    strong = torch.tensor([[0.0, 1.0], [0.0, 9.0], [0.0, 2.0]], requires_grad=True)
    loss, confident = fixmatch_loss(weak, strong, 0.9)
    assert confident.tolist() == [True, False, True]  # 0.953, 0.550, 0.993
    first = torch.log(1 + torch.tensor(1.0).exp())  # -log softmax(0, 1)[0]
    third = torch.log(1 + torch.tensor(-2.0).exp())
    torch.testing.assert_close(loss.detach(), (first + third) / 3)
    loss.backward()
    assert weak.grad is None and strong.grad[1].abs().sum() == 0


def test_nobody_is_confident_and_the_loss_is_nothing():
    loss, confident = fixmatch_loss(torch.zeros(4, 3), torch.randn(4, 3), 0.95)
    assert loss == 0 and not confident.any()


def test_the_strong_view_changes_what_it_says():
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def draws():
        return torch.Generator().manual_seed(1)

    assert torch.equal(strong_view(images, 0.0, 0.0, draws()), images)
    assert torch.equal(
        strong_view(images, 0.5, 0.5, draws()), strong_view(images, 0.5, 0.5, draws())
    )
    cut = strong_view(images, 0.0, 0.5, draws())
    hole = (cut == 0).all(dim=1)  # (B, S, S)
    assert torch.equal(cut.permute(0, 2, 3, 1)[~hole], images.permute(0, 2, 3, 1)[~hole])
    rows, columns = hole.any(dim=2).sum(dim=1), hole.any(dim=1).sum(dim=1)
    assert rows.max() <= 16 and columns.max() <= 16 and rows.float().mean() > 4
    assert torch.equal(hole.sum(dim=(1, 2)), rows * columns)  # a rectangle each
    jittered = strong_view(images, 0.5, 0.0, draws())
    drawn = torch.rand(64, 5, generator=draws())
    mean = images[7].mean()
    expected = (images[7] - mean) * (0.5 + drawn[7, 0]) + mean + (drawn[7, 1] - 0.5)
    torch.testing.assert_close(jittered[7], expected)


def make_client(dataset, *flags) -> FixMatchLocalUpdate:
    arguments = ("--method", "fixmatch", "--fixmatch_threshold", "0.5", *flags)
    return FixMatchLocalUpdate(
        make_args("paper", *arguments), dataset, INDICES, 4, Classification()
    )


def test_a_step_is_the_plain_one(net, weights):
    dataset = make_dataset()
    client = make_client(dataset)
    reference = with_draws(copy_of(net, weights), client, 3)
    ((_, batches),) = list(client.epochs(2, 3, CPU))
    (batch,) = list(batches)
    strong = strong_view(batch.views[1], 0.5, 0.5, client.generator(3, "strong view", "cpu"))
    logits = reference(torch.cat([batch.views[0], strong]))[1]
    sure, labels = logits[:4].softmax(dim=1).max(dim=1)
    assert (sure >= 0.5).sum() > 0
    loss = (cross_entropy(logits[4:], labels.detach(), reduction="none") * (sure >= 0.5)).mean()
    loss.backward()
    update = client.train(net, weights, 3, {})
    assert update.stats["loss"] == pytest.approx(loss.item(), rel=1e-5)
    found = gradients_of(client)
    decay = client.args.weight_decay
    for number, (name, parameter) in enumerate(reference.named_parameters()):
        expected = parameter.grad + decay * weights[name]
        assert relative_error(found[number], expected) < 1e-4


def test_labels_are_not_read_and_a_memory_goes_on_to_the_bit(net, weights):
    dataset, other = make_dataset(), make_dataset()
    other.labels = torch.zeros_like(other.labels)
    client, blind = make_client(dataset), make_client(other)
    first = client.train(net, weights, 0, {})
    assert_identical(first.weights, blind.train(net, weights, 0, {}).weights)
    assert not first.labeled and first.shared == {}
    resumed = make_client(dataset)
    resumed.load_state_dict(torch.load(saved(client.state_dict()), weights_only=True))
    assert_identical(
        client.train(net, weights, 1, {}).weights, resumed.train(net, weights, 1, {}).weights
    )
