"""Close codes arrive, and one bad connection never breaks the drain."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from websockets.frames import Opcode

from api.process.server import GRACEFUL_S
from storage.embedded.redis import EmbeddedRedis
from tests.cluster import BUSY_S, Cluster, checked
from tests.crowd import patched
from tests.device import connect
from tests.field.large_budgets import a_large_budget
from tests.kernel import SMALL_BUFFERS, sent, silent
from tests.masked import masked
from tests.raw_http import Peer, connected

SOCKET = (
    "GET /sync HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    "Authorization: Bearer {token}\r\n"
)
GET = "GET {path} HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {token}\r\n\r\n"
POST = (
    "POST /events HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {token}\r\n"
    "Content-Length: 1000\r\n\r\n{"
)
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200))


@pytest.fixture(scope="module")
async def cluster(
    cluster_database_url: str, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("closing")
    program = patched(SMALL_BUFFERS)
    async with checked(Cluster(folder, cluster_database_url, redis.url, program)) as cluster:
        yield cluster


# Close codes


@pytest.mark.parametrize("size", [256 * 1024 + 1, 2**20, 5 * 2**20])
async def test_1009_reaches_who_is_still_sending(cluster: Cluster, size: int) -> None:
    """Closed with the rest unread, TCP would reset the connection: 1006 says try again."""
    node = await cluster.start()
    whole = masked(Opcode.TEXT, b" " * size)
    half = size // 2
    parts = masked(Opcode.TEXT, b" " * half, fin=False) + masked(Opcode.CONT, b" " * (size - half))
    for message in (whole, parts):
        async with connected(node.url) as peer:
            await opened(peer, cluster.token("ann"))
            peer.writer.write(message)
            await peer.writer.drain()  # fails where the connection breaks
            async with asyncio.timeout(BUSY_S):
                await peer.reader.readuntil(b"\x03\xf1over 262144 bytes")
            peer.writer.write(masked(Opcode.CLOSE, b"\x03\xf1"))
            assert await peer.ended() == b""


async def test_4400_reaches_who_sends_on(cluster: Cluster) -> None:
    node = await cluster.start()
    async with connected(node.url) as peer:
        await opened(peer, cluster.token("ann"))
        peer.writer.write(masked(Opcode.TEXT, b"no frame") + masked(Opcode.TEXT, b"{}") * 10_000)
        await peer.writer.drain()
        async with asyncio.timeout(BUSY_S):
            await peer.reader.readuntil((4400).to_bytes(2, "big") + b"not JSON")
        peer.writer.write(masked(Opcode.CLOSE, (4400).to_bytes(2, "big")))
        assert await peer.ended() == b""


async def opened(peer: Peer, token: str) -> None:
    peer.writer.write(SOCKET.format(token=token).encode() + b"\r\n")
    async with asyncio.timeout(BUSY_S):
        await peer.reader.readuntil(b'"expiresAt":')
        await peer.reader.readuntil(b"}")


# The drain

BAD = {
    "half a body": POST,
    "half a body in chunks": POST.replace("Content-Length: 1000", "Transfer-Encoding: chunked"),
    "half a head": "GET /healthz HTTP/1.1\r\nHost:",
    "half a handshake": SOCKET,
    "nothing": "",
}
BAD_AND_ANSWERED = {
    "a body that is none": POST.replace("Content-Length: 1000", "Transfer-Encoding: chunked")
    + "no chunk\r\n",
    "a handshake that is refused": SOCKET + "Cookie: " + "x" * 9000 + "\r\n\r\n",
    "a snapshot not read": GET.replace("{path}", "/budgets/{budget}"),
    "two snapshots not read": 2 * GET.replace("{path}", "/budgets/{budget}"),
    "a stream not read": GET.replace("{path}", "/budgets/{budget}/stream"),
    "a socket without pongs": SOCKET + "\r\n",
    "a socket that does not read": SOCKET.replace("/sync", "/sync?budgetId={budget}") + "\r\n",
}
BROKEN = {  # behind a handshake
    "half a frame": masked(Opcode.TEXT, b"x" * 1000)[:500],
    "a close that is not answered": masked(Opcode.TEXT, b"no frame of ours"),
    "a frame that is too big": masked(Opcode.TEXT, b"x" * 300_000)[:270_000],
}


async def test_bad_connections_never_break_the_drain(cluster: Cluster) -> None:
    """The others are told 1012, what they asked is answered, and the process ends in order."""
    node = await cluster.start()
    token = cluster.token("ann")
    budget_id = await a_large_budget(node, token)

    def told(text: str) -> bytes:
        return text.replace("{token}", token).replace("{budget}", budget_id).encode()

    async with AsyncExitStack() as held:

        async def bad(data: bytes, *, answered: bool = True) -> None:
            await sent(await held.enter_async_context(silent(node.url)), data, answered=answered)

        await bad(CLIENT_HELLO)
        for text in BAD.values():
            await bad(told(text), answered=False)
        for text in BAD_AND_ANSWERED.values():
            await bad(told(text))
        for data in BROKEN.values():
            await bad(told(SOCKET) + b"\r\n" + data)
        device = await held.enter_async_context(connect(node.url, token))
        other = await held.enter_async_context(connected(node.url))
        poll = (
            f"/events?budgetId={budget_id}&key={(await device.subscribe(budget_id)).head}&wait=60"
        )
        other.writer.write(told(GET.replace("{path}", poll)))
        await device.ask({"type": "ping"})
        began_s = time.monotonic()
        await node.stop()
        took_s = time.monotonic() - began_s
        assert await device.until_closed() == 1012
        status, _ = await other.answer()
        assert status == 200
    assert node.exit_code == 0
    assert node.complaints() == []
    assert took_s < 0.9 * GRACEFUL_S + BUSY_S
