"""P8: what a peer sends before anybody looks at it is bounded, in size and in time
(`api.http.protocol`)."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from api.http.protocol import BODY_BYTES_PER_S, HEAD_BYTES_MAX, HEADERS_MAX
from storage.embedded.redis import EmbeddedRedis
from tests.cluster import Cluster, Node, token
from tests.crowd import patched, resident_bytes, waiting
from tests.device import budget_create, new_id
from tests.lateness import again_if_too_late, unpaused
from tests.raw_http import connected

HEAD_S = BODY_S = 1.0  # of an impatient hub
START = b"GET /healthz HTTP/1.1\r\nHost: hub\r\n"


@pytest.fixture(scope="module")
async def impatient(
    cluster_database_url: str, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    program = patched(waiting(head_s=HEAD_S, body_s=BODY_S))
    folder = tmp_path_factory.mktemp("impatient")
    cluster = Cluster(folder, cluster_database_url, redis.url, program)
    try:
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture(scope="module")
async def node(impatient: Cluster) -> Node:
    return await impatient.start()


HEADS = {
    "one line": START + b"X-Long: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n",
    "a line without end": START + b"X-Long: " + b"x" * (4 * HEAD_BYTES_MAX),
    "a path": b"GET /" + b"x" * HEAD_BYTES_MAX + b" HTTP/1.1\r\nHost: hub\r\n\r\n",
    "a path without end": b"GET /" + b"x" * (4 * HEAD_BYTES_MAX),
    "many lines": START + b"X: y\r\n" * (HEADERS_MAX + 1) + b"\r\n",
    "lines without end": START + b"X: y\r\n" * 500_000,
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
async def test_p8_a_head_that_is_too_large_is_431(node: Node, head: bytes) -> None:
    before = resident_bytes(node.pid)
    async with connected(node.url) as peer:
        peer.writer.write(head)  # also where the peer has not read the answer before it goes on
        assert await peer.answer() == (431, "HEAD_TOO_LARGE")
        assert await peer.ended() == b""
    assert resident_bytes(node.pid) - before < 10 * 2**20


@again_if_too_late
async def test_a_head_as_large_as_allowed_is_served(node: Node) -> None:
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 250) for number in range(HEADERS_MAX - 10))
    async with unpaused(HEAD_S / 4), connected(node.url) as peer:
        for _ in range(2):
            for piece in (START, lines[:10_000], lines[10_000:], b"\r\n"):
                peer.writer.write(piece)
                await asyncio.sleep(0.01)  # in several reads
            assert await peer.answer() == (200, "")


async def test_p8_half_a_head_is_408(node: Node) -> None:
    async with connected(node.url) as peer:
        peer.writer.write(START + b"X: ")
        assert await peer.answer() == (408, "REQUEST_TIMEOUT")
        assert await peer.ended() == b""


async def test_p8_half_a_second_head_is_408(node: Node) -> None:
    async with connected(node.url) as peer:
        peer.writer.write(START + b"\r\n" + START)
        assert await peer.answer() == (200, "")
        assert await peer.answer() == (408, "REQUEST_TIMEOUT")


@again_if_too_late
async def test_each_request_of_a_connection_has_its_own_time(node: Node) -> None:
    """Also where it begins in the same read in which the one before ends."""
    async with unpaused(HEAD_S / 4), connected(node.url) as peer:
        request = START + b"\r\n"
        peer.writer.write(request[:20])
        for _ in range(3):
            peer.writer.write(request[20:] + request[:20])
            assert await peer.answer() == (200, "")
            await asyncio.sleep(0.6 * HEAD_S)


@again_if_too_late
async def test_p8_a_connection_that_asks_nothing_ends(node: Node) -> None:
    async with (
        unpaused(HEAD_S / 4),
        connected(node.url) as silent,
        connected(node.url) as blank,
        connected(node.url) as served,
    ):
        blank.writer.write(b"\r\n")
        served.writer.write(START + b"\r\n")
        assert await served.answer() == (200, "")
        served.writer.write(b"\r\n")
        assert await silent.ended() == b""  # a browser's that was opened ahead
        for peer in (blank, served):  # empty lines begin no request
            assert (await peer.ended())[:12] in (b"", b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"]
)
async def test_p8_half_a_body_is_408(node: Node, framing: bytes) -> None:
    async with connected(node.url) as peer:
        peer.writer.write(b"POST /auth/login HTTP/1.1\r\nHost: hub\r\n" + framing)
        assert await peer.answer() == (408, "REQUEST_TIMEOUT")
        assert await peer.ended() == b""


@again_if_too_late
async def test_a_body_that_comes_slowly_but_comes_is_taken(node: Node) -> None:
    """In twice as long as a body has that does not come."""
    body = orjson.dumps({"events": [budget_create(new_id())]}).ljust(4 * BODY_BYTES_PER_S)
    async with unpaused(BODY_S / 4), connected(node.url) as peer:
        peer.writer.write(
            b"POST /events HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer %b\r\n"
            b"Content-Length: %d\r\n\r\n" % (token("ann").encode(), len(body))
        )
        for at in range(0, len(body), BODY_BYTES_PER_S // 4):
            peer.writer.write(body[at : at + BODY_BYTES_PER_S // 4])
            await asyncio.sleep(0.125)
        status, _ = await peer.answer()
        assert status == 200


async def test_the_answer_under_way_comes_before_the_end(node: Node) -> None:
    """A second request on the connection is no HTTP, while the first one waits."""
    budget_id = new_id()
    async with node.rest(token("ann")) as rest:
        answer = await rest.post("/events", json={"events": [budget_create(budget_id)]})
        assert answer.status_code == 200
    async with connected(node.url) as peer:
        peer.writer.write(
            f"GET /events?budgetId={budget_id}&key=1&wait=2 HTTP/1.1\r\nHost: hub\r\n"
            f"Authorization: Bearer {token('ann')}\r\n\r\nno HTTP\r\n\r\n".encode()
        )
        status, _ = await peer.answer()
        assert status == 200
        assert await peer.ended() == b""


async def test_what_is_no_http_is_400_in_the_one_shape_of_errors(node: Node) -> None:
    async with connected(node.url) as peer:
        peer.writer.write(b"no HTTP\r\n\r\n")
        assert await peer.answer() == (400, "BAD_REQUEST")
        assert await peer.ended() == b""


@again_if_too_late
async def test_an_upgrade_that_is_refused_disturbs_nobody(impatient: Cluster) -> None:
    """It is answered; and a node that has one still ends in order."""
    again = await impatient.start()
    async with unpaused(HEAD_S / 4), connected(again.url) as peer, connected(again.url) as other:
        peer.writer.write(
            b"GET /sync HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Cookie: " + b"x" * 9000 + b"\r\n\r\n"
        )
        assert await peer.answer() == (400, "BAD_REQUEST")
        other.writer.write(START + b"\r\n")
        assert await other.answer() == (200, "")
        await again.stop()
    assert again.exit_code == 0
    assert again.complaints() == []
