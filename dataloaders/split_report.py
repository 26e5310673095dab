"""Printable tables of who holds what, and what is worth a warning in them."""

from collections.abc import Sequence

import numpy as np

from dataloaders.table import ImageTable


def class_split_table(table: ImageTable, parts: dict[str, np.ndarray]) -> str:
    """Images per class (rows) and named set of row indices (columns), with totals."""
    counts = _class_counts(table.labels, list(parts.values()), len(table.class_names)).T
    counts = np.vstack([counts, counts.sum(axis=0)])
    return _aligned(
        ["class", *parts, "all"],
        [
            [name, *row, row.sum()]
            for name, row in zip([*table.class_names, "all"], counts, strict=True)
        ],
    )


def class_client_table(
    labels: np.ndarray,
    clients: Sequence[np.ndarray],
    class_names: Sequence[str],
    labelled_ids: Sequence[int],
) -> str:
    """Images per client (rows) and class (columns), with totals and who has labels.

    `labels` (N,) are class indices; `clients` holds each client's row indices.
    """
    counts = _class_counts(labels, clients, len(class_names))
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
    counts = _class_counts(labels, clients, len(class_names))
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


def shared_groups(table: ImageTable, parts: Sequence[np.ndarray]) -> tuple[int, int]:
    """(groups with images in more than one part, groups in any part); the table has groups."""
    groups = np.unique(table.groups, return_inverse=True)[1]
    held = np.zeros((len(parts), groups.max() + 1), dtype=bool)
    for part, rows in enumerate(parts):
        held[part, groups[rows]] = True
    parts_of_group = held.sum(axis=0)
    return int((parts_of_group > 1).sum()), int((parts_of_group > 0).sum())


def _class_counts(labels: np.ndarray, parts: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """(parts, classes) numbers of images."""
    return np.stack([np.bincount(labels[rows], minlength=classes) for rows in parts])


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
