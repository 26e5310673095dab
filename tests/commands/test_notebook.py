"""notebooks/quickstart.ipynb: its cells run, one after the other, on a run made small."""

import json

import matplotlib
import numpy as np

from tests.helpers import PROJECT

SMALL = (
    "--preset demo --rounds 1 --join_epoch -1 --image_size 32 --phantom_patients 24 "
    "--num_users 2 --num_labeled 1 --progress 0"
)


def test_the_quickstart_runs_and_keeps_no_output(tmp_path, monkeypatch):
    notebook = json.loads((PROJECT / "notebooks" / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)  # a number comes from a run, not from here
    sources = ["".join(cell["source"]) for cell in cells]
    (flags,) = [line for line in sources[0].splitlines() if line.startswith("FLAGS = ")]
    sources[0] = sources[0].replace(flags, f"FLAGS = {SMALL!r}")
    sources[0] = sources[0].replace('"train_main.py"', repr(str(PROJECT / "train_main.py")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    matplotlib.use("agg")
    scope = {}
    for source in sources:
        exec(source, scope)  # noqa: S102
    assert list(scope["metrics"]["phase"]) == ["all"]
    for matrix in scope["matrices"].values():
        assert matrix.shape == (5, 5)
        measured = matrix.dropna().sum(axis=1)  # a class that nobody had has no row
        assert len(measured)
        np.testing.assert_allclose(measured, 1, atol=0.03)
    assert set(scope["matrices"]) >= {"labeled_mean"}
    classes = scope["model"].class_names
    np.testing.assert_allclose(scope["table"][classes].sum(axis=1), 1, atol=1e-9)
