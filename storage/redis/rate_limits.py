"""Rate limits: how often something may be done in a minute.

They are counted in Redis, for all nodes together. Redis is never waited for: what it does not
answer at once, or cannot, is counted by this process alone (P10).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from limits import RateLimitItem
from limits.aio.storage import RedisClusterStorage, RedisStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import ConnectionPool, RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from hub.outage import Outage

PATIENCE_S = 0.02  # for an answer of Redis
AWAY_S = 1.0  # between two attempts while it does not answer: one request of them has to wait
CONNECT_S = 2.0
ANSWER_S = 2.0  # after which a connection counts as dead
ASKED_MAX = 16  # questions to Redis at once, each on a connection of its own
WINDOWS_MAX = 50_000  # counted here; above, the oldest is forgotten


class RateLimits:
    """Counts by limit and caller.

    The caller is hashed with `secret`: no address, user id or e-mail stands in Redis. Nodes
    of one database, which `log_id` names, count together if they have the same secret. `now` gives
    epoch seconds."""

    def __init__(
        self,
        redis_url: str | None,
        log_id: str,
        secret: bytes,
        *,
        now: Callable[[], float],
        cluster: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._secret = secret[: blake2b.MAX_KEY_SIZE]
        self._now = now
        self._patience_s = patience_s
        self._here = FixedWindowRateLimiter(Windows(now))
        self._redis: ConnectionPool | RedisCluster | None = None
        self._shared: FixedWindowRateLimiter | None = None
        self._asked: set[asyncio.Task[float | None]] = set()
        self._ask_again_at_s = 0.0  # by the loop's clock
        self._outage = Outage(
            "rate limits are counted here", "rate limits are counted in Redis again"
        )
        if redis_url is not None:
            # Without this `retry` the driver tries again and again by itself.
            how: dict[str, Any] = {
                "max_connections": ASKED_MAX,
                "retry": Retry(NoBackoff(), 0, supported_errors=()),
                "socket_connect_timeout": CONNECT_S,
                "socket_timeout": ANSWER_S,
            }
            # The library's own reading of a URL wants a port in it, and its error quotes the
            # password; given these, it needs no URL.
            said: dict[str, Any] = {
                "implementation": "redispy",
                "key_prefix": f"budget-hub:{log_id}:rate",
            }
            if cluster:
                address: dict[str, Any] = {**parse_url(redis_url)}
                how["ssl"] = address.pop("connection_class", None) is SSLConnection
                how["require_full_coverage"] = False  # counts of the other shards go on
                storage: RedisStorage = RedisClusterStorage(
                    "async+redis+cluster://", **said, **address, **how
                )
                bridge: Any = storage.bridge
                self._redis = bridge.get_connection()
            else:
                self._redis = said["connection_pool"] = ConnectionPool.from_url(redis_url, **how)
                storage = RedisStorage("async+redis://", **said)
            self._shared = FixedWindowRateLimiter(storage)

    async def take(self, limit: RateLimitItem, whom: str) -> float:
        """Count one more; how many seconds are missing.

        0 seconds: it is within the limit. Otherwise it is not, and can be after that time."""
        key = blake2b(
            whom.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=16
        ).hexdigest()
        missing_s = await self._ask(limit, key)
        return await self._missing_s(self._here, limit, key) if missing_s is None else missing_s

    async def close(self) -> None:
        for asked in self._asked:
            asked.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    async def _ask(self, limit: RateLimitItem, key: str) -> float | None:
        """What Redis says, None if it does not say it soon."""
        loop = asyncio.get_running_loop()
        if (
            self._shared is None
            or loop.time() < self._ask_again_at_s
            or len(self._asked) >= ASKED_MAX
        ):
            return None
        if self._ask_again_at_s:  # while it is away, one at a time
            self._ask_again_at_s = loop.time() + AWAY_S
        # A task of its own, which is left alone when it takes too long: a connection that is slow
        # to come up is there for the next request.
        asked = loop.create_task(self._answer(self._shared, limit, key))
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)
        await asyncio.wait([asked], timeout=self._patience_s)
        missing_s = asked.result() if asked.done() else None
        self._ask_again_at_s = loop.time() + AWAY_S if missing_s is None else 0.0
        return missing_s

    async def _answer(
        self, limiter: FixedWindowRateLimiter, limit: RateLimitItem, key: str
    ) -> float | None:
        try:
            missing_s = await self._missing_s(limiter, limit, key)
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
        return missing_s

    async def _missing_s(
        self, limiter: FixedWindowRateLimiter, limit: RateLimitItem, key: str
    ) -> float:
        if await limiter.hit(limit, key):
            return 0.0
        window = await limiter.get_window_stats(limit, key)
        return max(window.reset_time - self._now(), 0.001)


@dataclass(slots=True)
class Window:
    ends_at_s: float
    count: int = 0


class Windows(Storage):
    """Counts in memory, `WINDOWS_MAX` of them at most.

    The library's own memory has no bound, and looks through all it holds at every request: 4 ms
    with ten thousand users (P8)."""

    STORAGE_SCHEME = None

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._windows: OrderedDict[str, Window] = OrderedDict()  # by when they began

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        window = self._current(key)
        if window is None:
            self._windows.pop(key, None)
            self._make_room()
            window = self._windows[key] = Window(self._now() + expiry)
        window.count += amount
        return window.count

    async def get(self, key: str) -> int:
        window = self._current(key)
        return 0 if window is None else window.count

    async def get_expiry(self, key: str) -> float:
        window = self._current(key)
        return self._now() if window is None else window.ends_at_s

    async def check(self) -> bool:
        return True

    async def reset(self) -> int:
        forgotten = len(self._windows)
        self._windows.clear()
        return forgotten

    async def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _current(self, key: str) -> Window | None:
        window = self._windows.get(key)
        return window if window is not None and self._now() < window.ends_at_s else None

    def _make_room(self) -> None:
        while self._windows:
            oldest = next(iter(self._windows.values()))
            if self._now() < oldest.ends_at_s and len(self._windows) < WINDOWS_MAX:
                return
            self._windows.popitem(last=False)
