"""A federation of real processes on this machine: SuperLink, gateway and a SuperNode per site.

Each site gets a folder with its own images and CSV alone, and its node key. TLS and node
authentication are on; the sites reach the gateway only.

python -m deploy.loopback DIR --flags "--preset demo --num_users 2 --num_labeled 1"
"""

import argparse
import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dataloaders.federated import deal_clients, load_tables
from dataloaders.image_files import resolve_images
from dataloaders.phantom.embedded import place_embedded_data
from dataloaders.table import ImageTable
from deploy.credentials import make_credentials, make_node_key
from deploy.offline import offline_environment
from federation import clients_taking_part
from options import args_parser, needs_embedded_data
from utils.errors import UserError, run_command
from utils.files import write_text
from utils.table_files import to_csv

REPOSITORY = Path(__file__).resolve().parents[1]
OPERATOR_ADDRESS = "127.0.0.1"  # the SuperLink's: this machine alone
OUTSIDE_ADDRESS = "127.0.0.2"  # the gateway's: stands for the world outside
SECONDS_TO_START = 120.0
SECONDS_TO_END = 10.0
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def main() -> int:
    """Deal the data as the simulation would, start everything, end everything at Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m deploy.loopback", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder for everything")
    parser.add_argument("--flags", default="--preset demo", help="flags of train_main.py")
    options = parser.parse_args()
    args = args_parser(shlex.split(options.flags))
    if args.task != "classification":
        raise UserError(f"--flags: a federation of images alone, --task {args.task} is none")
    if needs_embedded_data(args):
        place_embedded_data(args, print)
    table = load_tables(args)["train"]
    dealt = deal_clients(args, table)
    clients = clients_taking_part(args, dealt)
    with LoopbackFederation(options.folder) as federation:
        for client in clients:
            share = table.select(dealt.clients[client])
            federation.add_site(client, client in dealt.labelled, share, args.root_path)
            federation.register(client)
            federation.start_site(client)
        print(
            f"the sites are up. Start a run with:\n  FLWR_HOME={federation.home('server')}/flwr "
            f"flwr run {REPOSITORY} loopback --stream --run-config 'flags=\"{options.flags} "
            f"--root_path {args.root_path.resolve()} "
            f"--csv_file_test {args.csv_file_test.resolve()} --sites {federation.roles} "
            f"--num_users {len(clients)} --num_labeled {len(dealt.labelled)} "
            "--run_dir DIR\"'\n"
            "Ctrl-C ends them."
        )
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


class LoopbackFederation:
    """SuperLink, gateway and sites as processes; a context manager that ends them all.

    `folder` is new: credentials/, server/ and site_N/ come to lie there, with a log of each
    process. Of the server's interface only what the gateway passes on is open at
    `outside`; the operator's is at `operator`, on this machine alone.
    """

    def __init__(self, folder: Path):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: not empty; name a new folder")
        self.folder = folder.resolve()
        self.credentials = self.folder / "credentials"
        self.operator = f"{OPERATOR_ADDRESS}:{free_port(OPERATOR_ADDRESS)}"
        self.outside = f"{OUTSIDE_ADDRESS}:{free_port(OUTSIDE_ADDRESS)}"
        self.processes: dict[str, subprocess.Popen] = {}
        self.sites: dict[int, dict[str, object]] = {}
        self.registered: list[int] = []
        self.roles = self.folder / "sites.csv"  # the operator's list, for --sites

    def __enter__(self) -> "LoopbackFederation":
        make_credentials(self.credentials, (OPERATOR_ADDRESS, OUTSIDE_ADDRESS), num_sites=0)
        self.start_server()
        return self

    def __exit__(self, *error) -> None:
        for name in reversed(list(self.processes)):
            self.end(name)

    # ---- the server

    def start_server(self) -> None:
        """Start the SuperLink and the gateway, and tell the operator's `flwr` where they are."""
        ca, server = self.credentials / "ca.pem", self.credentials / "server"
        host, _, port = self.operator.rpartition(":")
        self.start(
            "superlink",
            ["flower-superlink", "--host", host, "--port", port, "--database", "state.db"]
            + ["--ssl-ca-certfile", str(ca), "--ssl-certfile", f"{server}.pem"]
            + ["--ssl-keyfile", f"{server}.key", "--enable-supernode-auth"]
            + ["--disable-runtime-dependency-installation"],
            self.folder / "server",
        )
        self.start(
            "gateway",
            [sys.executable, "-m", "deploy.gateway", "--listen", self.outside]
            + ["--superlink", self.operator, "--credentials", str(self.credentials)],
            self.folder / "server",
            PYTHONPATH=str(REPOSITORY),
        )
        write_text(
            self.home("server") / "flwr" / "config.toml",
            f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\n'
            f'address = "{self.operator}"\nroot-certificates = "{ca}"\n',
        )
        wait_for_port(self.operator, self.processes["superlink"])
        wait_for_port(self.outside, self.processes["gateway"])

    def flwr(self, *words: str) -> subprocess.CompletedProcess:
        """The operator's command `flwr WORDS`, finished."""
        return subprocess.run(
            ["flwr", *words],
            env=self.environment("server"),
            cwd=self.folder / "server",
            capture_output=True,
            text=True,
            check=False,
        )

    def start_run(self, flags: str) -> str:
        """Start a run on the flags of train_main.py; its id."""
        config = f"flags={json.dumps(flags)}"
        words = ("run", str(REPOSITORY), "loopback", "--run-config", config, "--format", "json")
        answer = self.flwr(*words)
        with contextlib.suppress(ValueError, KeyError):
            return str(json.loads(answer.stdout[answer.stdout.index("{") :])["run-id"])
        raise UserError(f"flwr run: {answer.stdout}{answer.stderr}")

    # ---- the sites

    def add_site(self, client: int, labeled: bool, share: ImageTable, images: Path) -> None:
        """Make a site's folder: its own images, its own CSV (labels only where `labeled`), its
        node key."""
        place = self.folder / f"site_{client}"
        for source in resolve_images(share, images):
            target = place / "images" / source.relative_to(images)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        header = ("ImageID", *(share.class_names if labeled else ()))
        classes = range(len(header) - 1)
        chosen = [[str(int(label == column)) for column in classes] for label in share.labels]
        rows = [[name, *cells] for name, cells in zip(share.names, chosen, strict=True)]
        write_text(place / "images.csv", to_csv(header, rows, exact=True))
        make_node_key(place / "node")
        self.sites[client] = {
            "partition-id": client,
            "labeled": labeled,
            "csv": str(place / "images.csv"),
            "images": str(place / "images"),
            "memory": str(place / "memory"),
        }

    def register(self, client: int) -> None:
        """Let a site's node key in, as the operator does when a hospital joins."""
        key = self.folder / f"site_{client}" / "node.pub"
        answer = self.flwr(
            "supernode", "register", str(key), "loopback", "--name", f"site-{client}"
        )
        if answer.returncode:
            raise UserError(f"flwr supernode register: {answer.stdout}{answer.stderr}")
        self.registered.append(client)
        rows = [
            [str(site), str(int(self.sites[site]["labeled"])), f"site_{site}/node.pub"]
            for site in self.registered
        ]
        write_text(self.roles, to_csv(("client", "labeled", "key"), rows, exact=True))

    def start_site(self, client: int) -> None:
        """Start a site's SuperNode. It knows the gateway, the CA, its own key and its own data."""
        config = " ".join(f"{key}={json.dumps(value)}" for key, value in self.sites[client].items())
        place = self.folder / f"site_{client}"
        self.start(
            f"site_{client}",
            ["flower-supernode", "--superlink", self.outside, "--node-config", config]
            + ["--root-certificates", str(self.credentials / "ca.pem")]
            + ["--auth-supernode-private-key", str(place / "node.key")]
            + ["--host", OPERATOR_ADDRESS, "--port", str(free_port(OPERATOR_ADDRESS))],
            place,
        )

    # ---- processes

    def start(self, name: str, command: Sequence[str], place: Path, **variables: str) -> None:
        """Start a process in a group of its own; what it says goes to `place`/NAME.log."""
        place.mkdir(parents=True, exist_ok=True)
        with open(place / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=place,
                env=self.environment(place.name) | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a process and all that it started; by force where asking is not enough."""
        process = self.processes.pop(name)
        for attempt in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, attempt)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_END)

    def home(self, place: str) -> Path:
        """The home folder of the processes of the server or of one site."""
        home = self.folder / place / "home"
        home.mkdir(parents=True, exist_ok=True)
        return home

    def environment(self, place: str) -> dict[str, str]:
        """The variables for the processes of the server or of one site."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {
            **os.environ,
            **offline_environment(self.home(place)),
            "PATH": path,
        }


def _end_with_parent() -> None:
    """Let the kernel kill the process when this one is killed: nobody else would end it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port(address: str) -> int:
    """A TCP port that nobody listens on at `address`."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def wait_for_port(address: str, process: subprocess.Popen) -> None:
    """Wait until `process` listens at `address` (HOST:PORT); `UserError` where it does not."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.2)
    raise UserError(f"{shlex.join(process.args)}: does not listen at {address}; see its log")


if __name__ == "__main__":
    run_command(main)
