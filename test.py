"""A saved checkpoint against a test set.

python test.py --resume runs/NAME/checkpoints/epoch_99.pth --root_path DIR --csv_file_test C.csv
"""

import argparse
from pathlib import Path

from dataloaders.dataset import ImageDataset, load_dataset
from dataloaders.table import MULTI_LABEL, read_table
from networks.models import DenseNet121
from utils.checkpoint import build_network, load_model, load_weights
from utils.devices import choose_devices, place_network
from utils.errors import UserError, run_command
from utils.evaluation import evaluate, evaluation_tables, print_tables
from utils.inference import predict
from utils.predictions import Predictions, read_predictions, write_predictions


def main() -> None:
    """Predict, write predictions_test.csv, print and write the tables."""
    args = parse()
    weights, content = load_model(args.resume, args.class_names)
    image_size = args.image_size or content.get("preprocessing", {}).get("image_size")
    if image_size is None:
        raise UserError(f"{args.resume}: does not say its image size; give --image_size, as 224")
    datasets = {
        name: load_images(path, args, content, image_size)
        for name, path in (("test", args.csv_file_test), ("val", args.csv_file_val))
        if path is not None
    }
    net = build_network(content["architecture"], content["class_names"])
    load_weights(net, weights, args.resume)
    net = place_network(net, choose_devices(args.gpu, print)[0])
    predictions = {
        name: predict_to_file(net, images, args.out / f"predictions_{name}.csv", args.batch_size)
        for name, images in datasets.items()
    }
    evaluation = evaluate(predictions["test"], args.threshold, predictions.get("val"))
    print_tables(evaluation_tables(evaluation, args.sweep))
    print(f"\npredictions: {args.out / 'predictions_test.csv'}")


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="test.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--resume", type=Path, required=True, help="checkpoint: epoch_N.pth")
    add("--root_path", type=Path, required=True, help="folder of the images")
    add("--csv_file_test", type=Path, required=True, help="CSV of the test images")
    add("--csv_file_val", type=Path, help="CSV of validation images, for --threshold youden")
    add("--multi_label", choices=MULTI_LABEL, default="refuse", help="rows without one class")
    add("--class_names", nargs="+", help="of a checkpoint that does not name its classes")
    add("--image_size", type=int, help="of a checkpoint that does not say; pixels per side")
    add(
        "--threshold",
        default="0.4",
        help="on softmax: a number, or youden (chosen on --csv_file_val)",
    )
    add("--sweep", action="store_true", help="also the released program's thresholds, on test")
    add("--batch_size", type=int, default=48, help="images per forward pass")
    add("--gpu", default="0", help="CUDA device, or cpu")
    add("--cache_dir", type=Path, default=Path("data/cache"), help="folder for decoded images")
    add("--out", type=Path, help="folder for the results; default: the run's own")
    args = parser.parse_args()
    if args.threshold == "youden" and args.csv_file_val is None:
        raise UserError("--threshold youden: needs --csv_file_val to choose the threshold on")
    if args.out is None:
        in_run = args.resume.parent.name == "checkpoints"
        args.out = args.resume.parent.parent if in_run else args.resume.with_suffix("")
    return args


def load_images(
    csv_file: Path, args: argparse.Namespace, content: dict, image_size: int
) -> ImageDataset:
    """The images of a CSV whose classes are the checkpoint's."""
    table = read_table(csv_file, content["architecture"]["mode"], args.multi_label)
    if list(table.class_names) != content["class_names"]:
        raise UserError(
            f"{csv_file}: classes {', '.join(table.class_names)}, but {args.resume} was trained "
            f"for {', '.join(content['class_names'])}"
        )
    return load_dataset(table, args.root_path, image_size, "auto", args.cache_dir, print)


def predict_to_file(
    net: DenseNet121, images: ImageDataset, path: Path, batch_size: int
) -> Predictions:
    """Predict all images into a predictions file; what it holds."""
    write_predictions(
        path,
        images.names,
        images.labels.numpy(),
        predict(net, images, batch_size),
        images.class_names,
        images.groups,
    )
    return read_predictions(path)


if __name__ == "__main__":
    run_command(main)
