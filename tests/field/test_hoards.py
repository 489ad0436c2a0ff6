"""One user may not starve another: what they do not read is bounded, and what is refused costs what
it holds."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2
import pytest

from storage.embedded.redis import EmbeddedRedis
from tests.cluster import Cluster, Node, eventually, until
from tests.crowd import SMALL_BYTES, Crowd, open_spectator, patched
from tests.device import TIMEOUT_S, Json, connect, new_id
from tests.field.large_budgets import SNAPSHOT_BYTES, a_large_budget
from tests.kernel import SMALL_BUFFERS, sent, silent

USER_MAX, ALL_MAX = 2**20, 3 * 2**20  # of a hub that bears little


@pytest.fixture(scope="module")
async def cluster(
    cluster_database_url: str, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    little = (
        "import api.app; from functools import partial; from api.http.unread import Unread; "
        f"api.app.Unread = partial(Unread, {USER_MAX}, {ALL_MAX})"
    )
    folder = tmp_path_factory.mktemp("little")
    program = patched(little, SMALL_BUFFERS)
    cluster = Cluster(folder, cluster_database_url, redis.url, program)
    try:
        yield cluster
    finally:
        await cluster.close()


class Hoarder:
    """Asks, and reads nothing until the end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def answer(self) -> tuple[int, bool]:
        """Its status, and whether all of it came."""
        data = b""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT_S):
            try:
                while piece := await loop.sock_recv(self._connection, 2**16):
                    data += piece
            except ConnectionResetError:
                return int(data.split()[1]), False
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if b"content-length" in line)
        return int(head.split()[1]), len(body) == int(length.split()[1])


@asynccontextmanager
async def hoarding(node: Node, token: str, path: str) -> AsyncIterator[Hoarder]:
    async with silent(node.url) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n"
        request = f"{head}Authorization: Bearer {token}\r\n\r\n"
        await sent(connection, request.encode(), answered=False)
        yield Hoarder(connection)


def limited(answer: httpx2.Response) -> bool:
    if answer.status_code != 429:
        return False
    assert answer.json()["error"]["message"] == "RATE_LIMITED"
    assert int(answer.headers["Retry-After"]) > 0
    return True


async def test_p8_snapshots_that_nobody_reads_are_so_many(cluster: Cluster) -> None:
    """Of one user. Another's are made all the while, and theirs again as soon as they read."""
    node = await cluster.start()
    ann, bob = cluster.token("ann"), cluster.token("bob")
    large, small = await a_large_budget(node, ann), await node.new_budget(bob)
    async with AsyncExitStack() as held, node.rest(ann) as anns, node.rest(bob) as bobs:
        hoarders = [
            await held.enter_async_context(hoarding(node, ann, f"/budgets/{large}"))
            for _ in range(8)
        ]

        async def ann_is_limited() -> bool:
            return limited(await anns.get("/budgets"))

        await eventually(ann_is_limited)
        for path in ("/budgets", f"/budgets/{small}", f"/events?budgetId={small}&wait=0"):
            assert (await bobs.get(path)).status_code == 200
        answers = [await hoarder.answer() for hoarder in hoarders]
        assert {whole for _, whole in answers} == {True}
        statuses = [status for status, _ in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) <= 3
        assert not limited(await anns.get("/budgets"))


async def test_p8_of_too_much_in_all_the_most_is_dropped_and_the_newcomer_served(
    cluster: Cluster,
) -> None:
    """Each of the users is within their own bound."""
    node = await cluster.start()
    tokens = [cluster.token(f"hoarder-{number}") for number in range(8)]
    budgets = [await a_large_budget(node, token) for token in tokens]
    newcomer = cluster.token("newcomer")
    theirs = await a_large_budget(node, newcomer)
    async with AsyncExitStack() as held:
        for token, budget_id in zip(tokens, budgets, strict=True):
            await held.enter_async_context(hoarding(node, token, f"/budgets/{budget_id}"))

        def dropped() -> list[Json]:
            return [line for line in node.log() if line["event"] == "connection dropped: unread"]

        await until(lambda: len(dropped()) >= len(tokens) - ALL_MAX // SNAPSHOT_BYTES, TIMEOUT_S)
        assert dropped()[0]["user_id"].startswith("hoarder-")
        async with node.rest(newcomer) as rest:
            answer = await rest.get(f"/budgets/{theirs}")
            assert answer.status_code == 200
            assert len(answer.content) > SNAPSHOT_BYTES


async def test_p8_a_socket_that_does_not_read_its_verdicts_counts_too(cluster: Cluster) -> None:
    """Conflicts answer a few bytes with a whole record."""
    node = await cluster.start()
    token = cluster.token("eve")
    budget_id = await a_large_budget(node, token)
    async with node.rest(token) as rest:
        records = (await rest.get(f"/budgets/{budget_id}")).json()["expenses"][:100]

        def conflicts() -> list[Json]:
            stale: Json = {"eventType": "expense.delete", "budgetId": budget_id, "when": 1}
            return [
                {**stale, "eventId": new_id(), "recordId": record["id"], "version": 0}
                for record in records
            ]

        async def limited_now() -> bool:
            return limited(await rest.get("/budgets"))

        with Crowd() as crowd:
            sockets = await crowd.join(
                *(open_spectator(node.url, token, receive_bytes=SMALL_BYTES) for _ in range(4))
            )
            for each in sockets:
                each.stop_reading()
                for _ in range(4):
                    each.post(conflicts())
            await eventually(limited_now)


async def test_p8_a_refused_batch_costs_its_events(cluster: Cluster) -> None:
    """Also where it is the last event that has no id, and 99 were looked at."""
    node = await cluster.start(EVENTS_PER_S_CONNECTION="1000", EVENTS_PER_S_USER="20")
    token = cluster.token("mallory")
    refused = [{"eventId": new_id(), "eventType": "expense.add"} for _ in range(99)] + [{}]
    async with connect(node.url, token) as device:
        for _ in range(5):
            await device.send({"type": "events", "id": "x", "events": refused})
        await device.wait_for(lambda: len(device.of_type("error")) == 5)
        codes = [error["error"]["message"] for error in device.of_type("error")]
        assert codes[:2] == ["BAD_REQUEST"] * 2
        assert "RATE_LIMITED" in codes[2:]


async def test_p8_a_refused_batch_costs_its_events_over_rest_too(cluster: Cluster) -> None:
    """From the same rate: a user has one, whatever way they come."""
    node = await cluster.start(EVENTS_PER_S_USER="10")  # a hundred at once
    token = cluster.token("trent")
    refused = [{"eventId": new_id(), "eventType": "expense.add"} for _ in range(24)] + [{}]
    async with node.rest(token) as rest, node.rest(cluster.token("peggy")) as other:
        statuses = []
        for _ in range(6):
            answer = await rest.post("/events", json={"events": refused})
            statuses.append(answer.status_code)
            assert answer.status_code == 400 or limited(answer)
        assert statuses[:4] == [400] * 4
        assert 429 in statuses
        assert (await other.post("/events", json={"events": refused})).status_code == 400
        text = await rest.post("/events", content=b"[" * 250_000)
        assert text.status_code == 429  # not parsed
