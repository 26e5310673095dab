"""Images and labels as arrays, and the batches of augmented views that clients train on."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataloaders.augment import Augmentation, apply_views, draw_views, normalize
from dataloaders.image_files import resolve_images
from dataloaders.overlap import digest
from dataloaders.pixels import copied_ahead, load_pixels
from dataloaders.preparation import read_preparation
from dataloaders.table import ImageTable
from dataloaders.windows import TRIPLE
from utils.workers import available_cores, cancelling_pool

DEVICE_SHARE = 0.4  # of a GPU's free memory, less what a step needs, that "auto" gives to images


class Batch(NamedTuple):
    """views: tensors (B, 3, S, S), or (B, K, X, Y, Z) of volumes, one per augmented view; labels:
    int64 (B,) or (B, X, Y, Z), on the device, None where the client has none; indices: which
    images or volumes of the data set they are, int64 (B,), on the CPU."""

    views: list[torch.Tensor]
    labels: torch.Tensor | None
    indices: torch.Tensor


class ImageDataset:
    """uint8 images (N, S, S, C) and int64 labels (N,), with names, patients and sites.

    The pixels stay where `cache` says: on "disk" (memory-mapped), in "ram", or on each "device"
    that asks for batches; "auto" takes the device where they fit into its free memory.
    scan_window: through which window they were made of CT slices (`dataloaders.dicom`), if they
    were.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        class_names: Sequence[str],
        groups: Sequence[str] | None = None,
        fingerprint: str = "",
        cache: str = "auto",
        group_column: str = "PatientID",
        scan_window: str | None = None,
        sites: Sequence[str] | None = None,
    ):
        with warnings.catch_warnings():
            # A read-only mapping: nothing here writes to pixels.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self.pixels = torch.from_numpy(np.array(pixels) if cache == "ram" else pixels)
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.names = list(names)
        self.class_names = tuple(class_names)
        self.groups = None if groups is None else list(groups)
        self.group_column = group_column
        self.sites = None if sites is None else list(sites)
        self.fingerprint = fingerprint
        self.cache = cache
        self.scan_window = scan_window
        self.reserved = 0  # bytes of a GPU that "auto" leaves to others
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Pixels along one side."""
        return self.pixels.shape[1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input of a network, (3, S, S)."""
        return (3, self.image_size, self.image_size)

    def batches(
        self, indices: torch.Tensor, bounds: Sequence[tuple[int, int]], device: torch.device
    ) -> Iterator[torch.Tensor]:
        """Raw images `indices[start:stop]` (CPU int64) for each (start, stop) of `bounds`.

        float32 (B, C, S, S) in 0..255 on `device`, which does not wait for the host: images that
        live on the host are copied while the batch before them is in use.
        """
        pixels = self._pixels_for(device)
        if pixels.device == device:
            placed = indices.to(device)
            chosen = (pixels[placed[start:stop]] for start, stop in bounds)
        else:
            chunks = [indices[start:stop] for start, stop in bounds]
            chosen = copied_ahead(pixels, chunks, device)
        for images in chosen:
            yield images.permute(0, 3, 1, 2).float()

    def head(self, count: int) -> "ImageDataset":
        """The first `count` images."""
        rows = slice(0, count)
        return ImageDataset(
            self.pixels[rows].numpy(), self.labels[rows], self.names[rows], self.class_names
        )

    def picture(self, index: int) -> np.ndarray:
        """One image as it is looked at: uint8 (S, S) where grey, else (S, S, 3).

        Three windows of a CT slice are no colours: the brain's is shown.
        """
        pixels = self.pixels[index].numpy()
        if self.scan_window == "triple":
            return pixels[:, :, TRIPLE.index("brain")]
        return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels

    def digests(self) -> list[str]:
        """One digest of the pixels of each image, the same for the same pixels."""
        with cancelling_pool(available_cores()) as pool:
            return list(pool.map(lambda image: digest(image.numpy().data), self.pixels))

    def _pixels_for(self, device: torch.device) -> torch.Tensor:
        if device.type == "cpu" or self.cache in ("ram", "disk"):
            return self.pixels
        if device not in self._on_device:
            free, _ = torch.cuda.mem_get_info(device)
            fits = self.pixels.nbytes < DEVICE_SHARE * (free - self.reserved)
            placed = self.pixels.to(device) if fits or self.cache == "device" else self.pixels
            self._on_device[device] = placed
        return self._on_device[device]

    def training_batches(
        self,
        indices: torch.Tensor,
        labels: torch.Tensor | None,
        batch_size: int,
        num_views: int,
        augmentation: Augmentation,
        generator: torch.Generator,
        device: torch.device,
    ) -> Iterator[Batch]:
        """One epoch over `indices` (CPU int64) in random order, `num_views` views of each image.

        `labels` (int64, one per image of the data set, or None) are handed out with the images.
        All draws come from `generator` (on the CPU) before the first batch. A last batch of one
        sample joins the one before it: BatchNorm cannot normalise a single sample.
        """
        order = indices[torch.randperm(len(indices), generator=generator)]
        parameters = [
            draw_views(len(order), self.image_size, augmentation, generator).to(device)
            for _ in range(num_views)
        ]
        labels = None if labels is None else labels[order].to(device)
        bounds = batch_bounds(len(order), batch_size)
        images_of_batches = self.batches(order, bounds, device)
        for (start, stop), images in zip(bounds, images_of_batches, strict=True):
            views = [normalize(apply_views(images, drawn[start:stop])) for drawn in parameters]
            yield Batch(views, None if labels is None else labels[start:stop], order[start:stop])

    def evaluation_batches(
        self, indices: torch.Tensor, batch_size: int, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """Images in order, normalised and not augmented: (B, 3, S, S)."""
        starts = range(0, len(indices), batch_size)
        bounds = [(start, min(start + batch_size, len(indices))) for start in starts]
        for images in self.batches(indices, bounds, device):
            yield normalize(images)


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """(start, stop) of each batch; a last batch of one sample joins the one before it."""
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def load_dataset(
    table: ImageTable,
    root_path: Path,
    image_size: int,
    cache: str,
    cache_dir: Path,
    say: Callable[[str], None],
    follow_links: bool = False,
) -> ImageDataset:
    """The images of a label file as an `ImageDataset`; `UserError` names what cannot be used.
    `follow_links` is as in `resolve_images`."""
    paths = resolve_images(table, root_path, follow_links)

    def describe(i: int) -> str:
        return f"{table.source} line {table.line_numbers[i]}: {table.names[i]}"

    dicom = read_preparation(root_path).get("dicom", {})
    pixels, file_digest = load_pixels(paths, image_size, cache_dir, describe, say)
    described = [file_digest, table.names, table.class_names, table.groups, table.labels.tolist()]
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return ImageDataset(
        pixels,
        table.labels,
        table.names,
        table.class_names,
        table.groups,
        fingerprint,
        cache,
        table.group_column,
        dicom.get("window"),
        table.sites,
    )
