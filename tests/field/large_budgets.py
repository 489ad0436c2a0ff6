"""Budgets whose snapshot fills every buffer."""

import orjson

from tests.cluster import Node
from tests.device import expense_add

SNAPSHOT_BYTES = 1_000_000  # at least
NOTE = "\N{GRINNING FACE}" * 1900
_AT_ONCE = 20


async def a_large_budget(node: Node, token: str, size_bytes: int = SNAPSHOT_BYTES) -> str:
    budget_id = await node.new_budget(token)
    async with node.rest(token) as rest:
        for _ in range(size_bytes // len(NOTE.encode()) // _AT_ONCE + 1):
            events = [expense_add(budget_id, note=NOTE) for _ in range(_AT_ONCE)]
            answer = await rest.post("/events", content=orjson.dumps({"events": events}))
            assert {each["status"] for each in answer.json()["events"]} == {"accepted"}
    return budget_id
