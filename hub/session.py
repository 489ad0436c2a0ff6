"""One connection of `budget.sync.v2`: from its first frame to its close.

| state          | what it takes          | it ends when                                          |
|----------------|------------------------|-------------------------------------------------------|
| NEW            | `auth`                 | the frame comes: AUTHENTICATING; anything else, or    |
|                |                        | nothing for `AUTH_S`: closed 4401                     |
| AUTHENTICATING | nothing (not read)     | the token is good: OPEN; else closed 4401; nobody can |
|                |                        | tell within `AUTH_S`: closed 1011                     |
| OPEN           | every client frame     | the token ends or is revoked (4401), a fatal frame    |
|                |                        | (4400), a defect of ours (1011), the hub drains:      |
|                |                        | LEAVING                                               |
| LEAVING        | nothing (not read)     | the verdicts in flight are sent: closed 1012          |
| CLOSED         | nothing                | reached from everywhere, also when the peer goes      |

A session is called, it never waits: `received` acts on a frame at once. While
`IN_FLIGHT_EVENTS_MAX` events await their verdicts, or the peer does not take what was written,
nothing is read from it, and so nothing is buffered on its behalf (P8).
"""

from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, Protocol

import structlog

from hub.budget.events import EVENTS_PER_FRAME_MAX, parse_batch
from hub.budget.records import BudgetId, UserId
from hub.budget.verdicts import Verdict
from hub.errors import Code, HubError
from hub.feed.feed import Subscription
from hub.frames import client, server
from hub.frames.client import BadFrame, RequestId
from hub.frames.websocket import FRAME_BYTES_MAX
from hub.hub import Hub
from hub.limits import Bucket, cost_of, text_of
from hub.ports import Authenticator, Principal, Wire
from hub.tracing import Correlation

AUTH_S = 5.0
EXPIRING_S = 60  # `auth.expiring` comes this long before the end of the token
HEARTBEAT_S = 15.0
IN_FLIGHT_EVENTS_MAX = 400
RESTART = 1012  # close code
SUBSCRIPTIONS_MAX = 200
STRIKES_MAX = 20  # frames refused in a row by the rates, until the connection is closed
LIMITS: server.Limits = {
    "frameBytesMax": FRAME_BYTES_MAX,
    "eventsPerFrameMax": EVENTS_PER_FRAME_MAX,
    "inFlightEventsMax": IN_FLIGHT_EVENTS_MAX,
    "subscriptionsMax": SUBSCRIPTIONS_MAX,
}

_log = structlog.get_logger()


class State(Enum):
    NEW = "new"
    AUTHENTICATING = "authenticating"
    OPEN = "open"
    LEAVING = "leaving"
    CLOSED = "closed"


class Timer(Protocol):
    def cancel(self) -> None: ...


class Session:
    """`spawn` runs a coroutine in the background; `later` calls a function with its arguments after
    some seconds. `now_ms` is the time of day, for clients; `now_s` goes steadily, and everything
    here goes by it."""

    __slots__ = (
        "_authenticator",
        "_beat_at_s",
        "_bucket",
        "_connection_id",
        "_follow_at_once",
        "_following",
        "_hub",
        "_in_flight",
        "_later",
        "_now_ms",
        "_now_s",
        "_principal",
        "_reading",
        "_spawn",
        "_state",
        "_strikes",
        "_timer",
        "_user_bucket",
        "_user_id",
        "_warned",
        "_wire",
    )

    def __init__(
        self,
        hub: Hub,
        wire: Wire,
        authenticator: Authenticator,
        *,
        connection_id: str,
        now_ms: Callable[[], int],
        now_s: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        later: Callable[..., Timer],
    ) -> None:
        self._hub = hub
        self._wire = wire
        self._authenticator = authenticator
        self._connection_id = connection_id
        self._now_ms = now_ms
        self._now_s = now_s
        self._spawn = spawn
        self._later = later
        self._state = State.NEW
        self._user_id: UserId = ""
        self._principal: Principal | None = None
        self._warned = False  # of the token's end
        self._beat_at_s = 0.0
        self._timer: Timer | None = None
        self._following: dict[BudgetId, _Following] = {}
        self._in_flight = 0  # events that await their verdicts
        self._reading = True
        self._bucket = hub.rates.of_connection(now_s())
        self._user_bucket: Bucket | None = None
        self._strikes = 0  # refusals in a row
        self._follow_at_once: tuple[BudgetId, int] | None = None

    def start(
        self,
        principal: Principal | None = None,
        *,
        token: str | None = None,
        follow: tuple[BudgetId, int] | None = None,
    ) -> None:
        """Begin. `principal` is the user of the upgrade request's header, `token` what its
        subprotocols offered; without both the first frame must authenticate. `follow` is a budget
        and a key to subscribe to as soon as the session is open."""
        self._follow_at_once = follow
        self._hub.attach(self)
        if self._state is State.CLOSED:
            return
        if principal is not None:
            self._open(principal)
        elif token is not None:
            self._authenticate(token)
        else:
            self._timer = self._later(AUTH_S, self.close, Code.NOT_LOGGED_IN)

    @property
    def principal(self) -> Principal | None:
        """Who is signed in, by the latest token; None before that."""
        return self._principal

    def received(self, data: bytes, *, text: bool = True) -> None:
        """A message from the peer: text in UTF-8, or binary. A wire does not call this between
        `pause_reading` and `resume_reading`."""
        if self._state is not State.OPEN:
            if self._state in (State.CLOSED, State.LEAVING):
                return
            assert self._state is State.NEW  # during authentication the user is unknown
        try:
            if not text:
                raise BadFrame("binary: frames are text", fatal=True)
            self._act(client.parse(data), len(data))
        except BadFrame as bad:
            if bad.fatal or self._may(bad.request_id, cost_of(len(data), bad.events)):
                self._refuse(bad.request_id, Code.BAD_FRAME, bad.detail)
            if bad.fatal:
                self._close(Code.BAD_FRAME, bad.detail)
        self._read_or_not()

    def full(self) -> None:
        """More was written than the peer takes at the moment."""
        for following in self._following.values():
            following.subscription.lag()
        self._read_or_not()

    def drained(self) -> None:
        """The peer takes again what is written to it."""
        for following in list(self._following.values()):
            following.subscription.drained()
        self._read_or_not()

    def lost(self, close_code: int | None = None) -> None:
        """It is over: the peer is gone, or we closed with that code."""
        if self._state is not State.CLOSED:
            _log.info(
                "socket closed",
                connection_id=self._connection_id,
                user_id=self._user_id,
                close_code=close_code,
            )
        self._state = State.CLOSED
        self._hub.detach(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for following in list(self._following.values()):
            following.subscription.end()
        self._following.clear()

    def go_away(self, reconnect_after_ms: int) -> None:
        """The hub drains: take nothing more, and tell the client when to come back."""
        if self._state is State.OPEN:
            self._state = State.LEAVING
            self._wire.write(server.goaway(reconnect_after_ms, "deploy"))
            self._read_or_not()

    def sign_out(self) -> None:
        """The token was revoked."""
        self.close(Code.NOT_LOGGED_IN)

    def leave(self) -> None:
        """Close with 1012; what was written is sent before."""
        if self._state is not State.CLOSED:
            self._wire.close(RESTART, "restart")
            self.lost(RESTART)

    def close(self, code: Code) -> None:
        """Say why, and close with the code's close code."""
        if self._state is not State.CLOSED:
            self._refuse(None, code)
            self._close(code, code.name)

    def _refuse(
        self,
        request_id: RequestId,
        code: Code,
        detail: str | None = None,
        *,
        retry_after_ms: int | None = None,
        correlation_id: str | None = None,
    ) -> None:
        self._hub.measures.refused(code)
        # At `debug`: a client may send hundreds of bad frames a second.
        _log.debug(
            "frame refused",
            connection_id=self._connection_id,
            user_id=self._user_id,
            code=code.name,
            correlation_id=correlation_id,
        )
        self._wire.write(server.error(request_id, code, detail, retry_after_ms=retry_after_ms))

    def _close(self, code: Code, reason: str) -> None:
        assert code.close is not None
        self._wire.close(code.close, reason)
        self.lost(code.close)

    def _act(self, frame: client.ClientFrame, size_bytes: int) -> None:
        if self._state is State.NEW:
            if isinstance(frame, client.Auth):
                self._authenticate(frame.token)
            else:
                self.close(Code.NOT_LOGGED_IN)
            return
        if type(frame) is client.Events:  # `isinstance` is slow on pydantic's models
            self._submit(frame, size_bytes)
        elif not self._may(frame.id, cost_of(size_bytes)):
            pass
        elif type(frame) is client.Subscribe:
            self._follow(frame.budget_id, frame.key, frame.id)
        elif type(frame) is client.Unsubscribe:
            self._unfollow(frame)
        elif type(frame) is client.Ping:
            self._wire.write(server.pong(frame.id, self._now_ms()))
        elif type(frame) is client.Auth:
            self._spawn(self._renew(frame.token, frame.id))

    def _read_or_not(self) -> None:
        """Read from the peer exactly while there is room for what it says."""
        reading = (
            self._state not in (State.AUTHENTICATING, State.LEAVING)
            and self._in_flight < IN_FLIGHT_EVENTS_MAX
            and not self._wire.full
        )
        if reading is not self._reading and self._state is not State.CLOSED:
            self._reading = reading
            if reading:
                self._wire.resume_reading()
            else:
                self._wire.pause_reading()

    def _may(self, request_id: RequestId, cost: int, correlation_id: str | None = None) -> bool:
        """Whether the rates allow it (`_within`)."""
        now_s = self._now_s()
        missing_s = self._bucket.take(cost, now_s)
        if missing_s == 0 and self._user_bucket is not None:
            missing_s = self._user_bucket.take(cost, now_s)
        return self._within(missing_s, request_id, correlation_id)

    def _within(self, missing_s: float, request_id: RequestId, correlation_id: str | None) -> bool:
        """Whether nothing is missing; if it is, the client is told when it may come again, and one
        that does not listen is closed."""
        if missing_s == 0:
            self._strikes = 0
            return True
        self._strikes += 1
        after_ms = int(missing_s * 1000) + 1
        self._refuse(
            request_id,
            Code.RATE_LIMITED,
            retry_after_ms=after_ms,
            correlation_id=correlation_id,
        )
        if self._strikes > STRIKES_MAX:
            self.close(Code.RATE_LIMITED)
        return False

    # Who it is, and for how long.

    def _authenticate(self, token: str) -> None:
        self._state = State.AUTHENTICATING
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._later(AUTH_S, self.close, Code.UNAVAILABLE)
        self._read_or_not()
        self._spawn(self._admit(token))

    async def _admit(self, token: str) -> None:
        try:
            principal = await self._authenticator.authenticate(token)
        except HubError as error:
            self.close(error.code)
            return
        if self._state is State.AUTHENTICATING:
            self._open(principal)
            self._read_or_not()

    def _open(self, principal: Principal) -> None:
        try:
            self._hub.admit(self, principal.user_id)
        except HubError as error:
            self.close(error.code)
            return
        self._state = State.OPEN
        self._wire.signed_in(principal.user_id)
        self._user_id = principal.user_id
        self._user_bucket = self._hub.rates.of_user(principal.user_id, self._now_s())
        _log.info("socket open", connection_id=self._connection_id, user_id=self._user_id)
        self._wire.write(
            server.welcome(
                principal.user_id, self._connection_id, self._now_ms(), LIMITS, HEARTBEAT_S
            )
        )
        self._beat_at_s = self._now_s() + HEARTBEAT_S
        self._renewed(principal)
        if self._follow_at_once is not None and self._state is State.OPEN and self._may(None, 1):
            self._follow(*self._follow_at_once, None)

    async def _renew(self, token: str, request_id: RequestId) -> None:
        try:
            principal = await self._authenticator.authenticate(token)
        except HubError as error:
            if error.code.retryable:  # what the session has counts still
                self._refuse(request_id, error.code)
            else:
                self.close(Code.NOT_LOGGED_IN)
            return
        if principal.user_id != self._user_id:
            self.close(Code.NOT_LOGGED_IN)
        elif self._state is State.OPEN:
            self._renewed(principal)

    def _renewed(self, principal: Principal) -> None:
        self._principal = principal
        self._warned = False
        self._wire.write(server.auth(principal.expires_at_ms))
        self._tick()

    def _tick(self) -> None:
        """Do what is due by the clock: warn of the token's end, end with it, send the heads."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        assert self._principal is not None
        now_s, ends_at_s = self._now_s(), self._principal.ends_at_s
        if now_s >= ends_at_s:
            self.close(Code.NOT_LOGGED_IN)
            return
        expiring_s = ends_at_s - EXPIRING_S
        if not self._warned and now_s >= expiring_s:
            self._warned = True
            self._wire.write(server.auth_expiring(self._principal.expires_at_ms))
        if now_s >= self._beat_at_s:
            self._beat_at_s = now_s + HEARTBEAT_S
            if not self._wire.full:
                heads = {id: f.subscription.feed.position for id, f in self._following.items()}
                self._wire.write(server.heads(heads))
        due_s = min(self._beat_at_s, ends_at_s if self._warned else expiring_s)
        self._timer = self._later(max(due_s - now_s, 0.001), self._tick)

    # Events in.

    def _submit(self, frame: client.Events, size_bytes: int) -> None:
        correlation_id = frame.correlation_id
        cost = cost_of(size_bytes, min(len(frame.events), EVENTS_PER_FRAME_MAX))
        if not self._may(frame.id, cost, correlation_id):
            return
        try:
            events = parse_batch(frame.events, EVENTS_PER_FRAME_MAX)
        except HubError as error:
            self._refuse(frame.id, error.code, error.detail, correlation_id=correlation_id)
            return
        if text := text_of(events, size_bytes):
            now_s = self._now_s()
            missing_s = self._hub.rates.of_text(self._user_id, now_s).take(text, now_s)
            if not self._within(missing_s, frame.id, correlation_id):
                return
        self._in_flight += len(events)
        answer = _Answer(self, frame.id, len(events), correlation_id)
        correlation = None if correlation_id is None else Correlation(correlation_id, shared=True)
        self._hub.submit(self._user_id, events, frame.mode, answer, correlation)

    def answered(self, request_id: RequestId, events: int, verdicts: list[Verdict]) -> None:
        """The verdicts of events that were in flight."""
        self._in_flight -= events
        if self._state is not State.CLOSED:
            self._wire.write_soon(server.results(request_id, verdicts))
            if not self._reading:
                self._read_or_not()

    def failed(self, error: BaseException, correlation_id: str | None) -> None:
        """A defect of ours prevented verdicts."""
        _log.error(
            "frame failed",
            connection_id=self._connection_id,
            user_id=self._user_id,
            correlation_id=correlation_id,
            exc_info=error,
        )
        self.close(Code.INTERNAL_SERVER_ERROR)

    # Events out.

    def _follow(self, budget_id: BudgetId, key: int, request_id: RequestId) -> None:
        """Subscribe to a budget; subscribing again replaces the subscription."""
        before = self._following.pop(budget_id, None)
        if before is not None:
            before.subscription.end()
        elif len(self._following) >= SUBSCRIPTIONS_MAX:
            detail = f"at most {SUBSCRIPTIONS_MAX} subscriptions"
            self._refuse(request_id, Code.BAD_REQUEST, detail)
            return
        following = _Following(
            self._wire, self._following, self._hub, budget_id, request_id, self.close
        )
        self._following[budget_id] = following
        following.subscription = self._hub.feeds.subscribe(self._user_id, budget_id, key, following)

    def _unfollow(self, frame: client.Unsubscribe) -> None:
        following = self._following.pop(frame.budget_id, None)
        if following is not None:
            following.subscription.end()
        self._wire.write(server.unsubscribed(frame.id, frame.budget_id))


class _Answer:
    """Brings the verdicts of one frame to its session; see `hub.committer.Answer`."""

    __slots__ = ("_correlation_id", "_events", "_request_id", "_session")

    def __init__(
        self,
        session: Session,
        request_id: RequestId,
        events: int,
        correlation_id: str | None,
    ) -> None:
        self._session: Session | None = session
        self._request_id = request_id
        self._events = events
        self._correlation_id = correlation_id

    def done(self) -> bool:
        return self._session is None

    def set_result(self, verdicts: list[Verdict]) -> None:
        self._taken().answered(self._request_id, self._events, verdicts)

    def set_exception(self, error: BaseException) -> None:
        self._taken().failed(error, self._correlation_id)

    def _taken(self) -> Session:
        session, self._session = self._session, None
        assert session is not None
        return session


class _Following:
    """What a socket makes of one subscription; see `hub.feed.feed.Follower`."""

    attends = True
    __slots__ = (
        "_all",
        "_close",
        "_hub",
        "_request_id",
        "_wire",
        "budget_id",
        "subscription",
        "write",
    )
    subscription: Subscription

    def __init__(
        self,
        wire: Wire,
        all_of_session: "dict[BudgetId, _Following]",
        hub: Hub,
        budget_id: BudgetId,
        request_id: RequestId,
        close: Callable[[Code], None],
    ) -> None:
        self._close = close
        self._wire = wire
        self._all = all_of_session
        self._hub = hub
        self._request_id = request_id
        self.budget_id = budget_id
        self.write = wire.write_open  # the subscription ends before the wire does

    @property
    def full(self) -> bool:
        return self._wire.full

    def joined(self, key: int, head: int) -> None:
        self._wire.write(
            server.subscribed(self._request_id, self.budget_id, key, head, self._hub.log_id)
        )

    def refused(self, code: Code) -> None:
        self._forget()
        if code is Code.INTERNAL_SERVER_ERROR:
            self._close(code)  # an `error`, which is not to be tried again, would end it for good
            return
        self._hub.measures.refused(code)
        self._wire.write(server.error(self._request_id, code))

    def ended(self, code: Code) -> None:
        self._forget()
        self._wire.write(server.unsubscribed(None, self.budget_id, code))

    def _forget(self) -> None:
        if self._all.get(self.budget_id) is self:
            del self._all[self.budget_id]
