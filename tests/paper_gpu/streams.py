"""Streams and events of a GPU on paper: who has waited for whom, as vector clocks."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

FIRST = torch.device("cuda", 0)
Moment = tuple[int, int]  # a stream by id, and a time of its own clock


class Event:
    """What a stream had done, and had waited for, when it was recorded."""

    def __init__(self, *_, **__):
        self.clock: dict[int, int] = {}

    def record(self, stream: "Stream | None" = None) -> None:
        self.clock = dict((stream or bench().current(FIRST)).clock)

    def wait(self, stream: "Stream | None" = None) -> None:
        (stream or bench().current(FIRST)).wait_event(self)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        bench().wait("event.synchronize")


class Stream:
    """Work in order. `clock` has for each stream the last moment that this one comes after."""

    def __init__(self, device: torch.device | str | int | None = None, **_):
        self.device = FIRST if device is None else torch.device(device)
        if self.device.index is None:
            self.device = FIRST
        self.now = 0
        self.clock = {id(self): 0}
        bench().streams.append(self)  # as long as the bench stands, no other has this id

    def tick(self) -> Moment:
        """The moment of the next piece of work."""
        self.now += 1
        self.clock[id(self)] = self.now
        return id(self), self.now

    def comes_after(self, moment: Moment) -> bool:
        stream, time = moment
        return stream == id(self) or self.clock.get(stream, 0) >= time

    def wait_event(self, event: Event) -> None:
        for stream, time in event.clock.items():
            self.clock[stream] = max(self.clock.get(stream, 0), time)

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        bench().wait("stream.synchronize")

    def query(self) -> bool:
        return True


class Bench:
    """What all paper GPUs of a test share: streams, waits of the host, launches.

    waits: how often the host waited, by what for. launches: kernels by name.
    """

    def __init__(self, count: int):
        self.count = count
        self.streams: list[Stream] = []
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._default: dict[torch.device, Stream] = {}
        self._local = threading.local()
        self._lock = threading.Lock()

    @property
    def last_place(self) -> torch.device:
        """The device that this thread used last."""
        return getattr(self._local, "place", FIRST)

    @last_place.setter
    def last_place(self, place: torch.device) -> None:
        self._local.place = place

    def current(self, device: torch.device) -> Stream:
        """This thread's stream of a device."""
        own = self._local.__dict__.setdefault("streams", {}).get(device)
        if own is not None:
            return own
        with self._lock:
            if device not in self._default:
                self._default[device] = Stream(device)
            return self._default[device]

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        """torch.cuda.stream."""
        streams = self._local.__dict__.setdefault("streams", {})
        before = streams.get(stream.device)
        streams[stream.device] = stream
        try:
            yield
        finally:
            streams[stream.device] = before

    def wait(self, what: str) -> None:
        """The host waits for a GPU."""
        with self._lock:
            self.waits[what] += 1

    def launch(self, kernel: str) -> None:
        """A kernel is launched."""
        with self._lock:
            self.launches[kernel] += 1


_bench: Bench | None = None


def bench() -> Bench:
    """That of the test that runs."""
    if _bench is None:
        raise RuntimeError("no paper GPU here: see paper_gpus")
    return _bench


@contextmanager
def set_up(count: int) -> Iterator[Bench]:
    """A bench for the block."""
    global _bench
    before, _bench = _bench, Bench(count)
    try:
        yield _bench
    finally:
        _bench = before
