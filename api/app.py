"""The composition root: builds everything, in order, and takes it down again."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import routes as auth_routes
from api.auth.closed_accounts import ClosedAccountWatch, RefusingClosedAccounts
from api.auth.closing import AccountClosing
from api.auth.local import LocalIdentity
from api.auth.revocation import Accounts, Revocations
from api.auth.token_cache import CachedTokens
from api.auth.tokens import Tokens
from api.documents import routes as documents
from api.http.edge import Edge, cors
from api.http.errors import ERROR_HANDLERS
from api.http.guard import ApiKeys, Guard, LimitedByUser, PerMinute, RequestLimits
from api.rest import errors, health
from api.rest.core import budgets, events, invites, members
from api.rest.files import disk_store
from api.rest.people import photos as photo_routes, profiles as profile_routes
from api.settings import Settings
from api.sync.endpoint import SyncSocket
from api.telemetry import loop_lag, metrics
from api.telemetry.siblings import Siblings
from hub.committer import APART_MAX, LANES
from hub.hub import Hub
from hub.limits import Rates
from hub.ports import Authenticator
from hub.timeouts import TIMEOUTS, Timeouts
from storage.objects.disk import PUBLIC_PATH, DiskPhotos
from storage.objects.photos import Photos
from storage.objects.store import PhotoStore
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.core.invites import Invites
from storage.postgres.core.snapshots import Snapshots
from storage.postgres.database import Database
from storage.postgres.housekeeping import Housekeeping
from storage.postgres.migrate import pending
from storage.postgres.people.closed_accounts import ClosedAccounts
from storage.postgres.people.logins import Logins
from storage.postgres.people.profiles import Profiles
from storage.redis.bus import RedisBus
from storage.redis.cluster_bus import ClusterBus
from storage.redis.rate_limits import RateLimits

if TYPE_CHECKING:
    from api.telemetry.tracing import OpenTelemetry

FEEDS_MAX = 4  # connections for those who read on behalf of feeds
REST_READS_MAX = 4  # and beside these for REST
OWNERS_MAX = 2  # for invites and link sharing
HOUSEKEEPING_MAX = 1  # which holds the lock

_log = structlog.get_logger()


class NotMigrated(Exception):
    """The database lacks migrations of this version of the code."""

    def __str__(self) -> str:
        return f"run `budget-hub migrate` first; missing: {super().__str__()}"


class App:
    """The ASGI application: sockets to one side, everything else to Starlette."""

    def __init__(
        self, hub: Hub, socket: ASGIApp, rest: ASGIApp, routes: Sequence[BaseRoute]
    ) -> None:
        self.hub = hub
        self.routes = routes  # of REST
        self._socket = socket
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._socket if scope["type"] == "websocket" else self._rest
        await app(scope, receive, send)


@asynccontextmanager
async def open_app(
    settings: Settings, siblings: Siblings | None = None, timeouts: Timeouts = TIMEOUTS
) -> AsyncIterator[App]:
    """Everything built and running, until the context is left: then what was submitted is finished
    and all connections are closed. `siblings` are the other nodes of this server.

    Raises `Disconnected` if Postgres is out of reach, `NotMigrated`."""
    database = await Database.connect(
        settings.database_url,
        commits_max=LANES + APART_MAX,
        reads_max=FEEDS_MAX + REST_READS_MAX + OWNERS_MAX + HOUSEKEEPING_MAX,
    )
    try:
        async with database.reading() as connection:
            if lacking := await pending(connection):
                raise NotMigrated(", ".join(migration.name for migration in lacking))
        log = PostgresLog(database)
        log_id = await log.log_id()
        bus = open_bus(settings, log_id)
        rates = Rates(settings.events_per_s_connection, settings.events_per_s_user)
        tracer = _tracer(settings)
        hub = Hub(
            log,
            log_id,
            bus,
            now_ms=now_ms,
            jitter=random.random,
            rates=rates,
            tracer=tracer,
            timeouts=timeouts,
        )
        keys = ApiKeys(settings.api_key_list())
        counts = RateLimits(
            settings.redis_url,
            log_id,
            settings.auth_secret.encode(),
            now=time.time,
            cluster=settings.redis_cluster,
        )
        limits = RequestLimits(
            counts,
            PerMinute(
                user=settings.requests_per_min_user,
                address=settings.requests_per_min_address,
                login_address=settings.logins_per_min_address,
                login_email=settings.logins_per_min_email,
            ),
            trusted_proxies=settings.trusted_proxies,
        )
        identity = _identity(settings, database, limits)
        cached = CachedTokens(identity.authenticator, now_ms=now_ms)
        closed_accounts = ClosedAccounts(database)
        closed = ClosedAccountWatch(closed_accounts, hub)
        await closed.look()
        tokens = RefusingClosedAccounts(cached, closed)
        limited = LimitedByUser(tokens, limits)
        snapshots = Snapshots(database, REST_READS_MAX)
        store = photo_store(settings)
        photos = Photos(database, store, now=time.time, new_id=new_id)
        profiles = Profiles(database)
        closing = AccountClosing(
            hub, closed_accounts, closed, profiles, photos, now_ms=now_ms, new_id=new_id
        )
        housekeeping = Housekeeping(
            database,
            {"photo uploads": photos.forget, "closing accounts": closing.finish},
            interval_s=settings.housekeeping_interval_s,
            now=time.time,
            jitter=random.random,
        )
        # The edge is around what it counts for, and so are its numbers' page and the documents.
        rest = Starlette(
            middleware=[Middleware(Guard, keys, limits)],
            exception_handlers=ERROR_HANDLERS,
        )
        edge = Edge(cors(rest, settings.origin_list()))
        sources = metrics.Sources(
            hub, database, bus, photos, cached, edge, settings.web_concurrency
        )
        siblings = siblings or Siblings()
        routes = [
            *health.routes(database, bus, photos),
            *metrics.routes(sources, siblings),
            *errors.routes(),
            *identity.routes,
            *events.routes(hub, limited, now_ms=now_ms),
            *budgets.routes(hub, snapshots, limited),
            *members.routes(
                hub,
                snapshots,
                limited,
                participants_max=settings.max_participants,
                now_ms=now_ms,
                new_id=new_id,
            ),
            *invites.routes(Invites(database, OWNERS_MAX), limited, now_ms=now_ms, new_id=new_id),
            *profile_routes.routes(
                profiles, closing, limited, closed_too=LimitedByUser(cached, limits)
            ),
            *photo_routes.routes(photos, limited, behind_proxy=settings.trusted_proxies > 0),
            *(disk_store.routes(store) if isinstance(store, DiskPhotos) else []),
        ]
        rest.router.routes += [*routes, *documents.routes(routes)]
        # A path is one of ours or is none. Starlette would send the client, and its token, to
        # wherever `Host` says, and over plain HTTP behind a proxy.
        rest.router.redirect_slashes = False
        socket = SyncSocket(
            hub,
            tokens,
            keys=keys,
            origins=settings.origin_list(),
            now_ms=now_ms,
            new_id=new_id,
        )
        # A sweeper or bus that died of a defect must take the process with it: without them the
        # hub would go on and quietly break P7. The task group does that.
        async with aclosing(store), asyncio.TaskGroup() as background:
            tasks = [background.create_task(hub.feeds.sweeper.run())]
            tasks.append(background.create_task(photos.run()))
            tasks.append(background.create_task(closed.run()))
            tasks.append(background.create_task(housekeeping.run()))
            tasks.append(background.create_task(loop_lag.watch(sources.lag_s)))
            if bus is not None:
                tasks.append(background.create_task(bus.run(hub.feeds)))
            if identity.accounts is not None:
                revocations = Revocations(
                    identity.accounts,
                    cached.cache,
                    hub,
                    now_ms=now_ms,
                    within_s=settings.revocation_check_s,
                )
                tasks.append(background.create_task(revocations.run()))
            try:
                await siblings.open(lambda: metrics.told_as_json(sources))
                yield App(hub, socket, edge, rest.routes)
            finally:
                await siblings.close()
                await hub.close()
                if tracer is not None:
                    await tracer.close()
                await cached.close()
                await counts.close()
                for task in tasks:
                    task.cancel()
    finally:
        await database.close()


def _tracer(settings: Settings) -> "OpenTelemetry | None":
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    from api.telemetry import tracing  # here: it is an extra

    return tracing.open_tracer(settings.otel_exporter_otlp_endpoint)


class _Identity(NamedTuple):
    """Who signs users in. `accounts` is None where a token counts until it expires."""

    authenticator: Authenticator
    accounts: Accounts | None
    routes: Sequence[Route]


def _identity(settings: Settings, database: Database, limits: RequestLimits) -> _Identity:
    if settings.auth_mode == "firebase":
        from api.auth import firebase  # here: it takes a second and 50 MB to import

        emulated = settings.firebase_auth_emulator_host is not None
        if emulated:
            _log.warning("tokens of Firebase's emulator count: anybody can be anybody")
        client = firebase.open_client(
            settings.firebase_project(),
            settings.firebase_service_account(),
            emulated=emulated,
            keys=firebase.google_keys(now=time.time),
        )
        identity = firebase.Firebase(client, Profiles(database).introduce, now=time.time)
        return _Identity(identity, identity, [])
    secrets = settings.auth_secrets()
    local = LocalIdentity(secrets, Logins(database), now=time.time, new_id=new_id)
    return _Identity(Tokens(secrets, now=time.time), None, auth_routes.routes(local, limits))


def open_bus(settings: Settings, log_id: str) -> RedisBus | ClusterBus | None:
    """None for a single node."""
    if settings.redis_url is None:
        return None
    if settings.redis_cluster:
        return ClusterBus(settings.redis_url, log_id, new_node_id=new_node_id, jitter=random.random)
    return RedisBus(settings.redis_url, log_id, new_node_id(), jitter=random.random)


def photo_store(settings: Settings) -> PhotoStore:
    """S3 where there is a bucket, else a folder."""
    if settings.s3_bucket is None:
        return DiskPhotos(
            Path(settings.photo_dir),
            settings.auth_secrets(),
            base_url=settings.cdn_base_url or PUBLIC_PATH,
            now=time.time,
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
    )


def now_ms() -> int:
    return int(time.time() * 1000)


def new_node_id() -> bytes:
    return uuid.uuid4().bytes


def new_id() -> str:
    return str(uuid.uuid4())
