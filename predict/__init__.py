"""A trained network on what a user has: `from predict import load`, see `predict.model`."""

from predict.model import Model, load

__all__ = ["Model", "load"]
