"""Accounts that were closed: since when no token of theirs counts, and whether all is gone.

A token says nothing of what happened after it was issued, so this is remembered for as long as one
can live. Housekeeping forgets it then.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from hub.budget.records import UserId
from storage.postgres.database import Database

ROWS_MAX = 1_000  # in one answer

# A token that was issued before the account was closed does not close it again: its user may have
# come back with a new one meanwhile. The database's clock, so that all nodes go by the same.
CLOSE = """
INSERT INTO closed_accounts AS c (user_id, closed_at) VALUES ($1, clock_timestamp())
ON CONFLICT (user_id) DO UPDATE SET closed_at = excluded.closed_at, settled = false
WHERE c.closed_at <= $2
RETURNING closed_at
"""
READ = "SELECT closed_at FROM closed_accounts WHERE user_id = $1"
READ_SINCE = """
SELECT user_id, closed_at FROM closed_accounts
WHERE (closed_at, user_id) > ($1, $2)
ORDER BY closed_at, user_id LIMIT $3
"""
READ_UNCLEARED = """
SELECT user_id, closed_at FROM closed_accounts
WHERE NOT settled AND closed_at < $1
ORDER BY closed_at LIMIT $2
"""
CLEARED = "UPDATE closed_accounts SET settled = true WHERE user_id = $1 AND closed_at = $2"


class ClosedAccount(NamedTuple):
    user_id: UserId
    closed_at: datetime


class ClosedAccounts:
    """All methods raise `Disconnected`, and all but `since` raise `Held`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def close(self, user_id: UserId, *, issued_at: datetime) -> ClosedAccount:
        """Close the account by a token issued at that time. Returns the closing that counts: an
        earlier one, where the token was issued before it."""
        async with self._database.connection("rest", user_id) as connection:
            closed_at = await connection.fetchval(CLOSE, user_id, issued_at)
            if closed_at is None:
                closed_at = await connection.fetchval(READ, user_id)
        return ClosedAccount(user_id, closed_at)

    async def since(self, closed_at: datetime, user_id: UserId = "") -> Sequence[ClosedAccount]:
        """At most `ROWS_MAX` after that one, in the order of their times."""
        async with self._database.connection("watch") as connection:
            rows = await connection.fetch(READ_SINCE, closed_at, user_id, ROWS_MAX)
        return [ClosedAccount._make(row) for row in rows]

    async def uncleared(self, before: datetime) -> Sequence[ClosedAccount]:
        """At most `ROWS_MAX`, the oldest first."""
        async with self._database.connection("rest") as connection:
            rows = await connection.fetch(READ_UNCLEARED, before, ROWS_MAX)
        return [ClosedAccount._make(row) for row in rows]

    async def cleared(self, account: ClosedAccount) -> None:
        """Nothing of the account is left."""
        async with self._database.connection("rest") as connection:
            await connection.execute(CLEARED, *account)
