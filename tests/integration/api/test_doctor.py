"""What `budget-hub doctor` finds on real services: nothing where all is well, each thing that is
wrong, what to do about it, and never a secret."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from api.cli.doctor import Finding, Mark, examine
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis
from tests.conftest import migrated, with_database
from tests.google import PROJECT, Google, ask_at, encoded, running
from tests.postgres import start as start_postgres

SECRET = "the-doctor-must-never-say-this-aloud"

Doctor = Callable[..., Awaitable[list[Finding]]]


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """As people run it: with fsync."""
    with start_postgres(tmp_path_factory.mktemp("durable"), durable=True) as postgres:
        yield postgres


@pytest.fixture(scope="module")
async def good_url(durable: EmbeddedPostgres) -> str:
    return await migrated(durable.url, "doctor")


@pytest.fixture
async def doctor(good_url: str, redis: EmbeddedRedis, tmp_path: Path) -> AsyncIterator[Doctor]:
    """Examines good settings, but for what is named; None takes one away."""
    said: list[str] = []
    secrets = {SECRET, urlsplit(good_url).password, urlsplit(redis.url).password}

    async def look(*, now: Callable[[], float] = time.time, **changed: str | None) -> list[Finding]:
        settings = {
            "DATABASE_URL": good_url,
            "REDIS_URL": redis.url,
            "AUTH_SECRET": SECRET,
            "PRODUCTION": "true",
            "S3_BUCKET": None,
            "PHOTO_DIR": str(tmp_path / "photos"),
            **changed,
        }
        environ = {name: value for name, value in settings.items() if value is not None}
        findings = [finding async for finding in examine(environ, now=now)]
        said.append(repr(findings))
        assert all(finding.do for finding in findings if finding.mark is not Mark.OK)
        return findings

    yield look
    assert not [secret for secret in secrets if secret and any(secret in text for text in said)]


def faults(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(each.about, each.says) for each in findings if each.mark is Mark.WRONG]


async def only_fault(findings: list[Finding]) -> Finding:
    [finding] = [each for each in findings if each.mark is Mark.WRONG]
    return finding


async def test_nothing_is_wrong_where_all_is_well(doctor: Doctor) -> None:
    findings = await doctor()
    assert faults(findings) == []
    assert {each.about for each in findings} == {
        "settings",
        "postgres",
        "redis",
        "photos",
        "identity",
    }
    said = " ".join(each.says for each in findings)
    for named in (
        "version",
        "synchronous_commit = on",
        "UTF8",
        "extensions",
        "migrations",
        "clock",
    ):
        assert named in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("AUTH_SECRET", None), ("AUTH_SECRET", "short"), ("PORT", "door"), ("DATABASE_URL", "x")],
)
async def test_a_bad_setting_is_named_and_the_only_finding(
    doctor: Doctor, name: str, value: str | None
) -> None:
    [finding] = await doctor(**{name: value})
    assert finding.mark is Mark.WRONG
    assert finding.says.startswith(f"{name}: ")


async def test_a_database_without_tables_is_to_be_migrated(
    doctor: Doctor, durable: EmbeddedPostgres
) -> None:
    fault = await only_fault(await doctor(DATABASE_URL=with_database(durable.url, "postgres")))
    assert "migrations" in fault.says
    assert "budget-hub migrate" in fault.do


async def test_migrations_of_a_newer_version_are_noted(doctor: Doctor, good_url: str) -> None:
    connection = await asyncpg.connect(good_url)
    try:
        await connection.execute("INSERT INTO migrations (number, name) VALUES (9999, 'later')")
        findings = await doctor()
        assert faults(findings) == []
        assert any(each.mark is Mark.NOTE and "9999" in each.says for each in findings)
    finally:
        await connection.execute("DELETE FROM migrations WHERE number = 9999")
        await connection.close()


async def test_a_postgres_that_loses_what_it_acknowledged_is_wrong(
    doctor: Doctor, postgres: EmbeddedPostgres, database_url: str
) -> None:
    """The tests' own runs without fsync."""
    said = [says for about, says in faults(await doctor(DATABASE_URL=database_url))]
    assert [text.split(" = ")[0] for text in said] == ["fsync", "full_page_writes"]


async def test_the_hubs_sessions_commit_synchronously_whatever_the_default(
    doctor: Doctor, good_url: str
) -> None:
    connection = await asyncpg.connect(good_url)
    try:
        await connection.execute("ALTER DATABASE doctor SET synchronous_commit = off")
        assert faults(await doctor()) == []
    finally:
        await connection.execute("ALTER DATABASE doctor RESET synchronous_commit")
        await connection.close()


async def test_an_encoding_that_cannot_hold_all_text_is_wrong(
    doctor: Doctor, durable: EmbeddedPostgres
) -> None:
    connection = await asyncpg.connect(durable.url)
    await connection.execute(
        "CREATE DATABASE latin ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
        " TEMPLATE template0"
    )
    await connection.close()
    said = faults(await doctor(DATABASE_URL=with_database(durable.url, "latin")))
    assert ("postgres", "the database's encoding is SQL_ASCII") in said


async def test_too_few_connections_for_all_workers(doctor: Doctor) -> None:
    fault = await only_fault(await doctor(WEB_CONCURRENCY="64"))
    assert "max_connections" in fault.says


@pytest.mark.parametrize("ahead_s", [-90.0, 5.0])
async def test_a_clock_that_is_off(doctor: Doctor, ahead_s: float) -> None:
    fault = await only_fault(await doctor(now=lambda: time.time() + ahead_s))
    assert ("ahead of" if ahead_s > 0 else "behind") in fault.says


async def test_a_postgres_that_does_not_let_in(doctor: Doctor, good_url: str) -> None:
    password = urlsplit(good_url).password
    assert password is not None
    for url, said in [
        (good_url.replace(password, SECRET), "refuses the user or the password"),
        (good_url.replace("/doctor", "/nowhere"), "has no such database"),
        (
            f"postgresql://hub:{SECRET}@127.0.0.1:1/hub",
            "cannot be reached (Connection",
        ),
        (f"postgres://hub:{SECRET}@127.0.0.1:door/hub", "cannot be connected to"),
    ]:
        fault = await only_fault(await doctor(DATABASE_URL=url))
        assert (fault.about, fault.says[: len(said)]) == ("postgres", said)


async def test_redis(doctor: Doctor, redis: EmbeddedRedis) -> None:
    password = urlsplit(redis.url).password
    assert password is not None
    for url, said in [
        (redis.url.replace(password, SECRET), "refuses the password"),
        (f"redis://:{SECRET}@127.0.0.1:1", "cannot be reached"),
        (f"redis://:{SECRET}@127.0.0.1:door", "REDIS_URL cannot be read"),
    ]:
        fault = await only_fault(await doctor(REDIS_URL=url))
        assert (fault.about, fault.says[: len(said)]) == ("redis", said)
    findings = await doctor(REDIS_URL=None, WEB_CONCURRENCY="2")
    assert faults(findings) == []
    assert any(each.mark is Mark.NOTE and "workers" in each.says for each in findings)


async def test_photos(doctor: Doctor) -> None:
    fault = await only_fault(await doctor(PHOTO_DIR="/dev/null/photos"))
    assert (fault.about, "PHOTO_DIR" in fault.says) == ("photos", True)
    fault = await only_fault(
        await doctor(
            S3_BUCKET="photos",
            S3_REGION="eu-central-1",
            S3_ENDPOINT_URL="http://127.0.0.1:1",
            CDN_BASE_URL="http://127.0.0.1:1",
        )
    )
    assert (fault.about, "bucket photos" in fault.says) == ("photos", True)


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    with running() as google:
        ask_at(google.url, monkeypatch)
        yield google


@pytest.mark.parametrize(
    ("down", "said"),
    [
        (set[str](), []),
        ({"keys"}, ["Firebase's certificates cannot be fetched"]),
        ({"accounts"}, ["accounts cannot be looked up"]),
    ],
)
async def test_firebase(doctor: Doctor, google: Google, down: set[str], said: list[str]) -> None:
    google.down |= down
    account = encoded(google.service_account())
    findings = await doctor(AUTH_MODE="firebase", FIREBASE_SERVICE_ACCOUNT_BASE64=account)
    assert [says[: len(said[0])] for _, says in faults(findings)] == said
    assert account not in repr(findings)
    if not down:
        assert any(PROJECT in each.says for each in findings)


async def test_a_pooler_that_drops_what_sessions_ask_for_is_wrong(
    doctor: Doctor, good_url: str
) -> None:
    async with forgetful_pooler(good_url) as url:
        fault = await only_fault(await doctor(DATABASE_URL=url))
    assert "a pooler stands in between" in fault.says


async def test_a_pooler_in_transaction_mode_is_wrong(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever connects gets the same server process, as PgBouncer gives it to who is idle."""
    connect = asyncpg.connect
    servers: list[Any] = []

    class Pooled:
        def __getattr__(self, name: str) -> Any:
            return getattr(servers[0], name)

        async def close(self, timeout: float) -> None:
            """It stays, for the next one."""

    async def pooled(*asked: Any, **more: Any) -> Any:
        if not servers:
            servers.append(await connect(*asked, **more))
        return Pooled()

    monkeypatch.setattr(asyncpg, "connect", pooled)
    try:
        fault = await only_fault(await doctor())
    finally:
        await servers[0].close()
    assert "a pooler in transaction mode" in fault.says


@asynccontextmanager
async def forgetful_pooler(url: str) -> AsyncIterator[str]:
    """Lets connections through and keeps only `user` and `database` of what they ask for."""
    parts = urlsplit(url)

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4))
        rest = await reader.readexactly(size - 4)
        version, asked = rest[:4], rest[4:].split(b"\0")
        pairs = zip(asked[::2], asked[1::2], strict=False)
        kept = [part for pair in pairs if pair[0] in (b"user", b"database") for part in pair]
        startup = version + b"\0".join([*kept, b"", b""])
        server_reader, server = await asyncio.open_connection(parts.hostname, parts.port)
        server.write((len(startup) + 4).to_bytes(4) + startup)
        await asyncio.gather(_pass_on(reader, server), _pass_on(server_reader, writer))

    pooler = await asyncio.start_server(link, "127.0.0.1", 0)
    port = pooler.sockets[0].getsockname()[1]
    user, at, _ = parts.netloc.rpartition("@")
    netloc = f"{user}{at}127.0.0.1:{port}"
    async with pooler:
        # Without TLS it is not asked about that first.
        yield urlunsplit(parts._replace(netloc=netloc, query="sslmode=disable"))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
    writer.close()
    await writer.wait_closed()
