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
        return "-".join(parts + [f"{flag}-{_short(value)}" for flag, value in self.extra])

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


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(method: str, labeled: int, unlabeled: int) -> Setting:
    label = f"{METHOD_TITLES[method]} {labeled}/{unlabeled}"
    return Setting(label, method, labeled, unlabeled)


def _variant(label: str, flag: str, value: object, source: str = "paper") -> Setting:
    return Setting(label, "fedirm", 2, 8, ((flag, value),), source)


@dataclass(frozen=True)
class Item:
    """One table or figure: its title, its rows in the panels of its curves, how it is drawn."""

    title: str
    panels: tuple[tuple[str, tuple[Setting, ...]], ...]  # (title, rows)
    drawing: str  # "bars", "sweep" or "matrices"
    sweep_label: str = ""  # what the x axis of a sweep counts

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every row once, in order."""
        return tuple(dict.fromkeys(setting for _, rows in self.panels for setting in rows))


UPPER_BOUND, LOWER_BOUND, FEDIRM = _row("fedavg", 10, 0), _row("fedavg", 2, 0), _row("fedirm", 2, 8)
CONSISTENCY = _row("fed_consistency", 2, 8)
TABLE_1 = (UPPER_BOUND, LOWER_BOUND, _row("fed_selftraining", 2, 8), CONSISTENCY, FEDIRM)
SLIDES_ROWS = (
    Setting("baseline", "fedirm", 2, 8, source="slides"),
    _variant("Wasserstein", "relation_distance", "wasserstein", "slides"),
    _variant("self-attention", "attention", "self", "slides"),
)
TERMS = (
    FEDIRM,
    Setting("without the relation term", "fed_consistency", 2, 8),
    _variant("without the consistency term", "consistency_scale", 0.0),
    Setting("without the unlabelled clients", "fedavg", 2, 0),
)
THRESHOLDS = (
    _variant("h = ln 2 / 2", "entropy_threshold", math.log(2) / 2),
    _variant("h = ln 2", "entropy_threshold", math.log(2)),
    _variant("h = 2 ln 2", "entropy_threshold", 2 * math.log(2)),
    _variant("no entropy threshold", "entropy_threshold", 100.0),
)
PASSES = tuple(_variant(f"T = {count}", "mc_passes", count) for count in (1, 4, 8, 16))
TEMPERATURES = tuple(_variant(f"tau = {tau:g}", "temperature", tau) for tau in (1.0, 2.0, 4.0))


def _sweep(method: str, clients: tuple[tuple[int, int], ...]) -> tuple[Setting, ...]:
    return tuple(_row(method, labeled, unlabeled) for labeled, unlabeled in clients)


SOME_LABELED = tuple((count, NUM_USERS - count) for count in (1, 2, 3, 4))
LABELED_ONLY = tuple((count, 0) for count in (1, 2, 3, 4))
SOME_UNLABELED = tuple((2, count) for count in (1, 2, 4, 8))

ITEMS = {
    "table1": Item("Table 1: methods (labelled/unlabelled clients)", (("", TABLE_1),), "bars"),
    "fig2a": Item(
        "Figure 2(a): relation matrices with (FedIRM) and without (Fed-Consistency) relation loss",
        (("", (FEDIRM, CONSISTENCY)),),
        "matrices",
    ),
    "fig2b": Item(
        "Figure 2(b): labelled clients",
        (
            ("FedIRM", _sweep("fedirm", SOME_LABELED)),
            ("FedAvg, labelled clients only", (*_sweep("fedavg", LABELED_ONLY), UPPER_BOUND)),
        ),
        "sweep",
        "labelled clients",
    ),
    "fig2c": Item(
        "Figure 2(c): unlabelled clients beside 2 labelled ones",
        (
            ("FedIRM", _sweep("fedirm", SOME_UNLABELED)),
            ("Fed-Consistency", _sweep("fed_consistency", SOME_UNLABELED)),
        ),
        "sweep",
        "unlabelled clients",
    ),
    "slides": Item("The slides' experiments (FedIRM 2/8)", (("", SLIDES_ROWS),), "bars"),
    "ablation": Item(
        "Ablation of FedIRM 2/8: one change at a time",
        (
            ("terms of the loss", TERMS),
            ("entropy threshold h", THRESHOLDS),
            ("stochastic passes T", PASSES),
            ("temperature tau", TEMPERATURES),
        ),
        "bars",
    ),
}
