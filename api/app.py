"""The process that serves: REST, sockets, and what goes on behind them."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route

from api.auth import routes as auth_routes
from api.auth.closed_accounts import CHECK_S, RefusingClosedAccounts
from api.auth.revocation import Revocations
from api.documents.routes import Documents
from api.http.connections import Connections
from api.http.edge import Edge, cors
from api.http.errors import ERROR_HANDLERS
from api.http.guard import ApiKeys, Guard, LimitedByUser, PerMinute, RequestLimits
from api.http.requests import signed_in
from api.rest import errors, health
from api.rest.core import budgets, events, invites, members
from api.rest.files import disk_store
from api.rest.people import photos as photo_routes, profiles as profile_routes
from api.services import Services, new_id, open_services
from api.settings import Settings
from api.sync.endpoint import SyncDoor
from api.telemetry import logs, loop_lag, metrics
from api.telemetry.siblings import Siblings
from api.timeouts import APP_TIMEOUTS, AppTimeouts
from hub.hub import Hub
from hub.ports import Authenticator
from hub.service import Service
from storage.objects import photos
from storage.objects.disk import DiskPhotos
from storage.postgres import housekeeping
from storage.postgres.clock import LOOK_S
from storage.postgres.core.invites import Invites
from storage.postgres.core.snapshots import Snapshots
from storage.postgres.housekeeping import Housekeeping
from storage.redis.rate_limits import RateLimits


class App(NamedTuple):
    """What a server serves."""

    hub: Hub
    door: SyncDoor  # of sockets
    rest: Edge  # everything else
    routes: Sequence[BaseRoute]  # of REST


@asynccontextmanager
async def open_app(
    settings: Settings, siblings: Siblings | None = None, timeouts: AppTimeouts = APP_TIMEOUTS
) -> AsyncIterator[App]:
    """Everything built and running, until the context is left: then what was submitted is finished
    and all connections are closed. `siblings` are the other nodes of this server.

    Raises `Disconnected` if Postgres is out of reach, `StatementFailed`, `NotMigrated`."""
    async with (
        open_services(settings, timeouts) as services,
        open_rest(services, siblings or Siblings()) as app,
        running(services),
    ):
        yield app


@asynccontextmanager
async def running(services: Services) -> AsyncIterator[None]:
    """The background at work, until the context is left and what was submitted is finished."""
    work: list[Coroutine[Any, Any, None]] = [each.run() for each in background(services)]
    work.append(loop_lag.watch(services.lag_s))  # a loop of its own: its pause is what it measures
    if services.bus is not None:
        work.append(services.bus.run(services.hub.feeds))  # a connection, and no schedule
    # A sweeper or bus that died of a defect must take the process with it: without them the
    # hub would go on and quietly break P7. The task group does that.
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        try:
            yield
        finally:
            await services.hub.close()
            for task in tasks:
                task.cancel()


def background(services: Services) -> list[Service]:
    """What is done again and again."""
    settings = services.settings
    chores = {"photo uploads": services.photos.forget, "closing accounts": services.closing.finish}
    keeper = Housekeeping(services.database, chores, now=services.clock.now)
    found = [
        Service("sweeper", services.timeouts.sweep_s, services.hub.feeds.sweeper.run_once),
        Service(
            "photos", photos.SWEEP_S, services.photos.sweep, first_s=0.0, retry_s=photos.RETRY_S
        ),
        Service("closed accounts", CHECK_S, services.closed.look),
        Service("clock", LOOK_S, services.clock.look),
        Service(
            "housekeeping",
            settings.housekeeping_interval_s,
            keeper.run_once,
            first_s=settings.housekeeping_interval_s * random.random(),  # nodes take turns
            retry_s=housekeeping.RETRY_S,
        ),
    ]
    if (accounts := services.identity.accounts) is not None:
        revocations = Revocations(
            accounts, services.tokens.cache, services.hub, now_s=time.monotonic
        )
        found.append(Service("revocations", settings.revocation_check_s / 2, revocations.check))
    return found


@asynccontextmanager
async def open_rest(services: Services, siblings: Siblings) -> AsyncIterator[App]:
    """REST and sockets over the services."""
    settings, hub = services.settings, services.hub
    keys = ApiKeys(settings.api_key_list())
    counts = RateLimits(
        settings.redis_url,
        hub.log_id,
        settings.auth_secret.encode(),
        now_s=time.monotonic,
        cluster=settings.redis_cluster,
        timeouts=services.timeouts,
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
    # The edge is around what it counts for, and so are its numbers' page and the documents.
    rest = Starlette(
        middleware=[Middleware(Guard, keys, limits)], exception_handlers=ERROR_HANDLERS
    )
    # A path is one of ours or is none. Starlette would send the client, and its token, to
    # wherever `Host` says, and over plain HTTP behind a proxy.
    rest.router.redirect_slashes = False
    edge = Edge(cors(rest, settings.origin_list()))
    sources = _sources(services, edge)
    tokens = RefusingClosedAccounts(services.tokens, services.closed)
    routes = [
        *health.HealthRoutes(services.database, services.bus, services.photos).routes(),
        *metrics.routes(sources, siblings),
        *errors.routes(),
        *_routes(services, tokens, limits),
    ]
    rest.router.routes += [*routes, *Documents().routes()]
    origins = settings.origin_list()
    door = SyncDoor(
        hub,
        LimitedByUser(tokens, limits),
        keys=keys,
        limits=limits,
        connections=Connections(settings.connections_per_address, settings.trusted_proxies),
        origins=origins,
        now_ms=services.clock.now_ms,
        now_s=time.monotonic,
        new_id=new_id,
        timeouts=services.timeouts,
    )
    await siblings.open(lambda: metrics.told_as_json(sources))
    try:
        yield App(hub, door, edge, rest.routes)
    finally:
        await siblings.close()
        await counts.close()


def _sources(services: Services, edge: Edge) -> metrics.Sources:
    return metrics.Sources(
        hub=services.hub,
        database=services.database,
        bus=services.bus,
        photos=services.photos,
        tokens=services.tokens,
        edge=edge,
        workers=services.settings.web_concurrency,
        lag_s=services.lag_s,
        lost_lines=logs.lost_lines,
    )


def _routes(services: Services, tokens: Authenticator, limits: RequestLimits) -> list[Route]:
    """What users ask for."""
    settings, hub, store = services.settings, services.hub, services.store
    now_ms = services.clock.now_ms
    user = partial(signed_in, LimitedByUser(tokens, limits))
    snapshots = Snapshots(services.database)
    local = services.identity.local
    return [
        *(auth_routes.AuthRoutes(local, limits).routes() if local is not None else []),
        *events.EventRoutes(hub, time.monotonic, services.timeouts.keep_alive_s).routes(user),
        *budgets.BudgetRoutes(hub, snapshots).routes(user),
        *members.MemberRoutes(hub, snapshots, settings.max_participants, now_ms, new_id).routes(
            user
        ),
        *invites.InviteRoutes(Invites(services.database), now_ms, new_id).routes(user),
        *profile_routes.ProfileRoutes(services.profiles, services.closing).routes(
            user, closed_too=partial(signed_in, LimitedByUser(services.tokens, limits))
        ),
        *photo_routes.PhotoRoutes(
            services.photos, behind_proxy=settings.trusted_proxies > 0
        ).routes(user),
        *(disk_store.DiskStoreRoutes(store).routes() if isinstance(store, DiskPhotos) else []),
    ]
