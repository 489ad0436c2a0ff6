"""Rate limits: exact where Redis answers, bounded and quick where it does not (P8, P10)."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from loadtest.cluster import FragileRedis
from loadtest.proxy import Proxy
from storage.embedded.redis import EmbeddedRedis
from storage.redis import rate_limits
from storage.redis.rate_limits import Limit, RateLimits
from tests.device import new_id
from tests.patience import PATIENT

SECRET = b"rate-limits-are-hashed-with-this"
FIVE = Limit("user", 5)
# On a busy machine Redis may be slow, and these tests want its answer.
ASKING = replace(PATIENT, patience_s=30.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now_s


async def taken(limits: RateLimits, whom: str, times: int) -> int:
    """How many of so many were within the limit."""
    return [await limits.take(FIVE, whom) for _ in range(times)].count(0.0)


@pytest.fixture
async def pair(redis: EmbeddedRedis) -> AsyncIterator[tuple[RateLimits, RateLimits]]:
    """Two nodes of one database."""
    log_id = new_id()
    here, there = (
        RateLimits(redis.url, log_id, SECRET, now_s=time.monotonic, timeouts=ASKING)
        for _ in range(2)
    )
    yield here, there
    await here.close()
    await there.close()


async def test_nodes_count_together(pair: tuple[RateLimits, RateLimits]) -> None:
    here, there = pair
    assert await taken(here, "ada", 3) == 3
    assert await taken(there, "ada", 4) == 2
    assert await taken(here, "ada", 2) == 0
    assert await taken(here, "bob", 6) == 5  # somebody else


async def test_of_requests_at_once_no_more_than_the_limit_pass(
    pair: tuple[RateLimits, RateLimits],
) -> None:
    missing = await asyncio.gather(
        *(limits.take(FIVE, "ada") for limits in pair for _ in range(rate_limits.ASKED_MAX // 2))
    )
    assert missing.count(0.0) == 5


async def test_what_was_refused_knows_when_it_may_come_again(
    pair: tuple[RateLimits, RateLimits],
) -> None:
    await taken(pair[0], "ada", 5)
    assert 50 < await pair[1].take(FIVE, "ada") <= 60


async def test_p9_redis_does_not_learn_who_it_is(
    redis: EmbeddedRedis, pair: tuple[RateLimits, RateLimits]
) -> None:
    await taken(pair[0], "ada@example.org", 1)
    async with Redis.from_url(redis.url) as client:
        keys = b" ".join([key async for key in client.scan_iter("*:rate:*")])
    assert b"user" in keys  # the name of the limit
    assert b"ada" not in keys


async def test_alone_a_process_counts_by_itself() -> None:
    clock = Clock()
    limits = RateLimits(None, "log", SECRET, now_s=clock)
    assert await taken(limits, "ada", 7) == 5
    clock.now_s += 45
    assert await limits.take(FIVE, "ada") == 15
    assert await taken(limits, "bob", 1) == 1
    clock.now_s += 15
    assert await taken(limits, "ada", 7) == 5


async def test_p10_redis_that_is_killed_fails_nothing_and_is_used_again(tmp_path: Path) -> None:
    redis = FragileRedis(tmp_path)
    limits = RateLimits(redis.url, "log", SECRET, now_s=time.monotonic, timeouts=ASKING)
    try:
        assert await taken(limits, "ada", 5) == 5
        redis.kill()
        assert await taken(limits, "ada", 7) == 5  # counted here, from the beginning
        assert await taken(limits, "ada", 1) == 0
        await redis.restart()
        other = RateLimits(redis.url, "log", SECRET, now_s=time.monotonic, timeouts=ASKING)
        async with asyncio.timeout(30):  # it is empty: what is counted there is new
            while await limits.take(FIVE, "ada"):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.05)
        assert await taken(other, "ada", 9) == 4
        await other.close()
    finally:
        await limits.close()
        redis.close()


async def test_p10_redis_that_is_silent_slows_hardly_anything(
    redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0  # of Redis, for which a request has to wait
    answer = RateLimits._answer

    async def counted(limits: RateLimits, *question: Any) -> float | None:
        nonlocal asked
        asked += 1
        return await answer(limits, *question)

    async with Proxy(redis.url) as proxy:
        timeouts = replace(PATIENT, patience_s=0.2)
        limits = RateLimits(proxy.url, new_id(), SECRET, now_s=time.monotonic, timeouts=timeouts)
        try:
            await taken(limits, "ada", 1)
            proxy.black_hole()
            monkeypatch.setattr(RateLimits, "_answer", counted)
            began_s = time.monotonic()
            for number in count():
                await limits.take(FIVE, "ada")
                if number >= 500 and asked:
                    break
            assert asked <= 1 + (time.monotonic() - began_s) / PATIENT.away_s
            assert limits._asked  # nobody waited for the answer
            assert await taken(limits, "ada", 6) == 0
        finally:
            await limits.close()


async def test_p10_redis_that_was_never_there_fails_nothing() -> None:
    limits = RateLimits("redis://127.0.0.1:1", "log", SECRET, now_s=time.monotonic)
    assert await taken(limits, "ada", 7) == 5
    await limits.close()


async def test_a_url_needs_no_port() -> None:
    """As for the bus, which the same setting is for."""
    for url in ("redis://127.0.0.1", "redis://:pass@word@127.0.0.1", "unix:///nowhere/redis.sock"):
        await RateLimits(url, "log", SECRET, now_s=time.monotonic).close()
