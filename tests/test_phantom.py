"""The embedded data set: its pictures, its anatomy, its files and its command."""

import csv
import filecmp
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from dataloaders.phantom import (
    CLASS_NAMES,
    RSNA_PROPORTIONS,
    generate,
    write_contact_sheet,
    write_dicom,
    write_png,
)
from dataloaders.phantom_bleeds import blood_of, draw_bleed, strain_of
from dataloaders.phantom_brain import find_spaces, no_strain
from dataloaders.phantom_files import class_table
from dataloaders.phantom_head import band, draw_head, edge, place
from dataloaders.windows import window_picture
from utils.errors import UserError

EQUAL = [1] * 5
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def phantom():
    """20 patients, every class, healthy ones too."""
    return generate(20, size=48, seed=3, class_proportions=EQUAL, healthy_fraction=0.2)


def run_command_line(*arguments):
    command = [sys.executable, "-m", "dataloaders.phantom", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


# The arrays


def test_shapes_types_and_identifiers(phantom):
    count = 20 * 6
    assert phantom.hounsfield.shape == (count, 48, 48)
    assert phantom.hounsfield.dtype == np.int16
    assert phantom.labels.shape == (count, 5)
    assert phantom.labels.dtype == np.uint8
    assert phantom.labels.sum(axis=1).max() == 1
    assert phantom.class_names == list(CLASS_NAMES)
    assert len(set(phantom.image_ids)) == count
    for image_id in phantom.image_ids:
        assert image_id.startswith("ID_") and len(image_id) == 12
        int(image_id[3:], 16)
    assert len(set(phantom.patient_ids)) == len(set(phantom.study_ids)) == 20
    assert all(len(set(phantom.patient_ids[i : i + 6])) == 1 for i in range(0, count, 6))


def test_same_seed_same_bytes_and_patients_do_not_depend_on_their_number(phantom):
    again = generate(7, size=48, seed=3, class_proportions=EQUAL, healthy_fraction=0.2)
    assert again.hounsfield.tobytes() == phantom.hounsfield[:42].tobytes()
    assert again.labels.tobytes() == phantom.labels[:42].tobytes()
    assert again.image_ids == phantom.image_ids[:42]
    assert again.study_ids == phantom.study_ids[:42]
    other = generate(7, size=64, seed=4, class_proportions=EQUAL, healthy_fraction=0.2)
    assert not np.array_equal(other.hounsfield, again.hounsfield)
    assert not set(other.image_ids) & set(again.image_ids)
    assert not set(other.patient_ids) & set(again.patient_ids)


def test_identifiers_never_repeat_in_a_large_data_set():
    from dataloaders.phantom_patients import _identifier

    images = {_identifier("images", 1, p * 1024 + i, 9) for p in range(20_000) for i in range(10)}
    assert len(images) == 200_000
    assert len({_identifier("patients", 1, p, 8) for p in range(100_000)}) == 100_000


@pytest.mark.parametrize("proportions", [None, EQUAL, [0, 3, 1, 0, 0]])
@pytest.mark.parametrize("count", [40, 500])
def test_patients_keep_the_proportions_at_every_number(proportions, count):
    from dataloaders.phantom_patients import _kind_of, _shares

    shares = _shares(proportions, healthy_fraction=0.25)
    weights = np.array(proportions or RSNA_PROPORTIONS, dtype=float)
    np.testing.assert_allclose(shares[:5], 0.75 * weights / weights.sum())
    kinds = [_kind_of(patient, 11, shares) for patient in range(count)]
    found = np.bincount(kinds, minlength=6)
    # Multiples of the golden ratio stray from the proportions by a few at most; draws would stray
    # by the square root of the number.
    np.testing.assert_allclose(found, shares * count, atol=3)
    assert (found[shares == 0] == 0).all()


def test_healthy_patients_and_rows_without_a_bleed():
    healthy = generate(3, size=32, seed=1, healthy_fraction=1.0)
    assert healthy.labels.sum() == 0 and len(healthy.labels) == 18
    bleeding = generate(
        6, 32, seed=1, healthy_fraction=0, class_proportions=[0, 1, 0, 0, 0], slices_per_patient=9
    )
    shown = generate(
        6, 32, seed=1, healthy_fraction=0, class_proportions=[0, 1, 0, 0, 0], slices_per_patient=9,
        with_bleed_rows_only=True,
    )  # fmt: skip
    kept = bleeding.labels.any(axis=1)
    assert 0 < kept.sum() < len(kept)
    assert shown.hounsfield.tobytes() == bleeding.hounsfield[kept].tobytes()
    assert shown.image_ids == [i for i, keep in zip(bleeding.image_ids, kept, strict=True) if keep]


def test_mixed_patients_show_two_kinds():
    mixed = generate(8, 32, seed=2, healthy_fraction=0, mixed_fraction=1.0)
    assert mixed.labels.sum(axis=1).max() == 2
    for patient in set(mixed.patient_ids):
        rows = mixed.labels[np.array(mixed.patient_ids) == patient]
        assert rows.any(axis=0).sum() <= 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_patients": 0},
        {"size": 8},
        {"slices_per_patient": 0},
        {"healthy_fraction": 1.5},
        {"class_proportions": [1, 2]},
        {"class_proportions": [0] * 5},
        {"class_proportions": [-1, 1, 1, 1, 1]},
        {"difficulty": -0.1},
        {"mixed_fraction": 2},
    ],
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate(**({"num_patients": 1, "size": 32} | wrong))


# What the pictures show


def test_partial_volume_conserves_area():
    distance = (np.arange(-50, 51) * 2.0 + 0.3).astype(np.float32)
    assert edge(np.array([-1.0, -0.5, 0.0, 1.0]), 2.0).tolist() == [0, 0.25, 0.5, 1]
    assert band(np.zeros(1), 0.25, 1.0)[0] == pytest.approx(0.5)
    for half_width in (0.3, 1.0, 4.7):
        total = band(distance, half_width, 2.0).sum() * 2.0
        assert total == pytest.approx(2 * half_width, rel=1e-4)


def test_tissues_have_the_densities_of_a_head():
    heads = generate(12, size=128, seed=8, slices_per_patient=2, healthy_fraction=1.0)
    hounsfield = heads.hounsfield.astype(float)
    assert hounsfield.min() >= -1024 and hounsfield.max() <= 3071
    corners = hounsfield[:, :8, :8]
    assert abs(corners.mean() + 1000) < 5
    for picture in hounsfield:
        bone = (picture > 400).mean()
        brain = picture[(picture > 0) & (picture < 60)]
        assert 0.05 < bone < 0.25
        assert 25 < np.median(brain) < 42
    spread = [np.median(picture[54:74, 54:74]) for picture in hounsfield[::2]]
    assert np.std(spread) > 0.5, "patients must differ"


def test_heads_differ_in_place_size_and_shape():
    heads = generate(16, size=64, seed=5, slices_per_patient=1, healthy_fraction=1.0)
    skull = heads.hounsfield > 300
    rows, columns = np.mgrid[:64, :64]
    places = [(rows[mask].mean(), columns[mask].mean()) for mask in skull]
    widths = [np.ptp(np.flatnonzero(mask.any(axis=0))) for mask in skull]
    lengths = [np.ptp(np.flatnonzero(mask.any(axis=1))) for mask in skull]
    assert np.std(places, axis=0).min() > 0.4
    assert len(set(widths)) >= 4 and len(set(lengths)) >= 4
    assert np.std(np.array(widths) / np.array(lengths)) > 0.02


def bleeding_head(name, seed, size=96):
    """Frame, spaces, strain and blood of a random head with one bleed, at its middle's level."""
    rng = np.random.default_rng(seed)
    head = draw_head(rng)._replace(tilt=np.zeros(2))
    bleed = draw_bleed(rng, CLASS_NAMES.index(name), head, difficulty=0.3)
    frame = place(head, np.array([bleed.center[2]], dtype=np.float32), size)
    strain = strain_of(bleed, head, frame)
    spaces, _ = find_spaces(head, frame, strain)
    return bleed, head, frame, spaces, blood_of(bleed, frame, spaces, strain)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CLASS_NAMES)
def test_blood_lies_inside_the_skull_at_40_to_85_hounsfield(name, seed):
    _, _, frame, _, blood = bleeding_head(name, seed)
    solid = blood.coverage > 0.5
    assert blood.coverage.min() >= 0 and blood.coverage.max() <= 1
    assert frame.depth[blood.coverage > 0].min() > -frame.pixel
    assert solid.sum() * frame.pixel**2 > 60
    assert 45 < blood.density[solid].mean() < 82


@pytest.mark.parametrize("seed", range(8))
def test_epidural_blood_bulges_and_subdural_blood_spreads(seed):
    shapes = {}
    for name in ("epidural", "subdural"):
        bleed, _, frame, _, blood = bleeding_head(name, seed)
        solid = blood.coverage > 0.5
        assert frame.depth[solid].min() < 1.5 * frame.pixel, "it touches the skull"
        thickest = frame.depth[solid].max()
        along = np.ptp(np.unwrap(np.sort(turned(frame.angle[solid], bleed)))) * 70
        shapes[name] = along / thickest
        if name == "subdural":
            assert (frame.x[solid] * np.sign(bleed.center[0]) > 0).all(), "it keeps to its side"
    assert shapes["subdural"] > 6 > shapes["epidural"]


def turned(angle, bleed):
    """`angle` relative to the bleed's centre, in -pi..pi."""
    relative = angle - np.arctan2(bleed.center[1], bleed.center[0])
    return (relative + np.pi) % (2 * np.pi) - np.pi


@pytest.mark.parametrize("seed", range(8))
def test_intraparenchymal_blood_is_a_mass_within_the_brain(seed):
    bleed, _, frame, _, blood = bleeding_head("intraparenchymal", seed)
    solid = blood.coverage > 0.5
    assert frame.depth[solid].min() > 3
    middle = np.array([frame.x[solid].mean(), frame.y[solid].mean()])
    assert np.hypot(*(middle - bleed.center[:2])) < bleed.extent
    assert blood.oedema.sum() > blood.coverage.sum(), "a dark rim surrounds it"


@pytest.mark.parametrize("seed", range(8))
def test_intraventricular_blood_stays_in_the_ventricles_and_settles(seed):
    bleed, _, frame, spaces, blood = bleeding_head("intraventricular", seed)
    assert (blood.coverage <= spaces.ventricles + 1e-6).all()
    if not bleed.cast.any():
        assert frame.down[blood.coverage > 0.5].min() >= bleed.level


@pytest.mark.parametrize("seed", range(8))
def test_subarachnoid_blood_fills_sulci_and_cisterns_only(seed):
    _, head, frame, spaces, blood = bleeding_head("subarachnoid", seed)
    assert (blood.coverage <= spaces.sulci + 1e-6).all()
    tight, _ = find_spaces(head, frame, no_strain(frame))
    assert spaces.sulci.sum() > tight.sulci.sum(), "blood widens the sulci"


def test_difficulty_shrinks_bleeds_and_adds_noise():
    by_difficulty = {}
    for difficulty in (0.0, 0.5, 1.0):
        easy = generate(
            20, 32, seed=6, slices_per_patient=4, healthy_fraction=0, class_proportions=EQUAL,
            difficulty=difficulty,
        )  # fmt: skip
        blood = (easy.hounsfield > 55) & (easy.hounsfield < 85)
        noise = easy.hounsfield[:, :3, :3].astype(float).std()
        by_difficulty[difficulty] = (easy.labels.sum(), blood.sum(), noise)
    shown, blood, noise = zip(*by_difficulty.values(), strict=True)
    assert shown[0] >= shown[1] >= shown[2] and shown[0] > shown[2]
    assert blood[0] > blood[1] > blood[2]
    assert noise[0] < noise[1] < noise[2]


def test_no_single_brightness_statistic_separates_the_classes():
    many = generate(
        240, 32, seed=7, slices_per_patient=2, healthy_fraction=0, class_proportions=EQUAL,
        with_bleed_rows_only=True,
    )  # fmt: skip
    hounsfield = many.hounsfield
    brain = window_picture(hounsfield, "brain").astype(float)
    statistics = {"mean HU": hounsfield.mean(axis=(1, 2)), "mean of window": brain.mean((1, 2))}
    statistics["deviation of window"] = brain.std(axis=(1, 2))
    for low, high in ((0, 15), (15, 40), (40, 50), (50, 90), (60, 80), (80, 300), (300, 3000)):
        share = ((hounsfield >= low) & (hounsfield < high)).mean(axis=(1, 2))
        statistics[f"share of {low}..{high} HU"] = share
    for name, values in statistics.items():
        areas = [roc_auc_score(many.labels[:, c], values) for c in range(5)]
        macro = np.mean([max(area, 1 - area) for area in areas])
        limit = 0.65 if name.startswith("mean") else 0.72
        assert macro < limit, f"{name} separates the classes: {macro:.3f} {areas}"


# The files


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_png_and_csv(phantom, tmp_path):
    path = write_png(phantom, tmp_path / "data", window="brain")
    header, *rows = read_rows(path)
    assert path == tmp_path / "data" / "labels.csv"
    assert header == ["ImageID", "PatientID", *CLASS_NAMES]
    labelled = np.flatnonzero(phantom.labels.sum(axis=1) == 1)
    assert [row[0] for row in rows] == [f"{phantom.image_ids[i]}.png" for i in labelled]
    assert {path.name for path in (tmp_path / "data/images").iterdir()} == {r[0] for r in rows}
    for row, index in zip(rows, labelled, strict=True):
        assert row[1] == phantom.patient_ids[index]
        assert row[2:] == [str(value) for value in phantom.labels[index]]
    with Image.open(tmp_path / "data/images" / rows[5][0]) as picture:
        assert picture.mode == "L"
        expected = window_picture(phantom.hounsfield[labelled[5]], "brain")
        assert np.array_equal(np.asarray(picture), expected)


def test_png_keeps_healthy_slices_when_asked_and_is_repeatable(phantom, tmp_path):
    for name in ("a", "b"):
        write_png(phantom, tmp_path / name, labelled_only=False)
    names = [f"{image_id}.png" for image_id in phantom.image_ids]
    assert len(read_rows(tmp_path / "a/labels.csv")) == len(names) + 1
    same, _, _ = filecmp.cmpfiles(tmp_path / "a/images", tmp_path / "b/images", names, False)
    assert same == names
    with Image.open(tmp_path / "a/images" / names[0]) as picture:
        assert picture.mode == "RGB"
        expected = window_picture(phantom.hounsfield[0], "triple")
        assert np.array_equal(np.asarray(picture), expected)
    write_png(phantom, tmp_path / "a", labelled_only=False)  # the same files again are no strangers


def test_png_refuses_a_folder_of_other_pictures(phantom, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"images holds 1 files .*holiday\.png"):
        write_png(phantom, tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["holiday.png"]


def repaired_hounsfield(scan):
    """The standard reading of a DICOM file, with the repair of the broken 12-bit header."""
    pixels = scan.pixel_array.astype(int)
    intercept = float(scan.RescaleIntercept)
    if scan.BitsStored == 12 and scan.PixelRepresentation == 0 and intercept > -100:
        pixels = pixels + 1000
        pixels[pixels >= 4096] -= 4096
        intercept = -1024
    return pixels * float(scan.RescaleSlope) + intercept


def test_dicom_reads_back_as_the_phantom(phantom, tmp_path):
    write_dicom(phantom, tmp_path)
    scans = [pydicom.dcmread(tmp_path / "stage_2_train" / f"{i}.dcm") for i in phantom.image_ids]
    for index, scan in enumerate(scans):
        assert np.array_equal(repaired_hounsfield(scan), phantom.hounsfield[index])
        assert scan.SOPClassUID == pydicom.uid.CTImageStorage
        assert scan.PatientID == phantom.patient_ids[index]
        assert scan.StudyInstanceUID == phantom.study_ids[index]
        for uid in (scan.StudyInstanceUID, scan.SeriesInstanceUID, scan.SOPInstanceUID):
            assert uid.is_valid
    assert len({scan.SOPInstanceUID for scan in scans}) == len(scans)
    assert len({scan.SeriesInstanceUID for scan in scans}) == 20
    headers = {(s.BitsStored, s.PixelRepresentation, int(s.RescaleIntercept)) for s in scans}
    assert headers == {(16, 1, -1024), (12, 0, -1024), (12, 0, 0)}
    assert {scan["WindowCenter"].VM for scan in scans} == {1, 2}
    assert len({str(scan.PatientName) for scan in scans}) == 20
    assert all(len(scan.PatientBirthDate) == 8 for scan in scans)


def test_dicom_labels_are_in_kaggle_s_long_form(phantom, tmp_path):
    header, *rows = read_rows(write_dicom(phantom, tmp_path))
    assert header == ["ID", "Label"]
    assert len(rows) == 6 * len(phantom.image_ids)
    labels = {name: int(label) for name, label in rows}
    for image_id, row in zip(phantom.image_ids, phantom.labels, strict=True):
        assert [labels[f"{image_id}_{name}"] for name in CLASS_NAMES] == row.tolist()
        assert labels[f"{image_id}_any"] == row.max()


def test_dicom_is_repeatable(tmp_path):
    few = generate(3, size=32, seed=9, slices_per_patient=2)
    for name in ("a", "b"):
        write_dicom(few, tmp_path / name)
    names = [f"{image_id}.dcm" for image_id in few.image_ids]
    folders = (tmp_path / "a/stage_2_train", tmp_path / "b/stage_2_train")
    assert filecmp.cmpfiles(*folders, names, shallow=False)[0] == names


def test_class_table_counts_slices_and_patients(phantom):
    table = {name: (int(slices), int(patients)) for name, slices, patients in class_table(phantom)}
    assert list(table) == [*CLASS_NAMES, "healthy", "total"]
    assert table["total"] == (120, 20)
    assert sum(slices for slices, _ in table.values()) == 240
    subdural = phantom.labels[:, 4] == 1
    assert table["subdural"][1] == len(set(np.array(phantom.patient_ids)[subdural]))


def test_contact_sheet_has_a_row_per_class(phantom, tmp_path):
    write_contact_sheet(phantom, tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as picture:
        grey = np.asarray(picture.convert("L"))
    for row in np.array_split(grey, 6):
        left, right = np.array_split(row[:, 45:], 2, axis=1)
        assert (left > 60).mean() > 0.2 and (right > 60).mean() > 0.2, "a head in every cell"
        assert (row[:, :45] > 200).any(), "a name beside every row"


# The command


def test_command_writes_png_and_says_what_is_next(tmp_path):
    out, sheet = tmp_path / "my data", tmp_path / "sheet.png"
    done = run_command_line(
        "--out", out, "--patients", 5, "--size", 32, "--slices", 3, "--seed", 2,
        "--window", "subdural", "--contact_sheet", sheet,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    same = generate(5, size=32, seed=2, slices_per_patient=3)
    labelled = [i for i, row in zip(same.image_ids, same.labels, strict=True) if row.sum() == 1]
    assert [row[0][:-4] for row in read_rows(out / "labels.csv")[1:]] == labelled
    with Image.open(out / "images" / f"{labelled[0]}.png") as picture:
        index = same.image_ids.index(labelled[0])
        expected = window_picture(same.hounsfield[index], "subdural")
        assert np.array_equal(np.asarray(picture), expected)
    assert sheet.is_file()
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["class", "slices", "patients"] in lines
    assert ["total", "15", "5"] in lines
    assert f"python train_main.py --root_path '{out}'/images" in done.stdout


def test_command_writes_dicom_and_says_what_is_next(tmp_path):
    done = run_command_line(
        "--out", tmp_path, "--patients", 2, "--size", 32, "--slices", 2, "--format", "dicom",
        "--proportions", 0, 0, 1, 0, 0, "--healthy", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "stage_2_train").glob("ID_*.dcm"))) == 4
    labels = dict(read_rows(tmp_path / "stage_2_train.csv")[1:])
    assert {name.split("_")[2] for name, label in labels.items() if label == "1"} == {
        "intraventricular",
        "any",
    }
    assert f"python -m dataloaders.prepare rsna --dicom_dir {tmp_path}/stage" in done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ["--patients", "0"],
        ["--size", "7"],
        ["--slices", "99"],
        ["--seed", "-1"],
        ["--healthy", "1.2"],
        ["--mixed", "nan"],
        ["--difficulty", "2"],
        ["--proportions", "0", "0", "0", "0", "0"],
        ["--format", "dicom", "--keep_healthy"],
    ],
)
def test_command_refuses_flags_out_of_range_in_one_line(tmp_path, flags):
    from dataloaders.phantom import main

    with pytest.raises(UserError) as caught:
        main(["--out", str(tmp_path / "new"), *flags])
    message = str(caught.value)
    assert "\n" not in message and any(flag in message for flag in flags if flag.startswith("--"))
    assert not (tmp_path / "new").exists()


def test_command_ends_in_one_line_when_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run_command_line("--out", tmp_path / "file", "--patients", 2, "--size", 16)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1


def test_runs_that_start_together_share_the_embedded_data(tmp_path):
    code = "from dataloaders.embedded import place_embedded_data\n"
    code += "from options import args_parser\n"
    code += "flags = '--preset demo --phantom_patients 40 --phantom_slices 2'.split()\n"
    code += "place_embedded_data(args_parser(flags), print)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )

    together = [start(), start()]
    said = [process.communicate()[0] for process in together]
    assert [process.returncode for process in together] == [0, 0]
    assert sorted(map(bool, said)) == [False, True]  # one of them made the images
    (folder,) = (tmp_path / "data").iterdir()
    before = sorted((folder / "images").iterdir())
    (folder / "testing.csv").unlink()  # as if killed in the middle, with a file half written
    (folder / "images" / ".ID_1.png.x.partial").touch()
    assert start().wait() == 0
    assert sorted((folder / "images").iterdir()) == before
