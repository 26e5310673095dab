"""What a run writes while it goes: log.txt, metrics.csv, matrices.csv, TensorBoard curves."""

import csv
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm.contrib.logging import logging_redirect_tqdm

from utils.files import write_text

LOGGER = logging.getLogger("fedirm")


class StampFormatter(logging.Formatter):
    """`[hh:mm:ss.mmm] message`; a message that begins with a line break goes without the stamp."""

    def __init__(self):
        super().__init__("[%(asctime)s.%(msecs)03d] %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        return message[1:] if message.startswith("\n") else super().format(record)


def open_log(path: Path) -> logging.Logger:
    """The run's logger: appends to `path` and repeats every line on standard output."""
    close_log()
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    for handler in (logging.FileHandler(path, encoding="utf-8"), logging.StreamHandler(sys.stdout)):
        handler.setFormatter(StampFormatter())
        LOGGER.addHandler(handler)
    return LOGGER


def close_log() -> None:
    """Close what `open_log` opened."""
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()


def log_beside_bars() -> logging_redirect_tqdm:
    """While this context is open, a log line moves a progress bar down instead of cutting it."""
    return logging_redirect_tqdm([LOGGER])


def write_rows(path: Path, rows: Sequence[Mapping]) -> None:
    """Write `rows` as CSV, whole or not at all; columns in order of first appearance.

    None becomes an empty cell; floats are written so that they read back exactly.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


class Curves:
    """TensorBoard: one scalar per number, one picture per matrix, in `folder`."""

    def __init__(self, folder: Path, first_step: int):
        self.writer = SummaryWriter(str(folder), purge_step=first_step)

    def scalars(self, row: Mapping, step: int) -> None:
        """Every number of a metrics.csv row; empty cells are left out."""
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "round":
                self.writer.add_scalar(name, value, step)

    def matrix(self, name: str, values, step: int, magnify: int = 24) -> None:
        """A (C, C) array in [0, 1] as a grey picture, `magnify` pixels per cell."""
        picture = values.repeat(magnify, axis=0).repeat(magnify, axis=1)
        self.writer.add_image(name, picture[None].clip(0, 1), step)

    def close(self) -> None:
        """Flush and close the files."""
        self.writer.close()
