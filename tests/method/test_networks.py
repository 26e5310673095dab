"""DenseNet121: names of the released program, torchvision's numbers, weights from disk."""

import copy
import re

import pytest
import torch
from torchvision.models import densenet121, resnet18

from networks.attention import SelfAttention
from networks.densenet import find_imagenet_weights, load_imagenet_weights
from networks.devices import place_network
from networks.kinds import build_network
from networks.models import DenseNet121, ResNet18, SeededDropout
from networks.saved import load_model, load_weights, model_content, starting_weights
from tests.helpers.small_clients import assert_identical
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
ARCHITECTURE = {"network": "densenet121", "mode": "U-Ones", "drop_rate": 0.2, "attention": "none"}


@pytest.fixture(scope="module")
def net() -> DenseNet121:
    torch.manual_seed(0)
    return DenseNet121(5, "U-Ones", 0.2)


@pytest.fixture(scope="module")
def spare() -> DenseNet121:
    """A network to load weights into."""
    torch.manual_seed(9)
    return build_network(ARCHITECTURE, CLASSES)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- names and shapes


def test_state_dict_is_the_released_programs(net):
    state = net.state_dict()
    names = list(state)
    assert len(names) == 727
    assert names[0] == "densenet121.features.conv0.weight"
    assert names[-2:] == ["densenet121.classifier.0.weight", "densenet121.classifier.0.bias"]
    assert state["densenet121.classifier.0.weight"].shape == (5, 1024)
    theirs = densenet121(weights=None).features.state_dict()
    assert names[:-2] == [f"densenet121.features.{name}" for name in theirs]


def test_outputs_are_activations_and_logits(net, images):
    activations, logits = net(images)
    assert activations.shape == (3, 1024) and logits.shape == (3, 5)
    assert (activations >= 0).all()  # behind the last ReLU


@pytest.mark.parametrize(("mode", "outputs"), [("U-Ones", 5), ("U-Zeros", 5), ("U-MultiClass", 6)])
def test_modes(mode, outputs):
    assert DenseNet121(5, mode).densenet121.classifier[0].out_features == outputs


def test_unknown_choices_are_refused():
    for arguments in ((5, "U-Twos"), (5, "U-Ones", 1.0), (5, "U-Ones", 0.2, "cross")):
        with pytest.raises(ValueError):
            DenseNet121(*arguments)


# ---- torchvision's numbers


def test_eval_outputs_equal_torchvisions(net, images):
    reference = densenet121(weights=None, num_classes=5)
    reference.features.load_state_dict(net.densenet121.features.state_dict())
    reference.classifier.load_state_dict(net.densenet121.classifier[0].state_dict())
    net.eval(), reference.eval()
    with torch.no_grad():
        activations, logits = net(images)
        expected = reference(images)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(reference.classifier(activations), expected)
    net.train()


def test_training_passes_give_torchvisions_numbers(images):
    """BatchNorm's statistics and counts to the bit; gradients may be added up in another layout."""
    torch.manual_seed(3)
    ours, theirs = DenseNet121(5), densenet121(weights=None)
    theirs.features.load_state_dict(ours.densenet121.features.state_dict())
    for _ in range(2):
        features = ours(images)[0]
        expected = torch.nn.functional.relu(theirs.features(images)).mean(dim=(2, 3))
        assert torch.equal(features, expected)
        features.square().sum().backward(), expected.square().sum().backward()
    for one, other in zip(
        ours.densenet121.features.parameters(), theirs.features.parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
    wanted = theirs.features.state_dict()
    assert_identical(dict(ours.densenet121.features.state_dict()), dict(wanted))
    assert wanted["norm5.num_batches_tracked"] == 2


def test_channels_last_changes_speed_only(net, spare, images):
    moved = place_network(copy.deepcopy(spare), torch.device("cpu")).eval()
    moved.load_state_dict(net.state_dict())
    assert moved.densenet121.features.conv0.weight.is_contiguous(memory_format=torch.channels_last)
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(images)[1], moved(images)[1], rtol=1e-4, atol=1e-4)
    net.train()


# ---- dropout


def test_dropout_stands_between_features_and_classifier_alone(net):
    assert [m for m in net.modules() if isinstance(m, torch.nn.Dropout)] == []
    assert sum(isinstance(m, SeededDropout) for m in net.modules()) == 1
    assert {m.drop_rate for m in net.modules() if hasattr(m, "drop_rate")} == {0, 0.2}
    features = net.densenet121.features
    assert all(layer.drop_rate == 0 for layer in features.modules() if hasattr(layer, "drop_rate"))


def test_dropout_keeps_the_mean_and_drops_the_share():
    dropout = SeededDropout(0.2)
    dropout.generator = torch.Generator().manual_seed(0)
    out = dropout(torch.ones(1000, 1000))
    assert sorted(set(out.flatten().tolist())) == [0.0, 1.25]
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.002)  # five sigma
    dropout.generator = torch.Generator().manual_seed(0)
    assert torch.equal(dropout(torch.ones(1000, 1000)), out)
    assert not torch.equal(dropout(torch.ones(1000, 1000)), out)


def test_dropout_is_off_in_eval_mode_and_at_rate_zero():
    values = torch.randn(5, 7)
    assert torch.equal(SeededDropout(0.9).eval()(values), values)
    assert torch.equal(SeededDropout(0.0)(values), values)


# ---- attention


@pytest.fixture(scope="module")
def attentive(net) -> DenseNet121:
    attentive = build_network(ARCHITECTURE | {"attention": "self"}, CLASSES)
    load_weights(attentive, net.state_dict(), "plain.pth")
    return attentive


def test_fresh_attention_changes_nothing_but_learns(net, attentive, images):
    net.eval(), attentive.eval()
    activations, logits = attentive(images)
    with torch.no_grad():
        plain_activations, plain_logits = net(images)
    assert torch.equal(activations, plain_activations) and torch.equal(logits, plain_logits)
    logits.square().sum().backward()
    assert attentive.attention.attend.out_proj.weight.grad.abs().sum() > 0
    net.train(), attentive.train()


def test_attention_looks_at_other_positions():
    layer = SelfAttention(16, num_heads=2)
    torch.nn.init.normal_(layer.attend.out_proj.weight)
    features = torch.randn(1, 16, 2, 2)
    changed = features.clone()
    changed[0, :, 1, 1] *= -1
    difference = (layer(changed) - layer(features))[0, :, 0, 0]
    assert difference.abs().max() > 1e-4


def test_weights_with_attention_do_not_fit_a_network_without(net, attentive):
    with pytest.raises(UserError) as error:
        load_weights(net, attentive.state_dict(), "new.pth")
    assert "new.pth" in one_line(error) and "attention." in one_line(error)


# ---- checkpoints of the released program


@pytest.mark.parametrize("form", ["plain", "wrapped", "old names"])
def test_checkpoint_of_the_released_program_loads(net, spare, tmp_path, form):
    content = dict(net.state_dict())
    if form == "wrapped":
        content = {"state_dict": {f"module.{name}": value for name, value in content.items()}}
    if form == "old names":  # as PyTorch before 0.4 wrote them
        content = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value
            for name, value in content.items()
            if not name.endswith("num_batches_tracked")
        }
        assert "densenet121.features.denseblock1.denselayer1.norm.1.weight" in content
    path = tmp_path / "theirs.pth"
    torch.save(content, path)
    loaded, about = load_model(path, CLASSES)
    assert about["class_names"] == list(CLASSES)
    assert about["architecture"] == ARCHITECTURE
    torch.nn.init.zeros_(spare.densenet121.classifier[0].weight)
    load_weights(spare, loaded, path)
    for name, value in spare.state_dict().items():
        assert torch.equal(value, net.state_dict()[name])


def test_own_checkpoint_knows_its_classes(net, tmp_path):
    path = tmp_path / "epoch_3.pth"
    save_checkpoint(path, {"state_dict": net.state_dict(), "class_names": list(CLASSES)})
    assert load_model(path)[1]["class_names"] == list(CLASSES)
    with pytest.raises(UserError) as error:
        load_model(path, ("a", "b"))
    assert "made for the classes epidural" in one_line(error)


@pytest.mark.parametrize(
    ("content", "names", "message"),
    [
        ({"weights": torch.zeros(1)}, CLASSES, "no weights of this DenseNet121"),
        ({"state_dict": {}}, CLASSES, "no weights of this DenseNet121"),
        ({"densenet121.classifier.0.weight": torch.zeros(4, 1024)}, CLASSES, "4 outputs, but 5"),
        ({"densenet121.classifier.0.weight": torch.zeros(5, 1024)}, None, "no class names"),
        ([torch.zeros(1)], CLASSES, "holds a list"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, names, message):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(UserError) as error:
        load_model(path, names)
    assert message in one_line(error) and str(path) in one_line(error)


def test_weights_of_another_shape_are_refused(net):
    weights = net.state_dict()
    name = "densenet121.features.conv0.weight"
    with pytest.raises(UserError) as error:
        load_weights(net, weights | {name: torch.zeros(2, 2)}, "odd.pth")
    assert name in one_line(error)
    with pytest.raises(UserError) as error:
        load_weights(net, {k: v for k, v in weights.items() if k != name}, "odd.pth")
    assert name in one_line(error)


# ---- ImageNet weights


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """As the published file: 1000 classes, old-style names, no step counters."""
    torch.manual_seed(2)
    state = densenet121(weights=None).state_dict()
    return {
        re.sub(r"(denselayer\d+)\.(norm|conv)(\d)", r"\1.\2.\3", name): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


def test_published_imagenet_file_loads(spare, published, tmp_path):
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    path = tmp_path / "densenet121-a639ec97.pth"
    torch.save(published, path)
    head = spare.densenet121.classifier[0].weight.clone()
    spare.densenet121.features.norm5.num_batches_tracked += 7
    load_imagenet_weights(spare.densenet121, path)
    state = spare.state_dict()
    for name, value in published.items():
        if name.startswith("features."):
            modern = re.sub(r"(norm|conv)\.(\d)", r"\1\2", name)
            assert torch.equal(state[f"densenet121.{modern}"], value)
    assert torch.equal(spare.densenet121.classifier[0].weight, head)
    assert state["densenet121.features.norm5.num_batches_tracked"].item() == 0


def test_modern_imagenet_file_loads(spare, tmp_path):
    torch.manual_seed(3)
    theirs = densenet121(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "densenet121.pth")
    load_imagenet_weights(spare.densenet121, find_imagenet_weights(tmp_path))
    for name, value in theirs.features.state_dict().items():
        assert torch.equal(spare.densenet121.features.state_dict()[name], value)


def test_both_file_names_are_found_and_none_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        find_imagenet_weights(tmp_path)
    message = one_line(error)
    assert str(tmp_path) in message and "densenet121-a639ec97.pth" in message
    assert "--pretrained 0" in message
    for name in ("densenet121.pth", "densenet121-a639ec97.pth"):  # torchvision's name wins
        (tmp_path / name).touch()
        assert find_imagenet_weights(tmp_path).name == name


@pytest.mark.parametrize(
    "content", ["text", torch.zeros(3), {}, {"features.conv0.weight": torch.zeros(2, 2)}]
)
def test_damaged_imagenet_file_is_one_line(spare, tmp_path, content):
    path = tmp_path / "densenet121.pth"
    path.write_text(content) if content == "text" else torch.save(content, path)
    with pytest.raises(UserError) as error:
        load_imagenet_weights(spare.densenet121, path)
    assert str(path) in one_line(error)


# ---- ResNet-18, and group normalisation


def test_resnet18_is_torchvisions_up_to_the_head():
    torch.manual_seed(5)
    net, theirs = ResNet18(3, drop_rate=0.0), resnet18(weights=None, num_classes=3)
    theirs.load_state_dict(net.resnet18.state_dict())
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        features, logits = net.train(mode)(images)
        assert features.shape == (4, 512)
        torch.testing.assert_close(logits, theirs.train(mode)(images))


def test_published_resnet_loads_but_for_its_head(tmp_path):
    torch.manual_seed(6)
    theirs = resnet18(weights=None)
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(theirs.state_dict(), path)
    assert find_imagenet_weights(tmp_path, "resnet18") == path
    net = ResNet18(3)
    head = net.head_layer.weight.clone()
    load_imagenet_weights(net.resnet18, path)
    assert torch.equal(net.resnet18.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert torch.equal(net.head_layer.weight, head)
    with pytest.raises(UserError, match=r"not the weights of a DenseNet121: Missing"):
        load_imagenet_weights(DenseNet121(3).densenet121, path)


@pytest.mark.parametrize("network", ["densenet121", "resnet18"])
def test_group_norm_knows_no_batch(network, tmp_path):
    description = {"network": network, "mode": "U-Ones", "drop_rate": 0.0, "attention": "none"}
    net = build_network(description | {"norm": "group"}, ["a", "b"]).train()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    assert list(net.buffers()) == [] and net.batchnorm_momentum is None
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    alone, together = net(images[:1])[1], net(images)[1]
    torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-5)
    plain = build_network(description, ["a", "b"]).train()
    assert not torch.allclose(plain(images[:2])[1][:1], plain(images)[1][:1], rtol=1e-2)


@pytest.mark.parametrize("extra", [{}, {"norm": "group"}])
def test_a_file_says_which_network_it_holds(extra, tmp_path):
    description = {"network": "resnet18", "mode": "U-Ones", "drop_rate": 0.2, "attention": "none"}
    description |= extra
    net = build_network(description, ["a", "b"])
    path = tmp_path / "model.pth"
    torch.save(model_content(net.state_dict(), ("a", "b"), description, {}, "rscfed", 3), path)
    weights, content = load_model(path)
    again = build_network(content["architecture"], ["a", "b"])
    load_weights(again, weights, path)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(net.eval()(images)[1], again.eval()(images)[1])
    with pytest.raises(UserError, match="made with --network resnet18, this run has --net"):
        starting_weights(path, ("a", "b"), description | {"network": "densenet121"})
