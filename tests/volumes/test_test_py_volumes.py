"""test.py on volumes: a run's own list, another list, and NIfTI files without labels."""

import csv
import shlex

import numpy as np
import pytest
import torch

import dataloaders.nifti
import predict.segmenter
from dataloaders.nifti import read_nifti, write_labels
from dataloaders.prepare.decathlon import prepare_decathlon
from networks.kinds import build_network
from networks.saved import model_content
from predict.segmenter import Segmenter, load_segmenter, open_held_out, predict_volumes
from predict.volumes import segment_set
from tests.helpers.segmenters import save_segmenter
from tests.helpers.used_run import run_test_py
from tests.helpers.volumes import CLASSES, write_decathlon, write_nifti
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

_C, _S = np.cos(0.3), np.sin(0.3)
OBLIQUE = np.array(
    [[-0.9 * _C, 0.95 * _S, 0, 12], [0, 0, 1.8, -7], [0.9 * _S, 0.95 * _C, 0, 30], [0, 0, 0, 1.0]]
)


@pytest.fixture
def model(tmp_path) -> Segmenter:
    return load_segmenter(save_segmenter(tmp_path / "epoch_3.pth"), "cpu")


def image(*shape: int) -> np.ndarray:
    smooth = np.random.default_rng(4).normal(size=shape).cumsum(0).cumsum(1)
    return (100 + smooth).astype(np.float32)


def scores(folder) -> list[str]:
    return (folder / "scores_test.csv").read_text().splitlines()


def test_the_printed_command_gives_the_numbers_of_the_report(run, tmp_path):
    folder, ended = run
    printed = ended.said.split("test again with: python test.py ")[1].splitlines()[0]
    said = run_test_py(*shlex.split(printed), "--gpu", "cpu", "--out", tmp_path / "again")
    assert scores(tmp_path / "again") == scores(folder) and "report: " in said
    run_test_py("--resume", folder, "--gpu", "cpu")
    again = folder / "tests" / "epoch_2-testing"
    assert scores(again) == scores(folder)
    assert "0 of 1 test patients were in training" in (again / "REPORT.md").read_text()


def test_another_list_of_volumes(run, prepared, tmp_path):
    lines = (prepared / "volumes.csv").read_text().splitlines()
    listed = tmp_path / "three.csv"
    listed.write_text("\n".join([lines[0], *lines[2:5]]) + "\n")
    flags = ["--resume", run[0], "--volumes", prepared, "--csv_file_test", listed]
    run_test_py(*flags, "--gpu", "cpu", "--out", tmp_path / "out")
    assert [row.split(",")[0] for row in scores(tmp_path / "out")[1::2]] == ["v1", "v2", "v3"]
    with pytest.raises(UserError, match="--threshold: has no meaning with a network of volumes"):
        run_test_py(*flags, "--threshold", "0.5")
    listed.write_text(listed.read_text().replace("front", "head"))
    with pytest.raises(UserError, match="its classes are background, head, back, but"):
        run_test_py(*flags)


def test_volumes_prepared_otherwise_are_refused(prepared, tmp_path):
    path = save_segmenter(tmp_path / "epoch_3.pth", spacing=[1.0, 1.0, 2.0])
    with pytest.raises(UserError, match="prepared with spacing 1.0 1.0 1.0, the training volumes"):
        open_held_out(load_segmenter(path, "cpu"), prepared, prepared / "volumes.csv")


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 1.5)])
def test_a_file_is_segmented_as_its_prepared_array_is(tmp_path, spacing):
    task = write_decathlon(tmp_path / "task")
    prepare_decathlon(task, tmp_path / "out", spacing=spacing)
    path = save_segmenter(tmp_path / "epoch_3.pth", spacing=list(spacing), values=[0, 1, 2])
    model = load_segmenter(path, "cpu")
    held_out = open_held_out(model, tmp_path / "out", tmp_path / "out" / "volumes.csv")
    expected = segment_set([model.net], held_out)
    said = predict_volumes(model, [task / "imagesTr"], tmp_path / "predicted")
    assert len(said) == 1 and said[0].startswith("3 volumes in ")
    for name, classes in zip(held_out.names, expected, strict=True):
        found = read_nifti(tmp_path / "predicted" / f"{name}.nii.gz").data[0]
        if spacing == (1.0, 1.0, 1.0):
            np.testing.assert_array_equal(found, classes)
        else:
            assert classes.shape == (6, 7, 5) and found.shape == (6, 7, 8)


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1, -1, 1, 1.0]), OBLIQUE])
def test_a_prediction_lies_on_its_source(model, tmp_path, affine):
    import nibabel

    source = write_nifti(tmp_path / "in" / "deep" / "head.nii", image(11, 9, 13), affine)
    predict_volumes(model, [tmp_path / "in"], tmp_path / "out")
    predicted = nibabel.load(tmp_path / "out" / "head.nii.gz")
    original = nibabel.load(source)
    assert predicted.shape == original.shape
    np.testing.assert_allclose(predicted.affine, original.affine, atol=1e-6)
    assert nibabel.aff2axcodes(predicted.affine) == nibabel.aff2axcodes(original.affine)
    assert predicted.header.get_xyzt_units()[0] == "mm"
    values = np.asanyarray(predicted.dataobj)
    assert predicted.get_data_dtype() == np.uint8 and set(np.unique(values)) <= {0, 1, 5}
    assert len(np.unique(values)) > 1


def test_one_head_stored_in_two_orders_is_segmented_alike(model, tmp_path):
    """In RAS, and with x and z running the other way and y and z exchanged: the same voxels."""
    import nibabel

    plain = nibabel.Nifti1Image(image(10, 12, 9), np.diag([1, 1, 1, 1.0]))
    order = nibabel.orientations.axcodes2ornt(("L", "I", "A"))
    turned = plain.as_reoriented(order)
    (tmp_path / "in").mkdir()
    nibabel.save(plain, tmp_path / "in" / "plain.nii.gz")
    nibabel.save(turned, tmp_path / "in" / "turned.nii.gz")
    predict_volumes(model, [tmp_path / "in"], tmp_path / "out")
    ours, theirs = (nibabel.load(tmp_path / "out" / f"{n}.nii.gz") for n in ("plain", "turned"))
    assert theirs.shape == turned.shape != ours.shape
    back = nibabel.as_closest_canonical(theirs)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.asanyarray(ours.dataobj))
    np.testing.assert_allclose(back.affine, ours.affine)


def test_a_prediction_has_the_forms_and_the_unit_of_its_source(model, tmp_path):
    """Viewers take the one or the other: both lie where the source's lie, under the same codes."""
    import nibabel

    source = nibabel.Nifti1Image(image(11, 9, 13), np.eye(4))
    source.set_qform(np.diag([-1, -1, 1, 1.0]) + np.array([[0] * 3 + [50]] * 3 + [[0] * 4]), 1)
    source.set_sform(np.eye(4), 4)
    source.header.set_xyzt_units("meter")
    source.header["pixdim"][1:4] = 1
    (tmp_path / "in").mkdir()
    nibabel.save(source, tmp_path / "in" / "a.nii.gz")
    volume = read_nifti(tmp_path / "in" / "a.nii.gz")
    assert volume.spacing == (1000, 1000, 1000)
    write_labels(tmp_path / "b.nii.gz", np.ones((11, 9, 13), np.uint8), volume)
    ours = nibabel.load(tmp_path / "b.nii.gz").header
    for read in ("get_qform", "get_sform"):
        (form, code), (theirs, kept) = (
            getattr(header, read)(coded=True) for header in (ours, source.header)
        )
        assert code == kept
        np.testing.assert_allclose(form, theirs, atol=1e-5)
    assert ours.get_xyzt_units()[0] == "meter"


def test_channels_in_files_of_their_own_are_one_volume(tmp_path):
    model = load_segmenter(
        save_segmenter(tmp_path / "epoch_3.pth", {"in_channels": 2}, channels=2), "cpu"
    )
    for name in ("a_0000", "a_0001", "b_0000"):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", image(9, 9, 9))
    said = predict_volumes(model, [tmp_path / "in"], tmp_path / "out")
    assert said[0].startswith("1 volumes in") and (tmp_path / "out" / "a.nii.gz").exists()
    with open(tmp_path / "out" / "predictions.csv") as file:
        notes = {row["VolumeID"]: row["note"] for row in csv.DictReader(file)}
    alone = "has 1 channel(s), the network was trained on 2"
    assert notes == {"a": "", "b_0000": alone}
    names = ["scan_2019", "scan_2020", "gap_0000", "gap_0002", "more_0000", "more_0001"]
    files = {name: tmp_path / name for name in names}
    grouped = predict.segmenter.by_volume(files, 2)
    assert list(grouped) == ["scan_2019", "scan_2020", "gap_0000", "gap_0002", "more"]
    assert list(predict.segmenter.by_volume(files, 1)) == names


def test_a_form_that_cannot_be_read_is_done_without(model, tmp_path):
    """A quaternion that is none, beside a good sform."""
    import nibabel

    source = nibabel.Nifti1Image(image(11, 9, 13), np.eye(4))
    (tmp_path / "in").mkdir()
    nibabel.save(source, tmp_path / "in" / "a.nii")
    content = bytearray((tmp_path / "in" / "a.nii").read_bytes())
    content[252:254] = np.int16(1).tobytes()  # qform_code
    content[256:268] = np.array([0.9, 0.9, 0.9], np.float32).tobytes()  # its quaternion
    (tmp_path / "in" / "a.nii").write_bytes(content)
    assert predict_volumes(model, [tmp_path / "in"], tmp_path / "out")[0].startswith("1 volumes")
    found = nibabel.load(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_allclose(found.affine, np.eye(4))


def test_a_volume_too_large_for_the_memory_stops_no_other(model, tmp_path, monkeypatch):
    for name in "abc":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", image(9, 9, 9))
    write_nifti(tmp_path / "in" / "d.nii.gz", image(9, 9, 9), np.diag([90, 90, 90, 1.0]))
    honest = predict.segmenter.class_probabilities

    def full(net, seen, patch_size, name):
        if name.endswith("b.nii.gz"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        if name.endswith("c.nii.gz"):
            raise UserError("stops here")
        return honest(net, seen, patch_size, name)

    monkeypatch.setattr(predict.segmenter, "class_probabilities", full)
    with pytest.raises(UserError, match="stops here"):
        predict_volumes(model, [tmp_path / "in"], tmp_path / "out")
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[2].endswith(",too large: the GPU's memory is full")
    (tmp_path / "in" / "c.nii.gz").unlink()
    monkeypatch.setattr(dataloaders.nifti, "available_memory", lambda: 4e9)
    predict_volumes(model, [tmp_path / "in"], tmp_path / "out")
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert "needs 38.3 GB of memory, 4.0 GB are free" in lines[3]


def test_what_cannot_be_read_is_named_beside_what_can(run, tmp_path):
    write_nifti(tmp_path / "in" / "good.nii.gz", image(9, 9, 9), np.diag([1, 1, 2, 1.0]))
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no volume")
    write_nifti(tmp_path / "in" / "two.nii.gz", np.stack([image(9, 9, 9)] * 2, axis=-1))
    flags = ["--resume", run[0], "--predict", tmp_path / "in", "--gpu", "cpu"]
    said = run_test_py(*flags, "--out", tmp_path / "out")
    assert "1 volumes in" in said
    with open(tmp_path / "out" / "predictions.csv") as file:
        rows = {row["VolumeID"]: row for row in csv.DictReader(file)}
    assert "cannot be read" in rows["bad"]["note"]
    assert "has 2 channel(s), the network was trained on 1" in rows["two"]["note"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "good.nii.gz",
        "model.json",
        "predictions.csv",
    ]
    voxels = read_nifti(tmp_path / "out" / "good.nii.gz").data[0]
    millilitres = [(voxels == value).sum() * 2 / 1000 for value in (1, 5)]
    found = [float(rows["good"][name]) for name in ("front_ml", "back_ml")]
    assert found == pytest.approx(millilitres, rel=1e-3) and sum(found) > 0


def test_sources_are_never_written_over(model, tmp_path):
    write_nifti(tmp_path / "in" / "a.nii.gz", image(9, 9, 9))
    with pytest.raises(UserError, match="holds .*a.nii.gz, a source; give another folder"):
        predict_volumes(model, [tmp_path / "in"], tmp_path / "in")
    write_nifti(tmp_path / "in" / "more" / "a.nii", image(9, 9, 9))
    with pytest.raises(UserError, match="has the name of"):
        predict_volumes(model, [tmp_path / "in"], tmp_path / "out")
    (tmp_path / "in" / "more" / "a.nii").write_bytes(b"")
    with pytest.raises(UserError, match="no such file or folder"):
        predict_volumes(model, [tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "b.nii").write_bytes(b"damaged")
    with pytest.raises(UserError, match="none of 1 volumes can be read, .*b.nii: cannot be read"):
        predict_volumes(model, [tmp_path / "only"], tmp_path / "out")


def test_a_network_of_images_has_no_use_for_volumes(prepared, tmp_path):
    described = {"network": "densenet121", "mode": "U-Ones", "drop_rate": 0.2, "attention": "none"}
    net = build_network(described, CLASSES)
    content = model_content(net.state_dict(), CLASSES, described, {"image_size": 32}, "paper", 1)
    save_checkpoint(tmp_path / "epoch_1.pth", content)
    listed = prepared / "volumes.csv"
    flags = ["--resume", tmp_path / "epoch_1.pth", "--volumes", prepared, "--csv_file_test", listed]
    with pytest.raises(UserError, match="--volumes: .*epoch_1.pth is a network of images"):
        run_test_py(*flags, "--gpu", "cpu")
    flags = ["--resume", save_segmenter(tmp_path / "epoch_3.pth"), "--csv_file_test", listed]
    with pytest.raises(UserError, match=r"--root_path is missing: .* \(of volumes: --volumes\)"):
        run_test_py(*flags, "--gpu", "cpu")
    with pytest.raises(UserError, match="--root_path: has no meaning with a network of volumes"):
        run_test_py(*flags, "--gpu", "cpu", "--root_path", prepared)
