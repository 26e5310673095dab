"""RSCFed: consensus, sharpening and subsets by hand, a client that reads no labels."""

import math
from types import SimpleNamespace

import pytest
import torch

from local_update import ClientUpdate
from methods.rscfed import (
    RSCFedLocalUpdate,
    RSCFedServer,
    consensus_shares,
    distance_to,
    sharpened,
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

INDICES = torch.tensor([1, 2, 4, 7])  # one batch


def make_server(*flags: str) -> RSCFedServer:
    common = [
        "--medmnist",
        "none.npz",
        "--method",
        "rscfed",
        "--join_epoch",
        "-1",
        "--local_ep",
        "1",
    ]
    return RSCFedServer(args_parser([*common, "--labeled_stop", "0", *flags]))


def participants(labeled: int, unlabeled: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(client=number, labeled=number < labeled)
        for number in range(labeled + unlabeled)
    ]


def update(client: int, value: float, size: int, labeled: bool) -> ClientUpdate:
    weights = {"w": torch.tensor([value, 0.0]), "b": torch.tensor([0.0]), "n": torch.tensor(7)}
    return ClientUpdate(weights, size, labeled, {}, {"loss": value}, {}, client=client)


def test_sharpening_by_hand():
    probabilities = torch.tensor([[0.6, 0.3, 0.1]])
    squares = torch.tensor([[0.36, 0.09, 0.01]])
    torch.testing.assert_close(sharpened(probabilities, 0.5), squares / 0.46)
    torch.testing.assert_close(sharpened(probabilities, 1.0), probabilities)


def test_a_distance_is_a_sum_of_norms_over_the_tensors_with_a_fraction():
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[2.0]]), "n": torch.tensor(99)}
    mean = {"a": torch.zeros(2), "b": torch.zeros(1, 1), "n": torch.tensor(0)}
    assert distance_to(one, mean) == 5 + 2


def test_the_shares_by_hand_and_where_a_plain_exponential_is_nothing():
    shares = consensus_shares([10, 40], [1.0, 4.0], [10, 20], beta=2.0)
    first, second = 10 * math.exp(-2 * 1 / 10), 40 * math.exp(-2 * 4 / 20)
    assert shares == pytest.approx([first / (first + second), second / (first + second)])
    assert consensus_shares([1, 1], [1.0, 2.0], [1, 1], beta=1e6) == [1.0, 0.0]


def test_subsets_are_of_the_round_alone_and_draw_their_clients_evenly():
    server, clients = (
        make_server("--rscfed_subsets", "2", "--rscfed_clients", "3"),
        participants(1, 9),
    )
    active = [client.client for client in server.active(clients, 4)]
    assert active == [client.client for client in server.active(clients, 4)]
    assert active == sorted(active) and 3 <= len(active) <= 6
    drawn = [client.client for round in range(600) for client in server.active(clients, round)]
    # Of 10 clients each is in one of two threes with probability 1 - 0.7^2.
    assert all(abs(drawn.count(client) / 600 - 0.51) < 0.08 for client in range(10))


def test_until_the_join_it_is_fedavg():
    server = make_server("--join_epoch", "5")
    assert [client.client for client in server.active(participants(2, 8), 3)] == [0, 1]
    updates = [update(0, 1.0, 10, True), update(1, 3.0, 10, True)]
    average, _ = server.average(iter(updates), updates[0].weights, 3, CPU, lambda _: None)
    assert average["w"].tolist() == [2.0, 0.0]


def test_a_round_by_hand():
    """Subsets {0, 1} with a labelled client and {1, 2} without one."""
    flags = ["--rscfed_beta", "2", "--rscfed_beta_labeled", "1", "--labeled_weight", "3"]
    server = make_server(*flags, "--fedavg_weights", "size")
    server._subsets = [[0, 1], [1, 2]]
    updates = [update(0, 0.0, 10, True), update(1, 4.0, 30, False), update(2, 8.0, 10, False)]
    heard = []
    average, reports = server.average(
        iter(updates), updates[0].weights, 0, CPU, lambda update: heard.append(update.client)
    )
    # {0, 1}: mean (0*10 + 4*30)/40 = 3; distances 3 and 1; n 10 and 30; beta 1.
    first = 3 * 10 * math.exp(-3 / 10), 30 * math.exp(-1 / 30)
    of_first = 4 * first[1] / sum(first)
    # {1, 2}: mean (4*30 + 8*10)/40 = 5; distances 1 and 3; beta 2.
    second = 30 * math.exp(-2 * 1 / 30), 10 * math.exp(-2 * 3 / 10)
    of_second = (4 * second[0] + 8 * second[1]) / sum(second)
    assert average["w"].tolist() == pytest.approx([(of_first + of_second) / 2, 0.0])
    assert average["n"] == 7 and average["n"].dtype == torch.int64
    assert heard == [0, 1, 2] and [report.client for report in reports] == [0, 1, 2]


def test_a_client_that_could_not_be_used_is_missing_from_its_subsets():
    server = make_server("--rscfed_beta", "0", "--rscfed_beta_labeled", "0")
    server._subsets = [[0, 1], [2]]
    updates = [update(0, 1.0, 10, True)]
    average, _ = server.average(iter(updates), updates[0].weights, 0, CPU, lambda _: None)
    assert average["w"].tolist() == [1.0, 0.0]


def make_client(dataset) -> RSCFedLocalUpdate:
    return RSCFedLocalUpdate(
        make_args("paper", "--method", "rscfed"), dataset, INDICES, 4, Classification()
    )


def test_a_step_is_the_plain_one(net, weights):
    client = make_client(make_dataset())
    reference = with_draws(copy_of(net, weights), client, 3)
    teacher = copy_of(net, weights).eval()
    ((_, batches),) = list(client.epochs(2, 3, CPU))
    (batch,) = list(batches)
    student = reference(batch.views[1])[1].softmax(dim=1)
    squares = teacher(batch.views[0])[1].softmax(dim=1).detach() ** 2
    target = squares / squares.sum(dim=1, keepdim=True)
    loss = 0.02 * ((student - target) ** 2).mean()
    loss.backward()
    update = client.train(net, weights, 3, {})
    assert update.stats["loss"] == pytest.approx(loss.item(), rel=1e-5)
    found = gradients_of(client)
    for number, (name, parameter) in enumerate(reference.named_parameters()):
        expected = parameter.grad + client.args.weight_decay * weights[name]
        assert relative_error(found[number], expected) < 1e-4


def test_labels_are_not_read_and_a_memory_goes_on_to_the_bit(net, weights):
    dataset, other = make_dataset(), make_dataset()
    other.labels = torch.zeros_like(other.labels)
    client, blind = make_client(dataset), make_client(other)
    first = client.train(net, weights, 0, {})
    assert_identical(first.weights, blind.train(net, weights, 0, {}).weights)
    assert not first.labeled and first.shared == {} and first.client == 4
    resumed = make_client(dataset)
    resumed.load_state_dict(torch.load(saved(client.state_dict()), weights_only=True))
    assert_identical(
        client.train(net, weights, 1, {}).weights, resumed.train(net, weights, 1, {}).weights
    )
