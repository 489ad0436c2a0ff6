"""A new identity for the log, after a restore that lost events (`budget-hub new-log-id`).

A device that is given another logId than it knows takes a snapshot (design 3.3). Without one it
would go on from its cursor in a history that is no longer the same: sequences that were lost are
given again, to other events.
"""

import asyncpg

from storage.postgres.database import SESSION, translated

COUNT_HUBS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = $1 AND pid <> pg_backend_pid()
"""
RENEW = "UPDATE hub_identity SET log_id = gen_random_uuid() RETURNING log_id::text"


class HubsRunning(Exception):
    """Hubs are connected. They tell devices the identity they began with, until they end."""

    def __str__(self) -> str:
        return "stop all hubs first: some are connected to the database"


async def renew_log_id(database_url: str) -> str:
    """The new one. Raises `HubsRunning`, `Disconnected`."""
    with translated():
        connection = await asyncpg.connect(database_url, timeout=5)
        try:
            if await connection.fetchval(COUNT_HUBS, SESSION["application_name"]):
                raise HubsRunning
            log_id: str = await connection.fetchval(RENEW)
            return log_id
        finally:
            await connection.close()
