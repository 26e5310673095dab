"""A round's updates, kept until the round is final: to find out who spoiled it."""

import copy
from collections.abc import Callable, Mapping

import torch

from local_update import ClientUpdate
from server import Server
from utils.errors import UserError

HELD_BYTES = 2**30  # some thirty models of DenseNet121; of larger rounds nothing is held


class HeldUpdates:
    """The updates of one round that went into its average, by client."""

    def __init__(self):
        self._updates: dict[int, ClientUpdate] = {}
        self._received: Mapping[str, torch.Tensor] = {}
        self._fits = True

    def start_round(self, active: int, model_bytes: int) -> None:
        """Let go of the round before; a round of `active` clients begins."""
        self._updates = {}
        self._fits = active * model_bytes <= HELD_BYTES

    def add(self, client: int, update: ClientUpdate, received: Mapping[str, torch.Tensor]) -> None:
        """An update that was accepted, of a client that began with the weights `received`."""
        if self._fits:
            self._updates[client] = update
            self._received = received

    def refuse_round(
        self,
        server: Server,
        round: int,
        device: torch.device,
        is_sound: Callable[[dict[str, torch.Tensor]], bool],
    ) -> None:
        """Raise `UserError` for a round whose average is not `is_sound`: it names the clients
        without whom it would be, each left out alone."""
        guilty = [
            client
            for client in self._updates
            if len(self._updates) > 1 and is_sound(self._without(client, server, round, device))
        ]
        if guilty:
            why = f"without client {' or '.join(map(str, guilty))} alone it would: look there"
        elif self._fits:
            why = "nor without any one client: look at the settings"
        else:
            why = "the round is too large to find out whose fault it is"
        raise UserError(
            f"round {round}: the averaged model gives no finite output, {why}; nothing of this "
            "round was kept, the state before it stays"
        )

    def _without(
        self, client: int, server: Server, round: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        others = iter([update for other, update in self._updates.items() if other != client])
        # A copy: a server may remember what it averages.
        return copy.deepcopy(server).average(
            others, self._received, round, device, lambda update: None
        )[0]
