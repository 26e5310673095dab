"""Sites in this process, behind the interface that a ServerApp has of them."""

import uuid
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from deploy.client import build_client_app
from deploy.server import serve
from deploy.simulation import HashableFlags, simulated_site
from deploy.sites import SiteRegister
from federation import prepare
from options import args_parser
from record.run import open_run

Tamper = Callable[[int, int, Message], Message | None]


class LocalGrid:
    """Two nodes, 100 and 101, for the clients 0 and 1. `tamper(client, round, answer)` may change
    an answer of a round of training, replace it, or lose it (None). `asked` lists the rounds
    whose memory each task asked for."""

    def __init__(self, args: Namespace, memory: Path, tamper: Tamper):
        self.nodes = {100: 0, 101: 1}
        flags = HashableFlags(**vars(args))
        open_site = partial(simulated_site, flags, (0, 1), memory, "cpu")
        self.app = build_client_app(open_site)
        self.tamper = tamper
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
        self.asked: list[tuple[int, int, int]] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> list[Message]:
        answers = [self.answer(message) for message in messages]
        return [answer for answer in answers if answer is not None]

    def config_of(self, node: int) -> dict:
        """What the node's own configuration says."""
        return {"partition-id": self.nodes[node]}

    def answer(self, message: Message) -> Message | None:
        message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        node = message.metadata.dst_node_id
        context = Context(0, node, self.config_of(node), RecordDict(), {})
        try:
            answer = self.app(message, context)
        except Exception as error:
            return failure(message, str(error))
        task = message.content["task"]
        if "round" not in task:
            return answer
        client, round = self.nodes[node], task["round"]
        self.asked.append((client, round, task["memory_round"]))
        return self.tamper(client, round, answer)


def failure(message: Message, reason: str) -> Message:
    """What a SuperLink answers for a node that fails."""
    return Message(Error(code=5, reason=reason), reply_to=message)


def run_rounds(
    folder: Path, flags: list[str], tamper: Tamper, arrange: Callable[[LocalGrid], None]
) -> LocalGrid:
    """Train on `flags` in `folder` (or go on there); `arrange` may change the grid before."""
    torch.set_num_threads(1)
    place = ["--resume", str(folder)] if folder.exists() else ["--run_dir", str(folder)]
    flags = [*flags, "--engine", "flower", *place]
    run = open_run(args_parser(flags), flags)
    try:
        devices, data = prepare(run.args, run.say)
        grid = LocalGrid(run.args, folder, tamper)
        arrange(grid)
        sites = SiteRegister(grid, run.args, data.class_names, "clients", run.say)
        sites.wait_for(2)
        serve(run, grid, data, devices, sites)
    finally:
        run.close()
    return grid
