"""Reads what a run leaves in its folder: args.json, metrics.csv and matrices.csv."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError

SOURCES = ("labeled_mean", "unlabeled_mean")
TEXT_COLUMNS = frozenset({"phase", "source", "row", "column"})


def read_arguments(run_dir: str | os.PathLike) -> dict[str, object]:
    """The flags of a run; raises UserError where args.json is missing or damaged."""
    return _read_json(Path(run_dir) / "args.json")


def read_environment(run_dir: str | os.PathLike) -> dict[str, object]:
    """env.json of a run: versions, commit, devices; empty where it is missing, else as above."""
    path = Path(run_dir) / "env.json"
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; name a folder made by train_main.py") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); train the run again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no names with values; train the run again")
    return content


def read_metrics(path: str | os.PathLike) -> pd.DataFrame:
    """metrics.csv with one row per round, sorted; of a round written twice the later row counts.

    Empty cells are NaN. Raises UserError where the file is missing, damaged or has no rounds.
    """
    frame = _read_csv(Path(path), {"round"})
    frame = frame.drop_duplicates("round", keep="last").sort_values("round", ignore_index=True)
    if frame.empty:
        raise UserError(f"{path}: no finished round yet; resume the run first")
    return frame


def last_value(metrics: pd.DataFrame, column: str) -> float:
    """The last value that is not empty in a column of metrics.csv; NaN where there is none."""
    known = metrics[column].dropna() if column in metrics else metrics["round"].head(0)
    return float(known.iloc[-1]) if len(known) else float("nan")


def read_matrices(path: str | os.PathLike) -> tuple[dict[int, dict[str, np.ndarray]], list[str]]:
    """matrices.csv as {round: {source: (C, C) matrix}} and the C class names in their order.

    Rows and columns are classes; a source that a round lacks is absent from its dict.
    """
    frame = _read_csv(Path(path), {"round", "source", "row", "column", "value"})
    class_names = list(frame["row"].unique())
    matrices: dict[int, dict[str, np.ndarray]] = {}
    for (number, source), cells in frame.groupby(["round", "source"], sort=True):
        wide = cells.drop_duplicates(["row", "column"], keep="last")
        wide = wide.pivot(index="row", columns="column", values="value")
        matrix = wide.reindex(index=class_names, columns=class_names).to_numpy(float)
        matrices.setdefault(int(number), {})[source] = matrix
    return matrices, class_names


def _read_csv(path: Path, needed: set[str]) -> pd.DataFrame:
    try:
        text = path.read_text(encoding="utf-8")
        # An empty cell alone is "not there": a class may be called None or NA.
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; name a folder made by train_main.py") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV ({error}); train the run again") from error
    if not text.endswith("\n"):
        raise UserError(f"{path}: its last line is cut off; train the run again")
    if missing := sorted(needed - set(frame.columns)):
        raise UserError(f"{path}: no column {', '.join(missing)}; train the run again")
    numbers = [column for column in frame if column not in TEXT_COLUMNS]
    try:
        # Python's own conversion gives back the very number that was written.
        frame[numbers] = frame[numbers].to_numpy(object).astype(float)
        if not (frame["round"] % 1 == 0).all():
            raise ValueError("a round that is no whole number")
    except ValueError as error:
        raise UserError(f"{path}: {error}; train the run again") from error
    return frame.astype({"round": int})
