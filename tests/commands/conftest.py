"""What the tests of reproduce.py begin with."""

import pytest

import reproduce
from tests.helpers.reproduced import Workplace
from utils.plots import style as figures


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    """A folder where reproduce.py runs a stand-in for train_main.py."""
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 40)  # drawing takes most of the time
    return Workplace(tmp_path, monkeypatch, capsys)


@pytest.fixture
def no_report(monkeypatch):
    """For tests of the runs alone."""
    monkeypatch.setattr(reproduce, "report", lambda plan, options: None)
