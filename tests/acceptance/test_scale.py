"""P8 with many peers at once: some stop reading, some vanish, and the hub is as small as before."""

import asyncio
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import pytest
import redis.asyncio

from api.app import App
from api.settings import Settings
from storage.embedded import EmbeddedRedis
from tests.cluster import AUTH_SECRET, BUSY_S, Cluster, Node, token, until
from tests.crowd import (
    SMALL_BYTES,
    Crowd,
    Spectator,
    connections,
    descriptors,
    in_this_process,
    open_spectator,
    patched,
    resident_bytes,
)
from tests.device import Device, budget_create, connect, expense_add, new_id
from tests.storm import NO_RATE_LIMITS, SEED

NOISE_S = 0.05  # in a delay, on such a machine
CLOSE_S = 1.0  # what the hub gives a close frame to leave
NOISE_BYTES = 8_000_000  # what the allocator keeps anyway
KEPT_BYTES_MAX = 2_000  # of each that is gone: a session, a feed, a connection is more
EVENT_BYTES = 8000
EVENTS = 25  # in a frame
PROBES = 4  # short events after each
FILLING = 25  # such frames: then a kernel takes no more for a peer that does not read
RESUMING = 10  # one of so many goes on
POOLS_MAX = 20  # connections to the database that may be made at any time
LONG_NOTE = "🥞" * (EVENT_BYTES // 4)
STALLED_BYTES_MAX = 256 * 1024  # that a peer which reads nothing may cost

_log = logging.getLogger(__name__)

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


# Peers that stop reading


def p99(delays: Sequence[float]) -> float:
    return sorted(delays)[len(delays) * 99 // 100]


@needs_linux
@pytest.mark.parametrize(
    ("stalled", "megabytes", "ping_s", "delay"),
    [
        # The worst of so few events would be the worst moment of the machine.
        pytest.param(60, 8, 8, median, id="60-sockets"),
        pytest.param(200, 50, 40, p99, marks=pytest.mark.faults, id="200-sockets"),
    ],
)
async def test_p8_sockets_that_stop_reading(
    cluster_database_url: str,
    redis: EmbeddedRedis,
    tmp_path: Path,
    stalled: int,
    megabytes: int,
    ping_s: int,
    delay: Callable[[Sequence[float]], float],
) -> None:
    """They cost no memory, and nobody else time; some of them go on and miss nothing, the others
    are closed."""
    program = patched(f"api.server.PING_S = {ping_s}")
    cluster = Cluster(tmp_path, cluster_database_url, redis.url, program)
    frames = megabytes * 1_000_000 // (EVENTS * EVENT_BYTES) - FILLING
    budget_id = new_id()
    try:
        node = await cluster.start(**NO_RATE_LIMITS)
        with Crowd() as crowd:
            async with connect(node.url, token("ada")) as writer:
                await writer.accepted(budget_create(budget_id))
                healthy = await followers(crowd, node, budget_id, 10)
                before = await delays(writer, budget_id, healthy, frames)

                since_s = time.monotonic()
                idle = await followers(crowd, node, budget_id, stalled, receive_bytes=SMALL_BYTES)
                rss = resident_bytes(node.pid)
                for spectator in idle:
                    spectator.stop_reading()
                await delays(writer, budget_id, healthy, FILLING)
                during = await delays(writer, budget_id, healthy, frames)
                grown = resident_bytes(node.pid) - rss
                assert time.monotonic() - since_s < 2 * ping_s, "too slow: they are closed already"
                head = healthy[0].cursors[budget_id]
                resuming = idle[::RESUMING]
                dead = len(idle) - len(resuming)
                for spectator in resuming:
                    assert spectator.cursors[budget_id] < head  # it had stopped
                    spectator.resume_reading()
                await until(lambda: all(s.cursors[budget_id] == head for s in resuming), 4 * ping_s)
                await writer.accepted(expense_add(budget_id))  # and they are live again
                await until(lambda: all(s.cursors[budget_id] == head + 1 for s in resuming), 10)
                for spectator in (*resuming, *healthy):
                    spectator.check()
                _log.info(
                    "grown %.1f MB; p99 %.3f s, %.3f s", grown / 1e6, p99(before), p99(during)
                )
                assert grown < stalled * STALLED_BYTES_MAX
                assert grown < megabytes * 1_000_000  # nor what they would share
                assert delay(during) < max(2 * delay(before), delay(before) + NOISE_S)

                left = 1 + len(healthy) + len(resuming)
                await until(lambda: connections(node.url) == left, 2 * ping_s + CLOSE_S + BUSY_S)
                codes = Counter(
                    line["close_code"] for line in node.log() if line["event"] == "socket closed"
                )
                assert codes == {4408: dead}
                assert node.complaints() == []
    finally:
        await cluster.close()


async def followers(
    crowd: Crowd, node: Node, budget_id: str, number: int, *, receive_bytes: int | None = None
) -> list[Spectator]:
    """Spectators who are live on the budget, wherever it is."""
    head = max((s.cursors[budget_id] for s in crowd.all), default=0)
    spectators = await crowd.join(
        *(
            open_spectator(node.url, token("ada"), receive_bytes=receive_bytes)
            for _ in range(number)
        )
    )
    for spectator in spectators:
        spectator.subscribe(budget_id, head)
    await asyncio.gather(*(spectator.joined(budget_id) for spectator in spectators))
    return spectators


async def delays(
    writer: Device, budget_id: str, healthy: Sequence[Spectator], frames: int
) -> list[float]:
    """Send so many frames of long events, and short ones between; how long each event took to each
    of the healthy."""
    sent_s: dict[str, float] = {}
    seen = len(healthy[0].events.get(budget_id, []))
    for _ in range(frames):
        batches = [[expense_add(budget_id, note=LONG_NOTE) for _ in range(EVENTS)]]
        batches += [[expense_add(budget_id)] for _ in range(PROBES)]
        posted = []
        for events in batches:
            sent_s.update((event["eventId"], time.monotonic()) for event in events)
            posted.append(await writer.post(events))
            await asyncio.sleep(0.005)
        for request_id in posted:
            await writer.verdicts(request_id)
    due = seen + len(sent_s)
    await until(lambda: all(len(s.events.get(budget_id, [])) >= due for s in healthy), 20)
    return [
        event.at_s - sent_s[event.event_id]
        for spectator in healthy
        for event in spectator.events[budget_id][seen:]
    ]


# Peers that vanish


class Vanishing:
    """Sockets that are reset without a word, in every state that a socket goes through."""

    STATES = ("bare", "new", "open", "subscribing", "live", "in flight", "half a frame")

    def __init__(self, url: str, budgets: dict[str, str], crowd: Crowd) -> None:
        self._url = url
        self._budgets = budgets  # by user
        self._crowd = crowd
        self._rng = random.Random(SEED)

    @classmethod
    async def with_budgets(cls, url: str, number: int, crowd: Crowd) -> "Vanishing":
        budgets = {f"user-{n}": new_id() for n in range(number)}
        for user_id, budget_id in budgets.items():
            async with connect(url, token(user_id)) as device:
                await device.accepted(budget_create(budget_id))
        return cls(url, budgets, crowd)

    async def vanish(self, number: int, at_once: int = 100) -> None:
        for start in range(0, number, at_once):
            states = [self.STATES[n % len(self.STATES)] for n in range(start, start + at_once)]
            self._crowd.all.clear()  # those before are gone
            spectators = await self._crowd.join(*(self._come(state) for state in states))
            self._rng.shuffle(spectators)
            for spectator in spectators:
                spectator.reset()

    async def _come(self, state: str) -> Spectator:
        user_id, budget_id = self._rng.choice(list(self._budgets.items()))
        if state in ("bare", "new"):
            return await open_spectator(self._url, None, upgrade=state == "new")
        spectator = await open_spectator(self._url, token(user_id))
        if state == "half a frame":
            spectator.transport.write(b"\x81\xfe\xff")
        if state in ("subscribing", "live", "in flight"):
            spectator.subscribe(budget_id)
        if state in ("live", "in flight"):
            await spectator.joined(budget_id)
        if state == "in flight":
            spectator.post([expense_add(budget_id) for _ in range(self._rng.randint(1, 5))])
        return spectator


@needs_linux
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(1_500, id="1500-sockets"),
        pytest.param(10_000, marks=pytest.mark.faults, id="10000-sockets"),
    ],
)
async def test_p8_sockets_that_vanish_leave_nothing(cluster: Cluster, number: int) -> None:
    """Descriptors, channels and memory are as before."""
    node = await cluster.start()
    assert cluster.redis_url is not None
    async with redis.asyncio.Redis.from_url(cluster.redis_url) as client:
        with Crowd() as crowd:
            vanishing = await Vanishing.with_budgets(node.url, 20, crowd)
            await vanishing.vanish(max(500, number // 10))  # so that every pool is as large as ever
            await until(lambda: connections(node.url) == 0, 10)
            async with connect(node.url, token("ada")) as present:
                budget_id = new_id()
                await present.accepted(budget_create(budget_id))
                stream = await present.subscribe(budget_id)
                pattern = f"budget-hub:{stream.log_id}:*"
                await until_channels(client, pattern, 2)  # this one's, and the nodes'
                before = resident_bytes(node.pid), descriptors(node.pid)
                await vanishing.vanish(number)
                await until(lambda: connections(node.url) == 1, 10)
                await until(lambda: descriptors(node.pid) < before[1] + POOLS_MAX, 10)
                await until_channels(client, pattern, 2)
                grown = resident_bytes(node.pid) - before[0]
                _log.info("grown %.1f MB", grown / 1e6)
                assert grown < NOISE_BYTES + number * KEPT_BYTES_MAX
                await present.accepted(expense_add(budget_id))
                await present.reached(budget_id, 2)
    closed = [line for line in node.log() if line["event"] == "socket closed"]
    opened = [line for line in node.log() if line["event"] == "socket open"]
    assert len(closed) >= len(opened) > number / 2


async def until_channels(
    client: "redis.asyncio.Redis", pattern: str, number: int, timeout_s: float = 10
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while len(channels := await client.pubsub_channels(pattern)) != number:
        assert time.monotonic() < deadline_s, channels
        await asyncio.sleep(0.05)


async def test_p8_sockets_that_vanish_leave_no_task(
    database_url: str, redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same from inside: tasks, sessions and feeds."""
    settings = Settings(
        database_url=database_url, redis_url=redis.url, auth_secret=AUTH_SECRET, port=0
    )
    with Crowd() as crowd:
        async with in_this_process(settings, monkeypatch) as (url, app):
            vanishing = await Vanishing.with_budgets(url, 5, crowd)
            await vanishing.vanish(100)
            await until(lambda: not (app.hub.sessions or app.hub._feeds or app.hub._tasks), 10)
            before = asyncio.all_tasks()
            await vanishing.vanish(300)
            await nothing_left(app, before)


async def nothing_left(app: App, before: set["asyncio.Task[object]"]) -> None:
    def left() -> list[object]:
        tasks = [task for task in asyncio.all_tasks() - before if "/asyncpg/" not in str(task)]
        return [*tasks, *app.hub.sessions, *app.hub._feeds, *app.hub._tasks]

    try:
        await until(lambda: not left(), 10)
    except TimeoutError:
        raise AssertionError(f"left: {left()}") from None
