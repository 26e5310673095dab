"""What every client does alike: receive weights, train locally, remember its optimizer."""

import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import NamedTuple

import torch

from confuse_matrix import RelationMatrix
from dataloaders.augment import Augmentation
from dataloaders.dataset import Batch, ImageDataset
from networks.models import DenseNet121
from utils.tensors import copy_tensors, generator, net_device, set_tensors

BATCHNORM_MOMENTUM = 0.1


class ClientUpdate(NamedTuple):
    """What a client returns to the server after local training.

    weights: whole state dict, sharing no memory with the network. num_samples: N_k. loss: mean
    training loss over the steps. matrix: relation matrix of a labelled client, on the CPU, else
    None. stats: numbers for metrics.csv. pseudo_matrix: what an unlabelled client's relation
    matrix looked like, on the CPU, for the figures only; None otherwise. suspects: the data set
    indices of the images to look at where a number is not finite (`StepLog.suspects`).
    """

    weights: dict[str, torch.Tensor]
    num_samples: int
    loss: float
    matrix: RelationMatrix | None
    stats: dict[str, float]
    pseudo_matrix: RelationMatrix | None = None
    suspects: tuple[int, ...] = ()


class Stopped(Exception):  # noqa: N818
    """Training was asked to stop; the client's memory is as it was before the round."""


class LocalUpdate:
    """Base of the trainers. `indices` (int64) are the client's images in `dataset`.

    A client remembers Adam's moments between rounds; what it remembers changes only when a
    round of local training has finished, and is replaced then, never changed in place.
    """

    remembered_copies = 2  # of the network's parameters, in the state: Adam's two moments
    labeled = False  # whether it trains on labels

    def __init__(self, args: Namespace, dataset: ImageDataset, indices: torch.Tensor, client: int):
        self.args = args
        self.dataset = dataset
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        self.client = client
        self.stop = threading.Event()
        self.optimizer_state: dict | None = None

    def state_dict(self) -> dict:
        """What the client remembers between rounds: tensors and plain types only."""
        return {"optimizer": self.optimizer_state}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.optimizer_state = state["optimizer"]

    def receive(self, net: DenseNet121, weights: dict, round: int, bn_momentum: float) -> None:
        """Put the global weights into `net`, in train mode, with this round's dropout draws."""
        set_tensors(net.state_dict(), weights)
        net.train()
        net.dropout.generator = self.generator(round, "dropout", net_device(net))
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = bn_momentum

    def generator(self, round: int, purpose: str, device: str | torch.device) -> torch.Generator:
        """This client's own draws of this round, for one purpose."""
        return generator(
            self.args.seed, "client", self.client, "round", round, purpose, device=device
        )

    def learning_rate(self, round: int) -> float:
        """Adam's in that round: `unlabeled_lr`, or `base_lr` where that is 0."""
        return self.args.unlabeled_lr or self.args.base_lr

    def build_optimizer(self, net: DenseNet121, round: int) -> torch.optim.Adam:
        """Adam with this client's moments of the rounds before, as a copy."""
        learning_rate = self.learning_rate(round)
        optimizer = torch.optim.Adam(
            net.parameters(),
            lr=learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            weight_decay=self.args.weight_decay,
            fused=True,
        )
        if self.optimizer_state is not None:
            optimizer.load_state_dict(copy_tensors(self.optimizer_state))
            optimizer.param_groups[0]["lr"] = learning_rate
        return optimizer

    def epochs(
        self,
        num_views: int,
        round: int,
        device: torch.device,
        labels: torch.Tensor | None = None,
    ) -> Iterator[tuple[int, Iterator[Batch]]]:
        """(local epoch, its batches), `local_ep` times; `Stopped` between two steps if asked.

        `labels` (int64, one per image of the data set) stand in for the data set's own.
        """
        draws = self.generator(round, "images", "cpu")
        augmentation = Augmentation(self.args.degrees, self.args.translate, self.args.flip)
        for epoch in range(self.args.local_ep):
            batches = self.dataset.training_batches(
                self.indices,
                self.dataset.labels if labels is None else labels,
                self.args.batch_size,
                num_views,
                augmentation,
                draws,
                device,
            )
            yield epoch, self.until_stopped(batches)

    def until_stopped(self, batches: Iterator) -> Iterator:
        """`batches`; raises `Stopped` between two of them if asked to."""
        for batch in batches:
            if self.stop.is_set():
                raise Stopped
            yield batch


class StepLog:
    """Collects the loss terms of every step on the device; one transfer at the end."""

    def __init__(self, *names: str):
        self.names = names
        self.rows: list[torch.Tensor] = []
        self.images: list[torch.Tensor] = []
        self.started = time.perf_counter()

    def add(self, batch: Batch, *values: torch.Tensor) -> None:
        """One step's terms, scalars in the order of `names`, and the batch they come from."""
        self.images.append(batch.indices)
        self.rows.append(torch.stack([value.detach().float() for value in values]))

    def means(self) -> dict[str, float]:
        """Mean of each term over the steps, and the seconds since the client began."""
        means = torch.stack(self.rows).mean(dim=0).tolist()
        seconds = time.perf_counter() - self.started
        return dict(zip(self.names, means, strict=True)) | {"seconds": seconds}

    def suspects(self) -> tuple[int, ...]:
        """Data set indices of the images of the first step with a term that is not finite.

        Of the last step where all terms are finite: it was the last to change the weights.
        """
        finite = torch.stack(self.rows).isfinite().all(dim=1).tolist()
        step = finite.index(False) if False in finite else -1
        return tuple(self.images[step].tolist())
