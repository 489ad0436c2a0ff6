"""The stream of a budget over HTTP: by long-poll and as Server-Sent Events, on real nodes."""

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx2
import orjson
import pytest
import redis.asyncio

from storage.postgres.database import CONNECTIONS_MAX
from tests.cluster import BUSY_S, REST_S, Cluster, Node, until
from tests.crowd import patched, waiting
from tests.device import Json, budget_create, expense_add, new_id
from tests.event_stream import streaming
from tests.lateness import again_if_too_late, in_time, unpaused


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
        return await rest.get("/events", params=query, timeout=wait_s + REST_S)


async def test_a_poll_returns_as_soon_as_an_event_lands_on_whatever_node(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    token = cluster.token("ann")
    waiting = asyncio.create_task(poll(nodes[1], token, budget_id, 1, 30))
    await asyncio.sleep(0.3)  # it is not over by itself
    assert not waiting.done()
    [verdict] = await submit(nodes[0], token, expense_add(budget_id))
    async with asyncio.timeout(BUSY_S):
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
    async with streaming(nodes[1], ben, budget_id, key=1) as stream:
        await stream.next()  # so it is live
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


async def test_an_empty_last_event_id_is_as_none(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    async with streaming(nodes[0], cluster.token("ann"), budget_id, last_id="") as stream:
        _, data = await stream.next()
        assert data["toSequence"] == 1


async def test_a_head_of_a_stream_is_over_at_once(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    path = f"/budgets/{budget_id}/stream"
    async with nodes[0].rest(cluster.token("ann")) as rest:
        head = await rest.head(path)
        assert head.status_code == 200
        assert head.headers["Content-Type"].startswith("text/event-stream")
        assert (await rest.get(f"/budgets/{budget_id}")).status_code == 200  # on that connection
        assert (await rest.head(f"{path}?key=2")).status_code == 409


async def test_p9_strangers_get_no_stream(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    async with nodes[0].rest(cluster.token("stranger")) as rest:
        for path in (f"/budgets/{budget_id}/stream", f"/events?budgetId={budget_id}&wait=5"):
            answer = await rest.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["message"] == "BUDGET_NOT_EXISTS"


async def test_a_last_event_id_that_is_none_is_400(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    async with nodes[0].rest(cluster.token("ann")) as rest:
        for last_id in ("x", "-1", "1.0", "9007199254740992", "9" * 5000):
            answer = await rest.get(
                f"/budgets/{budget_id}/stream", headers={"Last-Event-ID": last_id}
            )
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, "BAD_REQUEST")
        ahead = await rest.get(f"/budgets/{budget_id}/stream", headers={"Last-Event-ID": "2"})
        assert (ahead.status_code, ahead.json()["error"]["message"]) == (409, "CURSOR_AHEAD")


@again_if_too_late
async def test_p9_a_stream_ends_with_its_token(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    async with AsyncExitStack() as stack:
        following = streaming(nodes[0], cluster.token("ann", ttl_s=3), budget_id)
        with in_time(2):  # it has more than that
            stream = await stack.enter_async_context(following)
            await stream.next()
        assert await stream.ended()


class Waiter:
    """A long-poll on a connection of its own that costs next to nothing."""

    def __init__(self, node: Node, token: str, path: str, *, receive_buffer: int = 0) -> None:
        parts = urlsplit(node.url)
        self._address = parts.hostname, parts.port
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()
        self._receive_buffer = receive_buffer

    async def ask(self) -> None:
        made = socket.socket()
        if self._receive_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, self._address)
        self.reader, self._writer = await asyncio.open_connection(sock=made, limit=65536)
        self._writer.write(self._request)

    async def answer(self) -> tuple[int, Json]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        return int(head.split()[1]), orjson.loads(await self.reader.readexactly(int(length[1])))

    async def drop(self) -> None:
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()


async def followed(cluster: Cluster, budget_id: str) -> bool:
    """Whether a node listens to the budget's events on behalf of anybody."""
    assert cluster.redis_url is not None
    async with redis.asyncio.Redis.from_url(cluster.redis_url) as client:
        return bool(await client.pubsub_channels(f"*{budget_id}"))


async def becomes(condition: Callable[[], Awaitable[bool]], timeout_s: float = REST_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
        await asyncio.sleep(0.05)


async def herd(cluster: Cluster, nodes: list[Node], budget_id: str, number: int) -> None:
    """So many polls wait and hold no connection to the database; one event answers all of them."""
    token = cluster.token("ann")
    path = f"/events?budgetId={budget_id}&key=1&wait=60"
    waiters = [Waiter(nodes[n % 2], token, path) for n in range(number)]
    sql = await asyncpg.connect(cluster.database_url)
    try:
        for start in range(0, number, 100):  # the listening queue takes that many at once
            await asyncio.gather(*(waiter.ask() for waiter in waiters[start : start + 100]))
        answers = [asyncio.create_task(waiter.answer()) for waiter in waiters]

        async def idle() -> bool:
            """All have read the log: nothing is asked of the database any more."""
            await sql.execute("SELECT pg_stat_clear_snapshot()")
            busy = await sql.fetchval(
                """
                SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                AND pid <> pg_backend_pid() AND (
                    state <> 'idle' OR state_change > clock_timestamp() - interval '0.3 seconds'
                )
                """
            )
            return bool(busy == 0)

        # A sweep a second on each node leaves time in between.
        await becomes(idle, 60)
        connections = await sql.fetchval(
            """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'budget-hub'
            """
        )
        assert connections <= 2 * CONNECTIONS_MAX
        assert not any(answer.done() for answer in answers)
        await submit(nodes[0], token, expense_add(budget_id))
        committed_s = time.monotonic()
        async with asyncio.timeout(REST_S):
            found = await asyncio.gather(*answers)
        took_s = time.monotonic() - committed_s
        assert {status for status, _ in found} == {200}
        assert all([e["sequence"] for e in body["events"]] == [2] for _, body in found)
        assert took_s < 1 + BUSY_S
    finally:
        for waiter in waiters:
            await waiter.drop()
        await sql.close()


async def test_p8_hundreds_of_waiting_polls_cost_no_database_connection(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    await herd(cluster, nodes, budget_id, 300)


@pytest.mark.faults
async def test_p8_thousands_of_waiting_polls_cost_no_database_connection(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    await herd(cluster, nodes, budget_id, 2000)


async def test_p8_dropped_polls_and_streams_leave_nothing_behind(
    cluster: Cluster, nodes: list[Node], budget_id: str
) -> None:
    token = cluster.token("ann")
    for path in (f"/events?budgetId={budget_id}&key=1&wait=60", f"/budgets/{budget_id}/stream"):
        waiters = [Waiter(nodes[0], token, path) for _ in range(50)]
        for waiter in waiters:
            await waiter.ask()
        await waiters[0].drop()  # as likely as not before it was heard
        await becomes(lambda: followed(cluster, budget_id))
        for waiter in waiters:
            await waiter.drop()

        async def nobody_follows() -> bool:
            return not await followed(cluster, budget_id)

        await becomes(nobody_follows)


UNREAD_S = 1.0  # until a peer that takes nothing is dropped


@again_if_too_late
async def test_p8_a_stream_that_stopped_reading_is_closed(
    cluster: Cluster, cluster_database_url: str, tmp_path: Path
) -> None:
    budget_id = new_id()
    folder = tmp_path / budget_id
    await asyncio.to_thread(folder.mkdir)
    impatient = Cluster(
        folder,
        cluster_database_url,
        cluster.redis_url,
        patched(waiting(unread_s=UNREAD_S)),
    )
    try:
        node = await impatient.start()
        token = cluster.token("ann")
        note = "x" * 2000
        await submit(node, token, budget_create(budget_id))
        for _ in range(100):  # 5 MB, more than all buffers on the way take
            await submit(node, token, *(expense_add(budget_id, note=note) for _ in range(25)))
        path = f"/budgets/{budget_id}/stream"
        stopped = Waiter(node, token, path, receive_buffer=4096)
        await stopped.ask()
        await becomes(lambda: followed(cluster, budget_id))

        async def nobody_follows() -> bool:
            return not await followed(cluster, budget_id)

        await becomes(nobody_follows)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            while True:
                await stopped.reader.readexactly(4096)
        await stopped.drop()
        # Who reads, however slowly, gets everything: in three times as long as the hub waits.
        async with unpaused(UNREAD_S / 2):
            slow = Waiter(node, token, path, receive_buffer=65536)
            await slow.ask()
            end = b""
            while b"\nid: 2501\n" not in end:
                await asyncio.sleep(0.02)
                data = await slow.reader.read(65536)
                assert data
                end = end[-20:] + data
            await slow.drop()
    finally:
        await impatient.close()


async def test_p11_waiting_polls_and_streams_end_when_the_hub_stops(cluster: Cluster) -> None:
    node = await cluster.start()
    budget_id, token = new_id(), cluster.token("ann")
    await submit(node, token, budget_create(budget_id))
    answers: list[Json] = []

    async def poll_on() -> None:
        """Again and again on one connection, as clients do."""
        key = 1
        async with node.rest(token) as rest:
            try:
                while True:
                    path = f"/events?budgetId={budget_id}&key={key}&wait=60"
                    answer = await rest.get(path, timeout=90)
                    assert answer.status_code == 200
                    answers.append(answer.json())
                    key = answers[-1]["nextKey"]
            except httpx2.TransportError:
                pass

    async with streaming(node, token, budget_id, key=1) as stream:
        polls = [asyncio.create_task(poll_on()) for _ in range(20)]
        await submit(node, token, expense_add(budget_id))
        await stream.next()
        await until(lambda: len(answers) >= 20, REST_S)  # all were waiting, or found it
        assert all(answer["events"] for answer in answers)
        answers.clear()
        assert await node.stop() == 0
        assert node.complaints() == []  # nobody had to be waited for, and then cut off
        assert not any(answer["events"] for answer in answers)
        [retry] = await stream.rest()
        assert re.fullmatch(r"retry: \d+", retry)  # spread out, as for sockets
        async with asyncio.timeout(REST_S):
            await asyncio.gather(*polls)
