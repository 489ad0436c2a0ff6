"""Nodes that race (`tests/racing.py`), for the modules about what they commit."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from storage.database import Database
from tests.racing import Elsewhere, Node, Nodes, set_session


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine nothing here may run into the timeouts it is not about."""
    set_session(monkeypatch, lock_timeout="60s", idle_in_transaction_session_timeout="60s")


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
