"""What every client does alike: receive weights, train locally, remember its optimizer.

What a label is, an image's class or the class of each voxel, is the task's to know; methods work on
rows (M, C) of outputs and do not see it.
"""

import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from dataloaders.dataset import Batch, ImageDataset
from dataloaders.federated import FederatedData, Rehearsal
from networks.models import BATCHNORM_MOMENTUM, Network
from utils.signals import checkpoint, is_noted
from utils.tensors import copy_tensors, copy_weights, generator, net_device, set_tensors


class ClientUpdate(NamedTuple):
    """What a client returns to the server after local training.

    weights: whole state dict, sharing no memory with the network. num_samples: N_k. labeled:
    whether it trained on labels. shared: what else its method lets leave the client, named
    tensors on the CPU. stats: numbers for metrics.csv by their names there; `loss`, the mean
    training loss over the steps, is one of them. shown: like `shared`, but for the figures alone.
    suspects: the data set indices of the images to look at where a number is not finite
    (`StepLog.suspects`). client: whose it is; a server that treats clients apart asks.
    """

    weights: dict[str, torch.Tensor]
    num_samples: int
    labeled: bool
    shared: dict[str, torch.Tensor]
    stats: dict[str, float]
    shown: dict[str, torch.Tensor]
    suspects: tuple[int, ...] = ()
    client: int | None = None


class Task(Protocol):
    """The one object that knows what a label is: asked by whoever reads, trains, scores, reports.

    headline: those of the numbers of `evaluate` that say how good a run is; by the first of them,
    on the validation images, it is judged when to stop and which rate to take.
    """

    headline: tuple[str, ...]

    def place_embedded_data(self, args: Namespace, say: Callable[[str], None]) -> None:
        """Make the data that a preset brings along, and name them in `args`."""

    def load(self, args: Namespace, say: Callable[[str], None]) -> FederatedData:
        """The sets of a run and each client's share; `UserError` for what cannot be used."""

    def dry_run(self, args: Namespace) -> Rehearsal:
        """Check the data as far as that costs little. `UserError` as in `load`."""

    def augmentation(self, args: Namespace) -> object:
        """How training views are made; the data set's `training_batches` takes it."""

    def supervised_loss(
        self, outputs: torch.Tensor, labels: torch.Tensor, args: Namespace
    ) -> torch.Tensor:
        """The loss of a labelled batch, a scalar. outputs (B, C, ...), labels int64 (B, ...)."""

    def confident_labels(
        self,
        net: Network,
        dataset: ImageDataset,
        indices: torch.Tensor,
        args: Namespace,
        until_stopped: Callable[[Iterator], Iterator],
    ) -> object:
        """What `net`, in eval mode, says of the images `indices`, in the form of the data set's own
        labels; IGNORED where its largest probability is below `confidence_threshold`. What takes
        long is passed through `until_stopped`."""

    def evaluate(
        self, networks: Sequence[Network], dataset: ImageDataset, args: Namespace
    ) -> dict[str, float]:
        """Numbers for metrics.csv by name, from networks of the same weights, one per device."""

    def evaluation_line(self, numbers: Mapping[str, float], name: str) -> str:
        """The log's line of what `evaluate` found for the set `name`."""

    def report(
        self, folder: Path, checkpoint: Path, net: Network, data: FederatedData, args: Namespace
    ) -> None:
        """What a finished run leaves for a reader: predictions, tables, figures, REPORT.md."""

    def test_command(self, checkpoint: Path, args: Namespace) -> str:
        """What to type to test a checkpoint on the test images of the run with the flags `args`."""


IGNORED = -100  # the label of an image or voxel that takes no part in a loss


class Stopped(Exception):  # noqa: N818
    """Training was asked to stop; the client's memory is as it was before the round."""


class LocalUpdate:
    """Base of the trainers. `indices` (int64) are the client's images in `dataset`.

    A client remembers its optimizer's moments between rounds; what it remembers changes only when a
    round of local training has finished, and is replaced then, never changed in place.
    """

    remembered_copies = 2  # of the network's parameters, in the state: at most Adam's two moments
    labeled = False  # whether it trains on labels
    student_passes = 1  # forward passes of a step before its backward pass

    def __init__(
        self,
        args: Namespace,
        dataset: ImageDataset,
        indices: torch.Tensor,
        client: int,
        task: Task,
    ):
        self.args = args
        self.task = task
        self.dataset = dataset
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        self.client = client
        self.stop = threading.Event()
        self.optimizer_state: dict | None = None

    @property
    def num_samples(self) -> int:
        """N_k: how many images it has."""
        return len(self.indices)

    def local_epochs(self, round: int) -> int:
        """How often that round goes through its images."""
        return self.args.local_ep

    def state_dict(self) -> dict:
        """What the client remembers between rounds: tensors and plain types only."""
        return {"optimizer": self.optimizer_state}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.optimizer_state = state["optimizer"]

    def batchnorm_momentum(self) -> float:
        """The momentum that this client's training gives BatchNorm's running statistics."""
        return BATCHNORM_MOMENTUM

    def receive(self, net: Network, weights: dict, round: int) -> None:
        """Put the global weights into `net`, in train mode, with this round's dropout draws."""
        set_tensors(net.state_dict(), weights)
        net.train()
        net.dropout.generator = self.generator(round, "dropout", net_device(net))
        net.batchnorm_momentum = self.batchnorm_momentum()

    def generator(self, round: int, purpose: str, device: str | torch.device) -> torch.Generator:
        """This client's own draws of this round, for one purpose."""
        return generator(
            self.args.seed, "client", self.client, "round", round, purpose, device=device
        )

    def learning_rate(self, round: int) -> float:
        """The optimizer's in that round: `unlabeled_lr`, or `base_lr` where that is 0."""
        return self.args.unlabeled_lr or self.args.base_lr

    def build_optimizer(self, net: Network, round: int) -> torch.optim.Optimizer:
        """`--optimizer` with this client's moments of the rounds before, as a copy.

        Each step's gradient is clipped to `--clip_gradients` where that is not 0.
        """
        args, parameters = self.args, list(net.parameters())
        learning_rate = self.learning_rate(round)
        common = {"lr": learning_rate, "weight_decay": args.weight_decay, "fused": True}
        if args.optimizer == "sgd":
            optimizer = torch.optim.SGD(parameters, momentum=args.sgd_momentum, **common)
        else:
            betas = (args.adam_beta1, args.adam_beta2)
            optimizer = torch.optim.Adam(parameters, betas=betas, **common)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(copy_tensors(self.optimizer_state, net_device(net)))
            optimizer.param_groups[0]["lr"] = learning_rate
        if args.clip_gradients:

            def clip(*_: object) -> None:
                torch.nn.utils.clip_grad_norm_(parameters, args.clip_gradients)

            optimizer.register_step_pre_hook(clip)
        return optimizer

    def epochs(
        self,
        num_views: int,
        round: int,
        device: torch.device,
        labels: torch.Tensor | None = None,
        indices: torch.Tensor | None = None,
    ) -> Iterator[tuple[int, Iterator[Batch]]]:
        """(local epoch, its batches), `local_epochs` times; `Stopped` between two steps if asked.

        `labels` (as the data set's own) stand in for those, which labelled clients alone are given.
        `indices` are some of the client's images instead of all.
        """
        if labels is None and self.labeled:
            labels = self.dataset.labels
        draws = self.generator(round, "images", "cpu")
        augmentation = self.task.augmentation(self.args)
        for epoch in range(self.local_epochs(round)):
            batches = self.dataset.training_batches(
                self.indices if indices is None else indices,
                labels,
                self.args.batch_size,
                num_views,
                augmentation,
                draws,
                device,
            )
            yield epoch, self.until_stopped(batches)

    def report(
        self,
        net: Network,
        log: "StepLog",
        shared: Mapping[str, torch.Tensor] | None = None,
        shown: Mapping[str, torch.Tensor] | None = None,
        **stats: float,
    ) -> ClientUpdate:
        """What leaves the client after a round: the weights of `net`, its log's means, and these.

        shared, shown: as in `ClientUpdate`, on any device. stats: more numbers for metrics.csv.
        """
        return ClientUpdate(
            copy_weights(net),
            self.num_samples,
            self.labeled,
            {name: value.to("cpu") for name, value in (shared or {}).items()},
            log.means() | stats,
            {name: value.to("cpu") for name, value in (shown or {}).items()},
            log.suspects(),
            self.client,
        )

    def until_stopped(self, batches: Iterator) -> Iterator:
        """`batches`; raises `Stopped` between two of them if asked to."""
        for batch in batches:
            checkpoint()
            if self.stop.is_set() or is_noted():
                raise Stopped
            yield batch


def take_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step of `optimizer` down the gradient of `loss`, a scalar."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


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
        """Mean of each term over the steps (0 without any), and the seconds since the beginning."""
        rows = torch.stack(self.rows) if self.rows else torch.zeros(1, len(self.names))
        means = rows.mean(dim=0).tolist()
        seconds = time.perf_counter() - self.started
        return dict(zip(self.names, means, strict=True)) | {"seconds": seconds}

    def suspects(self) -> tuple[int, ...]:
        """Data set indices of the images of the first step with a term that is not finite.

        Of the last step where all terms are finite: it was the last to change the weights.
        """
        if not self.rows:
            return ()
        finite = torch.stack(self.rows).isfinite().all(dim=1).tolist()
        step = finite.index(False) if False in finite else -1
        return tuple(self.images[step].tolist())
