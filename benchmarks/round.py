"""A labelled client, an unlabelled client and a whole round: reference, floor and ours.

reference: benchmarks/reference.py. floor: the bare forward and backward passes that the method
cannot do without, on views already on the device, same precision, memory format and compiler as
ours; no optimizer, no federation. ours: steps 1 to 4 of train_main.py's round on images on disk,
the checks of what clients return and the handing over of their memory to the store included;
step 5, evaluation and checkpoint, stands by itself.

    python -m benchmarks.round                       # a CPU, in minutes
    python -m benchmarks.round --gpu 0 --image_size 224 --file_size 512 --images 480 --batch_size 48
"""

import argparse
import copy
import tempfile
from argparse import Namespace
from pathlib import Path

import torch

from benchmarks import reference, same_losses
from benchmarks.data import make_files
from benchmarks.measure import conditions, in_turn, ratios, spread
from benchmarks.ours import Floor, Ours, Stopwatch, Timing, as_a_real_run, product_args
from utils.errors import run_command
from utils.table_files import to_markdown

ROUND = 25
REAL_IMAGES = 17_503  # of the paper's training set: what "--compile auto" is settled for
PARTS = {"labeled": "labelled client", "unlabeled": "unlabelled client", "whole": "whole round"}


class Reference:
    """The plain loop on the same files, dealt to as many clients."""

    def __init__(self, ours: Ours, folder: Path):
        args, data = ours.args, ours.data.train
        self.clock, self.labels = ours.clock, [client.labeled for client in ours.clients]
        self.net = reference.ReferenceNet(len(data.class_names), args.drop_rate)
        self.net.to(ours.devices[0])
        classes = data.labels.tolist()
        self.clients = [
            reference.ReferenceClient(
                args,
                [folder / data.names[i] for i in client.indices],
                [classes[i] for i in client.indices],
                args.image_size,
            )
            for client in ours.clients
        ]

    def __call__(self) -> Timing:
        """One round."""
        watch = Stopwatch(self.clock, self.labels)
        states, matrices = [], []
        for client, labeled in zip(self.clients, self.labels, strict=True):
            states.append(
                watch.client(
                    lambda c=client, is_labeled=labeled: self._train(c, is_labeled, matrices)
                )
            )
        self.net.load_state_dict(reference.average(states))
        return watch.timing()

    def _train(self, client, labeled: bool, matrices: list) -> dict:
        net = copy.deepcopy(self.net)
        if labeled:
            weights, _, matrix = client.train_labeled(net, client.loader())
            matrices.append(matrix)
            return weights
        return client.train_unlabeled(net, client.loader(), ROUND, sum(matrices) / len(matrices))[0]


def main() -> None:
    """Check the losses, measure, print Markdown."""
    options = parse()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = (options.labeled + options.unlabeled) * options.images
        csvs = make_files(folder, {"train": count, "test": options.images}, options.file_size)
        same = ("gpu", "image_size", "batch_size", "precision", "compile", "deterministic")
        options.compile = as_a_real_run(
            product_args(folder, csvs, gpu=options.gpu, compile=options.compile), REAL_IMAGES
        )
        flags = {name: getattr(options, name) for name in same}
        clients = {"num_users": options.labeled + options.unlabeled, "num_labeled": options.labeled}
        ours = Ours(product_args(folder, csvs, **flags, **clients))
        try:
            print(conditions(ours.devices[0], options.repeats))
            print(setting(options), end="\n\n")
            if not options.unchecked:
                check(ours, folder)
            measure(ours, folder, options)
        finally:
            ours.run.close()


def parse() -> Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round", description=__doc__)
    add = parser.add_argument
    add("--gpu", default="cpu", help="as of train_main.py")
    add("--image_size", type=int, default=128)
    add("--file_size", type=int, default=128, help="pixels a side of the PNG files")
    add("--batch_size", type=int, default=16)
    add("--images", type=int, default=48, help="per client, and test images")
    add("--labeled", type=int, default=1, help="clients with labels")
    add("--unlabeled", type=int, default=2, help="clients without")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=1, help="of PyTorch on the CPU")
    add("--precision", default="auto", help="of ours and the floor, as of train_main.py")
    add("--compile", default="auto", help="of ours and the floor, as of train_main.py")
    add("--deterministic", default="1", help="as of train_main.py")
    add("--unchecked", action="store_true", help="do not compare the losses first")
    return parser.parse_args()


def setting(options: Namespace) -> str:
    """What was measured, in words."""
    return (
        f"preset official; {options.labeled} labelled (two views) and {options.unlabeled} "
        f"unlabelled clients of {options.images} images, batches of {options.batch_size}, "
        f"{options.image_size} pixels from PNG files of {options.file_size}; ours and floor: "
        f"precision {options.precision}, compile {options.compile}"
    )


def check(ours: Ours, folder: Path) -> None:
    """Print how far the reference's losses and ours are apart; `RuntimeError` where too far."""
    small = Namespace(**vars(ours.args) | {"batch_size": 8, "image_size": 64})
    with tempfile.TemporaryDirectory() as cache:
        small.cache_dir = Path(cache)
        dataset = same_losses.small_dataset(small)
        print("\n".join(same_losses.check(small, dataset, folder / "images")), end="\n\n")


def measure(ours: Ours, folder: Path, options: Namespace) -> None:
    """Print the table of a round, and what step 5 costs."""
    ours.train(), ours.finish()
    finishing: list[float] = []

    def one_round() -> Timing:
        timing = ours.train()
        finishing.append(ours.finish())
        return timing

    pieces = {
        "reference": Reference(ours, folder / "images"),
        "floor": Floor(ours, with_optimizer=False),
        "ours": one_round,
    }
    print(table(in_turn(pieces, options.repeats)))
    print(f"step 5, evaluation of {options.images} images among it: {spread(finishing)} s")


def table(results: dict[str, list[Timing]]) -> str:
    """Seconds of every part by column, and how many of ours fit into the others'."""
    header = ["", *(f"{name}, s" for name in results), "reference / ours", "floor / ours"]
    rows = []
    for part, title in PARTS.items():
        seconds = {name: [getattr(one, part) for one in all_] for name, all_ in results.items()}
        compared = [ratios(seconds[name], seconds["ours"]) for name in ("reference", "floor")]
        rows.append([title, *(spread(values) for values in [*seconds.values(), *compared])])
    return to_markdown(header, rows)


if __name__ == "__main__":
    run_command(main)
