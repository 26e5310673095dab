"""Files that are either whole or absent, whatever happens while they are written."""

import errno
import glob
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.errors import UserError

try:
    import fcntl
except ImportError:
    raise SystemExit(
        "error: this program locks its folders with fcntl, which Linux and macOS have; on Windows "
        "run it in WSL"
    ) from None


class InUseError(UserError):
    """Another process holds the folder's lock."""


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
            raise InUseError(
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
        with suppress_unsupported():  # then two may do the same work, and the last one's stays
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


TEMPORARY_SUFFIX = ".partial"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITABLE, _THERE = "make it writable", "see that its disk or share is there"
_DESCRIPTORS = "let the program open more files (ulimit -n)"
NOT_WRITABLE = {
    errno.EROFS: _WRITABLE,
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.EIO: _THERE,
    errno.ESTALE: _THERE,
    errno.ENODEV: _THERE,
    errno.ENOTCONN: _THERE,
    errno.EMFILE: _DESCRIPTORS,
    errno.ENFILE: _DESCRIPTORS,
}


@contextmanager
def atomic_write(
    path: str | os.PathLike, mode: str = "wb", needed: int | None = None
) -> Iterator[IO]:
    """Open a temporary file that becomes `path` when the block ends without an exception.

    The bytes are on the disk before the name changes, so a kill or a power cut leaves either the
    old file or the new one. On an exception the temporary file is removed and `path` is untouched.
    What the disk refuses is a `UserError` as in `disk_errors_as_user_error`.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    newline = None if "b" in mode else ""
    with disk_errors_as_user_error(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX
        )
        try:
            with os.fdopen(descriptor, mode, encoding=encoding, newline=newline) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with suppress_unsupported():  # of a share it has the share's own rights
                os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _fsync_folder(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with atomic_write(path, "w") as file:
        file.write(text)


class HashingFile:
    """A binary file to write to that keeps the SHA-256 of what passed through."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data) -> int:
        """Write bytes or a buffer; as `IO.write`."""
        self.digest.update(data)
        return self.file.write(data)


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sweep_temporary_files(folder: str | os.PathLike, name: str = "") -> int:
    """Remove what killed writers (of `name`, or of any file) left in `folder`; their number."""
    leftovers = list(Path(folder).glob(f".{glob.escape(name)}*{TEMPORARY_SUFFIX}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


@contextmanager
def disk_errors_as_user_error(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn what a disk refuses inside the block into one line: no space (with free and `needed`
    bytes), no right to write, a share that has gone."""
    try:
        yield
    except OSError as error:
        if error.errno in NOT_WRITABLE:
            raise UserError(
                f"{error.filename or path}: {error.strerror}; {NOT_WRITABLE[error.errno]}, then go "
                "on (a run: with --resume and its folder)"
            ) from error
        if error.errno not in NO_SPACE:
            raise
        wanted = "" if needed is None else f" and {megabytes(needed)} needed"
        raise UserError(
            f"{path}: {error.strerror}, {megabytes(free_bytes(path.parent))} free{wanted}; "
            "make room there, then go on (a run: with --resume and its folder)"
        ) from error


def free_bytes(folder: Path) -> int:
    """Free space of the file system that `folder` (or its nearest existing parent) lies on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.path.realpath(folder)).free


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below `folder`, 0 where there is none; others may write there."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # one that has just been removed
            total += path.stat().st_size if path.is_file() else 0
    return total


def megabytes(size: float) -> str:
    """A size in bytes for a message, as "12.3 MB"."""
    return f"{size / 1e6:,.1f} MB"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# What file systems answer that do not know a call: some network shares and user-space ones.
UNSUPPORTED = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EACCES,
    errno.EBADF,
    errno.ENOLCK,
)


@contextmanager
def suppress_unsupported() -> Iterator[None]:
    """Do without what the block asks for where the file system has no such thing."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _fsync_folder(folder: Path) -> None:
    """Have the new name on the disk. Where a file system cannot, it comes there when the system
    writes it: a power cut in those seconds leaves the file before."""
    with suppress_unsupported():
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
