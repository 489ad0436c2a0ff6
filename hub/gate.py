"""A gate: `hub.turns` for coroutines of one event loop."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from hub.turns import WAITING_MAX, Turns


class Gate:
    def __init__(self, places: int, per_user: int, waiting_max: int = WAITING_MAX) -> None:
        self._turns: Turns[asyncio.Future[None]] = Turns(places, per_user, waiting_max)

    @property
    def waiting(self) -> int:
        return self._turns.waiting

    async def enter(self, user: Hashable, wait_s: float | None = None) -> None:
        """Take a place, which `leave` gives back. Raises `Crowded` at once, and `TimeoutError`
        where no turn comes within `wait_s`."""
        if not self._turns.take(user):
            async with asyncio.timeout(wait_s):
                await self._turn(user)

    def leave(self, user: Hashable) -> None:
        called = self._turns.give_back(user)
        if called is not None and not called.done():  # else it is about to give the place back
            called.set_result(None)

    @asynccontextmanager
    async def turn(self, user: Hashable, wait_s: float | None = None) -> AsyncIterator[None]:
        """Hold a place. Raises what `enter` raises."""
        await self.enter(user, wait_s)
        try:
            yield
        finally:
            self.leave(user)

    async def _turn(self, user: Hashable) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.wait(user, called)
        try:
            await called
        except BaseException:
            # Called and cancelled in one turn of the loop: the place is another one's now.
            if not self._turns.give_up(user, called):
                self.leave(user)
            raise
