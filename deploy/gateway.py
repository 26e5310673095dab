"""The only door of a SuperLink that sites can reach: their own interface and nothing else.

Flower's server answers nodes (/v1/fleet), the operator (/v1/control: register nodes, start runs,
no login) and its own programs (/v1/runtime) on one port. That port stays on the server's loopback
address; this proxy listens outside, over TLS, and passes /v1/fleet on.

python -m deploy.gateway --listen 0.0.0.0:9443 --superlink 127.0.0.1:8000 --credentials DIR
"""

import argparse
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from utils.errors import UserError, run_command

OPEN_PREFIX = "/v1/fleet/"
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailers", "transfer-encoding", "upgrade", "host"}
SECONDS = 120.0


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
    )
    return 0


def build_gateway(superlink: str, ca: Path) -> Starlette:
    """The proxy to the SuperLink at the URL `superlink`, whose certificate `ca` has signed."""
    trust = ssl.create_default_context(cafile=str(ca))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict]:
        async with httpx.AsyncClient(verify=trust, timeout=SECONDS, trust_env=False) as client:
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
            content=request.stream(),
        )
        try:
            answer = await request.state.client.send(question, stream=True)
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
