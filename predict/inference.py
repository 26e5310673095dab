"""Probabilities of a network for a set of images, or for files of any kind."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataloaders.augment import normalize
from dataloaders.dataset import ImageDataset
from dataloaders.likeness import find_unlike
from dataloaders.prepare.conversion import Rejected
from networks.models import BATCHNORM_MOMENTUM, Network
from predict.files import Arrays, ImageFiles, Slice
from utils.errors import UserError
from utils.metrics.predictions import Predictions
from utils.tensors import net_device
from utils.workers import shared_out

PROBED = 4  # images that tell whether a network works at all


def predict(
    net: Network, dataset: ImageDataset, batch_size: int, indices: torch.Tensor | None = None
) -> np.ndarray:
    """Softmax probabilities, float64 (N, C), of the images `indices` (all by default), in order.

    The network is put in eval mode: no augmentation, no dropout, BatchNorm's running statistics.
    Raises `UserError`, which names the image, where its output is not finite.
    """
    if indices is None:
        indices = torch.arange(len(dataset))
    net.eval()
    net.batchnorm_momentum = BATCHNORM_MOMENTUM  # unused here, but a compiled program depends on it
    with torch.no_grad():
        batches = dataset.evaluation_batches(indices, batch_size, net_device(net))
        logits = torch.cat([net(images)[1] for images in batches])
    return probabilities_of(logits, lambda row: dataset.names[indices[row]])


def probabilities_of(logits: torch.Tensor, name: Callable[[int], str]) -> np.ndarray:
    """Softmax of `logits` (N, C), float64; `UserError` where they are not finite, with the `name`
    of the first such row."""
    finite = logits.isfinite().all(dim=1).cpu()
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise UserError(
            f"the network gives no finite output for {int((~finite).sum())} of {len(finite)} "
            f"images, the first is {name(first)}: its weights are damaged, use an earlier file"
        )
    return torch.softmax(logits.double(), dim=1).cpu().numpy()


def gives_finite_output(net: Network, dataset: ImageDataset) -> bool:
    """Whether `net`, put in eval mode, makes numbers of a few images of `dataset`."""
    few = torch.arange(min(PROBED, len(dataset)))
    net.eval()
    with torch.no_grad():
        batches = dataset.evaluation_batches(few, PROBED, net_device(net))
        return all(bool(net(images)[1].isfinite().all()) for images in batches)


def predict_on_all(
    networks: Sequence[Network], dataset: ImageDataset, batch_size: int
) -> np.ndarray:
    """`predict` for all images by networks of the same weights, side by side, one per device.

    The batches are those of one network alone, and so are the bits.
    """
    batches = torch.arange(len(dataset)).split(batch_size)
    shares = np.array_split(np.arange(len(batches)), min(len(networks), len(batches)))
    parts = [torch.cat(batches[share[0] : share[-1] + 1]) for share in shares]

    def work(net: Network, part: torch.Tensor) -> np.ndarray:
        return predict(net, dataset, batch_size, part)

    return np.concatenate(list(shared_out(work, networks, parts)))


def predict_set(net: Network, images: ImageDataset, batch_size: int) -> Predictions:
    """What `net` says about labelled images."""
    return Predictions(
        images.names,
        images.labels.numpy(),
        predict_on_all([net], images, batch_size),
        images.class_names,
        None if images.groups is None else np.array(images.groups),
        images.group_column,
        None if images.sites is None else np.array(images.sites),
    )


class FilePredictions(NamedTuple):
    """outcomes: of every picture in order, what it is, or why it could not be read. The others are
    of the N that could be. probabilities: float64 (N, C), softmax; unlike: what tells each from
    the training images, or "". seconds: reading included."""

    outcomes: list[Slice | Rejected]
    probabilities: np.ndarray
    unlike: list[str]
    seconds: float

    @property
    def slices(self) -> list[Slice]:
        """What could be read."""
        return [item for item in self.outcomes if isinstance(item, Slice)]

    @property
    def rejected(self) -> list[Rejected]:
        """What could not be read."""
        return [item for item in self.outcomes if isinstance(item, Rejected)]


# Called for each batch with its slices, pixels uint8 (B, C, S, S) and probabilities (B, C).
SeesBatch = Callable[[list[Slice], np.ndarray, np.ndarray], None]


def predict_files(
    net: Network,
    files: ImageFiles | Arrays,
    batch_size: int,
    workers: int,
    training_pictures: Mapping[str, list[float]] | None = None,
    unlike: str = "refuse",
    sees_batch: SeesBatch | None = None,
) -> FilePredictions:
    """Softmax probabilities of every picture that can be read, in the files' order.

    `workers` processes read while the network computes; 0 reads in this one. Where
    `training_pictures` describes the training images (`likeness.describe_pictures`) and `unlike` is
    "refuse", a first batch that is mostly nothing like them is a `UserError`: it says what differs,
    and nothing of the rest is computed.
    """
    device = net_device(net)
    started = time.perf_counter()
    # A file at a time: a volume is many pictures. Of others some batches are read ahead.
    workers = min(workers, len(files))
    ahead = None if not workers else 2 if files.hold_volumes() else 2 + 2 * batch_size // workers
    loader = DataLoader(files, 1, num_workers=workers, prefetch_factor=ahead, collate_fn=list)
    outcomes, told, parts = [], [], []
    net.eval()
    with torch.no_grad(), tqdm(total=len(files), unit="file", disable=None) as bar:

        def readable() -> Iterator[tuple[Slice, np.ndarray]]:
            for (found,) in _whole_batches(loader):
                for item in found:
                    outcomes.append(item if isinstance(item, Rejected) else item[0])
                    if not isinstance(item, Rejected):
                        yield item
                bar.update()

        pictures = readable()
        while read := list(islice(pictures, batch_size)):
            found, pixels = _batch_of(read)
            words = find_unlike(pixels, training_pictures)
            if unlike == "refuse" and not told:
                _refuse_unlike(found, words)
            logits = net(normalize(torch.from_numpy(pixels).to(device).float()))[1]
            parts.append(probabilities_of(logits, lambda row, found=found: found[row].file))
            told += words
            if sees_batch is not None:
                sees_batch(found, pixels, parts[-1])
    probabilities = np.concatenate(parts) if parts else np.empty((0, 0))
    return FilePredictions(outcomes, probabilities, told, time.perf_counter() - started)


def _batch_of(read: Sequence[tuple[Slice, np.ndarray]]) -> tuple[list[Slice], np.ndarray]:
    """The slices and their pixels (B, C, S, S); grey ones among coloured ones get three channels,
    as in training."""
    channels = max(len(pixels) for _, pixels in read)
    pixels = [np.broadcast_to(image, (channels, *image.shape[1:])) for _, image in read]
    return [found for found, _ in read], np.stack(pixels)


def _refuse_unlike(found: Sequence[Slice], words: Sequence[str]) -> None:
    unlike = [at for at, said in enumerate(words) if said]
    if 2 * len(unlike) > len(found):
        raise UserError(
            f"{found[unlike[0]].file}: nothing like the images the model was trained on "
            f"({words[unlike[0]]}; {len(unlike)} of the first {len(found)} differ): another kind "
            "of image, or another window; --unlike predict predicts all the same"
        )


def _whole_batches(loader: DataLoader) -> Iterator[list]:
    """The loader's batches; a reading process that is killed is a `UserError`."""
    try:
        yield from loader
    except RuntimeError as error:
        raise UserError(
            f"a process that reads scans was ended ({str(error).splitlines()[0]}); if memory is "
            "short, give --workers 0"
        ) from error
