"""One run and its folder: what it writes while it trains, and how it goes on after a stop."""

import json
import shlex
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from dataloaders.dataset import ImageDataset
from dataloaders.federated import FederatedData
from dataloaders.overlap import compare_all, members_of, save_seen, warning_line
from dataloaders.split import save_split
from local_update import ClientUpdate, LocalUpdate, Task
from networks.devices import activation_bytes, choose_precision
from networks.kinds import architecture
from networks.models import Network
from networks.saved import model_bytes, model_content
from options import own_flags
from record.checks import never_join, refuse_other_data, refuse_other_precision, refuse_small_disk
from record.duration import reason_to_end, round_costs, round_line
from record.exchange import Exchange
from record.guard import ClientGuard
from record.opening import (
    ARGS_FILE,
    ENV_FILE,
    describe_environment,
    differences,
    is_run,
    lasting_flags,
    open_folder,
    peak_memory,
    plain_args,
    remove_later_weights,
)
from record.outputs import Outputs
from record.pace import SECONDS_BETWEEN_STATES, Pace
from record.rounds import RoundMatrices, classes_not_found, is_scored, round_row
from record.state import (
    ClientStore,
    Progress,
    RunState,
    StateFiles,
    choose_placement,
)
from server import Server
from utils.checkpoint import save_checkpoint
from utils.commands import command_line
from utils.errors import UserError
from utils.files import FolderLock, sweep_temporary_files, write_text
from utils.logger import RunLog
from utils.tables import log_lines

# What of a method's loss a threshold lets samples into, and the share that it lets in.
GATED_BY = {
    "fedirm": ("reliable_share", "their relation matrix"),
    "fixmatch": ("reliable_share", "their loss"),
    "fed_selftraining": ("reliable_share", "their loss"),
    "cbafed": ("kept_share", "their loss"),
}


class Run:
    """The folder of one run. `restore`, then `begin`, then rounds, then `finish`, then `close`."""

    def __init__(self, args: Namespace, folder: Path, folder_lock: FolderLock):
        self.args = args
        self.folder = folder
        self.folder_lock = folder_lock
        self.history: list[dict] = []
        self.matrices: list[RoundMatrices] = []
        self.identity: dict[str, str] = {}
        self.environment: dict = {}
        self.store = ClientStore(folder / "checkpoints" / "clients", args.client_state)
        self.states = StateFiles(folder / "checkpoints", self.store, args.keep_rounds)
        self.server: Server | None = None  # from `restore` on
        self.task: Task | None = None  # from `begin` on
        self.exchange: Exchange | None = None  # likewise
        self._placement: Callable[[], str] | None = None  # likewise
        self.log = RunLog()
        self.unsaved: RunState | None = None  # of the last round, where --state_every left it out
        # A client elsewhere goes back by two rounds at most.
        state_every = args.state_every if args.engine == "loop" else 1
        self.state_pace = Pace(state_every, SECONDS_BETWEEN_STATES)
        self.outputs = Outputs(folder, args.figure_every)
        self.costs: list[float] = []  # of each round beside the others, from `begin` on

    def say(self, text: str) -> None:
        """One message to the terminal and, once the run has begun, to its log."""
        self.log.note(text)

    def next_command(self) -> str:
        """What to type to go on with this run, or that there is nothing to go on from."""
        if not is_run(self.folder):
            return "nothing was written yet: start it again"
        command = command_line("train_main.py", {"resume": self.folder})
        if self.args.engine == "sites":
            flags = shlex.join(["--resume", str(self.folder)])
            command = shlex.join(["flwr", "run", ".", "--run-config", f"flags={json.dumps(flags)}"])
        kept = "finished rounds are kept"
        if self.unsaved is not None:
            often = self.args.state_every or "0: one a minute"
            kept = f"rounds are kept up to the last state (--state_every {often})"
        return f"{kept}: go on with {command}"

    def close(self) -> None:
        """Close the log, the curves and the clients' files, and let others into the folder."""
        if self.exchange is not None:
            self.exchange.close()
        self.store.close()
        self.outputs.close()
        self.log.close()
        self.folder_lock.release(keep_folder=is_run(self.folder))

    # ---- before the first round

    def restore(self, data: FederatedData, server: Server) -> Progress | None:
        """The last finished round, what the server remembers of it in `server` and the clients'
        memories in the store; None where there is none.

        A damaged state is passed over for the one before it, with a line that says so. Raises
        `UserError` where all are damaged, or flags or data are not those the run began with.
        """
        self.identity = data.fingerprints()
        self.server = server
        for folder in (self.folder, *self.folder.glob("**/")):
            sweep_temporary_files(folder)
        state = self.states.restore(self.say, self.args.go_back)
        if state is None:
            return None
        flags = {k: v for k, v in lasting_flags(self.args).items() if k in state.flags}
        if changed := differences(flags, state.flags):
            raise UserError(
                f"{self.folder / ARGS_FILE}: not the flags the run was trained with, restore "
                f"them: {changed}"
            )
        refuse_other_data(self.folder, self.args, self.identity, state.identity)
        to_do = state.progress.next_round < self.args.rounds and not self.args.finish
        if to_do and not self.states.has_memories:
            raise UserError(
                f"--rounds {self.args.rounds}: {self.folder} ended after "
                f"{state.progress.next_round} and, as --keep_state 0 says, kept nothing of what "
                "its clients remember; start a new run"
            )
        self.history, self.matrices = state.history, state.matrices
        server.load_state_dict(state.server)
        if not self.args.finish:
            self.say(f"going on with round {state.progress.next_round} of {self.args.rounds}")
        return state.progress

    def begin(
        self,
        data: FederatedData,
        clients: Sequence[LocalUpdate],
        networks: Sequence[Network],
        devices: Sequence[torch.device],
        task: Task,
    ) -> Exchange:
        """Make the folder, write what the run is made of, and the first lines of its log; what the
        clients are to train through.

        Nothing is written before: a mistake in the flags or the data leaves no folder behind.
        Raises `UserError` where the states of the run will not fit on the disk.
        """
        self.task = task
        scores = [*(f"test_{name}" for name in task.headline), "loss"]
        self.outputs.begin(data.class_names, plain_args(self.args), scores)
        one_model = model_bytes(networks[0])
        evaluated = sum(len(images) for images in (data.val, data.test) if images is not None)
        self.costs = round_costs(self.args, self.server, clients, evaluated)
        self._find_room(clients, one_model, data, devices)
        self._write_beginning(data, devices, sum(not client.labeled for client in clients))
        guard = ClientGuard(self.args.on_bad_client, self.say, self.server.find_fault)
        self.exchange = Exchange(self.store, guard, self.log, one_model)
        return self.exchange

    def _find_room(
        self,
        clients: Sequence[LocalUpdate],
        one_model: int,
        data: FederatedData,
        devices: Sequence[torch.device],
    ) -> None:
        """See that the disk has room for the states, and know how to choose where images and the
        clients' memories wait: each device has a step's activations to hold."""
        copies = sum(client.remembered_copies for client in clients)
        all_copies = copies + self.server.models_remembered(clients)
        done = len(self.history)
        refuse_small_disk(self.folder, self.args, all_copies, one_model, done, self.say)
        reserved = activation_bytes(self.args, data.test.input_shape, devices)
        for images in (data.train, data.val, data.test):
            if isinstance(images, ImageDataset):
                images.reserved = reserved
        self._placement = partial(
            choose_placement, self.args.client_state, copies * one_model, devices, reserved
        )

    def _write_beginning(
        self, data: FederatedData, devices: Sequence[torch.device], unlabeled: int
    ) -> None:
        """split.json, args.json, env.json and the first lines of log.txt, of a run with so many
        clients that are `unlabeled`."""
        if not is_run(self.folder) and data.split is not None:
            save_split(self.folder / "split.json", data.table, data.split)
        sets = members_of({"train": data.train, "val": data.val, "test": data.test})
        overlap = warning_line(compare_all(sets))
        save_seen(self.folder, sets)
        _write_json(self.folder / ARGS_FILE, plain_args(self.args))
        precision = choose_precision(self.args.precision, devices)
        self.environment = describe_environment(devices) | {"precision": precision}
        if self.history:
            refuse_other_precision(self.folder, self.args, precision, self.say)
        _write_json(self.folder / ENV_FILE, self.environment)
        first_lines = (
            log_lines.namespace_line(self.args),
            log_lines.training_size_line(data.num_training),
        )
        self.log.open(self.folder / "log.txt", first_lines)
        self.say(log_lines.own_flags_note(self.args.preset, own_flags(plain_args(self.args))))
        if len(devices) > 1 or self.args.engine != "loop":
            self.say(f"{log_lines.SIDE_BY_SIDE}: the times of their lines say nothing of one alone")
        if overlap is not None:
            self.say(overlap)
        if (warning := never_join(self.args, unlabeled)) is not None:
            self.say(warning)
        if self.history:
            # A stop may have fallen between the state of a round and the tables made from it.
            self.outputs.write_tables(self.history, self.matrices)
            remove_later_weights(self.folder / "checkpoints", self.history[-1]["round"])

    def compiled(self, mode: str) -> None:
        """Note in env.json how the backbones are run: "off", "on" or "graphs". Recorded passes hold
        their memory for good: what is free beside them decides where the clients' memories wait."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what a warm-up left is free
        self.store.placement = self._placement()
        self.environment["compile"] = mode
        _write_json(self.folder / ENV_FILE, self.environment)

    # ---- during a round

    def rounds_to_do(self, progress: Progress) -> Iterator[int]:
        """The rounds after `progress`, one after the other, until the last, or until `--finish` or
        `--patience` ends the run. Raises `UserError` where no round was ever finished."""
        headline = self.task.headline[0]
        for round in range(progress.next_round, self.args.rounds):
            if (reason := reason_to_end(self.args, self.history, round, headline)) is not None:
                if not self.history:
                    raise UserError(f"{self.folder}: no round is finished yet, there is no report")
                self.say(reason)
                return
            yield round

    def start_round(self, round: int, active: Sequence[LocalUpdate]) -> float:
        """Open the round in the log and on the terminal; the time it began."""
        ahead = self.history[-1]["seconds_round"] if self.history else 0.0
        self.store.saving = round + 1 == self.args.rounds or self.state_pace.is_due(round, ahead)
        title = f"round {round + 1}/{self.args.rounds}" if self.args.progress else None
        self.log.record(log_lines.begin_round_lines(round))
        self.exchange.start_round(active, [row["clients_skipped"] for row in self.history], title)
        return time.perf_counter()

    def finish_round(
        self,
        progress: Progress,
        networks: Sequence[Network],
        data: FederatedData,
        reports: Sequence[ClientUpdate],
        started: float,
    ) -> None:
        """Evaluate the averaged weights, log the round, save everything.

        Raises `UserError`, before anything is saved, where the averaged model gives no finite
        output.
        """
        round = progress.next_round - 1
        skipped = self.exchange.finish_round(
            round, progress.weights, networks[0], data.test, self.server, self.say
        )
        row = round_row(round, reports) | {"clients_skipped": skipped}
        self.log.record(log_lines.loss_line(row["loss"], round, self.args.base_lr))
        last = progress.next_round == self.args.rounds
        if is_scored(round, self.args):
            for net in networks:
                net.load_state_dict(progress.weights)
            row |= self._evaluate(networks, data)
        row["seconds_round"] = time.perf_counter() - started
        self.history.append(row)
        self.matrices.append(RoundMatrices.of_round(round, self.server.pictures(reports)))
        self._look_at_join(data.class_names)
        self._save(progress, data, last)
        self.outputs.add_round(self.history, self.matrices, last)
        self.say(round_line(self.history, self.costs, last))
        self.outputs.draw()

    def _look_at_join(self, class_names: Sequence[str]) -> None:
        """In the first round that unlabelled clients take part: say which classes would be lost,
        and whether the thresholds let anything through."""
        row = self.history[-1]
        if [each["round"] for each in self.history if each["clients_unlabeled"]] != [row["round"]]:
            return
        lost = classes_not_found(self.matrices[-1], class_names)
        share, loss = GATED_BY.get(self.args.method, ("", ""))
        if row.get(share) == 0:
            self.say(
                f"warning: the thresholds let no sample of the unlabelled clients into {loss} "
                f"({share} is 0 in metrics.csv)"
            )
        if lost:
            self.say(
                "warning: the unlabelled clients have joined, and none of them finds "
                f"{', '.join(lost)}; what nobody finds at the join can stay lost: give a later "
                "--join_epoch"
            )

    def _evaluate(self, networks: Sequence[Network], data: FederatedData) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, images in (("val", data.val), ("test", data.test)):
            if images is None:
                continue
            found = self.task.evaluate(networks, images, self.args)
            numbers |= {f"{name}_{key}": value for key, value in found.items()}
            self.log.record(self.task.evaluation_line(found, name))
        return numbers

    def _save(self, progress: Progress, data: FederatedData, last: bool) -> None:
        """The weights alone every `save_every`, then the state: it is what makes a round final."""
        if last or progress.next_round % self.args.save_every == 0:
            self._save_weights(progress.weights, data, progress.next_round - 1)
        self.unsaved = RunState(
            progress,
            self.server.state_dict(),
            self.history,
            self.matrices,
            self.identity,
            lasting_flags(self.args),
        )
        if self.store.saving:
            self._save_state()

    def _save_state(self) -> None:
        self.states.save(self.unsaved)
        self.unsaved = None
        self.state_pace.done()

    def _save_weights(
        self, weights: dict[str, torch.Tensor], data: FederatedData, round: int
    ) -> None:
        content = model_content(
            weights,
            data.class_names,
            architecture(self.args),
            data.preprocessing,
            self.args.preset,
            round,
        )
        save_checkpoint(self._checkpoint(round), content)

    def _checkpoint(self, round: int) -> Path:
        return self.folder / "checkpoints" / f"epoch_{round}.pth"

    # ---- after the last round

    def finish(self, weights: dict[str, torch.Tensor], net: Network, data: FederatedData) -> None:
        """Predictions for the test images, tables, figures, REPORT.md, and what to type next.

        What the clients remember goes where `--keep_state 0` was given.
        """
        if self.unsaved is not None:  # the run ended early, between two of --state_every
            self._save_state()
        net.load_state_dict(weights)
        round = self.history[-1]["round"]
        checkpoint = self._checkpoint(round)
        if not checkpoint.exists():  # the run ended early, between two of --save_every
            self._save_weights(weights, data, round)
        self.task.report(self.folder, checkpoint, net, data, self.args)
        if not (self.args.keep_state or self.args.finish):
            self.states.drop_memories()
        self.environment["peak_memory_mb"] = peak_memory()
        _write_json(self.folder / ENV_FILE, self.environment)
        self.say(f"peak of main memory: {self.environment['peak_memory_mb']} MB")
        command = self.task.test_command(checkpoint, self.args)
        self.say(f"done: {self.folder / 'REPORT.md'}; test again with: {command}")


def open_run(args: Namespace, argv: Sequence[str] | None = None) -> Run:
    """A new run in a folder of its own, or an old one to go on with (`--resume` a folder).

    `args` come from the flags `argv`, by default the command line's.
    """
    return Run(*open_folder(args, argv))


def _write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
