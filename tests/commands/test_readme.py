"""Every command of README.md and of docs/howto-*.md is typed, on small data.

A page whose commands are not those of PLAN (tests/helpers/pages.py) fails: a new command wants an
entry there, and its run. What howto-add-*.md add is tested in test_extending.py.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dataloaders.phantom.files import write_dicom, write_png
from dataloaders.phantom.patients import generate
from dataloaders.prepare.isic import CLASSES
from tests.helpers.pages import IS_DRY, PARTITION_ISIC, PARTITION_RSNA, PLAN, RSNA, packages, page
from tests.helpers.typed_commands import PROJECT, blocks_of, commands_of, type_command, type_here
from tests.helpers.volumes import write_decathlon
from utils.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a user has it after the downloads: the programs and three raw data sets."""
    folder = tmp_path_factory.mktemp("place")
    programs = [*PROJECT.glob("*.py"), PROJECT / "Makefile", *PROJECT.glob("*.txt")]
    for path in (*packages(), *programs):
        (folder / path.name).symlink_to(path)
    phantom = generate(24, 32, 1, slices_per_patient=3, class_proportions=(1, 1, 1, 1, 1))
    write_dicom(phantom, folder)
    (folder / "scans").symlink_to(folder / "stage_2_train")
    header, *rows = write_png(phantom, folder / "my").read_text().splitlines()
    sites = [f"{row},{('north', 'south')[index % 3 % 2]}" for index, row in enumerate(rows)]
    (folder / "my" / "labels.csv").write_text("\n".join([f"{header},site", *sites]) + "\n")
    write_skin_lesions(folder)
    return folder


def write_skin_lesions(folder: Path) -> None:
    """56 photographs of 28 lesions from four sources, as ISIC and Harvard Dataverse name them."""
    photographs = folder / "ISIC2018_Task3_Training_Input"
    photographs.mkdir()
    generator = np.random.default_rng(0)
    truth = ["image," + ",".join(CLASSES)]
    metadata = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    sources = ("vidir_molemax", "vidir_modern", "rosendahl", "vienna_dias")
    for number in range(56):
        name, lesion = f"ISIC_{number:07d}", number // 2
        pixels = generator.integers(0, 256, (45, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photographs / f"{name}.jpg")
        diagnosis = CLASSES[lesion % 7]
        truth.append(",".join([name, *(f"{label == diagnosis:.1f}" for label in CLASSES)]))
        about = f"{diagnosis.lower()},histo,50.0,male,back,{sources[lesion % 4]}"
        metadata.append(f"HAM_{lesion:07d},{name},{about}")
    (folder / "ISIC2018_Task3_Training_GroundTruth.csv").write_text("\n".join(truth) + "\n")
    (folder / "HAM10000_metadata.csv").write_text("\n".join(metadata) + "\n")
    write_published_lists(folder / "published", truth)


def write_published_lists(folder: Path, truth: list[str]) -> None:
    """A study's three lists and four clients, from the lines of the ground truth."""
    folder.mkdir()
    header, *rows = [line.replace("image,", "ImageID,", 1).replace(".0", "") for line in truth]
    for name, part in (("train", rows[:40]), ("validation", rows[40:48]), ("test", rows[40:])):
        (folder / f"{name}.csv").write_text("\n".join([header, *part]) + "\n")
    clients = {str(client): list(range(client, 40, 4)) for client in range(4)}
    (folder / "train_clients.json").write_text(json.dumps(clients))


def run_page(name: str, place: Path) -> dict[str, str]:
    """Type a page's commands in its order; command -> what it printed."""
    printed = {}
    for command in commands_of(page(name)):
        full = f"{command} {PLAN[name][command]}".strip()
        if command.startswith("make "):
            printed[command] = make(command, place)
        elif command.startswith("python -m "):
            printed[command] = type_command(full, place)
        else:
            printed[command] = type_here(full, place)
    return printed


def make(command: str, place: Path) -> str:
    """The programs that a make command starts in an environment that exists."""
    words = [word for word in shlex.split(command) if "=" not in word]
    result = subprocess.run(
        [*words, "--silent", "PYTHON=echo", "VENV="], cwd=place, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def readme(place):
    """What the README's commands print, typed one after the other."""
    printed = run_page("README.md", place)
    shutil.copytree(place / "runs" / "NAME", place / "runs" / "MINE")
    weights = load_checkpoint(place / "runs/NAME/checkpoints/epoch_99.pth")["state_dict"]
    torch.save({f"module.{name}": value for name, value in weights.items()}, place / "released.pth")
    return printed


@pytest.mark.parametrize("name", PLAN)
def test_the_plan_has_every_command_of_the_page_and_no_other(name):
    found, planned = set(commands_of(page(name))), set(PLAN[name])
    assert found - planned == set(), f"{name}: commands that no test runs; add them to PLAN"
    assert planned - found == set(), f"{name}: commands of PLAN that are gone from the page"


def test_every_how_to_is_in_the_plan():
    pages = {str(path.relative_to(PROJECT)) for path in (PROJECT / "docs").glob("howto-*.md")}
    assert pages == {name for name in PLAN if name.startswith("docs/howto-")}


def test_the_readme_stays_on_a_page_and_its_two_commands_on_the_first_screen():
    lines = page("README.md").splitlines()
    assert len(lines) < 150
    assert [line for line in lines[:24] if line.startswith("make ")] == [
        line for line in lines if line.startswith("make ")
    ]


def test_commands_are_found_as_they_are_typed():
    text = (
        "see `make x` or `b.py`\n```\nmake x  # why\n\npython a \\\n   --b 'c d'\ntrain.py z\n```\n"
    )
    assert commands_of(text) == ["make x", "python a --b c d"]


def test_links_and_pictures_lead_somewhere():
    for name in [*PLAN, *(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page(name)):
            assert ((PROJECT / name).parent / target).exists(), f"{name}: {target}"


def test_the_readme_from_raw_scans_to_tables(readme, place):
    assert readme["make demo"] == "train_main.py --preset demo\n"
    assert readme["make demo-3d"] == "train_main.py --preset demo-3d\n"
    lint, side_by_side = "-m ruff check .\n-m ruff format --check .\n", "--dist loadfile\n"
    assert readme["make test"].startswith(f"{lint}-m pytest --numprocesses auto ")
    assert readme["make test"].endswith(side_by_side)
    assert re.search(r"\ntime: about \d+ .* for 100 rounds", readme[IS_DRY])
    report = (place / "runs/NAME/REPORT.md").read_text()
    assert "DICOM through the window 'triple' to 32 pixels a side" in report
    assert "going on with round 100 of 100" in readme["python train_main.py --resume runs/NAME"]
    assert (place / "runs/NAME/tests/epoch_99-testing/REPORT.md").exists()
    assert "| runs/NAME/log.txt |" in readme["python -m utils.tables runs/*/log.txt"]
    assert "shared between the sets: 0 of" in readme[PARTITION_RSNA]


def test_make_installs_the_tested_versions_into_an_environment_of_its_own(place):
    # The variables of a `make test VENV=` above would reach this make, too.
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    own = {name: value for name, value in own.items() if name not in ("VENV", "PYTHON")}
    for target, files in (("demo", [""]), ("demo-3d", ["", "-3d"])):
        command = ["make", "-n", target]
        planned = subprocess.run(command, cwd=place, env=own, capture_output=True, text=True)
        assert "python3 -m venv .venv" in planned.stdout
        for file in files:
            install = f"--requirement requirements{file}.txt --constraint constraints.txt"
            assert f"pip install --quiet {install}" in planned.stdout


def test_how_to_use_your_own_csv(readme, place):
    printed = run_page("docs/howto-your-own-csv.md", place)
    assert "by site" in printed[list(printed)[-1]]
    assert (place / "runs/MINE/tests/epoch_99-testing/REPORT.md").exists()


def test_how_to_go_from_kaggle_to_table_1(readme, place):
    printed = run_page("docs/howto-rsna.md", place)
    plan = printed[f"python reproduce.py table1 --preset paper --dry_run {RSNA}"]
    assert "0 of 15 runs finished, 15 to do" in plan


def test_how_to_use_isic(place):
    printed = run_page("docs/howto-isic.md", place)
    assert "shared between the sets: 0 of 28" in printed[PARTITION_ISIC]
    of_lists = [text for command, text in printed.items() if "--split published" in command]
    assert "clients: the lists of published" in of_lists[0]
    assert "8 of 16 test images by name" in of_lists[0]


def test_how_to_go_from_dicom_to_predictions(readme, place):
    run_page("docs/howto-dicom-to-predictions.md", place)
    slices = [
        (folder / "slices.csv").read_text().splitlines()
        for folder in (place / "runs/NAME/tests/epoch_99-scans-1", place / "released-scans-1")
    ]
    assert len(slices[0]) == len(slices[1]) == 73


def test_how_to_predict(readme, place, monkeypatch):
    names = [line.split(",")[0] for line in (place / "my/labels.csv").read_text().splitlines()]
    (place / "my/unlabelled.csv").write_text("\n".join(names[:4]) + "\n")
    run_page("docs/howto-predict.md", place)
    written = pd.read_csv(place / "runs/NAME/tests/epoch_99-scans-1/predictions.csv")
    assert len(list((place / "runs/NAME/tests/epoch_99-unlabelled/gradcam").iterdir())) == 3
    (lines,) = blocks_of(page("docs/howto-predict.md"), "python")
    scope = {}
    monkeypatch.chdir(place)
    exec(lines, scope)  # noqa: S102
    classes = written.columns[2:7]
    np.testing.assert_allclose(scope["table"][classes], written[classes], atol=2e-6)


def test_how_to_segment_volumes(place, tmp_path):
    """In a folder of its own: its run is called as the README's."""
    for path in place.iterdir():
        if path.name not in ("runs", "data"):
            (tmp_path / path.name).symlink_to(path)
    write_decathlon(tmp_path / "Task04_Hippocampus", 24)
    printed = run_page("docs/howto-decathlon.md", tmp_path)
    assert printed["make demo-3d"] == "train_main.py --preset demo-3d\n"
    prepared = next(line for command, line in printed.items() if "dataloaders.prepare" in command)
    assert prepared == "24 volumes in data/hippocampus/volumes.csv, 0 rejected\n"
    assert (tmp_path / "runs/NAME/tests/epoch_0-testing/REPORT.md").exists()
    predicted = tmp_path / "runs/NAME/tests/epoch_0-imagesTr"
    assert len(list(predicted.glob("case_*.nii.gz"))) == 24
    plans = [line for command, line in printed.items() if "reproduce" in command]
    assert ["0 of 15 runs" in plans[0], "0 of 36 runs" in plans[1]] == [True, True]
