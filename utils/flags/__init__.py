"""Every flag of train_main.py as a table, one row each, for the parser and for who reads logs."""

from utils.flags.data import SETS
from utils.flags.federation import FEDERATION
from utils.flags.flag import DATA, FIXED, ONCE, choice, path
from utils.flags.presets import PRESETS
from utils.flags.running import ENGINE, NETWORK, RUNNING
from utils.flags.training import TRAINING, UNLABELED

FIRST = (
    choice("preset", "slides", tuple(PRESETS), "which source's values to take"),
    path(
        "args_from",
        "take every flag from that run's folder, or args.json; flags typed beside it win",
        ONCE,
        metavar="RUN",
    ),
)
GROUPS = {
    "data": SETS,
    "federation": FEDERATION,
    "training": TRAINING,
    "unlabelled clients": UNLABELED,
    "network": NETWORK,
    "running": RUNNING,
    "engine": ENGINE,
}
FLAGS = {flag.name: flag for flags in (FIRST, *GROUPS.values()) for flag in flags}

# Flags that may differ when a run goes on; every other one decides what is computed.
FREE_ON_RESUME = frozenset(name for name, flag in FLAGS.items() if flag.on_resume != FIXED)
DATA_FLAGS = tuple(name for name, flag in FLAGS.items() if flag.on_resume == DATA)
SAID_ONCE = tuple(name for name, flag in FLAGS.items() if flag.on_resume == ONCE)
RANGES = {name: flag.limits for name, flag in FLAGS.items() if flag.limits}
