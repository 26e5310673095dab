"""One class per image: the paper's task."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, softmax

from dataloaders.augment import Augmentation
from dataloaders.dataset import ImageDataset
from dataloaders.federated import FederatedData, Rehearsal, dry_run, load_federated_data
from dataloaders.phantom.embedded import place_embedded_data
from local_update import IGNORED
from networks.devices import evaluation_batch_size
from networks.models import Network
from predict.card import report_run, test_command
from predict.inference import predict_on_all
from utils.metrics.numbers import evaluation_numbers
from utils.tables.log_lines import evaluation_line
from utils.tensors import net_device


class Classification:
    """A label is one class per image. See `local_update.Task` for what each method promises."""

    headline = ("auroc", "accuracy", "f1")

    def place_embedded_data(self, args: Namespace, say: Callable[[str], None]) -> None:
        """Synthetic head CT."""
        place_embedded_data(args, say)

    def load(self, args: Namespace, say: Callable[[str], None]) -> FederatedData:
        """Images from label files and a folder, or from a MedMNIST file."""
        return load_federated_data(args, say)

    def dry_run(self, args: Namespace) -> Rehearsal:
        """Tables, headers of the images, and who would hold what."""
        return dry_run(args)

    def augmentation(self, args: Namespace) -> Augmentation:
        """Rotation, shift and flip, as the released program has them."""
        return Augmentation(args.degrees, args.translate, args.flip)

    def supervised_loss(
        self, outputs: torch.Tensor, labels: torch.Tensor, args: Namespace
    ) -> torch.Tensor:
        """Cross entropy (eq. 7, left), smoothed as the flags say; outputs (B, C), labels (B,)."""
        return cross_entropy(outputs, labels, label_smoothing=args.label_smoothing)

    def confident_labels(
        self,
        net: Network,
        dataset: ImageDataset,
        indices: torch.Tensor,
        args: Namespace,
        until_stopped: Callable[[Iterator], Iterator],
    ) -> torch.Tensor:
        """int64, one per image of the data set; IGNORED for the images of others, too."""
        probabilities = self.probabilities(net, dataset, indices, args, until_stopped)
        confidence, classes = probabilities.max(dim=1)
        chosen = classes.masked_fill(confidence < args.confidence_threshold, IGNORED)
        labels = torch.full((len(dataset),), IGNORED)
        labels[indices] = chosen.cpu()
        return labels

    def probabilities(
        self,
        net: Network,
        dataset: ImageDataset,
        indices: torch.Tensor,
        args: Namespace,
        until_stopped: Callable[[Iterator], Iterator],
    ) -> torch.Tensor:
        """float32 (N, C) on the device of `net`, in eval mode: the images `indices`, in order."""
        device = net_device(net)
        size = evaluation_batch_size(args.batch_size, dataset.input_shape, device)
        with torch.no_grad():
            batches = until_stopped(dataset.evaluation_batches(indices, size, device))
            return torch.cat([softmax(net(images)[1], dim=1) for images in batches])

    def evaluate(
        self, networks: Sequence[Network], dataset: ImageDataset, args: Namespace
    ) -> dict[str, float]:
        """AUROC and the metrics at the threshold, averaged over the classes."""
        device = net_device(networks[0])
        batch_size = evaluation_batch_size(args.batch_size, dataset.input_shape, device)
        probabilities = predict_on_all(networks, dataset, batch_size)
        return evaluation_numbers(dataset.labels.numpy(), probabilities, args.threshold)

    def evaluation_line(self, numbers: Mapping[str, float], name: str) -> str:
        """`TEST AUROC: ...`, as the published logs have it."""
        shown = ("auroc", "accuracy", "f1", "sensitivity", "specificity")
        return evaluation_line(*(numbers[key] for key in shown), name.upper())

    def report(
        self, folder: Path, checkpoint: Path, net: Network, data: FederatedData, args: Namespace
    ) -> None:
        """Predictions for the test images, tables, figures, Grad-CAM, REPORT.md."""
        report_run(folder, checkpoint, net, data.test, args)

    def test_command(self, checkpoint: Path, args: Namespace) -> str:
        """`python test.py ...` with the run's own test images."""
        return test_command(checkpoint, args)
