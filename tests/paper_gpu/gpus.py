"""`paper_gpus`: a machine with GPUs on paper, for the length of a block."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import torch

from tests.paper_gpu.streams import FIRST, Bench, Event, Stream, set_up
from tests.paper_gpu.tensors import PaperGenerator, PaperMode, forget_memory
from utils.tensors import copy_stream

MEMORY = 80 * 2**30
NAME = "Paper H100"


@contextmanager
def paper_gpus(count: int = 1, free: int = 70 * 2**30) -> Iterator[Bench]:
    """`count` strict GPUs with `free` bytes each: see tests/paper_gpu/tensors.py."""
    with ExitStack() as stack:
        bench = stack.enter_context(set_up(count))
        forget_memory()
        copy_stream.cache_clear()
        stack.callback(copy_stream.cache_clear)  # its streams are this bench's
        for name, stand_in in _cuda(bench, free).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(torch, "Generator", PaperGenerator))
        stack.enter_context(
            mock.patch.object(
                torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None
            )
        )
        stack.enter_context(mock.patch.object(ThreadPoolExecutor, "submit", _submit_in_mode))
        stack.enter_context(PaperMode())
        yield bench


def _cuda(bench: Bench, free: int) -> dict[str, object]:
    """What torch.cuda answers."""

    def device_of(device) -> torch.device:
        return FIRST if device is None else torch.device(device)

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "_lazy_init": lambda: None,
        "device_count": lambda: bench.count,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_arch_list": lambda: ["sm_90"],
        "get_device_properties": lambda device=None: SimpleNamespace(
            name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=MEMORY
        ),
        "mem_get_info": lambda device=None: (free, MEMORY),
        "is_bf16_supported": lambda *arguments, **named: True,
        "Stream": Stream,
        "Event": Event,
        "stream": bench.using,
        "current_stream": lambda device=None: bench.current(device_of(device)),
        "synchronize": lambda device=None: bench.wait("synchronize"),
    }


_submit = ThreadPoolExecutor.submit


def _submit_in_mode(self, function, /, *arguments, **named):
    """A dispatch mode is the thread's own: others enter one for each piece of work."""

    def inside(*arguments, **named):
        with PaperMode():
            return function(*arguments, **named)

    return _submit(self, inside, *arguments, **named)
