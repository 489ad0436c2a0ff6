"""Real `budget-hub` processes for tests, each with files for what it says and an end that is sure.

`Process` is one run of any command, `Node` a `serve` that is waited for, `Cluster` several nodes on
one Postgres database and one Redis. Signals go to a process by its own pid, never by name; whatever
was started is stopped and reaped by `close`.
"""

import asyncio
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any, Self, TypeAlias

import httpx2
import orjson
import redis.asyncio

from api.auth.tokens import Tokens
from storage.embedded import EmbeddedRedis

PROGRAM = Path(sys.executable).with_name("budget-hub")
AUTH_SECRET = "acceptance-tests-sign-with-this-secret"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
P7_S = 2.0  # from commit to delivery without the bus

# Never used, the hubs speak plain HTTP; but to make one for each client takes a tenth of a second.
_TLS = ssl.create_default_context()


class Process:
    """One run of a program with these arguments and nothing but this environment.

    It leads a process group of its own, as if started in a terminal."""

    def __init__(
        self,
        folder: Path,
        name: str,
        arguments: Sequence[str | Path],
        environ: Mapping[str, str],
        *,
        cwd: Path | None = None,
        program: Sequence[str | Path] = (PROGRAM,),
    ) -> None:
        self.out_path = folder / f"{name}.out"
        self.err_path = folder / f"{name}.err"
        with self.out_path.open("xb") as out, self.err_path.open("xb") as err:
            self._popen = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={"PATH": os.defpath, "LANG": "C.UTF-8", **environ},
                cwd=cwd or folder,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    def signal(self, sig: Signals) -> None:
        self._popen.send_signal(sig)  # does nothing once it is reaped

    def signal_group(self, sig: Signals) -> None:
        """To the process and its children, as the terminal does at Ctrl-C."""
        if self.exit_code is None:
            os.killpg(self.pid, sig)

    def pause(self) -> None:
        self.signal(SIGSTOP)

    def resume(self) -> None:
        self.signal(SIGCONT)

    async def ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit code, when it has ended."""
        await until(lambda: self.exit_code is not None, timeout_s)
        return self._popen.returncode

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """End it as a deploy would; its exit code."""
        self.signal(SIGTERM)
        return await self.ended(timeout_s)

    async def kill(self) -> None:
        """End it at this instant."""
        self.signal(SIGKILL)
        await self.ended()

    async def close(self) -> None:
        """However it is: afterwards it is gone."""
        if self.exit_code is None:
            self.resume()
            try:
                await self.stop()
            except TimeoutError:
                await self.kill()

    async def says(self, text: str, timeout_s: float = START_TIMEOUT_S) -> str:
        """The first line on its stdout with this text. Raises `AssertionError` if it ends first."""

        def lines() -> list[str]:
            return [line for line in self.out.splitlines(keepends=True) if text in line]

        def said() -> bool:
            if self.exit_code is not None and not lines():
                raise AssertionError(f"ended with {self.exit_code}: {self.out}{self.err}")
            return any(line.endswith("\n") for line in lines())

        await until(said, timeout_s)
        return lines()[0]

    async def serving(self) -> str:
        """The URL it serves on, when it does."""
        line = await self.says("serving on ")
        return line.partition("serving on ")[2].split()[0]


class Node(Process):
    """A `budget-hub serve`; `url` is its address once it is `up`."""

    url: str

    def __init__(
        self,
        folder: Path,
        name: str,
        environ: Mapping[str, str],
        program: Sequence[str | Path] = (PROGRAM,),
    ) -> None:
        super().__init__(folder, name, ["serve"], environ, program=program)

    async def up(self) -> Self:
        self.url = await self.serving()
        return self

    def rest(self, token: str | None = None) -> httpx2.AsyncClient:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx2.AsyncClient(
            base_url=self.url, headers=headers, trust_env=False, timeout=10, verify=_TLS
        )

    def log(self) -> list[dict[str, Any]]:
        """Its log; a line that is not of our form comes as an error with itself as the event."""
        lines = []
        for line in self.err.splitlines():
            try:
                lines.append(orjson.loads(line))
            except orjson.JSONDecodeError:
                lines.append({"level": "error", "event": line})
        return lines

    def complaints(self) -> list[dict[str, Any]]:
        """What stands in the log as a defect."""
        return [line for line in self.log() if line["level"] in ("error", "critical")]


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
        self._program = program
        self.database_url = database_url
        self.redis_url = redis_url
        self.nodes: list[Node] = []  # all that were ever started, in order
        self._environ = {
            "DATABASE_URL": database_url,
            "AUTH_SECRET": AUTH_SECRET,
            "PORT": "0",
            "PYTHONWARNINGS": "error",
            # All requests of the tests come from one address.
            "REQUESTS_PER_MIN_USER": "0",
            "REQUESTS_PER_MIN_ADDRESS": "0",
            "LOGINS_PER_MIN_ADDRESS": "0",
            "LOGINS_PER_MIN_EMAIL": "0",
        }
        if redis_url is not None:
            self._environ["REDIS_URL"] = redis_url

    async def start(self, **settings: str) -> Node:
        """One more node, with settings of its own: `REDIS_URL=proxy.url`."""
        name = f"node-{len(self.nodes)}"
        node = Node(self.folder, name, {**self._environ, **settings}, self._program)
        self.nodes.append(node)
        return await node.up()

    async def start_some(self, number: int) -> list[Node]:
        return list(await asyncio.gather(*(self.start() for _ in range(number))))

    def token(self, user_id: str, *, ttl_s: int = 3600) -> str:
        return token(user_id, ttl_s=ttl_s)

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes))


@asynccontextmanager
async def checked(cluster: Cluster) -> AsyncIterator[Cluster]:
    """The cluster, closed at the end; then no node's log may hold a defect."""
    try:
        yield cluster
    finally:
        await cluster.close()
    for node in cluster.nodes:
        assert node.complaints() == []


async def all_say(nodes: Sequence[Node], token: str, status: str) -> None:
    """Wait until each node's `/readyz` has this status; they answer 200 all the while."""
    for node in nodes:
        async with node.rest(token) as rest, asyncio.timeout(10):
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


class FragileRedis:
    """A Redis that can be killed and comes back at the same URL, empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedRedis.start(folder)
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
        wanted = httpx2.URL(self.url)
        self._server = EmbeddedRedis.start(self._folder, port=wanted.port)
        async with redis.asyncio.Redis.from_url(self._server.url) as client:
            await client.config_set("requirepass", wanted.password)

    def close(self) -> None:
        self._server.stop()


async def until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Return as soon as it holds. Raises `TimeoutError`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {timeout_s} s")
        await asyncio.sleep(POLL_S)


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
