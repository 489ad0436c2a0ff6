"""The pools: who may use which connection, and with which timeouts."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from hub.budget.records import UserId
from hub.committer import APART_MAX, LANES
from hub.errors import Disconnected, Held, ReadOnly, StatementFailed, StorageError
from hub.gate import Gate
from hub.turns import Crowded
from storage.postgres.errors import Defects, closed, translated
from storage.timeouts import STORAGE_TIMEOUTS, StorageTimeouts

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]

# How long a hub that is frozen or cut off may hold rows (design 4): the server ends an idle
# transaction after the first, and notices a peer that is gone by the others.
IDLE_IN_TRANSACTION_S = 3
STATEMENT_TIMEOUT_S = 30
LOCK_TIMEOUT_S = 5  # longer than that, so that a frozen hub costs a wait and not an error
RENEW_S = 5.0  # before all sessions are made anew once more

Purpose: TypeAlias = Literal["commits", "gaps", "feeds", "watch", "rest", "owners", "housekeeping"]


class Share(NamedTuple):
    """How many connections a purpose may use at a time and one user of it, how long one more waits
    for its turn, and what it gets if none comes."""

    connections: int
    per_user: int
    wait_s: float = 5.0
    late: type[StorageError] = Held


# Each purpose has connections of its own, so that none waits for the statements of another. Where
# users come, one of them has at most half: a user's slowest reads leave as many to the others. What
# the hub does there for no user is a user of its own.
SHARES: Mapping[Purpose, Share] = {
    "commits": Share(LANES + APART_MAX, LANES + APART_MAX, late=Disconnected),
    # What live subscriptions miss: no flood of those who are on the way may hold it up (P7).
    "gaps": Share(2, 2, wait_s=30.0, late=Disconnected),
    # Pages of the log. When every device comes back at once, thousands of them wait for one.
    "feeds": Share(4, 2, wait_s=30.0, late=Disconnected),
    # What looks every second, and may not wait for them: sweeps, closed accounts, `/readyz`.
    "watch": Share(2, 2, late=Disconnected),
    "rest": Share(4, 2),  # what a request asks for
    "owners": Share(2, 1),  # invites and link sharing, which wait for budgets that commits hold
    "housekeeping": Share(1, 1),  # holds the lock; `budget-hub verify` and `export` read by it
}
CONNECTIONS_MAX = sum(share.connections for share in SHARES.values())  # of one process

SESSION = {
    "application_name": "budget-hub",
    "timezone": "UTC",
    "datestyle": "ISO",  # dates leave as text, and go into digests
    "synchronous_commit": "on",  # P1, whatever the server's default is
    "default_transaction_isolation": "read committed",
    "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
    "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_S}s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "jit": "off",  # every statement here is short
}

# Every statement of a commit finds its rows by index, each once. The planner cannot know that the
# arrays are short, and with stale statistics of a fast growing table it would sooner or later scan
# it; and it would plan anew for each array, which costs more than the statement.
COMMIT_SESSION = {
    **SESSION,
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


class PoolUse(NamedTuple):
    """One pool at one moment, and how often since the start nobody got a connection in time."""

    used: int
    size_max: int
    waiting: int
    timeouts: int


class _Doubt:
    """Whether the sessions that there are may have been made in a bad moment: by a server that was
    about to become a standby, or with settings that were wrong for a while. A session never changes
    by itself, so one that answers so goes on answering so; all of them are made anew, and again
    after `RENEW_S` at the soonest, because a lasting defect is no reason to connect for each
    statement."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._next_s = now_s()
        self._raised = False

    @contextmanager
    def raised(self) -> Iterator[None]:
        """By what fails in it."""
        try:
            yield
        except (ReadOnly, StatementFailed):
            self._raised = self._raised or self._now_s() >= self._next_s
            raise

    def settle(self) -> bool:
        """Whether to make them anew now."""
        raised, self._raised = self._raised, False
        if raised:
            self._next_s = self._now_s() + RENEW_S
        return raised


class _Counted:
    """A pool that gives each user their turn, and knows who waits for it."""

    def __init__(self, pool: "Pool", share: Share, defects: Defects, doubt: _Doubt) -> None:
        self.pool = pool
        self._share = share
        self._gate = Gate(share.connections, share.per_user)
        self._defects = defects
        self._doubt = doubt
        self._connecting = 0
        self._timeouts = 0

    @asynccontextmanager
    async def connection(self, user_id: UserId | None) -> AsyncIterator["Connection"]:
        until_s = asyncio.get_running_loop().time() + self._share.wait_s
        await self._enter(user_id)
        try:
            connection = await self._acquired(until_s)
            try:
                translating = translated(partial(closed, connection), self._defects.note)
                with self._doubt.raised(), translating:
                    yield connection
            except ReadOnly:
                connection.terminate()  # released, it would be the next one's
                raise
            finally:
                await self.pool.release(connection)
        finally:
            self._gate.leave(user_id)

    async def _enter(self, user_id: UserId | None) -> None:
        """Get a turn."""
        try:
            await self._gate.enter(user_id, self._share.wait_s)
        except Crowded:
            raise Held("too many of one user wait") from None
        except TimeoutError:
            self._timeouts += 1
            if self._connecting:
                raise  # it was the turn of connections that are being made: the server is silent
            raise self._share.late("too many of them at a time") from None

    async def _acquired(self, until_s: float) -> "PoolConnectionProxy[asyncpg.Record]":
        """Every turn has its connection, so who waits here waits for the server."""
        self._connecting += 1
        try:
            left_s = until_s - asyncio.get_running_loop().time()
            return await self.pool.acquire(timeout=max(left_s, 0.0))
        except TimeoutError:
            self._timeouts += 1
            raise
        finally:
            self._connecting -= 1

    def use(self) -> PoolUse:
        used = self.pool.get_size() - self.pool.get_idle_size()
        waiting = self._gate.waiting + self._connecting
        return PoolUse(used, self.pool.get_max_size(), waiting, self._timeouts)


class Database:
    """A pool for each purpose, on one Postgres (design 4)."""

    def __init__(self, pools: Mapping[Purpose, _Counted], defects: Defects, doubt: _Doubt) -> None:
        self._pools = pools
        self.defects = defects
        self._doubt = doubt

    @classmethod
    async def connect(
        cls,
        url: str,
        shares: Mapping[Purpose, Share] = SHARES,
        timeouts: StorageTimeouts = STORAGE_TIMEOUTS,
        target: SessionAttribute = SessionAttribute.read_write,
    ) -> "Database":
        """Open the pools; connections themselves are made when first needed. Of several servers in
        the URL, the first that is the target is taken.

        Raises `Disconnected` if none can be reached, `ReadOnly` if none is the target."""
        defects, doubt = Defects(), _Doubt()
        with translated():
            pools = {
                each: await _pool(url, each, shares[each], timeouts, target) for each in shares
            }
        counted = {
            each: _Counted(pool, shares[each], defects, doubt) for each, pool in pools.items()
        }
        return cls(counted, defects, doubt)

    async def close(self) -> None:
        for counted in self._pools.values():
            try:
                async with asyncio.timeout(5):
                    await counted.pool.close()
            except TimeoutError:
                counted.pool.terminate()

    @asynccontextmanager
    async def committing(self) -> AsyncIterator["Connection"]:
        """A connection reserved for commits, inside a transaction."""
        async with self.connection("commits") as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def connection(
        self, purpose: Purpose, user_id: UserId | None = None
    ) -> AsyncIterator["Connection"]:
        """One of the connections of that purpose, for that user; None is the hub itself. Raises
        what its share says if none is free in time, and `Held` where too many of the user wait."""
        counted = self._pools[purpose]
        try:
            with translated(counted.pool.is_closing, self.defects.note):
                async with counted.connection(user_id) as connection:
                    yield connection
        finally:
            if self._doubt.settle():
                for each in self._pools.values():
                    await each.pool.expire_connections()

    @contextmanager
    def translated(self, connection: "Connection") -> Iterator[None]:
        """For a statement whose failure does not end the use of the connection."""
        with self._doubt.raised(), translated(partial(closed, connection), self.defects.note):
            yield

    def pools(self) -> dict[str, PoolUse]:
        """How the pools are used now, by their purpose."""
        return {purpose: counted.use() for purpose, counted in self._pools.items()}


async def _pool(
    url: str, purpose: Purpose, share: Share, timeouts: StorageTimeouts, target: SessionAttribute
) -> "Pool":
    commits = purpose == "commits"
    # Nothing here changes a session's state, so the reset between two users of a connection, a
    # round trip each, is left out.
    return await asyncpg.create_pool(
        url,
        min_size=int(commits),  # whose first one shows that the server is there
        max_size=share.connections,
        max_inactive_connection_lifetime=0,
        command_timeout=timeouts.command_s,
        timeout=timeouts.connect_s,
        target_session_attrs=target,
        server_settings=COMMIT_SESSION if commits else SESSION,
        reset=_keep,
    )


async def _keep(connection: "Connection") -> None:
    """Do nothing on release."""
