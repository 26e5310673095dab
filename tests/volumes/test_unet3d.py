"""The 3D U-Net: what makes T stochastic passes one pass of the backbone, and its checkpoints."""

import pytest
import torch

from networks.devices import place_network
from networks.kinds import build_network, check_architecture
from networks.saved import load_model, load_weights, model_content
from networks.unet3d import UNet3d
from options import args_parser
from tasks.segmentation import Segmentation
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.packages import import_3d

ARCHITECTURE = {
    "network": "unet3d",
    "in_channels": 1,
    "channels": [4, 8, 8],
    "residual_units": 1,
    "drop_rate": 0.5,
}
CLASSES = ("background", "front", "back")


@pytest.fixture
def net() -> UNet3d:
    torch.manual_seed(0)
    return place_network(build_network(ARCHITECTURE, CLASSES), torch.device("cpu"))


@pytest.fixture
def patches() -> torch.Tensor:
    return torch.randn(2, 1, 8, 12, 8, generator=torch.Generator().manual_seed(1))


def test_shapes(net, patches):
    features, outputs = net(patches)
    assert features.shape == (2, 4, 8, 12, 8) and outputs.shape == (2, 3, 8, 12, 8)
    assert net.stochastic(features, 5).shape == (5, 2, 3, 8, 12, 8)


def test_stochastic_passes_are_passes_of_the_whole_network(net, patches):
    net.train()
    net.dropout.generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        together = net.stochastic(net.pooled(patches), 3)
        net.dropout.generator = torch.Generator().manual_seed(5)
        apart = torch.stack([net(patches)[1] for _ in range(3)])
    assert torch.allclose(together, apart, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


def test_dropout_drops_whole_feature_maps(net, patches):
    """Equal to MONAI's pieces put together: Dropout3d's masks before a 1x1x1 convolution."""
    net.train()
    net.dropout.generator = torch.Generator().manual_seed(5)
    features, outputs = net(patches)
    generator = torch.Generator().manual_seed(5)
    kept = (torch.rand(1, 2, 1, 4, generator=generator) >= 0.5).float()[0, :, 0] / 0.5
    expected = net.head(features * kept[:, :, None, None, None])
    assert torch.allclose(outputs, expected, atol=1e-5)
    net.eval()
    assert torch.allclose(net(patches)[1], net.head(net.pooled(patches)), atol=1e-5)


def test_a_patch_does_not_depend_on_the_rest_of_its_batch(net, patches):
    net.train()
    with torch.no_grad():
        assert torch.allclose(net.pooled(patches)[:1], net.pooled(patches[:1]), atol=1e-5)


def test_gradients_reach_every_parameter(net, patches):
    net(patches)[1].square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_checkpoint_gives_the_network_back(net, patches, tmp_path):
    content = model_content(net.state_dict(), CLASSES, ARCHITECTURE, {}, "demo-3d", 3)
    save_checkpoint(tmp_path / "epoch_3.pth", content)
    weights, found = load_model(tmp_path / "epoch_3.pth")
    # Placed as `net` is: in another layout some processors' kernels differ in the last bits.
    again = build_network(found["architecture"], found["class_names"])
    again = place_network(again, torch.device("cpu"))
    load_weights(again, weights, tmp_path)
    assert torch.equal(again.eval()(patches)[1], net.eval()(patches)[1])


@pytest.mark.parametrize("change", [{"channels": [4]}, {"in_channels": 0}, {"residual_units": "1"}])
def test_a_strangers_description_is_refused(change):
    with pytest.raises(ValueError):
        check_architecture(ARCHITECTURE | change, "architecture")


def test_weights_of_another_network_are_refused(net, tmp_path):
    weights = {name: value for name, value in net.state_dict().items() if name != "head.weight"}
    content = model_content(weights, CLASSES, ARCHITECTURE, {}, "demo-3d", 3)
    save_checkpoint(tmp_path / "epoch_3.pth", content)
    with pytest.raises(UserError, match="no weights of this 3D U-Net in it"):
        load_model(tmp_path / "epoch_3.pth")


def test_the_supervised_loss_is_half_of_cross_entropy_and_dice():
    """MONAI's sum of both, with and without smoothed labels."""
    draws = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 3, 5, 6, 4, generator=draws)
    labels = torch.randint(3, (2, 5, 6, 4), generator=draws)
    losses = import_3d("monai.losses")
    for smoothing in (0.0, 0.3):
        args = args_parser(["--preset", "demo-3d", "--label_smoothing", str(smoothing)])
        both = losses.DiceCELoss(
            to_onehot_y=True, softmax=True, include_background=False, label_smoothing=smoothing
        )
        ours = Segmentation().supervised_loss(outputs, labels, args)
        torch.testing.assert_close(ours, 0.5 * both(outputs, labels[:, None]))
