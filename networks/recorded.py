"""Backbone passes recorded as CUDA graphs: the same kernels, launched together instead of singly.

DenseNet121 launches some 2,000 kernels a step. Where a step's images are few or small, or the
processor is slow, launching takes longer than computing; a recorded pass is launched at once.

In bf16 an H100 gave the plain passes' bits; in fp32 cuDNN may choose other kernels while it is
being recorded.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call


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
        backbone = _Backbone(net)
        self._parameters = list(backbone.parameters())
        names = [name for name, _ in backbone.named_parameters()]
        # A gradient is handed to its parameter on the stream on which the parameter's node of the
        # autograd graph was made. A node of the training's stream cannot be recorded, and one of
        # the recording's would have every step wait for that stream, once a parameter. So recorded
        # are stand-ins on the same memory, whose nodes are the recording's; the parameters' own
        # are made as the training goes.
        stand_ins = [each.detach().requires_grad_(each.requires_grad) for each in self._parameters]

        def features(inputs: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
            return functional_call(backbone, dict(zip(names, values, strict=True)), (inputs,))

        # The input's memory is this pass's alone: the first layer keeps it for the backward pass.
        own = (sample.clone(), *stand_ins)
        # On the sample's device, and back on its stream even where recording fails.
        stream = torch.cuda.current_stream(sample.device) if sample.is_cuda else None
        with torch.cuda.stream(stream):
            self._replay = torch.cuda.make_graphed_callables(features, own, allow_unused_input=True)
        self.shape = sample.shape
        self.free = True

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """The features of `inputs`, which are of the sample's shape; valid until the next call."""
        features = self._replay(inputs, *self._parameters)
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
        self.by_mode: dict[tuple[bool, float | None], list[RecordedPass]] = {}
        net.train()
        for momentum, count in sorted(passes.items()):
            net.batchnorm_momentum = momentum
            # Without BatchNorm all momentums are None, and the longest step decides.
            recorded = self.by_mode.setdefault((True, net.batchnorm_momentum), [])
            while len(recorded) < count:
                recorded.append(RecordedPass(net, training))
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
