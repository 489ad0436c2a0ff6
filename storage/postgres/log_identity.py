"""The identity of the log's history, `logId`: renewed when sequences may come to mean other events.

A device that is given another logId than it knows takes a snapshot (design 3.3). Without one it
would go on from its cursor in a history that is no longer the same: after a restore that lost
events (`budget-hub new-log-id`) sequences are given again, and a migration may change what they
carry.
"""

from functools import partial
from typing import TYPE_CHECKING

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from storage.postgres.database import SESSION
from storage.postgres.errors import closed, translated

if TYPE_CHECKING:
    from storage.postgres.database import Connection

COUNT_NODES = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid()
"""
RENEW = "UPDATE log_identity SET log_id = gen_random_uuid() RETURNING log_id::text"


class NodesRunning(Exception):
    """Nodes are connected. They tell devices the identity they began with, until they end."""

    def __str__(self) -> str:
        return "stop all nodes first: some are connected to the database"


async def refuse_beside_nodes(connection: "Connection") -> None:
    """Raises `NodesRunning`."""
    if await connection.fetchval(COUNT_NODES, SESSION["application_name"]):
        raise NodesRunning


async def renew_log_id(database_url: str) -> str:
    """The new one. Raises `NodesRunning`, `Disconnected`."""
    with translated():
        connection = await asyncpg.connect(
            database_url, timeout=5, target_session_attrs=SessionAttribute.read_write
        )
        try:
            with translated(partial(closed, connection)):
                await refuse_beside_nodes(connection)
                log_id: str = await connection.fetchval(RENEW)
                return log_id
        finally:
            await connection.close()
