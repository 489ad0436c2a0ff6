"""A Postgres whose disk is full, and has room again, on any Linux and without being root.

No file system is made: the server's processes may not let any file grow beyond its size
(`RLIMIT_FSIZE`; Postgres ignores the signal). So a statement that needs one page more than the log
has fails, as it does on a full disk, with the same message and hint ("could not extend file …",
"Check free disk space"), reads go on, and once there is room nothing has to be restarted. What is
otherwise: the system says `File too large` in place of `No space left on device`, hence Postgres
XX000 in place of 53100. `tests/integration/hub/test_committer.py` has the real code.

The limit is one for all files. A segment of the WAL is 16 MiB from the start, and a server that
cannot write there panics, which would be another story; so the log's file is made larger than that
first, by a transaction that is rolled back. Where autovacuum is on it would make room again.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from resource import RLIM_INFINITY

import asyncpg

from storage.embedded.postgres import EmbeddedPostgres
from tests.cluster import family

WAL_SEGMENT_BYTES = 16 * 1024 * 1024

# As many rows as no WAL segment holds, each half a page and hence not compressed away.
GROW = """
INSERT INTO accepted_events (budget_id, event_id, sequence, event_type, record_id, actor_id,
                             content_hash, content_fields, event)
SELECT id, gen_random_uuid(), 1000000000 + number, 'rolled.back', '', '', '', 0, repeat('x', 1900)
FROM generate_series(1, 10000) AS number, (SELECT id FROM budgets LIMIT 1) AS any_budget
"""
SIZE = "SELECT pg_relation_size('accepted_events')"

# As whoever the server runs as: even root may not set limits of somebody else's everywhere. The
# hard limit stays, so that the soft one can be raised again.
_LIMIT = """
import os, resource, sys
limit, *pids = map(int, sys.argv[1:])
of = os.stat(f"/proc/{pids[0]}")
if os.geteuid() != of.st_uid:
    os.setgroups([])
    os.setgid(of.st_gid)
    os.setuid(of.st_uid)
for pid in pids:
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, hard))
    except ProcessLookupError:
        pass
"""


@asynccontextmanager
async def full_disk(postgres: EmbeddedPostgres, database_url: str) -> AsyncIterator[None]:
    """The log of the hub in this database cannot grow. There must be a budget in it."""
    connection = await asyncpg.connect(database_url)
    try:
        growing = connection.transaction()
        await growing.start()
        await connection.execute(GROW)
        await growing.rollback()
        size = await connection.fetchval(SIZE)
        assert size > WAL_SEGMENT_BYTES
    finally:
        await connection.close()
    try:
        await asyncio.to_thread(_limit, postgres, size)
        yield
    finally:
        await asyncio.to_thread(_limit, postgres, RLIM_INFINITY)


def _limit(postgres: EmbeddedPostgres, size_bytes: int) -> None:
    """The first one first: who is started afterwards inherits it."""
    for pids in ([postgres.pid], [pid for pid, _ in family(postgres.pid)]):
        numbers = [str(number) for number in (size_bytes, *pids)]
        subprocess.run([sys.executable, "-I", "-S", "-c", _LIMIT, *numbers], check=True)
