"""Log files back into runs: a reader that copes with ragged logs and never invents a number."""

import ast
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.flags import FLAGS, FREE_ON_RESUME
from utils.tables.log_lines import (
    ENDED_BY,
    NOTE_MARK,
    RECORD,
    SIDE_BY_SIDE,
    STAMP,
    metrics_of,
    own_flags_of,
)

_NAMESPACE = "Namespace("
_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "'\""
# What ends a first line that was cut off before its closing bracket.
_NEXT_RECORD = re.compile(
    r"\[\d\d:\d\d:\d\d\.\d{3}\]|Training Data Size:|Begin: com_round|Namespace\("
)


def parse_namespace(text: str, start: int = 0) -> tuple[dict[str, object], int, bool]:
    """Read the `Namespace(` that stands at `text[start:]`.

    Returns its arguments, the position after it and whether its closing bracket was found. Line
    breaks inside it (a wrapped line) are dropped. A value that is no Python literal stays the
    text it was; of a line that was cut off, only the arguments before the last comma count.
    """
    body_start = start + len(_NAMESPACE)
    limit = _NEXT_RECORD.search(text, body_start)
    body_end, commas, closed = _scan(text, body_start, limit.start() if limit else len(text))
    edges = [body_start - 1, *commas] + ([body_end] if closed else [])
    parts = [text[left + 1 : right] for left, right in zip(edges, edges[1:], strict=False)]
    pairs = ("".join(map(str.strip, part.splitlines())).partition("=") for part in parts)
    arguments = {name: _value(value) for name, equals, value in pairs if equals}
    return arguments, body_end + closed, closed


def _scan(text: str, start: int, limit: int) -> tuple[int, list[int], bool]:
    """Where the closing bracket is (or `limit`), the commas at the top level, and if it closed."""
    depth, quote, commas, position = 0, "", [], start
    while position < limit:
        character = text[position]
        if quote:
            position += character == "\\"
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            if depth == 0:
                return position, commas, True
            depth -= 1
        elif character == "," and depth == 0:
            commas.append(position)
        position += 1
    return limit, commas, False


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


# Flags that may differ between the start of a run and its resumption, in old programs too.
RESUMPTION_FLAGS = FREE_ON_RESUME | {"start_epoch", "global_step", "run_dir"}

# A number that stands right before one of these may have lost its last digits.
_CUT = re.compile(rf"(?:{STAMP} ?)?Namespace\(|\Z")
# What may follow the number of a round that begins: anything else is what cut it off.
_BEGUN = re.compile(rf"\s*\n|\s*(?:{RECORD.pattern})", re.MULTILINE)
_FIRST_LINE = re.compile(r" ?Namespace\(")
_DAY = 24 * 3600.0
# Seconds by which lines of several threads may stand in the wrong order.
_JITTER = 1.0


@dataclass
class RoundLog:
    """What the log says about one round; None or absent where it does not say.

    `metrics` maps test_auroc, val_f1, ... to fractions. `client_seconds` maps a client to the
    seconds from its line to the next, only where no client's line is missing in between and
    clients train one after the other.
    """

    number: int | None = None
    labeled_clients: list[int] = field(default_factory=list)
    unlabeled_clients: list[int] = field(default_factory=list)
    loss: float | None = None
    learning_rate: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    client_seconds: dict[int, float] = field(default_factory=dict)


@dataclass
class RunLog:
    """One run as its log tells it. `rounds` is keyed by the round's number.

    `wall_seconds` sums the steps between time stamps (None without two of them); the pause
    before a resumed run is not in it. `notes` says in words what had to be decided. `own_flags`:
    those that are not as the run's preset has them, None where the log does not say. `ended_early`:
    --patience ended it.
    """

    source: str
    arguments: dict[str, object] = field(default_factory=dict)
    training_size: int | None = None
    rounds: dict[int, RoundLog] = field(default_factory=dict)
    wall_seconds: float | None = None
    lines_not_understood: int = 0
    notes: list[str] = field(default_factory=list)
    own_flags: frozenset[str] | None = None
    ended_early: bool = False

    def finished_rounds(self) -> list[RoundLog]:
        """The rounds whose training was closed by a loss line, in order."""
        return [
            self.rounds[key] for key in sorted(self.rounds) if self.rounds[key].loss is not None
        ]


def parse_log(text_or_path: str | os.PathLike) -> list[RunLog]:
    """The runs in a log, in order; a string with a line break in it is the log itself.

    Several runs may follow one another, be cut off, lose line breaks between records or lack
    clients, rounds or arguments: what is not there stays None or absent. A run whose arguments
    equal those of the run before it and whose first round comes later is that run resumed: its
    rounds replace the earlier run's from there on, and a note says so. A number whose last
    digits may be missing (the log ends or another run begins right after it) is not read.
    A flag that the earlier run's version did not have had the value that stands in the table of
    flags for it. The clock has no date: a step back of the clock is midnight when it leaves less
    than half a day between two lines, otherwise it counts nothing and, once rounds have begun, a
    note says so (what is said while a run prepares itself reaches the log after its first lines).
    Raises UserError for a file that cannot be read.
    """
    if isinstance(text_or_path, str) and "\n" in text_or_path:
        source, text = "text", text_or_path
    else:
        source, text = str(text_or_path), _read(Path(text_or_path))
    return _join_resumed(_LogReader(source, text.replace("\r\n", "\n")).read())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a run's log.txt") from error


class _LogReader:
    """Walks over the records of one log and fills one RunLog per first line.

    `open_round` is the round whose clients are being named (without a number while its first
    line is missing); `closed_round` the one that a metrics line after the loss belongs to.
    """

    def __init__(self, source: str, text: str):
        self.source, self.text = source, text
        self.runs: list[RunLog] = []
        self.strange_until = -1
        self.strange_before = 0
        self._new_run(RunLog(source))

    def read(self) -> list[RunLog]:
        """The runs as their first lines part them, a resumed run in two."""
        position = 0
        while record := RECORD.search(self.text, position):
            self._strange(position, record.start())
            before, position = position, record.end()
            if record["stamp"]:
                self._tick(record)
            elif record["namespace"]:
                position = self._namespace(record.start())
            elif not self._take(record, self.text[before : record.start()]):
                self._strange(record.start(), record.end())
        self._strange(position, len(self.text))
        self._finish_run()
        if self.runs:
            self.runs[0].lines_not_understood += self.strange_before
        return self.runs

    def _new_run(self, run: RunLog) -> None:
        self.run = run
        self.side_by_side = False
        self.open_round: RoundLog | None = None
        self.closed_round: RoundLog | None = None
        self.clock: float | None = None
        self.stamp_end = -1
        self.client: tuple[int, float] | None = None
        self.before_loss: list[tuple[RoundLog, int, float]] = []

    def _finish_run(self) -> None:
        """Keep the run, and the seconds of the client before each loss line if it was the last."""
        for entry, client, seconds in self.before_loss:
            kept = self.run.rounds.get(entry.number) is entry
            if kept and client == _last_client(self.run, client in entry.labeled_clients):
                entry.client_seconds[client] = seconds
        if self.side_by_side:
            for entry in self.run.rounds.values():
                entry.client_seconds.clear()
        if self.run.arguments or self.run.rounds:
            self.runs.append(self.run)
        else:
            self.strange_before += self.run.lines_not_understood

    def _strange(self, start: int, end: int) -> None:
        """Count the lines that have ink between `start` and `end`, each line once."""
        for ink in re.finditer(r"\S[^\n]*", self.text[start:end]):
            position = start + ink.start()
            if position > self.strange_until:
                self.run.lines_not_understood += 1
                line_end = self.text.find("\n", position)
                self.strange_until = line_end if line_end >= 0 else len(self.text)

    def _tick(self, record: re.Match) -> None:
        hours, minutes, seconds = record["stamp"][1:-1].split(":")
        now = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        if self.clock is not None and not _FIRST_LINE.match(self.text, record.end()):
            step = (now - self.clock) % _DAY
            if step > _DAY / 2:
                if (self.run.rounds or self.open_round) and _DAY - step > _JITTER:
                    self.run.notes.append("the clock was set back: the wall time is a lower bound")
                step, self.client = 0.0, None
            self.run.wall_seconds = (self.run.wall_seconds or 0.0) + step
        self.clock, self.stamp_end = now, record.end()

    def _is_stamped(self, start: int) -> bool:
        return self.stamp_end >= 0 and not self.text[self.stamp_end : start].strip()

    def _namespace(self, start: int) -> int:
        """Begin the next run at its first line; returns where that line ends."""
        arguments, end, closed = parse_namespace(self.text, start)
        clock = self.clock if self._is_stamped(start) else None
        self._finish_run()
        self._new_run(RunLog(self.source, arguments))
        self.clock = clock
        if not closed:
            self.run.notes.append("first line cut off: some arguments are missing")
            self.run.lines_not_understood += 1
        return end

    def _take(self, record: re.Match, between: str) -> bool:
        """Enter a record into the run; False if its numbers cannot be trusted or placed.

        `between` is what stands between the record before and this one.
        """
        if record["metrics"]:
            # Other words in front of them on their line may say whose numbers they are.
            return not between.rpartition("\n")[2].strip() and self._metrics(record)
        if record["rule"]:
            return True
        if record["note"]:
            if (own := own_flags_of(record["note"])) is not None:
                self.run.own_flags = own
            self.run.ended_early |= record["note"].startswith(NOTE_MARK + ENDED_BY)
            self.side_by_side |= record["note"].startswith(NOTE_MARK + SIDE_BY_SIDE)
            return True
        if _CUT.match(self.text, record.end()):
            return False
        if record["size"]:
            self.run.training_size = int(record["size"])
        elif record["begin"]:
            if not _BEGUN.match(self.text, record.end()):
                return False
            self._start_over_at(int(record["begin"]))
            self._open(RoundLog(int(record["begin"])))
        elif record["client"]:
            self._client(int(record["id"]), record["kind"] == "Supervised", record.start())
        else:
            self._loss(int(record["round"]), float(record["value"]), float(record["rate"]))
        return True

    def _start_over_at(self, number: int) -> None:
        """A round that is not later than the run's first is another run's."""
        if self.run.rounds and number <= min(self.run.rounds):
            self._finish_run()
            self._new_run(RunLog(self.source, notes=["first line missing: arguments unknown"]))

    def _open(self, entry: RoundLog) -> None:
        """A round whose clients come next; it becomes part of the run with the first of them."""
        self.open_round, self.client = entry, None

    def _enter_open_round(self) -> None:
        entry = self.open_round
        if entry.number is not None and self.run.rounds.get(entry.number) is not entry:
            _drop_from(self.run, entry.number)
            self.run.rounds[entry.number] = entry

    def _client(self, client: int, labeled: bool, start: int) -> None:
        if self.open_round is None:
            self._open(RoundLog())
        self._enter_open_round()
        if self.client and self._is_stamped(start) and client == self.client[0] + 1:
            self.open_round.client_seconds[self.client[0]] = self._seconds_of_client()
        clients = self.open_round.labeled_clients if labeled else self.open_round.unlabeled_clients
        clients.append(client)
        started = self.run.wall_seconds or 0.0
        self.client = (client, started) if self._is_stamped(start) else None

    def _seconds_of_client(self) -> float:
        return (self.run.wall_seconds or 0.0) - self.client[1]

    def _loss(self, number: int, loss: float, learning_rate: float) -> None:
        entry = self.open_round
        if entry is None or entry.number not in (None, number):
            entry = RoundLog()
        if self.run.rounds.get(number) is not entry:
            self._start_over_at(number)
            _drop_from(self.run, number)
        entry.number, entry.loss, entry.learning_rate = number, loss, learning_rate
        self.run.rounds[number] = entry
        if self.client and entry is self.open_round:
            self.before_loss.append((entry, self.client[0], self._seconds_of_client()))
        self.open_round, self.closed_round, self.client = None, entry, None

    def _metrics(self, record: re.Match) -> bool:
        entry = self.open_round or self.closed_round
        if entry is None or entry.number is None:
            return False  # a round whose first line is missing and whose loss has not come
        if entry is self.open_round:
            self._enter_open_round()
        entry.metrics |= metrics_of(record)
        return True


def _last_client(run: RunLog, labeled: bool) -> int:
    """The highest client of its kind: as the arguments say, otherwise as the log shows."""
    num_labeled, num_unlabeled, num_users = (
        run.arguments.get(name) for name in ("num_labeled", "num_unlabeled", "num_users")
    )
    if labeled and isinstance(num_labeled, int):
        return num_labeled - 1
    if not labeled and isinstance(num_labeled, int) and isinstance(num_unlabeled, int):
        return num_labeled + num_unlabeled - 1
    if not labeled and isinstance(num_users, int):
        return num_users - 1
    lists = (r.labeled_clients if labeled else r.unlabeled_clients for r in run.rounds.values())
    return max((client for clients in lists for client in clients), default=-1)


def _drop_from(run: RunLog, number: int) -> None:
    """Forget the rounds from `number` on, because the run takes them again."""
    again = [key for key in run.rounds if key >= number]
    for key in again:
        del run.rounds[key]
    if again:
        run.notes.append(f"goes on from round {number}: {len(again)} earlier round(s) replaced")


def _join_resumed(runs: list[RunLog]) -> list[RunLog]:
    joined: list[RunLog] = []
    for run in runs:
        if joined and _is_resumption(joined[-1], run):
            _append(joined[-1], run)
        else:
            joined.append(run)
    return joined


def _is_resumption(earlier: RunLog, later: RunLog) -> bool:
    same, again = (
        {name: value for name, value in run.arguments.items() if name not in RESUMPTION_FLAGS}
        for run in (earlier, later)
    )
    is_whole = bool(again) and next(reversed(later.arguments)) in earlier.arguments
    if same and is_whole:
        same = {name: FLAGS[name].unsaid for name in again if name in FLAGS} | same
    if not same or same != again:
        return False
    return not earlier.rounds or not later.rounds or min(later.rounds) > min(earlier.rounds)


def _append(earlier: RunLog, later: RunLog) -> None:
    earlier.notes.append("started again")
    if later.rounds:
        _drop_from(earlier, min(later.rounds))
    earlier.rounds |= later.rounds
    if "rounds" in later.arguments:
        earlier.arguments["rounds"] = later.arguments["rounds"]
    earlier.training_size = later.training_size or earlier.training_size
    walls = [run.wall_seconds for run in (earlier, later) if run.wall_seconds is not None]
    earlier.wall_seconds = sum(walls) if walls else None
    earlier.lines_not_understood += later.lines_not_understood
    earlier.notes += later.notes
