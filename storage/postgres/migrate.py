"""Apply the numbered migrations, in order, each once, under an advisory lock.

Forward-only. Each file runs in one transaction and works with the code on both sides of a deploy:
add first, use next, remove in a later release. The one exception is the digest of 0.2.0: its file
and the step after it need all nodes stopped.
"""

import re
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from storage.postgres.core.redigest import finish, redigest_all
from storage.postgres.errors import closed, translated
from storage.postgres.log_identity import refuse_beside_nodes

if TYPE_CHECKING:
    from storage.postgres.database import Connection

_LOCK_KEY = 7_264_910_331  # any constant of our own: two deploys at once take turns
_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

_CREATE = """
CREATE TABLE IF NOT EXISTS migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class Migration(NamedTuple):
    """`sql` is empty for the step in Python."""

    number: int
    name: str
    sql: str


# Budget by budget (`storage.postgres.core.redigest`), with nodes stopped.
REDIGEST = Migration(5, "0005_redigest", "")


def migrations() -> list[Migration]:
    """All migrations of this version of the code, in order."""
    found = [REDIGEST]
    for entry in files("storage").joinpath("migrations").iterdir():
        match = _NAME.fullmatch(entry.name)
        if match:
            found.append(Migration(int(match[1]), entry.name, entry.read_text("utf-8")))
    return sorted(found)


async def migrate(
    database_url: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """Bring the database up to date; return the names of what was applied.

    `progress` gets how many budgets of how many have their new digest. Raises `NodesRunning`,
    `NotReplayable`, `Disconnected` and `StatementFailed`; what was applied until then stays, and
    the next call goes on.
    """
    connection = await asyncpg.connect(
        database_url, target_session_attrs=SessionAttribute.read_write
    )
    try:
        with translated(partial(closed, connection)):
            return await _apply(connection, progress)
    finally:
        await connection.close()  # also releases the advisory lock


async def _apply(connection: "Connection", progress: Callable[[int, int], None]) -> list[str]:
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
    await connection.execute("SET client_min_messages = warning")
    await connection.execute(_CREATE)
    applied = []
    lacking = await pending(connection)
    if REDIGEST in lacking:
        await refuse_beside_nodes(connection)
    for migration in lacking:
        if migration == REDIGEST:
            await redigest_all(connection, progress)
        async with connection.transaction():
            await (
                finish(connection) if migration == REDIGEST else connection.execute(migration.sql)
            )
            await connection.execute(
                "INSERT INTO migrations (number, name) VALUES ($1, $2)",
                migration.number,
                migration.name,
            )
        applied.append(migration.name)
    return applied


async def pending(connection: "Connection") -> list[Migration]:
    """The migrations this database still lacks."""
    if await connection.fetchval("SELECT to_regclass('migrations')") is None:
        return migrations()
    rows = await connection.fetch("SELECT number FROM migrations")
    done = {row["number"] for row in rows}
    return [migration for migration in migrations() if migration.number not in done]
