"""Packages that are not there: what every command needs, and what only some do."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from utils.errors import UserError
from utils.signals import end_quietly

INSTALL_3D = "pip install -r requirements-3d.txt -c constraints.txt"


NEEDED = ("torch", "torchvision", "numpy", "pandas", "PIL", "pydicom", "sklearn", "scipy")
NEEDED += ("tensorboardX", "tqdm", "matplotlib")


def check_installed() -> None:
    """End with one line that says what to type where a package that every command needs is missing:
    for a program to call before its other imports, in which Ctrl-C ends it quietly."""
    end_quietly()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    home = Path(__file__).resolve().parents[1]
    environment = home / ".venv" / "bin" / "python"
    if environment.exists() and Path(sys.prefix) != environment.parents[1]:
        remedy = f"they are in {environment.parents[1]}: type . {environment.parent / 'activate'}"
    else:
        remedy = (
            "type make demo, which makes .venv with all it needs, or pip install -r "
            f"{home / 'requirements.txt'} -c {home / 'constraints.txt'}"
        )
    print(f"error: {sys.executable} has no {', '.join(missing)}; {remedy}", file=sys.stderr)
    sys.exit(2)


def import_3d(module: str) -> ModuleType:
    """A module of MONAI or nibabel; `UserError` that says how to install it where it is missing.

    Called where it is needed and not before: `monai.networks.nets` takes seconds and 350 MB.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"volumes need {error.name}; install it with: {INSTALL_3D}") from error
