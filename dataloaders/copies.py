"""Images on their way from the host to a GPU, ahead of the batch that needs them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch

from utils.threads import cancelling_pool

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # batches


def copied_ahead(
    pixels: torch.Tensor, chunks: Sequence[torch.Tensor], device: torch.device
) -> Iterator[torch.Tensor]:
    """`pixels[chunk]` on a CUDA `device` for each chunk, pixels and chunks being on the CPU.

    A thread gathers the next chunks in pinned memory and a stream of their own copies them, while
    the caller works on the one before.
    """
    copying = torch.cuda.Stream(device)

    def load(chunk: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        pinned = torch.empty((len(chunk), *pixels.shape[1:]), dtype=pixels.dtype, pin_memory=True)
        torch.index_select(pixels, 0, chunk, out=pinned)
        with torch.cuda.stream(copying):
            return pinned.to(device, non_blocking=True), copying.record_event()

    for images, copied in computed_ahead(load, chunks, AHEAD):
        using = torch.cuda.current_stream(device)
        using.wait_event(copied)
        images.record_stream(using)
        yield images


def computed_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`map(function, items)`, up to `ahead` results computed by one thread before they are asked
    for."""
    items = iter(items)
    with cancelling_pool(1) as pool:
        waiting = deque(pool.submit(function, item) for item in islice(items, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result
