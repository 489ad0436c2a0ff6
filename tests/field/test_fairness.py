"""P20: whatever one account asks for, another's requests go on.

Time is no measure here: what the flood asks for is held by a lock in Postgres, and what the other
account asks for must come all the same, or be held as the only one that waits for the lock."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import httpx2
import pytest

from api.http.reads import READS_PER_USER
from hub.feed.feeds import JOINS_PER_USER
from storage.postgres.database import SHARES
from tests.cluster import Cluster, Node, eventually
from tests.device import Json, budget_create, category_add, connect, expense_add, new_id

FLOOD = 200


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.fixture(scope="module")
def flood(cluster: Cluster) -> str:
    return cluster.token("flood")


@pytest.fixture(scope="module")
def victim(cluster: Cluster) -> str:
    return cluster.token("victim")


@asynccontextmanager
async def locked(cluster: Cluster, table: str) -> AsyncIterator[None]:
    """Whoever reads the table waits."""
    connection = await asyncpg.connect(cluster.database_url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def pool(node: Node, name: str, purpose: str) -> int:
    async with node.rest() as rest:
        text = (await rest.get("/metrics")).text
    sample = rf'^budget_hub_{name}{{[^}}]*pool="{purpose}"[^}}]*}} (\d+)'
    found = re.search(sample, text, re.MULTILINE)
    assert found, text
    return int(found[1])


async def test_subscriptions_by_the_hundred_leave_others_their_turn(
    cluster: Cluster, node: Node, flood: str, victim: str
) -> None:
    home = await node.new_budget(victim)
    theirs = [new_id() for _ in range(FLOOD)]
    async with connect(node.url, flood) as device, connect(node.url, victim) as other:
        for start in range(0, FLOOD, 100):
            await device.accepted(*map(budget_create, theirs[start : start + 100]))
        async with locked(cluster, "accepted_events"):
            for budget_id in theirs:
                await device.send({"type": "subscribe", "budgetId": budget_id, "key": 0})
            share = SHARES["feeds"].per_user

            async def many_wait() -> bool:
                return await pool(node, "pool_waiting", "feeds") == JOINS_PER_USER - share

            await eventually(many_wait)
            await other.send({"type": "subscribe", "budgetId": home, "key": 0})

            async def has_a_connection() -> bool:
                return await pool(node, "pool_connections", "feeds") == share + 1

            await eventually(has_a_connection)
            assert await many_wait()
        await other.reached(home, 1)
        await device.wait_for(lambda: len(device.of_type("subscribed")) == FLOOD)


async def test_snapshots_by_the_hundred_leave_others_their_turn(
    cluster: Cluster, node: Node, flood: str, victim: str
) -> None:
    home, theirs = await node.new_budget(victim), await node.new_budget(flood)
    async with AsyncExitStack() as stack:
        attacker = await stack.enter_async_context(node.rest(flood))
        rest = await stack.enter_async_context(node.rest(victim))
        tasks: list[asyncio.Task[httpx2.Response]] = []
        async with locked(cluster, "expenses"):
            tasks += [asyncio.create_task(attacker.get(f"/budgets/{theirs}")) for _ in range(FLOOD)]

            async def many_wait() -> bool:
                return await pool(node, "pool_connections", "rest") == READS_PER_USER

            await eventually(many_wait)
            for path in ("last-event-sequence", "categories", "participants"):
                answer = await rest.get(f"/budgets/{home}/{path}")
                assert answer.status_code == 200, answer.text
        statuses = {(await task).status_code for task in tasks}
        # Those that had no turn in time are told to come again.
        assert statuses <= {200, 503}


async def test_refused_deletions_of_categories_hold_up_no_commit(
    cluster: Cluster, node: Node, flood: str, victim: str
) -> None:
    home, theirs = await node.new_budget(victim), await node.new_budget(flood)
    category = category_add(theirs)
    async with connect(node.url, flood) as device, connect(node.url, victim) as other:
        await device.accepted(category, expense_add(theirs, categoryId=category["recordId"]))
        async with locked(cluster, "expenses"):
            asked = [
                await device.post([deletion(theirs, each) for _ in range(100)], "each")
                for each in (new_id(), category["recordId"])
                for _ in range(5)
            ]
            await other.accepted(category_add(home))
            for number in asked:
                verdicts = await device.verdicts(number)
                assert {each["status"] for each in verdicts} <= {"rejected", "conflict"}


def deletion(budget_id: str, category_id: str) -> Json:
    """Of a version that is not there."""
    head = {"eventId": new_id(), "eventType": "category.delete", "budgetId": budget_id, "when": 1}
    return {**head, "recordId": category_id, "version": 7}
