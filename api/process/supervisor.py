"""Several nodes on one port, and the one process that keeps them there.

The parent binds the socket and hands it down, so that no connection in the kernel's queue is lost
when a node goes. uvicorn's own supervisor is not used because it replaces nodes by plain ones,
without the drain of `server`. Between parent and node there is one socket pair: the node writes a
byte when it serves, and stops when the parent's end is closed, however the parent died.
"""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import FrameType

import structlog

from api.process import node, server
from api.settings import Settings

NODE_START_S = 60
STOP_S = 25  # the drain, uvicorn's graceful time, and the closing of the connections
RESTART_PAUSE_S = 1.0  # before a node that died is replaced

_log = structlog.get_logger()


def run(settings: Settings, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve with `settings.web_concurrency` processes until told to stop; one is this one."""
    with listening:
        if settings.web_concurrency == 1:
            server.run_loop(server.serve(settings, listening, ready))
        else:
            supervisor = Supervisor(settings, listening)
            supervisor.start()
            ready()
            supervisor.run()


class NodeFailed(Exception):
    """A node did not start; its own last log line says why."""


class Supervisor:
    """Keeps several nodes serving on one socket until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings, listening: socket.socket) -> None:
        self._settings = settings
        self._listening = listening
        self._nodes: dict[subprocess.Popen[bytes], socket.socket] = {}
        self._numbers: dict[subprocess.Popen[bytes], int] = {}
        self._folder = _folder()
        self._stopping = False
        self._restarting = False

    def start(self) -> None:
        """Start the nodes and return when all of them serve. From here on signals are heard.
        Raises `NodeFailed`."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._told_to_stop)
        signal.signal(signal.SIGHUP, self._told_to_restart)
        started = [self._spawn() for _ in range(self._settings.web_concurrency)]
        try:
            for ours in started:
                _wait_ready(ours)
        except NodeFailed:
            self.stop()
            raise

    def run(self) -> None:
        """Replace nodes that die, and on SIGHUP all of them, one by one; returns after SIGTERM or
        SIGINT, when all have stopped."""
        while not self._stopping:
            if self._restarting:
                self._restarting = False
                self._replace(list(self._nodes))
            for child in [child for child in self._nodes if child.poll() is not None]:
                _log.error("node died", pid=child.pid, exit_code=child.returncode)
                self._numbers.pop(child)
                self._nodes.pop(child).close()
                time.sleep(RESTART_PAUSE_S)
                self._spawn()
            time.sleep(0.1)
        self.stop()

    def stop(self) -> None:
        """Tell the nodes to stop and wait for them, `STOP_S` at most."""
        self._retire(list(self._nodes))
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _replace(self, nodes: list[subprocess.Popen[bytes]]) -> None:
        """Replace each node by a new one, which serves before the old one stops. If a new node does
        not start, the rest stay as they are."""
        for child in nodes:
            try:
                _wait_ready(self._spawn())
            except NodeFailed as error:
                _log.error("restart given up", error=str(error))
                return
            self._retire([child])

    def _retire(self, nodes: list[subprocess.Popen[bytes]]) -> None:
        for child in nodes:
            self._nodes.pop(child).close()
            child.terminate()
        deadline = time.monotonic() + STOP_S
        for child in nodes:
            try:
                child.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                _log.error("node did not stop", pid=child.pid)
                child.kill()
                child.wait()
            self._numbers.pop(child)

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
            node.LISTENING_FD: str(self._listening.fileno()),
            node.PARENT_FD: str(theirs.fileno()),
            node.NUMBER: str(number),
            **({} if self._folder is None else {node.FOLDER: self._folder}),
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "api.process.node"],
            env=environ,
            pass_fds=[self._listening.fileno(), theirs.fileno()],
            start_new_session=True,  # Ctrl-C goes to the parent, which stops the nodes in order
        )
        theirs.close()
        self._nodes[child] = ours
        self._numbers[child] = number
        return ours


def _folder() -> str | None:
    """Where the nodes find each other."""
    try:
        return tempfile.mkdtemp(prefix="budget-hub-")
    except OSError as error:
        _log.warning("no folder: each node answers with its own metrics only", error=str(error))
        return None


def _wait_ready(ours: socket.socket) -> None:
    ours.settimeout(NODE_START_S)
    try:
        ready = ours.recv(1)
    except TimeoutError:
        ready = b""
    if not ready:
        raise NodeFailed("a node did not start")
