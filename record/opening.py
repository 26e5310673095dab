"""How a run is opened: a new folder or an old one, and which flags may differ when it goes on."""

import json
import os
import platform
import re
import resource
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

import torch

from networks.saved import weights_by_round
from options import FREE_ON_RESUME, SAID_ONCE, as_parsed, check_options, explicit_flags
from utils.errors import UserError
from utils.files import FolderLock, InUseError

ARGS_FILE = "args.json"
ENV_FILE = "env.json"
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "pillow",
    "pydicom",
    "scikit-learn",
    "scipy",
    "matplotlib",
    "tensorboardX",
    "tqdm",
    "monai",
    "nibabel",
)


def describe_environment(devices: Sequence[torch.device]) -> dict:
    """Plain types for env.json: versions, git commit, processor, devices and threads."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "devices": [device_name(device) for device in devices],
        **(_gpu_environment() if any(device.type == "cuda" for device in devices) else {}),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def peak_memory() -> int:
    """MB of main memory that this process has held at most so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (1e6 if sys.platform == "darwin" else 1e3))


def _gpu_environment() -> dict:
    """What of the driver and of CUDA's libraries decides how a GPU computes."""
    driver = None
    with suppress(OSError):
        found = re.search(r"\d+\.\d+[.\d]*", Path("/proc/driver/nvidia/version").read_text())
        driver = found and found[0]
    return {
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "architectures": torch.cuda.get_arch_list(),
    }


def read_precision(folder: Path) -> str | None:
    """The precision that env.json of a run's folder tells; None where it tells none."""
    try:
        return json.loads((folder / ENV_FILE).read_text()).get("precision")
    except (OSError, ValueError, AttributeError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this program's own repository, with "+" where files differ from it."""
    home = Path(__file__).resolve().parents[1]
    if not (home / ".git").exists():
        return None  # installed, perhaps below somebody else's repository
    try:
        described = subprocess.run(
            ["git", "-C", str(home), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def device_name(device: torch.device) -> str:
    """A GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def open_folder(
    args: Namespace, argv: Sequence[str] | None = None
) -> tuple[Namespace, Path, FolderLock]:
    """(flags, folder, its lock) of a new run, or of an old one to go on with (`--resume` a folder).

    `args` come from the flags `argv`, by default the command line's.

    Raises `UserError` where another process is at work there, where a new run would fall on an
    old one, and where a flag typed now would change what an old one computes.
    """
    goes_on = args.resume is not None and args.resume.is_dir()
    if not goes_on and args.run_dir is None:
        folder, lock = _own_folder(default_folder(args))
    else:
        folder = args.resume if goes_on else args.run_dir
        lock = FolderLock(folder)
    try:
        if goes_on:
            return resumed_args(args, argv), folder, lock
        if is_run(folder):
            raise UserError(
                f"--run_dir {folder}: holds a run already; go on with --resume {folder} or name "
                "another"
            )
    except BaseException:
        lock.release(keep_folder=is_run(folder))
        raise
    return Namespace(**{**vars(args), "run_dir": folder}), folder, lock


def _own_folder(wanted: Path) -> tuple[Path, FolderLock]:
    """`wanted`, or beside it NAME-2, -3, ... where a run that began in the same second has it."""
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            lock = FolderLock(folder)
        except InUseError:
            continue
        if not is_run(folder):
            return folder, lock
        lock.release(keep_folder=True)
    raise AssertionError("count does not end")


def default_folder(args: Namespace) -> Path:
    """runs/NAME, NAME being preset, method, seed and time."""
    name = f"{args.preset}-{args.method}-seed{args.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    return Path("runs") / name


def is_run(folder: Path) -> bool:
    """Whether a run has begun in `folder`."""
    return (folder / ARGS_FILE).exists()


def resumed_args(args: Namespace, argv: Sequence[str] | None = None) -> Namespace:
    """The flags a run began with, and those typed now that may change.

    `resume` is what the run itself began from: a .pth file or None.
    Raises `UserError` where a flag typed now would change what is computed.
    """
    path = args.resume / ARGS_FILE
    try:
        saved = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--resume {args.resume}: not the folder of a run ({error})") from error
    merged = as_parsed(saved, path)
    typed = explicit_flags(argv)
    changed = differences(typed, merged)
    if changed:
        raise UserError(
            f"--resume {args.resume}: these flags decide what is computed and cannot change: "
            + changed
        )
    resumed = Namespace(**{**vars(args), **merged, **typed, "resume": merged.get("resume")})
    if resumed.rounds < merged.get("rounds", 0):
        raise UserError(f"--rounds {resumed.rounds}: the run was begun with {merged['rounds']}")
    check_options(resumed)
    return resumed


def differences(flags: Mapping, before: Mapping) -> str:
    """Flags that decide what is computed and are not as `before`: "--name new (was old), ..."."""
    return ", ".join(
        f"--{name} {value} (was {before.get(name)})"
        for name, value in flags.items()
        if name not in FREE_ON_RESUME and value != before.get(name)
    )


def plain_args(args: Namespace) -> dict:
    """The flags as JSON types; without those that are said of a run once and not kept."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in SAID_ONCE
    }


def lasting_flags(args: Namespace) -> dict:
    """The flags that decide what is computed, as JSON types."""
    return {name: value for name, value in plain_args(args).items() if name not in FREE_ON_RESUME}


def remove_later_weights(folder: Path, last_round: int) -> None:
    """Remove the epoch_N.pth of rounds that no state is of any more: they are trained again, or the
    report is that of an earlier one."""
    for round, path in weights_by_round(folder).items():
        if round > last_round:
            path.unlink()
