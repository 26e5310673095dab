"""The tables of finished, running or broken runs, from their log files alone.

`python -m utils.tables LOG [LOG ...] [--out STEM]` prints three Markdown tables: how far each run
came, what it measured in its last and in its best round, and mean ± standard deviation over the
runs that differ in nothing but the seed. With --out it also writes STEM_runs, STEM_rounds and
STEM_groups as .csv, .md and .tex, and STEM_paper.tex in the form of the paper's Table 1. A LOG is a
file or a run's folder.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from utils.errors import OneLineParser, UserError
from utils.files import write_text
from utils.metrics.predictions import read_predictions
from utils.table_files import NOT_AVAILABLE, to_markdown, write_table
from utils.tables.latex import paper_form
from utils.tables.log_reader import RESUMPTION_FLAGS, RoundLog, RunLog, parse_log

# Arguments that say which copy of an experiment a run is, or where it ran, not what it is.
COPY_FLAGS = RESUMPTION_FLAGS - {"rounds", "start_epoch", "global_step"} | {"seed"}
METRICS = {
    "test_auroc": "AUROC",
    "test_accuracy": "accuracy",
    "test_f1": "F1",
    "test_sensitivity": "sensitivity",
    "test_specificity": "specificity",
}
VOLUME_METRICS = {
    "test_dice": "Dice",
    "test_jaccard": "Jaccard",
    "test_hd95": "HD95 (mm)",
    "test_asd": "ASD (mm)",
}
TEST_FLAGS = ("csv_file_test", "medmnist", "volumes")  # what names the images tested on
ABSENT = "-"
CHOICES = ("last", "best")


@dataclass
class Table:
    """A title in words, a header, and rows of strings."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass
class NamedRun:
    """A run under the name by which the tables call it."""

    name: str
    run: RunLog
    folder: Path | None = None

    def chosen_round(self, choice: str) -> RoundLog | None:
        """The last round with test metrics, or (best) the first with the highest test AUROC, of
        volumes the highest test Dice."""
        rounds = [entry for _, entry in sorted(self.run.rounds.items())]
        known = METRICS.keys() | VOLUME_METRICS.keys()
        evaluated = [entry for entry in rounds if known & entry.metrics.keys()]
        if choice == "last":
            return evaluated[-1] if evaluated else None
        scored = [entry for entry in evaluated if not math.isnan(_quality(entry))]
        return max(scored, key=_quality, default=None)


def _quality(entry: RoundLog) -> float:
    return entry.metrics.get("test_auroc", entry.metrics.get("test_dice", math.nan))


def metrics_of_runs(runs: Sequence[NamedRun]) -> dict[str, str]:
    """The columns of test metrics that a table of these runs has, with their titles: of images, of
    volumes, or of both where there are both."""
    told = {name for named in runs for entry in named.run.rounds.values() for name in entry.metrics}
    volumes = VOLUME_METRICS if VOLUME_METRICS.keys() & told else {}
    return (METRICS if METRICS.keys() & told or not volumes else {}) | volumes


def mean_and_spread(values: Iterable[float], digits: int = 4) -> str:
    """`mean ± sd` with the sample standard deviation (n - 1); one value alone has no sd.

    Values that are None or NaN are left out and the count is said: "0.91 ± 0.02 (2 of 3)".
    """
    values = list(values)
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return NOT_AVAILABLE
    text = f"{statistics.fmean(known):.{digits}f}"
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def read_logs(paths: Sequence[Path]) -> list[NamedRun]:
    """Every run of every log, named by its path and, where a file holds several, its number.

    Raises UserError for a log that cannot be read or in which no run was found.
    """
    named = []
    for path in paths:
        log = path / "log.txt" if path.is_dir() else path
        runs = parse_log(log)
        if not runs:
            raise UserError(f"{log}: no run in it; name the log.txt of a run")
        numbers = [f"#{number}" for number in range(1, len(runs) + 1)] if runs[1:] else [""]
        folder = log.parent if len(runs) == 1 else None
        named += [NamedRun(f"{path}{n}", run, folder) for n, run in zip(numbers, runs, strict=True)]
    return named


def differing_arguments(listed: Iterable[Mapping[str, object]]) -> list[str]:
    """The arguments that do not have the same value in all non-empty lists, in order.

    An argument that a list lacks differs. Seed, folder and device do not count: they tell copies
    of one experiment apart.
    """
    listed = [_telling(arguments) for arguments in listed if arguments]
    names = dict.fromkeys(name for arguments in listed for name in arguments)
    values = {name: {repr(given.get(name, ABSENT)) for given in listed} for name in names}
    return [name for name in names if len(values[name]) > 1]


def _differing(runs: Sequence[NamedRun]) -> list[str]:
    """`differing_arguments` of runs; those that their presets explain are left to `preset`."""
    names = differing_arguments(named.run.arguments for named in runs)
    told = [named.run.own_flags for named in runs if named.run.arguments]
    if "preset" not in names or None in told:
        return names
    own = frozenset().union(*told)
    return [name for name in names if name == "preset" or name in own]


def mark_test_data(runs: Sequence[NamedRun]) -> dict[str, str]:
    """{name of a run: A, B, ...} by the images it was tested on; empty where all have the same.

    They are those of predictions_test.csv where every run's folder has one, else what the flags
    name; runs whose flags are unknown are left out.
    """
    files = [named.folder and named.folder / "predictions_test.csv" for named in runs]
    if all(file is not None and file.exists() for file in files):
        tested = {
            named.name: tuple(sorted(read_predictions(file).names))
            for named, file in zip(runs, files, strict=True)
        }
    else:
        tested = {
            named.name: tuple(str(named.run.arguments.get(flag)) for flag in TEST_FLAGS)
            for named in runs
            if named.run.arguments
        }
    kinds = list(dict.fromkeys(tested.values()))
    if len(kinds) < 2:
        return {}
    return {name: chr(ord("A") + kinds.index(kind) % 26) for name, kind in tested.items()}


def notes_on_test_data(runs: Sequence[NamedRun]) -> list[str]:
    """Which runs were tested on which images, where that differs."""
    marks = mark_test_data(runs)
    notes = []
    for letter in sorted(set(marks.values())):
        members = ", ".join(name for name, of in marks.items() if of == letter)
        notes.append(f"test data {letter}: {members}; NOT to be compared with the other letters")
    return notes


def _telling(arguments: Mapping[str, object]) -> dict[str, object]:
    """The arguments without those of a copy; `resume` stays where a run starts from weights."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in COPY_FLAGS or (name == "resume" and str(value).endswith(".pth"))
    }


def setting_text(arguments: Mapping[str, object], names: Sequence[str]) -> str:
    """The named arguments as `name=value, ...`."""
    arguments = _telling(arguments)
    return ", ".join(f"{name}={arguments.get(name, ABSENT)}" for name in names) or "the same"


def _setting(named: NamedRun, names: Sequence[str]) -> str:
    if not named.run.arguments:
        return f"unknown ({named.name})"
    return setting_text(named.run.arguments, names)


def runs_table(runs: Sequence[NamedRun]) -> Table:
    """How far each run came and what a client cost."""
    names = _differing(runs)
    header = [
        "run",
        "arguments that differ",
        "seed",
        "rounds done",
        "rounds asked",
        "labelled clients",
        "unlabelled clients",
        "client trainings",
        "wall time",
        "s per labelled client",
        "s per unlabelled client",
        "lines not understood",
    ]
    rows = [
        [
            named.name,
            _setting(named, names),
            _argument(named.run, "seed"),
            str(_rounds_done(named)),
            _argument(named.run, "rounds"),
            *_client_cells(named.run),
            _duration(named.run.wall_seconds),
            _client_seconds(named.run, labeled=True),
            _client_seconds(named.run, labeled=False),
            str(named.run.lines_not_understood),
        ]
        for named in runs
    ]
    return Table("Runs", header, rows)


def _argument(run: RunLog, name: str) -> str:
    return str(run.arguments.get(name, NOT_AVAILABLE))


def _client_cells(run: RunLog) -> list[str]:
    """How many different clients of each kind trained, and how often any client did."""
    labeled = [client for entry in run.rounds.values() for client in entry.labeled_clients]
    unlabeled = [client for entry in run.rounds.values() for client in entry.unlabeled_clients]
    return [str(len(set(labeled))), str(len(set(unlabeled))), str(len(labeled) + len(unlabeled))]


def _client_seconds(run: RunLog, labeled: bool) -> str:
    seconds = [
        entry.client_seconds[client]
        for entry in run.rounds.values()
        for client in (entry.labeled_clients if labeled else entry.unlabeled_clients)
        if client in entry.client_seconds
    ]
    return f"{statistics.fmean(seconds):.2f}" if seconds else NOT_AVAILABLE


def _duration(seconds: float | None) -> str:
    return NOT_AVAILABLE if seconds is None else str(timedelta(seconds=round(seconds)))


def rounds_table(runs: Sequence[NamedRun]) -> Table:
    """What each run measured in its last and in its best evaluated round, as the log has it."""
    metrics = metrics_of_runs(runs)
    header = ["run", "which", "round", "loss", "learning rate", *metrics.values()]
    rows = []
    for named in runs:
        for choice in CHOICES:
            entry = named.chosen_round(choice)
            cells = (
                [NOT_AVAILABLE] * (len(header) - 2)
                if entry is None
                else _round_cells(entry, metrics)
            )
            rows.append([named.name, choice, *cells])
    quality = next(iter(metrics.values()))
    title = (
        f"Last and best evaluated round (best: highest test {quality}, chosen on the test set "
        "itself)"
    )
    return Table(title, header, rows)


def _round_cells(entry: RoundLog, metrics: Mapping[str, str]) -> list[str]:
    numbers = [entry.loss, entry.learning_rate]
    said = [NOT_AVAILABLE if number is None else str(number) for number in numbers]
    values = (entry.metrics.get(name) for name in metrics)
    scores = [NOT_AVAILABLE if value is None else f"{value:.6f}" for value in values]
    return [str(entry.number), *said, *scores]


def groups_table(runs: Sequence[NamedRun]) -> tuple[Table, list[str]]:
    """Mean ± sd over the runs of one setting, and notes on the runs that were left out.

    Of several runs with the same arguments and seed the one with the most finished rounds
    counts (the later of equals): a repetition is not another sample. Of different seeds those with
    the most finished rounds count: a mean over different rounds is of nothing.
    """
    names = _differing(runs)
    metrics = metrics_of_runs(runs)
    header = ["arguments that differ", "which", "runs", "rounds done", *metrics.values()]
    groups: dict[str, list[NamedRun]] = {}
    marks = mark_test_data(runs)
    for named in runs:
        mark = f" [test data {marks[named.name]}]" if named.name in marks else ""
        groups.setdefault(_setting(named, names) + mark, []).append(named)
    rows, notes = [], notes_on_test_data(runs)
    for setting, members in groups.items():
        seeds = _one_per_seed(members)
        left_out = [named.name for named in members if named not in seeds]
        notes += [f"{name}: not in the means, its seed was run again" for name in left_out]
        longest = max(_rounds_done(named) for named in seeds)
        counted = [
            named for named in seeds if named.run.ended_early or _rounds_done(named) == longest
        ]
        notes += [
            f"{named.name}: not in the means, {_rounds_done(named)} of {longest} rounds done"
            for named in seeds
            if named not in counted
        ]
        for choice in CHOICES:
            scores = _mean_cells([named.chosen_round(choice) for named in counted], metrics)
            rows.append([setting, choice, str(len(counted)), _rounds_of(counted), *scores])
    return Table("Mean ± standard deviation over seeds", header, rows), notes


def _rounds_of(runs: Sequence[NamedRun]) -> str:
    """ "20" or, where --patience ended some, "12 to 20"."""
    done = [_rounds_done(named) for named in runs]
    return f"{min(done)} to {max(done)}" if min(done) < max(done) else str(max(done))


def _rounds_done(named: NamedRun) -> int:
    return len(named.run.finished_rounds())


def _one_per_seed(members: Sequence[NamedRun]) -> list[NamedRun]:
    kept: dict[object, NamedRun] = {}
    for named in members:
        seed = named.run.arguments.get("seed", named.name)
        rival = kept.get(seed)
        if rival and _rounds_done(rival) > _rounds_done(named):
            continue
        kept[seed] = named
    return list(kept.values())


def _mean_cells(entries: Sequence[RoundLog | None], metrics: Mapping[str, str]) -> list[str]:
    found = [entry.metrics if entry else {} for entry in entries]
    return [mean_and_spread([values.get(name) for values in found]) for name in metrics]


def main() -> None:
    """Print the tables of the logs named on the command line; write them with --out."""
    parser = OneLineParser(prog="python -m utils.tables", description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="log.txt or run folder")
    parser.add_argument("--out", type=Path, metavar="STEM", help="also write STEM_runs.csv, ...")
    options = parser.parse_args()
    if options.out and (not options.out.name or options.out.is_dir()):
        raise UserError(f"--out {options.out}: a folder; give the beginning of a file name in it")
    runs = read_logs(options.logs)
    groups, notes = groups_table(runs)
    tables = {"runs": runs_table(runs), "rounds": rounds_table(runs), "groups": groups}
    for name, table in tables.items():
        print(f"## {table.title}\n\n{to_markdown(table.header, table.rows)}")
        if options.out:
            stem = options.out.with_name(f"{options.out.name}_{name}")
            write_table(stem, table.header, table.rows)
    if options.out:
        paper = options.out.with_name(f"{options.out.name}_paper.tex")
        write_text(paper, paper_form(groups.header, groups.rows))
    notes += [f"{named.name}: {note}" for named in runs for note in dict.fromkeys(named.run.notes)]
    print("".join(f"- {note}\n" for note in notes), end="")
    strange = sum(named.run.lines_not_understood for named in runs)
    print(f"{strange} line(s) not understood.")
