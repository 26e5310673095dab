"""Who gets what: training, validation and test sets by patient, and the clients' shares.

python -m dataloaders.partition LABELS.csv --out DIR
"""

import argparse
import csv
import io
from collections.abc import Sequence, Sized
from pathlib import Path

from utils.packages import check_installed

if __name__ == "__main__":
    check_installed()

import numpy as np

from dataloaders.columns import GROUP_COLUMNS, CsvText, read_csv_text
from dataloaders.split import absent_class_warnings, class_set_table, shared_values
from dataloaders.table import LABEL_UNCERTAINTY, ImageTable, read_table
from options import SPLIT_FILES
from utils.errors import OneLineParser, UserError, run_command
from utils.files import write_text

DEFAULT_SIZES = (0.7, 0.1, 0.2)
MINIMUM_DIRICHLET = 2


def split_table(
    table: ImageTable,
    sizes: Sequence[float] = DEFAULT_SIZES,
    seed: int = 1337,
    by: str = "group",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted row indices of the training, validation and test set.

    `sizes` are three shares that sum to 1, or three numbers of images (what is left over then
    belongs to none of the sets). `by` "group" keeps every patient or lesion in one set and comes
    as close to the sizes as whole groups allow; "image" meets them exactly. Either way each set
    is given its share of every class. The same seed gives the same sets. Raises `UserError` for
    sizes that cannot be met and for a table without groups where `by` is "group".
    """
    targets = set_sizes(sizes, len(table))
    if by == "image":
        group_of_row = np.arange(len(table))
    elif table.groups is None:
        raise UserError(
            f"{table.source}: no PatientID or lesion_id column to keep patients together; name "
            "the column with --group, or split with --by image"
        )
    else:
        group_of_row = np.unique(table.groups, return_inverse=True)[1]
    counts = np.zeros((group_of_row.max() + 1, len(table.class_names)))
    np.add.at(counts, (group_of_row, table.labels), 1)
    if len(counts) < 3:
        raise UserError(
            f"{table.source}: only {len(counts)} patients or lesions for three sets; "
            "give more data, or split with --by image"
        )
    part_of_group = _assign_groups(counts, targets, np.random.default_rng(seed))
    part_of_row = part_of_group[group_of_row]
    train, val, test = (np.flatnonzero(part_of_row == part) for part in range(3))
    return train, val, test


def set_sizes(
    sizes: Sequence[float],
    total: int,
    optional: Sequence[int] = (),
    flag: str = "--sizes",
    things: str = "images",
) -> np.ndarray:
    """(4,) numbers of images: training, validation, test, and left over; of the `optional` of the
    three there may be none. `UserError` for sizes that cannot be met: it calls them `flag`, and
    the images `things`."""
    sizes = np.asarray(sizes, dtype=np.float64)
    shown = " ".join(f"{size:g}" for size in sizes)
    lowest = np.ones(3)
    lowest[list(optional)] = 0
    if sizes.shape != (3,) or not (np.isfinite(sizes).all() and (sizes >= 0).all()):
        raise UserError(f"{flag} {shown}: give three positive numbers, as 0.7 0.1 0.2")
    if (sizes[lowest > 0] == 0).any():
        raise UserError(f"{flag} {shown}: give three positive numbers, as 0.7 0.1 0.2")
    if np.isclose(sizes.sum(), 1.0):
        # Whole numbers that sum to the total: each cumulated share is rounded, not each share.
        cuts = np.rint(np.cumsum(sizes) * total).astype(np.int64)
        counts = np.diff(cuts, prepend=0)
    elif (sizes == np.rint(sizes)).all():
        counts = sizes.astype(np.int64)
    else:
        raise UserError(f"{flag} {shown}: give shares that sum to 1, or numbers of {things}")
    if (counts < lowest).any() or counts.sum() > total:
        raise UserError(f"{flag} {shown}: cannot be taken from {total} {things}; give smaller ones")
    return np.append(counts, total - counts.sum())


def _assign_groups(
    counts: np.ndarray, targets: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Part 0..3 for each group, given (G, C) images per group and class and (4,) part sizes.

    The greedy rule of scikit-learn's StratifiedGroupKFold, which makes equal parts only, with a
    target for each part: groups that weigh most go first, each to the part with room where it
    lowers the chi-squared distance between the parts' class counts and their targets most. No
    part that has a target stays empty.
    """
    class_totals = np.maximum(counts.sum(axis=0), 1)
    wanted = np.maximum(np.outer(targets / targets.sum(), class_totals), 1e-9)
    filled = np.zeros_like(wanted)
    room = targets.astype(np.float64)
    empty = targets > 0
    part_of_group = np.empty(len(counts), dtype=np.int64)
    order = generator.permutation(len(counts))
    weight = (counts**2 / class_totals).sum(axis=1)
    order = order[np.argsort(-weight[order], kind="stable")]
    for place, group in enumerate(order):
        images = counts[group]
        cost = (images * (2 * (filled - wanted) + images) / wanted).sum(axis=1)
        fits = room >= images.sum()
        if empty.sum() >= len(order) - place:
            allowed = empty
        else:
            allowed = fits if fits.any() else targets > 0
        part = np.where(allowed, cost, np.inf).argmin()
        part_of_group[group] = part
        filled[part] += images
        room[part] -= images.sum()
        empty[part] = False
    return part_of_group


def split(dataset: Sized | int, num_users: int, seed: int = 1337) -> list[np.ndarray]:
    """The paper's clients: sorted indices of `num_users` random parts that differ by at most one.

    `dataset` is anything with a length, or the length itself.
    """
    length = len(dataset) if isinstance(dataset, Sized) else dataset
    _refuse_too_many_clients(length, num_users)
    order = np.random.default_rng(seed).permutation(length)
    return [np.sort(part) for part in np.array_split(order, num_users)]


def split_dirichlet(
    labels: np.ndarray, num_users: int, alpha: float, seed: int = 1337
) -> list[np.ndarray]:
    """Clients with skewed classes: each class is divided in shares drawn from Dirichlet(alpha).

    Sorted indices per client. Small `alpha` gives clients of few classes, large `alpha` equal
    shares. Every client holds at least 2 images: those short of it are given random images of the
    largest client. Raises `UserError` for alpha <= 0 and for fewer than 2 images per client.
    """
    if not (alpha > 0 and np.isfinite(alpha * num_users)):
        raise UserError(f"Dirichlet alpha is {alpha}; give a positive number, as 0.5")
    labels = np.asarray(labels)
    _refuse_too_many_clients(len(labels), num_users, MINIMUM_DIRICHLET)
    generator = np.random.default_rng(seed)
    client_of_row = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(num_users, alpha))
        cuts = np.rint(np.cumsum(shares) * len(rows)).astype(np.int64)[:-1]
        for client, part in enumerate(np.split(rows, cuts)):
            client_of_row[part] = client
    sizes = np.bincount(client_of_row, minlength=num_users)
    while sizes.min() < MINIMUM_DIRICHLET:
        poor, rich = sizes.argmin(), sizes.argmax()
        client_of_row[generator.choice(np.flatnonzero(client_of_row == rich))] = poor
        sizes[poor] += 1
        sizes[rich] -= 1
    return _rows_of_clients(client_of_row, num_users)


def split_by_site(sites: Sequence[str] | None, num_users: int) -> list[np.ndarray]:
    """One client per site, the largest first; surplus sites join the smallest client, whole.

    Sorted indices per client. Raises `UserError` where there are fewer sites than clients.
    """
    if sites is None:
        raise UserError("the CSV has no site column; add one named site or dataset")
    names, site_of_row, sizes = np.unique(sites, return_inverse=True, return_counts=True)
    if num_users > len(names) or num_users < 1:
        raise UserError(
            f"--num_users {num_users}: the CSV has {len(names)} sites; give 1 to {len(names)}"
        )
    client_of_site = np.empty(len(names), dtype=np.int64)
    client_sizes = np.zeros(num_users, dtype=np.int64)
    for site in np.argsort(-sizes, kind="stable"):
        client = client_sizes.argmin()
        client_of_site[site] = client
        client_sizes[client] += sizes[site]
    return _rows_of_clients(client_of_site[site_of_row], num_users)


def split_by_column(clients: np.ndarray | None, num_users: int) -> list[np.ndarray]:
    """The clients that the CSV's own column `client` gives: sorted indices for ids 0, 1, ...

    Raises `UserError` where the ids are not exactly 0 to num_users - 1.
    """
    if clients is None:
        raise UserError("the CSV has no column client; add one with the client's number, from 0")
    present = np.unique(clients)
    if not np.array_equal(present, np.arange(num_users)):
        shown = ", ".join(map(str, present[:20]))
        raise UserError(
            f"--num_users {num_users}: the CSV's column client must hold every number from 0 to "
            f"{num_users - 1} and no other; it holds {shown}"
        )
    return _rows_of_clients(clients, num_users)


def labelled_clients(
    num_users: int, num_labeled: int | None = None, ids: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Sorted ids of the clients that have labels: `ids`, or else the first `num_labeled`.

    Raises `UserError` for ids that are repeated or are no clients, and for none at all.
    """
    if ids is None:
        if num_labeled is None or not 1 <= num_labeled <= num_users:
            raise UserError(f"--num_labeled {num_labeled}: give 1 to {num_users} labelled clients")
        return tuple(range(num_labeled))
    wrong = [client for client in ids if not 0 <= client < num_users]
    if wrong or len(set(ids)) != len(ids) or not ids:
        raise UserError(
            f"--labeled_ids {' '.join(map(str, ids))}: give one or more different ids from 0 to "
            f"{num_users - 1}"
        )
    if num_labeled is not None and num_labeled != len(ids):
        raise UserError(f"--num_labeled {num_labeled}, but {len(ids)} labelled ids; give one")
    return tuple(sorted(ids))


def labelled_fraction(
    indices: np.ndarray, labels: np.ndarray, fraction: float, seed: int = 1337
) -> tuple[np.ndarray, np.ndarray]:
    """Divide one client's rows `indices` in those with and those without labels, both sorted.

    `labels` (N,) are those of the whole table. Of each class the client holds, `fraction` of the
    images, rounded and at least one, have labels. Raises `UserError` unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"labelled fraction {fraction}: give a number above 0 and at most 1")
    order = np.random.default_rng(seed).permutation(np.asarray(indices, dtype=np.int64))
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, size = np.unique(labels[order], return_index=True, return_counts=True)
    wanted = np.maximum(np.rint(size * fraction), 1)
    rank = np.arange(len(order)) - np.repeat(first, size)
    chosen = rank < np.repeat(wanted, size)
    return np.sort(order[chosen]), np.sort(order[~chosen])


def _rows_of_clients(client_of_row: np.ndarray, num_users: int) -> list[np.ndarray]:
    return [np.flatnonzero(client_of_row == client) for client in range(num_users)]


def _refuse_too_many_clients(images: int, num_users: int, minimum: int = 1) -> None:
    if num_users < 1:
        raise UserError(f"--num_users {num_users}: give at least 1 client")
    if images < num_users * minimum:
        raise UserError(
            f"--num_users {num_users}: {images} images are too few for {num_users} clients with at "
            f"least {minimum} each; give more images or fewer clients"
        )


def _parse_arguments() -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m dataloaders.partition",
        description="Divide a CSV of images in training.csv, validation.csv and testing.csv.",
    )
    parser.add_argument("csv", metavar="LABELS.csv", help="ImageID[,PatientID,...],class columns")
    parser.add_argument("--out", required=True, help="folder for the three files")
    parser.add_argument(
        "--sizes",
        nargs=3,
        type=float,
        default=DEFAULT_SIZES,
        metavar=("TRAIN", "VAL", "TEST"),
        help="three shares that sum to 1, or three numbers of images (default 0.7 0.1 0.2)",
    )
    parser.add_argument(
        "--by",
        choices=("group", "image"),
        help="group (default where there is a group column): no patient or lesion in two sets; "
        "image: the released program's way, patients leak",
    )
    parser.add_argument("--group", help="column of patients (default PatientID, else lesion_id)")
    parser.add_argument(
        "--single_label",
        action="store_true",
        help="leave out images with no class or several classes instead of refusing them",
    )
    parser.add_argument("--limit", type=int, help="take this many images at random, as 25000")
    parser.add_argument(
        "--label_uncertainty",
        choices=LABEL_UNCERTAINTY,
        default="U-Ones",
        help="what a label of -1 counts as; the written cells stay as they are",
    )
    parser.add_argument("--seed", type=int, default=1337)
    return parser.parse_args()


def main() -> None:
    arguments = _parse_arguments()
    table = read_table(
        arguments.csv,
        arguments.label_uncertainty,
        multi_label="drop" if arguments.single_label else "refuse",
        group_column=arguments.group,
    )
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: give a number from 0")
    print(f"{arguments.csv}: {len(table)} images, {table.dropped} rows left out for their classes")
    if arguments.limit is not None:
        table = _sample(table, arguments.limit, arguments.seed)
    by = arguments.by or ("image" if table.groups is None else "group")
    parts = dict(
        zip(SPLIT_FILES, split_table(table, arguments.sizes, arguments.seed, by), strict=True)
    )
    write_parts(Path(arguments.out), table, parts)
    labels_of_set = {name: table.labels[rows] for name, rows in parts.items()}
    print(class_set_table(table.class_names, labels_of_set))
    for line in absent_class_warnings(table.class_names, labels_of_set):
        print(line)
    print(_shared_line(table, list(parts.values())))


def _sample(table: ImageTable, limit: int, seed: int) -> ImageTable:
    if limit < 1:
        raise UserError(f"--limit {limit}: give a positive number of images")
    if limit > len(table):
        print(f"--limit {limit}: there are {len(table)} images, all of them are taken")
    order = np.random.default_rng(seed).permutation(len(table))
    return table.select(np.sort(order[:limit]))


def write_parts(folder: Path, table: ImageTable, parts: dict[str, np.ndarray]) -> None:
    """Write the file `name` in `folder` for each part {name: row indices}.

    The header and the rows' lines are copied from the table's CSV, every cell as it was written;
    but a group column of another name is called PatientID, which training knows. Raises `UserError`
    where that CSV would be overwritten or the folder cannot be written to.
    """
    text = read_csv_text(table.source)
    lines = text.lines()
    lines[0] = _known_header(text, table.group_column)
    for name in parts:
        path = folder / name
        if path.exists() and path.samefile(table.source):
            raise UserError(f"{path}: would overwrite the input; give another --out")
    for name, rows in parts.items():
        chosen = [lines[0], *(lines[number - 1] for number in table.line_numbers[rows].tolist())]
        try:
            write_text(folder / name, "\n".join(chosen) + "\n")
        except OSError as error:
            raise UserError(f"--out {folder}: cannot write {name} ({error.strerror})") from None
        print(f"wrote {folder / name}: {len(rows)} images")


def _known_header(text: CsvText, group_column: str) -> str:
    """The header's line as it is to be written."""
    if group_column in GROUP_COLUMNS or group_column not in text.header:
        return text.lines()[0]
    if known := [name for name in GROUP_COLUMNS if name in text.header]:
        raise UserError(
            f"--group {group_column}: {text.path} has a column {known[0]}, too, which training "
            "would go by; delete one of the two"
        )
    print(f"column {group_column} is called {GROUP_COLUMNS[0]} from now on, as training knows it")
    cells = [GROUP_COLUMNS[0] if name == group_column else name for name in text.header]
    line = io.StringIO()
    csv.writer(line, delimiter=text.separator, lineterminator="").writerow(cells)
    return line.getvalue()


def _shared_line(table: ImageTable, parts: list[np.ndarray]) -> str:
    if table.groups is None:
        return (
            "patients shared between the sets: unknown, there is no PatientID or lesion_id column; "
            "images of one patient may stand on both sides"
        )
    shared, total = shared_values([table.select(rows).groups for rows in parts])
    if not shared:
        return f"patients or lesions shared between the sets: 0 of {total}"
    return (
        f"LEAKAGE: {shared} of {total} patients or lesions have images in more than one set (as in "
        "the released program); --by group keeps them apart"
    )


if __name__ == "__main__":
    run_command(main)
