"""The published numbers that ours stand beside, as printed: per cent, (mean, sd) of three runs.

`PAPER` is Table 1 and Figure 2 of Liu, Yang, Dou, Heng (MICCAI 2021, arXiv 2106.08600), keyed by
task and by (method, labelled clients, unlabelled clients). `SLIDES` is the result table of the
slides: one run per row, no spread.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from utils.flags.presets import PRESETS

REPORTS = {
    "last": "the last evaluated round",
    "last4": "the mean of the last four evaluated rounds",
    "best_val": "the round with the highest validation AUROC",
}
METRIC_TITLES = {
    "test_auroc": "AUROC",
    "test_sensitivity": "sensitivity",
    "test_specificity": "specificity",
    "test_accuracy": "accuracy",
    "test_f1": "F1",
}
_ROWS = {
    "ICH": """
        fedavg 10 0: 90.48±0.31 64.33±1.13 92.68±0.43 89.94±0.92 63.94±1.20
        fedavg 2 0: 83.40±0.87 57.88±1.68 90.48±0.79 87.45±1.08 57.10±1.29
        fed_selftraining 2 8: 84.32±0.82 57.94±1.66 90.22±0.74 87.90±1.81 57.48±1.14
        fed_consistency 2 8: 84.83±0.79 57.26±1.93 90.87±0.62 88.35±1.32 57.61±1.08
        fedirm 2 8: 87.56±0.56 59.57±1.57 91.53±0.81 88.89±1.29 59.86±1.65
    """,
    "skin": """
        fedavg 10 0: 94.82±0.32 75.11±1.82 94.87±0.35 95.24±0.21 70.16±1.21
        fedavg 2 0: 90.65±1.23 65.53±1.76 91.76±0.48 92.53±0.67 52.59±1.42
        fed_selftraining 2 8: 90.82±0.56 67.03±1.93 93.61±0.21 92.47±0.34 53.44±1.85
        fed_consistency 2 8: 91.13±0.62 68.55±1.29 93.45±0.94 92.67±0.39 54.25±1.31
        fedirm 2 8: 92.46±0.45 69.05±1.71 93.29±0.59 92.89±0.25 55.81±1.49
    """,
}

Row = dict[str, tuple[float, float | None]]


def _table(text: str) -> dict[tuple[str, int, int], Row]:
    table = {}
    for line in text.strip().splitlines():
        key, _, cells = line.partition(":")
        method, labeled, unlabeled = key.split()
        pairs = (tuple(map(float, cell.split("±"))) for cell in cells.split())
        table[method, int(labeled), int(unlabeled)] = dict(zip(METRIC_TITLES, pairs, strict=True))
    return table


PAPER = {task: _table(text) for task, text in _ROWS.items()}
# Read off the text about Figure 2(b).
PAPER["ICH"]["fedirm", 4, 6] = {"test_auroc": (89.21, None)}

SLIDES: dict[str, Row] = {
    "baseline": {
        "test_accuracy": (66.32, None),
        "test_f1": (60.79, None),
        "test_auroc": (58.07, None),
    },
    "Wasserstein": {
        "test_accuracy": (68.22, None),
        "test_f1": (63.44, None),
        "test_auroc": (53.77, None),
    },
    "self-attention": {
        "test_accuracy": (71.00, None),
        "test_f1": (68.11, None),
        "test_auroc": (63.56, None),
    },
}
SLIDES_WALL_TIME = {"baseline": "7:23:00", "Wasserstein": "7:52:00", "self-attention": "10:44:00"}
SLIDES_NOTES = (
    "The slides' own runs read every (image, subtype) row of the label file as an instance, so "
    "their AUROCs are near chance and are no target.",
    "The slides' 'original' column (accuracy 92.89±0.25, F1 55.81±1.49, AUROC 92.46±0.45) is the "
    "paper's skin lesion row, not its haemorrhage row.",
    "The slides' baseline F1, 0.607859, stands in their own log line; 0.648859 stands in another "
    "log file of their author's repository.",
)


def gap_closed(lower: float, value: float, upper: float) -> float:
    """The share of the gap between the lower and the upper bound that `value` closes."""
    return (value - lower) / (upper - lower)


NUM_USERS = 10
EQUAL_WEIGHT = ("labeled_weight", 1.0)  # the paper's, and the flag's default
FIGURE_2A_ROUNDS = (1, 30, 60)
METHOD_TITLES = {
    "fedavg": "FedAvg",
    "fed_selftraining": "Fed-SelfTraining",
    "fed_consistency": "Fed-Consistency",
    "fedirm": "FedIRM",
    "fixmatch": "FixMatch + FedAvg",
    "rscfed": "RSCFed",
    "cbafed": "CBAFed",
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

    def number(self, flag: str) -> float:
        """Where this row stands on the axis of a sweep over `flag`."""
        clients = {"num_labeled": self.labeled, "num_unlabeled": self.unlabeled}
        return dict([EQUAL_WEIGHT, *clients.items(), *self.extra])[flag]

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
    # "bars", "rivals" (bars, and each class and the cost), "sweep", "matrices", "rates", "volumes"
    drawing: str
    swept: str = ""  # the flag on the x axis, where values of one are compared
    preset: str = "bench"
    levels: tuple[Setting, ...] = ()  # rows of a sweep that are horizontal lines

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


STEPS_ALONE = 400  # of a labelled client before the others join; preset hippocampus has some 500
ROUNDS_TOGETHER = 25


def _some_labels(label: str, method: str, unlabeled: int) -> tuple[Setting, ...]:
    """Rows of 2 to 16 labelled volumes a client, which all train for the same steps alone: a
    structure that is not found when the others join stays lost (docs/RESULTS.md)."""
    preset = PRESETS["hippocampus"]
    settings = []
    for count in (2, 4, 8, 16):
        steps = preset["local_ep"] * math.ceil(count / preset["batch_size"])  # of a round
        alone = STEPS_ALONE // steps
        extra = {
            "labeled_volumes": count,
            "rounds": alone + ROUNDS_TOGETHER,
            "join_epoch": alone * preset["local_ep"] - 1,
            "consistency_rampup": float(alone + 10),
        }
        name = f"{label}, {count}"
        settings.append(Setting(name, method, 2, unlabeled, tuple(extra.items())))
    return tuple(settings)


# Every rival of the paper's methods gives the labelled clients far more of the average than their
# share of the images. On one field all methods do: four times the share is half of ten clients'
# average where two have labels.
FIELD_WEIGHT = ("labeled_weight", 4.0)


# As its paper has it for skin lesions; with 1e4 a subset's average is its nearest client.
SKIN_BETA = (("rscfed_beta", 0.01), ("rscfed_beta_labeled", 0.01))


def _rival(method: str) -> Setting:
    own = SKIN_BETA if method == "rscfed" else ()
    return Setting(f"{METHOD_TITLES[method]} 2/8", method, 2, 8, (FIELD_WEIGHT, *own))


RIVALS = (
    UPPER_BOUND,
    LOWER_BOUND,
    *map(
        _rival,
        ("fed_selftraining", "fed_consistency", "fedirm", "fixmatch", "rscfed", "cbafed"),
    ),
)


# Each source is a client; the images differ between them, and so do the classes they have.
SOURCES_APART = (("partition", "site"), ("num_users", 4))


def _source_row(method: str, labeled: int, unlabeled: int) -> Setting:
    return replace(_row(method, labeled, unlabeled), extra=SOURCES_APART)


# A rate of the second phase is tried from where the preset's own first phase ends.
def _rates(
    base: Sequence[float], late: Sequence[float], *common: tuple[str, object]
) -> tuple[Setting, ...]:
    return tuple(
        Setting(f"FedAvg 2/0, {flag} {value:g}", "fedavg", 2, 0, ((flag, value), *common))
        for flag, values in (("base_lr", base), ("labeled_lr_late", late))
        for value in values
    )


def _sweep(method: str, clients: tuple[tuple[int, int], ...]) -> tuple[Setting, ...]:
    return tuple(_row(method, labeled, unlabeled) for labeled, unlabeled in clients)


def _weights(method: str) -> tuple[Setting, ...]:
    """Rows of one method whose labelled clients count once to sixteen times in every average."""
    plain = _row(method, 2, 8)
    more = (
        replace(plain, label=f"{plain.label}, {x:g} times", extra=(("labeled_weight", x),))
        for x in (2.0, 4.0, 8.0, 16.0)
    )
    return (plain, *more)


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
        "num_labeled",
        levels=(UPPER_BOUND,),
    ),
    "fig2c": Item(
        "Figure 2(c): unlabelled clients beside 2 labelled ones",
        (
            ("FedIRM", _sweep("fedirm", SOME_UNLABELED)),
            ("Fed-Consistency", _sweep("fed_consistency", SOME_UNLABELED)),
        ),
        "sweep",
        "num_unlabeled",
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
    "rivals": Item(
        "Rivals on one field: labelled clients at four times their share of the average",
        (("", RIVALS),),
        "rivals",
        preset="skin-64",
    ),
    "labeled_weight": Item(
        "The labelled clients' share of the average, times 1 to 16 (2/8)",
        (
            ("FedIRM", (*_weights("fedirm"), LOWER_BOUND, UPPER_BOUND)),
            ("Fed-Consistency", _weights("fed_consistency")),
        ),
        "sweep",
        "labeled_weight",
        levels=(LOWER_BOUND, UPPER_BOUND),
    ),
    "sources": Item(
        "Each of four sources a client, the first two of them with labels",
        (
            (
                "",
                (
                    _source_row("fedavg", 4, 0),
                    _source_row("fedavg", 2, 0),
                    _source_row("fed_consistency", 2, 2),
                    _source_row("fedirm", 2, 2),
                ),
            ),
        ),
        "rivals",
        preset="skin-64",
    ),
    "rates": Item(
        "Learning rates of the labelled clients alone (FedAvg 2/0)",
        (("", _rates((3e-4, 1e-3, 3e-3), (1e-4, 3e-4, 1e-3))),),
        "rates",
        preset="skin-64",
    ),
    "hippocampus": Item(
        "Segmentation of volumes: methods (labelled/unlabelled clients)",
        (("", TABLE_1),),
        "volumes",
        preset="hippocampus",
    ),
    "hippocampus_labels": Item(
        "Segmentation of volumes: 2, 4, 8 and 16 labelled volumes at each of two clients",
        (
            ("FedIRM", _some_labels("FedIRM 2/8", "fedirm", 8)),
            ("Fed-Consistency", _some_labels("Fed-Consistency 2/8", "fed_consistency", 8)),
            ("FedAvg, labelled clients only", _some_labels("FedAvg 2/0", "fedavg", 0)),
        ),
        "volumes",
        "labeled_volumes",
        preset="hippocampus",
    ),
    "hippocampus_rates": Item(
        "Segmentation of volumes: learning rates of the labelled clients alone (FedAvg 2/0)",
        (("", _rates((1e-3, 2e-3, 4e-3), (1e-4, 3e-4, 1e-3), ("eval_every", 5))),),
        "rates",
        preset="hippocampus",
    ),
}
