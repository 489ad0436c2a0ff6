"""The bus on a real Redis."""

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from uuid import uuid4

from redis.asyncio import Redis

from hub.frames import Frame
from hub.presence import NodeId
from hub.records import BudgetId, UserId
from storage.bus import RedisBus
from storage.embedded import EmbeddedRedis
from tests.cluster import until

KILLS = 60


class Deaf:
    """A listener that does nothing."""

    def received(self, frame: Frame) -> None: ...

    def attending(
        self, budget_id: BudgetId, node_id: NodeId, users: Mapping[UserId, int], *, asks: bool
    ) -> None: ...

    def silent(self, node_id: NodeId) -> None: ...

    async def restored(self) -> None: ...


async def test_a_connection_lost_at_any_moment_never_ends_the_bus(redis: EmbeddedRedis) -> None:
    """P10. The driver answers with errors of many kinds when its connection goes between two tasks
    that use it; the bus has to come back from all of them."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    bus = RedisBus(redis.url, str(uuid4()), uuid4().bytes, jitter=chance.random)

    async def come_and_go() -> None:
        while True:
            budget_id = str(uuid4())
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
