"""Patches of volumes: where they lie, that views differ in intensity alone, who sees labels."""

import numpy as np
import pytest
import torch

from dataloaders.patches import PatchAugmentation, VolumeDataset, cut_patch
from tests.helpers.volumes import prepared_table, write_prepared

CPU = torch.device("cpu")
PLAIN = PatchAugmentation(0.0)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return prepared_table(write_prepared(tmp_path_factory.mktemp("volumes") / "prepared"))


def batches(dataset, labels, views=1, augmentation=PLAIN, seed=0):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.arange(len(dataset))
    return list(dataset.training_batches(indices, labels, 4, views, augmentation, generator, CPU))


def test_a_patch_is_a_piece_of_its_volume_and_of_its_label(volumes):
    arrays, table = volumes
    dataset = VolumeDataset(arrays, table, (8, 8, 8), 0.5)
    seen = []
    for batch in batches(dataset, dataset.labels):
        assert batch.views[0].shape == (4, 1, 8, 8, 8) and batch.labels.shape == (4, 8, 8, 8)
        for patch, label, index in zip(
            batch.views[0], batch.labels, batch.indices.tolist(), strict=True
        ):
            windows = np.lib.stride_tricks.sliding_window_view(arrays[index], (2, 8, 8, 8))[0]
            both = np.stack([patch[0].numpy(), label.numpy()])
            assert (windows == both).all(axis=(3, 4, 5, 6)).any()
            seen.append(index)
    assert sorted(seen) == list(range(8))


def test_foreground_patches_hold_a_structure_and_others_may_not(volumes):
    arrays, table = volumes
    for foreground, always in ((1.0, True), (0.0, False)):
        dataset = VolumeDataset(arrays, table, (4, 4, 4), foreground)
        found = [
            bool((label > 0).any())
            for seed in range(5)
            for batch in batches(dataset, dataset.labels, seed=seed)
            for label in batch.labels
        ]
        assert all(found) == always


def test_a_structures_voxel_is_the_one_that_its_number_says(volumes):
    """The voxels of the drawn structure, counted in C order, for real labels and for others."""
    arrays, table = volumes
    dataset = VolumeDataset(arrays, table, (2, 2, 2), 1.0)
    pseudo = np.random.default_rng(0).integers(-1, 3, table.shapes[1]).astype(np.int16)
    draws = np.random.default_rng(1)
    for index, label in [(0, dataset.labels[0]), (1, dataset.labels[1]), (1, pseudo), (1, -pseudo)]:
        for _ in range(20):
            uniform = draws.random(6).tolist()
            structures = np.unique(label[label > 0])
            voxels = np.argwhere(label == structures[int(uniform[4] * len(structures))])
            middle = voxels[int(uniform[5] * len(voxels))]
            expected = [
                min(max(at - 1, 0), side - 2) for at, side in zip(middle, label.shape, strict=True)
            ]
            assert dataset._corner(index, label, [*uniform[:3], 0.0, *uniform[4:]]) == expected


def test_without_labels_no_label_is_looked_at(volumes):
    arrays, table = volumes
    dataset = VolumeDataset(arrays, table, (8, 8, 8), 1.0)
    blank = [array.copy() for array in arrays]
    for array in blank:
        array[-1] = np.nan
    other = VolumeDataset(blank, table, (8, 8, 8), 1.0)
    for ours, theirs in zip(batches(dataset, None), batches(other, None), strict=True):
        assert ours.labels is None and torch.equal(ours.views[0], theirs.views[0])


def test_views_are_the_same_patch_with_other_intensities(volumes):
    dataset = VolumeDataset(*volumes, (8, 8, 8), 0.0)
    plain = batches(dataset, None, 2, PatchAugmentation(0.0, (0, 1, 2)))
    assert torch.equal(*plain[0].views)
    first, second = batches(dataset, None, 2, PatchAugmentation(0.1, (0, 1, 2)))[0].views
    assert not torch.equal(first, second)
    for view in (first, second):  # gain, offset, and noise clipped at two deviations
        for changed, patch in zip(view, plain[0].views[0], strict=True):
            gain, offset = np.polyfit(patch.flatten().numpy(), changed.flatten().numpy(), 1)
            assert abs(changed - gain * patch - offset).max() < 0.2 + 0.02


def test_the_same_generator_gives_the_same_bits(volumes):
    dataset = VolumeDataset(*volumes, (8, 8, 8), 0.5)
    augmentation = PatchAugmentation(0.1, (0,))
    for ours, theirs in zip(
        batches(dataset, dataset.labels, 2, augmentation),
        batches(dataset, dataset.labels, 2, augmentation),
        strict=True,
    ):
        assert torch.equal(ours.views[1], theirs.views[1])
        assert torch.equal(ours.labels, theirs.labels)


def test_a_volume_smaller_than_a_patch_stands_in_its_middle():
    array = np.ones((1, 2, 3, 4))
    patch = cut_patch(array, [-1, -1, 0], (4, 5, 4))
    assert patch.sum() == 24 and patch[0, 1:3, 1:4].all()
    assert cut_patch(array, [0, 1, 1], (2, 2, 3)).shape == (1, 2, 2, 3)
