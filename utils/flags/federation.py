"""Flags of the federation: who has what, who trains when, and the average."""

from utils.flags.flag import FREE, choice, number, path, several

METHODS = (
    "fedirm",
    "fed_consistency",
    "fed_selftraining",
    "fedavg",
    "fixmatch",
    "rscfed",
    "cbafed",
)
FEDERATION = (
    choice("method", "fedirm", METHODS, "a row of the paper's table, or a later method"),
    choice(
        "task",
        "classification",
        ("classification", "segmentation"),
        "what a label is: an image's class, or the class of each voxel of a volume",
    ),
    number("num_users", 10, (1, 100_000), "clients the data is dealt to"),
    number(
        "num_labeled", 2, (0, 100_000), "how many clients have labels, those of the lowest numbers"
    ),
    several("labeled_ids", int, "+", None, "which clients have labels, instead of the first"),
    number(
        "labeled_volumes",
        0,
        (0, 1_000_000),
        "each labelled client has but so many volumes, its first; 0: all",
    ),
    number(
        "labeled_fraction",
        0.0,
        (0, 1),
        "every client has labels for this share of its images, none for the rest; 0: off",
    ),
    choice(
        "partition",
        "iid",
        ("iid", "dirichlet", "site", "column", "blocks"),
        "equal parts at random; Dirichlet by class; by the CSV's site; by its column client; "
        "of volumes: neighbours in the list, or by patient where those are known",
    ),
    number("dirichlet_alpha", 0.5, (1e-6, 1e6), "small: clients of few classes"),
    path(
        "split",
        "a split.json of another run: the same clients again; or the field's lists: a folder "
        "of train.csv, validation.csv, test.csv and train_clients.json",
    ),
    number(
        "num_unlabeled",
        None,
        (0, 100_000),
        "clients without labels that take part, lowest numbers first; default: all",
        kind=int,
    ),
    number("rounds", 200, (1, 1_000_000), "federated rounds", FREE),
    number("local_ep", 2, (1, 1000), "local epochs per round"),
    number("start_epoch", 0, (0, 1_000_000), "number of the first round, for the schedules"),
    number(
        "join_epoch",
        20,
        (-1, 1_000_000),
        "unlabelled clients take part once round * local_ep exceeds this; -1: at once",
    ),
    number(
        "labeled_stop",
        200,
        (0, 1_000_000),
        "labelled clients stop once round * local_ep reaches this, where unlabelled ones "
        "carry on; 0: never",
    ),
    choice(
        "stopped_clients",
        "average",
        ("average", "leave"),
        "whether the labelled clients' last weights stay in every average after they have "
        "stopped, as in the released program, or leave it",
        before="leave",
    ),
    choice(
        "fedavg_weights",
        "equal",
        ("equal", "size"),
        "clients count alike, or by their number of images (N_k / N)",
    ),
    number(
        "labeled_weight",
        1.0,
        (1e-6, 1e6),
        "the labelled clients count so many times as much in every average",
    ),
    choice(
        "aggregate",
        "mean",
        ("mean", "median", "trimmed_mean", "krum", "norm_clip"),
        "how models become one: mean is FedAvg; the others keep a few wrong clients from "
        "taking the model over, and hold all models of a round at once (docs/RELIABILITY.md)",
    ),
    number(
        "bad_clients",
        1,
        (0, 100_000),
        "how many clients of a round may be wrong, for trimmed_mean and krum",
    ),
)
