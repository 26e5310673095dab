"""Strangers at the gateway, who have shown no key: slow, silent, many, endless."""

import contextlib
import http.client
import socket
import threading
import time

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deploy.credentials import make_credentials
from deploy.gateway import build_gateway, limited_protocol
from deploy.loopback import free_port

HOST = "127.0.0.1"
MOST, SECONDS, LARGEST = 40, 3.0, 100_000


@contextlib.contextmanager
def served(app, **options):
    """`app` on a free port of this machine."""
    port = free_port(HOST)
    server = uvicorn.Server(uvicorn.Config(app, HOST, port, log_level="critical", **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory) -> int:
    """The port of a gateway in front of something that says how many bytes it was sent."""
    place = tmp_path_factory.mktemp("credentials")
    make_credentials(place / "ca", [HOST], 0)

    async def count(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    behind = Starlette(routes=[Route("/v1/fleet/count", count, methods=["POST"])])
    with served(behind) as inside:
        app = build_gateway(f"http://{HOST}:{inside}", place / "ca" / "ca.pem", LARGEST, SECONDS)
        protocol = limited_protocol(MOST, SECONDS)
        with served(app, http=protocol, ws="none") as outside:
            yield outside


def ask(port: int, body: bytes) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/fleet/count", body=body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode().strip()


def begin_upload(port: int, size: int = 1000) -> socket.socket:
    """A question whose body never comes."""
    stranger = socket.create_connection((HOST, port), timeout=10)
    head = f"POST /v1/fleet/count HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    stranger.sendall(head.encode() + b"a few bytes")
    return stranger


def closed(stranger: socket.socket) -> bool:
    """Whether the other side has hung up."""
    try:
        return stranger.recv(1) == b""
    except ConnectionError:
        return True


def test_an_honest_question_passes(gateway):
    assert ask(gateway, b"x" * LARGEST) == (200, str(LARGEST))


def test_unfinished_uploads_neither_stall_the_others_nor_last(gateway):
    with contextlib.ExitStack() as strangers:
        waiting = [strangers.enter_context(begin_upload(gateway)) for _ in range(MOST - 5)]
        started = time.monotonic()
        assert ask(gateway, b"honest") == (200, "6")
        assert time.monotonic() - started < SECONDS
        answers = [stranger.recv(1000) for stranger in waiting]
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)


def test_an_address_has_so_many_connections_and_no_more(gateway):
    with contextlib.ExitStack() as strangers:
        for _ in range(MOST):
            strangers.enter_context(begin_upload(gateway))
        one_too_many = strangers.enter_context(begin_upload(gateway))
        assert closed(one_too_many)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # their places are free again
        with contextlib.suppress(ConnectionError):
            assert ask(gateway, b"honest") == (200, "6")
            return
        time.sleep(0.1)
    raise AssertionError("no place became free")


def test_who_asks_nothing_is_hung_up_on(gateway):
    for said in (b"", b"POST /v1/fleet/count HTTP/1.1\r\nHost:"):
        with socket.create_connection((HOST, gateway), timeout=10) as stranger:
            stranger.sendall(said)
            assert closed(stranger)


def test_what_never_ends_is_cut_off(gateway):
    assert ask(gateway, b"x" * (LARGEST + 1))[0] == 413
    with begin_upload(gateway, 10**12) as stranger:
        with contextlib.suppress(ConnectionError):
            stranger.sendall(b"x" * (2 * LARGEST))
        assert stranger.recv(1000).startswith(b"HTTP/1.1 413 ")
