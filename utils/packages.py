"""Packages that only some commands need."""

import importlib
from types import ModuleType

from utils.errors import UserError

INSTALL_3D = "pip install -r requirements-3d.txt -c constraints.txt"


def import_3d(module: str) -> ModuleType:
    """A module of MONAI or nibabel; `UserError` that says how to install it where it is missing.

    Called where it is needed and not before: `monai.networks.nets` takes seconds and 350 MB.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"volumes need {error.name}; install it with: {INSTALL_3D}") from error
