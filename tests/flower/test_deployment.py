"""SuperLink, gateway and two hospitals as real processes on loopback, over TLS."""

import contextlib
import http.client
import json
import shlex
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
import torch

from dataloaders.federated import deal_clients, load_tables
from deploy.credentials import make_node_key
from deploy.loopback import LoopbackFederation, free_port
from options import args_parser
from tests.flower.conftest import Result, assert_same
from utils.errors import UserError
from utils.files import FolderLock

SECONDS = 400


@pytest.fixture(scope="module")
def federation(flags, tmp_path_factory):
    """Both hospitals are up: 0 with labels, 1 with images alone."""
    args = args_parser(flags)
    table = load_tables(args)["train"]
    dealt = deal_clients(args, table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with LoopbackFederation(tmp_path_factory.mktemp("federation") / "place") as federation:
            for client in (0, 1):
                share = table.select(dealt.clients[client])
                federation.add_site(client, client in dealt.labelled, share, args.root_path)
                federation.sites[client] |= {"gpu": "cpu", "relation-min-samples": 1}
                federation.register(client)
                federation.start_site(client)
            yield federation


def server_flags(flags: list[str], folder: Path, *more: str) -> str:
    """The run's flags: no training images, for those the server does not have."""
    place = flags.index("--csv_file_train")
    patience = ("--client_timeout", str(SECONDS))
    few = ("--relation_min_samples", "1")  # as the loop, for the same bits
    return shlex.join(
        [*flags[:place], *flags[place + 2 :], "--run_dir", str(folder), *patience, *few, *more]
    )


def wait_for(text: str, log: Path, times: int = 1) -> str:
    """The file `log`, once `text` stands in it `times` times."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        said = log.read_text() if log.exists() else ""
        if said.count(text) >= times:
            return said
        time.sleep(0.5)
    raise AssertionError(f"{text!r} does not come: {said[-2000:]}")


def test_each_site_holds_its_own_images_alone(federation):
    names = [
        {path.name for path in (federation.folder / f"site_{client}" / "images").iterdir()}
        for client in (0, 1)
    ]
    assert all(names) and not names[0] & names[1]
    assert (federation.folder / "site_1" / "images.csv").read_text().startswith("ImageID\n")


def test_same_bits_numbers_and_lines_as_the_loop(federation, flags, loop, tmp_path):
    roles = ("--sites", str(federation.roles))  # by the keys that the sites registered
    federation.start_run(server_flags(flags, tmp_path / "run", *roles))
    said = wait_for("done:", tmp_path / "run" / "log.txt")
    assert "images with labels, as it says" in said and "every node is believed" not in said
    assert_same(loop, Result(tmp_path / "run"))
    for client, copies in ((0, 2), (1, 3)):
        memories = federation.folder / f"site_{client}" / "memory" / "run"
        newest = torch.load(memories / f"client_{client}_000003.pth", weights_only=True)
        assert len(newest["memory"]) == copies - (client == 0)


def ask(federation, path: str, address: str | None = None) -> int:
    """The status of a POST at the gateway, or at another address, by one who trusts the CA."""
    trust = ssl.create_default_context(cafile=str(federation.credentials / "ca.pem"))
    connection = http.client.HTTPSConnection(
        address or federation.outside, context=trust, timeout=20
    )
    with contextlib.closing(connection):
        connection.request("POST", path, body=b"", headers={"Content-Type": "application/protobuf"})
        return connection.getresponse().status


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/register-node",
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet%2f..%2fcontrol/start-run",
        "/v1/fleet//../control/start-run",
        "/V1/CONTROL/start-run",
        "//v1/control/start-run",
        "/docs",
        "/",
    ],
)
def test_only_the_sites_interface_is_open_outside(federation, path):
    assert ask(federation, path) == 403


def test_the_operator_reaches_what_is_closed_outside(federation):
    """So the answers above come from the gateway, not from a server that is down."""
    assert ask(federation, "/v1/control/list-runs", federation.operator) == 200
    assert ask(federation, "/v1/fleet/pull-messages") == 401


def test_the_servers_own_port_is_not_open_outside(federation):
    host, port = federation.outside.split(":")[0], int(federation.operator.split(":")[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port), 5)


def test_plain_connection_gets_no_answer(federation):
    host, _, port = federation.outside.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.request("POST", "/v1/fleet/pull-messages", body=b"")
        connection.getresponse()


def test_operators_commands_fail_outside(federation):
    config = federation.home("server") / "flwr" / "config.toml"
    inside = config.read_text()
    config.write_text(inside.replace(federation.operator, federation.outside))
    try:
        key = federation.folder / "stranger"
        make_node_key(key)
        answers = [
            federation.flwr("supernode", "register", f"{key}.pub", "loopback"),
            federation.flwr("list", "loopback"),
        ]
    finally:
        config.write_text(inside)
    assert all(answer.returncode for answer in answers)


@pytest.mark.parametrize("key", [("--auth-supernode-private-key", "node.key"), ()])
def test_unknown_node_is_refused(federation, key):
    """A stranger with a key that nobody has registered, and one who would register itself."""
    place = federation.folder / "stranger"
    if not place.exists():
        make_node_key(place / "node")
    trust = ("--root-certificates", str(federation.credentials / "ca.pem"))
    port = ("--host", "127.0.0.1", "--port", str(free_port("127.0.0.1")))
    share = ("--node-config", "partition-id=1")
    command = ["flower-supernode", "--superlink", federation.outside, *trust, *key, *share, *port]
    federation.start("stranger", command, place)
    try:
        status = federation.processes["stranger"].wait(60)
    except subprocess.TimeoutExpired:
        status = None
    federation.end("stranger")
    assert status != 0
    assert "SuperNode ID" not in (place / "stranger.log").read_text()


def test_killed_site_is_left_out_and_comes_back_and_a_restarted_server_goes_on(
    federation, flags, tmp_path
):
    folder, log = tmp_path / "run", tmp_path / "run" / "log.txt"
    heard = federation.folder / "site_1" / "site_1.log"
    tasks = heard.read_text().count("Receiving: train")
    federation.start_run(server_flags(flags, folder, "--rounds", "6", "--min_clients", "1"))
    wait_for("Receiving: train", heard, times=tasks + 1)
    federation.end("site_1", signal.SIGKILL)
    assert "client 1: failed" in wait_for("left out of round 1", log)
    federation.start_site(1)
    wait_for("Semi-Supervised Client: 1", log, times=2)
    before = len(Result(folder).metrics())

    federation.end("superlink", signal.SIGKILL)
    # "Try again": a SuperNode that gets any other error gives up, and no restart brings it back.
    assert ask(federation, "/v1/fleet/pull-messages") == 502
    federation.end("gateway", signal.SIGKILL)
    federation.start_server()
    wait_until_free(folder)
    federation.start_run(f"--resume {folder} --client_timeout {SECONDS}")
    wait_for("done:", log)
    rows = Result(folder).metrics()
    assert [row["round"] for row in rows] == [str(round) for round in range(6)]
    assert [row["clients_unlabeled"] for row in rows[:2]] == ["0", "0"]
    assert [row["clients_unlabeled"] for row in rows[before:]] == ["1"] * (6 - before)
    assert all(value.isfinite().all() for value in Result(folder).state(6)["weights"].values())
    assert json.loads((folder / "args.json").read_text())["engine"] == "sites"


def wait_until_free(folder: Path) -> None:
    """Until the run's process has ended: it outlives its SuperLink by some seconds."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return FolderLock(folder).release(keep_folder=True)
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
