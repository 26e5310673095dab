"""The client of a federation on Flower: the trainers of the plain loop, called by messages.

`client_app` is what a SuperNode runs for one hospital. The hospital names its data in its node's
own configuration; what the server sends never contains a path.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

from deploy.hospital import Memory, Site, own_site
from deploy.messages import pack_update, unpack_flags, unpack_tensors, unpack_weights
from federation import build_client, build_networks
from networks.devices import choose_devices, set_deterministic
from networks.models import Network
from record.guard import find_bad_number

OpenSite = Callable[[Context, ConfigRecord], Site]


def build_client_app(open_site: OpenSite, mods: Sequence[Mod] = ()) -> ClientApp:
    """The ClientApp of whoever `open_site` finds in a node's context and the server's task, its
    messages passed through `mods`."""
    app = ClientApp(mods=list(mods))

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        site = open_site(context, message.content["task"])
        record = ConfigRecord(
            {"client": site.client, "labeled": site.labeled, "num_samples": len(site.indices)}
        )
        return Message(RecordDict({"site": record}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = open_site(context, message.content["task"])
        return Message(train_site(site, message.content), reply_to=message)

    return app


def train_site(site: Site, content: RecordDict) -> RecordDict:
    """One round of local training as `content` asks for it; the answer's content."""
    task, args = content["task"], site.args
    set_deterministic(bool(args.deterministic))
    device = choose_devices(site.gpu, print, default="0")[0]
    net = network_on(device, site.dataset.class_names, task["flags"])
    memory = Memory(site.memory, task["experiment"], site.client)
    trainer = build_client(args, site.dataset, site.indices, site.client, site.labeled)
    trainer.stop = site.stop
    recalled = memory.recall(task["memory_round"])
    if recalled is not None:
        trainer.load_state_dict(recalled)
    weights = unpack_weights(content["weights"], net.state_dict())
    update = trainer.train(net, weights, task["round"], unpack_tensors(content["shared"]))
    if (fault := find_bad_number(update, trainer.state_dict())) is None:
        memory.remember(task["round"], trainer.state_dict(), task["memory_round"])
    else:
        # The server will turn the answer away; which images to look at is nobody's but the site's.
        names = ", ".join(site.dataset.names[index] for index in update.suspects)
        print(f"client {site.client}, round {task['round']}: {fault}; look at the images {names}")
    return pack_update(update, site.client, -1 if recalled is None else task["memory_round"])


@lru_cache(maxsize=1)
def network_on(device: torch.device, class_names: tuple[str, ...], flags: str) -> Network:
    """The network on which this process trains its clients, one after the other."""
    return build_networks(unpack_flags(flags), class_names, [device])[0]


def keep_errors_here(message: Message, context: Context, handle: ClientAppCallable) -> Message:
    """A site's errors stay in its own log: Flower sends an exception's text to the server, and ours
    name files, lines of a CSV and images."""
    try:
        return handle(message, context)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: the site's own log has more") from error


client_app = build_client_app(own_site, [keep_errors_here])
