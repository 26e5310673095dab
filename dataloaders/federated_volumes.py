"""The data of one federated run on volumes: three sets, and each client's share of the first."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dataloaders.federated import FederatedData, Rehearsal, dealt_before
from dataloaders.overlap import overlap_lines
from dataloaders.partition import (
    labelled_clients,
    labelled_fraction,
    set_sizes,
    split,
    split_by_column,
    split_by_site,
)
from dataloaders.patches import VolumeDataset
from dataloaders.split import Split
from dataloaders.volumes import TABLE_FILE, VolumeTable, open_volumes, read_volumes
from utils.errors import UserError
from utils.json_files import read_json
from utils.schema import choice, mapping, number, record, sequence, text, whole
from utils.table_files import to_markdown
from utils.tensors import derive_seed

SETS = ("train", "val", "test")
SMALLEST_CLIENT = 1
SAME_SPACING = 1e-6  # mm, of what a manifest, a checkpoint and a server say
PREPARATION = record(
    {
        "modality": choice("mr", "ct"),
        "ct_window": sequence(number(-1e6, 1e6), 2, 2),
        "spacing": sequence(number(1e-3, 1e3), 3, 3),
        "classes": mapping(text(200), whole(0, 255), largest=256),
    }
)


def load_federated_volumes(args: Namespace, say: Callable[[str], None]) -> FederatedData:
    """Read the tables, map the arrays and deal the training volumes to the clients.

    `say` gets how the sets and the clients were made. Raises `UserError` for whatever in the data
    or the flags about them cannot be used.
    """
    tables, how = read_sets(args)
    dealt = None
    say(f"sets: {how}")
    if "train" in tables:
        dealt = deal_volumes(args, tables["train"])
        for line in describe_volumes(tables, dealt):
            say(line)
    datasets = {
        name: VolumeDataset(
            open_volumes(args.volumes, table), table, tuple(args.patch_size), args.foreground
        )
        for name, table in tables.items()
    }
    check_patch_size(args.patch_size, len(args.unet_channels))
    if (found := datasets["test"].input_shape[0]) != args.channels:
        raise UserError(
            f"--channels {args.channels}: the volumes in {args.volumes} have {found}; give "
            f"--channels {found}"
        )
    preparation = read_preparation(args.volumes) | {
        "channels": args.channels,
        "patch_size": list(args.patch_size),
    }
    return FederatedData(
        tables.get("train"),
        datasets.get("train"),
        datasets.get("val"),
        datasets["test"],
        dealt,
        {"volumes": preparation},
        len(tables.get("train", ())),
    )


def read_sets(args: Namespace) -> tuple[dict[str, VolumeTable], str]:
    """The tables by set ("train", "val" where there is one, "test"), and in words how they came
    about: from the files that the flags name, else from volumes.csv by `divide`."""
    files = {name: getattr(args, f"csv_file_{name}") for name in SETS}
    if files["test"] is not None:
        tables = {name: read_volumes(path) for name, path in files.items() if path is not None}
        classes = {name: table.class_names for name, table in tables.items()}
        if len(set(classes.values())) > 1:
            raise UserError(f"{files['test']}: its classes are not those of {args.csv_file_train}")
        for name in ("val", "test"):
            if name in tables:
                refuse_unlabeled(tables[name], f"in the set {name}")
        return tables, "as the files say"
    whole = read_volumes(args.volumes / TABLE_FILE)
    labeled = np.flatnonzero(whole.is_labeled)
    seed = derive_seed(args.seed, "sets") % 2**32
    parts, how = divide(whole.select(labeled), args.volume_sets, seed)
    parts = [labeled[part] for part in parts]
    if len(labeled) < len(whole):
        joining = _without_labels(whole, np.concatenate(parts[1:]))
        parts[0] = np.sort(np.concatenate([parts[0], joining]))
        kept_out = len(whole) - len(labeled) - len(joining)
        how += f"; {len(joining)} without labels join the first"
        how += f", {kept_out} that may be of tested patients do not"
    tables = {name: whole.select(rows) for name, rows in zip(SETS, parts, strict=True) if len(rows)}
    return tables, how


def _without_labels(table: VolumeTable, tested: np.ndarray) -> np.ndarray:
    """The rows without a label; none of a patient who is among the rows `tested`.

    Where patients are unknown, none beside one of them in the table: neighbouring numbers are often
    two scans of one patient.
    """
    rows = np.flatnonzero(~table.is_labeled)
    if table.groups is None:
        return rows[~np.isin(rows, [*tested - 1, *tested + 1])]
    known = {table.groups[row] for row in tested}
    return np.array([row for row in rows if table.groups[row] not in known], dtype=np.int64)


def refuse_unlabeled(table: VolumeTable, place: str) -> None:
    """`UserError` for a volume without a label where one is needed."""
    if not table.is_labeled.all():
        row = int(np.flatnonzero(~table.is_labeled)[0])
        raise UserError(
            f"{table.source} line {table.line_numbers[row]}: volume {table.names[row]} has no "
            f"label and stands {place}; move it to a client without labels"
        )


def divide(table: VolumeTable, sizes: Sequence[float], seed: int) -> tuple[list[np.ndarray], str]:
    """Rows of the training, validation and test set, and how they were made, in words.

    The rows, in their order, are a ring, cut open at a place drawn from `seed`; each set is a run
    of neighbours on it: neighbouring numbers are often two scans of one patient. Where the table
    knows patients, they are what the ring is made of, so that none stands in two sets. `sizes` are
    shares that sum to 1, or numbers of volumes; the validation set may have none.
    """
    units, named = blocks_of(table)
    shares = np.asarray(sizes, np.float64)
    wanted = set_sizes(sizes, len(table), (1,), "--volume_sets", "labelled volumes")[:3]
    shift = int(np.random.default_rng(seed).integers(len(units)))
    ring = [*units[shift:], *units[:shift]]
    lengths = np.cumsum([len(unit) for unit in ring])
    cuts = [int(np.abs(lengths - edge).argmin()) + 1 for edge in np.cumsum(wanted)]
    if wanted[1] == 0:
        cuts[1] = cuts[0]
    starts = [0, cuts[0], cuts[1]]
    parts = [
        np.array(sorted(row for unit in ring[start:stop] for row in unit), dtype=np.int64)
        for start, stop in zip(starts, cuts, strict=True)
    ]
    if not (len(parts[0]) and len(parts[2])):
        raise UserError(
            f"--volume_sets {' '.join(f'{size:g}' for size in shares)}: {table.source} has "
            f"{len(units)} {named}, too few for these sets"
        )
    return parts, f"contiguous blocks of {named}, {', '.join(str(len(part)) for part in parts)}"


def blocks_of(table: VolumeTable) -> tuple[list[list[int]], str]:
    """The rows that stay together, in the table's order, and what they are called."""
    if table.groups is None:
        return [[row] for row in range(len(table))], "volumes (patients unknown)"
    members: dict[str, list[int]] = {}
    for row, group in enumerate(table.groups):
        members.setdefault(group, []).append(row)
    return list(members.values()), "patients"


def split_blocks(table: VolumeTable, num_users: int) -> list[np.ndarray]:
    """Clients that hold neighbouring volumes (or patients), as equal as whole blocks allow."""
    units, named = blocks_of(table)
    if not 1 <= num_users <= len(units):
        raise UserError(f"--num_users {num_users}: there are {len(units)} {named}; give fewer")
    parts = np.array_split(np.arange(len(units)), num_users)
    return [np.array(sorted(row for unit in part for row in units[unit])) for part in parts]


def deal_volumes(args: Namespace, table: VolumeTable) -> Split:
    """Which training volumes each client holds, and which clients have labels."""
    if args.split is not None:
        dealt = dealt_before(args, table)
        for client in dealt.labelled:
            refuse_unlabeled(table.select(dealt.clients[client]), f"at labelled client {client}")
        return dealt
    seed = derive_seed(args.seed, "split") % 2**32
    count = None if args.labeled_ids else args.num_labeled
    labeled = labelled_clients(args.num_users, count, args.labeled_ids)
    if table.is_labeled.all() or args.partition in ("site", "column"):
        clients, how = _partition(args, table, seed)
        for client in labeled:
            refuse_unlabeled(table.select(clients[client]), f"at labelled client {client}")
    else:
        clients, how = _partition_both(args, table, seed, labeled)
    if args.labeled_fraction:
        refuse_unlabeled(table, "in a set of which --labeled_fraction takes labels")
        alike = np.zeros(len(table), dtype=np.int64)
        parts = [labelled_fraction(rows, alike, args.labeled_fraction, seed) for rows in clients]
        clients = [part for part, _ in parts] + [rest for _, rest in parts]
        labeled = tuple(range(args.num_users))
        how += f", {args.labeled_fraction:g} of each client's volumes labelled"
    if args.labeled_volumes:
        for client in labeled:
            if len(clients[client]) < args.labeled_volumes:
                raise UserError(
                    f"--labeled_volumes {args.labeled_volumes}: labelled client {client} has "
                    f"{len(clients[client])} volumes; give no more"
                )
        clients = [
            rows[: args.labeled_volumes] if client in labeled else rows
            for client, rows in enumerate(clients)
        ]
        how += f", the first {args.labeled_volumes} of each labelled client"
    if min(map(len, clients)) < SMALLEST_CLIENT:
        raise UserError(
            f"--num_users {args.num_users}: a client would hold none of {len(table)} volumes"
        )
    return Split(clients, labeled, seed, how)


def _partition_both(
    args: Namespace, table: VolumeTable, seed: int, labeled: Sequence[int]
) -> tuple[list[np.ndarray], str]:
    """The volumes with labels are dealt to all clients, those without to the clients without: as
    blocks of neighbours, whose patients stay together."""
    drawn, undrawn = (np.flatnonzero(rows) for rows in (table.is_labeled, ~table.is_labeled))
    parts, how = _partition(args, table.select(drawn), seed)
    clients = [drawn[part] for part in parts]
    others = [client for client in range(args.num_users) if client not in labeled]
    if not others:
        return clients, f"{how}; {len(undrawn)} volumes without labels belong to nobody"
    count = min(len(others), len(blocks_of(table.select(undrawn))[0]))
    shares = split_blocks(table.select(undrawn), count)
    for client, share in zip(others, shares, strict=False):
        clients[client] = np.sort(np.concatenate([clients[client], undrawn[share]]))
    return clients, f"{how}, {len(undrawn)} more without labels at the clients without"


def _partition(args: Namespace, table: VolumeTable, seed: int) -> tuple[list[np.ndarray], str]:
    if args.partition == "blocks":
        return split_blocks(table, args.num_users), f"contiguous blocks of {blocks_of(table)[1]}"
    if args.partition == "iid":
        return split(table, args.num_users, seed), "equal parts at random"
    if args.partition == "site":
        return split_by_site(table.sites, args.num_users), "by site"
    if args.partition == "column":
        return split_by_column(table.clients, args.num_users), "column client"
    raise UserError(f"--partition {args.partition}: volumes have no class each; use blocks or site")


def describe_volumes(tables: dict[str, VolumeTable], dealt: Split) -> list[str]:
    """How the clients were made, and who holds how many voxels of what."""
    train = tables["train"]
    header = ["client", "labels", "volumes", *train.class_names]
    rows = [
        [
            str(client),
            "yes" if client in dealt.labelled else "no",
            str(len(held)),
            *map(str, train.counts[held].sum(axis=0)),
        ]
        for client, held in enumerate(dealt.clients)
    ]
    lines = [f"clients: {dealt.how}; voxels of each class:\n{to_markdown(header, rows).rstrip()}"]
    for client in dealt.labelled:
        counts = train.counts[dealt.clients[client]].sum(axis=0)
        lines += [
            f"warning: labelled client {client} has no voxel of {name}: its row of the relation "
            "matrix says nothing there"
            for name, count in zip(train.class_names, counts, strict=True)
            if count == 0
        ]
    return lines


def dry_run_volumes(args: Namespace) -> Rehearsal:
    """Check tables and arrays without training. `UserError` as in `load`."""
    tables, how = read_sets(args)
    check_patch_size(args.patch_size, len(args.unet_channels))
    lines = [f"sets: {how}"]
    for name, table in tables.items():
        arrays = open_volumes(args.volumes, table)
        size = sum(array.nbytes for array in arrays) / 1e6
        lines.append(
            f"{name}: {len(table)} volumes, {len(arrays[0]) - 1} channel(s), {size:.0f} MB"
        )
    lines += overlap_lines(tables)
    train = tables["train"]
    dealt = deal_volumes(args, train)
    arrays = open_volumes(args.volumes, train)
    return Rehearsal(
        lines + describe_volumes(tables, dealt),
        dealt,
        sum(len(table) for name, table in tables.items() if name != "train"),
        VolumeDataset(arrays, train, tuple(args.patch_size), args.foreground),
    )


def check_patch_size(patch_size: Sequence[int], levels: int) -> None:
    """`UserError` unless every side can be halved as often as the network does."""
    step = 2 ** (levels - 1)
    if odd := [side for side in patch_size if side % step]:
        raise UserError(
            f"--patch_size {' '.join(map(str, patch_size))}: {odd[0]} is no multiple of {step}; "
            f"the {levels} levels of --unet_channels halve a side {levels - 1} times"
        )
    if levels > 1 and set(patch_size) == {step}:
        raise UserError(
            f"--patch_size {' '.join(map(str, patch_size))}: nothing but one voxel is left at the "
            f"lowest of {levels} levels; double a side, or give fewer --unet_channels"
        )


def refuse_other_preparation(folder: Path, channels: int, wanted: Mapping, whose: str) -> None:
    """`UserError` where the arrays of `folder`, of so many channels, were prepared otherwise than
    `whose` volumes, of which `wanted` tells channels, modality, ct_window and spacing."""
    found = read_preparation(folder) | {"channels": channels}
    for name in ("channels", "modality", "ct_window", "spacing"):
        if not _alike(found[name], wanted[name]):
            raise UserError(
                f"{folder}: prepared with {name} {_words(found[name])}, {whose} with "
                f"{_words(wanted[name])}; prepare them alike"
            )


def _alike(ours: object, theirs: object) -> bool:
    if isinstance(ours, str):
        return ours == theirs
    return np.allclose(ours, theirs, atol=SAME_SPACING)


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def read_preparation(folder: Path) -> dict:
    """How files became the arrays of `folder`, from manifest.json: modality, ct_window, spacing,
    and values, the number of each class in the label files."""
    advice = "prepare the volumes again"
    manifest = read_json(folder / "manifest.json", advice=advice)
    found = {key: manifest.get(key) for key in ("modality", "ct_window", "spacing", "classes")}
    try:
        PREPARATION(found, "")
    except ValueError as error:
        raise UserError(f"{folder / 'manifest.json'}: {error}; {advice}") from None
    return found | {"values": list(found.pop("classes").values())}
