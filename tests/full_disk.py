"""A Postgres whose disk is full, and has room again, anywhere and without being root.

What it says when a file cannot grow a trigger says in its place: for the log only, so reads go on,
and once there is room nothing has to be restarted. A limit on the size of its files would be nearer
to the real thing, but for its SQLSTATE, and that is what hubs go by.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

FILL = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file "base/1/2": No space left on device'
        USING ERRCODE = 'disk_full', HINT = 'Check free disk space.';
END $$;
CREATE TRIGGER no_room BEFORE INSERT ON accepted_events
FOR EACH ROW EXECUTE FUNCTION no_room();
"""
MAKE_ROOM = "DROP FUNCTION no_room CASCADE"


@asynccontextmanager
async def full_disk(database_url: str) -> AsyncIterator[None]:
    """The log of the hub in this database cannot grow."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(FILL)
        try:
            yield
        finally:
            await connection.execute(MAKE_ROOM)
    finally:
        await connection.close()
