"""One history, followed on every transport: all see the same events, and end with one budget."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from loadtest.replica import Replica
from tests.cluster import REST_S, Cluster, Node
from tests.device import Json, budget_edit, connect, new_id
from tests.event_stream import streaming
from tests.history import Author
from tests.replicas import after_delta

END = "The end"  # the title that the last event gives to the budget
BATCHES = 80
WAYS = ("socket", "server_sent", "poll", "delta", "snapshot")
FOLLOW_S = 150


@pytest.fixture(scope="module")
async def nodes(cluster: Cluster) -> list[Node]:
    return await cluster.start_some(2)


class Follower:
    """What a client knows of the budget. Each event must be the next one and leave the digest that
    it states."""

    def __init__(
        self, nodes: list[Node], token: str, budget_id: str, chance: random.Random
    ) -> None:
        self.replica = Replica(budget_id)
        self.participants: set[str] = set()
        self.events: list[Json] = []
        self.ways: Counter[str] = Counter()  # how often each was taken, by a client that switches
        self._nodes = nodes
        self._token = token
        self._budget_id = budget_id
        self._chance = chance

    @property
    def done(self) -> bool:
        budget = self.replica.records.get(("budget", self._budget_id))
        return budget is not None and budget["title"] == END

    @property
    def node(self) -> Node:
        """Any."""
        return self._chance.choice(self._nodes)

    def take(self, event: Mapping[str, Any]) -> None:
        assert event["sequence"] == self.replica.sequence + 1
        self.replica.apply(event)
        self.events.append({**event})
        match event["eventType"]:
            case "budget.create":
                self.participants.add(event["actorId"])
            case "participant.add":
                self.participants.add(event["recordId"])
            case "participant.remove":
                # Also of who had left before.
                self.participants.discard(event["recordId"])

    async def socket(self, number: float) -> None:
        """So many events, or until the end."""
        async with connect(self.node.url, self._token) as device:
            stream = await device.subscribe(self._budget_id, self.replica.sequence)
            taken = 0
            while taken < number and not self.done:
                await device.reached(self._budget_id, self.replica.sequence + 1, FOLLOW_S)
                for event in stream.events[taken:]:
                    self.take(event.body)
                    taken += 1

    async def server_sent(self, number: float) -> None:
        key, last_id = self.replica.sequence, None
        if self._chance.random() < 0.5:
            key, last_id = self._chance.randrange(100), str(key)
        async with streaming(self.node, self._token, self._budget_id, key, last_id) as stream:
            taken = 0
            while taken < number and not self.done:
                name, data = await stream.next()
                assert (name, stream.last_id) == ("events", str(data["toSequence"]))
                for event in data["events"]:
                    self.take(event)
                    taken += 1

    async def poll(self, number: float) -> None:
        async with self.node.rest(self._token) as rest:
            taken = 0
            while taken < number and not self.done:
                page = await self._get(
                    rest, "/events", budgetId=self._budget_id, key=self.replica.sequence, wait=5
                )
                for event in page["events"]:
                    assert event.pop("event") == event["eventType"]
                    self.take(event)
                    taken += 1
                assert page["nextKey"] == self.replica.sequence

    async def snapshot(self, number: float) -> None:
        async with self.node.rest(self._token) as rest:
            snapshot = await self._get(rest, f"/budgets/{self._budget_id}")
        assert snapshot["lastEventSequence"] >= self.replica.sequence
        self.replica = Replica.from_snapshot(snapshot)
        self.participants = {each["userId"] for each in snapshot["participants"]}

    async def delta(self, number: float) -> None:
        async with self.node.rest(self._token) as rest:
            path = f"/budgets/{self._budget_id}/delta"
            delta = await self._get(rest, path, key=self.replica.sequence)
        self.replica = after_delta(self.replica, delta)
        if "participants" in delta:
            self.participants = {each["userId"] for each in delta["participants"]}

    async def switch(self, first: str) -> None:
        """One way after the other, and from node to node."""
        streams = (self.socket, self.server_sent, self.poll)
        ways = [*streams, *streams, *streams, self.delta, self.delta, self.snapshot]
        way = getattr(self, first)
        while not self.done:
            self.ways[way.__name__] += 1
            await way(self._chance.randint(1, 20))
            way = self._chance.choice(ways)

    @staticmethod
    async def _get(rest: Any, path: str, **query: object) -> Json:
        answer = await rest.get(path, params=query, timeout=REST_S)
        assert answer.status_code == 200, answer.text
        body: Json = answer.json()
        return body


async def write(
    nodes: list[Node], cluster: Cluster, budget_id: str, owner: str, chance: random.Random
) -> None:
    """A random history: the owner writes, two others come, go and are removed."""
    author = Author(budget_id, chance)
    others = {name: cluster.token(f"{owner}-{name}") for name in ("ben", "cyd")}
    events = [author.create()]
    for _ in range(BATCHES):
        async with chance.choice(nodes).rest(cluster.token(owner)) as rest:
            answer = await rest.post("/events?mode=each", json={"events": events})
            assert answer.status_code in (200, 207)
            for event, verdict in zip(events, answer.json()["events"], strict=True):
                if verdict["status"] == "accepted":
                    author.accepted(event, verdict["version"])
            name = chance.choice(list(others))
            if chance.random() < 0.2:  # 404 if he never took part
                await rest.delete(f"/budgets/{budget_id}/participants/{owner}-{name}")
        if chance.random() < 0.5:
            async with chance.choice(nodes).rest(others[name]) as rest:
                joins = chance.random() < 0.6
                method, path = ("POST", "join") if joins else ("DELETE", "leave")
                await rest.request(method, f"/budgets/{budget_id}/{path}")  # 403 if removed
        events = [author.change() for _ in range(chance.choice((1, 2, 5, 25)))]
    async with nodes[0].rest(cluster.token(owner)) as rest:
        version = (await rest.get(f"/budgets/{budget_id}")).json()["version"]
        answer = await rest.post(
            "/events", json={"events": [budget_edit(budget_id, version, title=END)]}
        )
        assert answer.json()["events"][0]["status"] == "accepted"


@pytest.mark.parametrize("seed", [1, 2])
async def test_p2_p6_every_transport_shows_the_same_history(
    cluster: Cluster, nodes: list[Node], seed: int
) -> None:
    chance = random.Random(seed)
    budget_id, owner = new_id(), f"ann-{seed}"

    def follower() -> Follower:
        return Follower(nodes, cluster.token(owner), budget_id, random.Random(chance.random()))

    by_socket, by_sse, by_poll = (follower() for _ in range(3))
    switching = [follower() for _ in WAYS]
    # The first event, so that there is something to follow.
    async with asyncio.timeout(FOLLOW_S), asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(write(nodes, cluster, budget_id, owner, chance))
        async with nodes[0].rest(cluster.token(owner)) as rest:
            while (await rest.get(f"/budgets/{budget_id}")).status_code == 404:
                assert not writing.done()
        everything = float("inf")
        tasks.create_task(by_socket.socket(everything))
        tasks.create_task(by_sse.server_sent(everything))
        tasks.create_task(by_poll.poll(everything))
        for each, first in zip(switching, WAYS, strict=True):
            tasks.create_task(each.switch(first))

    log = by_socket.events
    assert [event["sequence"] for event in log] == list(range(1, len(log) + 1))
    kinds = {event["eventType"] for event in log}
    assert {"participant.add", "participant.remove", "category.delete", "expense.edit"} <= kinds
    ways = sum((each.ways for each in switching), Counter[str]())
    assert set(ways) == set(WAYS)
    assert by_sse.events == by_poll.events == log
    async with nodes[1].rest(cluster.token(owner)) as rest:
        snapshot = (await rest.get(f"/budgets/{budget_id}")).json()
    now = Replica.from_snapshot(snapshot)
    for each in (by_socket, by_sse, by_poll, *switching):
        assert each.replica.difference(now) is None
        assert each.participants == {person["userId"] for person in snapshot["participants"]}
        assert all(event == log[event["sequence"] - 1] for event in each.events)
