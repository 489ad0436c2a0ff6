"""One connection of `budget.sync.v1`: from its first frame to its close.

| state  | what it takes             | it ends when                                            |
|--------|---------------------------|---------------------------------------------------------|
| NEW    | `auth`, within `AUTH_S`   | a good token: OPEN; anything else: closed 4401          |
| OPEN   | every client frame        | the peer goes, the token ends (4401), a fatal frame     |
|        |                           | (4400), a defect of ours (1011), the hub closes (1012)  |
| CLOSED | nothing                   |                                                         |

The session reads one frame, acts on it, and only then reads the next. It stops reading while
`IN_FLIGHT_FRAMES_MAX` frames of events await their verdicts, or while the peer does not take what
was written: nothing is buffered on its behalf (P8).
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum
from functools import partial

import structlog

from hub import frames
from hub.errors import Code, HubError
from hub.events import EVENTS_PER_FRAME_MAX, parse_batch
from hub.feed import Subscription
from hub.frames import FRAME_BYTES_MAX, BadFrame, RequestId
from hub.hub import Hub
from hub.ports import Authenticator, Principal, Wire
from hub.records import BudgetId, UserId
from hub.verdicts import Verdict

AUTH_S = 5.0
EXPIRING_S = 60  # `auth.expiring` comes this long before the end of the token
HEARTBEAT_S = 15.0
IN_FLIGHT_FRAMES_MAX = 16
SUBSCRIPTIONS_MAX = 200
LIMITS = {
    "frameBytesMax": FRAME_BYTES_MAX,
    "eventsPerFrameMax": EVENTS_PER_FRAME_MAX,
    "inFlightFramesMax": IN_FLIGHT_FRAMES_MAX,
    "subscriptionsMax": SUBSCRIPTIONS_MAX,
}

_log = structlog.get_logger()


Receive = Callable[[], Awaitable[bytes | str | None]]


class State(Enum):
    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class Session:
    def __init__(
        self,
        hub: Hub,
        wire: Wire,
        authenticator: Authenticator,
        *,
        connection_id: str,
        now_ms: Callable[[], int],
    ) -> None:
        self._hub = hub
        self._wire = wire
        self._authenticator = authenticator
        self._now_ms = now_ms
        self._state = State.NEW
        self._connection_id = connection_id
        self._user_id: UserId = ""
        self._expires_at_ms = 0
        self._following: dict[BudgetId, _Following] = {}
        self._in_flight = 0
        self._room = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._beat_at_ms = 0
        self._warned = False

    async def run(
        self,
        receive: Receive,
        principal: Principal | None = None,
        *,
        token: str | None = None,
        follow: tuple[BudgetId, int] | None = None,
    ) -> None:
        """Serve the connection until either side ends it. `receive` gives the next message, None
        when the peer is gone. `principal` is whom the upgrade request's header named, `token` what
        its subprotocols offered; without both the first frame must authenticate. `follow` is a
        budget and a key to subscribe to at once."""
        try:
            if principal is None:
                principal = await self._first(receive, token)
            if principal is not None:
                self._open(principal)
                if follow is not None:
                    self.follow(*follow)
                await self._serve(receive)
        except Exception:
            self.close(Code.INTERNAL_SERVER_ERROR)
            raise
        finally:
            self._end()

    def follow(self, budget_id: BudgetId, key: int, request_id: RequestId = None) -> None:
        """Subscribe to a budget; subscribing again replaces the subscription."""
        before = self._following.pop(budget_id, None)
        if before is not None:
            before.subscription.end()
        elif len(self._following) >= SUBSCRIPTIONS_MAX:
            detail = f"at most {SUBSCRIPTIONS_MAX} subscriptions"
            self._wire.write(frames.error(request_id, Code.BAD_REQUEST, detail))
            return
        following = _Following(self._wire, self._following, self._hub.log_id, budget_id, request_id)
        self._following[budget_id] = following
        following.subscription = self._hub.subscribe(self._user_id, budget_id, key, following)

    def close(self, code: Code) -> None:
        """Say why, and close with the code's close code."""
        if self._state is not State.CLOSED:
            assert code.close is not None
            self._state = State.CLOSED
            self._wire.write(frames.error(None, code))
            self._wire.close(code.close, code.name)

    async def _first(self, receive: Receive, token: str | None) -> Principal | None:
        """Who it is, by the offered token or by the first frame; None where that ended it."""
        try:
            async with asyncio.timeout(AUTH_S):
                if token is not None:
                    return await self._authenticator.authenticate(token)
                text = await receive()
                if text is None:
                    return None
                frame = frames.parse(text)
                if not isinstance(frame, frames.Auth):
                    raise HubError(Code.NOT_LOGGED_IN)
                return await self._authenticator.authenticate(frame.token)
        except (HubError, TimeoutError):
            self.close(Code.NOT_LOGGED_IN)
        except BadFrame as bad:
            self._refuse(bad)
            self.close(Code.BAD_FRAME)
        return None

    def _open(self, principal: Principal) -> None:
        self._state = State.OPEN
        self._user_id = principal.user_id
        self._wire.write(
            frames.welcome(
                principal.user_id, self._connection_id, self._now_ms(), LIMITS, HEARTBEAT_S
            )
        )
        self._beat_at_ms = self._now_ms() + int(HEARTBEAT_S * 1000)
        self._renewed(principal)

    async def _serve(self, receive: Receive) -> None:
        while self._state is State.OPEN:
            text = await receive()
            if text is None:
                return
            try:
                await self._act(frames.parse(text))
            except BadFrame as bad:
                self._refuse(bad)
            while self._in_flight >= IN_FLIGHT_FRAMES_MAX:
                self._room.clear()
                await self._room.wait()
            await self._wire.drained()

    async def _act(self, frame: frames.ClientFrame) -> None:
        match frame:
            case frames.Events():
                self._submit(frame)
            case frames.Subscribe():
                self.follow(frame.budget_id, frame.key, frame.id)
            case frames.Unsubscribe():
                self._unfollow(frame)
            case frames.Ping():
                self._wire.write(frames.pong(frame.id, self._now_ms()))
            case frames.Auth():
                await self._renew(frame)

    def _submit(self, frame: frames.Events) -> None:
        try:
            events = parse_batch(frame.events, EVENTS_PER_FRAME_MAX)
        except HubError as error:
            self._wire.write(frames.error(frame.id, error.code, error.detail))
            return
        self._in_flight += 1
        answer = self._hub.submit(self._user_id, events, frame.mode)
        answer.add_done_callback(partial(self._answer, frame.id))

    def _answer(self, request_id: RequestId, answer: "asyncio.Future[list[Verdict]]") -> None:
        self._in_flight -= 1
        self._room.set()
        if answer.exception() is not None:
            self.close(Code.INTERNAL_SERVER_ERROR)
        elif self._state is State.OPEN:
            self._wire.write(frames.results(request_id, answer.result()))

    def _unfollow(self, frame: frames.Unsubscribe) -> None:
        following = self._following.pop(frame.budget_id, None)
        if following is not None:
            following.subscription.end()
        self._wire.write(frames.unsubscribed(frame.id, frame.budget_id))

    async def _renew(self, frame: frames.Auth) -> None:
        try:
            principal = await self._authenticator.authenticate(frame.token)
        except HubError:
            self.close(Code.NOT_LOGGED_IN)
            return
        if principal.user_id != self._user_id:
            self.close(Code.NOT_LOGGED_IN)
        else:
            self._renewed(principal)

    def _renewed(self, principal: Principal) -> None:
        self._expires_at_ms = principal.expires_at_ms
        self._warned = False
        self._wire.write(frames.auth(principal.expires_at_ms))
        self._tick()

    def _tick(self) -> None:
        """Do what is due by the clock: warn of the token's end, end with it, send the heads."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_ms = self._now_ms()
        if now_ms >= self._expires_at_ms:
            self.close(Code.NOT_LOGGED_IN)
            return
        expiring_ms = self._expires_at_ms - EXPIRING_S * 1000
        if not self._warned and now_ms >= expiring_ms:
            self._warned = True
            self._wire.write(frames.auth_expiring(self._expires_at_ms))
        if now_ms >= self._beat_at_ms:
            self._beat_at_ms = now_ms + int(HEARTBEAT_S * 1000)
            self._wire.write(frames.heads({f.budget_id: f.head for f in self._following.values()}))
        due_ms = min(self._beat_at_ms, self._expires_at_ms if self._warned else expiring_ms)
        delay_s = max(due_ms - now_ms, 1) / 1000
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def drained(self) -> None:
        """The peer takes again what is written to it."""
        for following in list(self._following.values()):
            following.subscription.drained()

    def _end(self) -> None:
        self._state = State.CLOSED
        if self._timer is not None:
            self._timer.cancel()
        for following in self._following.values():
            following.subscription.end()
        self._following.clear()

    def _refuse(self, bad: BadFrame) -> None:
        self._wire.write(frames.error(bad.request_id, Code.BAD_FRAME, bad.detail))
        if bad.fatal:
            self._state = State.CLOSED
            assert Code.BAD_FRAME.close is not None
            self._wire.close(Code.BAD_FRAME.close, bad.detail)


class _Following:
    """What a socket makes of one subscription; see `hub.feed.Follower`."""

    __slots__ = ("_all", "_log_id", "_request_id", "_wire", "budget_id", "subscription")
    subscription: Subscription

    def __init__(
        self,
        wire: Wire,
        all_of_session: "dict[BudgetId, _Following]",
        log_id: str,
        budget_id: BudgetId,
        request_id: RequestId,
    ) -> None:
        self._wire = wire
        self._all = all_of_session
        self._log_id = log_id
        self._request_id = request_id
        self.budget_id = budget_id

    @property
    def head(self) -> int:
        return self.subscription.feed.position

    @property
    def full(self) -> bool:
        return self._wire.full

    def write(self, data: bytes) -> None:
        self._wire.write(data)

    def joined(self, key: int, head: int) -> None:
        self._wire.write(
            frames.subscribed(self._request_id, self.budget_id, key, head, self._log_id)
        )

    def refused(self, code: Code) -> None:
        self._forget()
        self._wire.write(frames.error(self._request_id, code))

    def ended(self, code: Code) -> None:
        self._forget()
        self._wire.write(frames.unsubscribed(None, self.budget_id, code))

    def _forget(self) -> None:
        if self._all.get(self.budget_id) is self:
            del self._all[self.budget_id]
