"""The time of day jumps: a machine wakes up, or its clock is set right. Nobody is limited, closed,
signed out or let in by that, and nothing waits for hours (P10)."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from storage.embedded.redis import EmbeddedRedis
from storage.postgres.clock import PRECISE_S, DatabaseClock
from storage.postgres.database import Database
from storage.redis.rate_limits import Limit, RateLimits
from tests.cluster import REST_S, Cluster, Node
from tests.device import connect, expense_add, new_id
from tests.event_stream import streaming
from tests.jumping import set_clock
from tests.lateness import TooLate, again_if_too_late
from tests.patience import PATIENT

HOURS_S = 5 * 3600  # more than a token has
BOTH = pytest.mark.parametrize("jump_s", [HOURS_S, -HOURS_S], ids=["ahead", "back"])
WAIT_S = 60  # of a poll


@asynccontextmanager
async def hub_with_a_clock(
    cluster: Cluster, folder: Path, **settings: str
) -> AsyncIterator[tuple[Node, Path]]:
    file = folder / "clock"
    set_clock(file, 0)
    program = (sys.executable, "-m", "tests.jumping", file)
    others = Cluster(folder, cluster.database_url, cluster.redis_url, program)
    try:
        yield await others.start(**settings), file
    finally:
        await others.close()
    assert [node.complaints() for node in others.nodes] == [[]]


@BOTH
async def test_p10_a_clock_that_jumps_ends_nothing(
    cluster: Cluster, tmp_path: Path, jump_s: int
) -> None:
    token = cluster.token("ada")
    async with hub_with_a_clock(cluster, tmp_path) as (node, file):
        budget_id = await node.new_budget(token)
        path = f"/events?budgetId={budget_id}&key=1&wait={WAIT_S}"
        async with (
            node.rest(token) as rest,
            connect(node.url, token) as device,
            streaming(node, token, budget_id) as stream,
        ):
            await device.subscribe(budget_id)
            await device.reached(budget_id, 1)
            assert (await stream.next())[1]["toSequence"] == 1
            poll = asyncio.create_task(rest.get(path, timeout=WAIT_S + REST_S))
            await asyncio.sleep(0)
            set_clock(file, jump_s)
            device.frames.clear()
            # The session looks at the clock again when it sends the heads.
            await device.wait_for(lambda: device.of_type("heads") != [], REST_S)
            assert not poll.done()
            # A token that was seen before, and one that the hub sees for the first time.
            assert (await rest.get("/budgets")).status_code == 200
            async with node.rest(cluster.token("ada", ttl_s=1800)) as other:
                assert (await other.get("/budgets")).status_code == 200
            await device.accepted(expense_add(budget_id))
            await device.reached(budget_id, 2)
            assert (await stream.next())[1]["toSequence"] == 2
            answer = await poll
            assert (answer.status_code, answer.json()["nextKey"]) == (200, 2)
            assert device.closed is None
            pong = await device.ping()
            assert abs(pong["serverTime"] / 1000 - time.time()) < REST_S


@BOTH
async def test_p10_a_clock_that_jumps_lets_nobody_wait_for_hours_nor_begin_anew(
    cluster: Cluster, tmp_path: Path, jump_s: int
) -> None:
    settings = {"REQUESTS_PER_MIN_USER": "3", "REDIS_URL": ""}
    async with (
        hub_with_a_clock(cluster, tmp_path, **settings) as (node, file),
        node.rest(cluster.token("ada")) as rest,
    ):
        began_s = time.monotonic()
        answers = [await rest.get("/budgets") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        set_clock(file, jump_s)
        answer = await rest.get("/budgets")
        if time.monotonic() - began_s < 50:  # else the minute may be over
            assert answer.status_code == 429
            assert 0 < int(answer.headers["Retry-After"]) <= 60


async def test_p10_redis_clock_that_is_set_back_limits_for_a_minute(redis: EmbeddedRedis) -> None:
    limit, log_id = Limit("user", 2), new_id()
    limits = RateLimits(redis.url, log_id, b"secret", now_s=time.monotonic, timeouts=PATIENT)
    client = Redis.from_url(redis.url)
    try:
        assert [await limits.take(limit, "ada") for _ in range(2)] == [0, 0]
        [key] = [key async for key in client.scan_iter(f"budget-hub:{log_id}:rate:*")]
        await client.expire(key, HOURS_S)  # as it is with a clock that is so much behind
        assert 0 < await limits.take(limit, "ada") <= limit.window_s
        assert await client.ttl(key) <= limit.window_s
    finally:
        await limits.close()
        await client.aclose()


@again_if_too_late
async def test_a_poll_ends_with_its_token(cluster: Cluster) -> None:
    node = await cluster.start()
    budget_id = await node.new_budget(cluster.token("ada"))
    async with node.rest(cluster.token("ada", ttl_s=4)) as rest:
        began_s = time.monotonic()
        path = f"/events?budgetId={budget_id}&key=1&wait={WAIT_S}"
        answer = await rest.get(path, timeout=WAIT_S + REST_S)
        if answer.status_code == 401:
            raise TooLate("the token had ended before the hub saw it")
        assert answer.status_code == 200
        assert time.monotonic() - began_s < WAIT_S / 2
        assert answer.json()["events"] == []
        assert (await rest.get(path)).status_code == 401


class Steady:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_the_time_of_day_is_the_databases(database: Database) -> None:
    steady = Steady()
    clock = DatabaseClock(database, now_s=steady)
    await clock.look()
    seen = clock.now()
    assert abs(seen - time.time()) < REST_S
    steady.now_s += 60
    assert clock.now() == seen + 60
    assert clock.now_ms() == int((seen + 60) * 1000)
    await clock.look()  # no minute has passed there
    assert clock.now() < seen + 60


async def test_an_answer_that_took_long_sets_no_clock(database: Database) -> None:
    times = iter([0.0, 0.1, 100.0, 100.1 + PRECISE_S, 100.0])
    clock = DatabaseClock(database, now_s=lambda: next(times))
    await clock.look()
    await clock.look()
    assert abs(clock.now() - 100 - time.time()) < REST_S
