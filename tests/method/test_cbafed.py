"""CBAFed: thresholds, pseudo labels and the server's mixing by hand, clients step by step."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from local_update import IGNORED, ClientUpdate
from methods.cbafed import (
    CBAFedLocalUpdate,
    CBAFedServer,
    CBAFedSupervisedLocalUpdate,
    class_thresholds,
    pseudo_labels,
)
from options import args_parser
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

INDICES = torch.tensor([1, 2, 4, 7])  # labels 1, 2, 4, 2
EASY = {"class_thresholds": torch.zeros(5), "tail_classes": torch.zeros(5, dtype=torch.bool)}


def make_server(*flags: str) -> CBAFedServer:
    common = ["--medmnist", "none.npz", "--method", "cbafed", "--fedavg_weights", "size"]
    return CBAFedServer(args_parser([*common, *flags]))


def update(client: int, value: float, counts: list[int], labeled: bool) -> ClientUpdate:
    shared = {"class_counts": torch.tensor(counts)}
    weights = {"w": torch.tensor([value])}
    return ClientUpdate(weights, 10, labeled, shared, {"loss": 1.0}, {}, client=client)


def average(server: CBAFedServer, *updates: ClientUpdate, received: float = 0.0) -> float:
    before = {"w": torch.tensor([received])}
    found, _ = server.average(iter(updates), before, 0, CPU, lambda _: None)
    return found["w"].item()


def test_thresholds_by_hand():
    # q = .5 .3 .2, mean 1/3, std sqrt((.0278 + .0011 + .0178) / 3) = .12472
    found = class_thresholds(torch.tensor([50, 30, 20]), 0.84, 0.9)
    assert found.tolist() == pytest.approx([0.86528, 0.80528, 0.77528], abs=1e-5)
    assert class_thresholds(torch.tensor([1, 1]), 0.84, 0.9).tolist() == pytest.approx([0.9, 0.9])


def test_pseudo_labels_by_hand():
    probabilities = torch.tensor(
        [
            [0.90, 0.06, 0.04],  # sure of class 0
            [0.60, 0.30, 0.10],  # unsure, and the second is no tail class
            [0.60, 0.10, 0.30],  # unsure, and the second is one
            [0.35, 0.05, 0.60],  # sure by the tail class's own threshold
        ]
    )
    thresholds, tail = torch.tensor([0.8, 0.8, 0.5]), torch.tensor([False, False, True])
    assert pseudo_labels(probabilities, thresholds, tail).tolist() == [0, IGNORED, 2, 2]


def test_the_server_weighs_by_what_was_trained_on():
    server = make_server("--labeled_weight", "10")
    one, other = update(0, 1.0, [5, 5], True), update(1, 5.0, [20, 5], False)
    none = update(2, 99.0, [0, 0], False)
    assert average(server, one, other, none) == pytest.approx((100 * 1 + 25 * 5) / 125)


def test_where_nobody_trained_on_anything_the_model_stays():
    """The labelled have stopped, and no unlabelled client kept an image."""
    server = make_server()
    none, too = update(1, 99.0, [0, 0], False), update(2, 98.0, [0, 0], False)
    assert average(server, none, too, received=3.0) == 3.0
    with pytest.raises(ValueError, match="at least one client"):
        average(server)


def test_thresholds_are_of_all_clients_counts():
    server = make_server("--cbafed_tail", "0.2")
    reports = [update(0, 1.0, [5, 5], True), update(1, 1.0, [31, 0], False)]
    shared = server.shared(reports, {})
    expected = class_thresholds(torch.tensor([36, 5]), 0.84, 0.9)
    assert torch.equal(shared["class_thresholds"], expected)
    assert shared["tail_classes"].tolist() == [False, True]  # 5 of 41
    nothing = [update(1, 1.0, [0, 0], False)]
    assert server.shared(nothing, shared) is shared


def test_every_second_round_is_mixed_with_that_of_two_rounds_before():
    server = make_server("--cbafed_record_rounds", "2")
    labeled, joined = update(0, 2.0, [5, 5], True), update(1, 2.0, [5, 5], False)
    assert average(server, labeled, received=8.0) == 2.0  # nobody has joined
    assert server.state_dict() == {}
    assert average(server, labeled, joined, received=8.0) == 2.0
    again = make_server("--cbafed_record_rounds", "2")
    again.load_state_dict(torch.load(saved(server.state_dict()), weights_only=True))
    for continued in (server, again):
        assert average(continued, labeled, joined, received=2.0) == (2 + 8) / 2
        assert average(continued, labeled, joined, received=5.0) == 2.0
        assert average(continued, labeled, joined, received=2.0) == (2 + 5) / 2


@pytest.mark.parametrize(
    ("counts", "labeled", "words"),
    [
        (torch.tensor([6, 5]), False, "of 11 images"),
        (torch.tensor([4, 5]), True, "of 9 images"),
        (torch.tensor([-1, 5]), False, "are none"),
        (torch.tensor([1.0, 5.0]), False, "are none"),
        (torch.tensor([[1, 5]]), False, "are none"),
    ],
)
def test_impossible_counts_are_refused(counts, labeled, words):
    wrong = update(0, 1.0, [5, 5], labeled)._replace(shared={"class_counts": counts})
    assert words in make_server().find_fault(wrong)


def test_possible_counts_are_not_refused():
    server = make_server()
    assert server.find_fault(update(0, 1.0, [5, 5], True)) is None
    assert server.find_fault(update(0, 1.0, [0, 3], False)) is None
    other = update(0, 1.0, [0, 3], False)._replace(shared={})
    assert "does not know" in server.find_fault(other)


def make_client(kind, dataset, *flags):
    arguments = make_args("paper", "--method", "cbafed", *flags)
    return kind(arguments, dataset, INDICES, 4, Classification())


def test_a_step_is_cross_entropy_on_what_the_received_model_says(net, weights):
    client = make_client(CBAFedLocalUpdate, make_dataset())
    judge = copy_of(net, weights).eval()
    ((_, batches),) = list(client.epochs(1, 3, CPU))
    (batch,) = list(batches)
    order = batch.indices
    images = torch.cat(list(client.dataset.evaluation_batches(order, 4, CPU)))
    labels = judge(images)[1].argmax(dim=1)
    reference = with_draws(copy_of(net, weights), client, 3)
    loss = cross_entropy(reference(batch.views[0])[1], labels)
    loss.backward()
    update = client.train(net, weights, 3, EASY)
    assert update.stats["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert update.shared["class_counts"].tolist() == torch.bincount(labels, minlength=5).tolist()
    found = gradients_of(client)
    for number, (name, parameter) in enumerate(reference.named_parameters()):
        expected = parameter.grad + client.args.weight_decay * weights[name]
        assert relative_error(found[number], expected) < 1e-4


@pytest.mark.parametrize("shared", [{}, EASY | {"class_thresholds": torch.full((5,), 2.0)}])
def test_who_keeps_nothing_returns_what_was_received(net, weights, shared):
    client = make_client(CBAFedLocalUpdate, make_dataset())
    update = client.train(net, weights, 0, shared)
    assert_identical(update.weights, weights)
    assert update.shared["class_counts"].tolist() == [0] * 5 and update.stats["loss"] == 0


def test_a_labelled_client_mixes_its_weights_after_so_many_epochs(net, weights):
    flags = ("--cbafed_labeled_epochs", "3", "--cbafed_mix_epochs", "2", "--optimizer", "sgd")
    client = make_client(CBAFedSupervisedLocalUpdate, make_dataset(), *flags)
    client.args.join_epoch = -1
    update = client.train(net, weights, 0, {})
    assert update.shared["class_counts"].tolist() == [0, 1, 2, 0, 1]

    reference = with_draws(copy_of(net, weights), client, 0)
    rate, decay = client.args.base_lr, client.args.weight_decay
    optimizer = torch.optim.SGD(reference.parameters(), rate, momentum=0.9, weight_decay=decay)
    for epoch, batches in client.epochs(1, 0, CPU):
        for batch in batches:
            optimizer.zero_grad()
            cross_entropy(reference(batch.views[0])[1], batch.labels).backward()
            optimizer.step()
        if epoch == 1:
            mixed = {
                name: weights[name].lerp(value, 0.2)  # 4/5 and 1/5, in FedAvg's rounding
                for name, value in reference.state_dict().items()
                if value.is_floating_point()
            }
            reference.load_state_dict(mixed, strict=False)
    for name, value in reference.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(update.weights[name], value, rtol=1e-5, atol=1e-6)


def test_the_preset_trains_501_epochs_alone_and_eleven_a_round_from_then_on():
    """SOURCES: "Warm-up 501 epochs on the labelled client"."""
    args = args_parser(["--medmnist", "none.npz", "--preset", "cbafed"])
    client = CBAFedSupervisedLocalUpdate(args, make_dataset(), INDICES, 0, Classification())
    epochs = [client.local_epochs(round) for round in range(args.rounds)]
    assert sum(epochs[:501]) == 501 and set(epochs[501:]) == {11}
    unlabeled = SimpleNamespace(client=1, labeled=False, num_samples=1)
    joined = [unlabeled in CBAFedServer(args).active([client, unlabeled], r) for r in (500, 501)]
    assert joined == [False, True]


def test_labels_are_not_read_and_a_memory_goes_on_to_the_bit(net, weights):
    dataset, other = make_dataset(), make_dataset()
    other.labels = torch.zeros_like(other.labels)
    client, blind = make_client(CBAFedLocalUpdate, dataset), make_client(CBAFedLocalUpdate, other)
    first = client.train(net, weights, 0, EASY)
    assert_identical(first.weights, blind.train(net, weights, 0, EASY).weights)
    resumed = make_client(CBAFedLocalUpdate, dataset)
    resumed.load_state_dict(torch.load(saved(client.state_dict()), weights_only=True))
    assert_identical(
        client.train(net, weights, 1, EASY).weights, resumed.train(net, weights, 1, EASY).weights
    )
