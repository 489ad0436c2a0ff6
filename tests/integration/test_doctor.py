"""What `budget-hub doctor` finds on real services: nothing where all is well, each thing that is
wrong, what to do about it, and never a secret."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from api.doctor import Finding, Mark, examine
from storage.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.conftest import migrated, with_database
from tests.google import PROJECT, Google, ask_at, encoded, running

SECRET = "the-doctor-must-never-say-this-aloud"

Doctor = Callable[..., Awaitable[list[Finding]]]


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """As people run it: with fsync."""
    with EmbeddedPostgres.start(tmp_path_factory.mktemp("durable")) as postgres:
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
