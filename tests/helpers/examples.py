"""Predictions that the tests of evaluation, figures and report share."""

import numpy as np

from utils.metrics.predictions import Predictions

CLASSES = ("round", "square", "star")


def example_predictions(num_patients=60, seed=0, class_names=CLASSES, with_patients=True):
    """1 to 5 images a patient, all of one class, classified better than by chance."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_patients), generator.integers(1, 6, num_patients))
    labels = generator.integers(len(class_names), size=num_patients)[groups]
    logits = generator.normal(size=(len(groups), len(class_names)))
    logits[np.arange(len(groups)), labels] += 1.5
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(1, keepdims=True)
    names = [f"ID_{index:05d}.png" for index in range(len(groups))]
    patients = np.array([f"P{group:03d}" for group in groups]) if with_patients else None
    return Predictions(names, labels, probabilities, class_names, patients)


def without_class(predictions, absent):
    """`predictions` less the images of one class, which stays in the header."""
    kept = predictions.labels != absent
    return predictions._replace(
        names=[name for name, keep in zip(predictions.names, kept, strict=True) if keep],
        labels=predictions.labels[kept],
        probabilities=predictions.probabilities[kept],
        groups=None if predictions.groups is None else predictions.groups[kept],
    )
