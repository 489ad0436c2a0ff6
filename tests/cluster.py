"""Real `budget-hub` processes for tests, each with files for what it says and an end that is sure.

`Process` is one run of any command, `Node` a `serve` that is waited for, `Cluster` several nodes on
one Postgres database and one Redis; whatever was started is stopped and reaped by `close`.
"""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from typing import TypeAlias
from urllib.parse import urlsplit

import httpx2

from api.auth.tokens import Tokens
from loadtest.cluster import Port
from loadtest.process import (
    POLL_S,
    PROGRAM,
    STOP_TIMEOUT_S,
    Hub,
    Process,
    until,
)
from tests.device import budget_create, new_id

__all__ = ["POLL_S", "PROGRAM", "Process", "until"]  # for tests, as if they were from here

AUTH_SECRET = "acceptance-tests-sign-with-this-secret"
P7_S = 2.0  # from commit to delivery without the bus
# What a machine that also runs everything else may add, or one that stops for seconds. It is there
# to tell what comes late from what never comes; how late that is shows where much is measured.
BUSY_S = 10.0
REST_S = 30.0  # for an answer

# Never used, the hubs speak plain HTTP; but to make one for each client takes a tenth of a second.
_TLS = ssl.create_default_context()


class Node(Hub):
    @property
    def port(self) -> str:
        return str(urlsplit(self.url).port)

    def rest(self, token: str | None = None) -> httpx2.AsyncClient:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx2.AsyncClient(
            base_url=self.url, headers=headers, trust_env=False, timeout=REST_S, verify=_TLS
        )

    async def new_budget(self, token: str) -> str:
        """The id of a budget that the token's user has just made: its log has one event."""
        budget_id = new_id()
        async with self.rest(token) as rest:
            answer = await rest.post("/events", json={"events": [budget_create(budget_id)]})
            assert answer.status_code == 200, answer.text
        return budget_id


class Cluster:
    """Nodes on one database and one Redis. `database_url` is migrated already.

    `program` stands for `budget-hub`: one that has a defect planted, say."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        redis_url: str | None,
        program: Sequence[str | Path] = (PROGRAM,),
    ) -> None:
        self.folder = folder
        self.program = program
        self.database_url = database_url
        self.redis_url = redis_url
        self.nodes: list[Node] = []  # all that were ever started, in order
        self._ports: list[Port] = []
        self.environ = {
            "DATABASE_URL": database_url,
            "AUTH_SECRET": AUTH_SECRET,
            "PYTHONWARNINGS": "error",
            # All requests of the tests come from one address, and most from a few users.
            "BUDGETS_PER_USER": "0",
            "REQUESTS_PER_MIN_USER": "0",
            "CONNECTIONS_PER_USER": "0",
            "CONNECTIONS_PER_ADDRESS": "0",
            "REQUESTS_PER_MIN_ADDRESS": "0",
            "LOGINS_PER_MIN_ADDRESS": "0",
            "LOGINS_PER_MIN_EMAIL": "0",
        }
        if redis_url is not None:
            self.environ["REDIS_URL"] = redis_url

    async def start(self, **settings: str) -> Node:
        """One more node, with settings of its own: `REDIS_URL=proxy.url`. Its port is kept for the
        one that may come after it, with `PORT=node.port`."""
        name = f"node-{len(self.nodes)}"
        if "PORT" not in settings:
            self._ports.append(Port())
            settings["PORT"] = str(self._ports[-1].number)
        node = Node(self.folder, name, {**self.environ, **settings}, self.program)
        self.nodes.append(node)
        return await node.up()

    async def start_some(self, number: int) -> list[Node]:
        return list(await asyncio.gather(*(self.start() for _ in range(number))))

    def token(self, user_id: str, *, ttl_s: int = 3600) -> str:
        return token(user_id, ttl_s=ttl_s)

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes))
        for port in self._ports:
            port.close()


@asynccontextmanager
async def checked(cluster: Cluster) -> AsyncIterator[Cluster]:
    """The cluster, closed at the end; then no node's log may hold a defect."""
    try:
        yield cluster
    finally:
        await cluster.close()
    for node in cluster.nodes:
        assert node.complaints() == []


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return as soon as it holds."""
    async with asyncio.timeout(BUSY_S):
        while True:
            if await holds():
                break
            await asyncio.sleep(POLL_S)


async def all_say(nodes: Sequence[Node], token: str, status: str) -> None:
    """Wait until each node's `/readyz` has this status; they answer 200 all the while."""
    for node in nodes:
        async with node.rest(token) as rest, asyncio.timeout(REST_S):
            while True:
                response = await rest.get("/readyz")
                assert response.status_code == 200
                if response.json()["status"] == status:
                    break
                await asyncio.sleep(POLL_S)


def token(user_id: str, *, ttl_s: int = 3600) -> str:
    """What the nodes' own identity would issue."""
    tokens = Tokens([AUTH_SECRET.encode()], now=time.time, token_ttl_s=ttl_s)
    return tokens.issue(user_id)[0]


# Processes, by /proc. One is known by its pid and the time it started, since pids come again.

ProcessKey: TypeAlias = tuple[int, str]


def family(pid: int) -> dict[ProcessKey, str]:
    """Everything that the process started, and they in turn, with their command lines."""
    stats = {int(path.name): _stat(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    found: dict[ProcessKey, str] = {}
    parents = [pid]
    while parents:
        parent = str(parents.pop())
        for child, stat in stats.items():
            if stat and stat[1] == parent:
                parents.append(child)
                found[child, stat[19]] = _command(child)
    return found


async def until_gone(processes: Iterable[ProcessKey], timeout_s: float = STOP_TIMEOUT_S) -> None:
    await until(lambda: not any(_lives(*process) for process in processes), timeout_s)


def kill_left(processes: Iterable[ProcessKey]) -> None:
    """What a failed test could not make end."""
    for pid, started in processes:
        if _lives(pid, started):
            os.kill(pid, SIGKILL)


def _lives(pid: int, started: str) -> bool:
    stat = _stat(pid)
    return bool(stat) and stat[0] != "Z" and stat[19] == started


def process_state(pid: int) -> str:
    """`R`, `S`, `T` for stopped, … or nothing if there is no such process."""
    return "".join(_stat(pid)[:1])


def _stat(pid: int) -> list[str]:
    """State, parent, … and as number 19 the time it started."""
    try:
        # The name before the bracket may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""
