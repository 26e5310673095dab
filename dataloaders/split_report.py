"""Printable tables of who holds what, and what is worth a warning in them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def class_set_table(class_names: Sequence[str], labels_of_set: dict[str, np.ndarray]) -> str:
    """Images per class (rows) and named set (columns), with totals.

    `labels_of_set` maps a set's name to the class indices (N,) of its images.
    """
    counts = _class_counts(list(labels_of_set.values()), len(class_names)).T
    counts = np.vstack([counts, counts.sum(axis=0)])
    rows = [
        [name, *row, row.sum()] for name, row in zip([*class_names, "all"], counts, strict=True)
    ]
    return _aligned(["class", *labels_of_set, "all"], rows)


def class_client_table(
    labels: np.ndarray,
    clients: Sequence[np.ndarray],
    class_names: Sequence[str],
    labelled_ids: Sequence[int],
) -> str:
    """Images per client (rows) and class (columns), with totals and who has labels.

    `labels` (N,) are class indices; `clients` holds each client's row indices.
    """
    counts = _class_counts([labels[rows] for rows in clients], len(class_names))
    rows = [
        [client, "yes" if client in labelled_ids else "no", *row, row.sum()]
        for client, row in enumerate(counts)
    ]
    rows.append(["all", f"{len(labelled_ids)} yes", *counts.sum(axis=0), counts.sum()])
    return _aligned(["client", "labels", *class_names, "all"], rows)


def missing_class_warnings(
    labels: np.ndarray,
    clients: Sequence[np.ndarray],
    class_names: Sequence[str],
    labelled_ids: Sequence[int],
) -> list[str]:
    """One line per labelled client that holds no image of some class, with its counts."""
    counts = _class_counts([labels[rows] for rows in clients], len(class_names))
    lines = []
    for client in labelled_ids:
        if counts[client].all():
            continue
        missing = [name for name, n in zip(class_names, counts[client], strict=True) if not n]
        shown = ", ".join(
            f"{n} {name}" for name, n in zip(class_names, counts[client], strict=True)
        )
        lines.append(
            f"warning: labelled client {client} has no image of {', '.join(missing)}: its row of "
            f"the relation matrix says nothing there (it holds {shown})"
        )
    return lines


def shared_values(sets: Sequence[Sequence[str]]) -> tuple[int, int]:
    """(different values that stand in more than one of the sets, different values in any)."""
    held = Counter(value for members in sets for value in set(members))
    return sum(count > 1 for count in held.values()), len(held)


def _class_counts(labels_of_part: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """(parts, classes) numbers of images."""
    return np.stack([np.bincount(labels, minlength=classes) for labels in labels_of_part])


def _aligned(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Columns padded to their widest cell: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in cells
    )
