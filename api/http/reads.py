"""Turns of users at what has a large answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.http.requests import UserHandler, backlog_of
from hub.errors import Code, HubError
from hub.feed.turns import Turns
from hub.ports import Principal

READS_PER_USER = 2  # at a time: half of the connections to Postgres that requests have
TURN_S = 10.0


class Reads:
    """Of one process. Without turns, whoever asks for many large answers at once has them all made,
    and everybody else waits for them."""

    def __init__(self) -> None:
        self._turns = Turns(READS_PER_USER)

    @asynccontextmanager
    async def turn(self, request: Request, who: Principal) -> AsyncIterator[None]:
        """Raises `HubError`: `RATE_LIMITED` where the answers before it were not read, `BUSY` where
        no turn comes; and `ClientDisconnect` where nobody waits any more."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(TURN_S):
                    await stack.enter_async_context(self._turns.turn(who.user_id))
            except TimeoutError:
                raise HubError(Code.BUSY) from None
            if (backlog := backlog_of(request)) is not None:
                if backlog.gone:
                    raise ClientDisconnect
                backlog.asked_by(who.user_id)
            yield

    def in_turn(self, handler: UserHandler) -> UserHandler:
        @wraps(handler)
        async def handle(request: Request, who: Principal) -> Response:
            async with self.turn(request, who):
                return await handler(request, who)

        return handle
