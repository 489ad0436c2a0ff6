"""What one account may store is bounded (`hub.budget.state.Quotas`), on real nodes."""

import pytest

from storage.care.verify import verify
from storage.postgres.database import Database
from tests.cluster import Cluster, Node
from tests.device import (
    Json,
    budget_create,
    budget_edit,
    category_add,
    connect,
    expense_add,
    new_id,
)

BUDGETS, RECORDS = 3, 4
LONG = "𠀀" * 2000  # 8,000 bytes, twice in the log


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start(
        BUDGETS_PER_USER=str(BUDGETS), RECORDS_PER_BUDGET=str(RECORDS), LOG_MB_PER_BUDGET="1"
    )


async def answers(node: Node, token: str, *events: Json) -> list[str]:
    """The status of each verdict, or the code it was rejected with."""
    async with node.rest(token) as rest:
        answer = await rest.post("/events?mode=each", json={"events": list(events)})
    assert answer.status_code in (200, 207), answer.text
    return [
        each["error"]["message"] if each["status"] == "rejected" else each["status"]
        for each in answer.json()["events"]
    ]


async def test_a_user_takes_part_in_so_many_budgets(cluster: Cluster, node: Node) -> None:
    ann, ben = (cluster.token(new_id()) for _ in range(2))
    made = [budget_create(new_id()) for _ in range(BUDGETS + 1)]
    said = await answers(node, ann, *made)  # in one transaction: they count together
    assert said == ["accepted"] * BUDGETS + ["QUOTA_EXCEEDED"]
    assert await answers(node, ann, *made) == said
    theirs = await node.new_budget(ben)
    async with node.rest(ann) as rest:
        full = await rest.post(f"/budgets/{theirs}/join")
        assert (full.status_code, full.json()["error"]["message"]) == (403, "QUOTA_EXCEEDED")
        delete = {**budget_edit(made[0]["budgetId"], 1), "eventType": "budget.delete"}
        assert await answers(node, ann, delete) == ["accepted"]
        assert (await rest.post(f"/budgets/{theirs}/join")).status_code == 200


async def test_a_budget_has_so_many_records(cluster: Cluster, node: Node) -> None:
    ann = cluster.token(new_id())
    budget_id = await node.new_budget(ann)
    expenses = [expense_add(budget_id) for _ in range(RECORDS)]
    said = await answers(node, ann, category_add(budget_id), *expenses)
    assert said == ["accepted"] * RECORDS + ["QUOTA_EXCEEDED"]
    async with connect(node.url, ann) as device:
        [verdict] = await device.submit([expense_add(budget_id)])
        assert verdict["error"]["message"] == "QUOTA_EXCEEDED"
        assert not verdict["error"]["retryable"]


async def test_a_full_log_takes_deletions_only(cluster: Cluster, node: Node) -> None:
    ann = cluster.token(new_id())
    budget_id = await node.new_budget(ann)
    adds = expense_add(budget_id, note=LONG)
    assert await answers(node, ann, adds) == ["accepted"]
    said: list[str] = []
    version = 1
    while said.count("QUOTA_EXCEEDED") == 0:
        edits = [
            {
                **expense_add(budget_id, note=LONG),
                "eventType": "expense.edit",
                "recordId": adds["recordId"],
                "version": version + number,
            }
            for number in range(10)
        ]
        said += await answers(node, ann, *edits)
        version += 10
    assert 2**20 / 17_000 < said.count("accepted") < 2**20 / 16_000
    version = 1 + said.count("accepted")
    delete = {
        **budget_edit(budget_id, version),
        "eventType": "expense.delete",
        "recordId": adds["recordId"],
    }
    assert await answers(node, ann, expense_add(budget_id)) == ["QUOTA_EXCEEDED"]
    assert await answers(node, ann, delete) == ["accepted"]
    database = await Database.connect(cluster.database_url)
    assert [found async for found in verify(database, budget_id, lambda progress: None)] == []
    await database.close()
