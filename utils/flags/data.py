"""Flags of the data: where they lie, how they are seen, and the embedded data set."""

from pathlib import Path

from utils.flags.flag import DATA, FREE, choice, number, path, several, switch

DEFAULT_CACHE = Path("data/cache")  # of decoded images

SETS = (
    path("root_path", "folder of the images named in the CSVs", DATA),
    path("csv_file_train", "CSV of the training images", DATA),
    path("csv_file_val", "CSV of the validation images", DATA),
    path("csv_file_test", "CSV of the test images", DATA),
    path("medmnist", "a MedMNIST .npz file, instead of folder and CSVs", DATA),
    choice(
        "label_uncertainty",
        "U-Ones",
        ("U-Ones", "U-Zeros", "U-MultiClass"),
        "what a label of -1 becomes: 1, 0, or a class of its own",
    ),
    choice(
        "multi_label",
        "refuse",
        ("refuse", "drop"),
        "what happens to a row with no class or several",
    ),
    number("image_size", 224, (0, 4096), "pixels per side; 0: as the files are"),
    number("degrees", 10.0, (0, 180), "largest rotation of a view"),
    number("translate", 0.02, (0, 1), "largest shift of a view, share of its side"),
    number("flip", 0.5, (0, 1), "probability of a horizontal flip"),
    path(
        "volumes",
        "folder of `dataloaders.prepare decathlon`, for --task segmentation; CSVs like its "
        "volumes.csv may name the sets",
        DATA,
    ),
    several(
        "volume_sets",
        float,
        3,
        (0.7, 0.1, 0.2),
        "shares of the volumes, or their numbers, where no CSVs name the sets",
        metavar=("TRAIN", "VAL", "TEST"),
    ),
    number("channels", 1, (1, 64), "of the volumes"),
    several(
        "patch_size",
        int,
        3,
        (32, 48, 32),
        "what a network sees of a volume in training, and in evaluation of larger ones",
        metavar="VOXELS",
    ),
    number(
        "foreground",
        0.5,
        (0, 1),
        "share of labelled patches that are placed around a voxel of a structure",
    ),
    number(
        "intensity",
        0.1,
        (0, 10),
        "of a patch's views: deviation of gain, of offset and of the voxels' noise",
    ),
    several(
        "flip_axes",
        int,
        "*",
        (),
        "axes along which patches are mirrored, half of them; default none",
        choices=(0, 1, 2),
    ),
    switch("follow_links", "read images to which symbolic links lead out of --root_path", FREE),
    choice(
        "cache",
        "auto",
        ("auto", "device", "ram", "disk"),
        "where the decoded images live; auto: on the GPU where they fit, else on disk",
        FREE,
    ),
    path("cache_dir", "folder for decoded images", FREE, default=DEFAULT_CACHE),
    number(
        "phantom_patients",
        420,
        (20, 100_000),
        "patients of the embedded data set (presets that generate their data)",
    ),
    number("phantom_slices", 2, (1, 64), "slices per patient of the embedded data set"),
    several(
        "phantom_split",
        float,
        3,
        (0.7, 0.1, 0.2),
        "shares of the embedded data set, or numbers of images",
        metavar=("TRAIN", "VAL", "TEST"),
    ),
    number(
        "phantom_difficulty",
        0.5,
        (0, 1),
        "of the embedded data set: 0 large, dense bleeds; 1 small, faint ones",
    ),
    several(
        "phantom_proportions",
        float,
        5,
        None,
        "class proportions of the embedded data set; default RSNA's",
        metavar="P",
    ),
)
