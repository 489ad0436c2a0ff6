"""What every kind of process is built of: database, hub, bus, photos, and who signs users in.

REST and sockets (`api.app`) are one use of it.
"""

import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog
from asyncpg.connect_utils import SessionAttribute

from api.auth.closed_accounts import ClosedAccountWatch
from api.auth.closing import AccountClosing
from api.auth.local import LocalIdentity
from api.auth.revocation import Accounts
from api.auth.token_cache import CachedTokens
from api.auth.tokens import Tokens
from api.settings import Settings
from api.timeouts import APP_TIMEOUTS, AppTimeouts
from hub.hub import Hub
from hub.limits import Rates
from hub.measures import LAG_S, Histogram
from hub.ports import Authenticator
from storage.objects.disk import PUBLIC_PATH, DiskPhotos
from storage.objects.photos import Photos
from storage.objects.store import PhotoStore
from storage.postgres.clock import DatabaseClock
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.database import Database
from storage.postgres.migrate import pending
from storage.postgres.people.closed_accounts import ClosedAccounts
from storage.postgres.people.logins import Logins
from storage.postgres.people.profiles import Profiles
from storage.redis.bus import RedisBus
from storage.redis.cluster_bus import ClusterBus
from storage.timeouts import STORAGE_TIMEOUTS, StorageTimeouts

if TYPE_CHECKING:
    from api.telemetry.tracing import OpenTelemetry

_log = structlog.get_logger()


class NotMigrated(Exception):
    """The database lacks migrations of this version of the code."""

    def __str__(self) -> str:
        return f"run `budget-hub migrate` first; missing: {super().__str__()}"


class Identity(NamedTuple):
    """Who signs users in: `local` this hub itself, or else somebody elsewhere. `accounts` is None
    where a token counts until it expires."""

    authenticator: Authenticator
    accounts: Accounts | None = None
    local: LocalIdentity | None = None


@dataclass(frozen=True)
class Services:
    """`bus` is None for a single node. Nothing of it does anything by itself: see
    `api.app.background`."""

    settings: Settings
    timeouts: AppTimeouts
    database: Database
    clock: DatabaseClock
    hub: Hub
    bus: RedisBus | ClusterBus | None
    store: PhotoStore
    photos: Photos
    profiles: Profiles
    identity: Identity
    tokens: CachedTokens
    closed: ClosedAccountWatch
    closing: AccountClosing
    lag_s: Histogram = field(default_factory=lambda: Histogram(LAG_S))  # of the event loop


@asynccontextmanager
async def open_services(
    settings: Settings, timeouts: AppTimeouts = APP_TIMEOUTS
) -> AsyncIterator[Services]:
    """Everything built and connected, until the context is left.

    Raises `Disconnected` if Postgres is out of reach, `StatementFailed`, `NotMigrated`."""
    async with open_database(settings.database_url, timeouts) as database:
        clock = DatabaseClock(database)
        await clock.look()
        log = PostgresLog(database)
        log_id = await log.log_id()
        bus = open_bus(settings, log_id, timeouts)
        tracer = _tracer(settings)
        rates = Rates(settings.events_per_s_connection, settings.events_per_s_user)
        hub = Hub(
            log,
            log_id,
            bus,
            now_ms=clock.now_ms,
            jitter=random.random,
            rates=rates,
            quotas=settings.quotas(),
            connections_per_user=settings.connections_per_user,
            tracer=tracer,
            timeouts=timeouts,
        )
        identity = _identity(settings, database, clock, timeouts)
        tokens = CachedTokens(identity.authenticator, now_s=time.monotonic)
        accounts = ClosedAccounts(database)
        closed = ClosedAccountWatch(accounts, hub)
        await closed.look()
        profiles = Profiles(database)
        async with aclosing(photo_store(settings, clock.now, timeouts)) as store:
            photos = Photos(database, store, now=clock.now, new_id=new_id)
            closing = AccountClosing(
                hub,
                accounts,
                closed,
                profiles,
                photos,
                now_ms=clock.now_ms,
                new_id=new_id,
                timeouts=timeouts,
            )
            try:
                yield Services(
                    settings=settings,
                    timeouts=timeouts,
                    database=database,
                    clock=clock,
                    hub=hub,
                    bus=bus,
                    store=store,
                    photos=photos,
                    profiles=profiles,
                    identity=identity,
                    tokens=tokens,
                    closed=closed,
                    closing=closing,
                )
            finally:
                if tracer is not None:
                    await tracer.close()
                await tokens.close()


@asynccontextmanager
async def open_database(
    url: str,
    timeouts: StorageTimeouts = STORAGE_TIMEOUTS,
    target: SessionAttribute = SessionAttribute.read_write,
) -> AsyncIterator[Database]:
    """Raises `Disconnected` if Postgres is out of reach, `StatementFailed`, `NotMigrated`."""
    database = await Database.connect(url, timeouts=timeouts, target=target)
    try:
        async with database.connection("feeds") as connection:
            if lacking := await pending(connection):
                raise NotMigrated(", ".join(migration.name for migration in lacking))
        yield database
    finally:
        await database.close()


def _tracer(settings: Settings) -> "OpenTelemetry | None":
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    from api.telemetry import tracing  # here: it is an extra

    return tracing.open_tracer(settings.otel_exporter_otlp_endpoint)


def _identity(
    settings: Settings, database: Database, clock: DatabaseClock, timeouts: AppTimeouts
) -> Identity:
    if settings.auth_mode == "firebase":
        from api.auth import firebase  # here: it takes a second and 50 MB to import

        emulated = settings.firebase_auth_emulator_host is not None
        if emulated:
            _log.warning("tokens of Firebase's emulator count: anybody can be anybody")
        client = firebase.open_client(
            settings.firebase_project(),
            settings.firebase_service_account(),
            emulated=emulated,
            keys=firebase.google_keys(now_s=time.monotonic),
        )
        introduce = Profiles(database).introduce
        identity = firebase.Firebase(client, introduce, now=clock.now, timeouts=timeouts)
        return Identity(identity, accounts=identity)
    secrets = settings.auth_secrets()
    local = LocalIdentity(secrets, Logins(database), now=clock.now, new_id=new_id)
    return Identity(Tokens(secrets, now=clock.now), local=local)


def open_bus(
    settings: Settings, log_id: str, timeouts: StorageTimeouts
) -> RedisBus | ClusterBus | None:
    """None for a single node."""
    if settings.redis_url is None:
        return None
    if settings.redis_cluster:
        return ClusterBus(
            settings.redis_url,
            log_id,
            new_node_id=new_node_id,
            jitter=random.random,
            timeouts=timeouts,
        )
    return RedisBus(
        settings.redis_url, log_id, new_node_id(), jitter=random.random, timeouts=timeouts
    )


def photo_store(
    settings: Settings,
    now: Callable[[], float],
    timeouts: StorageTimeouts = STORAGE_TIMEOUTS,
) -> PhotoStore:
    """S3 where there is a bucket, else a folder. `now` gives epoch seconds."""
    if settings.s3_bucket is None:
        return DiskPhotos(
            Path(settings.photo_dir),
            settings.auth_secrets(),
            base_url=settings.cdn_base_url or PUBLIC_PATH,
            now=now,
        )
    import boto3  # takes a while, and 30 MB

    from storage.objects.s3 import S3Photos

    assert settings.s3_region is not None and settings.cdn_base_url is not None
    return S3Photos(
        boto3.Session(),  # credentials as boto3 finds them: the environment, the machine's role
        settings.s3_bucket,
        settings.s3_region,
        endpoint_url=settings.s3_endpoint_url,
        cdn_base_url=settings.cdn_base_url,
        timeouts=timeouts,
    )


def new_node_id() -> bytes:
    return uuid.uuid4().bytes


def new_id() -> str:
    return str(uuid.uuid4())
