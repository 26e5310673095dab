"""Locks between processes that die with their holder: `flock` on a file of the folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.errors import UserError


class FolderLock:
    """One process at a time in `folder`, which is made where it does not exist.

    Raises `UserError`, which names `flag`, where another process holds it. The kernel lets go of
    the lock when its holder ends, however it ends: a stale lock does not exist.
    """

    def __init__(self, folder: Path, flag: str = "--run_dir"):
        self.folder = folder
        self.made_folders = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            self._file = _lock_or_none(folder / ".lock")
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be locked for this run ({error.strerror or error}); "
                f"name another folder with {flag}"
            ) from error
        if self._file is None:
            raise UserError(
                f"{folder}: in use by another run ({_holder(folder / '.lock')}); "
                f"wait for it or name another folder with {flag}"
            )

    def release(self, keep_folder: bool) -> None:
        """Let go; without `keep_folder` folders that were made for the lock alone go too."""
        if not keep_folder:
            (self.folder / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # somebody put a file there
                for place in self.made_folders:
                    place.rmdir()
        self._file.close()


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock on `path` (made where missing) inside the block; waits for other holders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock_or_none(path: Path) -> IO | None:
    """The open and locked file, or None where another process holds its lock."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+")  # noqa: SIM115 - it stays open as long as the lock is held
        except FileNotFoundError:
            continue  # a holder that gave up removed the folder between the two lines
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        # The holder before may have removed the file between our opening and locking it.
        if path.exists() and os.stat(path).st_ino == os.fstat(file.fileno()).st_ino:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            return file
        file.close()


def _holder(path: Path) -> str:
    try:
        return path.read_text().strip() or "unknown process"
    except OSError:
        return "unknown process"
