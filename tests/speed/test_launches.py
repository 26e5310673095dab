"""What benchmarks/launches.py counts, by hand, and what DenseNet121's layers save of it."""

import torch

from benchmarks.launches import Operations, bytes_of_passes

LAYERS = (6, 12, 24, 16)  # of DenseNet121's dense blocks
BATCHNORMS = 121


def test_a_convolution_by_hand():
    images = torch.ones(2, 3, 4, 4, requires_grad=True)  # 96 numbers
    weights = torch.ones(5, 3, 1, 1, requires_grad=True)  # 15, and 160 in the result
    with Operations() as operations:
        maps = torch.nn.functional.conv2d(images, weights)
        maps.backward(torch.ones_like(maps))
    assert operations.launches["convolution"] == 2
    assert operations.bytes["convolution"] == 4 * (96 + 15 + 160) + 4 * (2 * 160 + 2 * (96 + 15))


def test_gradients_of_a_dense_block_are_added_once_a_layer():
    theirs = bytes_of_passes(32, 2, plain=True)["student's passes"].launches
    ours = bytes_of_passes(32, 2, plain=False)["student's passes"].launches
    assert theirs["add"] == sum(n * (n + 1) // 2 for n in LAYERS) + BATCHNORMS
    assert ours["add"] == sum(LAYERS)
    assert (theirs["cat"], ours["cat"]) == (sum(LAYERS) + len(LAYERS), sum(LAYERS))
    assert theirs - ours == {"add": theirs["add"] - ours["add"], "cat": len(LAYERS)}
