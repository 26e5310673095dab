"""Backbone passes recorded as CUDA graphs: the same kernels, launched together instead of singly.

DenseNet121 launches some 2,000 kernels a step. Where a step's images are few or small, or the
processor is slow, launching takes longer than computing; a recorded pass is launched at once.

In bf16 an H100 gave the plain passes' bits; in fp32 cuDNN chooses other kernels while it is being
recorded, and the numbers agree to rounding.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge


class _Backbone(nn.Module):
    """What is recorded of a network: inputs -> features."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net.plain_features(inputs)


class RecordedPass:
    """One forward pass, and its backward pass where gradients are kept, on memory of its own.

    Until the backward pass has run another forward pass would overwrite what it needs: the pass
    is not `free`.
    """

    def __init__(self, net: nn.Module, sample: torch.Tensor):
        self._replay = torch.cuda.make_graphed_callables(
            _Backbone(net), (sample,), allow_unused_input=True
        )
        self.shape = sample.shape
        self.free = True

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """The features of `inputs`, which are of the sample's shape; valid until the next call."""
        features = self._replay(inputs)
        if features.requires_grad:
            self.free = False
            features.register_hook(self._begin_backward)
        return features

    def _begin_backward(self, gradient: torch.Tensor) -> None:
        self.free = True


class RecordedPasses:
    """The recorded passes of a network: in train mode for each momentum of BatchNorm, which a
    recording takes for a constant, and in eval mode.

    training, evaluation: sample inputs. passes: by momentum, how many forward passes a step makes
    before its backward pass. The network's weights and statistics are changed; whoever records
    restores them.
    """

    def __init__(
        self,
        net: nn.Module,
        training: torch.Tensor,
        evaluation: torch.Tensor | None,
        passes: Mapping[float, int],
    ):
        # A gradient is handed to its parameter on the stream that was current when the parameter's
        # node of the autograd graph was made. Made by the recording, on a stream of its own, it
        # would have every step wait for that stream, once a parameter.
        self._nodes = [get_gradient_edge(each) for each in net.parameters() if each.requires_grad]
        self.by_mode: dict[tuple[bool, float | None], list[RecordedPass]] = {}
        net.train()
        for momentum, count in sorted(passes.items()):
            net.batchnorm_momentum = momentum
            recorded = [RecordedPass(net, training) for _ in range(count)]
            self.by_mode[True, net.batchnorm_momentum] = recorded
        if evaluation is not None:
            net.eval()
            with torch.no_grad():
                self.by_mode[False, net.batchnorm_momentum] = [RecordedPass(net, evaluation)]

    def find(self, net: nn.Module, inputs: torch.Tensor) -> RecordedPass | None:
        """A free pass for `inputs` in the network's present mode, if one was recorded.

        In eval mode nothing is updated, so any momentum will do; gradients are not kept there.
        """
        if not net.training and torch.is_grad_enabled():
            return None
        for (training, momentum), recorded in self.by_mode.items():
            if training == net.training and (not training or momentum == net.batchnorm_momentum):
                for one in recorded:
                    if one.free and one.shape == inputs.shape:
                        return one
        return None
