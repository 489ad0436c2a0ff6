"""Rate limits: how often something may be done in a minute.

They are counted in Redis, for all nodes together. Redis is never waited for: what it does not
answer at once, or cannot, is counted by this process alone (P10).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from hub.outage import Outage
from hub.recent import Recent
from storage.timeouts import STORAGE_TIMEOUTS, StorageTimeouts

ASKED_MAX = 16  # questions to Redis at once, each on a connection of its own
WINDOWS_MAX = 50_000  # counted here; above, the oldest is forgotten


class Limit(NamedTuple):
    """At most `most` in `window_s` seconds, which begin with the first."""

    name: str
    most: int
    window_s: int = 60


class RateLimits:
    """Counts by limit and caller.

    The caller is hashed with `secret`: no address, user id or e-mail stands in Redis. Nodes
    of one database, which `log_id` names, count together if they have the same secret. `now_s`
    is a steady clock."""

    def __init__(
        self,
        redis_url: str | None,
        log_id: str,
        secret: bytes,
        *,
        now_s: Callable[[], float],
        cluster: bool = False,
        timeouts: StorageTimeouts = STORAGE_TIMEOUTS,
    ) -> None:
        self._prefix = f"budget-hub:{log_id}:rate"
        self._secret = secret[: blake2b.MAX_KEY_SIZE]
        self._now_s = now_s
        self._timeouts = timeouts
        self._here = Windows(WINDOWS_MAX)
        self._redis = None if redis_url is None else _client(redis_url, cluster, timeouts)
        self._asked: set[asyncio.Task[float | None]] = set()
        self._ask_again_at_s = 0.0  # by the loop's clock
        self._outage = Outage(
            "rate limits are counted here", "rate limits are counted in Redis again"
        )

    async def take(self, limit: Limit, caller: str) -> float:
        """Count one more; how many seconds are missing.

        0 seconds: it is within the limit. Otherwise it is not, and can be after that time."""
        hashed = blake2b(
            caller.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=16
        ).hexdigest()
        key = f"{self._prefix}:{limit.name}:{hashed}"
        missing_s = await self._ask(limit, key)
        return self._here.take(limit, key, self._now_s()) if missing_s is None else missing_s

    async def close(self) -> None:
        for asked in self._asked:
            asked.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    async def _ask(self, limit: Limit, key: str) -> float | None:
        """What Redis says, None if it does not say it soon."""
        loop = asyncio.get_running_loop()
        if (
            self._redis is None
            or loop.time() < self._ask_again_at_s
            or len(self._asked) >= ASKED_MAX
        ):
            return None
        if self._ask_again_at_s:  # while it is away, one at a time
            self._ask_again_at_s = loop.time() + self._timeouts.away_s
        # A task of its own, which is left alone when it takes too long: a connection that is slow
        # to come up is there for the next request.
        asked = loop.create_task(self._answer(self._redis, limit, key))
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)
        await asyncio.wait([asked], timeout=self._timeouts.patience_s)
        missing_s = asked.result() if asked.done() else None
        self._ask_again_at_s = loop.time() + self._timeouts.away_s if missing_s is None else 0.0
        return missing_s

    async def _answer(self, redis: Redis | RedisCluster, limit: Limit, key: str) -> float | None:
        pipeline: Any = redis.pipeline(transaction=False)  # one key: one shard of a cluster
        pipeline.set(key, 0, nx=True, ex=limit.window_s)
        pipeline.incr(key)
        pipeline.pttl(key)
        try:
            _, count, left_ms = await pipeline.execute()
            # It ended between the commands, and began without an end; or Redis' clock was set
            # back, by which it would go on for as long as that.
            if not 0 <= left_ms <= limit.window_s * 1000:
                await redis.expire(key, limit.window_s)
                left_ms = limit.window_s * 1000
        # The last two are the driver's and uvloop's ways to say that the connection was lost.
        except (
            RedisError,
            RedisClusterException,
            OSError,
            AttributeError,
            RuntimeError,
        ) as error:
            self._outage.lost(type(error).__name__)
            return None
        self._outage.back()
        return 0.0 if count <= limit.most else max(left_ms / 1000, 0.001)


@dataclass(slots=True)
class Window:
    ends_at_s: float
    count: int = 0


class Windows:
    """Counts in memory, at most `size_max`; above, the one that began first is forgotten."""

    def __init__(self, size_max: int) -> None:
        self._windows: Recent[str, Window] = Recent(size_max)

    def __len__(self) -> int:
        return len(self._windows)

    def take(self, limit: Limit, key: str, now_s: float) -> float:
        """Count one more; how many seconds are missing."""
        while self._windows and next(iter(self._windows.values())).ends_at_s <= now_s:
            self._windows.popitem(last=False)
        window = self._windows.get(key)
        if window is None or window.ends_at_s <= now_s:
            window = self._windows[key] = Window(now_s + limit.window_s)
        window.count += 1
        return 0.0 if window.count <= limit.most else window.ends_at_s - now_s


def _client(url: str, cluster: bool, timeouts: StorageTimeouts) -> Redis | RedisCluster:
    how: dict[str, Any] = {
        "max_connections": ASKED_MAX,
        # Without this the driver tries again and again by itself.
        "retry": Retry(NoBackoff(), 0, supported_errors=()),
        "socket_connect_timeout": timeouts.redis_connect_s,
        "socket_timeout": timeouts.redis_answer_s,
    }
    if cluster:  # counts of the other shards go on while one is away
        return RedisCluster.from_url(url, require_full_coverage=False, **how)
    return Redis.from_url(url, **how)
