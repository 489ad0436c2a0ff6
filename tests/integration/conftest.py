"""Patience for all modules, and nodes that race (`tests/racing.py`) for those about commits."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from storage.postgres import database
from storage.postgres.database import Database
from tests.patience import PATIENT, PATIENT_S
from tests.racing import Elsewhere, Node, Nodes

WAITS: tuple[tuple[object, str], ...] = ()
SERVER_WAITS = ("lock_timeout", "idle_in_transaction_session_timeout", "statement_timeout")


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """On a machine that is slow, or stops for some seconds, nothing here runs into a timeout that
    it is not about; who is about one sets it."""
    with pytest.MonkeyPatch.context() as patch:
        for purpose, share in database.SHARES.items():
            patch.setitem(database.SHARES, purpose, share._replace(wait_s=PATIENT_S))
        for session in (database.SESSION, database.COMMIT_SESSION):
            for name in SERVER_WAITS:
                patch.setitem(session, name, f"{PATIENT_S:.0f}s")
        yield


@pytest.fixture
async def nodes(database_url: str) -> AsyncIterator[Nodes]:
    """Makes nodes, each with connections of its own."""
    async with AsyncExitStack() as cleanup:

        async def make(url: str = database_url, **how: Any) -> Node:
            database = await Database.connect(url, timeouts=PATIENT)
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
