"""One run and its folder: what it writes while it trains, and how it goes on after a stop."""

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from confuse_matrix import RelationMatrix
from dataloaders.federated import FederatedData
from dataloaders.split_file import save_split
from local_supervised import SupervisedLocalUpdate
from networks.models import DenseNet121
from options import FREE_ON_RESUME, build_parser, check_options, explicit_flags
from utils import log_lines
from utils.checkpoint import load_checkpoint, model_content, save_checkpoint
from utils.client import ClientUpdate, LocalUpdate
from utils.environment import describe_environment
from utils.errors import UserError
from utils.files import sweep_temporary_files, write_text
from utils.inference import predict
from utils.logger import Curves, RunLog, write_rows
from utils.network_report import report_run, test_command
from utils.plots import draw_curves, draw_relation
from utils.rounds import RoundMatrices, evaluation_numbers, matrices_rows, round_row

KEPT_STATES = 2


class Progress(NamedTuple):
    """Where a run stands between two rounds: global weights (on the first device), the mean
    relation matrix for the next round (None before anyone measured one), the next round."""

    weights: dict[str, torch.Tensor]
    matrix: RelationMatrix | None
    next_round: int


class Run:
    """The folder of one run. `begin`, then `restore`, then rounds, then `finish`, then `close`."""

    def __init__(self, args: Namespace, folder: Path):
        self.args = args
        self.folder = folder
        self.history: list[dict] = []
        self.matrices: list[RoundMatrices] = []
        self.identity: dict[str, str] = {}
        self.curves: Curves | None = None
        self.bar: tqdm | None = None
        self.log = RunLog()

    def say(self, text: str) -> None:
        """One message to the terminal and, once the run has begun, to its log."""
        self.log.say(text)

    def next_command(self) -> str:
        """What to type to go on with this run, or that there is nothing to go on from."""
        if not self._state_files():
            return "no round was finished; start it again"
        return f"go on with: python train_main.py --resume {self.folder}"

    def close(self) -> None:
        """Close the log and the curves."""
        if self.bar is not None:
            self.bar.close()
        if self.curves is not None:
            self.curves.close()
        self.log.close()

    # ---- before the first round

    def begin(self, data: FederatedData, devices: Sequence[torch.device]) -> None:
        """Make the folder, write what the run is made of, and the first lines of its log.

        Nothing is written before: a mistake in the flags or the data leaves no folder behind.
        """
        self.identity = data.fingerprints()
        for place in (self.folder, self.folder / "checkpoints"):
            place.mkdir(parents=True, exist_ok=True)
            sweep_temporary_files(place)
        if not (self.folder / "args.json").exists():
            save_split(
                self.folder / "split.json",
                data.table,
                data.split.clients,
                data.split.labelled,
                data.split.seed,
                data.split.how,
            )
        _write_json(self.folder / "args.json", plain_args(self.args))
        _write_json(self.folder / "env.json", describe_environment(devices))
        first_lines = (
            log_lines.namespace_line(self.args),
            log_lines.training_size_line(len(data.train)),
        )
        self.log.open(self.folder / "log.txt", first_lines)

    def restore(self, clients: Sequence[LocalUpdate]) -> Progress | None:
        """Bring clients and history back to the last finished round; None where there is none.

        A damaged state is passed over for the one before it, with a line that says so. Raises
        `UserError` where all are damaged or the images are not those the run began with.
        """
        states = self._state_files()
        for path in states:
            try:
                state = load_checkpoint(path)
            except UserError as error:
                self.say(str(error))
                continue
            self._refuse_other_images(state["identity"])
            for client in clients:
                client.load_state_dict(state["clients"][client.client])
            self.history = state["history"]
            self.matrices = [RoundMatrices(*matrices) for matrices in state["matrices"]]
            self.say(f"going on with round {state['next_round']} of {self.args.rounds}")
            matrix = state["matrix"]
            return Progress(
                state["weights"],
                None if matrix is None else RelationMatrix(*matrix),
                state["next_round"],
            )
        if states:
            raise UserError(f"{self.folder}: no undamaged state left; start the run anew")
        return None

    def _refuse_other_images(self, identity: dict[str, str]) -> None:
        for name, fingerprint in identity.items():
            if self.identity.get(name) != fingerprint:
                path = getattr(self.args, f"csv_file_{name}")
                raise UserError(
                    f"{path}: the {name} images or labels have changed since {self.folder} began; "
                    "bring them back or start a new run"
                )

    def _state_files(self) -> list[Path]:
        """States of finished rounds, the newest first."""
        return sorted((self.folder / "checkpoints").glob("state_*.pth"), reverse=True)

    # ---- during a round

    def start_round(self, round: int, active: Sequence[LocalUpdate]) -> float:
        """Open the round in the log and on the terminal; the time it began."""
        self.say(log_lines.begin_round_lines(round))
        self.bar = tqdm(
            total=len(active),
            desc=f"round {round + 1}/{self.args.rounds}",
            unit="client",
            leave=False,
            disable=None if self.args.progress else True,
        )
        return time.perf_counter()

    def start_client(self, client: LocalUpdate) -> None:
        """Log who trains."""
        self.say(log_lines.client_line(client.client, is_labeled(client)))
        self.say(log_lines.CLIENT_RULE)

    def client_done(self, update: ClientUpdate) -> None:
        """Move the bar on."""
        shown = {"loss": f"{update.loss:.3f}"}
        if "reliable_share" in update.stats:
            shown["reliable"] = f"{update.stats['reliable_share']:.2f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def finish_round(
        self,
        progress: Progress,
        net: DenseNet121,
        data: FederatedData,
        clients: Sequence[LocalUpdate],
        reports: Sequence[ClientUpdate],
        started: float,
    ) -> None:
        """Evaluate the averaged weights, log the round, save everything."""
        round = progress.next_round - 1
        self.bar.close()
        row = round_row(round, reports, self.args.base_lr)
        self.say(log_lines.loss_line(row["loss"], round, self.args.base_lr))
        last = progress.next_round == self.args.rounds
        if last or progress.next_round % self.args.eval_every == 0:
            net.load_state_dict(progress.weights)
            row |= self._evaluate(net, data)
        row["seconds_round"] = time.perf_counter() - started
        self.history.append(row)
        self.matrices.append(RoundMatrices.of_round(round, reports))
        self._save(progress, data, clients, last)
        self._write_tables(data.train.class_names)
        self._draw(
            data.train.class_names, last or progress.next_round % self.args.figure_every == 0
        )

    def _evaluate(self, net: DenseNet121, data: FederatedData) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, images in (("val", data.val), ("test", data.test)):
            if images is None:
                continue
            probabilities = predict(net, images, self.args.batch_size)
            found = evaluation_numbers(images.labels.numpy(), probabilities, self.args.threshold)
            numbers |= {f"{name}_{key}": value for key, value in found.items()}
            self.say(
                log_lines.evaluation_line(
                    found["auroc"],
                    found["accuracy"],
                    found["f1"],
                    found["sensitivity"],
                    found["specificity"],
                    name.upper(),
                )
            )
        return numbers

    def _save(
        self, progress: Progress, data: FederatedData, clients: Sequence[LocalUpdate], last: bool
    ) -> None:
        """The full state of the last two rounds, and the weights alone every `save_every`."""
        folder = self.folder / "checkpoints"
        state = {
            "weights": progress.weights,
            "matrix": None if progress.matrix is None else tuple(progress.matrix),
            "next_round": progress.next_round,
            "clients": {client.client: client.state_dict() for client in clients},
            "history": self.history,
            "matrices": [tuple(matrices) for matrices in self.matrices],
            "identity": self.identity,
        }
        save_checkpoint(folder / f"state_{progress.next_round:06d}.pth", state)
        for old in self._state_files()[KEPT_STATES:]:
            old.unlink()
        if last or progress.next_round % self.args.save_every == 0:
            content = model_content(
                progress.weights,
                data.train.class_names,
                architecture(self.args),
                data.preprocessing,
                self.args.preset,
                progress.next_round - 1,
            )
            save_checkpoint(folder / f"epoch_{progress.next_round - 1}.pth", content)

    def _write_tables(self, class_names: Sequence[str]) -> None:
        write_rows(self.folder / "metrics.csv", self.history)
        write_rows(self.folder / "matrices.csv", matrices_rows(self.matrices, class_names))

    def _draw(self, class_names: Sequence[str], with_figures: bool) -> None:
        """Curves for TensorBoard; figures/ where asked for."""
        row, matrices = self.history[-1], self.matrices[-1].means()
        if self.curves is None:
            self.curves = Curves(self.folder / "tb", row["round"])
        self.curves.scalars(row, row["round"])
        for name, matrix in matrices.items():
            self.curves.matrix(name, matrix, row["round"])
        if with_figures:
            draw_curves(self.folder / "metrics.csv", self.folder / "figures" / "curves.png")
            draw_relation(matrices, class_names, self.folder / "figures" / "relation.png")

    # ---- after the last round

    def finish(
        self, weights: dict[str, torch.Tensor], net: DenseNet121, data: FederatedData
    ) -> None:
        """Predictions for the test images, tables, figures, REPORT.md, and what to type next."""
        net.load_state_dict(weights)
        checkpoint = self.folder / "checkpoints" / f"epoch_{self.args.rounds - 1}.pth"
        report_run(self.folder, checkpoint, net, data.test, self.args)
        command = test_command(checkpoint, self.args)
        self.say(f"done: {self.folder / 'REPORT.md'}; test again with: {command}")


def is_labeled(client: LocalUpdate) -> bool:
    """Whether a client trains on labels."""
    return isinstance(client, SupervisedLocalUpdate)


def architecture(args: Namespace) -> dict:
    """What `build_network` needs to know of the flags."""
    return {
        "mode": args.label_uncertainty,
        "drop_rate": args.drop_rate,
        "attention": args.attention,
    }


def open_run(args: Namespace) -> Run:
    """A new run in a folder of its own, or an old one to go on with (`--resume` a folder)."""
    if args.resume is not None and args.resume.is_dir():
        return Run(resumed_args(args), args.resume)
    if args.resume is not None and not args.resume.is_file():
        raise UserError(f"--resume {args.resume}: no such run folder or checkpoint")
    folder = args.run_dir or Path("runs") / (
        f"{args.preset}-{args.method}-seed{args.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    )
    if (folder / "args.json").exists():
        raise UserError(
            f"--run_dir {folder}: holds a run already; go on with --resume {folder} or name another"
        )
    args.run_dir = folder
    return Run(args, folder)


def resumed_args(args: Namespace) -> Namespace:
    """The flags a run began with, and those typed now that may change.

    Raises `UserError` where a flag typed now would change what is computed.
    """
    path = args.resume / "args.json"
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--resume {args.resume}: not the folder of a run ({error})") from error
    actions = {action.dest: action for action in build_parser()._actions}
    merged = {
        name: Path(value) if actions[name].type is Path and value is not None else value
        for name, value in saved.items()
        if name in actions
    }
    typed = explicit_flags()
    changed = [
        f"--{name} {typed[name]} (was {merged.get(name)})"
        for name in typed
        if name not in FREE_ON_RESUME and typed[name] != merged.get(name)
    ]
    if changed:
        raise UserError(
            f"--resume {args.resume}: these flags decide what is computed and cannot change: "
            + ", ".join(changed)
        )
    resumed = Namespace(**{**vars(args), **merged, **typed})
    if resumed.rounds < merged["rounds"]:
        raise UserError(f"--rounds {resumed.rounds}: the run was begun with {merged['rounds']}")
    check_options(resumed)
    return resumed


def plain_args(args: Namespace) -> dict:
    """The flags as JSON types."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
    }


def _write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
