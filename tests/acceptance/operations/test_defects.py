"""A schema that is not ours: statements fail for a reason nobody foresaw. That is a defect and is
told as one; nothing is decided by it, and when it is mended everything goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from storage.embedded.redis import EmbeddedRedis
from tests.acceptance.operations.test_metrics import read
from tests.cluster import POLL_S, REST_S, Cluster, Node, token, until
from tests.device import Ended, budget_create, connect, expense_add, new_id

PRIVATE = "a-note-that-nobody-may-read"


@pytest.fixture
async def cluster(
    database_url: str, redis: EmbeddedRedis, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """Its nodes' logs hold defects."""
    cluster = Cluster(tmp_path, database_url, redis.url)
    yield cluster
    await cluster.close()


@asynccontextmanager
async def without(database_url: str, *tables: str) -> AsyncIterator[None]:
    """Tables, and views, which a renamed table stays known to."""
    admin = await asyncpg.connect(database_url)
    try:
        for table in tables:
            await admin.execute(f"ALTER TABLE {table} RENAME TO not_{table}")
        yield
        for table in tables:
            await admin.execute(f"ALTER TABLE not_{table} RENAME TO {table}")
    finally:
        await admin.close()


async def ready(node: Node) -> Any:
    async with node.rest() as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 200
    return answer.json()


async def test_a_table_is_missing_and_comes_back(cluster: Cluster, database_url: str) -> None:
    node = await cluster.start()
    budget_id = new_id()
    sent = {**expense_add(budget_id), "note": PRIVATE}
    async with node.rest(token("ann")) as client, connect(node.url, token("ann")) as follower:
        made = await client.post("/events", json={"events": [budget_create(budget_id)]})
        assert made.json()["events"][0]["status"] == "accepted"
        await follower.subscribe(budget_id)
        assert await ready(node) == {"status": "ok", "postgres": True}

        # Of reads and of the commit.
        async with without(database_url, "expenses", "expense_dtos"):
            for path in (f"/budgets/{budget_id}", f"/budgets/{budget_id}/expenses"):
                answer = await client.get(path)
                assert answer.status_code == 500
                assert answer.json()["error"]["message"] == "INTERNAL_SERVER_ERROR"
            answer = await client.post("/events", json={"events": [sent]})
            assert (answer.status_code, "events" in answer.json()) == (500, False)
            async with connect(node.url, token("ann")) as device:
                with pytest.raises(Ended) as ended:
                    await device.submit([sent])
                assert ended.value.code == 1011
            assert await ready(node) == {
                "status": "degraded",
                "postgres": True,
                "degraded": ["defects"],
                "defects": ["42P01"],
            }
            reading = await read(client)
            assert reading.sum(0, "storage_defects_total", sqlstate="42P01") == 4
            assert reading.sum(0, "commit_failures_total", cause="defect") == 2

        # The event that had no verdict is new, and is so once.
        for duplicate in (None, True):
            [verdict] = (await client.post("/events", json={"events": [sent]})).json()["events"]
            assert (verdict["status"], verdict.get("duplicate")) == ("accepted", duplicate)
        await follower.reached(budget_id, 2)
        assert (await client.get(f"/budgets/{budget_id}")).status_code == 200

    told = [line for line in node.log() if line["event"] == "statement failed"]
    # The view's and the table's, once each, however often they failed.
    assert [(line["sqlstate"], "exception" in line) for line in told] == [("42P01", True)] * 2
    failed = [line for line in node.log() if line["event"] == "request failed"]
    assert len(failed) == 3
    assert all("UndefinedTableError 42P01" in line["cause"] for line in failed)
    assert PRIVATE not in node.err


async def test_the_log_cannot_be_read_and_nothing_is_missed(
    cluster: Cluster, database_url: str
) -> None:
    """Followers keep their place, who comes is sent away to come again, the process goes on."""
    nodes = await cluster.start_some(2)
    budget_id = new_id()
    async with nodes[0].rest(token("ann")) as client, connect(nodes[1].url, token("ann")) as device:
        await client.post("/events", json={"events": [budget_create(budget_id)]})
        await device.subscribe(budget_id)
        await device.reached(budget_id, 1)
        async with without(database_url, "budgets"):
            # The sweeper asks every second.
            await until(lambda: "statement failed" in nodes[1].err, REST_S)
            answer = await client.get("/events", params={"budgetId": budget_id, "wait": 5})
            assert answer.status_code == 500
            async with connect(nodes[0].url, token("ann")) as late:
                with pytest.raises(Ended) as ended:
                    await late.subscribe(budget_id)
                assert ended.value.code == 1011
        async with asyncio.timeout(REST_S):
            added = {"events": [expense_add(budget_id)]}
            while (await client.post("/events", json=added)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
        await device.reached(budget_id, 2)
    for node in nodes:
        kinds = {line["event"] for line in node.complaints()}
        assert kinds == {"statement failed"}
