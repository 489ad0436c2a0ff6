"""One node: a listening socket, and the server that drains before it ends."""

import asyncio
import gc
import signal
import socket
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from api.app import open_app
from api.http.protocol import HttpProtocol
from api.settings import Settings
from api.sync.wire import DirectProtocol
from api.telemetry.siblings import Siblings
from hub.frames import FRAME_BYTES_MAX

BACKLOG = 2048
PING_S = 20.0  # a peer that answers no ping for as long is closed
GRACEFUL_S = 5  # for REST requests and closing handshakes, after the drain


class PortTaken(Exception):
    """The address cannot be listened on; the message is one line."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `PortTaken`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise PortTaken(f"PORT: cannot listen on {host}:{port}: {error.strerror}") from error
    return listening


def address(listening: socket.socket) -> str:
    """The address to reach it at, as a URL."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Drains before uvicorn closes the sockets, and exits 0 after SIGTERM and SIGINT: uvicorn would
    raise the signal again after the shutdown. `ready` is called when signals are heard already."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        drain: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # no new connections; another node takes them from the shared socket
        await self._drain()
        await super().shutdown(sockets)


async def serve(
    settings: Settings,
    listening: socket.socket,
    ready: Callable[[], None],
    parent: socket.socket | None = None,
    siblings: Siblings | None = None,
) -> None:
    """Serve until told to stop by SIGTERM, SIGINT or the parent's end. `ready` is called when
    everything is up; connections made before wait in the socket's queue."""
    async with open_app(settings, siblings) as app:
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws=DirectProtocol,
            ws_max_size=FRAME_BYTES_MAX,
            ws_per_message_deflate=False,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACEFUL_S,
        )
        server = Server(config, ready, app.hub.drain)
        # What was built until now stays: keep the collector away from it. And a busy hub makes and
        # drops thousands of objects a second without a cycle among them: look for cycles seldom.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        loop = asyncio.get_running_loop()
        if parent is not None:
            loop.add_reader(parent, server.handle_exit, signal.SIGTERM, None)
        await server.serve(sockets=[listening])
        if parent is not None:
            loop.remove_reader(parent)


def run_loop(serving: Coroutine[None, None, None]) -> None:
    """Run `serve` to its end, on the loop that a node has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving)
