"""P9 from every side: what the owner, who came back, who left, who was removed and a stranger see
of a budget, on every transport, while it lives and after its deletion (design 5)."""

from collections.abc import Awaitable, Callable

import httpx2
import pytest

from tests.cluster import Cluster, Node
from tests.device import Json, Refused, budget_create, connect, expense_add, new_id
from tests.event_stream import EventStream

# What one is shown: the sequences of events and then, where it ended, why; or just why not.
View = list[int | str]
Look = Callable[[Node, str, str], Awaitable[View]]

IN = ("ann", "dan")  # the owner, and who left and came back
OUT = ("ben", "cat")  # who was removed, and who left


async def by_socket(node: Node, token: str, budget_id: str) -> View:
    async with connect(node.url, token) as device:
        try:
            stream = await device.subscribe(budget_id)
        except Refused as refused:
            return [refused.error["message"]]
        await device.reached(budget_id, stream.head)
        seen: View = [event.body["sequence"] for event in stream.events]
        if stream.events[-1].body["eventType"] == "budget.delete":
            await device.wait_for(lambda: bool(device.of_type("unsubscribed")))
        return seen + [frame["code"] for frame in device.of_type("unsubscribed")]


async def by_stream(node: Node, token: str, budget_id: str) -> View:
    async with (
        node.rest(token) as rest,
        rest.stream("GET", f"/budgets/{budget_id}/stream") as response,
    ):
        if response.status_code != 200:
            await response.aread()
            return [refusal(response)]
        events = EventStream(response)
        head = (await rest.get("/events", params={"budgetId": budget_id})).json()["head"]
        seen: View = []
        while True:
            name, data = await events.next()
            if name == "unsubscribed":
                return [*seen, data["code"]]
            seen += [event["sequence"] for event in data["events"]]
            if data["toSequence"] == head and data["events"][-1]["eventType"] != "budget.delete":
                return seen


async def by_poll(node: Node, token: str, budget_id: str) -> View:
    async with node.rest(token) as rest:
        response = await rest.get("/events", params={"budgetId": budget_id, "wait": 0})
    if response.status_code != 200:
        return [refusal(response)]
    seen: View = [event["sequence"] for event in response.json()["events"]]
    assert not response.json()["hasMore"]
    return seen


def by_read(path: str) -> Look:
    """What is read as a state, not as a log: nothing but whether it may be."""

    async def read(node: Node, token: str, budget_id: str) -> View:
        async with node.rest(token) as rest:
            response = await rest.get(f"/budgets/{budget_id}{path}")
        return [] if response.status_code == 200 else [refusal(response)]

    return read


LOGS: dict[str, Look] = {"socket": by_socket, "stream": by_stream, "poll": by_poll}
ENDED_BY_DELETION = {"socket", "stream"}  # a poll ends by itself
STATES = {
    path: by_read(path)
    for path in (
        "", "/delta?key=0", "/last-event-sequence", "/participants", "/categories", "/expenses",
        "/participants/ann",
    )
}  # fmt: skip


def refusal(response: httpx2.Response) -> str:
    error: Json = response.json()["error"]
    assert (error["statusCode"], error["message"]) in {
        (404, "BUDGET_NOT_EXISTS"),
        (403, "NOT_PARTICIPANT"),
    }
    message: str = error["message"]
    return message


@pytest.fixture(scope="module")
async def story(cluster: Cluster) -> tuple[list[Node], str, str]:
    """Two budgets with the same story, the second of them deleted in the end."""
    nodes = await cluster.start_some(2)
    budgets = [new_id(), new_id()]
    for budget_id in budgets:
        path = f"/budgets/{budget_id}"
        async with connect(nodes[0].url, cluster.token("ann")) as ann:
            await ann.accepted(budget_create(budget_id), expense_add(budget_id))
            for user in ("ben", "cat", "dan"):
                await asks(nodes[1], cluster.token(user), "POST", f"{path}/join")
            await ann.accepted(expense_add(budget_id))
            await asks(nodes[0], cluster.token("ann"), "DELETE", f"{path}/participants/ben")
            for user in ("cat", "dan"):
                await asks(nodes[1], cluster.token(user), "DELETE", f"{path}/leave")
            await ann.accepted(expense_add(budget_id))
            await asks(nodes[1], cluster.token("dan"), "POST", f"{path}/join")
            await ann.accepted(expense_add(budget_id))
            if budget_id == budgets[1]:
                delete = {**expense_add(budget_id), "eventType": "budget.delete", "version": 1}
                await ann.accepted(delete)
    return nodes, budgets[0], budgets[1]


HEAD = 12  # before the deletion


async def asks(node: Node, token: str, method: str, path: str) -> None:
    async with node.rest(token) as rest:
        assert (await rest.request(method, path)).status_code == 200


@pytest.mark.parametrize("user", ["ann", "ben", "cat", "dan", "eve"])
async def test_p9_who_takes_part_sees_the_whole_log_and_nobody_else_anything(
    story: tuple[list[Node], str, str], cluster: Cluster, user: str
) -> None:
    nodes, budget_id, _ = story
    refused = "NOT_PARTICIPANT" if user in OUT else "BUDGET_NOT_EXISTS"
    for node in nodes:
        for name, look in {**LOGS, **STATES}.items():
            seen = await look(node, cluster.token(user), budget_id)
            whole = list(range(1, HEAD + 1)) if name in LOGS else []
            assert seen == (whole if user in IN else [refused]), name


@pytest.mark.parametrize("user", ["ann", "ben", "cat", "dan", "eve"])
async def test_p9_of_a_deleted_budget_its_last_participants_see_the_log_and_nobody_anything_else(
    story: tuple[list[Node], str, str], cluster: Cluster, user: str
) -> None:
    nodes, _, budget_id = story
    for node in nodes:
        for name, look in LOGS.items():
            seen = await look(node, cluster.token(user), budget_id)
            end = ["BUDGET_DELETED"] if name in ENDED_BY_DELETION else []
            whole = [*range(1, HEAD + 2), *end]
            assert seen == (whole if user in IN else ["BUDGET_NOT_EXISTS"]), name
        for name, look in STATES.items():
            seen = await look(node, cluster.token(user), budget_id)
            assert seen == ["BUDGET_NOT_EXISTS"], name
