"""Order and back-pressure, whatever way a message comes in: whole or in fragments."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from websockets.frames import Opcode

from storage.embedded.redis import EmbeddedRedis
from tests.cluster import Cluster, Node, checked, until
from tests.crowd import Crowd, open_spectator, patched
from tests.device import TIMEOUT_S, Json, category_add, expense_add, expense_edit, new_id
from tests.field.large_budgets import NOTE
from tests.kernel import SMALL_BUFFERS, sent, silent
from tests.masked import masked

STOPS_S = 1.0  # nothing was taken for so long: it is not read any more
TAKEN_MAX = 15_000_000  # bytes: of events in flight, and of the buffers of two kernels


@pytest.fixture(scope="module")
async def cluster(
    cluster_database_url: str, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("order")
    program = patched(SMALL_BUFFERS)
    async with checked(Cluster(folder, cluster_database_url, redis.url, program)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


def in_fragments(message: bytes, number: int) -> bytes:
    size = len(message) // number + 1
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(
        masked(Opcode.CONT if at else Opcode.TEXT, part, fin=at == len(parts) - 1)
        for at, part in enumerate(parts)
    )


async def test_messages_in_fragments_and_whole_ones_keep_their_order(
    cluster: Cluster, node: Node
) -> None:
    """Each needs the one before: a category for its expense, a version for its edit."""
    token = cluster.token("ann")
    budget_id, category_id, record_id = await node.new_budget(token), new_id(), new_id()
    events = [
        category_add(budget_id, recordId=category_id),
        expense_add(budget_id, recordId=record_id, categoryId=category_id),
        *(expense_edit(budget_id, record_id, version, amount="5") for version in range(1, 9)),
    ]
    with Crowd() as crowd:
        [socket] = await crowd.join(open_spectator(node.url, token))
        for number, event in enumerate(events):
            frame: Json = {"type": "events", "id": number, "events": [event]}
            socket.transport.write(in_fragments(orjson.dumps(frame), 1 if number % 2 else 3))
        await until(lambda: len(socket.of_type("results")) == len(events), TIMEOUT_S)
        results = socket.of_type("results")
    assert [frame["id"] for frame in results] == list(range(len(events)))
    statuses = {each["status"] for frame in results for each in frame["results"]}
    assert statuses == {"accepted"}


@pytest.mark.parametrize("number", [1, 2, 20], ids=["whole", "halves", "fragments"])
async def test_p8_who_reads_no_answers_is_not_read_from(
    cluster: Cluster, node: Node, number: int
) -> None:
    token = cluster.token("ann")
    budget_id = await node.new_budget(token)
    events = [expense_add(budget_id, note=NOTE) for _ in range(20)]
    message = orjson.dumps({"type": "events", "mode": "each", "events": events})
    data = in_fragments(message, number)
    loop, taken = asyncio.get_running_loop(), 0
    async with silent(node.url) as peer:
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        offer = "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        bearer = f"Authorization: Bearer {token}\r\n"
        head = f"GET /sync HTTP/1.1\r\nHost: hub\r\n{bearer}{offer}{key}\r\n"
        await sent(peer, head.encode())
        with pytest.raises(TimeoutError):
            while taken < 3 * TAKEN_MAX:
                async with asyncio.timeout(STOPS_S):
                    await loop.sock_sendall(peer, data)
                taken += len(data)
    assert taken < TAKEN_MAX
