"""The lines of log.txt: the only place that says how one is worded and how it is recognised.

Every function below returns the message of one log record; the logger puts `[hh:mm:ss.mmm] ` in
front of it. A client's line is written when the server hands it the weights, before it trains.
`RECORD` finds the same lines again in a text (utils/log_reader.py makes runs of them).
"""

import argparse
import re
from collections.abc import Iterable

CLIENT_RULE = "--"
ENDED_BY = "--patience"  # a note's beginning: the run has ended, though there were rounds to do
SIDE_BY_SIDE = "clients train side by side"  # a note's beginning: their lines' times overlap
NOTE_MARK = "# "  # before every line that is none of the records below
METRIC_WORDS = {
    "AUROC": "auroc",
    "Accus": "accuracy",
    "F1": "f1",
    "Senss": "sensitivity",
    "Specs": "specificity",
    "Dice": "dice",
    "Jaccard": "jaccard",
    "HD95": "hd95",
    "ASD": "asd",
}


_OWN_FLAGS = "flags beside preset "


def own_flags_note(preset: str, names: Iterable[str]) -> str:
    """A note: which flags are not as the preset has them."""
    return f"{_OWN_FLAGS}{preset}: {' '.join(names) or 'none'}"


def own_flags_of(note: str) -> frozenset[str] | None:
    """What `own_flags_note` was given, None for any other note."""
    beginning, _, names = note.removeprefix(NOTE_MARK).partition(": ")
    if not beginning.startswith(_OWN_FLAGS):
        return None
    return frozenset(names.split()) - {"none"}


def namespace_line(args: argparse.Namespace) -> str:
    """The first line of a run: every flag with its value."""
    return str(args)


def training_size_line(num_images: int) -> str:
    """How many images all clients together train on."""
    return f"Training Data Size: {num_images}"


def begin_round_lines(round_index: int) -> str:
    """Opens a round; begins and ends with a line break, so the words stand on their own line."""
    return f"\nBegin: com_round = {round_index}\n"


def client_line(client: int, labeled: bool) -> str:
    """Who trains next; log `CLIENT_RULE` after it."""
    return f"{'Supervised' if labeled else 'Semi-Supervised'} Client: {client}"


def loss_line(loss: float, round_index: int, learning_rate: float) -> str:
    """Closes a round's training: the clients' mean loss and the base learning rate."""
    return f"Loss Avg: {loss}, Common Round: {round_index}, LR: {learning_rate}"


def evaluation_line(
    auroc: float,
    accuracy: float,
    f1: float,
    sensitivity: float | None = None,
    specificity: float | None = None,
    split: str = "TEST",
) -> str:
    """Class-averaged metrics as fractions; `split` is TEST or VAL.

    Sensitivity and specificity, where given, follow the three values of the older line, so that
    a reader of the older line still finds them at its start.
    """
    line = f"{split} AUROC: {auroc:.6f}, {split} Accus: {accuracy:.6f}, F1: {f1:.6f}"
    if sensitivity is not None and specificity is not None:
        line += f", {split} Senss: {sensitivity:.6f}, {split} Specs: {specificity:.6f}"
    return line


def volume_evaluation_line(
    dice: float, jaccard: float, hd95: float, asd: float, split: str = "TEST"
) -> str:
    """Segmented volumes: overlaps as fractions, distances between surfaces in mm; class means."""
    return (
        f"{split} Dice: {dice:.6f}, {split} Jaccard: {jaccard:.6f}, HD95: {hd95:.6f}, "
        f"ASD: {asd:.6f}"
    )


_NUMBER = r"(?:nan|[-+]?inf|[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
# A metric is always written with six decimals: fewer means that the line was cut off.
_METRIC = rf"(?:{'|'.join(METRIC_WORDS)}): (?:nan|\d+\.\d{{6}})(?!\d)"

STAMP = r"\[\d\d:\d\d:\d\d\.\d{3}\]"
RECORD = re.compile(
    rf"(?P<stamp>{STAMP})"
    r"|(?P<namespace>Namespace\()"
    r"|Training Data Size: (?P<size>\d{1,12}(?!\d))"
    r"|Begin: com_round = (?P<begin>\d{1,12}(?!\d))"
    r"|(?P<client>(?P<kind>Semi-Supervised|Supervised) Client: (?P<id>\d{1,12}(?!\d)))"
    rf"|(?P<loss>Loss Avg: (?P<value>{_NUMBER}), Common Round: (?P<round>\d{{1,12}}(?!\d)), "
    rf"LR: (?P<rate>{_NUMBER}))"
    rf"|(?P<metrics>(?P<split>TEST|VAL) {_METRIC}(?:, (?:(?P=split) )?{_METRIC})*)"
    rf"|(?P<rule>{CLIENT_RULE})(?!-)"
    rf"|(?P<note>(?:^|(?<=\] )){NOTE_MARK}.*?)(?={STAMP}|$)",
    re.MULTILINE,
)
_METRIC_PAIR = re.compile(r"(\w+): (nan|\d+\.\d{6})")


def metrics_of(record: re.Match) -> dict[str, float]:
    """The values of a `metrics` record, under the column names of metrics.csv (test_auroc, ...)."""
    split = record["split"].lower()
    pairs = _METRIC_PAIR.findall(record["metrics"])
    return {f"{split}_{METRIC_WORDS[word]}": float(value) for word, value in pairs}
