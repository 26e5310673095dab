"""What the tests of figures begin with."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from utils.plots import comparison as comparison_plots
from utils.plots import runs as plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved, by file name."""
    figures: dict[str, Figure] = {}

    def keep(figure: Figure, out_png) -> None:
        figures[Path(out_png).name] = figure

    for module in (plots, comparison_plots):
        monkeypatch.setattr(module, "save_figure", keep)
    return figures
