"""split.json: which image went to which client, so that a run can be started from it again."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloaders.columns import quoted
from dataloaders.table import ImageTable
from options import CLIENT_LISTS, SERVER
from utils.errors import UserError
from utils.files import write_text
from utils.json_files import read_json
from utils.schema import choice, mapping, record, sequence, text, whole


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
    sites: Sequence[Sequence[str]] | None = None,
) -> str:
    """Images per client (rows) and class (columns), with totals and who has labels.

    `labels` (N,) are class indices; `clients` holds each client's row indices; `sites` the names
    of each client's hospitals, where these made the clients.
    """
    counts = _class_counts([labels[rows] for rows in clients], len(class_names))
    rows = [
        [client, "yes" if client in labelled_ids else "no", *row, row.sum()]
        for client, row in enumerate(counts)
    ]
    rows.append(["all", f"{len(labelled_ids)} yes", *counts.sum(axis=0), counts.sum()])
    header = ["client", "labels", *class_names, "all"]
    if sites is not None:
        header.append("sites")
        for row, names in zip(rows, [*sites, []], strict=True):
            row.append(", ".join(names))
    return _aligned(header, rows)


def absent_class_warnings(
    class_names: Sequence[str], labels_of_set: Mapping[str, np.ndarray]
) -> list[str]:
    """One line per set that has no image of some class. Arguments as in `class_set_table`."""
    counts = _class_counts(list(labels_of_set.values()), len(class_names))
    return [
        f"warning: {name} has no image of "
        f"{', '.join(c for c, n in zip(class_names, row, strict=True) if not n)}"
        for name, row in zip(labels_of_set, counts, strict=True)
        if not row.all()
    ]


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
    """`clients[k]` are client k's sorted row indices; `labelled` the ids that have labels;
    `sites[k]` the names of client k's hospitals, where these made the clients."""

    clients: list[np.ndarray]
    labelled: tuple[int, ...]
    seed: int
    how: str
    sites: list[list[str]] | None = None


def save_split(path: str | Path, table: ImageTable, dealt: Split) -> None:
    """Write the image names of each client as JSON, whole or not at all.

    `dealt.how` says in words how the clients were made, as "dirichlet alpha 0.5".
    """
    content = {
        "format": _FORMAT,
        "csv": table.source.name,
        "how": dealt.how,
        "seed": dealt.seed,
        "labelled_clients": [int(client) for client in dealt.labelled],
        "clients": [[table.names[row] for row in rows.tolist()] for rows in dealt.clients],
    }
    if dealt.sites is not None:
        content["sites"] = dealt.sites
    if isinstance(table, ImageTable):  # for the report: a volume has no class
        content["held"] = {
            "class_names": list(table.class_names),
            "labelled_clients": content["labelled_clients"],
            "counts": [table.select(rows).class_counts().tolist() for rows in dealt.clients],
        }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_split(path: str | Path, table: ImageTable) -> Split:
    """Read what `save_split` wrote; the names become row indices of `table`.

    Images of the table that no client holds are left out. Raises `UserError` for a file that is
    no split, a name that the table does not have or that two clients hold, an empty client, and a
    labelled id that is no client.
    """
    path = Path(path)
    content = read_split(path)
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
    labelled = tuple(content["labelled_clients"])
    return Split(clients, labelled, content["seed"], content["how"], content.get("sites"))


ROWS = sequence(whole(0, 10**9), 0, 10**8)


def is_published(path: Path) -> bool:
    """Whether `--split` names the field's lists (a folder, or its train_clients.json) instead of a
    run's split.json."""
    return path.is_dir() or path.name == CLIENT_LISTS


def load_published(path: Path, table: ImageTable) -> tuple[list[np.ndarray], str]:
    """(each client's sorted row indices, how in words) of published lists: a JSON object that maps
    a client's number to the rows of train.csv that it holds, counted from 0.

    The rows of "server" are held by nobody, and those that `table` left out by nobody either.
    `UserError` for other numbers than 0 to K - 1, a row that is not there or stands in two lists.
    """
    path = path / CLIENT_LISTS if path.is_dir() else path
    content = read_json(path, mapping(text(20), ROWS, largest=10**6), "not the field's lists")
    names = sorted((name for name in content if name != SERVER), key=lambda name: name.zfill(20))
    if names != [str(client) for client in range(len(names))] or not names:
        raise UserError(f"{path}: the clients are {', '.join(names)}; number them from 0")
    rows = {line - HEADER_LINES: row for row, line in enumerate(table.line_numbers)}
    holder: dict[int, str] = {}
    for name, numbers in content.items():
        for number in numbers:
            if number not in rows and not table.dropped:
                raise UserError(
                    f"{path}: client {name} holds row {number}, and {table.source} has rows 0 to "
                    f"{len(table) - 1}"
                )
            if number in holder:
                raise UserError(
                    f"{path}: row {number} (line {number + HEADER_LINES} of {table.source}) stands "
                    f"in the lists of {holder[number]} and {name}; delete one"
                )
            holder[number] = name
    clients = [
        np.sort([rows[number] for number in content[name] if number in rows]).astype(np.int64)
        for name in names
    ]
    how = f"the lists of {path.parent.name}"
    if aside := len(content.get(SERVER, ())):
        how += f", {aside} images of their server left out"
    return clients, how


HEADER_LINES = 2  # of a CSV's first row counted from 0: it stands in line 2
CLIENT = whole(0, 10**6)
COUNTS = sequence(whole(0, 2**63), 0, 10**6)
HELD = record(
    {
        "class_names": sequence(text(), 1, 10_000),
        "labelled_clients": sequence(CLIENT, 1, 10**6),
        "counts": sequence(COUNTS, 1, 10**6),
    }
)
SPLIT_FILE = record(
    {
        "format": choice(_FORMAT),
        "csv": text(),
        "how": text(),
        "seed": whole(-(2**63), 2**64),
        "labelled_clients": sequence(CLIENT, 1, 10**6),
        "clients": sequence(sequence(text(), 0, 10**8), 1, 10**6),
    },
    {"sites": sequence(sequence(text(), 0, 10**6), 1, 10**6), "held": HELD},
)


def read_split(path: Path) -> dict:
    """The content of a split.json: csv, how, seed, labelled_clients (sorted ids), clients (a list
    of image names each). `UserError` for anything else."""
    content = read_json(
        path, SPLIT_FILE, "not a split.json of this version: give the file from a run directory"
    )
    labelled = sorted(set(content["labelled_clients"]))
    if labelled[-1] >= len(content["clients"]):
        raise UserError(
            f"{path}: labelled_clients are {labelled}; give ids from 0 to "
            f"{len(content['clients']) - 1}"
        )
    return content | {"labelled_clients": labelled}
