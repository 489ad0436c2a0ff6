"""The pools: who may use which connection, with which timeouts, and what a driver error means."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import asyncpg

from hub.errors import BadData, Disconnected, Held, LostRace

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]

# How long a hub that is frozen or cut off may hold rows (design 4): the server ends an idle
# transaction after the first, and notices a peer that is gone by the others.
IDLE_IN_TRANSACTION_S = 3
STATEMENT_TIMEOUT_S = 30
LOCK_TIMEOUT_S = 5  # longer than that, so that a frozen hub costs a wait and not an error
COMMAND_TIMEOUT_S = 10  # ours, for a server that has gone silent
ACQUIRE_TIMEOUT_S = 5
TURN_S = 5.0  # for others to finish

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


class _Counted:
    """A pool that knows who waits for it."""

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self._waiting = 0
        self._timeouts = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["Connection"]:
        self._waiting += 1
        try:
            connection = await self.pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
        except TimeoutError:
            self._timeouts += 1
            raise
        finally:
            self._waiting -= 1
        try:
            yield connection
        finally:
            await self.pool.release(connection)

    def use(self) -> PoolUse:
        used = self.pool.get_size() - self.pool.get_idle_size()
        return PoolUse(used, self.pool.get_max_size(), self._waiting, self._timeouts)


class Database:
    """Two pools on one Postgres: commits never wait for readers (design 4).

    Reads are bounded by the size of their pool; a reader waits for a connection at most
    `ACQUIRE_TIMEOUT_S` seconds, then the database counts as out of reach.
    """

    def __init__(self, commits: "Pool", reads: "Pool") -> None:
        self._commits = _Counted(commits)
        self._reads = _Counted(reads)

    @classmethod
    async def connect(cls, url: str, *, commits_max: int, reads_max: int) -> "Database":
        """Open the pools; connections themselves are made when first needed.

        Raises `Disconnected` if the server cannot be reached."""
        with translated():
            commits = await _pool(url, commits_max, COMMIT_SESSION)
            return cls(commits, await _pool(url, reads_max, SESSION))

    async def close(self) -> None:
        for pool in (self._commits.pool, self._reads.pool):
            try:
                async with asyncio.timeout(5):
                    await pool.close()
            except TimeoutError:
                pool.terminate()

    @asynccontextmanager
    async def committing(self) -> AsyncIterator["Connection"]:
        """A connection reserved for commits, inside a transaction."""
        with translated():
            async with self._commits.connection() as connection, connection.transaction():
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator["Connection"]:
        """A connection for everything that is not a commit of events."""
        with translated():
            async with self._reads.connection() as connection:
                yield connection

    def pools(self) -> dict[str, PoolUse]:
        """How the pools are used now, by their name."""
        return {"commit": self._commits.use(), "read": self._reads.use()}


@asynccontextmanager
async def turn(gate: asyncio.Semaphore) -> AsyncIterator[None]:
    """A turn among those that `gate` lets in at a time. Raises `Held` if none comes."""
    try:
        async with asyncio.timeout(TURN_S):
            await gate.acquire()
    except TimeoutError:
        raise Held("too many of them at a time") from None
    try:
        yield
    finally:
        gate.release()


async def _pool(url: str, size_max: int, session: dict[str, str]) -> "Pool":
    # Nothing here changes a session's state, so the reset between two users of a connection, a
    # round trip each, is left out.
    return await asyncpg.create_pool(
        url,
        min_size=1,
        max_size=size_max,
        max_inactive_connection_lifetime=0,
        command_timeout=COMMAND_TIMEOUT_S,
        timeout=ACQUIRE_TIMEOUT_S,
        server_settings=session,
        reset=_keep,
    )


async def _keep(connection: "Connection") -> None:
    """Do nothing on release."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn driver errors into the ones the hub knows."""
    try:
        yield
    except (
        asyncpg.UniqueViolationError,
        asyncpg.DeadlockDetectedError,
        asyncpg.SerializationError,
    ) as error:
        raise LostRace(_said(error)) from error
    except asyncpg.LockNotAvailableError as error:
        raise Held(_said(error)) from error
    except (
        asyncpg.DataError,
        asyncpg.IntegrityConstraintViolationError,
        ValueError,  # a parameter that the driver could not encode
    ) as error:
        # The driver's own words may quote the value; they stay out of the log (P9).
        constraint = getattr(error, "constraint_name", None)
        raise BadData(" ".join(filter(None, [type(error).__name__, constraint]))) from None
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
        TimeoutError,
    ) as error:
        # Lost or refused connections, a server that starts, stops or is full, a statement that took
        # too long: nothing that the events themselves could be blamed for.
        raise Disconnected(f"{type(error).__name__}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """For the log: without the DETAIL, in which Postgres quotes keys and rows (P9)."""
    if isinstance(error, asyncpg.PostgresError) and error.args:
        return str(error.args[0])
    return str(error)
