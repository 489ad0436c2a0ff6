"""Committers that race on a real Postgres, and hands to put what races in either order.

`Node` is the committer of one hub. `Halting` stops it inside its transaction; `Elsewhere` is
another hub's lock. Nothing here waits for time to pass.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson
import pytest

from hub.budget.events import EVENTS_PER_FRAME_MAX, Submitted, parse_batch
from hub.budget.records import BudgetId, UserId
from hub.budget.state import LogRow
from hub.budget.verdicts import Verdict
from hub.committer import Committer, Mode
from hub.tracing import Origins
from storage.postgres import database as database_module
from storage.postgres.core.event_log import PostgresLog, PostgresTransaction
from storage.postgres.core.snapshots import Snapshots
from storage.postgres.database import Database
from tests.patience import PATIENT

DEADLINE_S = 30.0
NOW_MS = 1_800_000_000_000

Json = dict[str, Any]

_numbers = itertools.count(1)


def new_id() -> str:
    """Later ids are greater."""
    return f"00000000-0000-4000-b000-{next(_numbers):012x}"


def event(event_type: str, budget_id: BudgetId, **fields: Any) -> Json:
    head = {"eventId": new_id(), "eventType": event_type, "budgetId": budget_id, "when": 1}
    return {**head, **fields}


def create(budget_id: BudgetId, title: str = "Home") -> Json:
    return event("budget.create", budget_id, title=title)


def edit(budget_id: BudgetId, version: int, **fields: Any) -> Json:
    return event("budget.edit", budget_id, version=version, **fields)


def expense(budget_id: BudgetId, **fields: Any) -> Json:
    of_expense = {"recordId": new_id(), "amount": "1.50", "date": "2026-03-01"}
    return event("expense.add", budget_id, **of_expense | fields)


def ask(
    committer: Committer, actor: UserId, events: Sequence[Submitted], mode: Mode
) -> asyncio.Future[list[Verdict]]:
    """Submit the events at once; the future gives their verdicts."""
    answer: asyncio.Future[list[Verdict]] = asyncio.get_running_loop().create_future()
    committer.submit(actor, events, mode, answer)
    return answer


class Node:
    """The committer of one hub, and what it delivered."""

    def __init__(self, database: Database, log: "Halting | None" = None, **how: Any) -> None:
        self.log = log or Halting(database)
        self.snapshots = Snapshots(database)
        self.delivered: list[tuple[BudgetId, int]] = []
        self.committer = Committer(
            self.log,
            self.deliver,
            now_ms=lambda: NOW_MS,
            jitter=lambda: 0.5,
            **{"timeouts": PATIENT} | how,
        )

    def deliver(
        self, budget_id: BudgetId, rows: Sequence[LogRow], at_ms: int | None, origins: Origins
    ) -> None:
        self.delivered += [(budget_id, row.sequence) for row in rows]

    def send(
        self, user: UserId, *events: Json, mode: Mode = "stop"
    ) -> asyncio.Future[list[Verdict]]:
        return ask(self.committer, user, parse_batch(list(events), EVENTS_PER_FRAME_MAX), mode)

    async def told(self, user: UserId, *events: Json, mode: Mode = "stop") -> list[Json]:
        """The verdicts, on the wire."""
        return as_json(await within(self.send(user, *events, mode=mode)))

    async def made(self, user: UserId, *events: Json) -> list[Json]:
        """The verdicts of events that are all accepted."""
        verdicts = await self.told(user, *events)
        assert [verdict["status"] for verdict in verdicts] == ["accepted"] * len(events)
        return verdicts

    async def end(self) -> None:
        try:
            await within(self.committer.drain(), 5)
        except TimeoutError:  # a failed test left something halted
            for task in self.committer._tasks:
                task.cancel()

    async def new_budget(self, user: UserId = "ann") -> BudgetId:
        budget_id = new_id()
        await self.made(user, create(budget_id))
        return budget_id


def as_json(verdicts: Sequence[Verdict]) -> list[Json]:
    return [orjson.loads(orjson.dumps(verdict.to_json())) for verdict in verdicts]


def outcomes(verdicts: Sequence[Json]) -> list[str]:
    """`accepted`, `duplicate`, `conflict`, or the code of a rejection."""
    return [
        verdict["error"]["message"]
        if "error" in verdict
        else "duplicate"
        if "duplicate" in verdict
        else verdict["status"]
        for verdict in verdicts
    ]


async def within(awaited: Awaitable[Any], timeout_s: float = DEADLINE_S) -> Any:
    async with asyncio.timeout(timeout_s):
        return await awaited


class Halting(PostgresLog):
    """The log, with hooks in its transactions: before the lock, before COMMIT and after it."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.transactions = 0
        self.before_lock: Callable[[], Awaitable[None]] = nothing
        self.before_commit: Callable[[], Awaitable[None]] = nothing
        self.after_commit: Callable[[], Awaitable[None]] = nothing

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        self.transactions += 1
        await self.before_lock()
        async with super().transaction() as transaction:
            yield transaction
            await self.before_commit()
        await self.after_commit()


async def nothing() -> None:
    pass


class Halt:
    """A place where one stops until released: who comes the first time, unless said otherwise."""

    def __init__(self, *, time: int = 1) -> None:
        self._passes = time - 1
        self._reached = asyncio.Event()
        self._released = asyncio.Event()
        self._error: Exception | None = None

    async def __call__(self) -> None:
        if self._passes:
            self._passes -= 1
        elif not self._reached.is_set():
            self._reached.set()
            await self._released.wait()
            if self._error is not None:
                raise self._error

    async def reached(self) -> None:
        await within(self._reached.wait())

    def release(self, error: Exception | None = None) -> None:
        """Let it go on, or fail there."""
        self._error = error
        self._released.set()


def once(error: Exception) -> Callable[[], Awaitable[None]]:
    """Fails the first time."""
    errors = [error]

    async def fail() -> None:
        if errors:
            raise errors.pop()

    return fail


class Elsewhere:
    """A plain connection: another hub's locks, a look at what is committed, an operator's hand."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.connection = connection
        self.execute = connection.execute
        self.fetchval = connection.fetchval

    @asynccontextmanager
    async def holding(self, *budget_ids: BudgetId) -> AsyncIterator[None]:
        """Another hub is busy with these budgets."""
        async with self.connection.transaction():
            rows = await self.connection.fetch(
                "SELECT FROM budgets WHERE id = ANY($1::uuid[]) FOR NO KEY UPDATE", budget_ids
            )
            assert len(rows) == len(budget_ids)
            yield

    async def log(self, *budget_ids: BudgetId) -> list[tuple[str, int, str]]:
        """Budget, sequence and eventId of what is committed, in order."""
        rows = await self.connection.fetch(
            """
            SELECT budget_id::text, sequence, event_id::text FROM accepted_events
            WHERE budget_id = ANY($1::uuid[]) ORDER BY budget_id, sequence
            """,
            budget_ids,
        )
        return [tuple(row) for row in rows]

    async def someone_waits(self) -> None:
        """Return when a hub waits for a lock."""

        async def waits() -> bool:
            await self.execute("SELECT pg_stat_clear_snapshot()")  # if we are in a transaction
            return bool(
                await self.fetchval(
                    """
                    SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'budget-hub'
                      AND wait_event_type = 'Lock'
                    """
                )
            )

        await eventually(waits)

    async def kill_who_is(self, state: str) -> None:
        """End the server side of every hub connection in this state."""
        killed = await self.fetchval(
            """
            SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'budget-hub' AND state = $1
            """,
            state,
        )
        assert killed


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110  (it happens in the server)
            await asyncio.sleep(0.005)


AS_IN_SERVICE = dict(database_module.COMMIT_SESSION)


def set_session(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """For connections made from now on."""
    for name, value in settings.items():
        monkeypatch.setitem(database_module.COMMIT_SESSION, name, value)


Nodes = Callable[..., Awaitable[Node]]
