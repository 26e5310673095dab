"""Volumes that nobody drew structures in: prepared, and held by clients without labels alone."""

import json

import numpy as np
import pytest

from dataloaders.federated_volumes import deal_volumes, read_sets
from dataloaders.prepare.decathlon import prepare_decathlon
from dataloaders.volumes import open_volumes, read_volumes, write_volumes
from options import args_parser
from predict.segmenter import load_segmenter, open_held_out
from tests.helpers.segmenters import save_segmenter
from tests.helpers.volumes import write_decathlon, write_nifti, write_prepared
from tests.volumes.conftest import TINY, train
from utils.errors import UserError

SHAPE = (6, 7, 8)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 10, SHAPE).astype(np.float32)


@pytest.fixture
def task(tmp_path):
    """The made task with two images in imagesTs, which dataset.json lists as MSD does."""
    folder = write_decathlon(tmp_path / "Task99_Made")
    (folder / "imagesTs").mkdir()
    for number in range(2):
        write_nifti(folder / "imagesTs" / f"test_{number}.nii.gz", noise(number))
    content = json.loads((folder / "dataset.json").read_text())
    content["test"] = [f"./imagesTs/test_{number}.nii.gz" for number in range(2)]
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_msds_test_images_are_prepared_where_asked(task, tmp_path, capsys):
    prepare_decathlon(task, tmp_path / "plain")
    labeled = read_volumes(tmp_path / "plain" / "volumes.csv")
    assert labeled.is_labeled.all()
    prepare_decathlon(task, tmp_path / "all", unlabeled=True)
    assert "2 of them without labels" in capsys.readouterr().out
    table = read_volumes(tmp_path / "all" / "volumes.csv")
    assert len(table) == len(labeled) + 2
    assert [table.names[row] for row in np.flatnonzero(~table.is_labeled)] == ["test_0", "test_1"]
    array = open_volumes(tmp_path / "all", table)[table.names.index("test_1")]
    expected = (noise(1) - noise(1).mean()) / noise(1).std()
    np.testing.assert_allclose(array[0], expected, atol=5e-3)
    assert not array[1].any()


def test_nnunets_images_without_a_label_are_prepared_where_asked(tmp_path):
    folder = tmp_path / "Dataset099"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    label = np.zeros(SHAPE, np.uint8)
    label[2:4] = 1
    for number, place in enumerate(("imagesTr", "imagesTr", "imagesTs")):
        write_nifti(folder / place / f"c{number}_0000.nii.gz", noise(number))
    write_nifti(folder / "labelsTr" / "c0.nii.gz", label)
    description = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}}
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
    prepare_decathlon(folder, tmp_path / "out", unlabeled=True)
    table = read_volumes(tmp_path / "out" / "volumes.csv")
    assert table.names == ["c0", "c1", "c2"] and table.is_labeled.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ([], "--unlabeled, and every volume has a label"),
        (["../secret.nii.gz"], "leads out of the folder"),
        ([7], "test has '7'; expected files"),
        (["./imagesTs/absent.nii.gz"], "absent.nii.gz: no such file"),
    ],
)
def test_lists_that_cannot_be_used_are_one_line(task, tmp_path, listed, words):
    content = json.loads((task / "dataset.json").read_text()) | {"test": listed}
    (task / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        prepare_decathlon(task, tmp_path / "out", unlabeled=True)


def without_labels(folder, numbers, patients=False):
    """A prepared folder of twelve volumes in which those `numbers` have no label."""
    write_prepared(folder, 12, patients=patients)
    table = read_volumes(folder / "volumes.csv")
    table.counts[list(numbers)] = 0
    write_volumes(folder / "volumes.csv", table)
    return folder


def flags(folder, *more: str):
    return args_parser(["--preset", "demo-3d", "--volumes", str(folder), "--num_users", "3", *more])


def test_they_join_the_training_set_and_go_to_clients_without_labels(tmp_path):
    args = flags(without_labels(tmp_path / "v", range(6, 12)), "--num_labeled", "1")
    tables, how = read_sets(args)
    # Of the labelled ones the last is tested, beside the first without a label.
    assert "5 without labels join the first, 1 that may be of tested patients do not" in how
    assert all(tables[name].is_labeled.all() for name in ("val", "test") if name in tables)
    train_table = tables["train"]
    dealt = deal_volumes(args, train_table)
    assert dealt.labelled == (0,) and train_table.is_labeled[dealt.clients[0]].all()
    held = np.sort(np.concatenate(dealt.clients))
    assert held.tolist() == list(range(len(train_table)))
    unlabeled = [int((~train_table.is_labeled[rows]).sum()) for rows in dealt.clients]
    assert unlabeled == [0, 3, 2]


def test_where_patients_are_unknown_no_neighbour_of_a_tested_volume_joins(tmp_path):
    """Numbered as the Decathlon's: every third volume is of its test set, without a label."""
    folder = without_labels(tmp_path / "v", range(0, 12, 3))
    whole = read_volumes(folder / "volumes.csv")
    for seed in range(8):
        tables, how = read_sets(flags(folder, "--num_labeled", "1", "--seed", str(seed)))
        tested = {
            whole.names.index(v) for n in ("val", "test") if n in tables for v in tables[n].names
        }
        train = tables["train"]
        joined = {
            whole.names.index(name)
            for name, labeled in zip(train.names, train.is_labeled, strict=True)
            if not labeled
        }
        beside = {row + step for row in tested for step in (-1, 1)}
        assert joined == set(range(0, 12, 3)) - beside
        assert f"{len(joined)} without labels join" in how


def test_none_of_a_patient_who_is_tested_joins(tmp_path):
    # Two volumes a patient; the second of each has no label.
    folder = without_labels(tmp_path / "v", range(1, 12, 2), patients=True)
    tables, how = read_sets(flags(folder, "--num_labeled", "1"))
    tested = {group for name in ("val", "test") if name in tables for group in tables[name].groups}
    assert tested and not tested & set(tables["train"].groups)
    assert len(tables["train"]) == 2 * len(set(tables["train"].groups))
    assert f"{6 - len(tested)} without labels join" in how


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--partition", "site", "--num_users", "2"), r"at labelled client \d"),
        (("--labeled_fraction", "0.5"), "--labeled_fraction takes labels"),
    ],
)
def test_where_labels_are_needed_a_volume_without_is_refused_by_name(tmp_path, more, words):
    args = flags(without_labels(tmp_path / "v", (1, 3, 5)), "--num_labeled", "2", *more)
    tables, _ = read_sets(args)
    with pytest.raises(UserError, match=rf"volume v\d has no label and stands .*{words}"):
        deal_volumes(args, tables["train"])


def test_a_test_list_with_one_of_them_is_refused_by_name(tmp_path):
    folder = without_labels(tmp_path / "v", (3,))
    table = str(folder / "volumes.csv")
    with pytest.raises(UserError, match="line 5: volume v3 has no label and stands in"):
        read_sets(flags(folder, "--csv_file_train", table, "--csv_file_test", table))


def test_a_list_to_be_tested_with_one_of_them_is_refused_by_name(tmp_path):
    folder = without_labels(tmp_path / "volumes", [2])
    model = load_segmenter(save_segmenter(tmp_path / "epoch_3.pth"), "cpu")
    with pytest.raises(UserError, match="volume v2 has no label and stands in the list to be tes"):
        open_held_out(model, folder, folder / "volumes.csv")


def test_a_run_learns_from_them(tmp_path):
    folder = without_labels(tmp_path / "v", range(8, 12))
    told = ["--volumes", folder, "--num_labeled", "1", "--rounds", "2"]
    told += ["--join_epoch", "-1", "--volume_sets", "4", "2", "2"]
    ended = train(*TINY, *told, "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.error
    assert "3 without labels join the first" in ended.said
    assert "more without labels at the clients without" in ended.said
    assert (tmp_path / "run" / "REPORT.md").exists()


def test_sets_larger_than_what_has_labels_are_refused_by_their_own_flag(tmp_path):
    folder = without_labels(tmp_path / "v", range(8, 12))
    words = "--volume_sets 8 2 2: cannot be taken from 8 labelled volumes; give smaller ones"
    with pytest.raises(UserError, match=words):
        read_sets(flags(folder, "--volume_sets", "8", "2", "2"))
