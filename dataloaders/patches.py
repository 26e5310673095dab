"""Volumes as clients train on them: batches of augmented patches, where structures are found."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dataloaders.dataset import Batch, batch_bounds
from dataloaders.volumes import VolumeTable, fingerprint
from utils.tensors import sent

LARGEST_NOISE = 2.0  # deviations: SOURCES, the conventions of semi-supervised 3D


class PatchAugmentation(NamedTuple):
    """What changes a patch: `intensity` is the deviation of a view's random gain, of its offset
    and of its voxels' noise; `flip_axes` (0, 1, 2) are flipped with probability 1/2, in all views
    of a patch alike."""

    intensity: float = 0.1
    flip_axes: tuple[int, ...] = ()


class VolumeDataset:
    """Volumes, mapped from their files, and their labels; batches are patches of one size.

    arrays: (K + 1, X, Y, Z) each, as `open_volumes` gives them. patch_size: (X, Y, Z) voxels.
    foreground: the share of labelled patches that are centred on a voxel of a structure, the
    structure drawn among those the label has; all others lie anywhere with the same probability.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        table: VolumeTable,
        patch_size: tuple[int, int, int],
        foreground: float = 0.0,
    ):
        self.arrays = list(arrays)
        self._labels = [array[-1] for array in self.arrays]
        self._found: dict[int, tuple[Callable, dict[float, np.ndarray]]] = {}
        self.table = table
        self.patch_size = tuple(patch_size)
        self.foreground = foreground
        self.fingerprint = fingerprint(table, arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def head(self, count: int) -> "VolumeDataset":
        """The first `count` volumes."""
        table = self.table.select(range(min(count, len(self))))
        return VolumeDataset(self.arrays[:count], table, self.patch_size, self.foreground)

    @property
    def names(self) -> list[str]:
        """VolumeIDs."""
        return self.table.names

    @property
    def groups(self) -> list[str] | None:
        """PatientIDs, None where they are not known."""
        return self.table.groups

    @property
    def group_column(self) -> str:
        """The name of the column of groups."""
        return self.table.group_column

    def digests(self) -> None:
        """None: a set of volumes can be too large to be read for a comparison."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Background first."""
        return self.table.class_names

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one patch, (K, X, Y, Z)."""
        return (len(self.arrays[0]) - 1, *self.patch_size)

    @property
    def labels(self) -> list[np.ndarray]:
        """The class of every voxel of every volume, float16 (X, Y, Z) each."""
        return self._labels

    def image(self, index: int) -> np.ndarray:
        """One whole volume without its label, float32 (K, X, Y, Z)."""
        return np.asarray(self.arrays[index][:-1], dtype=np.float32)

    def training_batches(
        self,
        indices: torch.Tensor,
        labels: Sequence[np.ndarray] | None,
        batch_size: int,
        num_views: int,
        augmentation: PatchAugmentation,
        generator: torch.Generator,
        device: torch.device,
    ) -> Iterator[Batch]:
        """One epoch over `indices` (CPU int64) in random order, one patch of each volume.

        The views of a batch are the same patches with other intensities. Without `labels` no label
        is looked at, neither handed out nor to place a patch. All draws come from `generator`.
        """
        order = indices[torch.randperm(len(indices), generator=generator)]
        for start, stop in batch_bounds(len(order), batch_size):
            chosen = order[start:stop]
            patches, patch_labels = self._patches(chosen, labels, augmentation, generator, device)
            views = [
                change_intensity(patches, augmentation.intensity, generator)
                for _ in range(num_views)
            ]
            yield Batch(views, patch_labels, chosen)

    def evaluation_batches(
        self, indices: torch.Tensor, batch_size: int, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """The patch in the middle of each volume, in order and not augmented: (B, K, X, Y, Z)."""
        for chosen in indices.split(batch_size):
            shapes = [self.table.shapes[index] for index in chosen.tolist()]
            corners = [
                [(side - patch) // 2 for side, patch in zip(shape, self.patch_size, strict=True)]
                for shape in shapes
            ]
            patches = [
                cut_patch(self.arrays[index][:-1], corner, self.patch_size)
                for index, corner in zip(chosen.tolist(), corners, strict=True)
            ]
            yield sent(torch.from_numpy(np.stack(patches).astype(np.float32)), device)

    def _patches(
        self,
        chosen: torch.Tensor,
        labels: Sequence[np.ndarray] | None,
        augmentation: PatchAugmentation,
        generator: torch.Generator,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        images, classes = [], []
        for index in chosen.tolist():
            # The same draws whatever is done with them: flips, corner, structure and voxel.
            uniform = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
            label = None if labels is None else labels[index]
            corner = self._corner(index, label, uniform[3:])
            flips = [axis for axis in augmentation.flip_axes if uniform[axis] < 0.5]
            image = cut_patch(self.arrays[index][:-1], corner, self.patch_size)
            images.append(np.flip(image, [axis + 1 for axis in flips]))
            if label is not None:
                patch = cut_patch(label[None], corner, self.patch_size)[0]
                classes.append(np.flip(patch, flips))
        batch = sent(torch.from_numpy(np.stack(images).astype(np.float32)), device)
        if labels is None:
            return batch, None
        return batch, sent(torch.from_numpy(np.stack(classes).astype(np.int64)), device)

    def _slabs(self, index: int, label: np.ndarray) -> dict[float, np.ndarray]:
        """Structure -> how many of its voxels lie in the slabs of `label` (X, Y, Z) up to each x,
        int64 (X,). Kept while volume `index` has this label, which takes long to look through."""
        known, found = self._found.get(index, (None, {}))
        if known is None or known() is not label:
            counts: dict[float, np.ndarray] = {}
            for x, slab in enumerate(label):
                for structure, count in zip(
                    *np.unique(slab[slab > 0], return_counts=True), strict=True
                ):
                    of_slabs = counts.setdefault(float(structure), np.zeros(len(label), np.int64))
                    of_slabs[x] = count
            found = {structure: counts[structure].cumsum() for structure in sorted(counts)}
            self._found[index] = weakref.ref(label), found
        return found

    def _corner(self, index: int, label: np.ndarray | None, uniform: Sequence[float]) -> list[int]:
        """Where a patch of volume `index` begins, from six numbers in [0, 1)."""
        shape = self.table.shapes[index]
        room = [side - patch for side, patch in zip(shape, self.patch_size, strict=True)]
        wants_structure = label is not None and uniform[3] < self.foreground
        if wants_structure and (slabs := self._slabs(index, label)):
            structure = list(slabs)[int(uniform[4] * len(slabs))]
            middle = _voxel(label, structure, slabs[structure], uniform[5])
            wanted = [int(at) - side // 2 for at, side in zip(middle, self.patch_size, strict=True)]
            return [
                min(max(at, 0), free) if free > 0 else free // 2
                for at, free in zip(wanted, room, strict=True)
            ]
        return [
            int(drawn * (free + 1)) if free > 0 else free // 2
            for drawn, free in zip(uniform, room, strict=False)
        ]


def _voxel(
    label: np.ndarray, structure: float, up_to: np.ndarray, uniform: float
) -> tuple[int, int, int]:
    """One of the voxels (x, y, z) of a structure, from a number in [0, 1); `up_to`: how many of
    them lie in the slabs up to each x."""
    number = int(uniform * up_to[-1])
    x = int(np.searchsorted(up_to, number, side="right"))
    before = int(up_to[x - 1]) if x else 0
    return (x, *np.argwhere(label[x] == structure)[number - before].tolist())


def cut_patch(array: np.ndarray, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The patch (K, *size) of `array` (K, X, Y, Z) from `corner` on, 0 outside the volume."""
    inside = tuple(
        slice(max(at, 0), min(at + side, whole))
        for at, side, whole in zip(corner, size, array.shape[1:], strict=True)
    )
    piece = array[(slice(None), *inside)]
    if piece.shape[1:] == tuple(size):
        return np.asarray(piece)
    patch = np.zeros((len(array), *size), array.dtype)
    place = tuple(
        slice(part.start - at, part.stop - at) for part, at in zip(inside, corner, strict=True)
    )
    patch[(slice(None), *place)] = piece
    return patch


def change_intensity(
    patches: torch.Tensor, deviation: float, generator: torch.Generator
) -> torch.Tensor:
    """Patches (B, K, X, Y, Z) with a random gain and offset each and clipped noise per voxel.

    Gain and offset are drawn from `generator`, on the CPU; so is the seed of the noise, which is
    drawn where the patches are.
    """
    drawn = deviation * torch.randn(2, len(patches), 1, 1, 1, 1, generator=generator)
    gain, offset = sent(drawn, patches.device)
    seed = int(torch.randint(2**62, (), generator=generator))
    noise_generator = torch.Generator(patches.device).manual_seed(seed)
    noise = torch.randn(patches.shape, generator=noise_generator, device=patches.device)
    noise = noise.clamp_(-LARGEST_NOISE, LARGEST_NOISE).mul_(deviation)
    return patches * (1 + gain) + offset + noise
