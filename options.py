"""Train one network at hospitals that share no image: every flag, and the presets.

A flag on the command line beats the preset, the preset beats the flag's default. The defaults are
the slides' values. The flags stand as a table in utils/flags/, the presets beside them.
"""

import argparse
import hashlib
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import OneLineParser, UserError
from utils.flags import DATA_FLAGS, FIRST, FLAGS, FREE_ON_RESUME, GROUPS, PRESETS, RANGES, SAID_ONCE
from utils.flags.flag import Flag
from utils.flags.presets import EMBEDDED_PRESETS
from utils.flags.training import RELATION_MIN_AT_SITES

# The choices of a flag, for the rooms that implement them.
METHODS = FLAGS["method"].choices
TASKS = FLAGS["task"].choices
NETWORKS = FLAGS["network"].choices
NORMS = FLAGS["norm"].choices
ATTENTIONS = FLAGS["attention"].choices
DISTANCES = FLAGS["relation_distance"].choices
AGGREGATES = FLAGS["aggregate"].choices
LABEL_UNCERTAINTY = FLAGS["label_uncertainty"].choices
MULTI_LABEL = FLAGS["multi_label"].choices
PRECISIONS = FLAGS["precision"].choices
KEPT_STATES = FLAGS["keep_rounds"].default
DEFAULT_CACHE = FLAGS["cache_dir"].default

# Methods that know what an image is, and why.
METHODS_OF_IMAGES = {
    "fixmatch": "its strong view is of images",
    "cbafed": "it labels images, not voxels",
}
# Methods whose global weights are no mean with weights known before a round.
OTHER_AVERAGES = {
    "rscfed": "whose shares follow from the models, a client in several of them",
    "cbafed": "whose average takes in the weights of rounds before, by what clients kept",
}
SMALLEST_IMAGE = 32  # DenseNet121 halves the sides five times
SPLIT_FILES = ("training.csv", "validation.csv", "testing.csv")
VOLUME_PHANTOM = ("phantom_patients", "phantom_difficulty")  # what embedded volumes depend on
LIST_FILES = {  # of a folder that --split names
    "csv_file_train": "train.csv",
    "csv_file_val": "validation.csv",
    "csv_file_test": "test.csv",
}
CLIENT_LISTS = "train_clients.json"  # in such a folder: who holds which rows
SERVER = "server"  # there: the images that another method's server trains on
NOT_AGAIN = ("run_dir", "resume", "dry_run", *SAID_ONCE)


def args_parser(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of train_main.py (`argv` defaults to the command line).

    Raises `UserError` for a flag that is unknown, malformed or out of range.
    """
    # Of the flags only the preset is read at first: --help then shows that preset's values.
    first = OneLineParser(prog="python train_main.py", allow_abbrev=False, add_help=False)
    _add(first, FIRST)
    chosen = first.parse_known_args(argv)[0]
    parser = build_parser()
    parser.set_defaults(**PRESETS[chosen.preset])
    if chosen.args_from is not None:
        if "preset" in explicit_flags(argv):
            raise UserError(
                f"--preset {chosen.preset}: --args_from has every flag of that run; leave one out"
            )
        parser.set_defaults(**flags_of_run(chosen.args_from))
    args = parser.parse_args(argv)
    if args.split is not None and args.split.is_dir():
        for flag, file in LIST_FILES.items():
            setattr(args, flag, getattr(args, flag) or args.split / file)
    if args.split is not None and args.engine != "sites":  # there nothing is dealt
        _follow_split(args, explicit_flags(argv))
    if args.relation_min_samples == 0:
        args.relation_min_samples = RELATION_MIN_AT_SITES if args.engine == "sites" else 1
    check_options(args)
    goes_on = args.resume is not None and args.resume.is_dir()
    for flag in ("finish", "go_back"):
        if getattr(args, flag) and not goes_on:
            raise UserError(f"--{flag}: needs --resume and the folder of a run")
    return args


SETS_OF_VOLUMES = ("csv_file_train", "csv_file_val", "csv_file_test")
DECIDED_BY_SPLIT = ("partition", "labeled_fraction", "labeled_volumes")


def _follow_split(args: Namespace, typed: Mapping[str, object]) -> None:
    """Let `args` say of the clients what `--split` says: how many there are and, unless that was
    said otherwise, who has labels. `UserError` for a typed flag that it contradicts."""
    users, labelled = _clients_of(args.split)
    if users is None:
        return
    decided = ("partition",) if labelled is None else DECIDED_BY_SPLIT
    for name in typed.keys() & set(decided):
        raise UserError(f"--{name}: --split says who holds what; leave one out")
    if typed.get("num_users", users) != users:
        raise UserError(f"--num_users {args.num_users}: {args.split} has {users} clients")
    args.num_users = users
    if labelled is None:
        return
    args.labeled_fraction = 0.0
    if "labeled_ids" not in typed and "num_labeled" in typed:
        args.labeled_ids = list(range(args.num_labeled))
    elif "labeled_ids" not in typed and ("split" in typed or args.labeled_ids is None):
        args.labeled_ids = labelled  # else the split, and who has labels, are --args_from's
    args.num_labeled = len(args.labeled_ids)


def _clients_of(path: Path) -> tuple[int | None, list[int] | None]:
    """How many clients a `--split` has, and which of them have labels, where it says so; None for
    a file of another form, of which whoever deals the clients says what is wrong."""
    from utils.json_files import read_json  # loads PyTorch, which --help does without

    run = path / "split.json"
    if path.is_dir() and run.exists() and not (path / CLIENT_LISTS).exists():
        raise UserError(f"--split {path}: a run's folder; give {run}")
    file, words = path, "not a split.json of this version: give the file from a run directory"
    if path.is_dir() or path.name == CLIENT_LISTS:
        file, words = path / CLIENT_LISTS if path.is_dir() else path, "not the field's lists"
    content = read_json(file, advice=words)
    clients, labelled = content.get("clients"), content.get("labelled_clients")
    if isinstance(clients, list) and isinstance(labelled, list):
        known = bool(labelled) and all(isinstance(client, int) for client in labelled)
        return (len(clients), sorted(set(labelled))) if known else (None, None)
    return len(content.keys() - {SERVER}) or None, None


def flags_of_run(path: Path) -> dict[str, object]:
    """The flags of another run, its folder or args.json, as the parser would have read them;
    without those that say where it lies and how it went on."""
    from utils.json_files import read_json  # loads PyTorch, which --help does without

    file = path / "args.json" if path.is_dir() else path
    saved = read_json(file, advice="give --args_from a run's folder")
    if unknown := sorted(saved.keys() - FLAGS.keys()):
        raise UserError(f"{file}: this version has no --{unknown[0]}; remove that line")
    parsed = as_parsed(saved, file)
    return {name: value for name, value in parsed.items() if name not in NOT_AGAIN}


def as_parsed(saved: Mapping[str, object], source: Path) -> dict[str, object]:
    """The flags of an args.json, `source`, as the parser would have read them, those that this
    version does not know left out; where it is older than a choice, what was done before there was
    one. `UserError` for a value that no parser gives."""
    for name in saved.keys() & FLAGS.keys():
        if (wanted := FLAGS[name].fault(saved[name])) is not None:
            raise UserError(f"{source}: {name} is {json.dumps(saved[name])[:40]}, not {wanted}")
    before = {name: flag.before for name, flag in FLAGS.items() if flag.before is not None}
    return {
        name: Path(value) if FLAGS[name].kind is Path and value is not None else value
        for name, value in (before | saved).items()
        if name in FLAGS
    }


def explicit_flags(argv: Sequence[str] | None = None) -> dict:
    """The flags that were typed, with their values: no defaults, no preset."""
    return vars(build_parser(argument_default=argparse.SUPPRESS).parse_args(argv))


def build_parser(argument_default=None) -> argparse.ArgumentParser:
    """The parser; with `argument_default` SUPPRESS it knows no defaults."""
    parser = OneLineParser(
        prog="python train_main.py",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _add(parser, FIRST)
    for title, flags in GROUPS.items():
        _add(parser.add_argument_group(title), flags)
    if argument_default is not None:
        for action in parser._actions:
            action.default = argument_default
    return parser


def _add(parser, flags: Sequence[Flag]) -> None:
    """Add flags to a parser or to one of its groups."""
    for flag in flags:
        parser.add_argument(f"--{flag.name}", **flag.argument())


def own_flags(flags: Mapping[str, object]) -> dict[str, list]:
    """{flag: [value, the preset's]} of the `flags` (args.json's) that decide what is computed and
    are not as their preset has them, in plain types."""
    expected = {name: flag.default for name, flag in FLAGS.items()}
    expected |= PRESETS.get(flags.get("preset"), {})
    expected = json.loads(json.dumps(expected, default=str))
    named = {*FREE_ON_RESUME, "preset", "run_dir"} - {"rounds"}
    if expected["relation_min_samples"] == 0:  # stands for a number, see `args_parser`
        named.add("relation_min_samples")
    return {
        name: [value, expected[name]]
        for name, value in flags.items()
        if name in expected and name not in named and value != expected[name]
    }


def check_options(args: argparse.Namespace) -> None:
    """Raise `UserError` for flags that contradict each other, are out of range or missing."""
    check_values(args)
    if args.start_epoch >= args.rounds:
        raise UserError(f"--start_epoch {args.start_epoch}: must be below --rounds {args.rounds}")
    if args.resume is not None and not args.resume.exists():
        raise UserError(f"--resume {args.resume}: no such run folder or checkpoint")
    goes_on = args.resume is not None and args.resume.is_dir()
    embedded = needs_embedded_data(args)
    divided = args.volumes is not None and not args.csv_file_test and args.volume_sets[1] > 0
    known = goes_on or embedded or args.medmnist or args.csv_file_val or divided
    if args.patience and not known:
        raise UserError("--patience: needs validation images, name them with --csv_file_val")
    if args.dry_run and not goes_on and embedded:
        raise UserError(f"--dry_run: preset {args.preset} makes its own data, nothing to check")
    if goes_on or args.medmnist is not None or embedded:
        return
    if args.task == "segmentation":
        if args.volumes is None:
            raise UserError(
                "--volumes is missing: the folder that `python -m dataloaders.prepare decathlon` "
                "made; python train_main.py --preset demo-3d needs no data of yours"
            )
        if args.engine == "sites" and args.csv_file_test is None:
            raise UserError(
                "--csv_file_test is missing: the server's own volumes to test on, a CSV like "
                "volumes.csv"
            )
        named = [name for name in SETS_OF_VOLUMES if getattr(args, name) is not None]
        if args.engine != "sites" and named:
            for name in ("csv_file_train", "csv_file_test"):
                if name not in named:
                    raise UserError(
                        f"--{name} is missing: --{named[0]} alone would leave the sets to "
                        "--volume_sets; name training and test set, or neither"
                    )
        return
    train = () if args.engine == "sites" else ("csv_file_train",)
    for name in ("root_path", *train, "csv_file_test"):
        if not getattr(args, name):
            raise UserError(
                f"--{name} is missing; python train_main.py --preset demo needs no data of yours"
            )


def check_values(args: argparse.Namespace) -> None:
    """Raise `UserError` for a flag out of range or two that contradict each other, paths aside."""
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} {value}: must lie between {low} and {high}")
    _check_task(args)
    if args.labeled_ids and args.labeled_fraction:
        raise UserError("--labeled_ids: with --labeled_fraction every client has some; give one")
    if args.num_labeled == 0:
        raise UserError("--num_labeled 0: nobody would learn from labels; give at least 1")
    if args.dp_noise and not args.dp_clip:
        raise UserError(f"--dp_noise {args.dp_noise:g}: needs --dp_clip, the largest change")
    stops = 0 < args.labeled_stop < args.rounds * args.local_ep
    if args.dp_noise:
        _check_promise(args, stops)
    if args.compile in ("on", "graphs") and args.engine != "loop":
        raise UserError(
            f"--compile {args.compile}: clients of --engine {args.engine} train uncompiled; "
            "leave it out"
        )
    if args.state_every > 1 and args.engine != "loop":
        raise UserError(
            f"--state_every {args.state_every}: only with --engine loop; clients elsewhere "
            "remember their last two rounds alone"
        )
    if args.dp_clip and args.engine == "loop":
        raise UserError(f"--dp_clip {args.dp_clip:g}: only with --engine flower or at sites")
    if args.method == "rscfed" and stops and args.stopped_clients == "average":
        raise UserError(
            f"--method rscfed --labeled_stop {args.labeled_stop}: it draws from those who train; "
            "give --labeled_stop 0 or --stopped_clients leave"
        )
    if args.num_labeled + (args.num_unlabeled or 0) > args.num_users:
        raise UserError(
            f"--num_labeled {args.num_labeled}"
            + (f" --num_unlabeled {args.num_unlabeled}" if args.num_unlabeled else "")
            + f": more than --num_users {args.num_users}"
        )


def _check_promise(args: argparse.Namespace, stops: bool) -> None:
    """The noise is reckoned for one mean of what this round's clients answered, with weights that
    are public."""
    said = f"--dp_noise {args.dp_noise:g}: its promise"
    if args.aggregate != "mean":
        raise UserError(f"{said} is of --aggregate mean alone")
    if args.method in OTHER_AVERAGES:
        raise UserError(f"{said} is not of --method {args.method}, {OTHER_AVERAGES[args.method]}")
    # The labelled stop only where others carry on.
    labeled = len(args.labeled_ids) if args.labeled_ids else args.num_labeled
    others = bool(args.labeled_fraction) or (args.num_unlabeled != 0 and labeled < args.num_users)
    others = others and args.method != "fedavg"
    if stops and others and args.stopped_clients == "average":
        raise UserError(
            f"{said} is not of models that stay in the average: give --labeled_stop 0 or "
            "--stopped_clients leave"
        )


def _check_task(args: argparse.Namespace) -> None:
    segmentation = args.task == "segmentation"
    if segmentation and args.method in METHODS_OF_IMAGES:
        reason = METHODS_OF_IMAGES[args.method]
        raise UserError(f"--method {args.method}: {reason}; --task classification")
    if segmentation != (args.network == "unet3d"):
        raise UserError(
            f"--task {args.task} --network {args.network}: volumes are segmented by unet3d, images "
            "classified by densenet121 or resnet18"
        )
    if not segmentation and args.image_size:  # 0 is the files' own size
        refuse_small_images(args.image_size)
    if args.norm == "group" and segmentation:
        raise UserError("--norm group: the 3D U-Net has instance norm; leave it out")
    if args.norm == "group" and args.pretrained:
        raise UserError("--norm group: published weights have BatchNorm; give --pretrained 0")
    if args.labeled_volumes and not segmentation:
        raise UserError("--labeled_volumes: of volumes, --task segmentation; leave it out")
    if args.medmnist is not None and segmentation:
        raise UserError("--medmnist: holds images; --task segmentation needs --volumes")
    if args.volumes is not None and not segmentation:
        raise UserError("--volumes: for --task segmentation, as --preset hippocampus has it")
    if args.partition == "blocks" and not segmentation:
        raise UserError("--partition blocks: only of volumes; images have iid, dirichlet, site")
    if not 2 <= len(args.unet_channels) <= 8 or min(args.unet_channels) < 1:
        raise UserError("--unet_channels: give 2 to 8 levels of at least one feature")
    if not all(1 <= side <= 4096 for side in args.patch_size):
        raise UserError(f"--patch_size {' '.join(map(str, args.patch_size))}: 1 to 4096 each")


def refuse_small_images(image_size: int) -> None:
    """Raise `UserError` for images that the network would halve to nothing."""
    if image_size < SMALLEST_IMAGE:
        raise UserError(
            f"--image_size {image_size}: too small for the network; give {SMALLEST_IMAGE} or more, "
            "as --image_size 64"
        )


def needs_embedded_data(args: argparse.Namespace) -> bool:
    """Whether the preset brings its own data: the user named none, or a run goes on with them."""
    if args.preset not in EMBEDDED_PRESETS or args.engine == "sites":
        return False
    named = {name: getattr(args, name) for name in DATA_FLAGS if getattr(args, name)}
    return not named or named == embedded_paths(args)


def embedded_paths(args: Namespace) -> dict[str, Path]:
    """{flag: path} of the data set that the phantom_* flags describe, there or not yet."""
    described = {name: value for name, value in vars(args).items() if name.startswith("phantom_")}
    if args.task == "segmentation":
        digest = _digest({name: described[name] for name in VOLUME_PHANTOM})
        return {"volumes": Path("data") / f"phantom-volumes-{2 * args.phantom_patients}-{digest}"}
    described["image_size"] = args.image_size
    digest = _digest(described)
    folder = Path("data") / f"phantom-{args.phantom_patients}x{args.phantom_slices}-{digest}"
    flags = ("csv_file_train", "csv_file_val", "csv_file_test")
    tables = dict(zip(flags, (folder / name for name in SPLIT_FILES), strict=True))
    return {"root_path": folder / "images", **tables}


def _digest(described: dict) -> str:
    text = repr(sorted(described.items()))
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
