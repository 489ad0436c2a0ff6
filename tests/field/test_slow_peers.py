"""A peer that is slow but steady is alive, in both directions."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import orjson
import pytest
from websockets.frames import Opcode

from storage.embedded.redis import EmbeddedRedis
from tests.cluster import BUSY_S, Cluster, Node, checked
from tests.crowd import patched, waiting
from tests.device import TIMEOUT_S, budget_create, new_id
from tests.field.large_budgets import SNAPSHOT_BYTES, a_large_budget
from tests.kernel import SMALL_BUFFERS, sent, silent
from tests.lateness import again_if_too_late, unpaused
from tests.masked import masked

PING_S, CLOSE_S, KEEP_ALIVE_S = 1.0, 2.0, 1  # of an impatient hub
PERIODS = 4  # so many times as long as it would wait for who is gone
KEEP_ALIVE = (
    "from api.http.protocol import HttpProtocol; "
    f"HttpProtocol.timeout_keep_alive = property(lambda self: {KEEP_ALIVE_S}, lambda *_: None)"
)


@pytest.fixture(scope="module")
async def cluster(
    cluster_database_url: str,
    redis: EmbeddedRedis,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Cluster]:
    """Nodes with kernel buffers of any size, as on a loopback."""
    folder = tmp_path_factory.mktemp("impatient")
    program = patched(waiting(ping_s=PING_S))
    async with checked(Cluster(folder, cluster_database_url, redis.url, program)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
async def small_buffers(
    cluster: Cluster, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Node]:
    program = patched(waiting(close_s=CLOSE_S), KEEP_ALIVE, SMALL_BUFFERS)
    folder = tmp_path_factory.mktemp("small")
    async with checked(Cluster(folder, cluster.database_url, redis.url, program)) as small:
        yield await small.start()


def get(path: str, token: str, more: str = "") -> bytes:
    bearer = f"Authorization: Bearer {token}\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: hub\r\n{bearer}{more}\r\n".encode()


def upgrade(token: str, query: str = "") -> bytes:
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    offer = "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    return get(f"/sync{query}", token, offer + key)


async def read_slowly(
    connection: socket.socket, seconds: float, per_s: int = 200_000, pause_s: float = 0.05
) -> bytes:
    """What came in that time. Raises `ConnectionResetError`."""
    loop, data = asyncio.get_running_loop(), b""
    ends_s = loop.time() + seconds
    while loop.time() < ends_s:
        data += await loop.sock_recv(connection, int(per_s * pause_s))
        await asyncio.sleep(pause_s)
    return data


async def read_until(
    connection: socket.socket, data: bytes, over: Callable[[bytes], bool]
) -> bytes:
    """At full speed. Raises `ConnectionResetError`, and `EOFError` at the hub's end."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(TIMEOUT_S):
        while not over(data[-300_000:]):
            piece = await loop.sock_recv(connection, 2**20)
            if not piece:
                raise EOFError(data[-100:])
            data += piece
    return data


# Sockets


@again_if_too_late
async def test_a_socket_that_reads_slowly_stays(cluster: Cluster) -> None:
    """Its kernel and the hub's hold megabytes before the hub's pings. The hub's asks for more only
    when much of that has left, so for some time the hub has sent nothing."""
    node = await cluster.start()
    token = cluster.token("ann")
    budget_id = await a_large_budget(node, token, 4 * SNAPSHOT_BYTES)
    async with node.rest(token) as rest:
        head = (await rest.get(f"/budgets/{budget_id}/last-event-sequence")).json()["lastSequence"]
    end = b'"toSequence":%d,' % head
    async with unpaused(PING_S / 2), silent(node.url) as peer:
        await sent(peer, upgrade(token, f"?budgetId={budget_id}&key=0"))
        data = await read_slowly(peer, 2 * PERIODS * PING_S)
        assert end not in data
        await read_until(peer, data, lambda tail: end in tail)


@again_if_too_late
async def test_a_socket_that_sends_a_large_frame_slowly_stays(cluster: Cluster) -> None:
    """Its pongs would have to wait for the end of the frame."""
    node = await cluster.start()
    loop = asyncio.get_running_loop()
    frame = masked(Opcode.TEXT, orjson.dumps({"type": "ping", "id": 7, "pad": "x" * 200_000}))
    async with unpaused(PING_S / 2), silent(node.url) as peer:
        await sent(peer, upgrade(cluster.token("ann")))
        pieces = int(2 * PERIODS * PING_S / 0.1)
        for at in range(pieces):
            size = len(frame) // pieces + 1
            await loop.sock_sendall(peer, frame[at * size : (at + 1) * size])
            await asyncio.sleep(0.1)
        await read_until(peer, b"", lambda tail: b'"type":"pong","id":7' in tail)


@again_if_too_late
async def test_the_close_code_comes_behind_what_is_read_slowly(
    small_buffers: Node, cluster: Cluster
) -> None:
    token = cluster.token("ann")
    budget_id = await a_large_budget(small_buffers, token)
    async with unpaused(CLOSE_S / 2), silent(small_buffers.url, 2**15) as peer:
        short = cluster.token("ann", ttl_s=2)
        await sent(peer, upgrade(short, f"?budgetId={budget_id}&key=0"))
        await asyncio.sleep(2)  # the token's end, which the hub is to see while nothing is read
        closing = b"\x88\x0f" + (4401).to_bytes(2, "big") + b"NOT_LOGGED_IN"
        data = await read_slowly(peer, 2 + 1.5 * CLOSE_S, 60_000)
        await read_until(peer, data, lambda tail: closing in tail)


# HTTP


@again_if_too_late
async def test_who_reads_a_response_slowly_may_ask_again(
    small_buffers: Node, cluster: Cluster
) -> None:
    """A connection is kept from the moment when its response was taken."""
    token = cluster.token("ann")
    budget_id = await a_large_budget(small_buffers, token)
    async with unpaused(KEEP_ALIVE_S / 2), silent(small_buffers.url) as peer:
        await sent(peer, get(f"/budgets/{budget_id}", token))
        data = await read_slowly(peer, PERIODS * KEEP_ALIVE_S, 100_000)
        assert not data.endswith(b"}")
        await read_until(peer, data, lambda tail: tail.endswith(b'"}'))
        await sent(peer, get("/budgets", token))
        await read_until(peer, b"", lambda tail: budget_id.encode() in tail)


@again_if_too_late
async def test_who_reads_a_stream_slowly_gets_all_of_it(
    small_buffers: Node, cluster: Cluster
) -> None:
    token = cluster.token("ann")
    budget_id = await a_large_budget(small_buffers, token)
    async with small_buffers.rest(token) as rest:
        head = (await rest.get(f"/budgets/{budget_id}/last-event-sequence")).json()["lastSequence"]
    async with silent(small_buffers.url) as peer:
        await sent(peer, get(f"/budgets/{budget_id}/stream", token))
        data = await read_slowly(peer, 2.0, 100_000)
        await read_until(peer, data, lambda tail: b"\nid: %d\n" % head in tail)


async def test_who_sends_a_body_slowly_is_answered(cluster: Cluster) -> None:
    """In more time than the hub gives to a head; `test_bounds.py` has the bound."""
    node = await cluster.start()
    loop = asyncio.get_running_loop()
    body = orjson.dumps({"events": [budget_create(new_id())]})
    head = get("/events", cluster.token("ann"), f"Content-Length: {len(body)}\r\n")
    async with silent(node.url) as peer, asyncio.timeout(BUSY_S):
        await sent(peer, head.replace(b"GET", b"POST"), answered=False)
        for at in range(0, len(body), 20):
            await loop.sock_sendall(peer, body[at : at + 20])
            await asyncio.sleep(0.05)
        await read_until(peer, b"", lambda tail: b'"status":"accepted"' in tail)
