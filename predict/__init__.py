"""A trained network on what a user has: `from predict import load`, see `predict.model`."""

from typing import Any

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    """Load PyTorch only where a model is asked for: `predict.flags` answers --help without it."""
    if name in __all__:
        from predict import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
