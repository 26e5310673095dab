"""Which runs each table and figure is made of: plain data, nothing is run here."""

import math
from dataclasses import dataclass

from utils.paper_numbers import PAPER, SLIDES, Row

NUM_USERS = 10
FIGURE_2A_ROUNDS = (1, 30, 60)
METHOD_TITLES = {
    "fedavg": "FedAvg",
    "fed_selftraining": "Fed-SelfTraining",
    "fed_consistency": "Fed-Consistency",
    "fedirm": "FedIRM",
}


@dataclass(frozen=True)
class Setting:
    """One row: a method with its clients, and the flags that set it apart from the others.

    `source` names where the published numbers come from ("paper", "slides").
    """

    label: str
    method: str
    labeled: int
    unlabeled: int
    extra: tuple[tuple[str, object], ...] = ()
    source: str = "paper"

    @property
    def name(self) -> str:
        """The folder's name without the seed."""
        parts = [self.method, str(self.labeled), str(self.unlabeled)]
        return "-".join(parts + [f"{flag}-{value}" for flag, value in self.extra])

    def flags(self, seed: int) -> list[str]:
        """What train_main.py is given for this row and seed."""
        values = {
            "method": self.method,
            "num_users": NUM_USERS,
            "num_labeled": self.labeled,
            "num_unlabeled": self.unlabeled,
            "seed": seed,
            **dict(self.extra),
        }
        return [word for flag, value in values.items() for word in (f"--{flag}", str(value))]

    def published(self, task: str) -> Row:
        """The published numbers of this row, in per cent; empty where there are none."""
        if self.source == "slides":
            return SLIDES[self.label]
        if self.extra:
            return {}
        return PAPER[task].get((self.method, self.labeled, self.unlabeled), {})


def _row(method: str, labeled: int, unlabeled: int) -> Setting:
    label = f"{METHOD_TITLES[method]} {labeled}/{unlabeled}"
    return Setting(label, method, labeled, unlabeled)


def _variant(label: str, flag: str, value: object, source: str = "paper") -> Setting:
    return Setting(label, "fedirm", 2, 8, ((flag, value),), source)


@dataclass(frozen=True)
class Item:
    """One table or figure: its title, its rows, and how it is drawn."""

    title: str
    settings: tuple[Setting, ...]
    drawing: str  # "bars", "sweep" or "matrices"
    sweep_label: str = ""  # what the x axis of a sweep counts


UPPER_BOUND, LOWER_BOUND, FEDIRM = _row("fedavg", 10, 0), _row("fedavg", 2, 0), _row("fedirm", 2, 8)
CONSISTENCY = _row("fed_consistency", 2, 8)

ITEMS = {
    "table1": Item(
        "Table 1: methods (labelled/unlabelled clients)",
        (UPPER_BOUND, LOWER_BOUND, _row("fed_selftraining", 2, 8), CONSISTENCY, FEDIRM),
        "bars",
    ),
    "fig2a": Item(
        "Figure 2(a): relation matrices with (FedIRM) and without (Fed-Consistency) relation loss",
        (FEDIRM, CONSISTENCY),
        "matrices",
    ),
    "fig2b": Item(
        "Figure 2(b): labelled clients",
        tuple(_row("fedirm", count, NUM_USERS - count) for count in (1, 2, 3, 4))
        + tuple(_row("fedavg", count, 0) for count in (1, 2, 3, 4))
        + (UPPER_BOUND,),
        "sweep",
        "labelled clients",
    ),
    "fig2c": Item(
        "Figure 2(c): unlabelled clients beside 2 labelled ones",
        tuple(_row("fedirm", 2, count) for count in (1, 2, 4, 8))
        + tuple(_row("fed_consistency", 2, count) for count in (1, 2, 4, 8)),
        "sweep",
        "unlabelled clients",
    ),
    "slides": Item(
        "The slides' experiments (FedIRM 2/8)",
        (
            Setting("baseline", "fedirm", 2, 8, source="slides"),
            _variant("Wasserstein", "relation_distance", "wasserstein", "slides"),
            _variant("self-attention", "attention", "self", "slides"),
        ),
        "bars",
    ),
    "ablation": Item(
        "Ablation of FedIRM 2/8: one change at a time",
        (
            FEDIRM,
            Setting("without the relation term", "fed_consistency", 2, 8),
            Setting("without the unlabelled clients", "fedavg", 2, 0),
            _variant("every sample reliable (no entropy threshold)", "entropy_threshold", 100.0),
            _variant("h = ln 2 / 2", "entropy_threshold", round(math.log(2) / 2, 4)),
            _variant("h = ln 2", "entropy_threshold", round(math.log(2), 4)),
            _variant("h = 2 ln 2", "entropy_threshold", round(2 * math.log(2), 4)),
            _variant("T = 1", "mc_passes", 1),
            _variant("T = 4", "mc_passes", 4),
            _variant("T = 8", "mc_passes", 8),
            _variant("T = 16", "mc_passes", 16),
            _variant("tau = 1", "temperature", 1.0),
            _variant("tau = 2", "temperature", 2.0),
            _variant("tau = 4", "temperature", 4.0),
        ),
        "bars",
    ),
}
