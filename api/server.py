"""Processes: one worker that serves, and the supervisor that keeps several of them on one port.

The parent binds the socket and hands it down, so that no connection in the kernel's queue is lost
when a worker goes. uvicorn's own supervisor is not used because it replaces workers by plain ones,
without the drain below. Between parent and worker there is one socket pair: the worker writes a
byte when it serves, and stops when the parent's end is closed, however the parent died.
"""

import asyncio
import gc
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import uvicorn
import uvloop

from api.app import NotMigrated, open_app
from api.http.protocol import HttpProtocol
from api.settings import Settings
from api.sync.wire import DirectProtocol
from api.telemetry.logs import configure
from api.telemetry.siblings import Workers
from hub.errors import Disconnected
from hub.frames import FRAME_BYTES_MAX

BACKLOG = 2048
PING_S = 20.0  # a peer that answers no ping for as long is closed
GRACEFUL_S = 5  # for REST requests and closing handshakes, after the drain
WORKER_START_S = 60
STOP_S = 25  # the drain, uvicorn's graceful time, and the closing of the connections
RESTART_PAUSE_S = 1.0  # before a worker that died is replaced

_LISTENING_FD = "BUDGET_HUB_LISTENING_FD"
_PARENT_FD = "BUDGET_HUB_PARENT_FD"
_NUMBER = "BUDGET_HUB_WORKER"
_FOLDER = "BUDGET_HUB_WORKERS_FOLDER"

_log = structlog.get_logger()


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
            server.close()  # no new connections; another worker takes them from the shared socket
        await self._drain()
        await super().shutdown(sockets)


async def serve(
    settings: Settings,
    listening: socket.socket,
    ready: Callable[[], None],
    parent: socket.socket | None = None,
    workers: Workers | None = None,
) -> None:
    """Serve until told to stop by SIGTERM, SIGINT or the parent's end. `ready` is called when
    everything is up; connections made before wait in the socket's queue."""
    async with open_app(settings, workers) as app:
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


def run(settings: Settings, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve with `settings.web_concurrency` processes until told to stop; one is this one."""
    with listening:
        if settings.web_concurrency == 1:
            _run(serve(settings, listening, ready))
        else:
            supervisor = Supervisor(settings, listening)
            supervisor.start()
            ready()
            supervisor.run()


class WorkerFailed(Exception):
    """A worker did not start; its own last log line says why."""


class Supervisor:
    """Keeps several workers serving on one socket until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings, listening: socket.socket) -> None:
        self._settings = settings
        self._listening = listening
        self._workers: dict[subprocess.Popen[bytes], socket.socket] = {}
        self._numbers: dict[subprocess.Popen[bytes], int] = {}
        self._folder = _folder()
        self._stopping = False
        self._restarting = False

    def start(self) -> None:
        """Start the workers and return when all of them serve. From here on signals are heard.
        Raises `WorkerFailed`."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._told_to_stop)
        signal.signal(signal.SIGHUP, self._told_to_restart)
        started = [self._spawn() for _ in range(self._settings.web_concurrency)]
        try:
            for ours in started:
                _wait_ready(ours)
        except WorkerFailed:
            self.stop()
            raise

    def run(self) -> None:
        """Replace workers that die, and on SIGHUP all of them, one by one; returns after SIGTERM or
        SIGINT, when all have stopped."""
        while not self._stopping:
            if self._restarting:
                self._restarting = False
                self._replace(list(self._workers))
            for worker in [worker for worker in self._workers if worker.poll() is not None]:
                _log.error("worker died", pid=worker.pid, exit_code=worker.returncode)
                self._numbers.pop(worker)
                self._workers.pop(worker).close()
                time.sleep(RESTART_PAUSE_S)
                self._spawn()
            time.sleep(0.1)
        self.stop()

    def stop(self) -> None:
        """Tell the workers to stop and wait for them, `STOP_S` at most."""
        self._retire(list(self._workers))
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _replace(self, workers: list[subprocess.Popen[bytes]]) -> None:
        """A new worker serves before an old one is told to stop. If a new one does not start, the
        rest stay as they are."""
        for worker in workers:
            try:
                _wait_ready(self._spawn())
            except WorkerFailed as error:
                _log.error("restart given up", error=str(error))
                return
            self._retire([worker])

    def _retire(self, workers: list[subprocess.Popen[bytes]]) -> None:
        for worker in workers:
            self._workers.pop(worker).close()
            worker.terminate()
        deadline = time.monotonic() + STOP_S
        for worker in workers:
            try:
                worker.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                _log.error("worker did not stop", pid=worker.pid)
                worker.kill()
                worker.wait()
            self._numbers.pop(worker)

    def _told_to_stop(self, sig: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _told_to_restart(self, sig: int, frame: FrameType | None) -> None:
        self._restarting = True

    def _spawn(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        taken = self._numbers.values()
        number = next(number for number in itertools.count() if number not in taken)
        environ = {
            **os.environ,
            **self._settings.to_env(),
            _LISTENING_FD: str(self._listening.fileno()),
            _PARENT_FD: str(theirs.fileno()),
            _NUMBER: str(number),
            **({} if self._folder is None else {_FOLDER: self._folder}),
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", "api.server"],
            env=environ,
            pass_fds=[self._listening.fileno(), theirs.fileno()],
            start_new_session=True,  # Ctrl-C goes to the parent, which stops the workers in order
        )
        theirs.close()
        self._workers[worker] = ours
        self._numbers[worker] = number
        return ours


def _folder() -> str | None:
    """Where the workers find each other."""
    try:
        return tempfile.mkdtemp(prefix="budget-hub-")
    except OSError as error:
        _log.warning("no folder: each worker tells only its own metrics", error=str(error))
        return None


def _wait_ready(ours: socket.socket) -> None:
    ours.settimeout(WORKER_START_S)
    try:
        ready = ours.recv(1)
    except TimeoutError:
        ready = b""
    if not ready:
        raise WorkerFailed("a worker did not start")


def _worker() -> None:
    listening = socket.socket(fileno=int(os.environ[_LISTENING_FD]))
    parent = socket.socket(fileno=int(os.environ[_PARENT_FD]))
    folder = os.environ.get(_FOLDER)
    workers = Workers(None if folder is None else Path(folder), int(os.environ[_NUMBER]))
    settings = Settings.from_env(os.environ)
    configure(settings)
    with listening, parent:  # the parent takes the end of its socket for ours, so last of all
        try:
            _run(serve(settings, listening, lambda: _tell(parent), parent, workers))
        except (Disconnected, NotMigrated) as error:
            _log.error("cannot start", error=f"{type(error).__name__}: {error}")
            sys.exit(1)


def _tell(parent: socket.socket) -> None:
    parent.send(b"!")


def _run(serving: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving)


if __name__ == "__main__":
    _worker()
