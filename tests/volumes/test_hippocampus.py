"""Some of the Decathlon's own hippocampus volumes, where they lie beside this folder."""

import json
import shutil

import numpy as np
import pytest

from dataloaders.prepare.decathlon import prepare_decathlon
from dataloaders.volumes import open_volumes, read_volumes
from tests.helpers import PROJECT

SOURCE = PROJECT.parent / "shared" / "data" / "Task04_Hippocampus"
NUMBERS = ("001", "003", "033", "044", "135", "243")  # 003 and 243 have labels of float32

pytestmark = pytest.mark.skipif(
    not SOURCE.is_dir(), reason=f"needs the Decathlon's hippocampus volumes in {SOURCE}"
)


def test_real_volumes_of_three_scales_and_two_kinds_of_label(tmp_path):
    content = json.loads((SOURCE / "dataset.json").read_text())
    wanted = tuple(f"hippocampus_{number}.nii.gz" for number in NUMBERS)
    pairs = [pair for pair in content["training"] if pair["image"].endswith(wanted)]
    for pair in pairs:
        for path in pair.values():
            (tmp_path / "task" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SOURCE / path, tmp_path / "task" / path)
    (tmp_path / "task" / "dataset.json").write_text(json.dumps(content | {"training": pairs}))
    prepare_decathlon(tmp_path / "task", tmp_path / "out")
    table = read_volumes(tmp_path / "out" / "volumes.csv")
    assert table.names == [f"hippocampus_{number}" for number in NUMBERS]
    assert table.class_names == ("background", "Anterior", "Posterior")
    assert len(set(table.sites)) == 3 and set(table.spacings) == {(1.0, 1.0, 1.0)}
    assert (table.counts[:, 1:] > 500).all()
    shares = table.counts.sum(axis=0) / table.counts.sum()
    assert shares[0] == pytest.approx(0.95, abs=0.02)
    for array in open_volumes(tmp_path / "out", table):
        assert np.isfinite(array).all() and abs(array[0].astype(float).std() - 1) < 1e-2
