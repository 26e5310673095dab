"""What a run writes while it goes: log.txt, metrics.csv, matrices.csv, TensorBoard curves."""

import csv
import io
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from logging.handlers import MemoryHandler, WatchedFileHandler
from pathlib import Path
from textwrap import indent

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from utils.files import write_text
from utils.plots.style import matrix_picture
from utils.table_files import to_csv
from utils.tables.log_lines import NOTE_MARK
from utils.text import csv_cell, printable

# A thread of tqdm's would adapt how often its bars are drawn: one more that a signal can find
# waiting for a lock of the main thread's (utils/signals.py).
tqdm.monitor_interval = 0


class StampFormatter(logging.Formatter):
    """`[hh:mm:ss.mmm] message`; a message that begins with a line break goes without the stamp.

    note_mark: what every line of a note begins with.
    """

    def __init__(self, note_mark: str = ""):
        super().__init__("[%(asctime)s.%(msecs)03d] %(message)s", datefmt="%H:%M:%S")
        self.note_mark = note_mark

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        if getattr(record, "note", False):
            record.message = indent(record.message, self.note_mark)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        text = message[1:] if message.startswith("\n") else super().format(record)
        return printable(text, kept="\n\t")


class _Terminal(logging.Handler):
    """Standard output; a line moves an open progress bar down instead of cutting through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _LogFile(WatchedFileHandler):
    """log.txt; a line that cannot be written is an error of the run, not a remark on stderr.

    Where it was moved or removed while the run went on, it is begun anew and says so.
    """

    def reopenIfNeeded(self) -> None:  # noqa: N802
        before = self.stream
        super().reopenIfNeeded()
        if before is not None and self.stream is not before:
            self.stream.write(f"{NOTE_MARK}what stood here before was moved or removed meanwhile\n")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        raise  # the error that logging is handling right now


class RunLog:
    """log.txt and the terminal. What is said before `open` reaches the file after its first lines.

    One run at a time per process: the lines go through the logger named "fedirm".
    """

    def __init__(self):
        self.logger = logging.getLogger("fedirm")
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        self.early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL)
        terminal = _Terminal()
        terminal.setFormatter(StampFormatter())
        self.handlers: list[logging.Handler] = [terminal, self.early]
        for handler in self.handlers:
            self.logger.addHandler(handler)

    def record(self, text: str) -> None:
        """One of utils/tables/log_lines.py's records, word by word."""
        self.logger.info(text)

    def note(self, text: str) -> None:
        """Anything else that a reader should know; marked in the file, line by line."""
        self.logger.info(text, extra={"note": True})

    def open(self, path: Path, first_lines: Sequence[str]) -> None:
        """Append to `path` from now on, beginning with `first_lines`."""
        file = _LogFile(path, encoding="utf-8")
        file.setFormatter(StampFormatter(NOTE_MARK))
        self.logger.removeHandler(self.early)
        self.logger.addHandler(file)
        self.handlers = [self.handlers[0], file]
        for line in first_lines:
            self.record(line)
        self.early.setTarget(file)
        self.early.close()

    def close(self) -> None:
        """Close the file and leave the logger as it was."""
        for handler in self.handlers:
            self.logger.removeHandler(handler)
            with suppress(OSError):  # a full disk, which was an error at the line itself
                handler.close()


class GrowingTable:
    """A CSV file that only ever grows: written whole or not at all, while each of its items is
    turned into text once.

    rows: makes the rows of an item. columns: stand there whether or not a row has them; a column
    that a later row brings stands where that row has it. None becomes an empty cell; floats are
    written so that they read back exactly.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str] = (),
        rows: Callable[[object], Sequence[Mapping]] = lambda item: [item],
    ):
        self.path = path
        self.columns = list(columns)
        self.rows = rows
        self._texts: list[str] = []

    def write(self, items: Sequence) -> None:
        """`items` are those of the last call and perhaps more."""
        added = [self.rows(item) for item in items[len(self._texts) :]]
        if self._add_columns(added) and self._texts:
            self._texts.clear()
            added = [self.rows(item) for item in items]
        self._texts += [self._text(rows) for rows in added]
        write_text(self.path, to_csv(self.columns, [], exact=True) + "".join(self._texts))

    def _add_columns(self, added: Sequence[Sequence[Mapping]]) -> bool:
        before = len(self.columns)
        for names in dict.fromkeys(tuple(row) for rows in added for row in rows):
            place = 0
            for name in names:
                if name not in self.columns:
                    self.columns.insert(place, name)
                place = self.columns.index(name) + 1
        return len(self.columns) > before

    def _text(self, rows: Sequence[Mapping]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, self.columns, lineterminator="\n").writerows(
            {name: csv_cell(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
            for row in rows
        )
        return buffer.getvalue()


# Columns of metrics.csv that begin so, or end so, form a group of curves.
_BEGINNINGS = {"test": "test", "val": "val", "seconds": "time", "clients": "clients"}
_BEGINNINGS["learning_rate"] = "learning_rate"


def curve_tag(column: str) -> str:
    """A column of metrics.csv as TensorBoard groups it: test_auroc -> test/auroc, supervised_loss
    -> loss/supervised, seconds_round -> time/round; what fits none goes to method/."""
    for beginning, group in _BEGINNINGS.items():
        if column.startswith(f"{beginning}_"):
            return f"{group}/{column.removeprefix(f'{beginning}_')}"
    if column == "loss":
        return "loss/mean"
    if column.endswith("_loss"):
        return f"loss/{column.removesuffix('_loss')}"
    return f"method/{column}"


class Curves:
    """TensorBoard: one scalar per number, one picture per matrix, in `folder`.

    Written by the caller's own thread: tensorboardX's SummaryWriter has one of its own, and its
    caller waits for it for ever once that has died of a full disk.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = EventsWriter(str(folder / "events"))
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(first_step, session_log=restart)  # later steps of an earlier try are void

    def scalars(self, row: Mapping, step: int) -> None:
        """Every number of a metrics.csv row under its `curve_tag`; empty cells are left out."""
        for name, value in row.items():
            if isinstance(value, (int, float)) and math.isfinite(value) and name != "round":
                self._write(step, summary=summary.scalar(curve_tag(name), value))

    def hyperparameters(self, flags: Mapping, metrics: Sequence[str]) -> None:
        """The run's flags (JSON types), for TensorBoard's table of runs, beside the curves of
        these columns."""
        shown = {
            name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
            for name, value in flags.items()
        }
        for part in summary.hparams(shown, dict.fromkeys(map(curve_tag, metrics))):
            self._write(0, summary=part)

    def matrix(self, name: str, values, class_names: Sequence[str], step: int) -> None:
        """A (C, C) array as a picture with the classes' names and the numbers in the cells."""
        picture = matrix_picture(np.asarray(values, float), class_names)
        self._write(step, summary=summary.image(f"matrices/{name}", picture.transpose(2, 0, 1)))

    def flush(self) -> None:
        """Hand what was written over to the system."""
        self.writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        with suppress(OSError):  # a full disk, which was an error at the flush before
            self.writer.close()

    def _write(self, step: int, **content) -> None:
        self.writer.write_event(event_pb2.Event(step=step, wall_time=time.time(), **content))
