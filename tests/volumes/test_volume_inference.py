"""Whole volumes through a network: which windows it sees, and what becomes of its outputs."""

import numpy as np
import pytest
import torch
from torch import nn

from networks.models import Network
from predict.volumes import class_probabilities, segment
from utils.errors import UserError


class VoxelNetwork(Network):
    """Looks at each voxel alone, so that it says the same whatever the window; remembers those."""

    def __init__(self):
        super().__init__(0.0)
        self.head = nn.Conv3d(1, 3, 1)
        self.seen = []

    def plain_features(self, inputs):
        self.seen.append(tuple(inputs.shape[1:]))
        return inputs

    def classify(self, features):
        return self.head(features)


@pytest.fixture
def net() -> VoxelNetwork:
    torch.manual_seed(0)
    return VoxelNetwork()


@pytest.mark.parametrize("shape", [(9, 13, 10), (8, 8, 8), (20, 5, 3)])
def test_windows_have_the_size_of_a_patch_and_their_outputs_join_without_a_seam(net, shape):
    """Instance norm's statistics are those of a window: of another size they are others."""
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    found = class_probabilities(net, image, (8, 8, 8))
    assert set(net.seen) == {(1, 8, 8, 8)}
    expected = torch.softmax(net.head(torch.from_numpy(image)[None])[0], dim=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    classes = segment(net, image, (8, 8, 8), "v0")
    assert classes.dtype == np.uint8 and (classes == expected.argmax(dim=0).numpy()).mean() > 0.99


def test_outputs_that_are_not_finite_name_the_volume(net):
    nn.init.constant_(net.head.bias, float("nan"))
    with pytest.raises(UserError, match="no finite output for v7"):
        class_probabilities(net, np.zeros((1, 8, 8, 8), np.float32), (8, 8, 8), "v7")
