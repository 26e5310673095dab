"""`prepare decathlon` on made files: the dialects it reads, and what it refuses in one line."""

import gzip
import json
import shutil

import numpy as np
import pytest

import dataloaders.nifti
from dataloaders.prepare.decathlon import prepare_decathlon
from dataloaders.volumes import open_volumes, read_volumes
from tests.helpers.prepare_command import one_line_error, prepare
from tests.helpers.volumes import CLASSES, write_decathlon, write_nifti
from utils.errors import UserError

FIRST = "case_00.nii.gz"
SHAPE = (6, 7, 8)


@pytest.fixture
def task(tmp_path):
    return write_decathlon(tmp_path / "Task99_Made")


def boxes() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[1:3, 2:5, 2:6], label[3:5, 2:5, 2:6] = 1, 2
    return label


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(100, 10, shape).astype(np.float32)


def patch_header(path, **fields) -> None:
    """Change fields of a stored header in place; nothing else of the file."""
    import nibabel

    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)))


def missing_pair(task):
    (task / "labelsTr" / FIRST).unlink()


def other_shape(task):
    write_nifti(task / "imagesTr" / FIRST, noise(6, 7, 9))


def other_affine(task):
    write_nifti(task / "imagesTr" / FIRST, noise(*SHAPE), np.diag([1, 1, 2, 1]))


def moved(task):
    affine = np.eye(4)
    affine[0, 3] = 5
    write_nifti(task / "labelsTr" / FIRST, boxes(), affine)


def unknown_value(task):
    write_nifti(task / "labelsTr" / FIRST, boxes() * 3)


def fractional_value(task):
    write_nifti(task / "labelsTr" / FIRST, boxes() * np.float32(0.75))


def not_a_number(task):
    image = noise(*SHAPE)
    image[1, 2, 3] = np.nan
    write_nifti(task / "imagesTr" / FIRST, image)


def infinite(task):
    write_nifti(task / "imagesTr" / FIRST, np.full(SHAPE, np.inf, np.float32))


def all_background(task):
    write_nifti(task / "labelsTr" / FIRST, np.zeros(SHAPE, np.uint8))


def constant(task):
    write_nifti(task / "imagesTr" / FIRST, np.full(SHAPE, 7, np.float32))


def one_slice(task):
    write_nifti(task / "imagesTr" / FIRST, noise(6, 7, 1))
    write_nifti(task / "labelsTr" / FIRST, boxes()[:, :, :1])


def two_dimensions(task):
    write_nifti(task / "imagesTr" / FIRST, noise(6, 7))


def five_dimensions(task):
    write_nifti(task / "imagesTr" / FIRST, noise(*SHAPE, 1, 3))


def cut_off(task):
    path = task / "imagesTr" / FIRST
    path.write_bytes(path.read_bytes()[:-80])


def no_nifti(task):
    (task / "imagesTr" / FIRST).write_bytes(gzip.compress(b"a picture"))


def not_gzip(task):
    (task / "imagesTr" / FIRST).write_bytes(b"\x89PNG" + bytes(1000))


def claims_much(task):
    patch_header(task / "imagesTr" / FIRST, dim=[3, 10_000, 10_000, 10_000, 1, 1, 1, 1])


def unknown_type(task):
    patch_header(task / "imagesTr" / FIRST, datatype=4097)


def complex_numbers(task):
    write_nifti(task / "imagesTr" / FIRST, noise(*SHAPE).astype(np.complex64))


def negative_side(task):
    patch_header(task / "imagesTr" / FIRST, dim=[3, -6, 7, 8, 1, 1, 1, 1])


def no_affine(task):
    patch_header(task / "imagesTr" / FIRST, srow_x=[0, 0, 0, 0])


def affine_of_nothing(task):
    patch_header(task / "imagesTr" / FIRST, srow_y=[np.nan] * 4)


def four_dimensional_label(task):
    write_nifti(task / "labelsTr" / FIRST, np.stack([boxes()] * 2, axis=-1))


REFUSED = {
    missing_pair: "no such file, though dataset.json names case_00",
    other_shape: "shapes differ: 6x7x9 and 6x7x8",
    other_affine: "affines of its files differ",
    moved: "affines of its files differ",
    unknown_value: "label value 3 is not in dataset.json",
    fractional_value: "label value 0.75 is not in dataset.json",
    not_a_number: "has voxels that are not finite numbers",
    infinite: "has voxels that are not finite numbers",
    all_background: "its label is all background",
    constant: "is constant: there is nothing to see in it",
    one_slice: r"is a single slice \(6x7x1 voxels\), not a volume",
    two_dimensions: "has 2 dimensions; only three, or four with channels",
    five_dimensions: "has 5 dimensions",
    cut_off: "cannot be read, cut off or no NIfTI",
    no_nifti: r"cannot be read, cut off or no NIfTI \(ImageFileError\)",
    not_gzip: r"cannot be read, cut off or no NIfTI \(ImageFileError\)",
    claims_much: r"its header claims 4e\+12 bytes, more than the file can hold",
    unknown_type: r"cannot be read, cut off or no NIfTI \(HeaderDataError\)",
    complex_numbers: "has voxels of the type complex64, not one number each",
    negative_side: "cannot be read, cut off or no NIfTI|single slice",
    no_affine: "its affine has no three directions",
    affine_of_nothing: "its affine has numbers that are not finite",
    four_dimensional_label: "its label has four dimensions; three are expected",
}


@pytest.mark.parametrize("damage", REFUSED, ids=lambda damage: damage.__name__)
def test_a_damaged_volume_is_refused_by_name_and_nothing_is_half_written(task, tmp_path, damage):
    damage(task)
    with pytest.raises(UserError, match=REFUSED[damage]) as caught:
        prepare_decathlon(task, tmp_path / "out")
    assert "case_00" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "volumes.csv").exists()
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not [name for name in left if "tmp" in name or "partial" in name]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"training": [{"image": "../i.nii.gz", "label": "../l.nii.gz"}]},
            "leads out of the folder",
        ),
        (
            {"training": [{"image": "/etc/i.nii.gz", "label": "/l.nii.gz"}]},
            "leads out of the folder",
        ),
        ({"training": [{"image": "./imagesTr/x.png", "label": "y"}]}, "expected pairs"),
        ({"training": ["x.nii.gz"]}, "expected pairs"),
        ({"labels": {"0": "background"}}, "name no structure"),
        ({"labels": {"1": "front", "2": "back"}}, "labels must name 0, the background"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions of nnU-Net are not supported"),
        ({"labels": {"0": "background", "1": "a,b"}}, "labels must name 0"),
        ({"labels": {"background": 0, "front": 1, "Ignore": 2}}, "label ignore, of voxels that"),
        ({"labels": []}, "labels is"),
    ],
)
def test_a_dataset_json_that_cannot_be_used_is_refused(tmp_path, content, expected):
    task = write_decathlon(tmp_path / "task", **content)
    with pytest.raises(UserError, match=expected):
        prepare_decathlon(task, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_volume_larger_than_the_memory_is_refused_before_it_is_read(task, tmp_path, monkeypatch):
    """5 GB of voxels where 4 GB are free, in small: the sizes are checked from the header."""
    monkeypatch.setattr(dataloaders.nifti, "available_memory", lambda: 6 * 7 * 8 * 4)
    with pytest.raises(UserError, match=r"needs 0.0 GB of memory, 0.0 GB are free"):
        prepare_decathlon(task, tmp_path / "out")
    large = tmp_path / "large.nii"
    write_nifti(large, np.zeros((2, 2, 2), np.float32))
    import nibabel

    header = nibabel.load(large).header
    header.set_data_shape((1200, 1200, 900))
    with open(large, "r+b") as file:
        file.write(header.binaryblock)
        file.truncate(352 + 1200 * 1200 * 900 * 4)  # a hole: 5.2 GB that take no room on the disk
    monkeypatch.setattr(dataloaders.nifti, "available_memory", lambda: 4e9)
    with pytest.raises(ValueError, match=r"needs 31.1 GB of memory, 4.0 GB are free"):
        dataloaders.nifti.read_nifti(large)


def test_the_command_ends_with_status_2_and_one_line(task, tmp_path):
    cut_off(task)
    done = prepare("decathlon", "--dataset_dir", task, "--out", tmp_path / "out")
    assert "1 volume(s) rejected, more than --max_bad 0: case_00: image" in one_line_error(done)
    reasons = (tmp_path / "out" / "rejected.csv").read_text().splitlines()
    assert reasons[0] == "volume,reason" and reasons[1].startswith("case_00,")
    prepare_decathlon(task, tmp_path / "out", max_bad=1)
    assert read_volumes(tmp_path / "out" / "volumes.csv").names == ["case_01", "case_02"]


def prepared(task, out, **options):
    prepare_decathlon(task, out, **options)
    table = read_volumes(out / "volumes.csv")
    return table, open_volumes(out, table)


def test_float_labels_and_macos_files_are_read(task, tmp_path):
    write_nifti(task / "labelsTr" / FIRST, boxes().astype(np.float32))
    (task / "imagesTr" / f"._{FIRST}").write_bytes(b"Mac OS X")
    table, arrays = prepared(task, tmp_path / "out")
    assert table.names == ["case_00", "case_01", "case_02"] and table.class_names == CLASSES
    np.testing.assert_array_equal(arrays[0][1], boxes())
    assert table.counts[0].tolist() == np.bincount(boxes().ravel()).tolist()
    assert abs(arrays[0][0].astype(float).mean()) < 1e-2  # z-scored
    assert abs(arrays[0][0].astype(float).std() - 1) < 1e-2


def test_nnunets_dialect_with_two_channels(task, tmp_path):
    for number in range(3):
        image = task / "imagesTr" / f"case_{number:02d}.nii.gz"
        shutil.copy(image, image.with_name(f"case_{number:02d}_0001.nii.gz"))
        image.rename(image.with_name(f"case_{number:02d}_0000.nii.gz"))
    described = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "front": 1, "back": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (task / "dataset.json").write_text(json.dumps(described))
    table, arrays = prepared(task, tmp_path / "out")
    assert table.names == ["case_00", "case_01", "case_02"] and len(arrays[0]) == 3
    np.testing.assert_array_equal(arrays[0][0], arrays[0][1])


def test_channels_last_become_channels_each_normalised_by_itself(task, tmp_path):
    for number in range(3):
        both = np.stack([noise(*SHAPE), 1000 + 50 * noise(*SHAPE)], axis=-1)
        write_nifti(task / "imagesTr" / f"case_{number:02d}.nii.gz", both)
    _, arrays = prepared(task, tmp_path / "out")
    assert arrays[0].shape == (3, *SHAPE)
    np.testing.assert_allclose(arrays[0][0].astype(float), arrays[0][1].astype(float), atol=5e-3)


def test_hounsfield_units_are_clipped_and_scaled(tmp_path):
    task = write_decathlon(tmp_path / "task", modality={"0": "CT"})
    image = np.full(SHAPE, -1000, np.float32)
    image[0, 0, 0], image[0, 0, 1] = 50, 3000
    write_nifti(task / "imagesTr" / FIRST, image)
    _, arrays = prepared(task, tmp_path / "out")
    assert arrays[0][0, 0, 0, :3].tolist() == [0, 1, -1]  # of -200 .. 300 HU


def test_an_anisotropic_volume_is_brought_to_the_others_voxels_and_its_axes_to_ras(task, tmp_path):
    """One volume in LPS axes with slices of 2 mm: the same boxes, resampled and turned."""
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    write_nifti(task / "imagesTr" / FIRST, noise(*SHAPE)[:, :, ::2], affine)
    write_nifti(task / "labelsTr" / FIRST, boxes()[::-1, ::-1, ::2], affine)
    table, arrays = prepared(task, tmp_path / "out")
    assert table.shapes == [SHAPE] * 3 and table.spacings == [(1, 1, 1)] * 3
    np.testing.assert_array_equal(arrays[0][1], boxes())
    table, arrays = prepared(task, tmp_path / "coarse", spacing=(2, 1, 1))
    assert table.shapes[1] == (3, 7, 8) and table.spacings[1] == (2, 1, 1)
    table, _ = prepared(task, tmp_path / "uneven", spacing=(1, 1, 3))
    # 8 mm in 3 voxels: what the grid has, not what was asked for, is what distances are told in.
    assert table.shapes[1] == (6, 7, 3) and table.spacings[1] == pytest.approx((1, 1, 8 / 3), 1e-5)


def test_a_second_run_converts_only_what_has_changed(task, tmp_path):
    prepared(task, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/arrays").iterdir()}
    write_nifti(task / "imagesTr" / FIRST, noise(*SHAPE))
    (tmp_path / "out/arrays/case_01.npy").write_bytes(b"cut off")
    prepared(task, tmp_path / "out")
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert sorted(changed) == ["case_00.npy", "case_01.npy"]
    with pytest.raises(UserError, match="choose another --out"):
        prepare_decathlon(task, tmp_path / "out", modality="ct")


def test_a_name_that_a_run_would_refuse_is_refused_before_the_work(task, tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (task / folder / "case_00.nii.gz").rename(task / folder / "case 00.nii.gz")
    content = json.loads((task / "dataset.json").read_text())
    content["training"][0] = {
        "image": "./imagesTr/case 00.nii.gz",
        "label": "./labelsTr/case 00.nii.gz",
    }
    (task / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="'case 00' is to be a VolumeID; rename the files"):
        prepare_decathlon(task, tmp_path / "out")


def test_structures_that_resampling_loses_are_said_or_refused(task, tmp_path, capsys):
    label = np.zeros((6, 7, 8), np.uint8)
    label[1:5, 2:5, 2:6], label[0, 0, 0] = 1, 2
    write_nifti(task / "labelsTr" / "case_01.nii.gz", label)
    prepared(task, tmp_path / "out", spacing=(2.0, 2.0, 2.0))
    said = capsys.readouterr().out
    assert (
        "warning: 1 structures are smaller than a voxel of 2x2x2 mm and are lost (back of " in said
    )
    label[1:5, 2:5, 2:6] = 0
    write_nifti(task / "labelsTr" / "case_01.nii.gz", label)
    with pytest.raises(UserError, match="case_01: its label is all background on voxels of 2x2x2"):
        prepare_decathlon(task, tmp_path / "out", spacing=(2.0, 2.0, 2.0))


def test_a_grid_larger_than_the_memory_is_refused_before_it_is_made(task, tmp_path, monkeypatch):
    monkeypatch.setattr(dataloaders.nifti, "available_memory", lambda: 1e6)
    with pytest.raises(UserError, match="needs 8.1 GB of memory, 0.0 GB are free"):
        prepare_decathlon(task, tmp_path / "out", spacing=(0.01, 0.01, 0.01))
