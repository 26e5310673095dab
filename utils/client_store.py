"""What clients remember between rounds: one checksummed file each, written while others train.

The trainers never change a remembered state in place (they copy it at the start of a round and
replace it at the end), so a state can be written by a thread without being copied first.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from typing import NamedTuple

import torch

from utils.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint
from utils.nested import to_host

PLACEMENTS = ("auto", "device", "host", "disk")
MEMORY_SHARE = 0.25  # of a GPU's free memory, or of the machine's, that "auto" gives to states
WAITING_STATES = 2  # that many may wait for the disk before the trainers wait for it too


class StoredFile(NamedTuple):
    """A client's file by name, and the SHA-256 (hex) that it was saved with."""

    name: str
    digest: str


class ClientStore:
    """The states of all clients, in `folder` and, as `placement` says, in memory.

    placement: "device" keeps them where training left them, "host" in main memory, "disk" only in
    their files. One thread writes; a failure to write is raised by the next call.
    """

    def __init__(self, folder: Path, placement: str):
        self.folder = folder
        self.placement = placement
        self.files: dict[int, StoredFile] = {}
        self._memory: dict[int, dict] = {}
        self._writes: dict[int, Future] = {}
        self._uncommitted: set[str] = set()
        self._free_places = BoundedSemaphore(WAITING_STATES)
        self._writer = ThreadPoolExecutor(1, "client-store")

    def remember(self, client: int, round: int, state: dict) -> None:
        """Keep `state` (tensors and plain types) of after `round`; it must not change any more."""
        for write in list(self._writes.values()):
            if write.done():
                write.result()
        if self.placement != "disk":
            self._memory[client] = state
        self._free_places.acquire()
        self._writes[client] = self._writer.submit(self._write, client, round, state)

    def recall(self, client: int) -> dict | None:
        """What was last remembered of the client, or None; not to be changed in place."""
        if client in self._writes:
            self._writes[client].result()
        if client in self._memory:
            return self._memory[client]
        if client not in self.files:
            return None
        name, digest = self.files[client]
        state = load_checkpoint(self.folder / name, digest)["memory"]
        if self.placement != "disk":
            self._memory[client] = state
        return state

    def flush(self) -> dict[int, StoredFile]:
        """Wait until everything is on the disk; each client's newest file."""
        for write in self._writes.values():
            write.result()
        self._writes.clear()
        return dict(sorted(self.files.items()))

    def adopt(self, files: Mapping[int, Sequence[str]]) -> None:
        """Go on from `files`, as `flush` returned them; `UserError` where one is damaged."""
        stored = {client: StoredFile(*file) for client, file in files.items()}
        for name, digest in stored.values():
            verify_checkpoint(self.folder / name, digest)
        self.files = stored
        self._memory.clear()

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

    def _write(self, client: int, round: int, state: dict) -> None:
        try:
            state = to_host(state)
            name = f"client_{client}_{round:06d}.pth"
            self._uncommitted.add(name)
            digest = save_checkpoint(
                self.folder / name, {"client": client, "round": round, "memory": state}
            )
            self.files[client] = StoredFile(name, digest)
            if self.placement == "host":
                self._memory[client] = state
        finally:
            self._free_places.release()


def choose_placement(placement: str, state_bytes: int, devices: Sequence[torch.device]) -> str:
    """`placement`, with "auto" settled by what fits: the device, else the host, else the disk."""
    if placement != "auto":
        return placement
    if all(device.type == "cuda" for device in devices):
        free = min(torch.cuda.mem_get_info(device)[0] for device in devices)
        if state_bytes / len(devices) < MEMORY_SHARE * free:
            return "device"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return "host" if state_bytes < MEMORY_SHARE * memory else "disk"
