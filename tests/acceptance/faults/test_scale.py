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
from typing import NamedTuple

import pytest
import redis.asyncio

from api.app import App
from api.settings import Settings
from storage.embedded.redis import EmbeddedRedis
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
    waiting,
)
from tests.device import Device, budget_create, connect, expense_add, new_id
from tests.lateness import TooLate, in_time
from tests.storm import NO_RATE_LIMITS, SEED

NOISE_S = 0.05  # in a delay, on such a machine
LEFT_S = 40.0  # for what is gone, to be gone
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
    for patience in (1, 3, 9):  # of the hub, which a slow machine may need
        program = patched(waiting(ping_s=ping_s * patience))
        folder = tmp_path / str(patience)
        await asyncio.to_thread(folder.mkdir)
        cluster = Cluster(folder, cluster_database_url, redis.url, program)
        try:
            return await stop_reading(cluster, stalled, megabytes, ping_s * patience, delay)
        except TooLate:
            _log.info("a ping each %d s was too much for this machine", ping_s * patience)
        finally:
            await cluster.close()
    raise AssertionError("they are always closed before they go on")


async def stop_reading(
    cluster: Cluster,
    stalled: int,
    megabytes: int,
    ping_s: int,
    delay: Callable[[Sequence[float]], float],
) -> None:
    """Raises `TooLate` where the hub had closed them before they could go on."""
    frames = megabytes * 1_000_000 // (EVENTS * EVENT_BYTES) - FILLING
    # The other hub has no such peers: what the machine takes, it takes from both.
    node, other = await asyncio.gather(*(cluster.start(**NO_RATE_LIMITS) for _ in range(2)))
    budget_id = new_id()
    with Crowd() as crowd, Crowd() as others:
        async with (
            connect(node.url, token("ada")) as writer,
            connect(other.url, token("ada")) as other_writer,
        ):
            healthy = await audience(crowd, node, writer, budget_id)
            undisturbed = await audience(others, other, other_writer, new_id())
            await delays([healthy, undisturbed], frames)  # so that both are as large as ever

            since_s = time.monotonic()
            idle = await followers(crowd, node, budget_id, stalled, receive_bytes=SMALL_BYTES)
            rss = resident_bytes(node.pid)
            for spectator in idle:
                spectator.stop_reading()
            await delays([healthy], FILLING)
            during, control = await delays([healthy, undisturbed], frames)
            grown = resident_bytes(node.pid) - rss
            if time.monotonic() - since_s > 2 * ping_s - NOISE_S:
                raise TooLate("they are closed already")
            head = healthy.spectators[0].cursors[budget_id]
            resuming = idle[::RESUMING]
            dead = len(idle) - len(resuming)
            for spectator in resuming:
                assert spectator.cursors[budget_id] < head  # it had stopped
                spectator.resume_reading()
            with in_time(ping_s):  # nor are they served while the machine stands still
                await until(lambda: all(s.cursors[budget_id] == head for s in resuming), 4 * ping_s)
                await writer.accepted(expense_add(budget_id))  # and they are live again
                await until(lambda: all(s.cursors[budget_id] == head + 1 for s in resuming), LEFT_S)
                for spectator in (*resuming, *healthy.spectators):
                    spectator.check()
            _log.info("grown %.1f MB; p99 %.3f s, %.3f s", grown / 1e6, p99(control), p99(during))
            assert grown < stalled * STALLED_BYTES_MAX
            assert grown < megabytes * 1_000_000  # nor what they would share
            assert delay(during) < max(2 * delay(control), delay(control) + NOISE_S)

            left = 1 + len(healthy.spectators) + len(resuming)
            await until(lambda: connections(node.url) == left, 2 * ping_s + CLOSE_S + BUSY_S)
            codes = Counter(
                line["close_code"] for line in node.log() if line["event"] == "socket closed"
            )
            assert codes == {4408: dead}
            assert node.complaints() == []


class Audience(NamedTuple):
    """Who writes to a budget, and who follows it and reads."""

    writer: Device
    budget_id: str
    spectators: Sequence[Spectator]


async def audience(crowd: Crowd, node: Node, writer: Device, budget_id: str) -> Audience:
    """A new budget, and ten who follow it."""
    await writer.accepted(budget_create(budget_id))
    return Audience(writer, budget_id, await followers(crowd, node, budget_id, 10))


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


async def delays(audiences: Sequence[Audience], frames: int) -> list[list[float]]:
    """Send so many frames of long events, and short ones between, to the audiences in turn; how
    long each event took to each of the spectators, by audience."""
    sent_s: dict[str, float] = {}
    sent = [0] * len(audiences)
    seen = [len(each.spectators[0].events.get(each.budget_id, [])) for each in audiences]
    for _ in range(frames):
        for number, (writer, budget_id, _) in enumerate(audiences):
            batches = [[expense_add(budget_id, note=LONG_NOTE) for _ in range(EVENTS)]]
            batches += [[expense_add(budget_id)] for _ in range(PROBES)]
            posted = []
            for events in batches:
                sent_s.update((event["eventId"], time.monotonic()) for event in events)
                posted.append(await writer.post(events))
                await asyncio.sleep(0.005)
            for request_id in posted:
                await writer.verdicts(request_id)
            sent[number] += sum(map(len, batches))

    def arrived() -> bool:
        return all(
            len(spectator.events.get(budget_id, [])) >= before + new
            for (_, budget_id, spectators), before, new in zip(audiences, seen, sent, strict=True)
            for spectator in spectators
        )

    await until(arrived, 60)
    return [
        [
            event.at_s - sent_s[event.event_id]
            for spectator in spectators
            for event in spectator.events[budget_id][before:]
        ]
        for (_, budget_id, spectators), before in zip(audiences, seen, strict=True)
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
            await until(lambda: connections(node.url) == 0, LEFT_S)
            async with connect(node.url, token("ada")) as present:
                budget_id = new_id()
                await present.accepted(budget_create(budget_id))
                stream = await present.subscribe(budget_id)
                pattern = f"budget-hub:{stream.log_id}:*"
                await until_channels(client, pattern, 2)  # this one's, and the nodes'
                before = resident_bytes(node.pid), descriptors(node.pid)
                await vanishing.vanish(number)
                await until(lambda: connections(node.url) == 1, LEFT_S)
                await until(lambda: descriptors(node.pid) < before[1] + POOLS_MAX, LEFT_S)
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
    client: "redis.asyncio.Redis", pattern: str, number: int, timeout_s: float = LEFT_S
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
            await until(
                lambda: not (app.hub.connections or app.hub.feeds or app.hub._tasks), LEFT_S
            )
            before = asyncio.all_tasks()
            await vanishing.vanish(300)
            await nothing_left(app, before)


async def nothing_left(app: App, before: set["asyncio.Task[object]"]) -> None:
    def left() -> list[object]:
        tasks = [task for task in asyncio.all_tasks() - before if "/asyncpg/" not in str(task)]
        return [*tasks, *app.hub.connections, *app.hub.feeds, *app.hub._tasks]

    try:
        await until(lambda: not left(), LEFT_S)
    except TimeoutError:
        raise AssertionError(f"left: {left()}") from None
