"""What somebody costs who has not signed in, and how many connections one user or address may have:
bounded before it costs, with an error that says so (P8, P20)."""

import asyncio
import re
import time
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode

from hub.frames.websocket import UNSIGNED_FRAME_BYTES_MAX
from hub.limits import UNSIGNED_FRAMES_AT_ONCE, UNSIGNED_FRAMES_PER_S
from hub.session import AUTH_S
from tests.cluster import BUSY_S, Cluster, Node, eventually
from tests.device import connect, open_device
from tests.event_stream import streaming
from tests.masked import masked
from tests.raw_http import Peer, connected

USER_MAX, ADDRESS_MAX, PER_MIN = 3, 6, 5
QUOTA = (403, "QUOTA_EXCEEDED")
GET = b"GET %b HTTP/1.1\r\nHost: hub\r\n"
SOCKET = GET % b"/sync" + (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)

_users = count(1)


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.fixture
def token(cluster: Cluster) -> str:
    return cluster.token(f"user-{next(_users)}")


# One user


async def test_p20_a_user_has_so_many_connections_of_all_kinds(
    cluster: Cluster, token: str
) -> None:
    node = await cluster.start(CONNECTIONS_PER_USER=str(USER_MAX))
    budget_id = await node.new_budget(token)
    other = cluster.token("somebody-else")
    async with AsyncExitStack() as held:
        await held.enter_async_context(connect(node.url, token))
        await held.enter_async_context(connect(node.url, token, way="frame"))
        await held.enter_async_context(streaming(node, token, budget_id))
        async with connect(node.url, other):
            pass
        with pytest.raises(InvalidStatus) as refused:
            async with connect(node.url, token):
                pass
        assert refused.value.response.status_code == 403
        async with open_device(node.url) as device:
            await device.send({"type": "auth", "token": token})
            await device.wait_for(lambda: device.closed is not None)
            assert device.closed is not None
            assert device.closed.code == 4429
            [error] = device.of_type("error")
            assert error["error"]["message"] == "QUOTA_EXCEEDED"
        async with node.rest(token) as rest:
            for path in (
                f"/events?budgetId={budget_id}&key=1&wait=1",
                f"/budgets/{budget_id}/stream",
            ):
                answer = await rest.get(path)
                assert (answer.status_code, answer.json()["error"]["message"]) == QUOTA
            assert (await rest.get(f"/events?budgetId={budget_id}&key=0")).status_code == 200
    # Their places are free again, once the hub has seen their ends.
    async with node.rest(token) as rest:
        poll = f"/events?budgetId={budget_id}&key=1&wait=1"

        async def all_free() -> bool:
            answers = await asyncio.gather(*(rest.get(poll) for _ in range(USER_MAX)))
            return {answer.status_code for answer in answers} == {200}

        await eventually(all_free)


# One address


async def test_p20_an_address_has_so_many_connections(cluster: Cluster) -> None:
    node = await cluster.start(CONNECTIONS_PER_ADDRESS=str(ADDRESS_MAX))
    async with AsyncExitStack() as held:

        async def peer() -> Peer:
            return await held.enter_async_context(connected(node.url))

        first = await peer()
        for _ in range(ADDRESS_MAX - 1):
            await peer()
        for path in (b"/healthz", b"/readyz", b"/metrics?of=all"):
            probe = await peer()
            probe.writer.write(GET % path + b"\r\n")
            head = await probe.reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            await probe.ended()  # they keep no connection
        for request, answer in (
            (GET % b"/errors" + b"\r\n", QUOTA),
            (SOCKET + b"\r\n", QUOTA),
            (b"no HTTP at all\r\n\r\n", (400, "BAD_REQUEST")),
        ):
            asking = await peer()
            asking.writer.write(request)
            assert await asking.answer() == answer
            assert await asking.ended() == b""
        silent = await peer()
        assert await silent.ended() == b""
        first.writer.transport.abort()

        async def served() -> bool:
            again = await peer()
            again.writer.write(GET % b"/errors" + b"Connection: close\r\n\r\n")
            return b" 200 " in await again.reader.readuntil(b"\r\n\r\n")

        await eventually(served)


async def test_p20_behind_proxies_an_address_is_who_asked_the_proxy(
    cluster: Cluster, token: str
) -> None:
    """A proxy has one connection for the requests of many."""
    node = await cluster.start(TRUSTED_PROXIES="1", CONNECTIONS_PER_ADDRESS="2")
    budget_id = await node.new_budget(token)
    poll = (
        GET % f"/events?budgetId={budget_id}&key=1&wait=60".encode()
        + f"Authorization: Bearer {token}\r\n".encode()
    )

    def of(address: bytes, request: bytes) -> bytes:
        return request + b"X-Forwarded-For: %b\r\n\r\n" % address

    async with AsyncExitStack() as held:

        async def asking(request: bytes) -> Peer:
            peer = await held.enter_async_context(connected(node.url))
            peer.writer.write(request)
            return peer

        waiting_polls = [await asking(of(b"192.0.2.1", poll)) for _ in range(2)]

        async def served() -> bool:
            peer = await asking(of(b"192.0.2.1", GET % b"/errors"))
            answer = await peer.answer()
            assert answer in (QUOTA, (200, ""))
            return answer != QUOTA

        async def refused() -> bool:
            return not await served()

        await eventually(refused)  # both polls have been counted
        third = await asking(of(b"192.0.2.1", SOCKET))
        assert await third.answer() == QUOTA
        shared = await asking(of(b"192.0.2.2", GET % b"/errors"))
        assert await shared.answer() == (200, "")
        for number in range(10):  # one after the other, they hold nothing
            shared.writer.write(of(b"192.0.2.%d" % (3 + number % 2), GET % b"/errors"))
            assert await shared.answer() == (200, "")
        for peer in waiting_polls:
            peer.writer.transport.abort()
        await eventually(served)


# Upgrades


async def test_p20_sockets_count_among_the_requests_of_their_address(cluster: Cluster) -> None:
    """Also before their key and token are looked at: neither can be guessed here."""
    node = await cluster.start(REQUESTS_PER_MIN_ADDRESS=str(PER_MIN), API_KEYS="k" * 16)
    statuses = []
    for _ in range(3 * PER_MIN):
        async with connected(node.url) as peer:
            peer.writer.write(SOCKET + b"\r\n")
            answer = await peer.whole_answer()
        statuses.append(answer.status)
    assert answer.code == "RATE_LIMITED"
    assert re.search(rb"\r\nRetry-After: \d+\r\n", answer.headers)
    assert set(statuses[:PER_MIN]) == {403}
    assert set(statuses[2 * PER_MIN :]) == {429}


@pytest.mark.parametrize("way", ["header", "frame"])
async def test_p20_sockets_count_among_the_requests_of_their_user(
    cluster: Cluster, token: str, way: str
) -> None:
    node = await cluster.start(REQUESTS_PER_MIN_USER=str(PER_MIN))

    async def refused() -> bool:
        if way == "header":
            try:
                async with connect(node.url, token):
                    return False
            except InvalidStatus as error:
                assert error.response.headers["Retry-After"]
                return error.response.status_code == 429
        async with open_device(node.url) as device:
            await device.send({"type": "auth", "token": token})
            await device.wait_for(lambda: bool(device.of_type("auth") or device.of_type("error")))
            return bool(device.of_type("error"))

    opened = [not await refused() for _ in range(3 * PER_MIN)]
    assert PER_MIN <= sum(opened) <= 2 * PER_MIN
    assert not opened[-1]
    async with connect(node.url, cluster.token("not-concerned")):
        pass


# Before signing in


async def test_p8_a_stranger_sends_no_large_message(node: Node, token: str) -> None:
    for message in (
        masked(Opcode.TEXT, b" " * (UNSIGNED_FRAME_BYTES_MAX + 1)),
        masked(Opcode.TEXT, b" " * UNSIGNED_FRAME_BYTES_MAX, fin=False) + masked(Opcode.CONT, b" "),
    ):
        async with connected(node.url) as peer:
            peer.writer.write(SOCKET + b"\r\n")
            await peer.reader.readuntil(b"\r\n\r\n")
            peer.writer.write(message)
            peer.writer.write(masked(Opcode.CLOSE, b"\x03\xf1"))
            said = await peer.ended()
            assert (said[:1], said[2:4]) == (b"\x88", b"\x03\xf1")  # a close frame, 1009
    async with connect(node.url, token) as device:
        await device.send({"type": "ping", "id": 1, "pad": " " * 200_000})
        await device.wait_for(lambda: bool(device.of_type("pong")))


async def test_p8_a_strangers_flood_is_hardly_read(node: Node) -> None:
    """Pings count before signing in too; nobody waits for the flood of another."""
    async with connected(node.url) as peer:
        began_s = time.monotonic()
        peer.writer.write(SOCKET + b"\r\n")
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.write(masked(Opcode.PING) * 10_000)
        async with asyncio.timeout(AUTH_S + BUSY_S):
            said = await peer.reader.readuntil((4401).to_bytes(2, "big"))  # for want of a token
        took_s = time.monotonic() - began_s
    assert took_s > AUTH_S / 2
    pongs = said.count(b"\x8a\x00")
    assert UNSIGNED_FRAMES_AT_ONCE <= pongs
    assert pongs <= UNSIGNED_FRAMES_AT_ONCE + UNSIGNED_FRAMES_PER_S * (took_s + 1)


@pytest.mark.parametrize("path", ["/auth/login", "/auth/register", "/auth/refresh"])
async def test_p8_a_stranger_sends_no_large_body(node: Node, path: str) -> None:
    async with node.rest() as rest:
        answer = await rest.post(path, content=b"[" * (16 * 1024 + 1))
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == "PAYLOAD_TOO_LARGE"
        answer = await rest.post(path, content=b"[" * (16 * 1024))
        assert answer.status_code == 400


async def test_what_is_no_http_is_counted_and_not_logged(cluster: Cluster) -> None:
    """Anybody can send it, as often as they like."""
    node = await cluster.start()
    for _ in range(20):
        async with connected(node.url) as peer:
            peer.writer.write(b"no HTTP\r\n\r\n")
            assert await peer.answer() == (400, "BAD_REQUEST")
    async with node.rest() as rest:
        told = (await rest.get("/metrics")).text
    [told_of] = re.findall(r'refusals_total\{code="BAD_REQUEST",door="rest".*\} (\d+)', told)
    assert int(told_of) == 20
    assert [line for line in node.log() if line["level"] != "info"] == []


def test_a_node_uses_all_descriptors_it_may_have(node: Node) -> None:
    """The usual soft limit of 1,024 would be the end of a busy hub."""
    limits = Path(f"/proc/{node.pid}/limits").read_text()
    [(soft, hard)] = re.findall(r"Max open files +(\d+) +(\d+)", limits)
    assert soft == hard
