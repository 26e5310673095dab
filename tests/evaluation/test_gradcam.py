"""Grad-CAM against its closed form, and which images the sheet shows."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch.nn import functional

from dataloaders.dataset import ImageDataset
from networks.models import DenseNet121
from predict.gradcam import MOST_CLASSES, choose_samples, draw_gradcam, grad_cam
from tests.helpers.examples import example_predictions
from utils.metrics.predictions import Predictions


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = DenseNet121(3).eval()
    with torch.no_grad():
        net.densenet121.classifier[0].weight.add_(0.01)  # something speaks for every class
    return net


def test_heat_is_the_classifiers_weights_on_the_feature_map(net):
    """Behind mean pooling and a linear head, d logit / d feature is weight / positions."""
    images = torch.randn(4, 3, 96, 96)
    classes = torch.tensor([0, 2, 1, 2])
    with torch.no_grad():
        features = net.feature_map(images)
    evidence = torch.einsum("bkhw,bk->bhw", features, net.densenet121.classifier[0].weight[classes])
    expected = evidence.clamp(min=0).detach()
    expected /= expected.amax(dim=(1, 2), keepdim=True)
    expected = functional.interpolate(expected[:, None], (96, 96), mode="bilinear")[:, 0]
    heat = grad_cam(net, images, classes)
    assert heat.shape == (4, 96, 96)
    torch.testing.assert_close(heat, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(heat[1], grad_cam(net, images, torch.tensor([0, 0, 1, 2]))[1])
    assert all(parameter.grad is None for parameter in net.parameters())


def test_nothing_is_hot_where_nothing_speaks_for_the_class():
    net = DenseNet121(2).eval()
    with torch.no_grad():
        net.densenet121.classifier[0].weight.copy_(-torch.ones(2, 1024))
    heat = grad_cam(net, torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert torch.equal(heat, torch.zeros(2, 64, 64))


def predictions(labels, rows):
    names = [f"{index}.png" for index in range(len(labels))]
    rows = np.array(rows)
    return Predictions(names, np.array(labels), rows, [f"c{i}" for i in range(rows.shape[1])])


def test_the_most_confident_right_and_wrong_image_of_each_class_are_shown():
    rows = [
        [0.6, 0.3, 0.1],  # right
        [0.8, 0.1, 0.1],  # right, more confident
        [0.1, 0.5, 0.4],  # wrong
        [0.0, 0.1, 0.9],  # wrong, more confident
        [0.2, 0.5, 0.3],  # class 1, right; nothing of it is wrong
    ]
    assert choose_samples(predictions([0, 0, 0, 0, 1], rows)).tolist() == [1, 3, 4]


def test_of_many_classes_the_most_frequent_are_shown_in_their_own_order():
    labels = [7] + [index for index in range(8) for _ in range(1 + index % 3)]
    chosen = choose_samples(predictions(labels, np.eye(8)[labels]))
    shown = [labels[index] for index in chosen]
    assert shown == [0, 1, 2, 4, 5, 7]
    assert len(shown) == MOST_CLASSES


@pytest.mark.parametrize(("side", "channels"), [(128, 1), (128, 3), (96, 1)])
def test_the_sheet_is_drawn_in_grey_and_in_colour(net, tmp_path, side, channels):
    found = example_predictions(num_patients=8)
    size = (len(found.labels), side, side, channels)
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    images = ImageDataset(pixels, found.labels, found.names, found.class_names)
    draw_gradcam(net, images, found, tmp_path / "gradcam.png")
    if side < 128:  # fewer than 4 x 4 positions point at nothing
        assert not (tmp_path / "gradcam.png").exists()
        return
    sheet = imread(tmp_path / "gradcam.png")
    assert sheet.shape[1] == 1400  # a page's width
    assert sheet[..., :3].std() > 0.1
