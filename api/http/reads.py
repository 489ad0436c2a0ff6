"""Turns of users at what has a large answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import wraps

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.http.requests import UserHandler, backlog_of
from hub.errors import Code, HubError
from hub.gate import Gate
from hub.ports import Principal
from hub.turns import Crowded

READS = 4  # at a time: as many as requests have connections to Postgres
READS_PER_USER = 2
TURN_S = 10.0


class Reads:
    """Of one process. Without turns, whoever asks for many large answers at once has them all made,
    and everybody else waits for them."""

    def __init__(self) -> None:
        self._gate = Gate(READS, READS_PER_USER)

    @asynccontextmanager
    async def turn(self, request: Request, who: Principal) -> AsyncIterator[None]:
        """Raises `HubError`: `RATE_LIMITED` where the answers before it were not read, `BUSY` where
        no turn comes; and `ClientDisconnect` where nobody waits any more."""
        try:
            await self._gate.enter(who.user_id, TURN_S)
        except (Crowded, TimeoutError):
            raise HubError(Code.BUSY) from None
        try:
            if (backlog := backlog_of(request)) is not None:
                if backlog.gone:
                    raise ClientDisconnect
                backlog.asked_by(who.user_id)
            yield
        finally:
            self._gate.leave(who.user_id)

    def in_turn(self, handler: UserHandler) -> UserHandler:
        @wraps(handler)
        async def handle(request: Request, who: Principal) -> Response:
            async with self.turn(request, who):
                return await handler(request, who)

        return handle
