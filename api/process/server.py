"""One node: a listening socket, and the server that drains before it ends."""

import asyncio
import gc
import resource
import signal
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, cast

import uvicorn
import uvloop
from starlette.types import ASGIApp
from uvicorn._types import ASGIApplication
from uvicorn.server import ServerState

from api.app import open_app
from api.http.connections import Connections
from api.http.protocol import HttpProtocol
from api.settings import Settings
from api.sync.wire import Door, SocketWire
from api.telemetry.siblings import Siblings
from api.timeouts import APP_TIMEOUTS, AppTimeouts

BACKLOG = 2048
DESCRIPTORS = 10_240  # where the system names no limit
GRACEFUL_S = 5  # for REST requests and closing handshakes, after the drain


class PortTaken(Exception):
    """The address cannot be listened on; the message is one line."""


def bind(host: str, port: int, timeouts: AppTimeouts | None = None) -> socket.socket:
    """A listening socket. Raises `PortTaken`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; every connection inherits it
        # The kernel drops a peer that takes no data. Without this, its stream or response and the
        # buffered data would stay for ever (P8).
        unread_ms = int((timeouts or APP_TIMEOUTS).unread_s * 1000)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
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
        # One that is left would fail the closing of the loop.
        left = cast("set[HttpProtocol | SocketWire]", self.server_state.connections)
        for connection in list(left):
            connection.abort()
        await asyncio.sleep(0)


def configured(
    rest: ASGIApp,
    door: Door,
    connections: Connections | None = None,
    refusals: Counter[str] | None = None,
) -> uvicorn.Config:
    """uvicorn with our protocols for HTTP and WebSockets. uvicorn creates an object of the classes
    for each connection, with arguments of its own. `connections` limits each address, `refusals`
    counts requests that never reach `rest`, by code."""

    class Http(HttpProtocol):
        pass

    Http.timeouts = door.timeouts
    Http.connections_by_address = connections or Connections()
    Http.refusals = Counter() if refusals is None else refusals
    Http.unread = door.unread

    class Socket(SocketWire):
        __slots__ = ()

        def __init__(self, config: object, server_state: ServerState, app_state: object) -> None:
            connected = cast("set[SocketWire]", server_state.connections)
            super().__init__(door, connected, server_state.tasks)

    return uvicorn.Config(
        cast("ASGIApplication", rest),
        http=Http,
        ws=Socket,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACEFUL_S,
    )


def allow_descriptors() -> None:
    """Let this process open as many files as it is allowed to: each connection is one, and the
    usual soft limit of 1,024 is for programs that use `select`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:  # as on macOS, which then refuses more than it has
        hard = max(soft, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(
    settings: Settings,
    listening: socket.socket,
    ready: Callable[[], None],
    parent: socket.socket | None = None,
    siblings: Siblings | None = None,
    timeouts: AppTimeouts | None = None,
) -> None:
    """Serve until told to stop by SIGTERM, SIGINT or the parent's end. `ready` is called when
    everything is up; connections made before wait in the socket's queue."""
    timeouts = timeouts or APP_TIMEOUTS
    allow_descriptors()
    async with open_app(settings, siblings, timeouts) as app:
        config = configured(app.rest, app.door, app.door.connections, app.rest.refusals)
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
