"""What each kind of network is in a checkpoint: how it is described, made and recognised."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from networks.models import (
    ATTENTIONS,
    MODES,
    NORMS,
    DenseNet121,
    ImageClassifier,
    Network,
    ResNet18,
)
from networks.unet3d import UNet3d
from utils.schema import anything, choice, mapping, number, record, sequence, text, whole

HEAD = "densenet121.classifier.0.weight"
OLDEST = "densenet121"  # version 0.1 and the released program knew one network and named none
# Of descriptions that say nothing of it.
OLD_DESCRIPTION = {"mode": "U-Ones", "drop_rate": 0.2, "attention": "none"}  # as released


class Kind(NamedTuple):
    """One of `NETWORKS`.

    head: the name of the last layer's weights, (C, ...) with `head_dims` dimensions, which every
    file of it has. check: of a description. build: description and class names -> network with
    random weights. describe: the flags -> description, without the kind's own name.
    """

    network: type[Network]
    title: str
    head: str
    head_dims: int
    check: Callable[[object, str], None]
    build: Callable[[Mapping, Sequence[str]], Network]
    describe: Callable[[Namespace], dict]


def _classifier(network: type[ImageClassifier], title: str, head: str) -> Kind:
    def build(description: Mapping, class_names: Sequence[str]) -> Network:
        mode, norm = description["mode"], description.get("norm", "batch")
        return network(
            len(class_names) - (mode == "U-MultiClass"),
            mode,
            description["drop_rate"],
            description["attention"],
            norm,
        )

    def describe(args: Namespace) -> dict:
        described = {
            "mode": args.label_uncertainty,
            "drop_rate": args.drop_rate,
            "attention": args.attention,
        }
        # As before there was a choice: so are all files that have BatchNorm.
        return described if args.norm == "batch" else described | {"norm": args.norm}

    check = record(
        {
            "mode": choice(*MODES),
            "drop_rate": number(0, 1 - 1e-6),
            "attention": choice(*ATTENTIONS),
        },
        {"network": choice(network.name), "norm": choice(*NORMS)},
    )
    return Kind(network, title, head, 2, check, build, describe)


def _build_unet3d(description: Mapping, class_names: Sequence[str]) -> Network:
    return UNet3d(
        description["in_channels"],
        len(class_names),
        description["channels"],
        description["residual_units"],
        description["drop_rate"],
    )


def _describe_unet3d(args: Namespace) -> dict:
    return {
        "in_channels": args.channels,
        "channels": list(args.unet_channels),
        "residual_units": args.residual_units,
        "drop_rate": args.drop_rate,
    }


UNET3D = record(
    {
        "network": choice("unet3d"),
        "in_channels": whole(1, 64),
        "channels": sequence(whole(1, 4096), 2, 8),
        "residual_units": whole(0, 16),
        "drop_rate": number(0, 1 - 1e-6),
    }
)
NETWORKS = {
    "densenet121": _classifier(DenseNet121, "DenseNet121", HEAD),
    "resnet18": _classifier(ResNet18, "ResNet-18", "resnet18.fc.weight"),
    "unet3d": Kind(UNet3d, "3D U-Net", "head.weight", 5, UNET3D, _build_unet3d, _describe_unet3d),
}


def check_architecture(value: object, place: str) -> None:
    """`Mismatch` unless a file describes a network that this version knows."""
    mapping(text(100), anything, largest=100)(value, place)
    name = value.get("network", OLDEST)
    choice(*NETWORKS)(name, f"{place}/network")
    NETWORKS[name].check(value, place)


def architecture(args: Namespace) -> dict:
    """What `build_network` needs to know of the flags: the network and what it is made of."""
    return {"network": args.network} | NETWORKS[args.network].describe(args)


def build_network(architecture: Mapping, class_names: Sequence[str]) -> Network:
    """The network that `architecture` describes (see there), with random weights.

    `class_names` are those of the data set, "uncertain" of U-MultiClass among them.
    """
    return NETWORKS[architecture["network"]].build(architecture, class_names)
