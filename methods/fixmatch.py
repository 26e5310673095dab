"""FixMatch at the unlabelled clients, FedAvg at the server: the later papers' common baseline.

Sohn et al., FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence, NeurIPS
2020: what the model says with confidence of a weak view is the label of a strong view of the same
image. Here the weak view is every method's own (rotation, shift, flip). The strong one is such a
view, and on it contrast and brightness drawn anew and a square cut out (Cutout): photometry and
erasing in the place of RandAugment's fourteen operations, several of which turn a CT slice's grey
values or a lesion's colour into another class's.
"""

import torch
from torch.nn.functional import cross_entropy

from local_update import ClientUpdate, LocalUpdate, StepLog, take_step
from networks.models import Network
from utils.tensors import net_device, sent


def strong_view(
    images: torch.Tensor, jitter: float, cutout: float, generator: torch.Generator
) -> torch.Tensor:
    """Normalised images (B, 3, S, S) with contrast and brightness changed, and a square cut out.

    Contrast about the image's own mean is a factor from 1 - jitter to 1 + jitter, brightness an
    addition of up to `jitter` standard deviations of the normalisation. The square has a side of up
    to `cutout` times S, may reach over the edge, and becomes 0, the normalisation's mean. All draws
    are uniform, from `generator` (on the CPU).
    """
    count, side = len(images), images.shape[-1]
    drawn = sent(torch.rand(count, 5, generator=generator), images.device)
    contrast = 1 + jitter * (2 * drawn[:, 0, None, None, None] - 1)
    brightness = jitter * (2 * drawn[:, 1, None, None, None] - 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    changed = images * contrast + mean * (1 - contrast) + brightness
    half = drawn[:, 2] * cutout * side / 2
    places = torch.arange(side, device=images.device) + 0.5
    row_inside = (places - drawn[:, 3, None] * side).abs() < half[:, None]  # (B, S)
    column_inside = (places - drawn[:, 4, None] * side).abs() < half[:, None]
    hole = row_inside[:, None, :, None] & column_inside[:, None, None, :]
    return changed.masked_fill(hole, 0.0)


def fixmatch_loss(
    weak_logits: torch.Tensor, strong_logits: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """FixMatch's eq. 4, and which images took part: logits (B, C) each -> (scalar, bool (B,)).

    The cross entropy of the strong view against the weak view's most probable class, summed over
    the images whose largest weak probability reaches `threshold`, divided by all B. No gradient
    reaches the weak view.
    """
    confidence, labels = weak_logits.detach().softmax(dim=1).max(dim=1)
    confident = confidence >= threshold
    losses = cross_entropy(strong_logits, labels, reduction="none")
    return (losses * confident).mean(), confident


class FixMatchLocalUpdate(LocalUpdate):
    """Trains without labels: `--fixmatch_weight` times `fixmatch_loss`, from its first round on.

    Both views pass the network as one batch, so that BatchNorm sees them together and once.
    """

    def train(
        self,
        net: Network,
        weights: dict[str, torch.Tensor],
        round: int,
        shared: dict[str, torch.Tensor],
    ) -> ClientUpdate:
        """One round of local training from `weights`; `shared` is not used."""
        args = self.args
        device = net_device(net)
        log = StepLog("loss", "reliable_share")
        self.receive(net, weights, round)
        optimizer = self.build_optimizer(net, round)
        draws = self.generator(round, "strong view", "cpu")

        for _, batches in self.epochs(2, round, device):
            for batch in batches:
                weak, other = batch.views
                strong = strong_view(other, args.fixmatch_jitter, args.fixmatch_cutout, draws)
                logits = net(torch.cat([weak, strong]))[1]
                of_weak, of_strong = logits.chunk(2)
                matched, confident = fixmatch_loss(of_weak, of_strong, args.fixmatch_threshold)
                loss = args.fixmatch_weight * matched
                take_step(optimizer, loss)
                log.add(batch, loss, confident.float().mean())

        self.optimizer_state = optimizer.state_dict()
        return self.report(net, log, learning_rate=self.learning_rate(round))
