"""Every flag, in groups, and the presets: one dict of overrides per source.

A flag on the command line beats the preset, the preset beats the flag's default. The defaults are
the slides' values.
"""

import argparse
import hashlib
import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import OneLineParser, UserError

# Choices stand here as data, so that --help and a mistyped flag need no PyTorch; the rooms that
# implement them import them from here or are tested against them.
DISTANCES = ("kl", "wasserstein")
CACHES = ("auto", "device", "ram", "disk")
SPLIT_FILES = ("training.csv", "validation.csv", "testing.csv")
LABEL_UNCERTAINTY = ("U-Ones", "U-Zeros", "U-MultiClass")
MULTI_LABEL = ("refuse", "drop")
COMPILES = ("auto", "off", "on", "graphs")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
ATTENTIONS = ("none", "self")
POLICIES = ("stop", "skip")
KEPT_STATES = 2
PLACEMENTS = ("auto", "device", "host", "disk")
AGGREGATES = ("mean", "median", "trimmed_mean", "krum", "norm_clip")


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


VOLUME_PHANTOM = ("phantom_patients", "phantom_difficulty")  # what embedded volumes depend on
TASKS = ("classification", "segmentation")
NETWORKS = ("densenet121", "resnet18", "unet3d")
NORMS = ("batch", "group")
METHODS = (
    "fedirm",
    "fed_consistency",
    "fed_selftraining",
    "fedavg",
    "fixmatch",
    "rscfed",
    "cbafed",
)
# Methods that know what an image is, and why.
METHODS_OF_IMAGES = {
    "fixmatch": "its strong view is of images",
    "cbafed": "it labels images, not voxels",
}

PAPER = {
    "rounds": 100,
    "local_ep": 1,
    "base_lr": 2e-4,
    "labeled_lr_late": 0.0,
    "adam_beta2": 0.99,
    "labeled_matrix": "dataset",
    "absent_class": "skip",
    "mc_passes": 8,
    "mc_average": "probabilities",
    "entropy_threshold": math.log(2),
    "confidence_threshold": 0.0,
    "unlabeled_matrix": "probabilities",
    "consistency_norm": "batch",
    "relation_scale": 1.0,
    "unsupervised_weight": 1.0,
    "rampup_power": 1,
    "rampup_clock": "round",
    "join_epoch": -1,
    "labeled_stop": 0,
    "fedavg_weights": "size",
    "head_bias": "uniform",
    "bn_updates": "once",
}
OFFICIAL = {
    "local_ep": 1,
    "base_lr": 2e-4,
    "label_smoothing": 0.1,
    "labeled_views": 2,
    "eval_every": 10,
    "eval_at": "first",
}
# What the embedded data's size asks for: small pictures, small batches, random weights at first,
# unlabelled clients that join once there is something to agree on. The matrices of a client and of
# an absent class follow the paper, since in a batch of 8 most classes are absent; all else follows
# the released program: with the paper's threshold no sample of so small a set ever counts.
EMBEDDED = {
    "pretrained": 0,
    "image_size": 64,
    "batch_size": 8,
    "local_ep": 1,
    "base_lr": 5e-4,
    "labeled_lr_late": 0.0,
    "labeled_matrix": "dataset",
    "absent_class": "skip",
    "labeled_stop": 0,
    "fedavg_weights": "size",
    "head_bias": "uniform",
    "bn_updates": "once",
    "keep_state": 0,
}
PRESETS: dict[str, dict] = {
    "slides": {},
    "slides-revised": {"rounds": 100, "local_ep": 1, "batch_size": 5},
    "official": OFFICIAL,
    "paper": PAPER,
    "paper-skin": PAPER,
    "demo": EMBEDDED
    | {
        "labeled_lr_late": 2e-4,
        "unlabeled_lr": 2e-4,
        "rounds": 24,
        "join_epoch": 15,
        "consistency_rampup": 22,
        "phantom_difficulty": 0.3,
        "phantom_proportions": [14, 20, 17, 21, 28],
        "save_every": 10,
    },
    # Epidural bleeds are lifted from RSNA's 2% to 5%: a client of 40 images would hold none. The
    # labelled clients train alone until they learn no more; then the others join, and everybody
    # goes on with smaller steps, whatever the method. How both learning rates were chosen, with
    # the labelled clients alone and on the validation images: docs/RESULTS.md.
    "bench": EMBEDDED
    | {
        "base_lr": 1e-3,
        "labeled_lr_late": 2e-4,
        "unlabeled_lr": 2e-4,
        "rounds": 80,
        "join_epoch": 49,
        "consistency_rampup": 60,
        "phantom_patients": 1200,
        "phantom_slices": 1,
        "phantom_difficulty": 1.0,
        "phantom_proportions": [5, 21, 14, 24, 36],
        "phantom_split": [400, 100, 500],
        "eval_every": 5,
        "save_every": 1000,
    },
}
# HAM10000 on one machine: 2,000 training images of 64 pixels, weights at random, the labelled
# clients alone until round 39. Its learning rates were chosen with those alone, on validation
# images.
PRESETS["skin-64"] = {name: value for name, value in EMBEDDED.items() if name != "keep_state"} | {
    "batch_size": 16,
    "base_lr": 1e-3,
    "labeled_lr_late": 3e-4,
    "unlabeled_lr": 3e-4,
    "rounds": 28,
    "join_epoch": 15,
    "consistency_rampup": 26,
    "eval_every": 2,
    "save_every": 1000,
}
# The rivals with the hyper-parameters that their papers print; the rest is the paper's preset.
PRESETS |= {
    "rscfed": PAPER
    | {
        "method": "rscfed",
        "network": "resnet18",
        "pretrained": 0,
        "partition": "dirichlet",
        "dirichlet_alpha": 0.8,
        "num_labeled": 1,
        "batch_size": 12,
        "base_lr": 2e-3,
        "labeled_lr_late": 0.0,
        "unlabeled_lr": 1e-3,
        "optimizer": "sgd",
        "clip_gradients": 5.0,
        "ema_decay": 0.999,
        "labeled_weight": 200.0,
        "fedavg_weights": "size",
        "rscfed_beta": 0.01,
        "rscfed_beta_labeled": 0.01,
        "rounds": 850,
        "join_epoch": 49,
        "labeled_stop": 0,
        "eval_every": 10,
    },
    "cbafed": PAPER
    | {
        "method": "cbafed",
        "num_labeled": 1,
        "labeled_weight": 10.0,
        "fedavg_weights": "size",
        "cbafed_labeled_epochs": 11,
        "rounds": 1000,
        "join_epoch": 500,
        "labeled_stop": 0,
        "eval_every": 10,
    },
}
# Segmentation. The matrices, the mean teacher and the weights' average follow the paper; the loss,
# the noise and the share of the entropy are the conventions of semi-supervised 3D segmentation;
# the factor on L_c, and that the labelled clients first train alone, come from single trials and
# were not chosen by a sweep. One learning rate for all rows.
VOLUMES = PAPER | {
    "task": "segmentation",
    "network": "unet3d",
    "pretrained": 0,
    "partition": "blocks",
    "drop_rate": 0.1,
    "batch_size": 4,
    "local_ep": 2,
    "base_lr": 2e-3,
    "labeled_lr_late": 3e-4,
    "unlabeled_lr": 3e-4,
    "labeled_matrix": "batches",
    "unlabeled_matrix": "logits",
    "entropy_unit": "share",
    "entropy_threshold": 0.5,
    "consistency_scale": 10.0,
    "relation_min_rows": 20,
    "ema_decay": 0.99,
}
PRESETS |= {
    "hippocampus": VOLUMES
    | {
        "rounds": 75,
        "join_epoch": 99,
        "consistency_rampup": 60,
        "eval_every": 25,
        "save_every": 1000,
        "figure_every": 50,
        "keep_state": 0,
    },
    # As hippocampus, in small: 80 clear volumes at five clients, of which the two with labels train
    # alone for 30 rounds.
    "demo-3d": VOLUMES
    | {
        "rounds": 40,
        "num_users": 5,
        "base_lr": 3e-3,
        "join_epoch": 59,
        "consistency_rampup": 36,
        "phantom_patients": 40,
        "phantom_difficulty": 0.0,
        "eval_every": 5,
        "save_every": 20,
    },
}
EMBEDDED_PRESETS = ("demo", "bench", "demo-3d")
DATA_FLAGS = ("root_path", "csv_file_train", "csv_file_val", "csv_file_test", "medmnist", "volumes")

DEFAULT_CACHE = Path("data/cache")  # of decoded images

# Flags that may differ when a run goes on; every other one decides what is computed. Data may lie
# elsewhere by then: that they are the same is checked by their content.
FREE_ON_RESUME = {
    *DATA_FLAGS,
    "resume",
    "rounds",
    "gpu",
    "cache",
    "cache_dir",
    "follow_links",
    "compile",
    "precision",
    "client_state",
    "keep_state",
    "on_bad_client",
    "keep_rounds",
    "save_every",
    "figure_every",
    "progress",
    "dry_run",
    "finish",
    "args_from",
    "patience",
    "report_ids",
    "client_cpus",
    "client_gpus",
    "min_clients",
    "client_timeout",
    "sites",
}


def args_parser(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags of train_main.py (`argv` defaults to the command line).

    Raises `UserError` for a flag that is unknown, malformed or out of range.
    """
    # Of the flags only the preset is read at first: --help then shows that preset's values.
    first = OneLineParser(prog="python train_main.py", allow_abbrev=False, add_help=False)
    _preset(first)
    chosen = first.parse_known_args(argv)[0]
    parser = build_parser()
    parser.set_defaults(**PRESETS[chosen.preset])
    if chosen.args_from is not None:
        parser.set_defaults(**flags_of_run(chosen.args_from, parser))
    args = parser.parse_args(argv)
    if args.split is not None and args.split.is_dir():
        for flag, file in LIST_FILES.items():
            setattr(args, flag, getattr(args, flag) or args.split / file)
    if args.relation_min_samples == 0:
        args.relation_min_samples = RELATION_MIN_AT_SITES if args.engine == "sites" else 1
    check_options(args)
    if args.finish and not (args.resume is not None and args.resume.is_dir()):
        raise UserError("--finish: needs --resume and the folder of a run")
    return args


RELATION_MIN_AT_SITES = 5
LIST_FILES = {  # of a folder that --split names
    "csv_file_train": "train.csv",
    "csv_file_val": "validation.csv",
    "csv_file_test": "test.csv",
}
NOT_AGAIN = ("run_dir", "resume", "dry_run", "finish", "args_from")


def flags_of_run(path: Path, parser: argparse.ArgumentParser) -> dict[str, object]:
    """The flags of another run, its folder or args.json, as `parser` would have read them; without
    those that say where it lies and how it went on."""
    from utils.json_files import read_json  # loads PyTorch, which --help does without

    file = path / "args.json" if path.is_dir() else path
    saved = read_json(file, advice="give --args_from a run's folder")
    kinds = {action.dest: action.type for action in parser._actions}
    if unknown := sorted(saved.keys() - kinds.keys()):
        raise UserError(f"{file}: this version has no --{unknown[0]}; remove that line")
    return {
        name: Path(value) if kinds[name] is Path and value is not None else value
        for name, value in saved.items()
        if name not in NOT_AGAIN
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
    _preset(parser)
    for add_group in (_data, _federation, _training, _unlabeled, _network, _running, _engine):
        add_group(parser)
    if argument_default is not None:
        for action in parser._actions:
            action.default = argument_default
    return parser


def own_flags(flags: Mapping[str, object]) -> dict[str, list]:
    """{flag: [value, the preset's]} of the `flags` (args.json's) that decide what is computed and
    are not as their preset has them, in plain types."""
    defaults = {action.dest: action.default for action in build_parser()._actions}
    expected = defaults | PRESETS.get(flags.get("preset"), {})
    expected = json.loads(json.dumps(expected, default=str))
    named = FREE_ON_RESUME - {"rounds"} | {"preset", "run_dir"}
    if expected["relation_min_samples"] == 0:  # stands for a number, see `args_parser`
        named.add("relation_min_samples")
    return {
        name: [value, expected[name]]
        for name, value in flags.items()
        if name in expected and name not in named and value != expected[name]
    }


def _preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", choices=PRESETS, default="slides", help="which source's values to take"
    )
    parser.add_argument(
        "--args_from",
        type=Path,
        metavar="RUN",
        help="take every flag from that run's folder, or args.json; flags typed beside it win",
    )


def _data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--root_path", type=Path, help="folder of the images named in the CSVs")
    group.add_argument("--csv_file_train", type=Path, help="CSV of the training images")
    group.add_argument("--csv_file_val", type=Path, help="CSV of the validation images")
    group.add_argument("--csv_file_test", type=Path, help="CSV of the test images")
    group.add_argument(
        "--medmnist", type=Path, help="a MedMNIST .npz file, instead of folder and CSVs"
    )
    group.add_argument(
        "--label_uncertainty",
        choices=LABEL_UNCERTAINTY,
        default="U-Ones",
        help="what a label of -1 becomes: 1, 0, or a class of its own",
    )
    group.add_argument(
        "--multi_label",
        choices=MULTI_LABEL,
        default="refuse",
        help="what happens to a row with no class or several",
    )
    group.add_argument(
        "--image_size", type=int, default=224, help="pixels per side; 0: as the files are"
    )
    group.add_argument("--degrees", type=float, default=10.0, help="largest rotation of a view")
    group.add_argument(
        "--translate", type=float, default=0.02, help="largest shift of a view, share of its side"
    )
    group.add_argument("--flip", type=float, default=0.5, help="probability of a horizontal flip")
    group.add_argument(
        "--volumes",
        type=Path,
        help="folder of `dataloaders.prepare decathlon`, for --task segmentation; CSVs like its "
        "volumes.csv may name the sets",
    )
    group.add_argument(
        "--volume_sets",
        type=float,
        nargs=3,
        default=[0.7, 0.1, 0.2],
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of the volumes, or their numbers, where no CSVs name the sets",
    )
    group.add_argument("--channels", type=int, default=1, help="of the volumes")
    group.add_argument(
        "--patch_size",
        type=int,
        nargs=3,
        default=[32, 48, 32],
        metavar="VOXELS",
        help="what a network sees of a volume in training, and in evaluation of larger ones",
    )
    group.add_argument(
        "--foreground",
        type=float,
        default=0.5,
        help="share of labelled patches that are placed around a voxel of a structure",
    )
    group.add_argument(
        "--intensity",
        type=float,
        default=0.1,
        help="of a patch's views: deviation of gain, of offset and of the voxels' noise",
    )
    group.add_argument(
        "--flip_axes",
        type=int,
        nargs="*",
        choices=(0, 1, 2),
        default=[],
        help="axes along which patches are mirrored, half of them; default none",
    )
    group.add_argument(
        "--follow_links",
        action="store_true",
        help="read images to which symbolic links lead out of --root_path",
    )
    group.add_argument(
        "--cache",
        choices=CACHES,
        default="auto",
        help="where the decoded images live; auto: on the GPU where they fit, else on disk",
    )
    group.add_argument(
        "--cache_dir", type=Path, default=DEFAULT_CACHE, help="folder for decoded images"
    )
    group.add_argument(
        "--phantom_patients",
        type=int,
        default=420,
        help="patients of the embedded data set (presets that generate their data)",
    )
    group.add_argument(
        "--phantom_slices", type=int, default=2, help="slices per patient of the embedded data set"
    )
    group.add_argument(
        "--phantom_split",
        type=float,
        nargs=3,
        default=[0.7, 0.1, 0.2],
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of the embedded data set, or numbers of images",
    )
    group.add_argument(
        "--phantom_difficulty",
        type=float,
        default=0.5,
        help="of the embedded data set: 0 large, dense bleeds; 1 small, faint ones",
    )
    group.add_argument(
        "--phantom_proportions",
        type=float,
        nargs=5,
        metavar="P",
        default=None,
        help="class proportions of the embedded data set; default RSNA's",
    )


def _federation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("federation")
    group.add_argument("--method", choices=METHODS, default="fedirm", help="row of the paper")
    group.add_argument(
        "--task",
        choices=TASKS,
        default="classification",
        help="what a label is: an image's class, or the class of each voxel of a volume",
    )
    group.add_argument("--num_users", type=int, default=10, help="clients the data is dealt to")
    group.add_argument("--num_labeled", type=int, default=2, help="clients with labels: 0, 1, ...")
    group.add_argument(
        "--labeled_ids", type=int, nargs="+", help="which clients have labels, instead of the first"
    )
    group.add_argument(
        "--labeled_volumes",
        type=int,
        default=0,
        help="each labelled client has but so many volumes, its first; 0: all",
    )
    group.add_argument(
        "--labeled_fraction",
        type=float,
        default=0.0,
        help="every client has labels for this share of its images, none for the rest; 0: off",
    )
    group.add_argument(
        "--partition",
        choices=("iid", "dirichlet", "site", "column", "blocks"),
        default="iid",
        help="equal parts at random; Dirichlet by class; by the CSV's site; by its column client; "
        "of volumes: neighbours in the list, or by patient where those are known",
    )
    group.add_argument(
        "--dirichlet_alpha", type=float, default=0.5, help="small: clients of few classes"
    )
    group.add_argument(
        "--split",
        type=Path,
        help="a split.json of another run: the same clients again; or the field's lists: a folder "
        "of train.csv, validation.csv, test.csv and train_clients.json",
    )
    group.add_argument(
        "--num_unlabeled",
        type=int,
        default=None,
        help="clients without labels that take part, lowest numbers first; default: all",
    )
    group.add_argument("--rounds", type=int, default=200, help="federated rounds")
    group.add_argument("--local_ep", type=int, default=2, help="local epochs per round")
    group.add_argument(
        "--start_epoch", type=int, default=0, help="number of the first round, for the schedules"
    )
    group.add_argument(
        "--join_epoch",
        type=int,
        default=20,
        help="unlabelled clients take part once round * local_ep exceeds this; -1: at once",
    )
    group.add_argument(
        "--labeled_stop",
        type=int,
        default=200,
        help="labelled clients stop once round * local_ep reaches this, where unlabelled ones "
        "carry on; 0: never",
    )
    group.add_argument(
        "--stopped_clients",
        choices=("average", "leave"),
        default="average",
        help="whether the labelled clients' last weights stay in every average after they have "
        "stopped, as in the released program, or leave it",
    )
    group.add_argument(
        "--fedavg_weights",
        choices=("equal", "size"),
        default="equal",
        help="clients count alike, or by their number of images (N_k / N)",
    )
    group.add_argument(
        "--labeled_weight",
        type=float,
        default=1.0,
        help="the labelled clients count so many times as much in every average",
    )
    group.add_argument(
        "--aggregate",
        choices=AGGREGATES,
        default="mean",
        help="how models become one: mean is FedAvg; the others keep a few wrong clients from "
        "taking the model over, and hold all models of a round at once (docs/RELIABILITY.md)",
    )
    group.add_argument(
        "--bad_clients",
        type=int,
        default=1,
        help="how many clients of a round may be wrong, for trimmed_mean and krum",
    )


def _training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--batch_size", type=int, default=48, help="images per step")
    group.add_argument("--base_lr", type=float, default=1e-3, help="learning rate")
    group.add_argument(
        "--unlabeled_lr",
        type=float,
        default=0.0,
        help="unlabelled clients' learning rate; 0: base_lr",
    )
    group.add_argument(
        "--labeled_lr_late",
        type=float,
        default=3e-4,
        help="labelled clients' rate once round * local_ep exceeds join_epoch; 0: unchanged",
    )
    group.add_argument("--adam_beta1", type=float, default=0.9, help="Adam's first momentum")
    group.add_argument("--adam_beta2", type=float, default=0.999, help="Adam's second momentum")
    group.add_argument("--weight_decay", type=float, default=5e-4, help="L2 penalty")
    group.add_argument(
        "--optimizer", choices=("adam", "sgd"), default="adam", help="of every client"
    )
    group.add_argument("--sgd_momentum", type=float, default=0.9, help="of --optimizer sgd")
    group.add_argument(
        "--clip_gradients", type=float, default=0.0, help="largest norm of a step; 0: none"
    )
    group.add_argument(
        "--label_smoothing", type=float, default=0.0, help="of the labelled clients' cross entropy"
    )
    group.add_argument(
        "--labeled_views",
        type=int,
        choices=(1, 2),
        default=1,
        help="views whose cross entropies are summed",
    )
    group.add_argument(
        "--labeled_matrix",
        choices=("dataset", "batches"),
        default="batches",
        help="M^l from the client's per-class means, or the mean of its batches' matrices",
    )
    group.add_argument(
        "--temperature", type=float, default=2.0, help="tau of the relation matrix (eq. 3)"
    )
    group.add_argument(
        "--absent_class",
        choices=("uniform", "skip"),
        default="uniform",
        help="row of a class without samples: uniform and counted, or left out of the matching",
    )


def _unlabeled(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("unlabelled clients")
    group.add_argument("--consistency", type=float, default=1.0, help="largest lambda")
    group.add_argument(
        "--consistency_rampup", type=float, default=30.0, help="Omega, length of the ramp-up"
    )
    group.add_argument(
        "--rampup_power",
        type=int,
        choices=(1, 2),
        default=2,
        help="lambda = exp(-5 (1 - t/Omega)^power)",
    )
    group.add_argument(
        "--rampup_clock",
        choices=("epoch", "round"),
        default="epoch",
        help="t counts local epochs or federated rounds",
    )
    group.add_argument(
        "--unsupervised_weight", type=float, default=15.0, help="factor on lambda (L_c + L_IRM)"
    )
    group.add_argument(
        "--consistency_scale", type=float, default=1.0, help="factor on L_c; 0: without it"
    )
    group.add_argument(
        "--consistency_norm",
        choices=("flag", "batch"),
        default="flag",
        help="L_c's sum is divided by the flag batch_size, or by the batch's own size",
    )
    group.add_argument("--ema_decay", type=float, default=0.99, help="alpha of the EMA teacher")
    group.add_argument(
        "--ema_consistency",
        type=int,
        choices=(0, 1),
        default=1,
        help="1: the EMA teacher gives the targets; 0: the student itself does",
    )
    group.add_argument(
        "--global_step", type=int, default=0, help="step count the EMA warm-up starts from"
    )
    group.add_argument("--mc_passes", type=int, default=11, help="T, stochastic forward passes")
    group.add_argument(
        "--mc_average",
        choices=("logits", "probabilities"),
        default="logits",
        help="what is averaged over the stochastic passes",
    )
    group.add_argument(
        "--entropy_threshold", type=float, default=2.0, help="h in nats: reliable below it"
    )
    group.add_argument(
        "--entropy_unit",
        choices=("nats", "share"),
        default="nats",
        help="h is in nats, or a share of the largest entropy, ln C",
    )
    group.add_argument(
        "--confidence_threshold",
        type=float,
        default=0.3,
        help="reliable only from this largest probability on; 0: off",
    )
    group.add_argument(
        "--unlabeled_matrix",
        choices=("logits", "probabilities"),
        default="logits",
        help="what M^u averages over the reliable samples of a pseudo class",
    )
    group.add_argument(
        "--fixmatch_threshold",
        type=float,
        default=0.95,
        help="method fixmatch: a weak view's label counts from this probability on",
    )
    group.add_argument(
        "--fixmatch_weight", type=float, default=1.0, help="method fixmatch: factor on its loss"
    )
    group.add_argument(
        "--fixmatch_jitter",
        type=float,
        default=0.5,
        help="method fixmatch: largest change of contrast and brightness in the strong view",
    )
    group.add_argument(
        "--fixmatch_cutout",
        type=float,
        default=0.5,
        help="method fixmatch: largest side of the square cut out, a share of the image's",
    )
    group.add_argument(
        "--rscfed_subsets", type=int, default=3, help="method rscfed: M, subsets of a round"
    )
    group.add_argument(
        "--rscfed_clients", type=int, default=5, help="method rscfed: K, clients of a subset"
    )
    group.add_argument(
        "--rscfed_beta",
        type=float,
        default=1e4,
        help="method rscfed: how fast a client's share falls with its distance to the mean",
    )
    group.add_argument(
        "--rscfed_beta_labeled",
        type=float,
        default=100.0,
        help="method rscfed: the same in subsets with a labelled client",
    )
    group.add_argument(
        "--rscfed_consistency", type=float, default=0.02, help="method rscfed: factor on its loss"
    )
    group.add_argument(
        "--rscfed_sharpen",
        type=float,
        default=0.5,
        help="method rscfed: temperature of the teacher's sharpened prediction; 1: as it is",
    )
    group.add_argument(
        "--cbafed_base",
        type=float,
        default=0.84,
        help="method cbafed: threshold of a pseudo label, before the class's share is added",
    )
    group.add_argument(
        "--cbafed_highest", type=float, default=0.9, help="method cbafed: the largest threshold"
    )
    group.add_argument(
        "--cbafed_tail",
        type=float,
        default=0.03,
        help="method cbafed: a class of a smaller share takes images as their second class, too",
    )
    group.add_argument(
        "--cbafed_labeled_epochs",
        type=int,
        default=0,
        help="method cbafed: local epochs of a labelled client; 0: local_ep",
    )
    group.add_argument(
        "--cbafed_mix_epochs",
        type=int,
        default=5,
        help="method cbafed: a labelled client mixes its weights with those of so many local "
        "epochs before, 1 to 4",
    )
    group.add_argument(
        "--cbafed_record_rounds",
        type=int,
        default=5,
        help="method cbafed: the server mixes its weights with those of so many rounds before, "
        "half and half",
    )
    group.add_argument(
        "--relation_distance", choices=DISTANCES, default="kl", help="between relation matrices"
    )
    group.add_argument(
        "--relation_min_rows",
        type=int,
        default=1,
        help="images or voxels of a class that a matrix's row is measured from at least, with "
        "--absent_class skip",
    )
    group.add_argument(
        "--relation_min_samples",
        type=int,
        default=0,
        help="a row of a client's matrix needs that many images of its class, else it is as if "
        f"there were none; 0: 1 here, {RELATION_MIN_AT_SITES} at sites of their own, who may ask "
        "for more (docs/DEPLOY.md)",
    )
    group.add_argument(
        "--relation_scale", type=float, default=0.5, help="factor on the distance in L_IRM"
    )
    group.add_argument(
        "--bn_updates",
        choices=("every_pass", "once"),
        default="every_pass",
        help="BatchNorm's running statistics move once per stochastic pass, or once per step",
    )


def _network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--network", choices=NETWORKS, default="densenet121", help="what every client trains"
    )
    group.add_argument(
        "--norm",
        choices=NORMS,
        default="batch",
        help="normalisation in networks of images: group keeps no statistics, which unlabelled "
        "clients' own would carry into the average",
    )
    group.add_argument(
        "--unet_channels",
        type=int,
        nargs="+",
        default=[8, 16, 32, 64],
        help="of unet3d: features of each level, each with half the sides of the one before",
    )
    group.add_argument(
        "--residual_units", type=int, default=1, help="of unet3d: residual units of each level"
    )
    group.add_argument("--drop_rate", type=float, default=0.2, help="dropout before the classifier")
    group.add_argument(
        "--attention", choices=ATTENTIONS, default="none", help="layer over the last feature map"
    )
    group.add_argument(
        "--head_bias",
        choices=("zero", "uniform"),
        default="zero",
        help="how the head's bias begins: at zero (released program), or drawn as its weights are",
    )
    group.add_argument(
        "--pretrained",
        type=int,
        choices=(0, 1),
        default=1,
        help="start from the ImageNet weights in models/hub/checkpoints",
    )


def _running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument(
        "--resume",
        type=Path,
        default=None,
        help="a run's folder: go on where it stopped; a .pth file: start from its weights",
    )
    group.add_argument(
        "--run_dir", type=Path, default=None, help="folder of this run; default runs/NAME"
    )
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="check flags, CSVs, image headers and disk space, print the tables and stop",
    )
    group.add_argument(
        "--finish",
        action="store_true",
        help="with --resume FOLDER: no further round; write the report and the last checkpoint "
        "from the last finished one",
    )
    group.add_argument(
        "--patience",
        type=int,
        default=0,
        help="end the run when so many rounds have passed since the best one on the validation "
        "images, counted from when the unlabelled clients join; 0: never",
    )
    group.add_argument("--seed", type=int, default=1337, help="of every random draw")
    group.add_argument(
        "--deterministic",
        type=int,
        choices=(0, 1),
        default=1,
        help="1: the same bits at every run on the same device",
    )
    group.add_argument(
        "--gpu", default="0,1", help="CUDA devices to use where they exist, or 'cpu'"
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the backbone while training; auto: bf16 on GPUs that have it, else fp32",
    )
    group.add_argument(
        "--compile",
        choices=COMPILES,
        default="auto",
        help="graphs: record the backbone's passes once and replay them, the same numbers in fewer "
        "launches; on: compile it, other bits; auto: graphs on one GPU, on in long runs on several",
    )
    group.add_argument(
        "--client_state",
        choices=PLACEMENTS,
        default="auto",
        help="where clients' optimizer and teacher wait between rounds, beside their files: on "
        "the GPU, in main memory, or in the files alone; auto: the first that they fit into",
    )
    group.add_argument(
        "--keep_state",
        type=int,
        choices=(0, 1),
        default=1,
        help="after the last round: 1 keeps what clients remember, so that --resume with more "
        "--rounds goes on; 0 removes it, most of a run's disk",
    )
    group.add_argument(
        "--keep_rounds",
        type=int,
        default=KEPT_STATES,
        help="states of that many last rounds stay: to go back behind a round that was poisoned, "
        "remove the newer checkpoints/state_N.pth and --resume",
    )
    group.add_argument(
        "--on_bad_client",
        choices=POLICIES,
        default="stop",
        help="a client returns what is not finite or does not fit: stop the run, or skip that "
        "client in that round",
    )
    group.add_argument("--eval_every", type=int, default=1, help="rounds between evaluations")
    group.add_argument(
        "--eval_at",
        choices=("first", "last"),
        default="last",
        help="which of so many rounds is scored; the run's last one always is",
    )
    group.add_argument(
        "--threshold", type=float, default=0.4, help="of the metrics, on softmax probabilities"
    )
    group.add_argument(
        "--report_ids", action="store_true", help="name the patients of the images in the report"
    )
    group.add_argument("--save_every", type=int, default=1, help="rounds between epoch_N.pth files")
    group.add_argument("--figure_every", type=int, default=10, help="rounds between figures")
    group.add_argument(
        "--progress", type=int, choices=(0, 1), default=1, help="a progress bar on a terminal"
    )


def _engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        choices=("loop", "flower", "sites"),
        default="loop",
        help="clients one after the other in this process; each in a process of its own, on Flower "
        "(needs `make flower`); or at their own sites (docs/DEPLOY.md)",
    )
    group.add_argument(
        "--client_cpus", type=float, default=1.0, help="processors per client, engine flower"
    )
    group.add_argument(
        "--client_gpus",
        type=float,
        default=None,
        help="GPUs per client, engine flower: 0.25 lets four share one; default: 1 where there "
        "is one",
    )
    group.add_argument(
        "--min_clients",
        type=int,
        default=0,
        help="a round on Flower goes on without clients that fail or do not answer while this "
        "many are left; 0: it needs every one",
    )
    group.add_argument(
        "--sites",
        type=Path,
        default=None,
        help="the operator's list, a CSV client,labeled,key[,images]: which node's key may be "
        "which client, engine sites (docs/DEPLOY.md)",
    )
    group.add_argument(
        "--client_timeout",
        type=float,
        default=3600.0,
        help="seconds to wait for a client to connect, or to answer in a round, on Flower",
    )
    group.add_argument(
        "--dp_clip",
        type=float,
        default=0.0,
        help="longest change of the parameters by one client in one round (2-norm), on Flower; "
        "0: any",
    )
    group.add_argument(
        "--dp_noise",
        type=float,
        default=0.0,
        help="noise on the averaged parameters, in units of what one clipped client can move "
        "them; needs --dp_clip, on Flower; not reproducible; 0: none",
    )


# flag -> (lowest, highest) allowed value, both included
RANGES = {
    "image_size": (0, 4096),
    "degrees": (0, 180),
    "translate": (0, 1),
    "flip": (0, 1),
    "channels": (1, 64),
    "foreground": (0, 1),
    "intensity": (0, 10),
    "labeled_volumes": (0, 1_000_000),
    "residual_units": (0, 16),
    "relation_min_rows": (1, 10**9),
    "phantom_patients": (20, 100_000),
    "phantom_slices": (1, 64),
    "phantom_difficulty": (0, 1),
    "num_users": (1, 100_000),
    "num_labeled": (0, 100_000),
    "num_unlabeled": (0, 100_000),
    "rounds": (1, 1_000_000),
    "local_ep": (1, 1000),
    "start_epoch": (0, 1_000_000),
    "join_epoch": (-1, 1_000_000),
    "labeled_stop": (0, 1_000_000),
    "labeled_fraction": (0, 1),
    "dirichlet_alpha": (1e-6, 1e6),
    "batch_size": (2, 65_536),
    "base_lr": (1e-12, 10),
    "unlabeled_lr": (0, 10),
    "labeled_lr_late": (0, 10),
    "adam_beta1": (0, 0.9999999),
    "adam_beta2": (0, 0.9999999),
    "weight_decay": (0, 10),
    "label_smoothing": (0, 0.999),
    "temperature": (1e-3, 1e3),
    "consistency": (0, 1e6),
    "consistency_rampup": (0, 1e6),
    "unsupervised_weight": (0, 1e6),
    "ema_decay": (0, 1),
    "global_step": (0, 10**12),
    "mc_passes": (1, 1000),
    "entropy_threshold": (0, 100),
    "confidence_threshold": (0, 1),
    "relation_scale": (0, 1e6),
    "labeled_weight": (1e-6, 1e6),
    "fixmatch_threshold": (0, 1),
    "fixmatch_weight": (0, 1e6),
    "fixmatch_jitter": (0, 1),
    "fixmatch_cutout": (0, 1),
    "rscfed_subsets": (1, 1000),
    "rscfed_clients": (1, 100_000),
    "rscfed_beta": (0, 1e12),
    "rscfed_beta_labeled": (0, 1e12),
    "rscfed_consistency": (0, 1e6),
    "rscfed_sharpen": (1e-3, 1e3),
    "cbafed_base": (0, 1),
    "cbafed_highest": (0, 1),
    "cbafed_tail": (0, 1),
    "cbafed_labeled_epochs": (0, 10_000),
    "cbafed_mix_epochs": (1, 1_000_000),
    "cbafed_record_rounds": (1, 1_000_000),
    "clip_gradients": (0, 1e9),
    "sgd_momentum": (0, 0.9999999),
    "relation_min_samples": (0, 1_000_000),
    "consistency_scale": (0, 1e6),
    "drop_rate": (0, 0.99),
    "seed": (0, 2**63 - 1),
    "eval_every": (1, 1_000_000),
    "threshold": (0, 1),
    "patience": (0, 1_000_000),
    "save_every": (1, 1_000_000),
    "figure_every": (1, 1_000_000),
    "client_cpus": (0.01, 1024),
    "client_gpus": (0, 64),
    "min_clients": (0, 100_000),
    "client_timeout": (1, 10**7),
    "bad_clients": (0, 100_000),
    "keep_rounds": (2, 1_000_000),
    "dp_clip": (0, 1e6),
    "dp_noise": (0, 1e6),
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
    if args.num_labeled == 0:
        raise UserError("--num_labeled 0: nobody would learn from labels; give at least 1")
    if args.dp_noise and not args.dp_clip:
        raise UserError(f"--dp_noise {args.dp_noise:g}: needs --dp_clip, the largest change")
    if args.dp_noise and args.aggregate != "mean":
        raise UserError(f"--dp_noise {args.dp_noise:g}: its promise is of --aggregate mean alone")
    if args.compile in ("on", "graphs") and args.engine != "loop":
        raise UserError(
            f"--compile {args.compile}: clients of --engine {args.engine} train uncompiled; "
            "leave it out"
        )
    if args.dp_clip and args.engine == "loop":
        raise UserError(f"--dp_clip {args.dp_clip:g}: only with --engine flower or at sites")
    stops = 0 < args.labeled_stop < args.rounds * args.local_ep
    if args.method == "rscfed" and stops and args.stopped_clients == "average":
        raise UserError(
            f"--method rscfed --labeled_stop {args.labeled_stop}: it draws from those who train; "
            "give --labeled_stop 0 or --stopped_clients leave"
        )
    if args.num_labeled + (args.num_unlabeled or 0) > args.num_users:
        raise UserError(
            f"--num_labeled {args.num_labeled} --num_unlabeled {args.num_unlabeled}: more than "
            f"--num_users {args.num_users}"
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
    if segmentation and args.engine == "sites":
        raise UserError(
            "--engine sites: reads images alone; train on volumes with --engine loop or flower"
        )
    if args.norm == "group" and segmentation:
        raise UserError("--norm group: the 3D U-Net has instance norm; leave it out")
    if args.norm == "group" and args.pretrained:
        raise UserError("--norm group: published weights have BatchNorm; give --pretrained 0")
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


def needs_embedded_data(args: argparse.Namespace) -> bool:
    """Whether the preset brings its own data: the user named none, or a run goes on with them."""
    if args.preset not in EMBEDDED_PRESETS or args.engine == "sites":
        return False
    named = {name: getattr(args, name) for name in DATA_FLAGS if getattr(args, name)}
    return not named or named == embedded_paths(args)
