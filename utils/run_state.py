"""The state of a run between two rounds: written so that a kill loses the current round at most.

A round is committed by one small file, checkpoints/state_N.pth, which names the file of each
client's memory. It is written when all of those are on the disk, so a state that can be read is
complete; the states of the last two rounds stay, should the newest be damaged. When the run has
ended they may go, but for the newest without its clients: it says that there is nothing to do.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from confuse_matrix import RelationMatrix
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.client_store import ClientStore
from utils.errors import UserError
from utils.rounds import RoundMatrices

KEPT_STATES = 2


class Progress(NamedTuple):
    """Where a run stands between two rounds: global weights (on the first device), the mean
    relation matrix for the next round (None before anyone measured one), the next round."""

    weights: dict[str, torch.Tensor]
    matrix: RelationMatrix | None
    next_round: int


class RunState(NamedTuple):
    """A run between two rounds, but for what its clients remember.

    history: the rows of metrics.csv. matrices: those of matrices.csv. identity: fingerprints of
    the data by name. flags: those that decide what is computed.
    """

    progress: Progress
    history: list[dict]
    matrices: list[RoundMatrices]
    identity: dict[str, str]
    flags: dict


class StateFiles:
    """The states in `folder`, and the clients' files of each in `store`."""

    def __init__(self, folder: Path, store: ClientStore):
        self.folder = folder
        self.store = store
        self.has_memories = True  # False once a state without its clients was restored
        self._client_files: list[set[str]] = []  # of each state that is kept, oldest first

    def paths(self) -> list[Path]:
        """States of finished rounds, the newest first."""
        return sorted(self.folder.glob("state_*.pth"), reverse=True)

    def restore(self, say: Callable[[str], None]) -> RunState | None:
        """The newest state that is whole, its clients' memories in the store; None without any.

        A damaged one is passed over for the one before it, and `say` hears so. Raises `UserError`
        where there are states and all are damaged.
        """
        paths = self.paths()
        for path in paths:
            try:
                content = load_checkpoint(path)
                state = _unpack(path, content)
                self.has_memories = content["clients"] is not None
                self.store.adopt(content["clients"] or {})
            except UserError as error:
                say(f"{error}; going back to the round before")
                continue
            self._client_files = [{file.name for file in self.store.files.values()}]
            return state
        if paths:
            raise UserError(f"{self.folder}: no undamaged state left; start the run anew")
        return None

    def save(self, state: RunState) -> None:
        """Commit a round: once this returns, the round outlives whatever happens."""
        files = self.store.flush()
        path = self.folder / f"state_{state.progress.next_round:06d}.pth"
        save_checkpoint(path, _pack(state) | {"clients": {k: tuple(v) for k, v in files.items()}})
        for old in self.paths()[KEPT_STATES:]:
            old.unlink()
        self._client_files.append({file.name for file in files.values()})
        self._client_files = self._client_files[-KEPT_STATES:]
        self.store.commit(set().union(*self._client_files))

    def drop_memories(self) -> None:
        """The run has ended: keep its newest state alone, without what its clients remember.

        Clients at sites of their own have no files here, and what they remember stays theirs.
        """
        newest, *older = self.paths()
        content = load_checkpoint(newest)
        if content["clients"] == {}:
            return
        save_checkpoint(newest, content | {"clients": None})
        for path in older:
            path.unlink()
        self.store.commit(())


def round_bytes(model_bytes: int, remembered_copies: Iterable[int]) -> int:
    """The size of one round's state and of its clients' files, each some copies of the model."""
    return model_bytes * (1 + sum(remembered_copies))


def stored_bytes(folder: Path) -> int:
    """What the states in `folder` (a run's checkpoints/) and their clients' files take up now."""
    files = [*folder.glob("state_*.pth"), *folder.glob("clients/client_*.pth")]
    return sum(path.stat().st_size for path in files)


def _pack(state: RunState) -> dict:
    weights, matrix, next_round = state.progress
    return {
        "weights": {name: value.detach().cpu() for name, value in weights.items()},
        "matrix": None if matrix is None else tuple(matrix.to("cpu")),
        "next_round": next_round,
        "history": state.history,
        "matrices": [tuple(matrices) for matrices in state.matrices],
        "identity": state.identity,
        "flags": state.flags,
    }


def _unpack(path: Path, content: dict) -> RunState:
    try:
        matrix = content["matrix"]
        return RunState(
            Progress(
                content["weights"],
                None if matrix is None else RelationMatrix(*matrix),
                content["next_round"],
            ),
            content["history"],
            [RoundMatrices(*matrices) for matrices in content["matrices"]],
            content["identity"],
            content["flags"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: written by another version of this program") from error
