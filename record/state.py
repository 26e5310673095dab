"""The state of a run between two rounds: a kill loses what was trained since the last one at most.

A round is committed by one small file, checkpoints/state_N.pth, which names the file of each
client's memory. It is written when all of those are on the disk, so a state that can be read is
complete; the last two states stay, should the newest be damaged. When the run has
ended they may go, but for the newest without its clients: it says that there is nothing to do.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import BoundedSemaphore
from typing import NamedTuple

import torch

from options import KEPT_STATES
from record.rounds import RoundMatrices
from utils.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint
from utils.errors import UserError
from utils.memory import main_memory
from utils.schema import (
    any_number,
    anything,
    entries,
    mapping,
    nothing_or,
    record,
    sequence,
    tensor,
    text,
    whole,
)
from utils.signals import held
from utils.tensors import to_host
from utils.workers import Pool, result_of

MEMORY_SHARE = 0.25  # of a GPU's free memory, or of the machine's, that "auto" gives to states
WAITING_STATES = 2  # that many may wait for the disk before the trainers wait for it too


class StoredFile(NamedTuple):
    """A client's file by name, and the SHA-256 (hex) that it was saved with."""

    name: str
    digest: str


class ClientStore:
    """The states of all clients, in `folder` and, as `placement` says, in memory.

    placement: "device" keeps them where training left them, "host" in main memory, "disk" only in
    their files. One thread writes; a failure to write is raised by the next call. What is
    remembered while `saving` is off goes to the disk with the next `flush`, unless that is its only
    place.
    """

    def __init__(self, folder: Path, placement: str):
        self.folder = folder
        self.placement = placement
        self.files: dict[int, StoredFile] = {}
        self._memory: dict[int, dict] = {}
        self.saving = True
        self._unsaved: dict[int, int] = {}  # client -> the round of what it remembers
        self._writes: dict[int, Future] = {}
        self._uncommitted: set[str] = set()
        self._free_places = BoundedSemaphore(WAITING_STATES)
        self._writer = Pool(1, "client-store")

    def remember(self, client: int, round: int, state: dict) -> None:
        """Keep `state` (tensors and plain types) of after `round`; it must not change any more."""
        for write in list(self._writes.values()):
            if write.done():
                result_of(write)
        if self.placement != "disk":
            self._memory[client] = state
        if self.saving or self.placement == "disk":
            self._unsaved.pop(client, None)
            self._submit(self._write, client, round, state)
            return
        self._unsaved[client] = round
        if self.placement == "host":
            self._submit(self._move, client, state)

    def _submit(self, work: Callable, client: int, *arguments) -> None:
        with held():
            self._free_places.acquire()
        self._writes[client] = self._writer.submit(self._then_free, work, client, *arguments)

    def recall(self, client: int) -> dict | None:
        """What was last remembered of the client, or None; not to be changed in place."""
        if client in self._writes:
            result_of(self._writes[client])
        if client in self._memory:
            return self._memory[client]
        if client not in self.files:
            return None
        name, digest = self.files[client]
        state = load_checkpoint(self.folder / name, digest, MEMORY)["memory"]
        if self.placement != "disk":
            self._memory[client] = state
        return state

    def flush(self) -> dict[int, StoredFile]:
        """Wait until everything is on the disk; each client's newest file."""
        for client, round in self._unsaved.items():
            self._submit(self._write, client, round, self.recall(client))
        self._unsaved.clear()
        for write in self._writes.values():
            result_of(write)
        self._writes.clear()
        return dict(sorted(self.files.items()))

    def adopt(self, files: Mapping[int, Sequence[str]]) -> None:
        """Go on from `files`, as `flush` returned them; `UserError` where one is damaged."""
        stored = {client: StoredFile(*file) for client, file in files.items()}
        for name, digest in stored.values():
            verify_checkpoint(self.folder / name, digest)
        self.files = stored
        self._memory.clear()
        self._unsaved.clear()

    def commit(self, kept: Iterable[str]) -> None:
        """A round is final: remove every file whose name is not among `kept`."""
        kept = set(kept)
        self._uncommitted.clear()
        for path in self.folder.glob("client_*.pth"):
            if path.name not in kept:
                path.unlink()

    def close(self) -> None:
        """Finish the file in hand, forget those that wait, remove those of no committed round."""
        self._writer.shutdown(cancel_futures=True)
        for name in self._uncommitted:
            (self.folder / name).unlink(missing_ok=True)

    def _then_free(self, work: Callable, *arguments) -> None:
        try:
            work(*arguments)
        finally:
            self._free_places.release()

    def _move(self, client: int, state: dict) -> None:
        self._memory[client] = to_host(state)

    def _write(self, client: int, round: int, state: dict) -> None:
        state = to_host(state)
        name = f"client_{client}_{round:06d}.pth"
        before = self.files.get(client)
        self._uncommitted.add(name)
        digest = save_checkpoint(
            self.folder / name, {"client": client, "round": round, "memory": state}
        )
        self.files[client] = StoredFile(name, digest)
        if before is not None and before.name in self._uncommitted - {name}:
            self._uncommitted.remove(before.name)  # of a round that no state is of
            (self.folder / before.name).unlink(missing_ok=True)
        if self.placement == "host":
            self._memory[client] = state


def choose_placement(
    placement: str, state_bytes: int, devices: Sequence[torch.device], reserved: int = 0
) -> str:
    """`placement`, with "auto" settled by what fits: the device, else the host, else the disk.

    reserved: bytes of each device that training itself will need.
    """
    if placement != "auto":
        return placement
    if all(device.type == "cuda" for device in devices):
        free = min(torch.cuda.mem_get_info(device)[0] for device in devices)
        if state_bytes / len(devices) < min(MEMORY_SHARE * free, free - reserved):
            return "device"
    return "host" if state_bytes < MEMORY_SHARE * main_memory() else "disk"


class Progress(NamedTuple):
    """Where a run stands between two rounds: global weights (on the first device), what the server
    shares beside them in the next round (named tensors, on the CPU), the next round."""

    weights: dict[str, torch.Tensor]
    shared: dict[str, torch.Tensor]
    next_round: int


class RunState(NamedTuple):
    """A run between two rounds, but for what its clients remember.

    server: what the server remembers. history: the rows of metrics.csv. matrices: those of
    matrices.csv. identity: fingerprints of the data by name. flags: those that decide what is
    computed.
    """

    progress: Progress
    server: dict
    history: list[dict]
    matrices: list[RoundMatrices]
    identity: dict[str, str]
    flags: dict


class StateFiles:
    """The states of the last `kept` rounds in `folder`, and the clients' files of each in
    `store`."""

    def __init__(self, folder: Path, store: ClientStore, kept: int = KEPT_STATES):
        self.folder = folder
        self.kept = kept
        self.store = store
        self.has_memories = True  # False once a state without its clients was restored
        self._client_files: list[set[str]] = []  # of each state that is kept, oldest first

    def paths(self) -> list[Path]:
        """States of finished rounds, the newest first."""
        return sorted(self.folder.glob("state_*.pth"), reverse=True)

    def restore(self, say: Callable[[str], None], go_back: int = 0) -> RunState | None:
        """The newest state that is whole, its clients' memories in the store; None without any.

        The last `go_back` states are removed first. A damaged one is passed over for the one before
        it, and `say` hears so. Raises `UserError` where there are states and all are damaged, or
        none would be left.
        """
        if go_back:
            self._forget(go_back)
        paths = self.paths()
        for path in paths:
            try:
                content = load_checkpoint(path, check=check_state)
                state = _unpack(content)
                self.has_memories = content["clients"] is not None
                self.store.adopt(content["clients"] or {})
            except UserError as error:
                say(f"{error}; going back to the round before")
                continue
            older = paths[paths.index(path) + 1 :][: self.kept - 1]
            self._client_files = [*reversed([_files_of(place) for place in older])]
            self._client_files.append({file.name for file in self.store.files.values()})
            return state
        if paths:
            raise UserError(f"{self.folder}: no undamaged state left; start the run anew")
        return None

    def _forget(self, rounds: int) -> None:
        paths = self.paths()
        if rounds >= len(paths):
            raise UserError(
                f"--go_back {rounds}: {self.folder} has states of {len(paths)} rounds "
                "(--keep_rounds), one of which must stay"
            )
        for path in paths[:rounds]:
            path.unlink()

    def save(self, state: RunState) -> None:
        """Commit a round: once this returns, the round outlives whatever happens."""
        files = self.store.flush()
        path = self.folder / f"state_{state.progress.next_round:06d}.pth"
        save_checkpoint(path, _pack(state) | {"clients": {k: tuple(v) for k, v in files.items()}})
        for old in self.paths()[self.kept :]:
            old.unlink()
        self._client_files.append({file.name for file in files.values()})
        self._client_files = self._client_files[-self.kept :]
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


def _files_of(path: Path) -> set[str]:
    """The names of the clients' files that an older state needs; none where it is damaged."""
    try:
        return {name for name, _ in (load_checkpoint(path)["clients"] or {}).values()}
    except UserError:
        return set()


def round_bytes(model_bytes: int, remembered_copies: int) -> int:
    """The size of one round's state and of its clients' files: the global model, and the copies of
    it that clients and server remember."""
    return model_bytes * (1 + remembered_copies)


def stored_bytes(folder: Path) -> int:
    """What the states in `folder` (a run's checkpoints/) and their clients' files take up now."""
    files = [*folder.glob("state_*.pth"), *folder.glob("clients/client_*.pth")]
    return sum(path.stat().st_size for path in files)


def _pack(state: RunState) -> dict:
    weights, shared, next_round = state.progress
    return {
        "weights": to_host(weights),
        "shared": shared,
        "server": state.server,
        "next_round": next_round,
        "history": state.history,
        "matrices": [tuple(matrices) for matrices in state.matrices],
        "identity": state.identity,
        "flags": state.flags,
    }


def _unpack(content: dict) -> RunState:
    if "shared" not in content:
        content = _translated(content)
    return RunState(
        Progress(content["weights"], content["shared"], content["next_round"]),
        content["server"],
        content["history"],
        [RoundMatrices(*matrices) for matrices in content["matrices"]],
        content["identity"],
        content["flags"],
    )


def _translated(content: dict) -> dict:
    """A state of version 0.1, which knew FedIRM's matrix and the two means by name."""
    log_rows_and_present = content["matrix"]
    names = ("relation_log_rows", "relation_present")
    shared = dict(zip(names, log_rows_and_present, strict=True)) if log_rows_and_present else {}
    means = [
        (round, {name: mean for name, mean in sources.items() if mean is not None})
        for round, labeled, unlabeled in content["matrices"]
        for sources in [{"labeled_mean": labeled, "unlabeled_mean": unlabeled}]
    ]
    return content | {"shared": shared, "server": {}, "matrices": means}


def _plain(value: object, place: str) -> None:
    """A check: what JSON has, lists of it and None."""
    if isinstance(value, (list, tuple)):
        sequence(_plain, 0, 10**6)(value, place)
    elif isinstance(value, str):
        text(100_000)(value, place)
    elif value is not None and not isinstance(value, bool):
        any_number(value, place)


ROUND = whole(0, 10**7)
NAMED_TENSORS = mapping(text(200), tensor(), largest=10_000)
PER_CLASS = sequence(sequence(any_number, 1, 10_000), 1, 10_000)  # a matrix, row by row
COMMON = {
    # Without a single weight a run would go on from random ones.
    "weights": mapping(text(200), tensor(), largest=10_000, fewest=1),
    "next_round": ROUND,
    "history": sequence(mapping(text(100), _plain, largest=1000), 0, 10**7),
    "identity": mapping(text(100), text(1000), largest=100),
    "flags": mapping(text(100), _plain, largest=1000),
    "clients": nothing_or(mapping(ROUND, sequence(text(200), 2, 2), largest=10**6)),
}
STATE = record(
    COMMON
    | {
        "shared": NAMED_TENSORS,
        "server": mapping(text(100), anything, largest=100),
        "matrices": sequence(entries(ROUND, mapping(text(100), PER_CLASS, largest=100)), 0, 10**7),
    }
)
OLD_STATE = record(
    COMMON
    | {
        "matrix": nothing_or(entries(tensor(shape=(None, None)), tensor(shape=(None,)))),
        "matrices": sequence(
            entries(ROUND, nothing_or(PER_CLASS), nothing_or(PER_CLASS)), 0, 10**7
        ),
    }
)
MEMORY = record(
    {"client": ROUND, "round": ROUND, "memory": mapping(text(100), anything, 100, fewest=1)}
)


def identity_of(folder: Path) -> dict[str, str]:
    """The fingerprints of the data that the run in `folder` began with; {} where no state says."""
    for path in sorted((folder / "checkpoints").glob("state_*.pth"), reverse=True):
        try:
            return load_checkpoint(path, check=check_state)["identity"]
        except UserError:
            continue
    return {}


def check_state(content: object, place: str) -> None:
    """`Mismatch` unless a file holds a state of this version, or of 0.1."""
    (STATE if "shared" in content else OLD_STATE)(content, place)
