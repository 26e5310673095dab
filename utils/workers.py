"""Processes and threads for work side by side, and how they end."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from utils.errors import UserError
from utils.files import TEMPORARY_SUFFIX
from utils.signals import checkpoint, held

# While a worker converts one file the next one already waits in its pipe.
FILES_IN_HAND = 2
# The longest that a signal waits for the main thread, where that waits for another.
SECONDS_OF_DEAFNESS = 0.1
# zlib's level 1: a third of the default's time for 8% more bytes.
PNG_COMPRESSION = 1
# Options of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 32 * 2**20


class Task(NamedTuple):
    """One file to convert: `source` is read, `name` is the PNG's file name."""

    name: str
    source: str


class Outcome(NamedTuple):
    """What became of a task.

    rejected: the reason in one line, or "" where the picture was written. fatal: why the picture
    could not be written (a full disk), or "". record: what the converter returned beside the
    picture. size: of the PNG, in bytes. seconds: from opening the source to the finished PNG.
    """

    task: Task
    rejected: str = ""
    fatal: str = ""
    record: tuple[str, ...] = ()
    size: int = 0
    seconds: float = 0.0


# source file -> (uint8 picture (H, W) or (H, W, 3), record); a ValueError rejects the file.
Converter = Callable[[str], tuple[np.ndarray, tuple[str, ...]]]


class WorkerPool:
    """`workers` processes that turn tasks into PNG files of `folder`.

    `convert` is sent to the processes, so it must be a function of a module or a partial of one.
    Each worker has a pipe of its own: when one is killed its pipe closes at once and the file it
    had in hand is known, which a shared queue would not tell.
    """

    def __init__(self, convert: Converter, folder: Path, workers: int):
        context = multiprocessing.get_context("spawn")
        self._workers = [_Worker(context, convert, folder) for _ in range(workers)]

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.stop()

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """The outcomes of `tasks`, in the order in which they are finished.

        Raises `UserError` as soon as a worker dies, naming its file, or a picture cannot be
        written.
        """
        remaining = iter(tasks)
        for _ in range(FILES_IN_HAND):
            for worker in self._workers:
                worker.give(remaining)
        while busy := {worker.pipe: worker for worker in self._workers if worker.in_hand}:
            for pipe in wait(list(busy)):
                outcome = busy[pipe].take()
                if outcome.fatal:
                    raise UserError(outcome.fatal)
                busy[pipe].give(remaining)
                yield outcome


class _Worker:
    """One process, the parent's end of its pipe and the tasks that it has not answered yet."""

    def __init__(self, context: multiprocessing.context.SpawnContext, convert, folder: Path):
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(other_end, convert, folder), daemon=True
        )
        self.process.start()
        other_end.close()
        self.in_hand: deque[Task] = deque()

    def give(self, tasks: Iterator[Task]) -> None:
        task = next(tasks, None)
        if task is None:
            return
        self.in_hand.append(task)
        # A worker that died is reported, with the file that killed it, by take().
        with suppress(OSError):
            self.pipe.send(tuple(task))

    def take(self) -> Outcome:
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(timeout=5)
            raise UserError(self._obituary()) from None
        return Outcome(self.in_hand.popleft(), **answer)

    def stop(self) -> None:
        self.pipe.close()
        if self.in_hand:
            self.process.kill()
        self.process.join()

    def _obituary(self) -> str:
        code = self.process.exitcode
        cause = f"with exit code {code}"
        if code is not None and code < 0:
            cause = f"by signal {-code}{' (out of memory?)' if code == -signal.SIGKILL else ''}"
        return (
            f"the worker that had {self.in_hand[0].source} in hand was ended {cause}; the same "
            "command goes on where it stopped: if it stops here again, move that file away"
        )


def _serve(pipe: Connection, convert: Converter, folder: Path) -> None:
    """A worker's life: it ends when the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _keep_freed_memory()
    with suppress(EOFError, OSError):
        while True:
            pipe.send(_convert_one(*pipe.recv(), convert, folder))


def _keep_freed_memory() -> None:
    """Let glibc keep up to `KEPT_BYTES` of what a picture needed for the next one, instead of
    giving it back and having the system clear new pages: a fifth of the whole time."""
    with suppress(OSError, AttributeError, TypeError):
        c_library = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            c_library.mallopt(option, KEPT_BYTES)


def _convert_one(name: str, source: str, convert: Converter, folder: Path) -> dict[str, object]:
    """The fields of an `Outcome` that are not as by default."""
    start = time.perf_counter()
    try:
        picture, record = convert(source)
    except ValueError as error:
        return {"rejected": str(error)}
    try:
        size = write_png(picture, folder / name)
    except OSError as error:
        return {"fatal": f"{folder / name} cannot be written: {error.strerror}"}
    return {"record": record, "size": size, "seconds": time.perf_counter() - start}


def write_png(picture: np.ndarray, path: Path) -> int:
    """Write whole or not at all, and return the size in bytes.

    Unlike `utils.files.atomic_write` this does not wait for the disk, which would cost more than
    the conversion itself; a picture lost in a power cut shows in its size when resuming.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    Image.fromarray(picture).save(temporary, "PNG", compress_level=PNG_COMPRESSION)
    size = os.stat(temporary).st_size
    os.replace(temporary, path)
    return size


def available_cores() -> int:
    """The cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool(ThreadPoolExecutor):
    """Threads of the main one's that a signal finds in no other place than between two results."""

    def submit(self, function: Callable, /, *arguments, **named) -> Future:
        """As ThreadPoolExecutor's."""
        with held():
            return super().submit(function, *arguments, **named)

    def map(self, function: Callable, *iterables: Iterable) -> Iterator:
        """function(*items) for the items side by side; results in the items' order."""
        futures = deque(self.submit(function, *items) for items in zip(*iterables, strict=False))
        while futures:
            yield result_of(futures.popleft())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As ThreadPoolExecutor's."""
        with held():
            super().shutdown(wait, cancel_futures=cancel_futures)


def result_of(future: Future) -> Any:
    """`future.result()`; a signal is obeyed at once, but leaves no lock taken."""
    with held():
        if not future.done():
            _wait_until_done([future])
        checkpoint()  # before an error of the thread's, which may have stopped for the same reason
        return future.result()


def _wait_until_done(futures: Sequence[Future]) -> None:
    # `wait_for` alone would wait for ever for one that was cancelled before a thread took it.
    while waiting := [future for future in futures if not future.done()]:
        wait_for(waiting, SECONDS_OF_DEAFNESS)
        checkpoint()


@contextmanager
def cancelling_pool(workers: int) -> Iterator[Pool]:
    """A pool of threads; at the end of the block it finishes what it has begun and no more.

    A plain `with ThreadPoolExecutor()` would first do everything that waits, so that Ctrl-C in the
    middle of 25,000 images is obeyed minutes later.
    """
    pool = Pool(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


# The lasting thread of each owner, for as long as the owner lives.
_threads: WeakKeyDictionary[Any, Pool] = WeakKeyDictionary()


def on_each(function: Callable[[Any], object], owners: Sequence) -> list:
    """function(owner) for each, side by side, each in the owner's thread as `shared_out` has it."""
    if len(owners) == 1 and owners[0] not in _threads:
        return [function(owners[0])]
    with held():
        begun = []
        try:
            for owner in owners:
                begun.append(_thread_of(owner).submit(function, owner))
            _wait_until_done(begun)
            return [work.result() for work in begun]
        except BaseException:
            _end_threads(owners)
            raise


def shared_out(
    function: Callable[[Any, Any], object],
    owners: Sequence,
    items: Iterable,
    stop: Callable[[], None] = lambda: None,
) -> Iterator:
    """function(owner, item) for each item, on the next free owner; results in the items' order.

    Several owners work each in a thread of its own, the same one for as long as the owner lives,
    whatever it is given to do; a single one works in the caller's thread. Where an item fails, or
    the caller closes the generator, `stop` is called, what has begun is waited for, and nothing
    more is begun.
    """
    if len(owners) == 1 and owners[0] not in _threads:
        for item in items:
            yield function(owners[0], item)
        return
    waiting = deque((Future(), item) for item in items)
    results = deque(result for result, _ in waiting)  # neither holds what was yielded
    stopped = threading.Event()

    def work(owner: Any) -> None:
        while not stopped.is_set():
            try:
                result, item = waiting.popleft()
            except IndexError:  # nothing is left to do
                return
            try:
                result.set_result(function(owner, item))
            except BaseException as error:
                result.set_exception(error)
                return

    with held():  # also while the caller has a result in hand: he and the threads share a log
        working = []
        try:
            for owner in owners:
                working.append(_thread_of(owner).submit(work, owner))
            while results:
                yield result_of(results.popleft())
        except BaseException:
            stopped.set()
            stop()
            _end_threads(owners)
            raise
        finally:
            _wait_until_done(working)


def _thread_of(owner: Any) -> Pool:
    if owner not in _threads:
        _threads[owner] = Pool(1, "network")
    return _threads[owner]


def _end_threads(owners: Sequence) -> None:
    """Let the owners' threads end with what they are at."""
    for owner in owners:
        if (thread := _threads.pop(owner, None)) is not None:
            thread.shutdown(wait=False, cancel_futures=True)
