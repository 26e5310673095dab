"""The released program as a plain loop, from its description: what ours is measured against.

Every image is opened, resized and augmented when a batch needs it, in the process that trains. An
unlabelled batch makes 13 full passes: one that trains, one of the teacher, 11 under dropout. Every
client has its own deep copy of the network, and FedAvg adds deep copies of state dicts. Nothing
here is shared with the program itself, the settings apart.
"""

import copy
import math
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import densenet121

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TEMPERATURE = 2.0


class ReferenceNet(nn.Module):
    """DenseNet121 with dropout between the pooled features and the classifier."""

    def __init__(self, num_classes: int, drop_rate: float):
        super().__init__()
        self.densenet121 = densenet121(weights=None, drop_rate=0)
        self.densenet121.classifier = nn.Sequential(nn.Linear(1024, num_classes))
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(activations, logits)."""
        features = functional.relu(self.densenet121.features(images))
        activations = functional.adaptive_avg_pool2d(features, (1, 1)).flatten(1)
        return activations, self.densenet121.classifier(self.dropout(activations))


class TwoViews(Dataset):
    """Two augmented views of each file, and its label."""

    def __init__(self, paths: list[Path], labels: list[int], image_size: int):
        self.paths, self.labels = paths, labels
        self.transform = transforms.Compose(
            [
                transforms.Resize((image_size, image_size)),
                transforms.RandomAffine(degrees=10, translate=(0.02, 0.02)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        image = Image.open(self.paths[index]).convert("RGB")
        return self.transform(image), self.transform(image), self.labels[index]


class ReferenceClient:
    """One hospital: its files, its Adam, and its teacher if it has no labels."""

    def __init__(self, args: Namespace, paths: list[Path], labels: list[int], image_size: int):
        self.args = args
        self.data = TwoViews(paths, labels, image_size)
        self.optimizer_state = None
        self.teacher = None
        self.step = 0

    def loader(self) -> DataLoader:
        """The client's batches in a new random order."""
        return DataLoader(self.data, batch_size=self.args.batch_size, shuffle=True)

    def optimizer(self, net: nn.Module, learning_rate: float) -> torch.optim.Adam:
        """Adam with the moments of the rounds before."""
        optimizer = torch.optim.Adam(
            net.parameters(), lr=learning_rate, betas=(0.9, 0.999), weight_decay=5e-4
        )
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
            optimizer.param_groups[0]["lr"] = learning_rate
        return optimizer

    def train_labeled(self, net: nn.Module, batches: Iterable) -> tuple[dict, float, torch.Tensor]:
        """Cross entropy of both views: (weights, mean loss, relation matrix (C, C))."""
        device = next(net.parameters()).device
        net.train()
        optimizer = self.optimizer(net, self.args.labeled_lr_late)
        losses, matrices = [], []
        for first, second, labels in batches:
            first, second, labels = first.to(device), second.to(device), labels.to(device)
            _, logits = net(first)
            _, second_logits = net(second)
            loss = functional.cross_entropy(logits, labels, label_smoothing=0.1)
            loss = loss + functional.cross_entropy(second_logits, labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            with torch.no_grad():
                matrices.append(relation_matrix(logits, labels))
        self.optimizer_state = copy.deepcopy(optimizer.state_dict())
        weights = copy.deepcopy(net.state_dict())
        return weights, sum(losses) / len(losses), sum(matrices) / len(matrices)

    def train_unlabeled(
        self, net: nn.Module, batches: Iterable, epoch: int, target: torch.Tensor
    ) -> tuple[dict, float]:
        """Consistency and relation matching with the matrix `target`: (weights, mean loss)."""
        args = self.args
        device = next(net.parameters()).device
        net.train()
        if self.teacher is None:
            self.teacher = copy.deepcopy(net)
        self.teacher.train()
        optimizer = self.optimizer(net, args.base_lr)
        ramp = math.exp(-5 * (1 - min(epoch, 30) / 30) ** 2)
        losses = []
        for first, second, _ in batches:
            first, second = first.to(device), second.to(device)
            _, logits = net(first)
            with torch.no_grad():
                _, teacher_logits = self.teacher(second)
                passes = torch.stack([net(first)[1] for _ in range(args.mc_passes)])
            average = functional.softmax(passes.mean(dim=0), dim=1)
            entropy = -(average * torch.log(average)).sum(dim=1)
            student = functional.softmax(logits, dim=1)
            confidence, pseudo_labels = student.max(dim=1)
            reliable = torch.nonzero((entropy < 2.0) & (confidence >= 0.3)).flatten()
            consistency = ((student - functional.softmax(teacher_logits, dim=1)) ** 2).sum()
            loss = consistency / args.batch_size
            if len(reliable) > 0:
                matrix = relation_matrix(logits[reliable], pseudo_labels[reliable])
                loss = loss + relation_distance(matrix, target)
            loss = 15 * ramp * loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.update_teacher(net)
            losses.append(loss.item())
        self.optimizer_state = copy.deepcopy(optimizer.state_dict())
        return copy.deepcopy(net.state_dict()), sum(losses) / len(losses)

    def update_teacher(self, net: nn.Module) -> None:
        """teacher = a * teacher + (1 - a) * student, parameter by parameter."""
        alpha = min(1 - 1 / (self.step + 1), 0.99)
        for teacher, student in zip(self.teacher.parameters(), net.parameters(), strict=True):
            teacher.data.mul_(alpha).add_(student.data, alpha=1 - alpha)
        self.step += 1


def relation_matrix(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Rows softmax(mean logits of the class / 2), class by class; uniform where there is none."""
    rows = []
    for label in range(logits.shape[1]):
        members = (labels == label).float()
        mean = (logits * members[:, None]).sum(dim=0) / (members.sum() + 1e-8)
        rows.append(functional.softmax(mean / TEMPERATURE, dim=0))
    return torch.stack(rows)


def relation_distance(matrix: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(KL + KL) / 2, each the mean over the rows."""
    there = functional.kl_div(matrix.log(), target, reduction="batchmean")
    back = functional.kl_div(target.log(), matrix, reduction="batchmean")
    return (there + back) / 2


def average(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of state dicts, entry by entry."""
    mean = copy.deepcopy(states[0])
    for name in mean:
        for state in states[1:]:
            mean[name] += state[name]
        mean[name] = torch.div(mean[name], len(states)).to(states[0][name].dtype)
    return mean
