"""Turns of users: so many of each at a time, and who comes later waits behind their own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hub.budget.records import UserId


class Turns:
    def __init__(self, most: int) -> None:
        self._most = most
        self._queues: dict[UserId, _Queue] = {}  # of users who have a turn, or wait for one

    @asynccontextmanager
    async def turn(self, user_id: UserId) -> AsyncIterator[None]:
        queue = self._queues.get(user_id)
        if queue is None:
            queue = self._queues[user_id] = _Queue(self._most)
        queue.length += 1
        try:
            async with queue.places:
                yield
        finally:
            queue.length -= 1
            if not queue.length:
                del self._queues[user_id]


class _Queue:
    __slots__ = ("length", "places")

    def __init__(self, most: int) -> None:
        self.places = asyncio.Semaphore(most)
        self.length = 0
