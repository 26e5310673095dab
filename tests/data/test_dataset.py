"""Epochs over arrays: every image once, draws that belong to a client and a round."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from dataloaders.augment import Augmentation, normalize
from dataloaders.dataset import ImageDataset, batch_bounds, load_dataset
from dataloaders.table import read_table
from local_update import LocalUpdate
from tasks.classification import Classification
from utils.errors import UserError

CPU = torch.device("cpu")
STILL = Augmentation(degrees=0, translate=0, flip=0)


def numbered(count: int, cache: str = "auto") -> ImageDataset:
    """Images whose every pixel is their own number, labelled by it."""
    pixels = np.empty((count, 32, 32, 1), np.uint8)
    pixels[:] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    labels = np.arange(count)
    return ImageDataset(pixels, labels, [f"{i}.png" for i in labels], ["a", "b"], cache=cache)


def epoch(dataset, indices, batch_size=4, views=1, seed=0, augmentation=STILL, labels=None):
    labels = dataset.labels if labels is None else labels
    draws = torch.Generator().manual_seed(seed)
    indices = torch.as_tensor(indices)
    return list(
        dataset.training_batches(indices, labels, batch_size, views, augmentation, draws, CPU)
    )


def numbers_of(views: torch.Tensor) -> list[int]:
    """The numbers of the images in a batch of views of `numbered` images."""
    table = normalize(torch.arange(256.0).reshape(-1, 1, 1, 1))[:, 0, 0, 0]
    middle = views[:, 0, 16, 16]
    return (middle[:, None] - table).abs().argmin(dim=1).tolist()


# ---- batches


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (8, 4, [(0, 4), (4, 8)]),
        (9, 4, [(0, 4), (4, 9)]),  # a single sample joins
        (10, 4, [(0, 4), (4, 8), (8, 10)]),
        (5, 4, [(0, 5)]),
        (3, 4, [(0, 3)]),
        (1, 4, [(0, 1)]),
    ],
)
def test_bounds(count, size, expected):
    assert batch_bounds(count, size) == expected


@pytest.mark.parametrize("count", [8, 9, 11])
def test_every_image_exactly_once_with_its_label(count):
    dataset = numbered(30)
    indices = list(range(3, 3 + count))
    batches = epoch(dataset, indices)
    assert min(len(batch.labels) for batch in batches) > 1
    seen = [number for batch in batches for number in numbers_of(batch.views[0])]
    assert sorted(seen) == indices
    assert seen == [label for batch in batches for label in batch.labels.tolist()]
    assert seen != indices


def test_labels_can_be_replaced():
    (batch,) = epoch(numbered(6), [1, 3, 5], labels=torch.arange(6) * 10)
    assert batch.labels.tolist() == [10 * number for number in numbers_of(batch.views[0])]


def test_two_views_of_the_same_images_drawn_apart():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    dataset = ImageDataset(pixels, np.zeros(6), list("abcdef"), ["a", "b"])
    (batch,) = epoch(dataset, range(6), batch_size=6, views=2, augmentation=Augmentation())
    first, second = batch.views
    assert first.shape == second.shape == (6, 3, 32, 32)
    assert (first != second).flatten(1).any(dim=1).all()
    (still,) = epoch(dataset, range(6), batch_size=6, views=2)
    assert torch.equal(*still.views)


def test_views_are_normalised_floats():
    (batch,) = epoch(numbered(3), [0, 1, 2])
    number = batch.labels[0].item()
    expected = (number / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert batch.views[0].dtype == torch.float32
    torch.testing.assert_close(batch.views[0][0, :, 5, 7], expected)


def test_evaluation_keeps_order_and_leaves_images_alone():
    dataset = numbered(11)
    batches = list(dataset.evaluation_batches(torch.arange(11), 4, CPU))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert [number for batch in batches for number in numbers_of(batch)] == list(range(11))


def test_caches_give_the_same_images():
    for cache in ("auto", "ram", "disk", "device"):
        (batch,) = epoch(numbered(4, cache), range(4), seed=3)
        assert torch.equal(batch.views[0], epoch(numbered(4), range(4), seed=3)[0].views[0])


# ---- whose draws


def client_epochs(client: int, round: int, seed: int = 1337) -> list[torch.Tensor]:
    args = Namespace(seed=seed, degrees=10.0, translate=0.1, flip=0.5, local_ep=2, batch_size=4)
    trainer = LocalUpdate(args, numbered(12), torch.arange(8), client, Classification())
    return [
        torch.cat([batch.views[0] for batch in batches])
        for _, batches in trainer.epochs(1, round, CPU)
    ]


def test_draws_belong_to_client_and_round():
    first, second = client_epochs(client=1, round=5)
    assert not torch.equal(first, second)  # the next local epoch draws anew
    for again, expected in zip(client_epochs(client=1, round=5), (first, second), strict=True):
        assert torch.equal(again, expected)
    for other in (client_epochs(2, 5), client_epochs(1, 6), client_epochs(1, 5, seed=1)):
        assert not torch.equal(other[0], first)


# ---- from disk


def test_load_dataset(phantom_folder, tmp_path):
    table = read_table(phantom_folder.csv_file_train)
    said = []
    arguments = (phantom_folder.root_path, 32, "auto", tmp_path, said.append)
    dataset = load_dataset(table, *arguments)
    assert len(dataset) == len(table) and dataset.image_size == 32
    assert dataset.labels.tolist() == table.labels.tolist()
    assert dataset.names == table.names and dataset.groups == table.groups
    assert dataset.class_names == table.class_names
    again = load_dataset(table, *arguments)
    assert again.fingerprint == dataset.fingerprint and len(said) == 1
    relabelled = table.select(np.arange(len(table)))
    relabelled.labels[0] = (relabelled.labels[0] + 1) % 5
    assert load_dataset(relabelled, *arguments).fingerprint != dataset.fingerprint


def test_missing_image_is_named_with_its_line(phantom_folder, tmp_path):
    text = phantom_folder.csv_file_train.read_text().splitlines()
    text[2] = text[2].replace("ID_", "XX_", 1)
    broken = tmp_path / "broken.csv"
    broken.write_text("\n".join(text) + "\n")
    with pytest.raises(UserError, match=r"broken\.csv line 3: image 'XX_"):
        load_dataset(read_table(broken), phantom_folder.root_path, 32, "auto", tmp_path, print)
