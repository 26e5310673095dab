"""What passes between a run and its clients in a round: memories lent, updates accepted or not."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tqdm import tqdm

from dataloaders.dataset import ImageDataset
from local_update import ClientUpdate, LocalUpdate
from networks.models import Network
from predict.inference import gives_finite_output
from record.guard import ClientGuard
from record.held_updates import HeldUpdates
from record.state import ClientStore
from server import Participant, Server
from utils.errors import UserError
from utils.logger import RunLog
from utils.tables import log_lines
from utils.tensors import net_device


class Exchange:
    """The clients' side of a run, on any engine and from several threads.

    store: where their memories wait. model_bytes: of one client's weights.
    """

    def __init__(self, store: ClientStore, guard: ClientGuard, log: RunLog, model_bytes: int):
        self.store, self.guard, self.log = store, guard, log
        self.model_bytes = model_bytes
        self.held = HeldUpdates()
        self.bar: tqdm | None = None  # of the round under way
        self.lock = threading.Lock()

    def start_round(
        self, active: Sequence[Participant], skipped_before: Sequence[int], title: str | None
    ) -> None:
        """A round of the clients `active` begins; `skipped_before` counts those turned away in each
        round past, `title` stands before the progress bar, None for no bar."""
        self.guard.start_round(len(active), skipped_before)
        self.held.start_round(len(active), self.model_bytes)
        self.bar = tqdm(
            total=len(active),
            desc=title,
            unit="client",
            leave=False,
            disable=None if title else True,
        )

    def start_client(self, client: Participant) -> None:
        """Log who trains; the two lines stay together where several devices train."""
        with self.lock:
            self.log.record(log_lines.client_line(client.client, client.labeled))
            self.log.record(log_lines.CLIENT_RULE)

    @contextmanager
    def memory_of(self, client: LocalUpdate) -> Iterator[None]:
        """Lend the client its memory while it trains; outside it holds none."""
        blank = client.state_dict()
        try:
            client.load_state_dict(self.store.recall(client.client) or blank)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"client {client.client}: what it remembers is not what --method has its clients "
                f"remember ({type(error).__name__}: {error}); start a new run"
            ) from error
        try:
            yield
        finally:
            client.load_state_dict(blank)

    def accept(
        self,
        client: LocalUpdate,
        round: int,
        update: ClientUpdate,
        received: dict[str, torch.Tensor],
    ) -> bool:
        """Whether a client's update may be averaged; then its memory goes into the store."""
        state = client.state_dict()
        if not self.guard.accept(client, round, update, received, state):
            return False
        self.store.remember(client.client, round, state)
        self.held.add(client.client, update, received)
        return True

    def done(self, update: ClientUpdate) -> None:
        """A client's update is in the average: move the bar on."""
        shown = {"loss": f"{update.stats['loss']:.3f}"}
        if "reliable_share" in update.stats:
            shown["reliable"] = f"{update.stats['reliable_share']:.2f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def finish_round(
        self,
        round: int,
        weights: dict[str, torch.Tensor],
        net: Network,
        test: ImageDataset,
        server: Server,
        say: Callable[[str], None],
    ) -> int:
        """Say whose update lay apart from the others'; how many clients were turned away.

        Raises `UserError` where the averaged `weights` give no finite output in `net`; it names who
        spoiled them.
        """
        self.close()
        for line in self.guard.outliers.lines():
            say(f"round {round}: {line}")

        def is_sound(candidate: dict[str, torch.Tensor]) -> bool:
            net.load_state_dict(candidate)
            return gives_finite_output(net, test)

        if not is_sound(weights):
            self.held.refuse_round(server, round, net_device(net), is_sound)
        return len(self.guard.skipped)

    def close(self) -> None:
        """Take the progress bar away."""
        if self.bar is not None:
            self.bar.close()
