"""What a run shows of its rounds while it trains: tables, TensorBoard's curves, figures."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from record.pace import SECONDS_BETWEEN_FIGURES, Pace
from record.rounds import MATRIX_COLUMNS, RoundMatrices, matrices_rows
from utils.logger import Curves, GrowingTable
from utils.plots.runs import rebuild_figures


class Outputs:
    """metrics.csv, matrices.csv, tb and figures of one run; all can be made anew from its state.

    figure_every: rounds between figures, 0: by the clock.
    """

    def __init__(self, folder: Path, figure_every: int):
        self.folder = folder
        self.figure_pace = Pace(figure_every, SECONDS_BETWEEN_FIGURES)
        self._class_names: Sequence[str] = ()  # from `begin` on, as what follows
        self._flags: Mapping[str, object] = {}
        self._scores: Sequence[str] = ()
        self._tables: list[GrowingTable] = []
        self._curves: Curves | None = None  # from the first round on
        self._drawing = False

    def begin(
        self, class_names: Sequence[str], flags: Mapping[str, object], scores: Sequence[str]
    ) -> None:
        """Before the first round. flags, and `scores` by their names in metrics.csv, go to
        TensorBoard's table of runs."""
        self._class_names, self._flags, self._scores = class_names, flags, scores
        rows_of_matrices = partial(matrices_rows, class_names=class_names)
        self._tables = [
            GrowingTable(self.folder / "metrics.csv"),
            GrowingTable(self.folder / "matrices.csv", MATRIX_COLUMNS, rows_of_matrices),
        ]

    def write_tables(self, history: Sequence[dict], matrices: Sequence[RoundMatrices]) -> None:
        """metrics.csv and matrices.csv of all rounds; no row of a round that shares no matrix."""
        for table, items in zip(self._tables, (history, matrices), strict=True):
            table.write(items)

    def add_round(
        self, history: Sequence[dict], matrices: Sequence[RoundMatrices], last: bool
    ) -> None:
        """The tables and the curves of a round more; matrices become pictures with the figures,
        and in the `last` round."""
        self.write_tables(history, matrices)
        row = history[-1]
        self._drawing = self.figure_pace.is_due(row["round"])
        if self._curves is None:
            self._curves = Curves(self.folder / "tb", row["round"])
            self._curves.hyperparameters(self._flags, self._scores)
        self._curves.scalars(row, row["round"])
        if self._drawing or last:
            for name, matrix in matrices[-1].means.items():
                self._curves.matrix(name, matrix, self._class_names, row["round"])
        self._curves.flush()

    def draw(self) -> None:
        """The figures of all rounds, where they are due."""
        if self._drawing:
            rebuild_figures(self.folder)
            self.figure_pace.done()

    def close(self) -> None:
        """Close the curves' file."""
        if self._curves is not None:
            self._curves.close()
