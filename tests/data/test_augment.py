"""Batched views against torchvision's own affine and flip, image by image."""

import ast
import inspect

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torchvision.transforms import Normalize
from torchvision.transforms import functional as reference
from torchvision.transforms.transforms import RandomAffine

from dataloaders import augment
from dataloaders.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    apply_views,
    draw_views,
    normalize,
)


def drawn(count: int, size: int, seed: int, augmentation=None) -> torch.Tensor:
    augmentation = augmentation or Augmentation()
    return draw_views(count, size, augmentation, torch.Generator().manual_seed(seed))


def random_images(count: int, channels: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(1, 256, (count, channels, size, size), generator=generator).float()


def one_by_one(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """torchvision's RandomAffine and RandomHorizontalFlip for drawn parameters."""
    views = []
    for image, (angle, right, down, flipped) in zip(images, parameters.tolist(), strict=True):
        view = reference.affine(
            image, angle, [int(right), int(down)], scale=1.0, shear=[0.0], fill=0
        )
        views.append(reference.hflip(view) if flipped else view)
    return torch.stack(views)


def pixels_from_border(parameters: torch.Tensor, size: int) -> np.ndarray:
    """How far each output pixel's exact source position is from where rounding changes: (B, H, W).

    In float64 and pixels, by undoing flip, shift and rotation about the middle in that order.
    """
    angle, right, down, flipped = (
        column[:, None, None] for column in parameters.double().numpy().T
    )
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    x, y = np.where(flipped > 0, -x, x) - right, y - down
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    positions = np.stack([cosine * x + sine * y, cosine * y - sine * x]) + (size - 1) / 2
    return np.abs(positions - np.floor(positions) - 0.5).min(axis=0)


def check_against_torchvision(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Our views, after a comparison: only a position on a border of two pixels, where float32
    decides, may be rounded to the other one, in at most 5 of 100,000 pixels."""
    ours, theirs = apply_views(images, parameters), one_by_one(images, parameters)
    differ = (ours != theirs).any(dim=1).numpy()
    assert differ.mean() <= 5e-5
    assert (pixels_from_border(parameters, images.shape[-1])[differ] < 1e-4).all()
    return ours


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (33, 1), (64, 1), (65, 3), (128, 1)])
def test_equals_torchvision(size, channels):
    images, parameters = random_images(40, channels, size), drawn(40, size, seed=size)
    views = check_against_torchvision(images, parameters)
    assert (views != images).float().mean().item() > 0.5


@pytest.mark.parametrize("size", [224, 225])
def test_equals_torchvision_at_full_size(size):
    check_against_torchvision(random_images(12, 1, size), drawn(12, size, seed=size))


def test_large_angles_and_shifts():
    augmentation = Augmentation(degrees=180, translate=0.5, flip=0.5)
    images, parameters = random_images(40, 1, 48), drawn(40, 48, 3, augmentation)
    views = check_against_torchvision(images, parameters)
    assert (views == 0).float().mean().item() > 0.2  # what lies outside is black


def test_by_hand():
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)

    def view(*parameters):
        return apply_views(image, torch.tensor([parameters]))[0, 0].tolist()

    assert view(0.0, 0, 0, 0) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert view(0.0, 0, 0, 1) == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert view(0.0, 1, 0, 0) == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]
    assert view(0.0, 0, 1, 0) == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert view(0.0, 1, 0, 1) == [[2, 1, 0], [5, 4, 0], [8, 7, 0]]  # shifted, then flipped
    assert view(90.0, 0, 0, 0) == [[7, 4, 1], [8, 5, 2], [9, 6, 3]]


def test_draws_are_torchvisions_in_distribution():
    parameters = drawn(20_000, 224, seed=0)
    angles, right, down, flipped = parameters.unbind(1)
    assert kstest(angles.numpy() / 20 + 0.5, "uniform").pvalue > 0.01
    largest = round(0.02 * 224)
    for shift in (right, down):
        assert torch.equal(shift, shift.round())
        assert (shift.min().item(), shift.max().item()) == (-largest, largest)
    assert flipped.mean().item() == pytest.approx(0.5, abs=0.015)
    assert sorted(set(flipped.tolist())) == [0.0, 1.0]
    # The four draws of a view have nothing to do with each other.
    assert torch.corrcoef(parameters.T).fill_diagonal_(0).abs().max().item() < 0.03


def test_shifts_have_torchvisions_frequencies():
    torch.manual_seed(0)
    theirs = torch.tensor(
        [
            RandomAffine.get_params([-10, 10], (0.02, 0.02), None, None, [224, 224])[1]
            for _ in range(20_000)
        ]
    )
    ours = drawn(20_000, 224, seed=1)[:, 1:3]
    for shift in range(-4, 5):
        share, expected = ((part == shift).float().mean().item() for part in (ours, theirs))
        assert share == pytest.approx(expected, abs=0.01)


def test_zero_augmentation_is_the_identity():
    nothing = Augmentation(degrees=0, translate=0, flip=0)
    images = random_images(5, 3, 33)
    assert torch.equal(apply_views(images, drawn(5, 33, 0, nothing)), images)
    always = Augmentation(degrees=0, translate=0, flip=1)
    assert torch.equal(apply_views(images, drawn(5, 33, 0, always)), images.flip(-1))


def test_draws_belong_to_their_generator():
    assert torch.equal(drawn(7, 64, seed=5), drawn(7, 64, seed=5))
    assert not torch.equal(drawn(7, 64, seed=5), drawn(7, 64, seed=6))


def test_a_view_does_not_depend_on_its_batch():
    images, parameters = random_images(6, 3, 40), drawn(6, 40, seed=2)
    whole = apply_views(images, parameters)
    assert torch.equal(whole[2:3], apply_views(images[2:3], parameters[2:3]))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_equals_torchvisions(channels):
    images = random_images(2, channels, 8)
    expected = Normalize(IMAGENET_MEAN, IMAGENET_STD)(images.expand(-1, 3, -1, -1) / 255)
    torch.testing.assert_close(normalize(images), expected)
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_no_loop_over_samples():
    loops = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)
    nodes = list(ast.walk(ast.parse(inspect.getsource(augment))))
    assert not [node for node in nodes if isinstance(node, loops)]
