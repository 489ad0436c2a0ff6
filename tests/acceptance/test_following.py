"""The stream of a budget over HTTP: by long-poll and as Server-Sent Events, on real nodes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import orjson
import pytest

from tests.cluster import Cluster, Node
from tests.device import Json, budget_create, expense_add, new_id


@pytest.fixture(scope="module")
async def nodes(cluster: Cluster) -> list[Node]:
    return await cluster.start_some(2)


async def submit(node: Node, token: str, *events: Json) -> list[Json]:
    async with node.rest(token) as rest:
        answer = await rest.post("/events", json={"events": list(events)})
    assert answer.status_code == 200, answer.text
    verdicts: list[Json] = answer.json()["events"]
    assert {verdict["status"] for verdict in verdicts} == {"accepted"}
    return verdicts


@pytest.fixture
async def budget_id(cluster: Cluster, nodes: list[Node]) -> str:
    budget_id = new_id()
    await submit(nodes[0], cluster.token("ann"), budget_create(budget_id))
    return budget_id


async def poll(node: Node, token: str, budget_id: str, key: int, wait_s: int) -> httpx2.Response:
    async with node.rest(token) as rest:
        query: dict[str, str | int] = {"budgetId": budget_id, "key": key, "wait": wait_s}
        return await rest.get("/events", params=query, timeout=wait_s + 10)


class Events:
    """A reader of Server-Sent Events."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.aiter_lines()
        self.last_id = ""

    async def next(self) -> tuple[str, Json]:
        """Name and data of the next event."""
        name, data = "", b""
        async with asyncio.timeout(10):
            async for line in self._lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data = value.encode()
                elif field == "id":
                    self.last_id = value
                elif line == "" and name:
                    return name, orjson.loads(data)
        raise AssertionError("the stream ended")

    async def ended(self) -> bool:
        async with asyncio.timeout(10):
            return [line async for line in self._lines if line] == []


@asynccontextmanager
async def streaming(
    node: Node, token: str, budget_id: str, key: int = 0, last_id: str | None = None
) -> AsyncIterator[Events]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with (
        node.rest(token) as rest,
        rest.stream(
            "GET", f"/budgets/{budget_id}/stream", params={"key": key}, headers=headers
        ) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


async def test_a_poll_returns_as_soon_as_an_event_lands_on_whatever_node(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    token = cluster.token("ann")
    waiting = asyncio.create_task(poll(nodes[1], token, budget_id, 1, 30))
    await asyncio.sleep(0.3)  # it is not over by itself
    assert not waiting.done()
    [verdict] = await submit(nodes[0], token, expense_add(budget_id))
    async with asyncio.timeout(5):
        body = (await waiting).json()
    assert [event["sequence"] for event in body["events"]] == [2]
    assert body["events"][0]["event"] == body["events"][0]["eventType"] == "expense.add"
    assert body["events"][0]["eventId"] == verdict["eventId"]
    assert (body["key"], body["nextKey"], body["head"], body["hasMore"]) == (1, 2, 2, False)
    again = (await poll(nodes[0], token, budget_id, 1, 30)).json()  # a lost answer costs nothing
    assert again == body


async def test_a_poll_without_events_ends_in_time_and_says_so(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    body = (await poll(nodes[0], cluster.token("ann"), budget_id, 1, 1)).json()
    assert (body["events"], body["nextKey"], body["head"]) == ([], 1, 1)
    ahead = await poll(nodes[0], cluster.token("ann"), budget_id, 2, 30)
    assert (ahead.status_code, ahead.json()["error"]["message"]) == (409, "CURSOR_AHEAD")


async def test_p9_a_waiting_poll_and_a_stream_end_with_the_removal(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    ann, ben = cluster.token("ann"), cluster.token("ben")
    async with nodes[0].rest(ben) as rest:
        assert (await rest.post(f"/budgets/{budget_id}/join")).status_code == 200
    async with streaming(nodes[1], ben, budget_id, key=2) as stream:
        waiting = asyncio.create_task(poll(nodes[1], ben, budget_id, 2, 30))
        await asyncio.sleep(0.3)
        async with nodes[0].rest(ann) as rest:
            removed = await rest.delete(f"/budgets/{budget_id}/participants/ben")
        assert removed.status_code == 200
        name, data = await stream.next()
        assert (name, data["toSequence"]) == ("events", 3)
        assert await stream.next() == (
            "unsubscribed",
            {"type": "unsubscribed", "code": "NOT_PARTICIPANT"},
        )
        assert await stream.ended()
        answer = await waiting
    assert (answer.status_code, answer.json()["error"]["message"]) == (403, "NOT_PARTICIPANT")


async def test_a_stream_resumes_with_its_last_event_id(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    token = cluster.token("ann")
    async with streaming(nodes[0], token, budget_id) as stream:
        name, data = await stream.next()
        assert (name, data["fromSequence"], data["toSequence"]) == ("events", 1, 1)
        assert data["type"] == "events"
        assert "event" not in data["events"][0]
        await submit(nodes[1], token, expense_add(budget_id))
        _, data = await stream.next()
        assert data["events"][0]["sequence"] == 2
    await submit(nodes[1], token, expense_add(budget_id))
    async with streaming(nodes[1], token, budget_id, key=0, last_id=stream.last_id) as resumed:
        _, data = await resumed.next()
        assert (data["fromSequence"], data["toSequence"]) == (3, 3)


async def test_p9_strangers_get_no_stream(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    async with nodes[0].rest(cluster.token("stranger")) as rest:
        for path in (f"/budgets/{budget_id}/stream", f"/events?budgetId={budget_id}&wait=5"):
            answer = await rest.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["message"] == "BUDGET_NOT_EXISTS"
