"""Hubs are stopped, replaced and restarted while devices work, who notice only a reconnect."""

import asyncio
import logging
import os
import signal
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest

from api.timeouts import APP_TIMEOUTS
from hub.timeouts import TIMEOUTS
from loadtest.process import START_TIMEOUT_S
from loadtest.proxy import Proxy
from storage.embedded.redis import EmbeddedRedis
from tests.cluster import BUSY_S, Cluster, Node, family, process_state, token, until
from tests.crowd import SMALL_BYTES, Crowd, open_spectator
from tests.device import budget_create, connect, expense_add, new_id
from tests.lateness import again_if_too_late, in_time
from tests.storm import SEED
from tests.travel import Travel

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

READ_COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"

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


@again_if_too_late
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

        # No longer than the hub waits for the database, and for verdicts when it drains.
        stack.enter_context(in_time(min(TIMEOUTS.settle_s, DRAIN_S)))
        proxy.black_hole()
        posted = [
            await writer.post([expense_add(budget_id) for _ in range(20)]) for writer in writers
        ]
        await asyncio.gather(*(writer.ping() for writer in writers))  # they are there
        node.signal(signal.SIGTERM)
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
        assert await node.ended(GRACEFUL_S + BUSY_S) == 0

        goaways = [s.of_type("goaway") for s in idle] + [w.of_type("goaway") for w in writers]
        assert {len(frames) for frames in goaways} == {1}
        waits = [frames[0]["reconnectAfterMs"] for frames in goaways]
        assert 0 <= min(waits) <= max(waits) <= RECONNECT_MS_MAX
        assert len(set(waits)) > 20 and statistics.pstdev(waits) > RECONNECT_MS_MAX / 10


@again_if_too_late
async def test_p11_who_is_slow_and_writes_on_is_told_too(cluster: Cluster, user_id: str) -> None:
    """What a hub closes with something unread in it TCP resets, and its close frame gets lost."""
    node = await cluster.start()
    budget_id = new_id()
    async with connect(node.url, token(user_id)) as device:
        await device.accepted(budget_create(budget_id))
    with Crowd() as crowd:
        [slow] = await crowd.join(open_spectator(node.url, token(user_id)))
        slow.subscribe(budget_id)
        await slow.joined(budget_id)
        slow.stop_reading()
        node.signal(signal.SIGTERM)
        await until(lambda: any(line.get("close_code") == RESTART for line in node.log()), BUSY_S)
        with in_time(APP_TIMEOUTS.farewell_s):
            for _ in range(3):  # the first one meets a hub that is gone, the next ones hear of it
                slow.post([expense_add(budget_id)])
                await asyncio.sleep(0.1)  # for the way there and back
            slow.resume_reading()
            await until(slow.lost.done, BUSY_S)
            assert slow.close_code == RESTART
        assert await node.ended(GRACEFUL_S + BUSY_S) == 0


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
            assert await writer.until_closed(DRAIN_S + BUSY_S) == RESTART
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


def workers(node: Node) -> set[int]:
    return {pid for (pid, _), name in family(node.pid).items() if "api.process.node" in name}


@needs_linux
async def test_p11_sighup_replaces_the_workers_one_by_one_under_load(
    own_cluster: Cluster,
) -> None:
    """The parent stays, there is always somebody to connect to, and nothing is lost or done twice.
    Then a worker is killed: it is replaced too."""
    serve_two = await own_cluster.start(WEB_CONCURRENCY="2")
    old = workers(serve_two)
    assert len(old) == 2
    async with Travel([serve_two.url], budgets=4, on_each=5, pause_s=0.05, seed=SEED) as travel:
        refused: list[OSError] = []
        knocking = asyncio.create_task(knock(serve_two.url, refused))
        fewest, most = 2, 2
        serve_two.signal(signal.SIGHUP)

        def replaced() -> bool:
            nonlocal fewest, most
            now = workers(serve_two)
            fewest, most = min(fewest, len(now)), max(most, len(now))
            return now.isdisjoint(old) and len(now) == 2

        await until(replaced, START_TIMEOUT_S)
        # One more while the new one starts, and not both at once.
        assert fewest >= 2
        assert most <= 3
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
        await until(
            lambda: killed not in workers(serve_two) and len(workers(serve_two)) == 2,
            START_TIMEOUT_S,
        )
        assert new - {killed} < workers(serve_two)
        await travel.all_live(BACK_S + BUSY_S)
        await travel.finish()
    assert serve_two.exit_code is None
    assert await serve_two.stop() == 0
    await travel.nothing_lost_or_doubled(own_cluster.database_url)
    assert [line["event"] for line in serve_two.complaints()] == ["node died"]


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
        async with Travel(urls, budgets, on_each, pause_s, seed=SEED) as travel:
            begun = await work_done(postgres, travel)
            await asyncio.sleep(CALM_S)
            calm = await work_done(postgres, travel)
            for node in nodes:
                node.signal(signal.SIGTERM)
                assert await node.ended(DRAIN_S + GRACEFUL_S + BUSY_S) == 0
                await own_cluster.start(PORT=node.port)
                await travel.all_live(BACK_S + BUSY_S)
            await travel.finish()
        for node in own_cluster.nodes:
            await node.stop()
            assert node.complaints() == []
        # Postgres counts the last statements of a connection when it ends: by now all of them.
        storm = await work_done(postgres, travel)
    finally:
        await postgres.close()
    # By event, since a machine that stands still does so for both.
    usual = (calm.commits - begun.commits) / (calm.events - begun.events)
    stormy = (storm.commits - calm.commits) / (storm.events - calm.events)
    away_s = [s for each in travel.travellers for s in each.away_s]
    _log.info("%.2f commits/event, then %.2f; away %.1f s", usual, stormy, max(away_s))
    # At most twice the work. Where few come back, they do so within a second each time, and what
    # each of them costs counts for more: a read of what it missed, the commit of what it had kept,
    # and its share of what a new process does for the first time.
    few = RETURN_COMMITS_MAX * len(away_s) if budgets < MANY_BUDGETS else 0
    assert storm.commits - calm.commits <= 2 * usual * (storm.events - calm.events) + few
    assert {code for each in travel.travellers for code in each.ends} == {RESTART}
    assert len(away_s) >= len(travel.travellers)  # each was on one of the two
    assert max(away_s) < BACK_S + BUSY_S
    await travel.nothing_lost_or_doubled(own_cluster.database_url)


class Work(NamedTuple):
    commits: int  # transactions of this database
    events: int  # that have their verdicts


async def work_done(postgres: "asyncpg.Connection[asyncpg.Record]", travel: Travel) -> Work:
    """Until now."""
    events = sum(len(each.sent) - len(each.outbox) for each in travel.travellers)
    return Work(await postgres.fetchval(READ_COMMITS), events)
