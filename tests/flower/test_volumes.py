"""`--engine flower` on volumes computes what the loop computes."""

from tests.flower.conftest import Result, assert_same, check, train_main
from tests.helpers.volumes import write_prepared
from tests.volumes.conftest import TINY


def test_segmentation_on_flower_has_the_bits_of_the_loop(tmp_path):
    prepared = write_prepared(tmp_path / "volumes", 12, patients=True)
    flags = [*TINY, "--volumes", str(prepared), "--rounds", "4", "--num_users", "3"]
    results = []
    for engine in ("loop", "flower"):
        check(train_main(tmp_path / engine, *flags, "--engine", engine))
        results.append(Result(tmp_path / engine))
    assert_same(*results)
    assert len(results[0].metrics()) == 4
