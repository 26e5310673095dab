"""Ctrl-C and the signals that end a program, kept from coming where threads wait for each other.

A handler that raises does so between any two steps of the main thread: also in the middle of one
that takes another thread's lock, which then stays taken, and the program's end waits for that
thread for ever. Where threads meet (`held`) a signal is therefore noted, and raised at the next
place that is safe (`checkpoint`).
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# `timeout` and a closed terminal send theirs twice: one stop, not two.
SECONDS_OF_ONE_STOP = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_depth = 0  # of `held` blocks in the main thread
_noted: BaseException | None = None
_stopped_at = -float("inf")


def end_quietly() -> None:
    """Until `ending_on_signals` Ctrl-C ends the program with a line and status 130: while it loads
    its packages there is nothing else to be said."""

    def stop(number: int, _frame) -> None:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + number)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """In this block Ctrl-C raises KeyboardInterrupt, and SIGTERM and SIGHUP SystemExit with the
    status that a shell reports (128 + the signal's number); for the main thread.

    What is ignored stays ignored, as `nohup` wants it.
    """
    global _noted, _stopped_at
    _noted, _stopped_at = None, -float("inf")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    told, sys.unraisablehook = sys.unraisablehook, _note_what_was_ignored
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
        checkpoint()
    finally:
        sys.unraisablehook = told
        for number, handler in before.items():
            signal.signal(number, handler)


def _note_what_was_ignored(unraisable) -> None:
    """Python ignores what is raised while it removes an object; a stop is meant for the program."""
    global _noted
    if isinstance(unraisable.exc_value, (KeyboardInterrupt, SystemExit)):
        _noted = unraisable.exc_value
    else:
        sys.__unraisablehook__(unraisable)


def _stop(number: int, _frame) -> None:
    global _noted, _stopped_at
    now = time.monotonic()
    again = now - _stopped_at < SECONDS_OF_ONE_STOP
    _stopped_at = now
    if again:
        return
    stop = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
    if _depth and _noted is None:
        _noted = stop
        return
    raise stop  # also where a noted one was not obeyed in time: somebody insists


@contextmanager
def held() -> Iterator[None]:
    """A signal in this block is raised at its end, or at a `checkpoint` within.

    In other threads than the main one, where no signal comes, this does nothing.
    """
    global _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    if not _depth:
        checkpoint()


def is_noted() -> bool:
    """Whether a signal waits to be raised: other threads may end what they are at."""
    return _noted is not None


def checkpoint() -> None:
    """Raise what was noted, where this is the main thread: it holds nothing here."""
    global _noted
    if _noted is not None and threading.current_thread() is threading.main_thread():
        stop, _noted = _noted, None
        raise stop
