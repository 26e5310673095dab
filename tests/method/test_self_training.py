"""Fed-SelfTraining: pseudo labels from the received model, then cross entropy on them."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from local_update import IGNORED, Stopped
from methods.self_training import SelfTrainingLocalUpdate
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
    stop_at_forward,
    with_draws,
)
from utils.tensors import copy_weights

INDICES = torch.tensor([1, 2, 4, 7, 9, 11, 12])  # batches of 4 and 3


def make_client(dataset, *flags) -> SelfTrainingLocalUpdate:
    arguments = ("--method", "fed_selftraining", "--confidence_threshold", "0.6", *flags)
    return SelfTrainingLocalUpdate(
        make_args("paper", *arguments), dataset, INDICES, 4, Classification()
    )


def probabilities_of(net, weights, dataset) -> torch.Tensor:
    """The received model's predictions for the client's images, not augmented."""
    reference = copy_of(net, weights).eval()
    with torch.no_grad():
        (images,) = dataset.evaluation_batches(INDICES, len(INDICES), CPU)
        return reference(images)[1].softmax(dim=1)


@pytest.fixture(scope="module")
def confidence(net, weights, dataset) -> float:
    """A threshold that some of the client's images pass and some do not."""
    sorted_values = probabilities_of(net, weights, dataset).amax(dim=1).sort().values
    return (sorted_values[2:4].mean()).item()


def test_expectation_labels_the_clients_own_images(net, weights, dataset, confidence):
    client = make_client(dataset, "--confidence_threshold", str(confidence))
    net.load_state_dict(weights)
    before = copy_weights(net)
    labels = client.pseudo_labels(net)
    expected = probabilities_of(net, weights, dataset)
    sure = expected.amax(dim=1) >= confidence
    assert 0 < sure.sum() < len(sure)
    chosen = torch.where(sure, expected.argmax(dim=1), torch.full_like(labels[INDICES], IGNORED))
    assert labels[INDICES].tolist() == chosen.tolist()
    others = torch.ones(len(dataset), dtype=torch.bool)
    others[INDICES] = False
    assert (labels[others] == IGNORED).all()
    assert net.training
    assert_identical(copy_weights(net), before)  # no statistics moved


def test_maximisation_equals_a_plain_step(net, weights, dataset, confidence):
    flags = ("--confidence_threshold", str(confidence), "--batch_size", "8")
    client = make_client(dataset, *flags)
    label_of = {
        image: row.argmax().item()
        for image, row in zip(
            INDICES.tolist(), probabilities_of(net, weights, dataset), strict=True
        )
        if row.max() >= confidence
    }
    reference = with_draws(copy_of(net, weights), client, 5)
    ((_, batches),) = client.epochs(1, 5, CPU)
    (batch,) = batches
    sure = [row for row, image in enumerate(batch.indices.tolist()) if image in label_of]
    labels = torch.tensor([label_of[batch.indices[row].item()] for row in sure])
    loss = cross_entropy(reference(batch.views[0])[1][sure], labels)
    loss.backward()

    update = client.train(net, weights, 5, {})
    assert update.stats["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert update.stats["reliable_share"] == pytest.approx(len(sure) / 7)
    assert update.shared == {} and update.shown == {}
    assert update.num_samples == 7
    errors = [
        relative_error(ours, parameter.grad + 5e-4 * parameter)  # Adam's L2 penalty
        for ours, parameter in zip(
            gradients_of(client).values(), reference.parameters(), strict=True
        )
    ]
    assert sorted(errors)[len(errors) // 2] < 1e-4


def test_true_labels_are_never_used(net, weights, dataset):
    client = make_client(dataset, "--confidence_threshold", "0")
    update = client.train(net, weights, 5, {})
    shuffled = make_dataset()
    shuffled.labels = shuffled.labels.roll(1)
    blind = SelfTrainingLocalUpdate(client.args, shuffled, INDICES, 4, Classification())
    assert_identical(blind.train(net, weights, 5, {}).weights, update.weights)
    assert update.stats["reliable_share"] == 1.0


def test_nobody_confident_changes_no_logit(net, weights, dataset):
    client = make_client(dataset, "--confidence_threshold", "1", "--weight_decay", "0")
    update = client.train(net, weights, 5, {})
    assert update.stats["loss"] == 0 and update.stats["reliable_share"] == 0
    for name, _ in net.named_parameters():
        assert torch.equal(update.weights[name], weights[name])


def test_remembers_across_a_file_to_the_bit(net, weights, dataset):
    client = make_client(dataset, "--confidence_threshold", "0")
    client.indices = INDICES[:4]
    first = client.train(net, weights, 0, {})
    restored = make_client(dataset, "--confidence_threshold", "0")
    restored.indices = INDICES[:4]
    restored.load_state_dict(torch.load(saved(client.state_dict()), weights_only=True))
    ours, theirs = (c.train(net, first.weights, 1, {}) for c in (restored, client))
    assert_identical(ours.weights, theirs.weights)


def test_stopped_client_is_as_before_the_round(net, weights, dataset):
    client = make_client(dataset)
    handle = stop_at_forward(client, net, number=2)  # while it labels, then in its first step
    with pytest.raises(Stopped):
        client.train(net, weights, 0, {})
    handle.remove()
    assert client.state_dict() == {"optimizer": None}
