"""The sites that a Flower server knows: who they are, who is there, who answered."""

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from deploy.messages import pack_flags, unpack_introduction
from deploy.roles import Role, plain_key
from server import Server
from utils.errors import UserError

Record = ArrayRecord | ConfigRecord
POLL_SECONDS = 1.0
ASK_AGAIN_SECONDS = 60.0  # how soon a node that could not say who it is, is asked once more


class RemoteSite:
    """A site as the server knows it, in the place of a trainer.

    Its memory stays at the site; the server remembers only after which round the site's answer
    was last counted, -1 for none, so that the site goes on from that round's memory.
    """

    remembered_copies = 0

    def __init__(self, node_id: int, client: int, labeled: bool, num_samples: int):
        self.node_id = node_id
        self.client = client
        self.labeled = labeled
        self.num_samples = num_samples
        self.memory_round = -1

    def said(self) -> dict:
        """What it said when it was first there."""
        names = ("client", "labeled", "num_samples")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict:
        """What a resumed run needs to know of the site."""
        return {"memory_round": self.memory_round, "said": self.said()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned; `UserError` where it was of a site that said
        something else of itself. (Before it was kept, any did.)"""
        before = state.get("said", self.said())
        if before != self.said():
            raise UserError(
                f"client {self.client}: it said {_in_words(before)} when the run began, and now "
                f"{_in_words(self.said())}; bring back what it was, or start a new run"
            )
        self.memory_round = state["memory_round"]


def _in_words(said: Mapping) -> str:
    return f"{said['num_samples']} images {'with' if said['labeled'] else 'without'} labels"


class SiteRegister:
    """Who is who at the end of `grid`. Every node is asked once for its client's number.

    experiment: the name under which sites keep their memory of this run. `say` hears of whoever
    is missing or odd. roles: the operator's list, by key; without it nodes are believed. volumes:
    how files became the server's test volumes, which a site compares with its own.
    """

    def __init__(
        self,
        grid: Grid,
        args: Namespace,
        class_names: Sequence[str],
        experiment: str,
        say: Callable[[str], None],
        roles: Mapping[bytes, Role] | None = None,
        volumes: Mapping | None = None,
    ):
        self.grid, self.args, self.say, self.roles = grid, args, say, roles
        self.task = {
            "flags": pack_flags(args),
            "class_names": list(class_names),
            "experiment": experiment,
            "volumes": json.dumps(volumes),
        }
        self.sites: dict[int, RemoteSite] = {}
        self.refused: dict[int, float] = {}

    def all(self) -> list[RemoteSite]:
        """Every site that ever said who it is, by client."""
        return [self.sites[client] for client in sorted(self.sites)]

    def message(
        self, node_id: int, kind: str, task: dict, records: Mapping[str, Record] | None = None
    ) -> Message:
        """A task for one node; it is void once the server has stopped waiting for the answer."""
        content = RecordDict({"task": ConfigRecord(self.task | task), **(records or {})})
        return Message(content, node_id, kind, ttl=self.args.client_timeout)

    def wait_for(self, count: int) -> None:
        """Wait until `count` sites said who they are, or until the time for it is over.

        Then `UserError` where they are fewer than `--min_clients`, which by default are all.
        """
        deadline = time.monotonic() + self.args.client_timeout
        online = self.online()
        if len(online) < count:
            patience = f"for {self.args.client_timeout:g} s at most"
            self.say(f"{len(online)} of {count} clients are there; waiting for the rest {patience}")
        while len(online) < count and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            online = self.online()
        if len(online) >= count:
            return
        known = ", ".join(str(site.client) for site in online) or "none"
        found = f"{len(online)} of {count} clients are there ({known})"
        if len(online) < min(self.args.min_clients or count, count):
            raise UserError(
                f"{found}, --min_clients {self.args.min_clients}; bring the others and begin again"
            )
        self.say(f"{found}: beginning without the others")

    def ready_for(self, server: Server, round: int) -> list[RemoteSite]:
        """The sites that `server` has train in `round` and that are there, by client.

        Waits where they are fewer than `--min_clients`; `UserError` when that takes too long.
        """
        deadline = time.monotonic() + self.args.client_timeout
        while True:
            online = self.online()
            expected = server.active(self.all(), round)
            active = [site for site in expected if site in online]
            if active and len(active) >= self.needed(expected):
                break
            if time.monotonic() > deadline:
                raise UserError(
                    f"round {round}: {len(active)} of {len(expected)} clients are there, "
                    f"--min_clients {self.args.min_clients}; bring them back and go on"
                )
            time.sleep(POLL_SECONDS)
        for site in expected:
            if site not in active:
                self.say(f"client {site.client} is not there: left out of round {round}")
        return active

    def needed(self, expected: Sequence[RemoteSite]) -> int:
        """How many of the `expected` sites a round cannot do without."""
        return min(self.args.min_clients or len(expected), len(expected))

    def answers(
        self, sent: Mapping[RemoteSite, Message], replies: Iterable[Message], round: int
    ) -> list[tuple[RemoteSite, Message]]:
        """The sites that answered what was `sent`, in its order; the others are logged.

        Raises `UserError` where fewer answered than `--min_clients`.
        """
        by_question = {reply.metadata.reply_to_message_id: reply for reply in replies}
        answered = []
        for site, question in sent.items():
            reply = by_question.get(question.metadata.message_id)
            if reply is not None and not reply.has_error():
                answered.append((site, reply))
                continue
            self.say(f"client {site.client}: {_reason(reply)}: left out of round {round}")
        self.refuse_too_few(len(answered), list(sent), round)
        return answered

    def refuse_too_few(self, count: int, active: Sequence[RemoteSite], round: int) -> None:
        """`UserError` where only `count` of the sites that trained can be averaged."""
        if count < self.needed(active):
            raise UserError(
                f"round {round}: {count} of {len(active)} clients answered well, "
                f"--min_clients {self.args.min_clients}; mend them and go on"
            )

    def online(self) -> list[RemoteSite]:
        """The sites whose node is connected; nodes not known yet are asked who they are."""
        nodes = set(self.grid.get_node_ids())
        known = {site.node_id for site in self.sites.values()}
        now = time.monotonic()
        unknown = [
            node
            for node in sorted(nodes - known)
            if now - self.refused.get(node, -ASK_AGAIN_SECONDS) >= ASK_AGAIN_SECONDS
        ]
        if unknown:
            questions = {node: self.message(node, MessageType.QUERY, {}) for node in unknown}
            replies = self.grid.send_and_receive(
                questions.values(), timeout=self.args.client_timeout
            )
            answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
            for node, question in questions.items():
                self._introduce(node, answers.get(question.metadata.message_id), nodes)
        return [site for site in self.all() if site.node_id in nodes]

    def _introduce(self, node: int, reply: Message | None, nodes: set[int]) -> None:
        if reply is None or reply.has_error():
            self.refused[node] = time.monotonic()
            self.say(f"node {node} cannot take part: {_reason(reply)}")
            return
        try:
            answer = unpack_introduction(reply.content)
            if self.roles is not None and (fault := self._role_fault(node, answer)):
                raise ValueError(fault)
        except ValueError as error:
            self.refused[node] = time.monotonic()
            self.say(f"node {node} refused: {error}")
            return
        client = answer["client"]
        known = self.sites.get(client)
        if known is not None and known.node_id in nodes:
            self.refused[node] = time.monotonic()
            self.say(f"node {node} refused: client {client} is there already")
        elif known is not None and known.said() != answer:
            self.refused[node] = time.monotonic()
            self.say(f"node {node} refused: client {client} said something else of itself before")
        elif known is not None:
            known.node_id = node
        else:
            self.sites[client] = RemoteSite(node, **answer)
            self.say(f"client {client}: {_in_words(answer)}, as it says (node {node})")

    def _role_fault(self, node: int, answer: dict) -> str | None:
        """Why the operator's list does not let the node be what it says, or None."""
        key = next(
            (found.public_key for found in self.grid.get_nodes() if found.node_id == node), b""
        )
        try:
            role = self.roles.get(plain_key(key))
        except ValueError:
            role = None
        if role is None:
            return "its key is not in the list of --sites"
        return role.fault(**answer)


def _reason(reply: Message | None) -> str:
    """Why a node did not do its task, in one line."""
    if reply is None:
        return "no answer in time"
    lines = str(reply.error.reason).strip().splitlines() or ["no reason given"]
    return f"failed ({lines[-1][:300]})"
