"""The only door of a SuperLink that sites can reach: their own interface and nothing else.

Whoever comes here has shown no key yet: nobody holds more than some connections, sends slowly or
without end.

Flower's server answers nodes (/v1/fleet), the operator (/v1/control: register nodes, start runs,
no login) and its own programs (/v1/runtime) on one port. That port stays on the server's loopback
address; this proxy listens outside, over TLS, and passes /v1/fleet on.

python -m deploy.gateway --listen 0.0.0.0:9443 --superlink 127.0.0.1:8000 --credentials DIR
"""

import argparse
import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from utils.errors import UserError, run_command

OPEN_PREFIX = "/v1/fleet/"
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailers", "transfer-encoding", "upgrade", "host"}
SECONDS = 120.0
# A site has a few connections open and sends its weights in parts of some megabytes.
MOST_PER_ADDRESS = 32
MOST_IN_ALL = 1000
SECONDS_TO_ASK = 20.0  # from the connection to a whole header
SECONDS_BETWEEN_PARTS = 30.0
LARGEST_QUESTION = 512 * 2**20  # bytes


def main() -> int:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="python -m deploy.gateway", description=__doc__)
    parser.add_argument("--listen", required=True, help="ADDRESS:PORT for the sites")
    parser.add_argument("--superlink", default="127.0.0.1:8000", help="ADDRESS:PORT of SuperLink")
    parser.add_argument(
        "--credentials", type=Path, required=True, help="folder of ca.pem, server.pem, server.key"
    )
    args = parser.parse_args()
    host, _, port = args.listen.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--listen {args.listen}: give ADDRESS:PORT, as 0.0.0.0:9443")
    uvicorn.run(
        build_gateway(f"https://{args.superlink}", args.credentials / "ca.pem"),
        host=host,
        port=int(port),
        ssl_certfile=args.credentials / "server.pem",
        ssl_keyfile=args.credentials / "server.key",
        log_level="warning",
        http=limited_protocol(MOST_PER_ADDRESS, SECONDS_TO_ASK),
        limit_concurrency=MOST_IN_ALL,
        ws="none",
    )
    return 0


def limited_protocol(most_per_address: int, seconds_to_ask: float) -> type[H11Protocol]:
    """uvicorn's HTTP for strangers: an address has so many connections at most, and a connection
    that has not asked for anything whole in that time is closed."""
    connections: Counter[str] = Counter()

    class Limited(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.address = (transport.get_extra_info("peername") or ("unknown",))[0]
            connections[self.address] += 1
            self.patience = self.loop.call_later(seconds_to_ask, self.close_if_silent)
            if connections[self.address] > most_per_address:
                transport.abort()

        def close_if_silent(self) -> None:
            if self.cycle is None:
                self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self.patience.cancel()
            connections[self.address] -= 1
            if not connections[self.address]:
                del connections[self.address]
            super().connection_lost(exc)

    return Limited


class RefusedQuestion(Exception):  # noqa: N818
    """What a stranger sends is too slow or too much; status is what it is answered."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


async def bounded(
    parts: AsyncIterator[bytes], largest: int, seconds_between: float
) -> AsyncIterator[bytes]:
    """The parts of a question; `RefusedQuestion` where it is longer than `largest` bytes, or a
    part does not come in `seconds_between`."""
    total = 0
    while True:
        try:
            async with asyncio.timeout(seconds_between):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RefusedQuestion(408) from None
        total += len(part)
        if total > largest:
            raise RefusedQuestion(413)
        yield part


def build_gateway(
    superlink: str,
    ca: Path,
    largest: int = LARGEST_QUESTION,
    seconds_between: float = SECONDS_BETWEEN_PARTS,
) -> Starlette:
    """The proxy to the SuperLink at the URL `superlink`, whose certificate `ca` has signed.

    largest, seconds_between: as in `bounded`.
    """
    trust = ssl.create_default_context(cafile=str(ca))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict]:
        # Without a limit of httpx's own: its places would be taken by whoever uploads slowly.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        async with httpx.AsyncClient(
            verify=trust, timeout=SECONDS, trust_env=False, limits=limits
        ) as client:
            yield {"client": client}

    async def forward(request: Request) -> Response:
        path = request.url.path
        # The raw path too: %2e%2e and // must not mean one thing here and another behind.
        raw = request.scope["raw_path"].decode("latin-1")
        if raw != path or not path.startswith(OPEN_PREFIX) or ".." in path or "//" in path:
            return PlainTextResponse("closed\n", status_code=403)
        question = request.state.client.build_request(
            request.method,
            superlink + path,
            headers=[(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP],
            content=bounded(request.stream(), largest, seconds_between),
        )
        try:
            answer = await request.state.client.send(question, stream=True)
        except RefusedQuestion as refused:
            return PlainTextResponse(
                "too slow or too long\n", refused.status, {"connection": "close"}
            )
        except httpx.TransportError:
            # A SuperNode tries again after 502; after 500 it gives up for good.
            return PlainTextResponse("the SuperLink does not answer\n", status_code=502)
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, headers, background=_Close(answer)
        )

    every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
    return Starlette(routes=[Route("/{path:path}", forward, methods=every)], lifespan=lifespan)


class _Close:
    """What Starlette awaits after an answer: gives the connection back."""

    def __init__(self, answer: httpx.Response):
        self.answer = answer

    async def __call__(self) -> None:
        await self.answer.aclose()


if __name__ == "__main__":
    run_command(main)
