"""The bus on a real Redis."""

import asyncio
import random
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from hub.frames import Frame
from hub.presence import NodeId
from hub.records import BudgetId, UserId
from loadtest.proxy import PIECE_BYTES, Proxy
from storage import bus as storage_bus
from storage.bus import CONNECT_S, DEAF_S, HEARTBEAT_S, OUTGOING_BYTES_MAX, RedisBus
from storage.embedded import EmbeddedRedis
from tests.cluster import POLL_S, until
from tests.device import new_id
from tests.listener import Listener, linked

KILLS = 60
SLOW_S = 0.15  # enough for anything else to happen first
BUSY_S = 1.0  # what a machine that also runs everything else may add
MIB = 1024 * 1024


class Stalling(Proxy):
    """Stalls for good each connection on which the word is sent, and no other."""

    def __init__(self, url: str, word: bytes) -> None:
        super().__init__(url)
        self._word = word

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        while data := await reader.read(PIECE_BYTES):
            if self._word in data:
                await asyncio.Event().wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()


class Deaf:
    """A listener that does nothing."""

    def received(self, frame: Frame) -> None: ...

    def attending(
        self, budget_id: BudgetId, node_id: NodeId, users: Mapping[UserId, int], *, asks: bool
    ) -> None: ...

    def silent(self, node_id: NodeId) -> None: ...

    async def restored(self) -> None: ...


class Node(Listener):
    """A bus that runs, and all it told its listener."""

    def __init__(self, url: str, log_id: str) -> None:
        super().__init__()
        self.node_id = uuid4().bytes
        self.bus = RedisBus(url, log_id, self.node_id, jitter=random.random)

    async def follow(self, budget_id: BudgetId) -> None:
        async with asyncio.timeout(10):
            await self.bus.subscribe(budget_id)


@asynccontextmanager
async def running(url: str, log_id: str) -> AsyncIterator[Node]:
    """A node of that log, once it has its connection."""
    node = Node(url, log_id)
    async with linked(node.bus, node):
        yield node


@pytest.fixture
async def admin(redis: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis.url) as admin:
        yield admin


@pytest.fixture
async def proxy(redis: EmbeddedRedis) -> AsyncIterator[Proxy]:
    async with Proxy(redis.url) as proxy:
        yield proxy


@pytest.fixture
def log_id() -> str:
    return new_id()


@pytest.fixture
def budget_id() -> BudgetId:
    return new_id()


async def until_unheard(admin: Redis, log_id: str, budget_id: BudgetId) -> None:
    """Wait until Redis would give the budget's frames to nobody."""
    async with asyncio.timeout(10):
        while True:
            [(_, listeners)] = await admin.pubsub_numsub(f"budget-hub:{log_id}:{budget_id}")
            if listeners == 0:
                return
            await asyncio.sleep(POLL_S)


async def test_frames_cross_byte_for_byte(
    redis: EmbeddedRedis, log_id: str, budget_id: BudgetId
) -> None:
    """In order, with what ends in them; nobody hears himself."""
    frames = [
        Frame(budget_id, 1, 1, b"\x00\xff\x81" + "🥞\r\n".encode()),
        Frame(budget_id, 2, 9, bytes(range(256)) * 1000),
        Frame(budget_id, 10, 10, b"", removes="Zoë/…"),
        Frame(budget_id, 11, 2**53 - 1, b"x", removes="u" * 128),
        Frame(budget_id, 2**53, 2**53, b"end", deletes=True, written_at_ms=1_795_257_600_123),
    ]
    back = Frame(budget_id, 12, 12, b"back")
    async with running(redis.url, log_id) as here, running(redis.url, log_id) as there:
        for node in (here, there):
            await node.follow(budget_id)
        here.bus.publish(frames)
        await until(lambda: len(there.frames) == len(frames), 5)
        there.bus.publish([back])
        await until(lambda: bool(here.frames), 5)
        assert there.frames == frames
        assert here.frames == [back]


async def test_while_a_version_is_deployed_both_of_their_messages_are_heard(
    redis: EmbeddedRedis, log_id: str, budget_id: BudgetId, admin: Redis
) -> None:
    """That of nodes which did not date events yet; and one of a later version is left alone."""
    origin, span = struct.Struct("!B16s"), struct.Struct("!QQ?H")
    other = uuid4().bytes
    async with running(redis.url, log_id) as here:
        await here.follow(budget_id)
        channel = f"budget-hub:{log_id}:{budget_id}"
        await admin.publish(channel, origin.pack(200, other) + b"of the future")
        older = origin.pack(1, other) + span.pack(1, 2, True, 3) + b"ada" + b"frame"
        await admin.publish(channel, older)
        await until(lambda: bool(here.frames), 5)
        assert here.frames == [Frame(budget_id, 1, 2, b"frame", removes="ada", deletes=True)]


async def test_only_what_is_followed_arrives(redis: EmbeddedRedis, log_id: str) -> None:
    """Also after it was followed for a while."""
    followed, left, never = (new_id() for _ in range(3))
    async with running(redis.url, log_id) as here, running(redis.url, log_id) as there:
        for each in (followed, left):
            await there.follow(each)
        there.bus.unsubscribe(left)
        await there.follow(new_id())  # asked for after that; so it is done
        here.bus.publish([Frame(each, 1, 1, b"x") for each in (left, never, followed)])
        await until(lambda: bool(there.frames), 5)
        assert [frame.budget_id for frame in there.frames] == [followed]


async def test_p9_histories_never_mix(redis: EmbeddedRedis, budget_id: BudgetId) -> None:
    """Two databases on one Redis, and a budget whose id is in both: a copy of the other's."""
    ours, theirs = new_id(), new_id()
    async with (
        running(redis.url, ours) as here,
        running(redis.url, ours) as there,
        running(redis.url, theirs) as other,
        running(redis.url, theirs) as another,
    ):
        for node in (here, there, other, another):
            await node.follow(budget_id)
        for node, data in ((here, b"ours"), (other, b"theirs")):
            node.bus.publish([Frame(budget_id, 1, 1, data)])
            node.bus.announce(budget_id, {data.decode(): 1}, asks=True)
        await until(lambda: bool(there.attended) and bool(another.attended), 5)
        assert [frame.data for frame in there.frames] == [b"ours"]
        assert [frame.data for frame in another.frames] == [b"theirs"]
        assert there.attended == [(budget_id, here.node_id, {"ours": 1}, True)]
        assert another.attended == [(budget_id, other.node_id, {"theirs": 1}, True)]
        assert here.attended == other.attended == []


async def test_subscribed_means_that_redis_has_said_so(
    redis: EmbeddedRedis, proxy: Proxy, log_id: str, budget_id: BudgetId
) -> None:
    """What is published from then on arrives, by whatever shorter way."""
    async with running(redis.url, log_id) as here, running(proxy.url, log_id) as there:
        proxy.delay_s = SLOW_S
        await there.follow(budget_id)
        here.bus.publish([Frame(budget_id, 1, 1, b"first")])
        await until(lambda: bool(there.frames), 5)


async def test_followed_again_before_redis_has_answered(
    redis: EmbeddedRedis, proxy: Proxy, admin: Redis, log_id: str, budget_id: BudgetId
) -> None:
    """P7: who came, left at once and comes back hears everything."""
    async with running(redis.url, log_id) as here, running(proxy.url, log_id) as there:
        proxy.delay_s = SLOW_S
        following = asyncio.create_task(there.follow(budget_id))
        await asyncio.sleep(SLOW_S / 3)  # asked for; the answer is on its way
        there.bus.unsubscribe(budget_id)
        await following
        proxy.delay_s = 0
        await until_unheard(admin, log_id, budget_id)
        await there.follow(new_id())  # answers come in order: all are here now
        await there.follow(budget_id)
        here.bus.publish([Frame(budget_id, 1, 1, b"again")])
        await until(lambda: bool(there.frames), 5)


async def test_left_before_it_was_asked_for(
    redis: EmbeddedRedis, log_id: str, budget_id: BudgetId
) -> None:
    """P8: nobody waits for ever for an answer to what was never asked."""
    async with running(redis.url, log_id) as node:
        following = asyncio.create_task(node.follow(budget_id))
        await asyncio.sleep(0)  # it has begun, and nothing else has had its turn
        node.bus.unsubscribe(budget_id)
        async with asyncio.timeout(5):
            await following


async def test_p8_what_is_published_without_redis_is_dropped(
    redis: EmbeddedRedis, proxy: Proxy, log_id: str, budget_id: BudgetId
) -> None:
    """It takes no memory, and does not come late."""
    data = bytes(64 * 1024)
    async with running(proxy.url, log_id) as here, running(redis.url, log_id) as there:
        await there.follow(budget_id)
        await proxy.cut()
        await until(lambda: not here.bus.connected, 5)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for sequence in range(1, 2001):
                here.bus.publish([Frame(budget_id, sequence, sequence, data)])
                here.bus.announce(budget_id, {"ada": sequence}, asks=False)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < MIB
        await proxy.heal()
        await until(lambda: here.bus.connected, 10)
        here.bus.publish([Frame(budget_id, 2001, 2001, b"live")])
        await until(lambda: bool(there.frames), 5)
        assert [frame.from_sequence for frame in there.frames] == [2001]
        assert there.attended == []


async def test_p8_what_waits_for_a_stalled_redis_is_bounded(
    redis: EmbeddedRedis, proxy: Proxy, log_id: str, budget_id: BudgetId
) -> None:
    """The connection stands and nothing passes, and for a while nobody can know."""
    data = bytes(256 * 1024)
    async with running(proxy.url, log_id) as here:
        proxy.black_hole()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for sequence in range(1, 2 * OUTGOING_BYTES_MAX // len(data)):
                here.bus.publish([Frame(budget_id, sequence, sequence, data)])
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert here.bus.connected
        assert OUTGOING_BYTES_MAX / 2 < after - before < OUTGOING_BYTES_MAX + MIB
        await proxy.cut()


async def test_every_node_is_heard_every_second(
    redis: EmbeddedRedis, admin: Redis, log_id: str
) -> None:
    """A heartbeat each, on the log's one channel, whatever is followed."""
    async with admin.pubsub() as watching:
        await watching.subscribe(f"budget-hub:{log_id}:nodes")
        async with running(redis.url, log_id) as here, running(redis.url, log_id) as there:
            beats: Counter[bytes] = Counter()
            begun_s = time.monotonic()
            async with asyncio.timeout(10):
                while len(beats) < 2 or min(beats.values()) < 3:
                    message = await watching.get_message(ignore_subscribe_messages=True, timeout=10)
                    if message is not None:
                        beats[message["data"][-16:]] += 1
            took_s = time.monotonic() - begun_s
            assert set(beats) == {here.node_id, there.node_id}
            assert 1.5 * HEARTBEAT_S < took_s < 2 * HEARTBEAT_S + BUSY_S
            assert max(beats.values()) <= 4
            assert here.gone == there.gone == []


async def test_a_node_that_falls_silent_is_told_of_once(
    redis: EmbeddedRedis, log_id: str, budget_id: BudgetId, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat_s, silent_s = 0.2, 1.5
    monkeypatch.setattr(storage_bus, "HEARTBEAT_S", heartbeat_s)
    monkeypatch.setattr(storage_bus, "SILENT_S", silent_s)
    async with running(redis.url, log_id) as here, running(redis.url, log_id) as steady:
        await here.follow(budget_id)
        async with running(redis.url, log_id) as there:
            there.bus.announce(budget_id, {"ada": 1}, asks=False)
            await until(lambda: bool(here.attended), 5)
        left_s = time.monotonic()
        await until(lambda: bool(here.gone) and bool(steady.gone), 10)
        assert time.monotonic() - left_s < silent_s + 2 * heartbeat_s + BUSY_S
        await asyncio.sleep(silent_s + heartbeat_s)  # time enough to be told again
        assert here.gone == steady.gone == [there.node_id]


async def test_p7_a_node_that_hears_nothing_knows_and_comes_back(
    redis: EmbeddedRedis, proxy: Proxy, log_id: str, budget_id: BudgetId
) -> None:
    """Its connection looks well all the while."""
    async with running(redis.url, log_id) as here, running(proxy.url, log_id) as there:
        await there.follow(budget_id)
        assert there.restorations == 1
        proxy.black_hole()
        deaf_s = time.monotonic()
        await until(lambda: not there.bus.connected, DEAF_S + HEARTBEAT_S + BUSY_S)
        assert time.monotonic() - deaf_s > DEAF_S - HEARTBEAT_S
        await proxy.heal()
        await until(lambda: there.restorations == 2, 10)
        here.bus.publish([Frame(budget_id, 1, 1, b"heard")])
        await until(lambda: bool(there.frames), 5)
        assert here.restorations == 1  # of a fault of somebody else's


async def test_who_stood_still_is_not_deaf(
    redis: EmbeddedRedis, log_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped for a while has the echo of its heartbeat yet to read."""
    deaf_s = 1.0
    monkeypatch.setattr(storage_bus, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(storage_bus, "DEAF_S", deaf_s)
    async with (
        Redis.from_url(redis.url) as other,
        other.pubsub() as watching,
        running(redis.url, log_id) as here,
    ):
        await watching.subscribe(f"budget-hub:{log_id}:nodes")

        async def beats(number: int) -> None:
            async with asyncio.timeout(10):
                while number:
                    told = await watching.get_message(ignore_subscribe_messages=True, timeout=10)
                    number -= told is not None

        await beats(1)
        for _ in range(3):  # by now it knows that the beat was sent, and waits for the next one
            await other.ping()
        time.sleep(1.2 * deaf_s)  # noqa: ASYNC251  (so does a stopped process)
        await beats(3)
        assert here.bus.losses == {}
        assert here.bus.connected


async def test_p7_a_connection_that_is_never_answered_is_given_up(
    redis: EmbeddedRedis, log_id: str
) -> None:
    """What accepts it may be gone in that moment, or stand before a Redis that is. The next one
    may be answered."""
    swallowed: list[asyncio.StreamWriter] = []

    async def swallow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        swallowed.append(writer)

    mute = await asyncio.start_server(swallow, "127.0.0.1")
    port = mute.sockets[0].getsockname()[1]
    bus = RedisBus(f"redis://127.0.0.1:{port}/0", log_id, uuid4().bytes, jitter=random.random)
    running = asyncio.create_task(bus.run(Deaf()))
    try:
        await until(lambda: len(swallowed) == 2, CONNECT_S + DEAF_S + 2 * BUSY_S)
        assert not bus.connected
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        mute.close()
        for writer in swallowed:
            writer.transport.abort()


async def test_p7_a_connection_that_takes_frames_and_passes_none_is_given_up(
    redis: EmbeddedRedis, log_id: str, budget_id: BudgetId
) -> None:
    """Frames, heartbeats and subscriptions may go by several connections; each of them counts."""
    async with (
        Stalling(redis.url, b"the first") as proxy,
        running(proxy.url, log_id) as here,
        running(redis.url, log_id) as there,
    ):
        await there.follow(budget_id)
        here.bus.publish([Frame(budget_id, 1, 1, b"the first")])
        async with asyncio.timeout(DEAF_S + HEARTBEAT_S + CONNECT_S + 2 * BUSY_S):
            for sequence in count(2):
                await asyncio.sleep(HEARTBEAT_S)
                here.bus.publish([Frame(budget_id, sequence, sequence, b"another")])
                if there.frames:
                    break


async def test_a_connection_lost_at_any_moment_never_ends_the_bus(redis: EmbeddedRedis) -> None:
    """P10. The driver answers with errors of many kinds when its connection goes between two tasks
    that use it; the bus has to come back from all of them."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    bus = RedisBus(redis.url, new_id(), uuid4().bytes, jitter=chance.random)

    async def come_and_go() -> None:
        while True:
            budget_id = new_id()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await bus.subscribe(budget_id)
            bus.publish([Frame(budget_id, 1, 1, b"x")])
            bus.unsubscribe(budget_id)
            await asyncio.sleep(0)

    admin = Redis.from_url(redis.url)
    running = asyncio.create_task(bus.run(Deaf()))
    busy = asyncio.create_task(come_and_go())
    try:
        for _ in range(KILLS):
            await until(lambda: bus.connected or running.done(), 10)
            assert not running.done(), f"seed {seed}: {running.exception()!r}"
            await asyncio.sleep(chance.random() * 0.02)  # any moment
            await admin.client_kill_filter(_type="pubsub", skipme=True)
    finally:
        for task in (running, busy):
            task.cancel()
        await asyncio.gather(running, busy, return_exceptions=True)
        await admin.aclose()
