"""Offers to upgrade that the hub does not take: a body is never read as a request.

Java's `HttpClient` and `curl --http2` offer `h2c` with every request in clear text. Behind a proxy
that shares its connections, a body that is taken for a request gives users each other's answers."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import orjson
import pytest

from api.http.protocol import HEAD_BYTES_MAX
from tests.cluster import Cluster, Node, eventually
from tests.proxies import nginx
from tests.raw_http import Peer, connected

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
OFFERS = {
    "h2c": H2C,
    "anything": b"Connection: Upgrade\r\nUpgrade: x\r\n",
    "in capitals": b"CONNECTION: UPGRADE\r\nUPGRADE: H2C\r\n",
    "several": b"Connection: Upgrade\r\nUpgrade: h2c, TLS/1.0\r\n",
    "twice": b"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: x\r\n",
    "in two fields": b"Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n",
    "a list with websocket": b"Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
    "and the end": b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n",
    "almost websocket": b"Connection: Upgrade\r\nUpgrade: websocket2\r\n",
}
HIDDEN = b"GET /errors HTTP/1.1\r\nHost: hub\r\n\r\n"  # a request, in a body


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.fixture
async def peer(node: Node) -> AsyncIterator[Peer]:
    async with connected(node.url) as peer:
        yield peer


def post(more: bytes, body: bytes, *, chunked: bool = False, version: bytes = b"1.1") -> bytes:
    head = b"POST /auth/refresh HTTP/%b\r\nHost: hub\r\n%b" % (version, more)
    if chunked:
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


REFRESH = orjson.dumps({"refreshToken": "of nobody"})
KNOWN = (401, "NOT_LOGGED_IN")  # the body was read


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
async def test_a_body_is_read_whatever_is_offered(peer: Peer, offer: bytes, chunked: bool) -> None:
    peer.writer.write(post(offer, REFRESH, chunked=chunked))
    assert await peer.answer() == KNOWN


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
async def test_a_body_is_never_a_request(peer: Peer, offer: bytes, chunked: bool) -> None:
    request = post(offer.replace(b", close", b""), HIDDEN, chunked=chunked)
    for cut in (len(request), request.index(HIDDEN), request.index(HIDDEN) + 5):
        peer.writer.write(request[:cut])
        await peer.writer.drain()
        await asyncio.sleep(0.01)  # the rest in a read of its own, mostly
        peer.writer.write(request[cut:])
        assert await peer.answer() == (400, "BAD_REQUEST")  # and not the page that it names
    peer.writer.write(b"GET /healthz HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n")
    assert await peer.answer() == (200, "")
    assert await peer.ended() == b""


async def test_hundreds_in_one_segment_are_answered_in_order(peer: Peer) -> None:
    """The parser starts anew behind each of them."""
    both = post(H2C, REFRESH) + b"GET /nowhere HTTP/1.1\r\nHost: hub\r\n" + H2C + b"\r\n"
    peer.writer.write(both * 200)
    for _ in range(200):
        assert await peer.answer() == KNOWN
        assert await peer.answer() == (404, "NOT_FOUND")


async def test_a_head_with_an_offer_has_the_same_bounds(peer: Peer) -> None:
    long = b"X: %b\r\n" % (b"x" * HEAD_BYTES_MAX)
    peer.writer.write(post(H2C + long, REFRESH))
    assert await peer.answer() == (431, "HEAD_TOO_LARGE")
    assert await peer.ended() == b""


async def test_http_1_0_cannot_upgrade(peer: Peer) -> None:
    """Not to a socket either (RFC 9110 section 7.8)."""
    peer.writer.write(
        b"GET /nowhere HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert await peer.answer() == (404, "NOT_FOUND")
    assert await peer.ended() == b""


async def test_the_hub_is_no_tunnel(peer: Peer) -> None:
    peer.writer.write(b"CONNECT hub:80 HTTP/1.1\r\nHost: hub\r\n\r\n" + HIDDEN)
    assert await peer.answer() == (405, "METHOD_NOT_ALLOWED")
    assert await peer.ended() == b""


SOCKET = (
    b"GET /sync HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


@pytest.mark.parametrize(
    "body",
    [b"Content-Length: %d\r\n\r\n" % len(HIDDEN), b"Transfer-Encoding: chunked\r\n\r\n"],
    ids=["length", "chunked"],
)
async def test_a_socket_with_a_body_is_refused_and_the_connection_ends(
    peer: Peer, body: bytes
) -> None:
    peer.writer.write(SOCKET + body + HIDDEN)
    assert await peer.answer() == (400, "BAD_REQUEST")
    assert await peer.ended() == b""


async def a_poll(cluster: Cluster, node: Node, wait_s: int) -> bytes:
    """A request that is answered after so many seconds."""
    token = cluster.token("ann")
    budget_id = await node.new_budget(token)
    return (
        f"GET /events?budgetId={budget_id}&key=1&wait={wait_s} HTTP/1.1\r\nHost: hub\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()


async def test_a_socket_does_not_begin_while_an_answer_is_due(cluster: Cluster, node: Node) -> None:
    """It would stand in between the socket's frames."""
    poll = await a_poll(cluster, node, wait_s=1)
    async with connected(node.url) as peer:
        peer.writer.write(poll + SOCKET + b"\r\n")
        status, _ = await peer.answer()
        assert status == 200
        assert await peer.ended() == b""


async def test_a_body_that_never_comes_is_no_answer_to_the_request_before(
    cluster: Cluster, node: Node
) -> None:
    """Its 408 would be taken for it."""
    poll = await a_poll(cluster, node, wait_s=60)
    async with connected(node.url) as peer:
        broken = post(b"", b"{", chunked=True).replace(b"0\r\n\r\n", b"no chunk at all\r\n")
        peer.writer.write(poll + broken)
        assert await peer.ended() == b""

    async def over() -> bool:
        async with node.rest() as rest:
            told = (await rest.get("/metrics")).text
        return re.search(r'connections\{kind="poll".*\} 0', told) is not None

    await eventually(over)  # the poll is over too


async def test_behind_nginx_nobody_gets_the_answer_of_another(
    cluster: Cluster, node: Node, tmp_path: Path
) -> None:
    """nginx shares its connections to the hub; a body that is a request makes one answer too many,
    which the next to use the connection gets."""
    hidden = await a_poll(cluster, node, wait_s=1)
    # So long that it comes in more than one piece: a proxy passes the first one on at once.
    body = b"\r\n" * 60_000 + hidden
    async with (
        nginx(tmp_path, node.url) as url,
        httpx2.AsyncClient(base_url=url, trust_env=False) as anybody,
    ):
        errors = (await anybody.get("/errors")).content
        for _ in range(10):
            async with connected(url) as smuggler:
                smuggler.writer.write(post(OFFERS["anything"], body))
                assert (await smuggler.answer())[0] in (400, 413)
                assert (await anybody.get("/errors")).content == errors
