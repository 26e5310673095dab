"""The pages of the documentation whose commands are typed, and what is typed on each."""

import re
from pathlib import Path

from tests.helpers import PROJECT

CSVS = (
    "--csv_file_train {0}/training.csv --csv_file_val {0}/validation.csv "
    "--csv_file_test {0}/testing.csv"
)
RSNA = f"--root_path data/rsna/images {CSVS.format('data/rsna')}"
MY = f"--root_path my/images {CSVS.format('my')}"
ISIC = f"--root_path data/isic/images {CSVS.format('data/isic')}"
SMALL = "--pretrained 0 --image_size 32 --batch_size 8 --num_users 4 --progress 0"
DEMO = "--rounds 1 --join_epoch -1 --image_size 32 --phantom_patients 24 --num_users 3"
DRY = "--dry_run --pretrained 0"
HIPPOCAMPUS = "--preset hippocampus --volumes data/hippocampus"
SMALL_VOLUMES = "--patch_size 8 8 8 --unet_channels 2 4 --num_users 4 --progress 0"
SMALL_DRY = "--dry_run --pretrained 0 --image_size 32"  # it measures steps
PREPARE_RSNA = (
    "python -m dataloaders.prepare rsna --dicom_dir stage_2_train --labels stage_2_train.csv "
    "--out data/rsna --size 224"
)
PARTITION_RSNA = (
    "python -m dataloaders.partition data/rsna/labels.csv --out data/rsna --group PatientID "
    "--single_label --limit 25000"
)
PARTITION_ISIC = (
    "python -m dataloaders.partition data/isic/labels.csv --out data/isic --group lesion_id"
)
TRAIN_RSNA = f"python train_main.py --preset paper {RSNA}"
IS_DRY = f"python train_main.py --preset paper --dry_run {RSNA}"

# page -> command -> flags that are added to it
PLAN = {
    "README.md": {
        "make demo": "",
        "make demo-3d": "",
        "make test": "",
        "make demo PYTHON=python3 VENV=": "",
        PREPARE_RSNA: "--size 32 --workers 1",
        PARTITION_RSNA: "",
        IS_DRY: "--pretrained 0 --image_size 32",
        # The one round that makes the checkpoint which the next commands name.
        TRAIN_RSNA: f"{SMALL} --start_epoch 99 --run_dir runs/NAME",
        "python train_main.py --resume runs/NAME": "",
        "python test.py --resume runs/NAME": "",
        "python test.py --resume runs/NAME --predict scans": "--workers 0",
        "python -m utils.tables runs/*/log.txt": "",
        "python reproduce.py table1": DRY,
        "python train_main.py --help": "",
    },
    "CONTRIBUTING.md": {"make test": "", "make test-flower": ""},
    "docs/howto-long-runs.md": {},  # flags alone, each with a test of its own
    "docs/howto-your-own-csv.md": {
        "python -m dataloaders.partition my/labels.csv --out my --group PatientID": "",
        f"python train_main.py --preset paper --dry_run {MY}": "--pretrained 0 --image_size 32",
        "python test.py --resume runs/MINE/checkpoints/epoch_99.pth --root_path my/images "
        "--csv_file_test my/testing.csv --csv_file_val my/validation.csv --threshold youden": "",
        "python -m utils.metrics runs/MINE/tests/epoch_99-testing/predictions_test.csv "
        "--threshold 0.5": "",
        "python train_main.py --preset paper --partition dirichlet --dirichlet_alpha 0.3 "
        + MY: f"{SMALL_DRY} --num_users 4",
        "python train_main.py --preset paper --partition site --num_users 2 --num_labeled 1 "
        + MY: SMALL_DRY,
    },
    "docs/howto-rsna.md": {
        PREPARE_RSNA: "--size 32 --workers 1",
        PARTITION_RSNA: "",
        f"python reproduce.py table1 --preset paper --dry_run {RSNA}": "--pretrained 0",
        TRAIN_RSNA: SMALL_DRY,
    },
    "docs/howto-isic.md": {
        "python -m dataloaders.prepare isic --labels ISIC2018_Task3_Training_GroundTruth.csv "
        "--metadata HAM10000_metadata.csv --image_dir ISIC2018_Task3_Training_Input "
        "--out data/isic": "--size 32 --workers 1",
        PARTITION_ISIC: "",
        f"python train_main.py --preset paper-skin {ISIC}": f"{SMALL_DRY} --num_users 4",
        "python train_main.py --preset paper-skin --partition site --num_users 4 --num_labeled 2 "
        + ISIC: SMALL_DRY,
        f"python reproduce.py table1 --preset paper-skin {ISIC}": DRY,
        f"python reproduce.py rates {ISIC}": DRY,
        f"python reproduce.py rivals --report last4 {ISIC}": DRY,
        f"python reproduce.py labeled_weight --preset skin-64 --report last4 {ISIC}": DRY,
        f"python reproduce.py sources --report last4 {ISIC}": DRY,
        "python train_main.py --preset paper-skin --split published --root_path data/isic/images": (
            SMALL_DRY
        ),
    },
    "docs/howto-dicom-to-predictions.md": {
        "python test.py --resume runs/NAME/checkpoints/epoch_99.pth --dicom scans": "--workers 0",
        "python test.py --resume released.pth --dicom scans --image_size 224 --window triple "
        "--size 128 --class_names epidural intraparenchymal intraventricular subarachnoid "
        "subdural": "--workers 0 --image_size 32",
    },
    "docs/howto-predict.md": {
        "python test.py --resume runs/NAME --predict scans": "--workers 0",
        "python test.py --resume runs/NAME --predict my/unlabelled.csv --root_path my/images "
        "--gradcam": "--workers 0 --unlike predict",
    },
    "docs/howto-decathlon.md": {
        "make demo-3d": "",
        "python -m dataloaders.prepare decathlon --dataset_dir Task04_Hippocampus "
        "--out data/hippocampus": "",
        f"python train_main.py {HIPPOCAMPUS} --dry_run": SMALL_VOLUMES,
        f"python train_main.py {HIPPOCAMPUS}": f"{SMALL_VOLUMES} --rounds 1 --run_dir runs/NAME",
        "python test.py --resume runs/NAME": "",
        "python test.py --resume runs/NAME --predict Task04_Hippocampus/imagesTr": "",
        "python reproduce.py hippocampus --volumes data/hippocampus": DRY,
        "python reproduce.py hippocampus_labels --volumes data/hippocampus": DRY,
        "python reproduce.py hippocampus_rates --volumes data/hippocampus": DRY,
    },
    "docs/howto-add-a-method.md": {
        "python train_main.py --preset demo --method fed_entropy": DEMO,
    },
    "docs/howto-add-more.md": {
        "python train_main.py --preset demo --focal_gamma 2": f"{DEMO} --run_dir runs/NAME",
        "python -m utils.metrics runs/NAME/predictions_test.csv": "",
        "python -m dataloaders.prepare folders --image_dir pictures --out data/pictures": (
            "--size 32 --workers 1"
        ),
        "python -m dataloaders.partition data/pictures/labels.csv --out data/pictures": "",
        "python train_main.py --preset demo --task grading": f"{DEMO} --run_dir runs/grading",
    },
}


def page(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def packages() -> list[Path]:
    return [path.parent for path in PROJECT.glob("*/__init__.py")]


def add_what_a_page_adds(text: str, folder: Path) -> None:
    """Make a page's changes to the programs in `folder`: its Python blocks are new files, named in
    backticks right before, its diffs replace lines that stand there exactly once."""
    for name, code in re.findall(r"`([\w/]+\.py)`:?\n\n```python\n(.*?)^```", text, re.M | re.S):
        (folder / name).write_text(code)
    for change in re.findall(r"^```diff\n(.*?)^```", text, re.M | re.S):
        first, *lines = change.splitlines()
        program = folder / first.removeprefix("--- ")
        old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in ("-", "+"))
        assert program.read_text().count(old) == 1, f"{program.name} has no longer the line {old}"
        program.write_text(program.read_text().replace(old, new))
