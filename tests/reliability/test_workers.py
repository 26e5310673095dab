"""A program ends when it is told to, whatever its threads were at."""

import subprocess
import sys
import threading

import pytest

from tests.helpers import PROJECT
from utils import workers
from utils.workers import on_each, shared_out

# SIGTERM before the n-th instruction of the main thread, for one n after the other, until the call
# is through before the n-th comes. A lock that stays taken makes the call, or this program's end,
# wait for ever.
PROGRAM = """
import itertools, signal, sys
from utils.signals import ending_on_signals
from utils.workers import cancelling_pool, on_each, result_of, shared_out

class Owner: pass

def pooled():
    with cancelling_pool(2) as pool:
        list(pool.map(abs, range(3)))
        result_of(pool.submit(abs, 1))

def call(owners):
    {call}

def signalled_before(instruction):
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        frame.f_trace_opcodes = True
        seen += event == "opcode"
        if seen == instruction and event == "opcode":
            signal.raise_signal(signal.SIGTERM)
        return trace

    owners = [Owner(), Owner()]
    sys.settrace(trace)
    try:
        call(owners)
    finally:
        sys.settrace(None)
    return seen >= instruction

stopped = 0
for instruction in itertools.count(1, {step}):
    try:
        with ending_on_signals():
            reached = signalled_before(instruction)
        if not reached:
            break
        raise AssertionError(f"the signal before instruction {instruction} was lost")
    except SystemExit as stop:
        assert stop.code == 143
        stopped += 1
print(stopped)
"""
CALLS = {
    "shared_out": "list(shared_out(lambda owner, item: item, owners, range(3)))",
    "on_each": "on_each(lambda owner: None, owners)",
    "cancelling_pool": "pooled()",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_signal_at_any_instruction_ends_a_call_of_threads(call):
    program = PROGRAM.replace("{call}", CALLS[call]).replace("{step}", "7")
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 200


class Owner:
    """Something with a thread of its own."""


def test_work_that_no_thread_has_taken_yet_is_not_waited_for():
    """An owner's thread is late: its work is cancelled before it begins."""
    owners, late, failed = [Owner(), Owner()], threading.Event(), []
    on_each(lambda owner: None, owners)  # makes the threads
    workers._thread_of(owners[1]).submit(late.wait, 60)

    def fail(owner: Owner, item: int) -> None:
        raise ValueError("the first item")

    def call() -> None:
        with pytest.raises(ValueError, match="the first item"):
            list(shared_out(fail, owners, range(3)))
        failed.append(True)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(20)
    late.set()
    assert failed == [True]
