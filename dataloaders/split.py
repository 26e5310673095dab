"""split.json: which image went to which client, so that a run can be started from it again."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloaders.columns import quoted
from dataloaders.table import ImageTable
from utils.errors import UserError
from utils.files import write_text


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


_FORMAT = 1


class Split(NamedTuple):
    """`clients[k]` are client k's sorted row indices; `labelled` the ids that have labels."""

    clients: list[np.ndarray]
    labelled: tuple[int, ...]
    seed: int
    how: str


def save_split(
    path: str | Path,
    table: ImageTable,
    clients: Sequence[np.ndarray],
    labelled_ids: Sequence[int],
    seed: int,
    how: str,
) -> None:
    """Write the image names of each client as JSON, whole or not at all.

    `how` says in words how the clients were made, as "dirichlet alpha 0.5".
    """
    content = {
        "format": _FORMAT,
        "csv": table.source.name,
        "how": how,
        "seed": seed,
        "labelled_clients": [int(client) for client in labelled_ids],
        "clients": [[table.names[row] for row in rows.tolist()] for rows in clients],
    }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_split(path: str | Path, table: ImageTable) -> Split:
    """Read what `save_split` wrote; the names become row indices of `table`.

    Images of the table that no client holds are left out. Raises `UserError` for a file that is
    no split, a name that the table does not have or that two clients hold, an empty client, and a
    labelled id that is no client.
    """
    path = Path(path)
    content = _read_json(path)
    row_of_name = {name: row for row, name in enumerate(table.names)}
    client_of_name: dict[str, int] = {}
    clients = []
    for client, names in enumerate(content["clients"]):
        for name in names:
            if name not in row_of_name:
                raise UserError(
                    f"{path}: client {client} holds image {quoted(name)}, which is not in "
                    f"{table.source}; give the CSV the split was made from ({content['csv']})"
                )
            if name in client_of_name:
                raise UserError(
                    f"{path}: image {quoted(name)} stands in client {client_of_name[name]} and in "
                    f"client {client}; delete one"
                )
            client_of_name[name] = client
        if not names:
            raise UserError(f"{path}: client {client} holds no image; delete it or give it some")
        clients.append(np.sort([row_of_name[name] for name in names]))
    labelled = tuple(sorted(set(content["labelled_clients"])))
    if not labelled or labelled[0] < 0 or labelled[-1] >= len(clients):
        raise UserError(
            f"{path}: labelled_clients are {list(labelled)}; give ids from 0 to {len(clients) - 1}"
        )
    return Split(clients, labelled, content["seed"], content["how"])


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path of the split") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a split.json ({quoted(str(error))})") from None
    kinds = {"csv": str, "how": str, "seed": int, "labelled_clients": list, "clients": list}
    for key, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise UserError(
                f"{path}: not a split.json: {key} is missing or no {kind.__name__}; "
                "give the file from a run directory"
            )
    if content.get("format") != _FORMAT:
        raise UserError(f"{path}: split format {content.get('format')}, but {_FORMAT} is known")
    if not all(isinstance(name, int) for name in content["labelled_clients"]):
        raise UserError(f"{path}: labelled_clients must be a list of client numbers")
    if not content["clients"] or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in content["clients"]
    ):
        raise UserError(f"{path}: clients must be a list with a list of image names per client")
    return content
