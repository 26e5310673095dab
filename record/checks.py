"""What a run refuses before its first round, and before it goes on."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

from record.opening import read_precision
from record.state import round_bytes, stored_bytes
from utils.errors import UserError
from utils.files import free_bytes, megabytes


def refuse_other_precision(
    folder: Path, args: Namespace, precision: str, say: Callable[[str], None]
) -> None:
    """Going on in another precision makes another run of it: that must be asked for."""
    before = read_precision(folder)
    if before is None or before == precision:
        return
    change = f"{folder}: trained in {before} until now, from here on in {precision}"
    if args.precision == "auto":
        raise UserError(f"{change}; say so with --precision {precision}, or keep {before}")
    say(change)


def refuse_small_disk(
    folder: Path,
    args: Namespace,
    copies: int,
    model: int,
    rounds_done: int,
    say: Callable[[str], None],
) -> None:
    """The last rounds' states stay while the next one's is written: room for one more. copies:
    models that clients and server remember; model: the bytes of one."""
    if args.finish or rounds_done == args.rounds - args.start_epoch:
        return  # only the report is still to do
    one_round = round_bytes(model, copies)
    present = stored_bytes(folder / "checkpoints")
    needed = (args.keep_rounds + 1) * one_round + model - present
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"{folder}: {megabytes(free)} free and {megabytes(needed)} needed for the "
            f"states of {args.keep_rounds + 1} rounds; make room there, or name another "
            "place with --run_dir"
        )
    rounds = args.rounds - rounds_done
    weights = rounds // args.save_every * model
    if free - needed < weights:
        say(
            f"{folder}: the epoch_N.pth files of {rounds} rounds will take "
            f"{megabytes(weights)}, {megabytes(free - needed)} are left: see --save_every"
        )


def never_join(args: Namespace, unlabeled: int) -> str | None:
    """A warning where a run ends before its `unlabeled` clients without labels would train."""
    if not unlabeled or (args.rounds - 1) * args.local_ep > args.join_epoch:
        return None
    return (
        f"warning: the unlabelled clients join after epoch {args.join_epoch}, and this run of "
        f"{args.rounds} rounds of {args.local_ep} ends before: they never train; give more "
        "--rounds, or an earlier --join_epoch (-1: from the first round on)"
    )


def refuse_other_data(
    folder: Path, args: Namespace, now: Mapping[str, str], before: Mapping[str, str]
) -> None:
    """Raise `UserError` where a set of images, or who holds which, is not what it was."""
    for name, fingerprint in before.items():
        if now.get(name) == fingerprint:
            continue
        source = getattr(args, f"csv_file_{name}", None) or args.medmnist
        what = f"the {name} images or labels"
        if name == "clients":
            source, what = args.split, "which images each client holds"
        raise UserError(
            f"{source or folder}: {what} changed since {folder} began; bring them "
            "back or start a new run"
        )
