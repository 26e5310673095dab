"""Clients small enough to train in a test, and plain pieces to compare them with."""

import copy
import io
import math

import numpy as np
import torch

from confuse_matrix import RelationMatrix
from dataloaders.dataset import ImageDataset
from local_update import LocalUpdate
from networks.devices import place_network
from networks.models import DenseNet121
from options import args_parser

CLASSES = 5
CPU = torch.device("cpu")


def make_args(preset: str, *flags: str):
    """The options of a preset, batches of 4."""
    return args_parser(["--preset", preset, "--medmnist", "none.npz", "--batch_size", "4", *flags])


def make_dataset() -> ImageDataset:
    """16 colour images of 32 pixels in 5 classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(16) % CLASSES
    pixels = generator.integers(0, 160, (16, 32, 32, 3)) + 20 * labels[:, None, None, None]
    names = [f"{i}.png" for i in range(16)]
    return ImageDataset(pixels.astype(np.uint8), labels, names, list("abcde"))


def make_network() -> DenseNet121:
    """Random weights; logits spread so far that some predictions are sure and some are not."""
    torch.manual_seed(0)
    net = place_network(DenseNet121(CLASSES, "U-Ones", 0.2), CPU)
    torch.nn.init.normal_(net.densenet121.classifier[0].weight, std=0.25)
    return net


def make_target() -> RelationMatrix:
    """A mean relation matrix whose last row nobody has measured."""
    logits = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(3))
    present = torch.tensor([True] * (CLASSES - 1) + [False])
    return RelationMatrix(logits.log_softmax(dim=1), present)


def copy_of(net: DenseNet121, weights: dict[str, torch.Tensor]) -> DenseNet121:
    """An independent network like `net` with these weights, in train mode."""
    net.dropout.generator = None
    fresh = copy.deepcopy(net).train()
    fresh.load_state_dict(weights)
    return fresh


def with_draws(net: DenseNet121, client: LocalUpdate, round: int) -> DenseNet121:
    """`net` with the dropout draws that `client` has in `round`."""
    net.dropout.generator = client.generator(round, "dropout", CPU)
    return net


def adam(net: DenseNet121, args, learning_rate: float) -> torch.optim.Adam:
    """An optimizer that lives through all rounds of a comparison."""
    return torch.optim.Adam(
        net.parameters(),
        lr=learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.weight_decay,
        fused=True,
    )


def plain_matrix(scores: torch.Tensor, labels: torch.Tensor, chosen=None):
    """Eq. 2 and 3 (tau 2) class by class: (C, C) probabilities, uniform rows for absent classes,
    and which classes there are."""
    chosen = torch.ones(len(labels), dtype=torch.bool) if chosen is None else chosen
    rows, present = [], []
    for c in range(CLASSES):
        members = scores[(labels == c) & chosen]
        mean = members.mean(dim=0) if len(members) else torch.zeros(CLASSES)
        rows.append(torch.exp(mean / 2) / torch.exp(mean / 2).sum())
        present.append(len(members) > 0)
    return torch.stack(rows), torch.tensor(present)


def plain_distance(source: torch.Tensor, target: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Eq. 6 over the given rows, from probabilities."""
    if not rows.any():
        return torch.zeros(())
    source, target = source[rows], target[rows]
    forth = (target * (target.log() - source.log())).sum(dim=1)
    back = (source * (source.log() - target.log())).sum(dim=1)
    return (forth + back).mean()


def entropy_of(probabilities: torch.Tensor) -> torch.Tensor:
    """In nats, per sample."""
    return -(probabilities * probabilities.log()).sum(dim=1)


def assert_identical(ours, theirs) -> None:
    """Nested dicts and lists of tensors and plain types, equal to the bit."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_identical(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_identical(one, other)
    else:
        assert ours == theirs or (math.isnan(ours) and math.isnan(theirs))


def stop_at_forward(client: LocalUpdate, net: DenseNet121, number: int):
    """Ask `client` to stop during its forward pass `number`; the hook's handle."""
    passes = []

    def count(*_):
        passes.append(1)
        if len(passes) == number:
            client.stop.set()

    return net.register_forward_pre_hook(count)


def saved(state: dict) -> io.BytesIO:
    """`state` as a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def gradients_of(client: LocalUpdate) -> dict[int, torch.Tensor]:
    """After a client's first step: the gradient of each parameter, from Adam's first moment."""
    state = client.state_dict()["optimizer"]["state"]
    return {i: entry["exp_avg"] / (1 - client.args.adam_beta1) for i, entry in state.items()}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()
