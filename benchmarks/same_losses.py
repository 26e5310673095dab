"""The reference and ours compute the same losses on the same draws: checked before any timing."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as reference_functional

from benchmarks.reference import MEAN, STD, ReferenceClient, ReferenceNet
from confuse_matrix import RelationMatrix
from dataloaders.augment import Augmentation, draw_views
from dataloaders.dataset import ImageDataset, batch_bounds, load_dataset
from dataloaders.table import read_table
from local_supervised import SupervisedLocalUpdate
from local_unsupervised import UnsupervisedLocalUpdate
from local_update import LocalUpdate
from networks.devices import place_network
from networks.models import DenseNet121, SeededDropout
from tasks.classification import Classification
from utils.tensors import copy_weights

LOSS_TOLERANCE = 2e-4  # relative, of the mean loss over the steps
MATRIX_TOLERANCE = 1e-3  # absolute, of any entry of the relation matrix
STATISTICS_TOLERANCE = 1e-3  # of the last BatchNorm's running variances, relative to the largest
STEPS = 3
ROUND = 25
# PIL and our batched views round a source position between two pixels differently (0.01% of the
# pixels, see tests/data/test_augment.py), so nothing is rotated here. Adam turns a gradient that is
# nothing but rounding into a step of its learning rate, so that is small here.
TASK = Classification()
CHECKED_WITH = {"degrees": 0.0, "base_lr": 1e-6, "labeled_lr_late": 1e-6}


def check(args: Namespace, dataset: ImageDataset, folder: Path) -> list[str]:
    """Train a labelled and an unlabelled client both ways on the CPU, in float32; lines to print.

    Order, shifts, flips and dropout masks are those that ours draws. Raises `RuntimeError` where a
    loss, a relation matrix or BatchNorm's statistics are further off than the tolerance.
    """
    args = Namespace(**vars(args) | CHECKED_WITH)
    images = STEPS * args.batch_size
    paths = [folder / name for name in dataset.names[:images]]
    labels = dataset.labels[:images].tolist()
    net, plain = _networks(len(dataset.class_names), args.drop_rate)
    weights, indices = copy_weights(net), torch.arange(images)

    ours = SupervisedLocalUpdate(args, dataset, indices, 0, TASK).train(net, weights, ROUND, {})
    client, plain_net = _reference_client(args, dataset, paths, labels, plain, 0)
    batches = _given_batches(ours_draws(args, dataset, images, 0), paths, labels, args)
    _, loss, matrix = client.train_labeled(plain_net, batches)
    off = (ours.shared["relation_log_rows"].exp() - matrix).abs().max().item()
    lines = [_compare("labelled", ours.stats["loss"], loss, off)]

    target = RelationMatrix(matrix.log(), torch.ones(len(matrix), dtype=torch.bool))
    ours = UnsupervisedLocalUpdate(args, dataset, indices, 1, TASK).train(
        net, weights, ROUND, target.named()
    )
    client, plain_net = _reference_client(args, dataset, paths, labels, plain, 1)
    batches = _given_batches(ours_draws(args, dataset, images, 1), paths, labels, args)
    state, loss = client.train_unlabeled(plain_net, batches, ROUND, matrix)
    lines.append(_compare("unlabelled", ours.stats["loss"], loss, 0.0))
    if not ours.stats["relation_loss"] > 0:
        raise RuntimeError("no sample was reliable: the relation loss was not compared")
    name = "densenet121.features.norm5.running_var"
    off = ((state[name] - ours.weights[name]).abs().max() / state[name].max()).item()
    if not off <= STATISTICS_TOLERANCE:
        raise RuntimeError(f"unlabelled: {name} is {off:.1e} off")
    return [*lines, f"after 12 updates a step or one of the same effect, {name} is {off:.1e} apart"]


def small_dataset(args: Namespace) -> ImageDataset:
    """The training images that `args` names, as many as the check wants."""
    table = read_table(args.csv_file_train).select(range(STEPS * args.batch_size))
    return load_dataset(table, args.root_path, args.image_size, "ram", args.cache_dir, print)


def ours_draws(
    args: Namespace, dataset: ImageDataset, images: int, client: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The order and the two views' parameters that our trainer of this client draws."""
    trainer = LocalUpdate(args, dataset, torch.arange(images), client, TASK)
    draws = trainer.generator(ROUND, "images", "cpu")
    order = torch.randperm(images, generator=draws)
    augmentation = Augmentation(args.degrees, args.translate, args.flip)
    views = [draw_views(images, dataset.image_size, augmentation, draws) for _ in range(2)]
    return order, views


def _networks(num_classes: int, drop_rate: float) -> tuple[DenseNet121, ReferenceNet]:
    """Equal weights; a head so large that some predictions are sure."""
    torch.manual_seed(0)
    net = place_network(DenseNet121(num_classes, drop_rate=drop_rate), torch.device("cpu"))
    torch.nn.init.normal_(net.densenet121.classifier[0].weight, std=0.25)
    plain = ReferenceNet(num_classes, drop_rate)
    plain.load_state_dict(net.state_dict())
    return net, plain


def _reference_client(
    args: Namespace,
    dataset: ImageDataset,
    paths: list[Path],
    labels: list[int],
    plain: ReferenceNet,
    number: int,
) -> tuple[ReferenceClient, ReferenceNet]:
    """A client and its network with our dropout masks: student, teacher, then the 11 passes."""
    net = ReferenceNet(len(dataset.class_names), args.drop_rate)
    net.load_state_dict(plain.state_dict())
    teacher = ReferenceNet(len(dataset.class_names), args.drop_rate)
    teacher.load_state_dict(plain.state_dict())
    dropout = SeededDropout(args.drop_rate)
    trainer = LocalUpdate(args, dataset, torch.arange(len(paths)), number, TASK)
    dropout.generator = trainer.generator(ROUND, "dropout", "cpu")
    net.dropout = teacher.dropout = dropout
    client = ReferenceClient(args, paths, labels, dataset.image_size)
    client.teacher = teacher
    return client, net


def _given_batches(
    draws: tuple[torch.Tensor, list[torch.Tensor]],
    paths: list[Path],
    labels: list[int],
    args: Namespace,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    order, views = draws
    for start, stop in batch_bounds(len(order), args.batch_size):
        chosen = order[start:stop].tolist()
        first, second = (
            torch.stack(
                [
                    _view(paths[index], args.image_size, parameters)
                    for index, parameters in zip(chosen, view[start:stop].tolist(), strict=True)
                ]
            )
            for view in views
        )
        yield first, second, torch.tensor([labels[index] for index in chosen])


def _view(path: Path, image_size: int, parameters: list[float]) -> torch.Tensor:
    """One file as torchvision prepares it, with given instead of random parameters."""
    angle, right, down, flipped = parameters
    image = transforms.Resize((image_size, image_size))(Image.open(path).convert("RGB"))
    image = reference_functional.affine(image, angle, [int(right), int(down)], 1.0, [0.0])
    if flipped:
        image = reference_functional.hflip(image)
    tensor = reference_functional.to_tensor(image)
    return reference_functional.normalize(tensor, MEAN, STD)


def _compare(who: str, ours: float, reference: float, matrix_off: float) -> str:
    off = abs(ours - reference) / abs(reference)
    if not (off <= LOSS_TOLERANCE and matrix_off <= MATRIX_TOLERANCE):
        raise RuntimeError(
            f"{who}: our loss {ours:.6f}, the reference's {reference:.6f}; "
            f"relation matrix off by {matrix_off:.1e}"
        )
    return f"same draws, {who}: loss {ours:.6f} and {reference:.6f} ({off:.1e} apart)"
