"""`budget-hub doctor`: is everything there that this hub needs, as it needs it; if not, what to do.

It reads the environment as `serve` does, and changes nothing. Every finding says what to do. None
quotes a setting whose value is secret, nor what a driver says, which may: only kinds of errors.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.services import photo_store
from api.settings import Settings, SettingsError
from hub.errors import StoreDown
from storage.postgres.database import COMMIT_SESSION, CONNECTIONS_MAX
from storage.postgres.migrate import migrations, pending

if TYPE_CHECKING:
    from storage.postgres.database import Connection

POSTGRES = "postgres"
POSTGRES_VERSION_MIN = 15
REDIS_VERSION_MIN = (6, 2)
CLOCK_S = 1.0  # beyond it, times on the dashboard and the validity of tokens are off
ANSWER_S = 5.0


class Mark(Enum):
    OK = "ok"
    NOTE = "note"  # it works; somebody should know
    WRONG = "WRONG"


class Finding(NamedTuple):
    mark: Mark
    about: str
    says: str
    do: str = ""


def ok(about: str, says: str) -> Finding:
    return Finding(Mark.OK, about, says)


def note(about: str, says: str, do: str) -> Finding:
    return Finding(Mark.NOTE, about, says, do)


def wrong(about: str, says: str, do: str) -> Finding:
    return Finding(Mark.WRONG, about, says, do)


async def examine(
    environ: Mapping[str, str], *, now: Callable[[], float]
) -> AsyncGenerator[Finding, None]:
    """One finding after the other; without settings there is but one. `now` gives epoch seconds."""
    try:
        settings = Settings.from_env(environ)
    except SettingsError as error:
        yield wrong("settings", str(error), "set it as README.md says, then ask again")
        return
    for finding in of_settings(settings):
        yield finding
    async for finding in of_postgres(settings, now):
        yield finding
    yield await of_redis(settings)
    yield await of_photos(settings, now)
    async for finding in of_identity(settings, now):
        yield finding


def of_settings(settings: Settings) -> Iterator[Finding]:
    about = "settings"
    yield ok(about, "complete")
    if settings.web_concurrency > 1 and settings.redis_url is None:
        yield note(
            about,
            "several workers without REDIS_URL get each other's events from the log, up to two"
            " seconds late",
            "set REDIS_URL, or WEB_CONCURRENCY=1",
        )
    if not settings.production:
        yield note(about, "PRODUCTION is not set", "where people use this hub, set it to true")
    if settings.auth_secret_previous is not None:
        yield note(
            about,
            "AUTH_SECRET_PREVIOUS counts too",
            "take it away once the change of secrets is over (api/README.md)",
        )


async def of_postgres(
    settings: Settings, now: Callable[[], float]
) -> AsyncGenerator[Finding, None]:
    began_s = time.monotonic()
    try:
        # As the committer's connections: a pooler that drops its parameters shows here.
        connection = await asyncpg.connect(
            settings.database_url, timeout=ANSWER_S, server_settings=COMMIT_SESSION
        )
    except asyncpg.InvalidAuthorizationSpecificationError:
        yield wrong(POSTGRES, "refuses the user or the password", "correct DATABASE_URL")
        return
    except asyncpg.InvalidCatalogNameError:
        yield wrong(
            POSTGRES, "has no such database", "create it (infra/README.md), or correct DATABASE_URL"
        )
        return
    except asyncpg.TooManyConnectionsError:
        yield wrong(POSTGRES, "has no connection left", "end others, or raise max_connections")
        return
    except (OSError, TimeoutError) as error:
        yield wrong(
            POSTGRES,
            f"cannot be reached ({type(error).__name__})",
            "is it started, do host and port in DATABASE_URL lead to it, may this machine connect,"
            " does the certificate fit?",
        )
        return
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        yield wrong(
            POSTGRES,
            f"cannot be connected to ({type(error).__name__})",
            "check DATABASE_URL; no pooler in transaction mode may stand in between",
        )
        return
    yield ok(POSTGRES, f"reached in {(time.monotonic() - began_s) * 1000:.0f} ms")
    try:
        async for finding in _of_server(connection, settings, now):
            yield finding
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        yield wrong(POSTGRES, f"does not answer ({type(error).__name__})", "look into its log")
    finally:
        with suppress(asyncpg.PostgresError, OSError, TimeoutError):
            await connection.close(timeout=ANSWER_S)


async def _of_server(
    connection: "Connection", settings: Settings, now: Callable[[], float]
) -> AsyncGenerator[Finding, None]:
    version = connection.get_server_version()
    if version.major < POSTGRES_VERSION_MIN:
        yield wrong(POSTGRES, f"is version {version.major}", f"use {POSTGRES_VERSION_MIN} or newer")
        return
    yield ok(POSTGRES, f"version {version.major}.{version.minor}")
    for check in (
        _of_way(connection, settings),
        _of_durability(connection),
        _of_database(connection),
        _of_clocks(connection, now),
        _of_capacity(connection, settings),
        _of_tables(connection),
    ):
        async for finding in check:
            yield finding


async def _of_way(connection: "Connection", settings: Settings) -> AsyncGenerator[Finding, None]:
    """What DATABASE_URL leads to, and what stands in between."""
    if await _ask(connection, "SELECT pg_is_in_recovery()"):
        yield wrong(
            POSTGRES, "is a standby, which takes no writes", "point DATABASE_URL to the primary"
        )
    if await _ask(connection, "SHOW plan_cache_mode") != COMMIT_SESSION["plan_cache_mode"]:
        yield wrong(
            POSTGRES,
            "a pooler stands in between and drops what the hub asks for its sessions: timeouts,"
            " plans, synchronous_commit",
            "connect directly",
        )
    if await _shared(connection, settings):
        yield wrong(
            POSTGRES,
            "a pooler in transaction mode stands in between: prepared statements get lost",
            "connect directly, or through a pooler in session mode that passes parameters on",
        )


async def _of_durability(connection: "Connection") -> AsyncGenerator[Finding, None]:
    synchronous = await _ask(connection, "SHOW synchronous_commit")
    if synchronous in ("on", "remote_apply"):
        yield ok(POSTGRES, f"synchronous_commit = {synchronous} in the hub's sessions")
    else:
        yield wrong(
            POSTGRES,
            f"synchronous_commit = {synchronous}, though the hub asks for `on`: what is"
            " acknowledged can be lost",
            "connect directly",
        )
    for name in ("fsync", "full_page_writes"):
        if await _ask(connection, f"SHOW {name}") == "off":
            yield wrong(
                POSTGRES,
                f"{name} = off: a crash of the machine loses what was acknowledged",
                f"set {name} = on in postgresql.conf",
            )


async def _of_database(connection: "Connection") -> AsyncGenerator[Finding, None]:
    row = await connection.fetchrow(
        """
        SELECT pg_encoding_to_char(encoding) AS encoding, datcollate AS name,
               datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual
        FROM pg_database WHERE datname = current_database()
        """,
        timeout=ANSWER_S,
    )
    assert row is not None
    if row["encoding"] != "UTF8":
        yield wrong(
            POSTGRES,
            f"the database's encoding is {row['encoding']}",
            "make it anew with ENCODING 'UTF8' TEMPLATE template0",
        )
    elif row["recorded"] is not None and row["recorded"] != row["actual"]:
        yield wrong(
            POSTGRES,
            "the system's collation has changed under the database: indexes of text may be wrong",
            "REINDEX DATABASE, then ALTER DATABASE … REFRESH COLLATION VERSION",
        )
    else:
        yield ok(POSTGRES, f"encoding UTF8, locale {row['name']}")
    yield ok(POSTGRES, "extensions: none is needed")


async def _of_clocks(
    connection: "Connection", now: Callable[[], float]
) -> AsyncGenerator[Finding, None]:
    seconds = await _clock_difference_s(connection, now)
    if abs(seconds) > CLOCK_S:
        yield wrong(
            POSTGRES,
            f"this machine's clock is {abs(seconds):.1f} s"
            f" {'behind' if seconds > 0 else 'ahead of'} the database's",
            "start NTP on both",
        )
    else:
        yield ok(POSTGRES, f"clocks are {abs(seconds) * 1000:.0f} ms apart")


async def _of_capacity(
    connection: "Connection", settings: Settings
) -> AsyncGenerator[Finding, None]:
    most = int(await _ask(connection, "SHOW max_connections"))
    needed = CONNECTIONS_MAX * settings.web_concurrency
    if most < needed:
        yield wrong(
            POSTGRES,
            f"max_connections = {most}, and {settings.web_concurrency} workers want up to {needed}",
            "raise it, or lower WEB_CONCURRENCY",
        )
    else:
        yield ok(POSTGRES, f"max_connections = {most}; this server wants up to {needed}")


async def _of_tables(connection: "Connection") -> AsyncGenerator[Finding, None]:
    if lacking := await pending(connection):
        yield wrong(
            POSTGRES,
            f"lacks {len(lacking)} of {len(migrations())} migrations, from {lacking[0].name} on",
            "run `budget-hub migrate`",
        )
        return
    yield ok(POSTGRES, f"all {len(migrations())} migrations are applied")
    newest = await _ask(connection, "SELECT max(number) FROM migrations")
    if newest > migrations()[-1].number:
        yield note(
            POSTGRES,
            f"knows migration {newest}, which this version does not",
            "fine while a newer version is deployed; else deploy that",
        )
    if not await _ask(connection, "SELECT has_table_privilege('accepted_events', 'INSERT')"):
        yield wrong(POSTGRES, "the user may not write", "connect as the owner of the tables")
    log_id = await _ask(connection, "SELECT log_id::text FROM log_identity")
    yield ok(POSTGRES, f"logId {log_id}: the same on all nodes of one deployment")


async def _ask(connection: "Connection", query: str) -> Any:
    return await connection.fetchval(query, timeout=ANSWER_S)


async def _shared(connection: "Connection", settings: Settings) -> bool:
    """Whether two connections have one server process, which only a pooler can bring about."""
    server = "SELECT pg_backend_pid()"
    other = await asyncpg.connect(
        settings.database_url, timeout=ANSWER_S, server_settings=COMMIT_SESSION
    )
    try:
        return bool(await _ask(other, server) == await _ask(connection, server))
    finally:
        await other.close(timeout=ANSWER_S)


async def _clock_difference_s(connection: "Connection", now: Callable[[], float]) -> float:
    """How far the database's clock is ahead of ours."""
    differences = []
    for _ in range(3):
        asked_s = now()
        theirs_s = await _ask(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
        answered_s = now()
        differences.append((answered_s - asked_s, theirs_s - (asked_s + answered_s) / 2))
    return float(min(differences)[1])  # that of the quickest answer


async def of_redis(settings: Settings) -> Finding:
    about = "redis"
    if settings.redis_url is None:
        return note(about, "REDIS_URL is not set: a single node", "for several, set it")
    try:
        client = redis.asyncio.Redis.from_url(
            settings.redis_url,
            retry=Retry(NoBackoff(), 0, supported_errors=()),
            socket_connect_timeout=ANSWER_S,
            socket_timeout=ANSWER_S,
        )
    except ValueError:
        return wrong(about, "REDIS_URL cannot be read", "redis://:PASSWORD@HOST:6379")
    try:
        async with client, asyncio.timeout(2 * ANSWER_S):
            info = await client.info("server")
            known = str(info.get("valkey_version") or info["redis_version"])
            spoken = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
            if spoken < REDIS_VERSION_MIN:
                return wrong(about, f"is version {known}", "use Redis 6.2, or Valkey")
            channel = f"budget-hub:doctor:{uuid.uuid4()}"
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(channel)
                await pubsub.get_message(timeout=ANSWER_S)
                await client.publish(channel, b"heard")
                heard = await pubsub.get_message(ignore_subscribe_messages=True, timeout=ANSWER_S)
        if heard is None:
            return wrong(about, "takes messages and does not bring them", "look into its log")
        return ok(about, f"version {known}, hears itself")
    except redis.exceptions.AuthenticationError:
        return wrong(about, "refuses the password", "correct REDIS_URL")
    except (RedisError, OSError, TimeoutError) as error:
        return wrong(
            about,
            f"cannot be reached ({type(error).__name__})",
            "is it started, and does REDIS_URL lead to it? The hub works without it, more slowly",
        )


async def of_photos(settings: Settings, now: Callable[[], float]) -> Finding:
    about = "photos"
    where = "PHOTO_DIR" if settings.s3_bucket is None else f"bucket {settings.s3_bucket}"
    async with aclosing(photo_store(settings, now)) as store:
        try:
            await store.check()
        except StoreDown as down:
            return wrong(
                about,
                f"{where} is out of reach ({down})",
                "make the folder writable for this user"
                if settings.s3_bucket is None
                else "NoCredentialsError or 403: the credentials (infra/README.md, step 5); 404 or"
                " 301: S3_BUCKET or S3_REGION; else the network",
            )
    if settings.s3_bucket is None and settings.production:
        return note(
            about,
            "are kept in PHOTO_DIR",
            "with several machines all need the same folder; S3_BUCKET is for that",
        )
    return ok(about, f"{where} is there")


async def of_identity(
    settings: Settings, now: Callable[[], float]
) -> AsyncGenerator[Finding, None]:
    about = "identity"
    if settings.auth_mode == "local":
        yield ok(about, "local: the hub signs users in itself")
        return
    from api.auth import firebase  # here: it takes a second to import
    from api.auth.revocation import Unreachable

    if settings.firebase_auth_emulator_host is not None:
        yield note(
            about,
            "Firebase's emulator: anybody can be anybody",
            "take FIREBASE_AUTH_EMULATOR_HOST away where people use this hub",
        )
        return

    async def introduce(*_: object) -> None:
        """The doctor signs nobody in."""

    keys = firebase.google_keys(now_s=time.monotonic)
    client = firebase.open_client(
        settings.firebase_project(),
        settings.firebase_service_account(),
        emulated=False,
        keys=keys,
    )
    if await asyncio.to_thread(firebase.reach, keys):
        yield ok(about, "Firebase's certificates can be fetched")
    else:
        yield wrong(
            about,
            "Firebase's certificates cannot be fetched: no token can be verified",
            "let this machine reach Google on port 443",
        )
    try:
        await firebase.Firebase(client, introduce, now=now).valid_since_ms(["doctor"])
        yield ok(about, f"accounts of {settings.firebase_project()} can be looked up")
    except Unreachable as error:
        yield wrong(
            about,
            f"accounts cannot be looked up ({error}): nobody is signed out who was disabled",
            "the service account needs the role Firebase Authentication Viewer, and a key that was"
            " not deleted",
        )
