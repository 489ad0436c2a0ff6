"""Does what the tables say follow from the log? (`budget-hub verify`)

Each budget is compared (`storage.care.comparison`) at one instant of its own, so the hub may go on
committing meanwhile.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from hub.budget.records import BudgetId
from storage.care.comparison import Difference, compare
from storage.postgres.database import Database

if TYPE_CHECKING:
    from storage.postgres.database import Connection

# The first budget from here on that any of the tables knows: rows whose budget is gone are to be
# found as well. Each table is asked for one entry of an index.
NEXT_BUDGET = """
SELECT least(
    (SELECT id FROM budgets WHERE id >= $1 ORDER BY id LIMIT 1),
    (SELECT budget_id FROM accepted_events WHERE budget_id >= $1 ORDER BY budget_id LIMIT 1),
    (SELECT budget_id FROM participants WHERE budget_id >= $1 ORDER BY budget_id LIMIT 1),
    (SELECT budget_id FROM categories WHERE budget_id >= $1 ORDER BY budget_id LIMIT 1),
    (SELECT budget_id FROM expenses WHERE budget_id >= $1 ORDER BY budget_id LIMIT 1)
)::text
"""
COUNT_BUDGETS = "SELECT count(*) FROM budgets"
# The transaction holds no row, so its reader may be slow.
NO_IDLE_TIMEOUT = "SET LOCAL idle_in_transaction_session_timeout = 0"


class NoSuchBudget(Exception):
    """No table knows a budget of this id."""


class Progress(NamedTuple):
    """How far `verify` has come. `budgets_total` was counted when it began."""

    budgets: int
    budgets_total: int
    events: int


async def verify(
    database: Database, budget_id: BudgetId | None, progress: Callable[[Progress], None]
) -> AsyncGenerator[Difference, None]:
    """Every difference of one budget, or of all in the order of their ids.

    `progress` is called after each page of a log and each budget. Raises `NoSuchBudget`, and
    `Disconnected` while Postgres is out of reach. Close the iterator if you leave it early.
    """
    budgets, events, total = 0, 0, 1
    if budget_id is None:
        async with database.connection("housekeeping") as connection:
            total = await connection.fetchval(COUNT_BUDGETS)

    def count(rows: int) -> None:
        nonlocal events
        events += rows
        progress(Progress(budgets, total, events))

    start: UUID | None = UUID(int=0) if budget_id is None else UUID(budget_id)
    while start is not None:
        async with at_one_instant(database) as connection:
            found: BudgetId | None = await connection.fetchval(NEXT_BUDGET, start)
            if budget_id not in (None, found):
                raise NoSuchBudget(budget_id)
            if found is None:
                return
            async for difference in compare(connection, found, count):
                yield difference
        budgets += 1
        count(0)
        start = _following(UUID(found)) if budget_id is None else None


@asynccontextmanager
async def at_one_instant(database: Database) -> AsyncIterator["Connection"]:
    """A connection whose statements all see one instant, and that nobody waits for."""
    async with (
        database.connection("housekeeping") as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(NO_IDLE_TIMEOUT)
        yield connection


def _following(budget_id: UUID) -> UUID | None:
    """The next id there can be; None after the last."""
    return UUID(int=budget_id.int + 1) if budget_id.int + 1 < 1 << 128 else None
