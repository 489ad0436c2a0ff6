"""Patience for all modules, and nodes that race (`tests/racing.py`) for those about commits."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from storage.objects import s3
from storage.postgres import database
from storage.postgres.database import Database
from storage.redis import bus, cluster_bus, rate_limits
from tests.racing import PATIENT_S, Elsewhere, Node, Nodes

# What hubs wait for an answer, a lock, a turn or a heartbeat.
WAITS: tuple[tuple[object, str], ...] = (
    (database, "COMMAND_TIMEOUT_S"),
    (database, "ACQUIRE_TIMEOUT_S"),
    (database, "TURN_S"),
    (bus, "DEAF_S"),
    (bus, "SILENT_S"),
    (bus, "STALLED_S"),
    (cluster_bus, "ANSWER_S"),
    (s3, "WAIT_S"),
    (s3, "CONNECT_S"),
    (s3, "ANSWER_S"),
    (rate_limits, "CONNECT_S"),
    (rate_limits, "ANSWER_S"),
)
SERVER_WAITS = ("lock_timeout", "idle_in_transaction_session_timeout", "statement_timeout")


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """On a machine that is slow, or stops for some seconds, nothing here runs into a timeout that
    it is not about; who is about one sets it."""
    with pytest.MonkeyPatch.context() as patch:
        for where, name in WAITS:
            patch.setattr(where, name, PATIENT_S)
        for session in (database.SESSION, database.COMMIT_SESSION):
            for name in SERVER_WAITS:
                patch.setitem(session, name, f"{PATIENT_S}s")
        yield


@pytest.fixture
async def nodes(database_url: str) -> AsyncIterator[Nodes]:
    """Makes nodes, each with connections of its own."""
    async with AsyncExitStack() as cleanup:

        async def make(url: str = database_url, **how: Any) -> Node:
            database = await Database.connect(url, commits_max=4, reads_max=2)
            cleanup.push_async_callback(database.close)
            node = Node(database, **how)
            cleanup.push_async_callback(node.end)
            return node

        yield make


@pytest.fixture
async def node(nodes: Nodes) -> Node:
    return await nodes()


@pytest.fixture
async def elsewhere(database_url: str) -> AsyncIterator[Elsewhere]:
    connection = await asyncpg.connect(database_url)
    yield Elsewhere(connection)
    await connection.close()
