"""The command line as its users meet it: what starts, what it says, and what is left behind."""

import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from api.auth.tokens import Tokens
from hub.errors import HubError
from loadtest.cluster import Port
from loadtest.process import START_TIMEOUT_S
from loadtest.proxy import Proxy
from storage.embedded.postgres import EmbeddedPostgres
from tests.cluster import (
    AUTH_SECRET,
    BUSY_S,
    Cluster,
    Node,
    Process,
    family,
    kill_left,
    process_state,
    until,
    until_gone,
)
from tests.conftest import with_database
from tests.device import Device, budget_create, connect, expense_add, new_id

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

Run = Callable[..., Process]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Starts `budget-hub` with arguments, in a folder of its own; ends what still runs."""
    started: list[Process] = []
    names = count(1)

    def start(*arguments: str | Path, environ: Mapping[str, str] = {}) -> Process:
        process = Process(tmp_path, f"run-{next(names)}", arguments, environ)
        started.append(process)
        return process

    yield start
    for process in started:
        await process.close()


@pytest.fixture
async def refuses(run: Run) -> Callable[..., Awaitable[str]]:
    """Runs `budget-hub`, which says what is wrong in one line, and ends with this code."""

    async def start(code: int, *arguments: str | Path, environ: Mapping[str, str] = {}) -> str:
        process = run(*arguments, environ=environ)
        assert await process.ended() == code, process.err
        [line] = process.err.splitlines()
        assert line.startswith("budget-hub: ")
        return line.removeprefix("budget-hub: ")

    return start


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield str(taken.getsockname()[1])


@pytest.fixture
async def empty_database_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """A database without tables."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute("CREATE DATABASE cli_empty")
    yield with_database(postgres.url, "cli_empty")
    await admin.execute("DROP DATABASE cli_empty WITH (FORCE)")
    await admin.close()


def good_settings(database_url: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "AUTH_SECRET": AUTH_SECRET, "PORT": "0"}


# dev


@needs_linux
async def test_dev_says_where_it_is_and_keeps_its_data_over_every_kind_of_end(
    run: Run, refuses: Callable[..., Awaitable[str]], data_dir: Path
) -> None:
    budget_id = new_id()
    log_ids = set()
    token = ""
    for start, end in enumerate((signal.SIGINT, signal.SIGKILL, signal.SIGTERM)):
        dev = run("dev", "--data-dir", data_dir, "--port", "0")
        url = await dev.serving()
        # It says how to get a token, and what to try first.
        hint = await dev.says("token alice")
        arguments = hint.partition("budget-hub ")[2].split()
        assert url in await dev.says("curl ")
        if not token:
            helper = run(*arguments)
            assert await helper.ended() == 0
            token = helper.out.strip()
        async with connect(url, token) as device:  # whose secret is kept too
            if start == 0:
                await device.accepted(budget_create(budget_id))
                in_use = await refuses(2, "dev", "--data-dir", data_dir, "--port", "0")
                assert f"{data_dir} is in use" in in_use
            else:
                await device.accepted(expense_add(budget_id))
            stream = await device.subscribe(budget_id)
            assert [e.body["sequence"] for e in (await device.reached(budget_id, start + 1)).events]
            log_ids.add(stream.log_id)
            servers = family(dev.pid)
            assert any("postgres" in name for name in servers.values())
            assert any("valkey" in name for name in servers.values())
            dev.signal(end)
            code = await dev.ended()
        assert code == (-signal.SIGKILL if end is signal.SIGKILL else 0)
        await until_gone(servers)
        assert "Traceback" not in dev.err
    assert len(log_ids) == 1


async def test_taken_port_is_refused_before_anything_starts(
    refuses: Callable[..., Awaitable[str]], data_dir: Path, taken_port: str
) -> None:
    line = await refuses(2, "dev", "--data-dir", data_dir, "--port", taken_port)
    assert line == f"PORT: cannot listen on 127.0.0.1:{taken_port}: Address already in use"
    assert absent(data_dir)
    line = await refuses(2, "dev", "--data-dir", data_dir, environ={"PORT": taken_port})
    assert line.startswith("PORT: ")


async def test_data_of_another_postgres_is_refused(
    refuses: Callable[..., Awaitable[str]], data_dir: Path
) -> None:
    version = data_dir / "postgres/data/PG_VERSION"
    version.parent.mkdir(parents=True)
    version.write_text("17\n")
    line = await refuses(2, "dev", "--data-dir", data_dir, "--port", "0")
    assert "Postgres 17" in line and "Postgres 18" in line
    assert version.read_text() == "17\n"


async def test_data_dir_that_cannot_be_is_refused(
    refuses: Callable[..., Awaitable[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    line = await refuses(2, "dev", "--data-dir", tmp_path / "file", "--port", "0")
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize("port", ["99999", "-1"])
async def test_port_that_is_none_is_refused(run: Run, data_dir: Path, port: str) -> None:
    dev = run("dev", "--data-dir", data_dir, environ={"PORT": port})
    assert await dev.ended() == 2
    assert "PORT" in dev.err and "Traceback" not in dev.err


# Several workers


@needs_linux
async def test_workers_share_one_port_and_one_stream(run: Run, data_dir: Path) -> None:
    dev = run("dev", "--data-dir", data_dir, "--port", "0", "--workers", "2")
    url = await dev.serving()
    helper = run("token", "alice", "--data-dir", data_dir)
    await helper.ended()
    token = helper.out.strip()
    workers = await hub_workers(dev, 2)
    budget_id = new_id()
    async with (
        connected_to(workers[0], workers, url, token) as here,
        connected_to(workers[1], workers, url, token) as there,
    ):
        await here.accepted(budget_create(budget_id))
        for device in (here, there):
            await device.subscribe(budget_id)
        for device in (here, there):
            await device.accepted(*(expense_add(budget_id) for _ in range(10)))
        streams = [await device.reached(budget_id, 21) for device in (here, there)]
        assert [e.raw for e in streams[0].events] == [e.raw for e in streams[1].events]

        # One is killed: the other goes on, and a new one takes its place.
        os.kill(workers[0], signal.SIGKILL)
        assert await here.until_closed() == 1006
        await there.accepted(expense_add(budget_id))
        [successor] = set(await hub_workers(dev, 2, without=workers[0])) - {workers[1]}
        async with connected_to(successor, [successor, workers[1]], url, token) as again:
            await again.subscribe(budget_id, 21)
            await again.accepted(expense_add(budget_id))
            await again.reached(budget_id, 23)
        await there.reached(budget_id, 23)

        everything = family(dev.pid)
        assert len(everything) > 4
        dev.signal(signal.SIGINT)
        assert await dev.ended() == 0
    await until_gone(everything, 0)


@needs_linux
async def test_workers_end_with_their_killed_supervisor(
    run: Run, cluster_database_url: str
) -> None:
    port = Port()  # which nobody else takes
    try:
        settings = {**good_settings(cluster_database_url), "PORT": str(port.number)}
        serve = run("serve", "--workers", "2", environ=settings)
        await serve.serving()
        workers = family(serve.pid)
        assert len(workers) == 2
        await serve.kill()
        try:
            await until_gone(workers)
        finally:
            kill_left(workers)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port.number), timeout=5)
    finally:
        port.close()


async def test_workers_that_cannot_start_say_why(run: Run, empty_database_url: str) -> None:
    settings = {**good_settings(empty_database_url), "WEB_CONCURRENCY": "2"}
    serve = run("serve", environ=settings)
    assert await serve.ended() == 1
    assert "Traceback" not in serve.err
    assert "migrate" in serve.err
    assert "serving on" not in serve.out


# serve, migrate, token


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", None),
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "mysql://localhost/hub"),
        ("DATABASE_URL", "postgres://127.0.0.1:port/hub"),
        ("REDIS_URL", "http://localhost"),
        ("AUTH_SECRET", None),
        ("AUTH_SECRET", "x" * 31),
        ("AUTH_MODE", "none"),
        ("PORT", "abc"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("WEB_CONCURRENCY", "0"),
        ("LOG_LEVEL", "loud"),
    ],
)
async def test_wrong_setting_is_one_line_with_its_name(
    refuses: Callable[..., Awaitable[str]],
    cluster_database_url: str,
    name: str,
    value: str | None,
) -> None:
    settings = good_settings(cluster_database_url)
    settings.pop(name, None)
    if value is not None:
        settings[name] = value
    line = await refuses(2, "serve", environ=settings)
    assert line.startswith(f"{name}: ")
    if value and name in ("AUTH_SECRET", "DATABASE_URL"):
        assert value not in line


async def test_serve_on_a_taken_port_is_refused(
    refuses: Callable[..., Awaitable[str]], cluster_database_url: str, taken_port: str
) -> None:
    settings = {**good_settings(cluster_database_url), "PORT": taken_port}
    assert taken_port in await refuses(2, "serve", environ=settings)


async def test_serve_wants_a_migrated_database(
    run: Run, refuses: Callable[..., Awaitable[str]], empty_database_url: str
) -> None:
    settings = good_settings(empty_database_url)
    line = await refuses(1, "serve", environ=settings)
    assert "run `budget-hub migrate` first" in line

    database = {"DATABASE_URL": empty_database_url}
    for applied in (True, False):
        migrate = run("migrate", environ=database)
        assert await migrate.ended() == 0
        assert (migrate.err, "the database is up to date" in migrate.out) == ("", True)
        assert ("applied 0001_" in migrate.out) is applied

    serve = run("serve", environ=settings)
    await serve.serving()
    assert await serve.stop() == 0


async def test_two_migrations_at_once_take_turns(run: Run, empty_database_url: str) -> None:
    both = [run("migrate", environ={"DATABASE_URL": empty_database_url}) for _ in range(2)]
    assert [await migrate.ended() for migrate in both] == [0, 0]
    assert sum(migrate.out.count("applied 0001_") for migrate in both) == 1


@pytest.mark.parametrize("url", [None, "", "mysql://localhost/hub", "postgres://127.0.0.1:x/hub"])
async def test_migrate_wants_a_database(
    refuses: Callable[..., Awaitable[str]], url: str | None
) -> None:
    environ = {} if url is None else {"DATABASE_URL": url}
    assert (await refuses(2, "migrate", environ=environ)).startswith("DATABASE_URL: ")


async def test_one_node_needs_no_redis(run: Run, cluster: Cluster) -> None:
    settings = good_settings(cluster.database_url)
    serve = run("serve", environ=settings)
    url = await serve.serving()
    token = cluster.token("ada")
    budget_id = new_id()
    async with connect(url, token) as one, connect(url, token) as other:
        await one.accepted(budget_create(budget_id))
        await other.subscribe(budget_id)
        await one.accepted(expense_add(budget_id))
        await other.reached(budget_id, 2)
    assert await serve.stop() == 0
    assert serve.out == f"budget-hub: serving on {url}\n"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
async def test_serve_ends_with_0_while_devices_are_connected(
    cluster: Cluster, end: signal.Signals
) -> None:
    node: Node = await cluster.start()
    async with connect(node.url, cluster.token("ada")) as device:
        await device.accepted(budget_create(new_id()))
        node.signal(end)
        assert await node.ended() == 0
        assert await device.until_closed() in (1001, 1012)


async def test_serve_waits_for_a_database_that_is_late(run: Run, cluster_database_url: str) -> None:
    async with Proxy(cluster_database_url) as proxy:
        await proxy.cut()
        serve = run("serve", environ=good_settings(proxy.url))
        await until(lambda: "waiting for the database" in serve.err, START_TIMEOUT_S)
        await proxy.heal()
        await serve.serving()
        assert await serve.stop() == 0
    assert "Traceback" not in serve.err


async def test_token_names_its_user(run: Run) -> None:
    token = run("token", "ada:ß 1", environ={"AUTH_SECRET": AUTH_SECRET})
    assert await token.ended() == 0
    [line] = token.out.splitlines()
    principal = await Tokens([AUTH_SECRET.encode()], now=time.time).authenticate(line)
    assert principal.user_id == "ada:ß 1"
    assert abs(principal.expires_at_ms / 1000 - time.time() - 24 * 3600) < 60
    with pytest.raises(HubError):
        await Tokens([b"another secret" * 3], now=time.time).authenticate(line)


async def test_token_without_a_secret_or_user_is_refused(
    refuses: Callable[..., Awaitable[str]], data_dir: Path
) -> None:
    line = await refuses(2, "token", "ada", "--data-dir", data_dir)
    assert line.startswith("AUTH_SECRET: ") and str(data_dir) in line
    assert absent(data_dir)
    for user in ("", "x" * 129):
        secret = {"AUTH_SECRET": AUTH_SECRET}
        assert (await refuses(2, "token", user, environ=secret)).startswith("USER: ")


async def test_token_is_for_the_local_identity_only(
    refuses: Callable[..., Awaitable[str]], data_dir: Path
) -> None:
    environ = {"AUTH_SECRET": AUTH_SECRET, "AUTH_MODE": "firebase"}
    line = await refuses(2, "token", "ada", environ=environ)
    assert line.startswith("AUTH_MODE: ")


def absent(path: Path) -> bool:
    return not path.exists()


# Which worker has which connection, by /proc


async def hub_workers(process: Process, number: int, without: int | None = None) -> list[int]:
    """The pids of the hub's own processes below this one, as soon as there are so many."""

    def workers() -> list[int]:
        return sorted(
            pid for (pid, _), name in family(process.pid).items() if "api.process.node" in name
        )

    await until(lambda: len(workers()) == number and without not in workers(), START_TIMEOUT_S)
    return workers()


@asynccontextmanager
async def connected_to(
    worker: int, workers: Sequence[int], url: str, token: str
) -> AsyncIterator[Device]:
    """A device whose connection this worker has: the others sleep while it is made."""
    others = [pid for pid in workers if pid != worker]
    async with AsyncExitStack() as stack:
        try:
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            await until(lambda: all(process_state(pid) == "T" for pid in others), BUSY_S)
            device = await stack.enter_async_context(connect(url, token))
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        assert _server_socket(device) in _files(worker)
        yield device


def _server_socket(device: Device) -> str:
    """The other end of the device's connection, as /proc names it."""
    ports = [address[1] for address in (device.socket.remote_address, device.socket.local_address)]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode, _, _, _, _, _, _, _ = line.split()
        if [int(address.rpartition(":")[2], 16) for address in (local, remote)] == ports:
            return f"socket:[{inode}]"
    raise AssertionError("no such connection")


def _files(pid: int) -> set[str]:
    files = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            files.add(os.readlink(path))
    return files
