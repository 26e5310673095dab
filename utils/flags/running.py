"""Flags of the network, of one run on this machine, and of the engines."""

from utils.flags.flag import FREE, ONCE, choice, number, path, several, switch, text

NETWORK = (
    choice(
        "network",
        "densenet121",
        ("densenet121", "resnet18", "unet3d"),
        "what every client trains",
    ),
    choice(
        "norm",
        "batch",
        ("batch", "group"),
        "normalisation in networks of images: group keeps no statistics, which unlabelled "
        "clients' own would carry into the average",
    ),
    several(
        "unet_channels",
        int,
        "+",
        (8, 16, 32, 64),
        "of unet3d: features of each level, each with half the sides of the one before",
    ),
    number("residual_units", 1, (0, 16), "of unet3d: residual units of each level"),
    number("drop_rate", 0.2, (0, 0.99), "dropout before the classifier"),
    choice("attention", "none", ("none", "self"), "layer over the last feature map"),
    choice(
        "head_bias",
        "zero",
        ("zero", "uniform"),
        "how the head's bias begins: at zero (released program), or drawn as its weights are",
        before="uniform",
    ),
    choice(
        "pretrained",
        1,
        (0, 1),
        "start from ImageNet's weights, in models/hub/checkpoints or where torchvision keeps them",
    ),
)

RUNNING = (
    path(
        "resume",
        "a run's folder: go on where it stopped; a .pth file: start from its weights",
        FREE,
    ),
    path("run_dir", "folder of this run; default runs/NAME"),
    switch(
        "dry_run",
        "check flags, CSVs, image headers and disk space, print who would hold what, and time and "
        "memory from a few steps on noise; keep nothing",
        FREE,
    ),
    switch(
        "finish",
        "with --resume FOLDER: no further round; write the report and the last checkpoint "
        "from the last state",
        ONCE,
    ),
    number(
        "patience",
        0,
        (0, 1_000_000),
        "end the run when so many rounds have passed since the best one on the validation "
        "images, counted from when the unlabelled clients join; 0: never",
        FREE,
    ),
    number("seed", 1337, (0, 2**63 - 1), "of every random draw"),
    choice("deterministic", 1, (0, 1), "1: the same bits at every run on the same device"),
    text("gpu", "0,1", "CUDA devices to use where they exist, or 'cpu'", FREE),
    choice(
        "precision",
        "auto",
        ("auto", "fp32", "tf32", "bf16"),
        "of the backbone while training; auto: bf16 on GPUs that have it, else fp32",
        FREE,
    ),
    choice(
        "compile",
        "auto",
        ("auto", "off", "on", "graphs"),
        "graphs: record the backbone's passes once and replay them, the same numbers in fewer "
        "launches; on: compile it, other bits; auto: graphs on one GPU, on in long runs on several",
        FREE,
    ),
    choice(
        "client_state",
        "auto",
        ("auto", "device", "host", "disk"),
        "where clients' optimizer and teacher wait between rounds, beside their files: on "
        "the GPU, in main memory, or in the files alone; auto: the first that they fit into",
        FREE,
    ),
    choice(
        "keep_state",
        1,
        (0, 1),
        "after the last round: 1 keeps what clients remember, so that --resume with more "
        "--rounds goes on; 0 removes it, most of a run's disk",
        FREE,
    ),
    number(
        "state_every",
        0,
        (0, 1_000_000),
        "rounds between states that a run goes on from; 0: one a minute, or a round where that "
        "takes longer. What was trained since the last is trained again after a stop, with the "
        "same bits",
        FREE,
    ),
    number(
        "keep_rounds",
        2,
        (2, 1_000_000),
        "that many of the last states stay, for --go_back",
        FREE,
    ),
    number(
        "go_back",
        0,
        (0, 1_000_000),
        "with --resume: forget that many of the last states first, as after a poisoned round",
        ONCE,
    ),
    choice(
        "on_bad_client",
        "stop",
        ("stop", "skip"),
        "a client returns what is not finite or does not fit: stop the run, or skip that "
        "client in that round",
        FREE,
    ),
    number("eval_every", 1, (1, 1_000_000), "rounds between evaluations"),
    choice(
        "eval_at",
        "last",
        ("first", "last"),
        "which of so many rounds is scored; the run's last one always is",
    ),
    number("threshold", 0.4, (0, 1), "of the metrics, on softmax probabilities"),
    switch("report_ids", "name the patients of the images in the report", FREE),
    number("save_every", 1, (1, 1_000_000), "rounds between epoch_N.pth files", FREE),
    number(
        "figure_every",
        0,
        (0, 1_000_000),
        "rounds between figures; 0: every two minutes, and at the end",
        FREE,
    ),
    choice("progress", 1, (0, 1), "a progress bar on a terminal", FREE),
)

ENGINE = (
    choice(
        "engine",
        "loop",
        ("loop", "flower", "sites"),
        "clients one after the other in this process; each in a process of its own, on Flower "
        "(needs `make flower`); or at their own sites (docs/DEPLOY.md)",
    ),
    number("client_cpus", 1.0, (0.01, 1024), "processors per client, engine flower", FREE),
    number(
        "client_gpus",
        None,
        (0, 64),
        "GPUs per client, engine flower: 0.25 lets four share one; default: 1 where there is one",
        FREE,
        kind=float,
    ),
    number(
        "min_clients",
        0,
        (0, 100_000),
        "a round on Flower goes on without clients that fail or do not answer while this "
        "many are left; 0: it needs every one",
        FREE,
    ),
    path(
        "sites",
        "the operator's list, a CSV client,labeled,key[,images]: which node's key may be "
        "which client, engine sites (docs/DEPLOY.md)",
        FREE,
    ),
    number(
        "client_timeout",
        3600.0,
        (1, 10**7),
        "seconds to wait for a client to connect, or to answer in a round, on Flower",
        FREE,
    ),
    number(
        "dp_clip",
        0.0,
        (0, 1e6),
        "longest change of the parameters by one client in one round (2-norm), on Flower; 0: any",
    ),
    number(
        "dp_noise",
        0.0,
        (0, 1e6),
        "noise on the averaged parameters, in units of what one clipped client can move "
        "them; needs --dp_clip, on Flower; not reproducible; 0: none",
    ),
)
