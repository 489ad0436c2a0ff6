"""Hubs are stopped, replaced and restarted while devices work, who notice only a reconnect."""

import asyncio
import logging
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import asyncpg
import pytest

from loadtest.proxy import Proxy
from storage.embedded import EmbeddedRedis
from tests.cluster import Cluster, Node, family, process_state, token, until
from tests.crowd import SMALL_BYTES, Crowd, Spectator, open_spectator
from tests.device import Json, budget_create, connect, expense_add, new_id

BUSY_S = 3.0  # what a machine that also runs everything else may add
DRAIN_S = 8.0  # the longest for verdicts
GRACEFUL_S = 5.0  # the longest for peers, afterwards
STOP_S = 25.0  # the longest for a worker, altogether
BACK_S = 5.0  # from its goaway until a device is live again
RECONNECT_MS_MAX = 1000  # of so few devices
RESTART = 1012
CALM_S = 3.0  # long enough for a rate
RETURN_COMMITS_MAX = 3  # for each device that comes back
MANY_BUDGETS = 100
LONG_NOTE = "🥞" * 2000  # 8 KB as UTF-8

READ_LOG = """
SELECT event_id::text FROM accepted_events WHERE budget_id = $1 ORDER BY sequence
"""
READ_COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"

SEED = int(os.environ.get("STORM_SEED", random.randrange(2**32)))

_log = logging.getLogger(__name__)

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
_users = count(1)


@pytest.fixture
def user_id() -> str:
    return f"user-{next(_users)}"


@pytest.fixture
async def own_cluster(
    database_url: str, redis: EmbeddedRedis, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """On a database of this test's own; what its logs may hold is the test's affair."""
    cluster = Cluster(tmp_path, database_url, redis.url)
    try:
        yield cluster
    finally:
        await cluster.close()


# One hub is told to stop


async def test_p11_sigterm_tells_everybody_and_finishes_what_was_begun(
    cluster: Cluster, user_id: str
) -> None:
    """Verdicts come that were not there yet, after the goaway and before the close; nobody new is
    let in; and it ends with 0."""
    async with Proxy(cluster.database_url) as proxy, AsyncExitStack() as stack:
        node = await cluster.start(DATABASE_URL=proxy.url)
        crowd = stack.enter_context(Crowd())
        who = token(user_id)
        writers = [await stack.enter_async_context(connect(node.url, who)) for _ in range(5)]
        budget_id = new_id()
        await writers[0].accepted(budget_create(budget_id))
        idle = await crowd.join(*(open_spectator(node.url, who) for _ in range(35)))
        [unknown] = await crowd.join(open_spectator(node.url, None))  # has not signed in yet
        for spectator in idle:
            spectator.subscribe(budget_id)
            await spectator.joined(budget_id)

        proxy.black_hole()
        posted = [
            await writer.post([expense_add(budget_id) for _ in range(20)]) for writer in writers
        ]
        await asyncio.gather(*(writer.ping() for writer in writers))  # they are there
        node.signal(signal.SIGTERM)
        told_s = time.monotonic()
        await until(lambda: all(s.of_type("goaway") for s in idle), 2 + BUSY_S)
        for writer in writers:
            await writer.wait_for(lambda w=writer: bool(w.of_type("goaway")))  # type: ignore[misc]
        with pytest.raises(OSError):
            await open_spectator(node.url, who)
        assert node.exit_code is None
        assert not any(writer.of_type("results")[1:] for writer in writers)
        assert not any(spectator.lost.done() for spectator in idle)

        await proxy.heal()
        for writer, request_id in zip(writers, posted, strict=True):
            verdicts = await writer.verdicts(request_id)
            assert [verdict["status"] for verdict in verdicts] == ["accepted"] * 20
            assert await writer.until_closed() == RESTART
            kinds = [f.body["type"] for f in writer.frames]
            assert kinds.index("goaway") < len(kinds) - 1 - kinds[::-1].index("results")
        await until(lambda: all(s.lost.done() for s in [*idle, unknown]), 2 + BUSY_S)
        assert {s.close_code for s in [*idle, unknown]} == {RESTART}
        assert await node.ended(GRACEFUL_S) == 0
        assert time.monotonic() - told_s < DRAIN_S

        goaways = [s.of_type("goaway") for s in idle] + [w.of_type("goaway") for w in writers]
        assert {len(frames) for frames in goaways} == {1}
        waits = [frames[0]["reconnectAfterMs"] for frames in goaways]
        assert 0 <= min(waits) <= max(waits) <= RECONNECT_MS_MAX
        assert len(set(waits)) > 20 and statistics.pstdev(waits) > RECONNECT_MS_MAX / 10


async def test_p11_drain_ends_in_time_with_hung_peers(own_cluster: Cluster, user_id: str) -> None:
    """Peers that read nothing hold up neither the others nor the end."""
    who = token(user_id)
    node = await own_cluster.start()
    budget_id = new_id()
    with Crowd() as crowd:
        async with connect(node.url, who) as writer:
            await writer.accepted(budget_create(budget_id))
            await writer.subscribe(budget_id)
            hung = await crowd.join(
                *(open_spectator(node.url, who, receive_bytes=SMALL_BYTES) for _ in range(5))
            )
            for peer in hung:
                peer.subscribe(budget_id)
                await peer.joined(budget_id)
                peer.stop_reading()
            for _ in range(30):
                await writer.accepted(*(expense_add(budget_id, note=LONG_NOTE) for _ in range(25)))
            node.signal(signal.SIGTERM)
            assert await writer.until_closed(BUSY_S) == RESTART
            assert len(writer.of_type("goaway")) == 1
            assert await node.ended(GRACEFUL_S + BUSY_S) == 0
    assert node.complaints() == []


@pytest.mark.faults
async def test_p11_drain_ends_in_time_without_a_database(
    own_cluster: Cluster, user_id: str
) -> None:
    """One that does not answer any more: there are no verdicts to wait for."""
    async with Proxy(own_cluster.database_url) as proxy:
        node = await own_cluster.start(DATABASE_URL=proxy.url)
        async with connect(node.url, token(user_id)) as writer:
            budget_id = new_id()
            await writer.accepted(budget_create(budget_id))
            proxy.black_hole()
            await writer.post([expense_add(budget_id)])
            await writer.ping()
            node.signal(signal.SIGTERM)
            assert await writer.until_closed(DRAIN_S + BUSY_S) == RESTART
            assert await node.ended(STOP_S - DRAIN_S) == 0


# Devices that work on


class Traveller:
    """A device as a good client is: it keeps what has no verdict yet and sends it again, keeps its
    cursor, and comes back after `reconnectAfterMs`; to the other address where it is refused."""

    def __init__(
        self, user_id: str, budget_id: str, urls: Sequence[str], rng: random.Random, pause_s: float
    ) -> None:
        self.user_id = user_id
        self.budget_id = budget_id
        self.sent: list[str] = []
        self.accepted: Counter[str] = Counter()  # verdicts that were not of duplicates, by event
        self.seen: list[str] = []  # what the stream gave, in its order
        self.away_s: list[float] = []  # each from its goaway, or its cut, until it was live again
        self.ends: list[int] = []  # close codes
        self.live = False
        self.outbox: dict[str, Json] = {}
        self._urls = list(urls)
        self._rng = rng
        self._pause_s = pause_s
        self._posted: set[str] = set()  # on this connection
        self._left_s: float | None = None
        self._wait_ms = 0.0
        self._head: int | None = None  # None: not subscribed, or told to go away

    async def run(self, enough: asyncio.Event) -> None:
        """Work until cancelled; after `enough` nothing new is begun."""
        while True:
            spectator = await self._open()
            try:
                await self._work(spectator, enough)
                assert spectator.broken is None, spectator.broken
                assert spectator.close_code is not None
                self.ends.append(spectator.close_code)
                if self._left_s is None:  # cut off without a goaway
                    self._leave(self._rng.uniform(0, 200))
            finally:
                spectator.transport.abort()
            assert self._left_s is not None
            due_s = self._left_s + self._wait_ms / 1000
            await asyncio.sleep(max(due_s - time.monotonic(), 0))

    async def _open(self) -> Spectator:
        while True:
            try:
                spectator = await open_spectator(
                    self._urls[0], token(self.user_id), took=self._took
                )
            except OSError:
                self._urls.append(self._urls.pop(0))
                await asyncio.sleep(self._rng.uniform(0.02, 0.1))
                continue
            self._posted.clear()
            if not spectator.transport.is_closing():
                spectator.subscribe(self.budget_id, len(self.seen))
            return spectator

    async def _work(self, spectator: Spectator, enough: asyncio.Event) -> None:
        while not spectator.lost.done():
            if not enough.is_set():
                event = expense_add(self.budget_id)
                self.outbox[event["eventId"]] = event
                self.sent.append(event["eventId"])
            unsent = [event for id, event in self.outbox.items() if id not in self._posted][:100]
            if unsent and not spectator.transport.is_closing():
                self._posted.update(event["eventId"] for event in unsent)
                spectator.post(unsent)
            pause_s = self._rng.uniform(0.5, 1.5) * self._pause_s
            await asyncio.wait([spectator.lost], timeout=pause_s)

    def _took(self, frame: Json) -> None:
        match frame["type"]:
            case "subscribed":
                self._head = frame["head"]
            case "events":
                assert frame["fromSequence"] == len(self.seen) + 1
                self.seen += [event["eventId"] for event in frame["events"]]
            case "results":
                for verdict in frame["results"]:
                    self._settle(verdict)
            case "goaway":
                self._leave(frame["reconnectAfterMs"])
        if not self.live and self._head is not None and len(self.seen) >= self._head:
            self.live = True
            if self._left_s is not None:
                self.away_s.append(time.monotonic() - self._left_s)
                self._left_s = None

    def _leave(self, wait_ms: float) -> None:
        self._left_s, self._wait_ms = time.monotonic(), wait_ms
        self._head, self.live = None, False

    def _settle(self, verdict: Json) -> None:
        event_id = verdict["eventId"]
        if verdict["status"] == "accepted":
            self.accepted[event_id] += "duplicate" not in verdict
            self.outbox.pop(event_id, None)
        else:
            assert verdict["error"]["retryable"], verdict
            self._posted.discard(event_id)


class Travel:
    """Travellers at work, some on each budget, beginning at the addresses in turn."""

    def __init__(self, urls: Sequence[str], budgets: int, on_each: int, pause_s: float) -> None:
        rng = random.Random(SEED)
        self._urls = list(urls)
        self._budgets = {f"traveller-{n}": new_id() for n in range(budgets)}
        self.travellers = [
            Traveller(
                user_id,
                budget_id,
                self._urls[number % len(urls) :] + self._urls[: number % len(urls)],
                random.Random(rng.random()),
                pause_s,
            )
            for user_id, budget_id in self._budgets.items()
            for number in range(on_each)
        ]
        self._enough = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for user_id, budget_id in self._budgets.items():
            async with connect(self._urls[0], token(user_id)) as device:
                await device.accepted(budget_create(budget_id))
        self._tasks = [asyncio.create_task(each.run(self._enough)) for each in self.travellers]
        await self.all_live(20)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Raise what ended a traveller."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def all_live(self, timeout_s: float) -> None:
        def all_live() -> bool:
            self.check()
            return all(each.live for each in self.travellers)

        await until(all_live, timeout_s)

    async def finish(self) -> None:
        """Begin nothing new; until everything has its verdict and everybody has seen all."""
        self._enough.set()

        def finished() -> bool:
            self.check()
            most = Counter[str]()
            for each in self.travellers:
                most[each.budget_id] = max(most[each.budget_id], len(each.seen))
            return not any(
                each.outbox or len(each.seen) < most[each.budget_id] for each in self.travellers
            )

        await until(finished, 20)

    async def nothing_lost_or_doubled(self, database_url: str) -> None:
        """P2, P3, P11: the log has what was sent, each once, and all saw it in its order."""
        connection = await asyncpg.connect(database_url)
        try:
            for budget_id in self._budgets.values():
                log = [row[0] for row in await connection.fetch(READ_LOG, budget_id)]
                here = [each for each in self.travellers if each.budget_id == budget_id]
                sent = [event_id for each in here for event_id in each.sent]
                assert Counter(log[1:]) == Counter(sent)
                for each in here:
                    assert each.seen == log
                    assert max(each.accepted.values(), default=0) <= 1
        finally:
            await connection.close()


def workers(node: Node) -> set[int]:
    return {pid for (pid, _), name in family(node.pid).items() if "api.server" in name}


@needs_linux
async def test_p11_sighup_replaces_the_workers_one_by_one_under_load(
    own_cluster: Cluster,
) -> None:
    """The parent stays, there is always somebody to connect to, and nothing is lost or done twice.
    Then a worker is killed: it is replaced too."""
    serve_two = await own_cluster.start(WEB_CONCURRENCY="2")
    old = workers(serve_two)
    assert len(old) == 2
    async with Travel([serve_two.url], budgets=4, on_each=5, pause_s=0.05) as travel:
        refused: list[OSError] = []
        knocking = asyncio.create_task(knock(serve_two.url, refused))
        most = 0
        serve_two.signal(signal.SIGHUP)

        def replaced() -> bool:
            nonlocal most
            most = max(most, len(workers(serve_two)))
            return workers(serve_two).isdisjoint(old) and len(workers(serve_two)) == 2

        await until(replaced, 30)
        assert most == 3  # one more while the new one starts, and not both at once
        await travel.all_live(BACK_S + BUSY_S)
        knocking.cancel()
        await asyncio.wait([knocking])
        assert refused == []
        assert not any(process_state(pid) for pid in old)
        moved = [each for each in travel.travellers if each.ends]
        assert len(moved) == len(travel.travellers)
        assert {code for each in moved for code in each.ends} == {RESTART}
        assert max(s for each in moved for s in each.away_s) < BACK_S + BUSY_S

        new = workers(serve_two)
        killed = min(new)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: killed not in workers(serve_two) and len(workers(serve_two)) == 2, 20)
        assert new - {killed} < workers(serve_two)
        await travel.all_live(BACK_S + BUSY_S)
        await travel.finish()
    assert serve_two.exit_code is None
    assert await serve_two.stop() == 0
    await travel.nothing_lost_or_doubled(own_cluster.database_url)
    assert [line["event"] for line in serve_two.complaints()] == ["worker died"]


async def knock(url: str, refused: list[OSError]) -> None:
    """Connect again and again."""
    parts = urlsplit(url)
    while True:
        try:
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.close()
        except OSError as error:
            refused.append(error)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("budgets", "on_each", "pause_s"),
    [
        pytest.param(20, 5, 0.5, id="100-devices"),
        pytest.param(100, 5, 1.5, marks=pytest.mark.faults, id="500-devices"),
    ],
)
async def test_p11_rolling_restart(
    own_cluster: Cluster, budgets: int, on_each: int, pause_s: float
) -> None:
    """Two nodes in turn are stopped and come back on the same port. Every device is live again
    soon, on whatever node, and the reconnects are no storm for Postgres."""
    nodes = await own_cluster.start_some(2)
    urls = [node.url for node in nodes]
    postgres = await asyncpg.connect(own_cluster.database_url)
    try:
        async with Travel(urls, budgets, on_each, pause_s) as travel:
            calm = [await commits(postgres)]
            await asyncio.sleep(CALM_S)
            calm.append(await commits(postgres))
            for node in nodes:
                node.signal(signal.SIGTERM)
                assert await node.ended(DRAIN_S + GRACEFUL_S) == 0
                await own_cluster.start(PORT=str(urlsplit(node.url).port))
                await travel.all_live(BACK_S + BUSY_S)
            storm_s = time.monotonic() - calm[1][0]
            await travel.finish()
        for node in own_cluster.nodes:
            await node.stop()
            assert node.complaints() == []
        # Postgres counts the last statements of a connection when it ends: by now all of them, and
        # so a little more than those of the storm.
        storm = (await commits(postgres))[1] - calm[1][1]
    finally:
        await postgres.close()
    calm_per_s = (calm[1][1] - calm[0][1]) / (calm[1][0] - calm[0][0])
    away_s = [s for each in travel.travellers for s in each.away_s]
    _log.info("%.0f/s, in the storm %.0f/s; away %.1f s", calm_per_s, storm / storm_s, max(away_s))
    # At most twice the work. Where few come back, they do so within a second each time, and what
    # each of them costs counts for more: a read of what it missed, the commit of what it had kept,
    # and its share of what a new process does for the first time.
    few = RETURN_COMMITS_MAX * len(away_s) if budgets < MANY_BUDGETS else 0
    assert storm <= 2 * calm_per_s * storm_s + few
    assert {code for each in travel.travellers for code in each.ends} == {RESTART}
    assert len(away_s) >= len(travel.travellers)  # each was on one of the two
    assert max(away_s) < BACK_S + BUSY_S
    await travel.nothing_lost_or_doubled(own_cluster.database_url)


async def commits(postgres: "asyncpg.Connection[asyncpg.Record]") -> tuple[float, int]:
    """Now, and how many transactions this database has committed."""
    return time.monotonic(), await postgres.fetchval(READ_COMMITS)
