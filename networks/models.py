"""The networks that clients train: what all have alike, and those of images."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from networks.attention import SelfAttention
from networks.casting import CAST_LAYERS, cast_together
from networks.densenet import (
    build_densenet121,
    find_imagenet_weights,
    load_imagenet_weights,
)
from networks.recorded import RecordedPasses
from options import ATTENTIONS, NORMS
from utils.errors import UserError

BATCHNORM_MOMENTUM = 0.1  # PyTorch's own
GROUPS = 32
MODES = ("U-Ones", "U-Zeros", "U-MultiClass")


class SeededDropout(nn.Module):
    """Dropout whose draws come from a generator of the caller's, on the input's device.

    With `generator` None it draws from torch's global generator. Identity in eval mode.
    """

    def __init__(self, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate
        self.generator: torch.Generator | None = None

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_rate == 0:
            return activations
        noise = torch.rand(activations.shape, generator=self.generator, device=activations.device)
        return activations * (noise >= self.drop_rate) / (1 - self.drop_rate)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, but that its count of batches is left to the network: a launch of its own for each
    layer and pass would be 121 a pass of DenseNet121, and one for all of them does."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(
            maps,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )


class Network(nn.Module):
    """A backbone, one dropout and a head: what a trainer asks of the network it is given.

    Children give `plain_features` (inputs -> features in float32) and `classify`; the dropout
    between the two is the only one, so that T stochastic passes share one run of the backbone.
    """

    def __init__(self, drop_rate: float):
        super().__init__()
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate lies in [0, 1), not {drop_rate}")
        self.dropout = SeededDropout(drop_rate)
        self.autocast_dtype: torch.dtype | None = None
        self._compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._compiled_sizes: tuple[int, ...] = ()  # of batches in eval and in train mode
        self._compile_options: dict = {}
        self._recorded: RecordedPasses | None = None
        self._twin: list[Network] = []  # in a list: a submodule would enter the state dict
        self._batchnorms: list[nn.BatchNorm2d] | None = None  # likewise; found at the first use
        self._cast_layers: list[nn.Module] | None = None  # likewise

    @property
    def batchnorm_momentum(self) -> float | None:
        """The share of a batch in BatchNorm's running statistics, one for all its layers; None
        where there are none."""
        return next((module.momentum for module in self.batchnorms()), None)

    @batchnorm_momentum.setter
    def batchnorm_momentum(self, momentum: float | None) -> None:
        for module in self.batchnorms():
            module.momentum = momentum

    def batchnorms(self) -> Sequence[nn.BatchNorm2d]:
        """Its BatchNorm layers; looked for once, since that takes longer than to count them all."""
        if self._batchnorms is None:
            self._batchnorms = [each for each in self.modules() if isinstance(each, nn.BatchNorm2d)]
        return self._batchnorms

    def _count_batch(self) -> None:
        counts = [
            norm.num_batches_tracked for norm in self.batchnorms() if isinstance(norm, BatchNorm2d)
        ]
        if counts:
            torch._foreach_add_(counts, 1)

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """The backbone's precision, for the block: `autocast_dtype`, its weights cast in one
        launch. A compiler casts them itself."""
        if self.autocast_dtype is None:
            yield
            return
        together = nullcontext()
        if not torch.compiler.is_compiling() and (layers := self.cast_layers()):
            together = cast_together(layers, self.autocast_dtype)
        with torch.autocast(device.type, dtype=self.autocast_dtype), together:
            yield

    def cast_layers(self) -> Sequence[nn.Module]:
        """The layers below the head whose weights a pass in another precision casts."""
        if self._cast_layers is None:
            found = [each for each in self.modules() if isinstance(each, CAST_LAYERS)]
            self._cast_layers = [each for each in found if each is not self.head_layer]
        return self._cast_layers

    @classmethod
    def find_published(cls) -> Path:
        """The file of published weights of the backbone; `UserError` where there is none."""
        raise UserError(f"{cls.__name__} has no published weights; give --pretrained 0")

    def load_imagenet(self) -> None:
        """Load published weights of the backbone; `UserError` where there are none."""
        self.find_published()

    def twin(self) -> "Network":
        """A second network beside this one, for a teacher: made at the first call, then the same.

        Its parameters take no gradient, and its dropout has no generator yet.
        """
        if not self._twin:
            nothing = {id(self.dropout.generator): None}  # a generator cannot be copied
            twin = copy.deepcopy(self, nothing).requires_grad_(False)
            twin.compile_backbone(*self._compiled_sizes, **self._compile_options)
            self._twin.append(twin)
        return self._twin[0]

    def compile_backbone(self, *batch_sizes: int, **options) -> None:
        """Compile the backbone for batches of two sizes, in eval and in train mode.

        Batches of other sizes run as they are.

        `options` go to `torch.compile`; the work is done at the first batch of each mode. No sizes
        take it back.
        """
        self._compiled_sizes, self._compile_options = batch_sizes, options
        compiled = (
            torch.compile(self.plain_features, dynamic=False, **options) if batch_sizes else None
        )
        self._compiled = compiled
        for twin in self._twin:
            twin.compile_backbone(*batch_sizes, **options)

    def record_backbone(
        self, training: torch.Tensor, evaluation: torch.Tensor, passes: Mapping[float, int]
    ) -> None:
        """Record the backbone's passes, and the twin's, on a GPU: see `RecordedPasses`.

        Inputs of other shapes than these two samples run as they are. Weights and statistics are
        changed by it.
        """
        twin = self.twin()
        self._recorded = RecordedPasses(self, training, evaluation, passes)
        twin._recorded = RecordedPasses(twin, training, None, {twin.batchnorm_momentum: 1})

    def forget_recorded(self) -> None:
        """Run every pass as it is again, and free the memory of what was recorded."""
        for net in (self, *self._twin):
            net._recorded = None

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """In which order `device` is fastest on this network's weights and inputs."""
        return torch.channels_last

    @property
    def head_layer(self) -> nn.Module:
        """The layer that gives the outputs; it has a weight and a bias."""
        raise NotImplementedError

    def plain_features(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (B, ...) -> features in float32, before dropout, kernel by kernel."""
        raise NotImplementedError

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """features (..., F, ...) -> outputs (..., C, ...); draws a fresh dropout mask."""
        raise NotImplementedError

    def stochastic(self, features: torch.Tensor, passes: int) -> torch.Tensor:
        """Outputs (T, B, C, ...) of `passes` draws of the dropout over the same features."""
        return self.classify(features.expand(passes, *features.shape))

    def pooled(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (B, ...) -> features in float32, before dropout; recorded or compiled where it was
        prepared."""
        if self.training:
            self._count_batch()
        if self._recorded and (recorded := self._recorded.find(self, inputs)):
            return recorded(inputs)
        prepared = self._compiled and len(inputs) == self._compiled_sizes[self.training]
        return self._compiled(inputs) if prepared else self.plain_features(inputs)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """inputs (B, ...) -> features, and outputs (B, C) or, for voxels, (B, C, D, H, W)."""
        features = self.pooled(inputs)
        return features, self.classify(features)


class ImageClassifier(Network):
    """A backbone of images with one dropout between the pooled features and a linear head.

    out_size: number of classes in the label file.
    mode: what a label of -1 means; "U-MultiClass" adds one output for the class "uncertain".
    drop_rate: of the dropout before the head, in [0, 1).
    attention: "self" puts one self-attention layer over the last feature map.
    norm: "group" has group normalisation where the backbone has BatchNorm.

    Children build the backbone, with a head of `num_outputs`, as one of their modules.
    """

    name: str  # as torchvision calls it
    num_features: int

    def __init__(
        self,
        out_size: int,
        mode: str = "U-Ones",
        drop_rate: float = 0.2,
        attention: str = "none",
        norm: str = "batch",
    ):
        super().__init__(drop_rate)
        for value, choices in ((mode, MODES), (attention, ATTENTIONS), (norm, NORMS)):
            if value not in choices:
                raise ValueError(f"one of {choices} is wanted, not {value!r}")
        self.num_outputs = out_size + (mode == "U-MultiClass")
        self.build_backbone()
        use_norm(self, norm)
        attends = attention == "self"
        self.attention = SelfAttention(self.num_features) if attends else nn.Identity()

    def build_backbone(self) -> None:
        """Add the backbone and its head as modules, with random weights."""
        raise NotImplementedError

    def backbone_map(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> the backbone's last feature map (B, F, h, w)."""
        raise NotImplementedError

    @classmethod
    def find_published(cls) -> Path:
        """The file of ImageNet weights: see `find_imagenet_weights`."""
        return find_imagenet_weights(network=cls.name)

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W), ImageNet-normalised -> last feature map (B, F, H/32, W/32)."""
        with self.autocast(images.device):
            return self.attention(self.backbone_map(images))

    def plain_features(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> activations (B, F) in float32, before dropout."""
        return self.feature_map(images).float().mean(dim=(2, 3))

    def classify(self, activations: torch.Tensor) -> torch.Tensor:
        """activations (..., F) -> logits (..., num_outputs); draws a fresh dropout mask."""
        return self.head_layer(self.dropout(activations))


class DenseNet121(ImageClassifier):
    """The paper's: DenseNet121, 1024 features.

    The state dict's names are those of the released program: `densenet121.features.*`,
    `densenet121.classifier.0.weight` and `.bias` (727 entries), and `attention.*` if there is one.
    """

    name = "densenet121"
    num_features = 1024

    def build_backbone(self) -> None:
        """torchvision's."""
        self.densenet121 = build_densenet121(self.num_outputs)

    def load_imagenet(self) -> None:
        """Load ImageNet weights from models/hub/checkpoints; `UserError` where there are none."""
        load_imagenet_weights(self.densenet121, self.find_published())

    @property
    def head_layer(self) -> nn.Module:
        """The linear layer behind the dropout."""
        return self.densenet121.classifier[0]

    def backbone_map(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> (B, 1024, H/32, W/32)."""
        return functional.relu(self.densenet121.features(images))


class ResNet18(ImageClassifier):
    """torchvision's ResNet-18, 512 features: the network of the later methods' own papers."""

    name = "resnet18"
    num_features = 512

    def build_backbone(self) -> None:
        """torchvision's, its average pooling unused."""
        self.resnet18 = resnet18(weights=None, num_classes=self.num_outputs)

    def load_imagenet(self) -> None:
        """Load ImageNet weights from models/hub/checkpoints; `UserError` where there are none."""
        load_imagenet_weights(self.resnet18, self.find_published())

    @property
    def head_layer(self) -> nn.Module:
        """The linear layer behind the dropout."""
        return self.resnet18.fc

    def backbone_map(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> (B, 512, H/32, W/32)."""
        net = self.resnet18
        maps = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return net.layer4(net.layer3(net.layer2(net.layer1(maps))))


def use_norm(module: nn.Module, norm: str) -> None:
    """Put `norm` in the place of every nn.BatchNorm2d below `module`, fresh.

    "batch": the same, counted by the network. "group": group normalisation (Wu and He, ECCV 2018;
    32 groups), which keeps no statistics that clients could disagree about.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            use_norm(child, norm)
        elif norm == "group":
            setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))
        else:
            setattr(module, name, BatchNorm2d(child.num_features, child.eps, child.momentum))
