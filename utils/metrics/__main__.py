"""Score a predictions file again: `python -m utils.metrics`."""

from utils.errors import OneLineParser, UserError, run_command
from utils.metrics.evaluation import evaluate, evaluation_tables, print_tables, write_tables
from utils.metrics.numbers import DEFAULT_THRESHOLD
from utils.metrics.predictions import Predictions, read_predictions


def main() -> None:
    """`python -m utils.metrics predictions_test.csv`: score a predictions file again."""
    parser = OneLineParser(prog="python -m utils.metrics", description=main.__doc__)
    parser.add_argument("predictions", help="a file that test.py wrote")
    parser.add_argument(
        "--threshold", default=DEFAULT_THRESHOLD, help="0..1 on the softmax, or youden"
    )
    parser.add_argument("--predictions_val", help="predictions to choose youden's thresholds on")
    parser.add_argument(
        "--sweep", action="store_true", help="also thresholds 0.40..0.92, optimistic"
    )
    parser.add_argument(
        "--allow_overlap",
        action="store_true",
        help="choose thresholds although validation images are also tested",
    )
    parser.add_argument("--out", help="folder for the tables (CSV, Markdown, LaTeX)")
    args = parser.parse_args()
    validation = read_predictions(args.predictions_val) if args.predictions_val else None
    tested = read_predictions(args.predictions)
    if validation is not None and not args.allow_overlap:
        refuse_overlap(tested, validation)
    evaluation = evaluate(tested, args.threshold, validation)
    tables = evaluation_tables(evaluation, args.sweep)
    print_tables(tables)
    if args.out:
        write_tables(tables, args.out)
        print(f"\ntables: {args.out}")


def refuse_overlap(tested: Predictions, validation: Predictions) -> None:
    """Raise `UserError` where a threshold would be chosen on images that are tested."""
    shared = set(tested.names) & set(validation.names)
    if shared:
        raise UserError(
            f"--predictions_val: {len(shared)} of {len(tested.names)} test images are among the "
            f"validation images, such as {min(shared)}; give others, or add --allow_overlap and "
            "say so with the numbers"
        )


run_command(main)
