"""Threads that do not outlive the block that wanted their work."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def cancelling_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads; at the end of the block it finishes what it has begun and no more.

    A plain `with ThreadPoolExecutor()` would first do everything that waits, so that Ctrl-C in the
    middle of 25,000 images is obeyed minutes later.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
