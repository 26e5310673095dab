"""What a run ran on: versions, commit, device."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

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
)


def describe_environment(devices: Sequence[torch.device]) -> dict:
    """Plain types for env.json: versions, git commit, processor, devices and threads."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "devices": [_device_name(device) for device in devices],
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this program's own repository, with "+" where files differ from it."""
    home = Path(__file__).resolve().parents[1]
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


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
