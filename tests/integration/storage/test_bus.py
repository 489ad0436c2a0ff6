"""The bus on a real Redis."""

import asyncio
import random
import struct
import time
import tracemalloc
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count, pairwise
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from hub.budget.records import BudgetId, UserId
from hub.frames.events import Frame
from hub.ports import NodeId
from loadtest.proxy import PIECE_BYTES, Proxy
from storage.embedded.redis import EmbeddedRedis
from storage.redis.bus import OUTGOING_BYTES_MAX, RedisBus
from storage.timeouts import STORAGE_TIMEOUTS, StorageTimeouts
from tests.cluster import POLL_S, until
from tests.device import new_id
from tests.listener import Listener, linked
from tests.patience import PATIENT

DEADLINE_S = 30.0
BEATING = replace(PATIENT, heartbeat_s=0.1)
SOON_DEAF = replace(PATIENT, deaf_s=STORAGE_TIMEOUTS.deaf_s)
KILLS = 60
SLOW_S = 0.15  # enough for anything else to happen first
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

    def __init__(self, url: str, log_id: str, timeouts: StorageTimeouts = PATIENT) -> None:
        super().__init__()
        self.node_id = uuid4().bytes
        self.bus = RedisBus(url, log_id, self.node_id, jitter=random.random, timeouts=timeouts)

    async def follow(self, budget_id: BudgetId) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.bus.subscribe(budget_id)

    def heard_at_s(self, other: "Node") -> float:
        """When it heard the other one last, or itself, by the loop's clock."""
        return self.bus._heard_at_s[other.node_id]

    def hears(self, other: "Node") -> bool:
        return other.node_id in self.bus._heard_at_s

    def has_not_heard(self, other: "Node", for_s: float) -> None:
        """As if so much more time had passed since it last did."""
        self.bus._heard_at_s[other.node_id] -= for_s


@asynccontextmanager
async def running(
    url: str, log_id: str, timeouts: StorageTimeouts = PATIENT
) -> AsyncIterator[Node]:
    """A node of that log, once it has its connection."""
    node = Node(url, log_id, timeouts)
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


async def until_heard_by(listeners: int, admin: Redis, log_id: str, budget_id: BudgetId) -> None:
    """Wait until Redis would give the budget's frames to so many."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            [(_, number)] = await admin.pubsub_numsub(f"budget-hub:{log_id}:{budget_id}")
            if number == listeners:
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
        await until(lambda: len(there.frames) == len(frames), DEADLINE_S)
        there.bus.publish([back])
        await until(lambda: bool(here.frames), DEADLINE_S)
        assert there.frames == frames
        assert here.frames == [back]


async def test_while_a_version_is_deployed_both_of_their_messages_are_heard(
    redis: EmbeddedRedis, log_id: str, budget_id: BudgetId, admin: Redis
) -> None:
    """Those of 0.1.0, in its form; and one of a later version is left alone."""
    origin, head = struct.Struct("!B16s"), struct.Struct("!QQQ?H")
    other = uuid4().bytes
    async with running(redis.url, log_id) as here:
        await here.follow(budget_id)
        channel = f"budget-hub:{log_id}:{budget_id}"
        await admin.publish(channel, origin.pack(200, other) + b"of the future")
        older = origin.pack(4, other) + head.pack(7, 1, 2, True, 3) + b"ada" + b"frame"
        await admin.publish(channel, older)
        await until(lambda: bool(here.frames), DEADLINE_S)
        assert here.frames == [Frame(budget_id, 1, 2, b"frame", "ada", True, 7)]


async def test_only_what_is_followed_arrives(redis: EmbeddedRedis, log_id: str) -> None:
    """Also after it was followed for a while."""
    followed, left, never = (new_id() for _ in range(3))
    async with running(redis.url, log_id) as here, running(redis.url, log_id) as there:
        for each in (followed, left):
            await there.follow(each)
        there.bus.unsubscribe(left)
        await there.follow(new_id())  # asked for after that; so it is done
        here.bus.publish([Frame(each, 1, 1, b"x") for each in (left, never, followed)])
        await until(lambda: bool(there.frames), DEADLINE_S)
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
        await until(lambda: bool(there.attended) and bool(another.attended), DEADLINE_S)
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
        await until(lambda: bool(there.frames), DEADLINE_S)


async def test_followed_again_before_redis_has_answered(
    redis: EmbeddedRedis, proxy: Proxy, admin: Redis, log_id: str, budget_id: BudgetId
) -> None:
    """P7: who came, left at once and comes back hears everything."""
    async with running(redis.url, log_id) as here, running(proxy.url, log_id) as there:
        proxy.hold_back()
        following = asyncio.create_task(there.follow(budget_id))
        await until_heard_by(1, admin, log_id, budget_id)  # the answer is on its way
        assert not following.done()
        there.bus.unsubscribe(budget_id)
        await following
        await proxy.heal()
        await until_heard_by(0, admin, log_id, budget_id)
        await there.follow(new_id())  # answers come in order: all are here now
        await there.follow(budget_id)
        here.bus.publish([Frame(budget_id, 1, 1, b"again")])
        await until(lambda: bool(there.frames), DEADLINE_S)


async def test_left_before_it_was_asked_for(
    redis: EmbeddedRedis, log_id: str, budget_id: BudgetId
) -> None:
    """P8: nobody waits for ever for an answer to what was never asked."""
    async with running(redis.url, log_id) as node:
        following = asyncio.create_task(node.follow(budget_id))
        await asyncio.sleep(0)  # it has begun, and nothing else has had its turn
        node.bus.unsubscribe(budget_id)
        async with asyncio.timeout(DEADLINE_S):
            await following


async def test_p8_what_is_published_without_redis_is_dropped(
    redis: EmbeddedRedis, proxy: Proxy, log_id: str, budget_id: BudgetId
) -> None:
    """It takes no memory, and does not come late."""
    data = bytes(64 * 1024)
    async with running(proxy.url, log_id) as here, running(redis.url, log_id) as there:
        await there.follow(budget_id)
        await proxy.cut()
        await until(lambda: not here.bus.connected, DEADLINE_S)
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
        await until(lambda: here.bus.connected, DEADLINE_S)
        here.bus.publish([Frame(budget_id, 2001, 2001, b"live")])
        await until(lambda: bool(there.frames), DEADLINE_S)
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
    beats: dict[bytes, list[float]] = defaultdict(list)  # when they came

    def are_heard() -> bool:
        """A second apart at most: a machine that stops may hold some of them up, and not all."""
        gaps = [[b - a for a, b in pairwise(times)] for times in beats.values()]
        return len(gaps) == 2 and all(len(each) >= 2 and min(each) < 1.0 for each in gaps)

    async with admin.pubsub() as watching:
        await watching.subscribe(f"budget-hub:{log_id}:nodes")
        begun_s = time.monotonic()
        async with running(redis.url, log_id) as here, running(redis.url, log_id) as there:
            async with asyncio.timeout(DEADLINE_S):
                while not are_heard():
                    message = await watching.get_message(ignore_subscribe_messages=True, timeout=10)
                    if message is not None:
                        beats[message["data"][-16:]].append(time.monotonic())
            assert set(beats) == {here.node_id, there.node_id}
            most = 1 + (time.monotonic() - begun_s) / PATIENT.heartbeat_s
            assert max(len(times) for times in beats.values()) <= most
            assert here.gone == there.gone == []


async def test_a_node_that_falls_silent_is_told_of_once(
    redis: EmbeddedRedis, log_id: str, budget_id: BudgetId
) -> None:
    async with (
        running(redis.url, log_id, BEATING) as here,
        running(redis.url, log_id, BEATING) as steady,
    ):
        await here.follow(budget_id)
        async with running(redis.url, log_id, BEATING) as there:
            there.bus.announce(budget_id, {"ada": 1}, asks=False)
            await until(lambda: bool(here.attended), DEADLINE_S)
            await until(lambda: all(n.hears(there) for n in (here, steady)), DEADLINE_S)
            assert here.gone == steady.gone == []

        def told() -> bool:
            for node in (here, steady):
                if node.hears(there):  # what it said last may still be on its way
                    node.has_not_heard(there, PATIENT.silent_s)
            return bool(here.gone) and bool(steady.gone)

        await until(told, DEADLINE_S)
        await asyncio.sleep(0.5)  # long enough for a frame to come again
        assert here.gone == steady.gone == [there.node_id]


async def test_p7_a_node_that_hears_nothing_knows_and_comes_back(
    redis: EmbeddedRedis,
    proxy: Proxy,
    log_id: str,
    budget_id: BudgetId,
) -> None:
    """Its connection looks well all the while."""
    async with (
        running(redis.url, log_id) as here,
        running(proxy.url, log_id, SOON_DEAF) as there,
    ):
        await there.follow(budget_id)
        await until(lambda: there.bus.connected, DEADLINE_S)
        proxy.black_hole()
        heard_s = there.heard_at_s(there)
        await until(lambda: not there.bus.connected, DEADLINE_S)
        assert asyncio.get_running_loop().time() - heard_s > SOON_DEAF.deaf_s
        assert there.bus.losses["deaf"] >= 1
        await proxy.heal()
        await until(lambda: there.bus.connected, DEADLINE_S)
        await heard(here, there, budget_id)
        # Once for each loss of its own: also where the machine stopped for that long.
        for node in (here, there):
            assert node.restorations == 1 + node.bus.losses.total()


async def heard(here: Node, there: Node, budget_id: BudgetId) -> None:
    """Return when something that was published has come; what a lost connection held does not."""
    async with asyncio.timeout(DEADLINE_S):
        for sequence in count(1):
            here.bus.publish([Frame(budget_id, sequence, sequence, b"again and again")])
            await asyncio.sleep(POLL_S)
            if there.frames:
                return


async def test_who_stood_still_is_not_deaf(redis: EmbeddedRedis, log_id: str) -> None:
    """A process that was stopped for a while has the echo of its heartbeat yet to read."""
    deaf_s = 1.0
    async with (
        Redis.from_url(redis.url) as other,
        other.pubsub() as watching,
        running(redis.url, log_id, replace(BEATING, deaf_s=deaf_s)) as here,
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
    url = f"redis://127.0.0.1:{port}/0"
    bus = RedisBus(url, log_id, uuid4().bytes, jitter=random.random, timeouts=STORAGE_TIMEOUTS)
    running = asyncio.create_task(bus.run(Deaf()))
    try:
        await until(lambda: len(swallowed) >= 2, DEADLINE_S)
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
        running(proxy.url, log_id, replace(PATIENT, stalled_s=STORAGE_TIMEOUTS.stalled_s)) as here,
        running(redis.url, log_id) as there,
    ):
        await there.follow(budget_id)
        here.bus.publish([Frame(budget_id, 1, 1, b"the first")])
        await heard(here, there, budget_id)
        assert here.restorations >= 2


@pytest.mark.parametrize("error", [RedisError, RuntimeError])
async def test_p8_no_connection_is_left_where_another_does_not_close(
    redis: EmbeddedRedis,
    admin: Redis,
    log_id: str,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when it is lost in that moment."""

    async def fail(_: PubSub) -> None:
        raise error("lost")

    before = len(await admin.client_list())
    with monkeypatch.context() as patch:
        async with running(redis.url, log_id):
            patch.setattr(PubSub, "aclose", fail)
    async with asyncio.timeout(DEADLINE_S):
        while len(await admin.client_list()) > before:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(POLL_S)


async def test_a_connection_lost_at_any_moment_never_ends_the_bus(redis: EmbeddedRedis) -> None:
    """P10. The driver answers with errors of many kinds when its connection goes between two tasks
    that use it; the bus has to come back from all of them."""
    chance = random.Random(1)
    bus = RedisBus(redis.url, new_id(), uuid4().bytes, jitter=chance.random, timeouts=PATIENT)

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
            await until(lambda: bus.connected or running.done(), DEADLINE_S)
            assert not running.done(), repr(running.exception())
            await asyncio.sleep(chance.random() * 0.02)  # any moment
            await admin.client_kill_filter(_type="pubsub", skipme=True)
    finally:
        for task in (running, busy):
            task.cancel()
        await asyncio.gather(running, busy, return_exceptions=True)
        await admin.aclose()
