"""A hub of two nodes on this machine, with all that it needs, which can be broken part by part.

    devices ─ proxy ─▶ node 0 ─┬─ proxy ─▶ Redis
    devices ─ proxy ─▶ node 1 ─┤  proxy ─▶
                               └─▶ Postgres

Whatever was broken comes back at the address it had, so that nobody has to be told another one.
This is the one module of the load script that starts services; devices know only addresses.
"""

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from secrets import token_urlsafe
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, Self
from urllib.parse import urlsplit

from loadtest.process import PROGRAM, Hub, Process
from loadtest.proxy import Proxy
from storage.embedded import EmbeddedError
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedError"]  # for who starts a cluster

NODES = 2
COMMAND_TIMEOUT_S = 60.0

# What a hub that starts while Postgres is away says in plain words, Postgres' own among them.
_WAITING = ("budget-hub: waiting for the database", "DETAIL:", "HINT:")
# The devices of a run share few users, all at one address.
_SETTINGS = {
    "PYTHONWARNINGS": "error",
    "LOG_LEVEL": "warning",
    "EVENTS_PER_S_CONNECTION": "1000000",
    "EVENTS_PER_S_USER": "1000000",
    "REQUESTS_PER_MIN_USER": "0",
    "BUDGETS_PER_USER": "0",
    "RECORDS_PER_BUDGET": "0",
    "LOG_MB_PER_BUDGET": "0",
    "CONNECTIONS_PER_USER": "0",
    "CONNECTIONS_PER_ADDRESS": "0",
    "REQUESTS_PER_MIN_ADDRESS": "0",
    "LOGINS_PER_MIN_ADDRESS": "0",
    "LOGINS_PER_MIN_EMAIL": "0",
}


class FragilePostgres:
    """A Postgres that crashes and comes back at the same URL with everything it acknowledged.

    It is durable: a process that is killed loses nothing without that too, but commits that wait
    for the disk are what hubs meet in earnest, and what a crash most often interrupts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = Port()
        self._server = self._start()
        self.url = self._server.url

    async def crash(self) -> None:
        """End it at once, without a checkpoint, and start it again."""
        await self.stop()
        await self.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.stop, "immediate")

    async def start(self) -> None:
        self._server = await asyncio.to_thread(self._start)
        assert self._server.url == self.url

    def close(self) -> None:
        self._server.stop()
        self._port.close()

    def _start(self) -> EmbeddedPostgres:
        return EmbeddedPostgres.start(self._folder, port=self._port.number)


class FragileRedis:
    """A Redis that can be killed and comes back at the same URL, empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = Port()
        self._server = EmbeddedRedis.start(folder, port=self._port.number)
        self.url = self._server.url

    def kill(self) -> None:
        os.kill(self._server.pid, SIGKILL)
        self._server.stop()

    def pause(self) -> None:
        """It is there and says nothing, and takes what is sent until the buffers are full."""
        os.kill(self._server.pid, SIGSTOP)

    def resume(self) -> None:
        os.kill(self._server.pid, SIGCONT)

    async def restart(self) -> None:
        self._server = await asyncio.to_thread(
            EmbeddedRedis.start,
            self._folder,
            port=self._port.number,
            password=urlsplit(self.url).password,
        )
        assert self._server.url == self.url

    def close(self) -> None:
        self._server.stop()
        self._port.close()


class Node:
    """One of the hubs: its place, in which a process is replaced by another when it was killed."""

    def __init__(
        self,
        folder: Path,
        number: int,
        environ: Mapping[str, str],
        bus: Proxy,
        program: Sequence[str | Path],
    ) -> None:
        self._folder = folder
        self._number = number
        self.program = program  # of the next hub
        self._port = Port()
        self._environ = {**environ, "REDIS_URL": bus.url, "PORT": str(self._port.number)}
        self.bus = bus  # between it and Redis
        self.door = Proxy(f"http://127.0.0.1:{self._port.number}")  # between it and its devices
        self.hubs: list[Hub] = []  # all that were ever started here

    @property
    def hub(self) -> Hub:
        return self.hubs[-1]

    async def start(self) -> None:
        name = f"node-{self._number}-{len(self.hubs)}"
        self.hubs.append(Hub(self._folder, name, self._environ, self.program))
        await self.hub.up()

    async def close(self) -> None:
        if self.hubs:
            await self.hub.close()
        self._port.close()


class Cluster:
    """Use as an asynchronous context manager; everything in it lives in `folder`, which is empty.

    `program` stands for `budget-hub`: one that has a defect planted, say. Raises
    `storage.embedded.EmbeddedError` where the services cannot be started."""

    def __init__(self, folder: Path, program: Sequence[str | Path] = (PROGRAM,)) -> None:
        self._folder = folder
        self._program = program
        self._parts = AsyncExitStack()
        self.secret = token_urlsafe(32)
        self.nodes: list[Node] = []
        self.postgres: FragilePostgres
        self.redis: FragileRedis

    @property
    def targets(self) -> list[str]:
        """Where devices reach the nodes, whatever happens to them."""
        return [node.door.url for node in self.nodes]

    def complaints(self) -> list[dict[str, Any]]:
        """What stands as a defect in the log of any hub there ever was."""
        return [
            line
            for node in self.nodes
            for hub in node.hubs
            for line in hub.complaints()
            if not line["event"].startswith(_WAITING)
        ]

    async def run(self, command: str) -> Process:
        """`budget-hub` with this command, on the cluster's database, to its end."""
        environ = {"DATABASE_URL": self.postgres.url}
        process = Process(self._folder, command, [command], environ, program=self._program)
        try:
            await process.ended(COMMAND_TIMEOUT_S)
        finally:
            await process.close()
        return process

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._parts.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._parts.aclose()

    async def _start(self) -> None:
        self.postgres, self.redis = await asyncio.gather(
            asyncio.to_thread(FragilePostgres, self._folder),
            asyncio.to_thread(FragileRedis, self._folder),
        )
        self._parts.callback(self.postgres.close)
        self._parts.callback(self.redis.close)
        migrated = await self.run("migrate")
        if migrated.exit_code != 0:
            raise RuntimeError(f"the database was not prepared: {migrated.err}")
        environ = {
            **_SETTINGS,
            "DATABASE_URL": self.postgres.url,
            "AUTH_SECRET": self.secret,
            "PHOTO_DIR": str(self._folder / "photos"),
        }
        for number in range(NODES):
            bus = await self._parts.enter_async_context(Proxy(self.redis.url))
            node = Node(self._folder, number, environ, bus, self._program)
            self._parts.push_async_callback(node.close)
            await self._parts.enter_async_context(node.door)
            self.nodes.append(node)
        await asyncio.gather(*(node.start() for node in self.nodes))


class Port:
    """A port that nobody else takes while its server is away: it stays bound, and never listens."""

    def __init__(self) -> None:
        self._keeper = socket.socket()
        self._keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._keeper.bind(("127.0.0.1", 0))
        self.number: int = self._keeper.getsockname()[1]

    def close(self) -> None:
        self._keeper.close()
