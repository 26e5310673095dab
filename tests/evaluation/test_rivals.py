"""`reproduce.py rivals`: each class, the interval of each run, and what a round costs."""

import pytest

from paper.published import ITEMS
from paper.rivals import look_closer, write_closer

ROUNDS = """round,clients_labeled,clients_unlabeled,seconds_round
0,2,0,10
1,2,8,40
2,2,3,60
3,2,8,50
"""


def write_run(folder, first: float, second: float, memory: bool = True):
    """A finished run of two classes: what `look_closer` reads of it."""
    (folder / "tables").mkdir(parents=True)
    (folder / "checkpoints" / "clients").mkdir(parents=True)
    (folder / "metrics.csv").write_text(ROUNDS)
    mean = (first + second) / 2
    (folder / "tables" / "per_class.csv").write_text(
        f'class,images,AUROC,95% interval\na,9,{first},"[0.5, 1.0]"\nb,9,{second},"[0.4, 0.9]"\n'
        f'macro,18,{mean},"[0.6, 0.8]"\nclasses in macro,,2,\n'
    )
    (folder / "tables" / "overall.csv").write_text(
        "metric,value\ntop-1 accuracy,0.9\nbalanced accuracy,0.4\n"
    )
    (folder / "checkpoints" / "epoch_3.pth").write_bytes(bytes(5_000_000))
    if memory:
        for client, size in enumerate((2_000_000, 7_000_000)):
            path = folder / "checkpoints" / "clients" / f"client_{client}_000003.pth"
            path.write_bytes(bytes(size))
    return folder


def test_a_run_by_hand(tmp_path):
    found = look_closer(write_run(tmp_path / "run", 0.9, 0.7))
    assert found.auroc == {"a": 0.9, "b": 0.7} and found.worst == 0.7
    assert found.macro == pytest.approx(0.8) and found.interval == "[0.6, 0.8]"
    assert found.seconds == 50  # the median of 40, 60, 50: rounds with unlabelled clients
    assert found.sent == 2 * (10 + 5 + 10) / 3 * 5_000_000
    assert found.memory == 7_000_000 and found.balanced == 0.4


def test_the_tables_by_hand(tmp_path):
    runs = [write_run(tmp_path / "1", 0.9, 0.7), write_run(tmp_path / "2", 0.8, 0.6, memory=False)]
    text, written = write_closer([("FedIRM 2/8", runs), ("alone", runs[1:])], tmp_path / "rivals")
    assert "| FedIRM 2/8 | 85.0 ± 7.1 | 65.0 ± 7.1 | 65.0 ± 7.1 | 40.0 ± 0.0 |" in text
    assert r"0.800 \[0.6, 0.8\]; 0.700 \[0.6, 0.8\]" in text
    assert "| alone | 50.0 | 83 | NA |" in text
    assert [path.name for path in written] == [
        "rivals_classes.md",
        "rivals_classes.csv",
        "rivals_cost.md",
        "rivals_cost.csv",
    ]
    assert all(path.read_text() for path in written)


def test_all_rows_but_the_bounds_share_one_weight_of_the_labelled():
    settings = ITEMS["rivals"].settings
    methods = [setting.method for setting in settings]
    assert methods[:2] == ["fedavg", "fedavg"] and len(set(methods[2:])) == len(methods[2:]) == 6
    assert all(setting.extra[0] == ("labeled_weight", 4.0) for setting in settings[2:])
    assert [setting.method for setting in settings[2:] if setting.extra[1:]] == ["rscfed"]
