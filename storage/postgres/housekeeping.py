"""Housekeeping: delete expired rows, on one node at a time.

    what                                       kept for
    invites                                    30 days after their end; until then a user who
                                               comes by one learns that it ran out
    refresh tokens (families)                  a day after their end
    accounts that were closed                  two days, longer than any token; then only those not
                                               yet cleared
    photos that were uploaded, not confirmed   a day (`temp/` of the disk's store; a bucket has a
                                               rule of its own) and two (their rows)

Each statement deletes at most `ROWS_MAX` rows, which an index finds, so that nobody waits for it.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from hub.errors import HubError, StorageError
from hub.outage import Outage
from storage.postgres.database import Database

if TYPE_CHECKING:
    from storage.postgres.database import Connection

ROWS_MAX = 1_000
RETRY_S = 60.0  # after a failure, where the interval is longer
INVITES_KEPT_S = 30 * 24 * 3600
FAMILIES_KEPT_S = 24 * 3600
CLOSED_ACCOUNTS_KEPT_S = 48 * 3600  # `budget-hub token` makes tokens of a day

# Any constant of our own. The lock is the session's, so it is gone with a node that is.
LOCK_KEY = 7_264_910_332
LOCK = "SELECT pg_try_advisory_lock($1)"
UNLOCK = "SELECT pg_advisory_unlock($1)"

DELETE_INVITES = """
DELETE FROM invites WHERE (budget_id, id) IN (
    SELECT budget_id, id FROM invites
    WHERE expires_at < (extract(epoch FROM $1::timestamptz) * 1000)::bigint AND uses >= 0
    ORDER BY expires_at LIMIT $2
)
"""
DELETE_FAMILIES = """
DELETE FROM refresh_families WHERE id IN (
    SELECT id FROM refresh_families WHERE expires_at < $1 ORDER BY expires_at LIMIT $2
)
"""
DELETE_CLOSED_ACCOUNTS = """
DELETE FROM closed_accounts WHERE user_id IN (
    SELECT user_id FROM closed_accounts WHERE closed_at < $1 AND settled
    ORDER BY closed_at LIMIT $2
)
"""
DELETIONS = (
    ("invites", DELETE_INVITES, INVITES_KEPT_S),
    ("refresh tokens", DELETE_FAMILIES, FAMILIES_KEPT_S),
    ("closed accounts", DELETE_CLOSED_ACCOUNTS, CLOSED_ACCOUNTS_KEPT_S),
)


class Housekeeping:
    """`chores` are done too, by name. `now` gives epoch seconds."""

    def __init__(
        self,
        database: Database,
        chores: Mapping[str, Callable[[], Awaitable[None]]],
        *,
        now: Callable[[], float],
    ) -> None:
        self._database = database
        self._chores = chores
        self._now = now
        self._outages: dict[str, Outage] = {}  # by chore

    async def run_once(self) -> None:
        """`tidy`. Raises `StorageError` while something fails, which the log names already."""
        await self.tidy()
        if failing := [name for name, outage in self._outages.items() if outage.on]:
            raise StorageError(", ".join(failing))

    async def tidy(self) -> bool:
        """Do everything once; False if another node is at it. Raises nothing: what fails is logged
        the first time and tried again the next."""
        ours = False

        async def all_of_it() -> None:
            nonlocal ours
            async with self._database.connection("housekeeping") as connection:
                ours = await connection.fetchval(LOCK, LOCK_KEY)
                if ours:
                    try:
                        await self._chore_by_chore(connection)
                    finally:
                        await connection.execute(UNLOCK, LOCK_KEY)

        await self._attempt("lock", all_of_it)
        return ours

    async def _chore_by_chore(self, connection: "Connection") -> None:
        for name, statement, kept_s in DELETIONS:
            await self._attempt(name, partial(self._delete, connection, statement, kept_s))
        for name, chore in self._chores.items():
            await self._attempt(name, chore)

    async def _attempt(self, name: str, chore: Callable[[], Awaitable[None]]) -> None:
        outage = self._outages.get(name)
        if outage is None:
            outage = Outage("housekeeping failed", "housekeeping works again", chore=name)
            self._outages[name] = outage
        try:
            await chore()
        except (HubError, StorageError) as error:
            outage.lost(error)
        else:
            outage.back()

    async def _delete(self, connection: "Connection", statement: str, kept_s: float) -> None:
        before = datetime.fromtimestamp(self._now(), UTC) - timedelta(seconds=kept_s)
        while True:
            with self._database.translated(connection):
                done = await connection.execute(statement, before, ROWS_MAX)
            if int(done.rpartition(" ")[2]) < ROWS_MAX:
                return
