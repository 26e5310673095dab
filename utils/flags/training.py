"""Flags of local training: of every client, of those without labels, and of each method."""

from utils.flags.flag import choice, number

RELATION_MIN_AT_SITES = 5

TRAINING = (
    number("batch_size", 48, (2, 65_536), "images per step"),
    number("base_lr", 1e-3, (1e-12, 10), "learning rate"),
    number("unlabeled_lr", 0.0, (0, 10), "unlabelled clients' learning rate; 0: base_lr"),
    number(
        "labeled_lr_late",
        3e-4,
        (0, 10),
        "labelled clients' rate once round * local_ep exceeds join_epoch; 0: unchanged",
    ),
    number("adam_beta1", 0.9, (0, 0.9999999), "Adam's first momentum"),
    number("adam_beta2", 0.999, (0, 0.9999999), "Adam's second momentum"),
    number("weight_decay", 5e-4, (0, 10), "L2 penalty"),
    choice("optimizer", "adam", ("adam", "sgd"), "of every client"),
    number("sgd_momentum", 0.9, (0, 0.9999999), "of --optimizer sgd"),
    number("clip_gradients", 0.0, (0, 1e9), "largest norm of a step's gradient; 0: none"),
    number("label_smoothing", 0.0, (0, 0.999), "of the labelled clients' cross entropy"),
    choice("labeled_views", 1, (1, 2), "views whose cross entropies are summed"),
    choice(
        "labeled_matrix",
        "batches",
        ("dataset", "batches"),
        "M^l from the client's per-class means, or the mean of its batches' matrices",
    ),
    number("temperature", 2.0, (1e-3, 1e3), "tau of the relation matrix (eq. 3)"),
    choice(
        "absent_class",
        "uniform",
        ("uniform", "skip"),
        "row of a class without samples: uniform and counted, or left out of the matching",
    ),
)

UNLABELED = (
    number("consistency", 1.0, (0, 1e6), "largest lambda"),
    number("consistency_rampup", 30.0, (0, 1e6), "Omega, length of the ramp-up"),
    choice("rampup_power", 2, (1, 2), "lambda = exp(-5 (1 - t/Omega)^power)"),
    choice(
        "rampup_clock", "epoch", ("epoch", "round"), "t counts local epochs or federated rounds"
    ),
    number("unsupervised_weight", 15.0, (0, 1e6), "factor on lambda (L_c + L_IRM)"),
    number("consistency_scale", 1.0, (0, 1e6), "factor on L_c; 0: without it"),
    choice(
        "consistency_norm",
        "flag",
        ("flag", "batch"),
        "L_c's sum is divided by the flag batch_size, or by the batch's own size",
    ),
    number("ema_decay", 0.99, (0, 1), "alpha of the EMA teacher"),
    choice(
        "ema_consistency",
        1,
        (0, 1),
        "1: the EMA teacher gives the targets; 0: the student itself does",
    ),
    number("global_step", 0, (0, 10**12), "step count the EMA warm-up starts from"),
    number("mc_passes", 11, (1, 1000), "T, stochastic forward passes"),
    choice(
        "mc_average",
        "logits",
        ("logits", "probabilities"),
        "what is averaged over the stochastic passes",
    ),
    number("entropy_threshold", 2.0, (0, 100), "h in nats: reliable below it"),
    choice(
        "entropy_unit",
        "nats",
        ("nats", "share"),
        "h is in nats, or a share of the largest entropy, ln C",
    ),
    number(
        "confidence_threshold",
        0.3,
        (0, 1),
        "reliable only from this largest probability on; 0: off",
    ),
    choice(
        "unlabeled_matrix",
        "logits",
        ("logits", "probabilities"),
        "what M^u averages over the reliable samples of a pseudo class",
    ),
    number(
        "fixmatch_threshold",
        0.95,
        (0, 1),
        "method fixmatch: a weak view's label counts from this probability on",
    ),
    number("fixmatch_weight", 1.0, (0, 1e6), "method fixmatch: factor on its loss"),
    number(
        "fixmatch_jitter",
        0.5,
        (0, 1),
        "method fixmatch: largest change of contrast and brightness in the strong view",
    ),
    number(
        "fixmatch_cutout",
        0.5,
        (0, 1),
        "method fixmatch: largest side of the square cut out, a share of the image's",
    ),
    number("rscfed_subsets", 3, (1, 1000), "method rscfed: M, subsets of a round"),
    number("rscfed_clients", 5, (1, 100_000), "method rscfed: K, clients of a subset"),
    number(
        "rscfed_beta",
        1e4,
        (0, 1e12),
        "method rscfed: how fast a client's share falls with its distance to the mean",
    ),
    number(
        "rscfed_beta_labeled",
        100.0,
        (0, 1e12),
        "method rscfed: the same in subsets with a labelled client",
    ),
    number("rscfed_consistency", 0.02, (0, 1e6), "method rscfed: factor on its loss"),
    number(
        "rscfed_sharpen",
        0.5,
        (1e-3, 1e3),
        "method rscfed: temperature of the teacher's sharpened prediction; 1: as it is",
    ),
    number(
        "cbafed_base",
        0.84,
        (0, 1),
        "method cbafed: threshold of a pseudo label, before the class's share is added",
    ),
    number("cbafed_highest", 0.9, (0, 1), "method cbafed: the largest threshold"),
    number(
        "cbafed_tail",
        0.03,
        (0, 1),
        "method cbafed: a class of a smaller share takes images as their second class, too",
    ),
    number(
        "cbafed_labeled_epochs",
        0,
        (0, 10_000),
        "method cbafed: local epochs of a labelled client from the join on; 0: local_ep",
    ),
    number(
        "cbafed_mix_epochs",
        5,
        (1, 1_000_000),
        "method cbafed: a labelled client mixes its weights with those of so many local "
        "epochs before, 1 to 4",
    ),
    number(
        "cbafed_record_rounds",
        5,
        (1, 1_000_000),
        "method cbafed: the server mixes its weights with those of so many rounds before, "
        "half and half",
    ),
    choice("relation_distance", "kl", ("kl", "wasserstein"), "between relation matrices"),
    number(
        "relation_min_rows",
        1,
        (1, 10**9),
        "images or voxels of a class that a matrix's row is measured from at least, with "
        "--absent_class skip",
    ),
    number(
        "relation_min_samples",
        0,
        (0, 1_000_000),
        "a row of a client's matrix needs that many images of its class, else it is as if "
        f"there were none; 0: 1 here, {RELATION_MIN_AT_SITES} at sites of their own, who may ask "
        "for more (docs/DEPLOY.md)",
        before=1,
    ),
    number("relation_scale", 0.5, (0, 1e6), "factor on the distance in L_IRM"),
    choice(
        "bn_updates",
        "every_pass",
        ("every_pass", "once"),
        "BatchNorm's running statistics move once per stochastic pass, or once per step",
    ),
)
