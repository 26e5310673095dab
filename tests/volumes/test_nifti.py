"""NIfTI files as they are read, and their labels on another grid."""

import numpy as np
import pytest

from dataloaders.nifti import header_spacing, read_nifti, resample, resample_classes
from tests.helpers.volumes import write_nifti

SHAPE = (6, 7, 8)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(100, 10, shape).astype(np.float32)


def test_a_header_with_other_bytes_is_read_or_refused_in_one_line(tmp_path):
    generator = np.random.default_rng(1)
    whole = write_nifti(tmp_path / "whole.nii", noise(*SHAPE)).read_bytes()
    path, refused = tmp_path / "damaged.nii", 0
    for _ in range(400):
        damaged = bytearray(whole)
        for at in generator.integers(352, size=3):
            damaged[at] = generator.integers(256)
        path.write_bytes(damaged)
        for read in (read_nifti, header_spacing):
            try:
                read(path)
            except ValueError as error:
                assert type(error) is ValueError and "\n" not in str(error)
                refused += 1
    assert 100 < refused < 700


def test_large_letters_in_an_ending_are_no_fault(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((60, 60, 60), np.int16))
    loud = path.rename(tmp_path / "A.NII.GZ")
    assert read_nifti(loud).shape == (60, 60, 60)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_labels_lie_where_their_image_lies_after_resampling(factor):
    """A ball around a point: its middle in millimetres stays, and so does its extent."""
    side, radius = 48, 12
    at = np.indices((side, side, side)) + 0.5 - np.array([24, 23, 25]).reshape(3, 1, 1, 1)
    ball = ((at**2).sum(axis=0) < radius**2).astype(np.float32)
    small = resample_classes(ball, (side // factor,) * 3)
    middle = (np.argwhere(small).mean(axis=0) + 0.5) * factor
    np.testing.assert_allclose(middle, [24, 23, 25], atol=0.25)
    assert small.sum() * factor**3 == pytest.approx(ball.sum(), rel=0.05)
    shares = resample(ball[None], (side // factor,) * 3)[0]
    clear = np.abs(shares - 0.5) > 1e-3
    np.testing.assert_array_equal(small[clear], shares[clear] > 0.5)


@pytest.mark.parametrize("halved", [1, 2, 3])
def test_structures_neither_grow_nor_shrink_where_sides_are_halved(halved):
    """Small balls, whose boundaries lie between two voxels nearly everywhere."""
    shape = tuple(16 if axis < halved else 32 for axis in range(3))
    changes = []
    for shift in np.random.default_rng(0).random((8, 3)):
        at = np.indices((32, 32, 32)) + 0.5 - (16 + shift).reshape(3, 1, 1, 1)
        ball = ((at**2).sum(axis=0) < 4**2).astype(np.float32)
        kept = resample_classes(ball, shape).sum() * 2**halved
        changes.append(kept / ball.sum() - 1)
    assert abs(np.mean(changes)) < 0.08


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path):
    tilted = np.array([[1, 0, 0, 0], [0, 1, 1.4, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])
    path = write_nifti(tmp_path / "tilted.nii.gz", noise(*SHAPE), tilted)
    for read in (read_nifti, header_spacing):
        with pytest.raises(ValueError, match="not at right angles"):
            read(path)
