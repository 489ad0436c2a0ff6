"""A session by hand, without a loop: every row of the table at the top of `hub/session.py`.

Hub, wire, clock, timers and authenticator are fakes; a test says what happens, and looks at what
the session writes, what it hands to the hub, whether it reads and how it closes.
"""

from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from itertools import count
from typing import Any, cast

import orjson
import pytest
from structlog.testing import capture_logs

from hub.budget.verdicts import Verdict
from hub.committer import Answer
from hub.errors import Code, HubError
from hub.frames.websocket import framed, texts
from hub.hub import Hub
from hub.limits import COST_BYTES, TEXT_BURST_S, TEXT_PER_EVENT, Rates
from hub.measures import Measures
from hub.ports import Principal
from hub.session import (
    AUTH_S,
    EXPIRING_S,
    HEARTBEAT_S,
    IN_FLIGHT_EVENTS_MAX,
    STRIKES_MAX,
    SUBSCRIPTIONS_MAX,
    Session,
)
from hub.tracing import Correlation

Json = dict[str, Any]

NOW_MS = 1_795_257_600_000
TOKEN_S = 900  # how long a token of these tests counts
LOG_ID = "11111111-1111-4111-8111-111111111111"

_numbers = count(1)


def new_id() -> str:
    return f"00000000-0000-4000-b000-{next(_numbers):012x}"


def events_frame(request_id: int, events: int = 1, **more: Any) -> Json:
    budget_id = new_id()
    of_event = {"eventType": "budget.delete", "budgetId": budget_id, "version": 1, "when": 1}
    batch = [{"eventId": new_id(), **of_event} for _ in range(events)]
    return {"type": "events", "id": request_id, "events": batch, **more}


def subscribe_frame(budget_id: str, request_id: int = 1, key: int = 0) -> Json:
    return {"type": "subscribe", "id": request_id, "budgetId": budget_id, "key": key}


PING = {"type": "ping"}


class Clock:
    """The time, and what is to be called later."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.set_ms = 0  # by so much the time of day was changed
        self.timers: list[Timer] = []

    @property
    def wall_ms(self) -> int:
        return self.now_ms + self.set_ms

    @property
    def now_s(self) -> float:
        return self.now_ms / 1000

    def later(self, delay_s: float, call: Callable[..., None], *args: Any) -> "Timer":
        timer = Timer(self.now_ms + delay_s * 1000, call, args)
        self.timers.append(timer)
        return timer

    @property
    def waiting(self) -> list["Timer"]:
        return [timer for timer in self.timers if not timer.over]

    def advance(self, seconds: float) -> None:
        """Let so much time pass, calling what becomes due at its time."""
        end_ms = self.now_ms + seconds * 1000
        while due := [timer for timer in self.waiting if timer.due_ms <= end_ms]:
            first = min(due, key=lambda timer: timer.due_ms)
            self.now_ms = max(self.now_ms, int(first.due_ms))
            first.over = True
            first.call(*first.args)
        self.now_ms = int(end_ms)


class Timer:
    def __init__(self, due_ms: float, call: Callable[..., None], args: Sequence[Any]) -> None:
        self.due_ms, self.call, self.args = due_ms, call, args
        self.over = False

    def cancel(self) -> None:
        self.over = True


class Posted:
    """What was posted to the hub, answered by the test."""

    def __init__(self, user_id: str, events: Sequence[Any], mode: str, answer: Answer) -> None:
        self.user_id, self.events, self.mode = user_id, events, mode
        self._answer = answer

    def settle(self) -> None:
        self._answer.set_result(
            [
                Verdict(event.event_id, None, None, None, "rejected", error=Code.BUDGET_NOT_EXISTS)
                for event in self.events
            ]
        )
        assert self._answer.done()

    def fail(self) -> None:
        self._answer.set_exception(ZeroDivisionError())
        assert self._answer.done()


class Feed:
    position = 7


class Subscription:
    """What the hub gives for a subscription: it remembers what it was told."""

    def __init__(self, user_id: str, budget_id: str, key: int, follower: Any) -> None:
        self.user_id, self.budget_id, self.key, self.follower = user_id, budget_id, key, follower
        self.feed = Feed()
        self.told: list[str] = []

    def lag(self) -> None:
        self.told.append("lag")

    def drained(self) -> None:
        self.told.append("drained")

    def end(self) -> None:
        self.told.append("end")


class FakeHub:
    log_id = LOG_ID

    def __init__(self) -> None:
        self.feeds = self
        self.rates = Rates(100_000, 100_000)
        self.measures = Measures()
        self.ended = False
        self.crowded = False
        self.connections: set[Session] = set()
        self.posted: list[Posted] = []
        self.subscriptions: list[Subscription] = []

    def attach(self, session: Session) -> None:
        self.connections.add(session)
        if self.ended:
            session.leave()

    def admit(self, session: Session, user_id: str) -> None:
        if self.crowded:
            raise HubError(Code.QUOTA_EXCEEDED)

    def detach(self, session: Session) -> None:
        self.connections.discard(session)

    def submit(
        self,
        user_id: str,
        events: Sequence[Any],
        mode: str,
        answer: Answer,
        correlation: Correlation | None,
    ) -> None:
        assert not answer.done()
        self.posted.append(Posted(user_id, events, mode, answer))

    def subscribe(self, user_id: str, budget_id: str, key: int, follower: Any) -> Subscription:
        self.subscriptions.append(Subscription(user_id, budget_id, key, follower))
        return self.subscriptions[-1]


class FakeWire:
    """`tells`: whether a wire that is closed says so to its session at once, or never. What comes
    while it is not to read stays `unread`."""

    def __init__(self, *, tells: bool) -> None:
        self.full = False
        self.reading = True
        self.trusted = False
        self.closed: tuple[int, str] | None = None
        self.written: list[Json] = []
        self.session: Session | None = None
        self.unread: list[bytes] = []
        self._tells = tells

    def bring(self) -> None:
        assert self.session is not None
        while self.unread and self.reading:
            self.session.received(self.unread.pop(0))

    def write(self, data: bytes) -> None:
        if self.closed is None:
            self.written += [orjson.loads(text) for text in texts(data)]

    def write_soon(self, data: bytes) -> None:
        self.write(data)

    @property
    def write_open(self) -> Callable[[bytes], None]:
        return self.write

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def signed_in(self, user_id: str) -> None:
        self.trusted = True

    def close(self, code: int, reason: str = "") -> None:
        if self.closed is None:
            self.closed = (code, reason)
            if self._tells and self.session is not None:
                self.session.lost(code)


class Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


def whose(user_id: str, seconds: float, clock: Clock) -> Principal:
    """A token that was issued now."""
    expires_at_ms = clock.wall_ms + int(1000 * seconds)
    return Principal(user_id, expires_at_ms, clock.wall_ms, clock.now_s + seconds)


class FakeAuthenticator:
    """A token `ann` or `ann:30` is Ann's, for `TOKEN_S` or 30 seconds; a `bad` one is nobody's;
    whose the `unknown` one is cannot be told now."""

    def __init__(self, clock: Clock) -> None:
        self.slow = False
        self._clock = clock

    async def authenticate(self, token: str, address: str = "") -> Principal:
        if self.slow:
            await Pause()
        if token == "bad":
            raise HubError(Code.NOT_LOGGED_IN)
        if token == "unknown":
            raise HubError(Code.UNAVAILABLE)
        user_id, _, seconds = token.partition(":")
        return whose(user_id, int(seconds or TOKEN_S), self._clock)


class Bench:
    """One hub, and connections to it."""

    def __init__(self, *, wires_tell: bool) -> None:
        self.hub = FakeHub()
        self.clock = Clock()
        self.authenticator = FakeAuthenticator(self.clock)
        self._wires_tell = wires_tell
        self._suspended: list[Coroutine[Any, Any, None]] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            work.send(None)
        except StopIteration:
            return
        self._suspended.append(work)

    def go_on(self) -> None:
        """What was suspended."""
        suspended, self._suspended = self._suspended, []
        for work in suspended:
            self.spawn(work)

    def close(self) -> None:
        for work in self._suspended:
            work.close()

    def connect(self) -> "Peer":
        return Peer(self, FakeWire(tells=self._wires_tell))

    def signed_in(self, token: str = "ann") -> "Peer":
        """A connection that is open, its greeting read."""
        peer = self.connect()
        peer.session.start(token=token)
        assert [frame["type"] for frame in peer.read()] == ["welcome", "auth"]
        return peer


class Peer:
    """A client's side of one connection."""

    def __init__(self, bench: Bench, wire: FakeWire) -> None:
        self.wire = wire
        self.session = wire.session = Session(
            cast(Hub, bench.hub),
            wire,
            bench.authenticator,
            connection_id="the-connection",
            now_ms=lambda: bench.clock.wall_ms,
            now_s=lambda: bench.clock.now_s,
            spawn=bench.spawn,
            later=bench.clock.later,
        )

    def send(self, frame: Json) -> None:
        self.wire.unread.append(orjson.dumps(frame))
        self.wire.bring()

    def read(self) -> list[Json]:
        """What was written since the last time."""
        self.wire.bring()
        written, self.wire.written = self.wire.written, []
        return written

    def fill(self) -> None:
        self.wire.full = True
        self.session.full()

    def drain(self) -> None:
        self.wire.full = False
        self.session.drained()

    @property
    def close_code(self) -> int | None:
        return None if self.wire.closed is None else self.wire.closed[0]


@pytest.fixture(params=[True, False], ids=["told", "not-told"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """With both kinds of wires that there may be: `api.sync.wire` tells its session at once that it
    is closed, another may never."""
    bench = Bench(wires_tell=request.param)
    yield bench
    bench.close()


@pytest.fixture
def peer(bench: Bench) -> Peer:
    return bench.signed_in()


def error_of(frame: Json) -> str:
    assert frame["type"] == "error"
    code: str = frame["error"]["message"]
    return code


def assert_over(bench: Bench, peer: Peer) -> None:
    """Nothing goes in or out any more, and nothing of the session is left."""
    peer.read()
    for frame in ({"type": "auth", "token": "ann"}, PING, events_frame(1), {"type": "nonsense"}):
        peer.send(frame)
    peer.session.go_away(1)
    peer.session.leave()
    peer.session.close(Code.INTERNAL_SERVER_ERROR)
    closed = peer.wire.closed
    bench.clock.advance(10 * TOKEN_S)
    assert peer.read() == []
    assert peer.wire.closed == closed
    assert bench.hub.posted == []
    assert peer.session not in bench.hub.connections
    assert all("end" in subscription.told for subscription in bench.hub.subscriptions)


# NEW


@pytest.mark.parametrize("way", ["header", "subprotocol", "frame"])
def test_p20_new_a_user_with_too_many_connections_is_closed_4429(bench: Bench, way: str) -> None:
    bench.hub.crowded = True
    peer = bench.connect()
    if way == "header":
        peer.session.start(whose("ann", 1, bench.clock))
    else:
        peer.session.start(token="ann" if way == "subprotocol" else None)
    if way == "frame":
        peer.send({"type": "auth", "token": "ann"})
    assert [error_of(frame) for frame in peer.read()] == ["QUOTA_EXCEEDED"]
    assert peer.close_code == 4429
    assert not peer.wire.trusted
    assert_over(bench, peer)


def test_p8_new_the_wire_learns_that_the_user_is_known(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start()
    assert not peer.wire.trusted
    peer.send({"type": "auth", "token": "ann"})
    assert peer.wire.trusted


def test_new_a_token_in_the_first_frame_signs_in(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start()
    assert peer.read() == []
    bench.clock.advance(AUTH_S - 0.1)
    peer.send({"type": "auth", "token": "ann"})
    welcome, auth = peer.read()
    assert (welcome["type"], welcome["userId"], auth["type"]) == ("welcome", "ann", "auth")
    bench.clock.advance(AUTH_S)
    assert peer.close_code is None


@pytest.mark.parametrize(
    "frame",
    [
        PING,
        events_frame(1),
        subscribe_frame(new_id()),
        {"type": "unsubscribe", "budgetId": new_id()},
    ],
    ids=lambda frame: frame["type"],
)
def test_new_any_other_frame_first_closes_4401(bench: Bench, frame: Json) -> None:
    peer = bench.connect()
    peer.session.start()
    peer.send(frame)
    assert [error_of(each) for each in peer.read()] == ["NOT_LOGGED_IN"]
    assert peer.close_code == 4401
    assert bench.hub.subscriptions == []
    assert_over(bench, peer)


def test_new_nothing_for_five_seconds_closes_4401(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start()
    bench.clock.advance(4.9)
    assert peer.close_code is None
    bench.clock.advance(0.1)
    assert [error_of(each) for each in peer.read()] == ["NOT_LOGGED_IN"]
    assert peer.close_code == 4401
    assert_over(bench, peer)


def test_new_no_frame_at_all_closes_4400(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start()
    peer.session.received(b"hello")
    assert [error_of(each) for each in peer.read()] == ["BAD_FRAME"]
    assert peer.close_code == 4400
    assert_over(bench, peer)


def test_new_a_peer_that_goes_leaves_nothing(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start()
    peer.session.lost(1006)
    assert bench.clock.waiting == []
    assert_over(bench, peer)


# AUTHENTICATING


def test_authenticating_a_bad_token_closes_4401(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start(token="bad")
    assert [error_of(each) for each in peer.read()] == ["NOT_LOGGED_IN"]
    assert peer.close_code == 4401
    assert_over(bench, peer)


def test_authenticating_a_token_that_cannot_be_verified_now_closes_1011(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start(token="unknown")
    assert [error_of(each) for each in peer.read()] == ["UNAVAILABLE"]
    assert peer.close_code == 1011
    assert_over(bench, peer)


def test_authenticating_nothing_is_read_until_it_is_known_who_it_is(bench: Bench) -> None:
    bench.authenticator.slow = True
    peer = bench.connect()
    peer.session.start()
    assert peer.wire.reading
    peer.send({"type": "auth", "token": "ann"})
    assert not peer.wire.reading
    assert peer.read() == []
    bench.go_on()
    assert peer.wire.reading
    assert [frame["type"] for frame in peer.read()] == ["welcome", "auth"]


@pytest.mark.parametrize("where", ["frame", "subprotocol"])
def test_p9_authenticating_what_came_right_behind_the_token_is_nobodys(
    bench: Bench, where: str
) -> None:
    """A client that does not wait for `welcome`: its frames may arrive in one read with the token.
    Until it is known whose they are, they are not acted on."""
    bench.authenticator.slow = True
    peer = bench.connect()
    if where == "frame":
        peer.session.start()
        peer.send({"type": "auth", "token": "ann"})
    else:
        peer.session.start(token="ann")
    peer.send(events_frame(1))
    peer.send(subscribe_frame(new_id(), 2))
    peer.send({"type": "ping", "id": 3})
    assert bench.hub.posted == []
    assert bench.hub.subscriptions == []
    assert peer.read() == []
    bench.go_on()
    assert peer.read()[-1]["type"] == "pong"
    assert [answer.user_id for answer in bench.hub.posted] == ["ann"]
    assert [subscription.user_id for subscription in bench.hub.subscriptions] == ["ann"]


def test_p9_authenticating_a_wire_that_brings_frames_nevertheless_is_a_defect(bench: Bench) -> None:
    bench.authenticator.slow = True
    peer = bench.connect()
    peer.session.start(token="ann")
    with pytest.raises(AssertionError):
        peer.session.received(orjson.dumps(events_frame(1)))
    assert bench.hub.posted == []


@pytest.mark.parametrize("where", ["frame", "subprotocol"])
def test_authenticating_is_bounded_and_does_not_blame_the_token(bench: Bench, where: str) -> None:
    """4401 would tell the client to get another one, and that might wait as long."""
    bench.authenticator.slow = True
    peer = bench.connect()
    if where == "frame":
        peer.session.start()
        bench.clock.advance(AUTH_S - 1)
        peer.send({"type": "auth", "token": "ann"})
        bench.clock.advance(AUTH_S - 1)
        assert peer.close_code is None
    else:
        peer.session.start(token="ann")
    bench.clock.advance(AUTH_S)
    assert peer.close_code == 1011
    peer.read()
    bench.go_on()
    assert peer.read() == []
    assert_over(bench, peer)


def test_authenticating_a_peer_that_goes_is_not_welcomed(bench: Bench) -> None:
    bench.authenticator.slow = True
    peer = bench.connect()
    peer.session.start(token="ann")
    peer.session.lost(1006)
    bench.go_on()
    assert peer.read() == []
    assert_over(bench, peer)


# The time of day is changed

HOURS_MS = 5 * 3600 * 1000


@pytest.mark.parametrize("set_ms", [HOURS_MS, -HOURS_MS])
def test_p10_a_clock_that_is_set_ends_no_session_and_stops_no_heartbeat(
    bench: Bench, set_ms: int
) -> None:
    peer = bench.signed_in()
    bench.clock.set_ms = set_ms
    bench.clock.advance(HEARTBEAT_S)
    assert [frame["type"] for frame in peer.read()] == ["heads"]
    peer.send({"type": "ping"})
    assert peer.read() == [{"type": "pong", "serverTime": bench.clock.wall_ms}]
    bench.clock.advance(TOKEN_S - HEARTBEAT_S - 1)
    assert peer.close_code is None
    expiring = [frame for frame in peer.read() if frame["type"] == "auth.expiring"]
    assert expiring == [{"type": "auth.expiring", "expiresAt": NOW_MS + 1000 * TOKEN_S}]
    bench.clock.advance(1)  # and none lives longer
    assert peer.close_code == 4401


@pytest.mark.parametrize("set_ms", [HOURS_MS, -HOURS_MS])
def test_p10_a_clock_that_is_set_limits_nobody(bench: Bench, set_ms: int) -> None:
    peer = bench.signed_in()
    while True:
        peer.send({"type": "ping"})
        [frame] = peer.read()
        if frame["type"] == "error":
            break
    bench.clock.set_ms = set_ms
    peer.send({"type": "ping"})  # it gives nothing either
    assert [frame["type"] for frame in peer.read()] == ["error"]
    bench.clock.advance(1)
    peer.send({"type": "ping"})
    assert [frame["type"] for frame in peer.read()] == ["pong"]


# OPEN: the greeting, the clock


def test_open_the_welcome_says_who_and_within_which_limits(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start(whose("ann", TOKEN_S, bench.clock))
    assert peer.read() == [
        {
            "type": "welcome",
            "userId": "ann",
            "connectionId": "the-connection",
            "serverTime": NOW_MS,
            "limits": {
                "frameBytesMax": 256 * 1024,
                "eventsPerFrameMax": 100,
                "inFlightEventsMax": 400,
                "subscriptionsMax": 200,
            },
            "heartbeatS": 15.0,
        },
        {"type": "auth", "expiresAt": NOW_MS + 1000 * TOKEN_S},
    ]
    assert peer.session in bench.hub.connections


def test_open_a_subscription_asked_for_at_the_start_stands_at_once(bench: Bench) -> None:
    peer = bench.connect()
    budget_id = new_id()
    peer.session.start(token="ann", follow=(budget_id, 3))
    [subscription] = bench.hub.subscriptions
    assert (subscription.user_id, subscription.budget_id, subscription.key) == ("ann", budget_id, 3)
    peer.read()
    subscription.follower.joined(3, 9)
    told = {"type": "subscribed", "budgetId": budget_id, "key": 3, "head": 9, "logId": LOG_ID}
    assert peer.read() == [told]


def test_p20_open_following_at_once_counts_like_a_frame(bench: Bench) -> None:
    bench.hub.rates = Rates(1, 0.1)
    peer = bench.connect()
    peer.session.start(token="ann", follow=(new_id(), 0))
    assert len(bench.hub.subscriptions) == 1
    again = bench.connect()
    again.session.start(token="ann", follow=(new_id(), 0))
    assert [error_of(frame) for frame in again.read()[2:]] == ["RATE_LIMITED"]
    assert len(bench.hub.subscriptions) == 1


def test_open_heads_come_with_every_heartbeat(bench: Bench, peer: Peer) -> None:
    one, other = new_id(), new_id()
    for budget_id in (one, other):
        peer.send(subscribe_frame(budget_id))
    bench.hub.subscriptions[1].feed.position = 12
    bench.clock.advance(HEARTBEAT_S - 0.1)
    assert peer.read() == []
    bench.clock.advance(0.1)
    assert peer.read() == [{"type": "heads", "heads": {one: 7, other: 12}}]
    peer.send({"type": "unsubscribe", "id": 1, "budgetId": one})
    peer.read()
    bench.clock.advance(2 * HEARTBEAT_S)
    assert peer.read() == [{"type": "heads", "heads": {other: 12}}] * 2


def test_p8_open_a_full_wire_gets_no_heads(bench: Bench, peer: Peer) -> None:
    peer.fill()
    bench.clock.advance(2 * HEARTBEAT_S)
    assert peer.read() == []
    peer.drain()
    bench.clock.advance(HEARTBEAT_S)
    assert [frame["type"] for frame in peer.read()] == ["heads"]


def test_open_the_end_of_the_token_is_told_once_a_minute_before_and_closes_4401(
    bench: Bench, peer: Peer
) -> None:
    budget_id = new_id()
    peer.send(subscribe_frame(budget_id))
    bench.clock.advance(TOKEN_S - EXPIRING_S - 1)
    assert "auth.expiring" not in {frame["type"] for frame in peer.read()}
    bench.clock.advance(1)
    expiring = {"type": "auth.expiring", "expiresAt": NOW_MS + 1000 * TOKEN_S}
    assert [frame for frame in peer.read() if frame["type"] != "heads"] == [expiring]
    bench.clock.advance(EXPIRING_S - 1)
    assert {frame["type"] for frame in peer.read()} == {"heads"}
    assert peer.close_code is None
    bench.clock.advance(1)
    assert [error_of(frame) for frame in peer.read() if frame["type"] != "heads"] == [
        "NOT_LOGGED_IN"
    ]
    assert peer.close_code == 4401
    assert_over(bench, peer)


def test_open_a_token_that_ends_within_the_minute_is_told_at_once(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start(token="ann:30")
    assert [frame["type"] for frame in peer.read()] == ["welcome", "auth", "auth.expiring"]
    bench.clock.advance(30)
    assert peer.close_code == 4401


def test_open_a_token_that_has_just_ended_follows_nothing(bench: Bench) -> None:
    peer = bench.connect()
    peer.session.start(whose("ann", 0, bench.clock), follow=(new_id(), 0))
    assert peer.close_code == 4401
    assert_over(bench, peer)


def test_open_a_renewal_moves_the_end(bench: Bench, peer: Peer) -> None:
    bench.clock.advance(TOKEN_S - 1)
    peer.read()
    peer.send({"type": "auth", "token": "ann"})
    assert peer.read() == [{"type": "auth", "expiresAt": bench.clock.now_ms + 1000 * TOKEN_S}]
    bench.clock.advance(TOKEN_S - EXPIRING_S - 1)
    assert peer.close_code is None
    assert {frame["type"] for frame in peer.read()} == {"heads"}
    bench.clock.advance(1)
    assert "auth.expiring" in {frame["type"] for frame in peer.read()}


def test_open_heartbeats_keep_their_time_over_a_renewal(bench: Bench, peer: Peer) -> None:
    bench.clock.advance(HEARTBEAT_S - 1)
    peer.send({"type": "auth", "token": "ann"})
    peer.read()
    bench.clock.advance(1)
    assert [frame["type"] for frame in peer.read()] == ["heads"]
    assert len(bench.clock.waiting) == 1


@pytest.mark.parametrize("token", ["bob", "bad"])
def test_p9_open_a_renewal_for_somebody_else_or_with_a_bad_token_closes_4401(
    bench: Bench, peer: Peer, token: str
) -> None:
    peer.send(subscribe_frame(new_id()))
    peer.send({"type": "auth", "token": token})
    assert [error_of(frame) for frame in peer.read()] == ["NOT_LOGGED_IN"]
    assert peer.close_code == 4401
    assert_over(bench, peer)


def test_p10_open_a_renewal_that_cannot_be_verified_now_leaves_the_old_token(
    bench: Bench, peer: Peer
) -> None:
    peer.send({"type": "auth", "id": 7, "token": "unknown"})
    [frame] = peer.read()
    assert (error_of(frame), frame["id"]) == ("UNAVAILABLE", 7)
    assert peer.close_code is None
    bench.clock.advance(TOKEN_S)
    assert peer.close_code == 4401


def test_open_a_revoked_token_closes_4401(bench: Bench, peer: Peer) -> None:
    assert peer.session.principal is not None
    assert peer.session.principal.user_id == "ann"
    peer.send(subscribe_frame(new_id()))
    peer.session.sign_out()
    assert [error_of(frame) for frame in peer.read()] == ["NOT_LOGGED_IN"]
    assert peer.close_code == 4401
    assert_over(bench, peer)


def test_open_a_renewal_that_comes_after_the_end_changes_nothing(bench: Bench, peer: Peer) -> None:
    bench.authenticator.slow = True
    peer.send({"type": "auth", "token": "ann"})
    peer.session.lost(1006)
    peer.read()
    bench.go_on()
    assert peer.read() == []
    assert bench.clock.waiting == []


# OPEN: frames


def test_open_a_ping_is_answered_under_its_id(bench: Bench, peer: Peer) -> None:
    peer.send({"type": "ping", "id": "p-1"})
    peer.send(PING)
    assert peer.read() == [
        {"type": "pong", "id": "p-1", "serverTime": NOW_MS},
        {"type": "pong", "serverTime": NOW_MS},
    ]


@pytest.mark.parametrize(
    ("text", "request_id"),
    [
        (b"hello", None),
        (b"[]", None),
        (b'{"type":"subscripe","id":5}', 5),
        (b'{"id":5}', 5),
    ],
)
def test_open_a_fatal_frame_is_answered_and_closes_4400(
    bench: Bench, peer: Peer, text: bytes, request_id: int | None
) -> None:
    peer.send(subscribe_frame(new_id()))
    peer.session.received(text)
    [frame] = peer.read()
    assert (error_of(frame), frame.get("id")) == ("BAD_FRAME", request_id)
    assert peer.close_code == 4400
    assert_over(bench, peer)


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "subscribe", "id": 5, "budgetId": "my budget"},
        {"type": "subscribe", "id": 5, "budgetId": new_id(), "key": -1},
        {"type": "unsubscribe", "id": 5},
        {"type": "events", "id": 5, "events": {}},
        {"type": "events", "id": 5, "events": [], "mode": "all"},
        {"type": "auth", "id": 5, "token": 7},
    ],
    ids=orjson.dumps,
)
def test_open_a_bad_field_is_an_error_and_no_more(bench: Bench, peer: Peer, frame: Json) -> None:
    peer.send(frame)
    [answer] = peer.read()
    assert (error_of(answer), answer["id"]) == ("BAD_FRAME", 5)
    assert peer.close_code is None
    peer.send(PING)
    assert [answer["type"] for answer in peer.read()] == ["pong"]


@pytest.mark.parametrize("events", [0, 101])
def test_open_a_bad_envelope_of_events_is_refused_as_a_whole(
    bench: Bench, peer: Peer, events: int
) -> None:
    peer.send(events_frame(5, events))
    [answer] = peer.read()
    assert (error_of(answer), answer["id"]) == ("BAD_REQUEST", 5)
    assert bench.hub.posted == []
    assert peer.close_code is None


@pytest.mark.parametrize("mode", ["stop", "each"])
def test_p4_open_events_go_to_the_hub_and_their_verdicts_back(
    bench: Bench, peer: Peer, mode: str
) -> None:
    frame = events_frame(5, 3, mode=mode)
    peer.send(frame)
    [answer] = bench.hub.posted
    assert (answer.user_id, answer.mode) == ("ann", mode)
    sent = [event["eventId"] for event in frame["events"]]
    assert [event.event_id for event in answer.events] == sent
    assert peer.read() == []  # not before they are decided
    answer.settle()
    [results] = peer.read()
    assert (results["type"], results["id"]) == ("results", 5)
    assert [verdict["eventId"] for verdict in results["results"]] == sent


def test_open_a_defect_of_ours_closes_1011(bench: Bench, peer: Peer) -> None:
    peer.send(events_frame(5) | {"correlationId": "tap-1"})
    with capture_logs() as lines:
        bench.hub.posted.pop().fail()
    assert [error_of(frame) for frame in peer.read()] == ["INTERNAL_SERVER_ERROR"]
    assert peer.close_code == 1011
    [line] = [line for line in lines if line["log_level"] == "error"]
    assert (line["event"], line["correlation_id"]) == ("frame failed", "tap-1")
    assert_over(bench, peer)


@pytest.mark.parametrize("outcome", ["settle", "fail"])
def test_open_verdicts_for_a_peer_that_is_gone_go_nowhere(
    bench: Bench, peer: Peer, outcome: str
) -> None:
    peer.send(events_frame(5))
    peer.session.lost(1006)
    getattr(bench.hub.posted.pop(), outcome)()
    assert peer.read() == []
    assert peer.close_code is None
    assert_over(bench, peer)


# OPEN: bounds


def test_p8_open_reading_pauses_while_as_many_events_as_allowed_are_in_flight(
    bench: Bench, peer: Peer
) -> None:
    while len(bench.hub.posted) * 100 < IN_FLIGHT_EVENTS_MAX:
        assert peer.wire.reading
        peer.send(events_frame(1, 100))
    assert not peer.wire.reading
    bench.hub.posted[2].settle()
    assert peer.wire.reading
    peer.send(events_frame(1, 99))
    assert peer.wire.reading
    peer.send(events_frame(1, 1))
    assert not peer.wire.reading


def test_p8_open_a_full_wire_pauses_reading_and_its_subscriptions(bench: Bench, peer: Peer) -> None:
    for _ in range(2):
        peer.send(subscribe_frame(new_id()))
    peer.fill()
    assert not peer.wire.reading
    assert [subscription.told for subscription in bench.hub.subscriptions] == [["lag"]] * 2
    peer.drain()
    assert peer.wire.reading
    assert [subscription.told for subscription in bench.hub.subscriptions] == [
        ["lag", "drained"]
    ] * 2


def test_p8_open_reading_resumes_only_when_nothing_stands_against_it(
    bench: Bench, peer: Peer
) -> None:
    for _ in range(4):
        peer.send(events_frame(1, 100))
    peer.fill()
    bench.hub.posted[0].settle()
    assert not peer.wire.reading  # full still
    peer.send(events_frame(1, 100))  # was read before, and waits
    peer.drain()
    peer.read()
    assert not peer.wire.reading  # with those it is too much in flight
    bench.hub.posted[1].settle()
    assert peer.wire.reading


# OPEN: rates


@pytest.mark.parametrize(
    ("frame", "cost"),
    [
        (PING, 1),
        (subscribe_frame(new_id()), 1),
        ({"type": "unsubscribe", "budgetId": new_id()}, 1),
        ({"type": "auth", "token": "ann"}, 1),
        (events_frame(1, 5), 5),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else str(value),
)
def test_p8_what_a_frame_costs(bench: Bench, frame: Json, cost: int) -> None:
    """An event counts 1, any other frame counts 1; ten seconds' worth may be sent at once."""
    bench.hub.rates = Rates(1, 1000)
    peer = bench.signed_in()
    for _ in range(10 // cost):
        peer.send(frame)
    assert "error" not in {each["type"] for each in peer.read()}
    peer.send(frame)
    assert [error_of(each) for each in peer.read()] == ["RATE_LIMITED"]


def without_an_id(batch: Json) -> Json:
    del batch["events"][-1]["eventId"]
    return batch


REFUSED = {
    "a batch with an event without an id": (without_an_id(events_frame(1, 100)), 100),
    "a batch that is too long": (events_frame(1, 101), 100),
    "a batch in no mode": (events_frame(1, 100, mode="none"), 100),
    "a batch of much text": ({"type": "events", "events": ["x" * 40 * COST_BYTES]}, 40),
    "a batch that is no list": ({"type": "events", "events": "x" * 40 * COST_BYTES}, 40),
    "any frame of much text": (PING | {"pad": "x" * 40 * COST_BYTES}, 40),
}


@pytest.mark.parametrize(("frame", "cost"), REFUSED.values(), ids=REFUSED)
def test_p8_what_is_refused_costs_what_it_holds(bench: Bench, frame: Json, cost: int) -> None:
    bench.hub.rates = Rates(100_000, 20)  # the user may send 200 at once
    peer = bench.signed_in()
    for _ in range(200 // cost):
        peer.send(frame)
    assert "RATE_LIMITED" not in [error_of(each) for each in peer.read() if "error" in each]
    peer.send(frame)
    assert [error_of(each) for each in peer.read()] == ["RATE_LIMITED"]


def test_p8_fields_that_nobody_asked_for_cost_their_bytes(bench: Bench) -> None:
    bench.hub.rates = Rates(100_000, 20)  # the user may send 200 at once
    peer = bench.signed_in()
    batch = events_frame(1, 1)
    batch["events"][0]["later"] = "x" * 20 * COST_BYTES
    for _ in range(10):
        peer.send(batch)
    assert peer.read() == []
    peer.send(batch)
    assert [error_of(each) for each in peer.read()] == ["RATE_LIMITED"]


def test_p8_long_texts_are_limited_over_all_sockets_of_their_user(bench: Bench) -> None:
    bench.hub.rates = Rates(1000, 1)
    at_once = int(TEXT_PER_EVENT * TEXT_BURST_S)
    phone, laptop, bobs = (bench.signed_in(token) for token in ("ann", "ann", "bob"))
    batch = events_frame(1, 2)
    for event in batch["events"]:
        event |= {"eventType": "budget.create", "title": "Home"}
        event["details"] = "ä" * (at_once // 8 - 2)  # two bytes each
    phone.send(batch)
    laptop.send(batch)
    assert (phone.read(), laptop.read()) == ([], [])
    phone.send(batch)
    [refused] = phone.read()
    assert error_of(refused) == "RATE_LIMITED"
    bobs.send(batch)
    assert bobs.read() == []
    bench.clock.advance(refused["error"]["retryAfterMs"] / 1000)
    phone.send(batch)
    assert "error" not in {each["type"] for each in phone.read()}


def test_p8_what_is_refused_was_not_looked_at_and_may_come_again_later(bench: Bench) -> None:
    bench.hub.rates = Rates(2, 1000)
    peer = bench.signed_in()
    peer.send(events_frame(1, 18))
    peer.send(events_frame(2, 6))
    [refused] = peer.read()
    assert (error_of(refused), refused["id"]) == ("RATE_LIMITED", 2)
    after_ms = refused["error"]["retryAfterMs"]
    assert after_ms == pytest.approx(2000, abs=2)
    assert refused["error"]["retryable"] is True
    assert [len(answer.events) for answer in bench.hub.posted] == [18]
    bench.clock.advance(after_ms / 1000 - 0.1)
    peer.send(events_frame(3, 6))
    bench.clock.advance(0.1)
    peer.send(events_frame(4, 6))
    assert [frame["id"] for frame in peer.read()] == [3]
    assert [len(answer.events) for answer in bench.hub.posted] == [18, 6]


def test_p8_a_user_has_one_rate_over_all_his_sockets(bench: Bench) -> None:
    bench.hub.rates = Rates(1000, 1)
    phone, laptop, bobs = (bench.signed_in(token) for token in ("ann", "ann", "bob"))
    phone.send(events_frame(1, 6))
    laptop.send(events_frame(2, 4))
    for peer in (phone, laptop):
        peer.send({"type": "ping", "id": 3})
        [refused] = peer.read()
        assert (error_of(refused), refused["id"]) == ("RATE_LIMITED", 3)
        assert refused["error"]["retryAfterMs"] == pytest.approx(1000, abs=2)
    bobs.send(events_frame(4, 10))
    assert bobs.read() == []
    assert [len(answer.events) for answer in bench.hub.posted] == [6, 4, 10]


def test_who_floods_on_after_rate_limited_is_closed_4429(bench: Bench) -> None:
    bench.hub.rates = Rates(0.001, 1000)
    peer = bench.signed_in()
    peer.send(PING)  # whatever the rate, one is taken when nothing was before
    assert [frame["type"] for frame in peer.read()] == ["pong"]
    for _ in range(STRIKES_MAX):
        peer.send(PING)
    assert [error_of(frame) for frame in peer.read()] == ["RATE_LIMITED"] * STRIKES_MAX
    assert peer.close_code is None
    peer.send(PING)
    assert peer.close_code == 4429
    assert_over(bench, peer)


def test_who_slows_down_after_rate_limited_is_not_closed(bench: Bench) -> None:
    bench.hub.rates = Rates(0.1, 1000)
    peer = bench.signed_in()
    peer.send(PING)
    for _ in range(3):
        for _ in range(STRIKES_MAX):
            peer.send(PING)
        bench.clock.advance(10)
        peer.read()
        peer.send(PING)
        assert [frame["type"] for frame in peer.read()] == ["pong"]
    assert peer.close_code is None


# OPEN: subscriptions


def test_a_subscription_is_answered_under_its_id(bench: Bench, peer: Peer) -> None:
    budget_id = new_id()
    peer.send(subscribe_frame(budget_id, 5, key=3))
    [subscription] = bench.hub.subscriptions
    assert (subscription.user_id, subscription.budget_id, subscription.key) == ("ann", budget_id, 3)
    subscription.follower.joined(3, 9)
    subscription.follower.refused(Code.CURSOR_AHEAD)
    subscribed, refused = peer.read()
    assert (subscribed["type"], subscribed["id"], subscribed["head"]) == ("subscribed", 5, 9)
    assert (error_of(refused), refused["id"]) == ("CURSOR_AHEAD", 5)


def test_a_defect_closes_1011_so_that_the_client_comes_back(bench: Bench, peer: Peer) -> None:
    peer.send(subscribe_frame(new_id()))
    [subscription] = bench.hub.subscriptions
    subscription.end()  # as the feed does before
    subscription.follower.refused(Code.INTERNAL_SERVER_ERROR)
    [frame] = peer.read()
    assert error_of(frame) == "INTERNAL_SERVER_ERROR"
    assert peer.close_code == 1011
    assert_over(bench, peer)


def test_subscribing_again_replaces_the_subscription(bench: Bench, peer: Peer) -> None:
    budget_id = new_id()
    peer.send(subscribe_frame(budget_id, 1, key=3))
    peer.send(subscribe_frame(budget_id, 2, key=9))
    first, second = bench.hub.subscriptions
    assert (first.told, second.told, second.key) == (["end"], [], 9)
    first.follower.refused(Code.BUDGET_NOT_EXISTS)  # its answer came late
    peer.fill()
    assert second.told == ["lag"]


def test_unsubscribing_ends_the_subscription(bench: Bench, peer: Peer) -> None:
    budget_id = new_id()
    peer.send(subscribe_frame(budget_id))
    for _ in range(2):  # the second time there is nothing to end
        peer.send({"type": "unsubscribe", "id": 2, "budgetId": budget_id})
        assert peer.read() == [{"type": "unsubscribed", "id": 2, "budgetId": budget_id}]
    assert bench.hub.subscriptions[0].told == ["end"]


def test_a_subscription_that_the_server_ends_is_told_with_its_code(
    bench: Bench, peer: Peer
) -> None:
    budget_id = new_id()
    peer.send(subscribe_frame(budget_id, 5))
    bench.hub.subscriptions[0].follower.ended(Code.NOT_PARTICIPANT)
    told = {"type": "unsubscribed", "budgetId": budget_id, "code": "NOT_PARTICIPANT"}
    assert peer.read() == [told]
    bench.clock.advance(HEARTBEAT_S)
    assert peer.read() == [{"type": "heads", "heads": {}}]


def test_a_follower_is_as_full_as_the_wire_and_writes_to_it(bench: Bench, peer: Peer) -> None:
    peer.send(subscribe_frame(new_id()))
    follower = bench.hub.subscriptions[0].follower
    assert (follower.attends, follower.full) == (True, False)
    follower.write(framed(b'{"type":"any"}'))
    assert peer.read() == [{"type": "any"}]
    peer.wire.full = True
    assert follower.full


def test_p8_there_are_so_many_subscriptions_and_no_more(bench: Bench, peer: Peer) -> None:
    budget_ids = [new_id() for _ in range(SUBSCRIPTIONS_MAX)]
    for budget_id in budget_ids:
        peer.send(subscribe_frame(budget_id))
    assert peer.read() == []
    peer.send(subscribe_frame(new_id(), 5))
    [refused] = peer.read()
    assert (error_of(refused), refused["id"]) == ("BAD_REQUEST", 5)
    assert len(bench.hub.subscriptions) == SUBSCRIPTIONS_MAX
    peer.send(subscribe_frame(budget_ids[0]))  # replaces one
    peer.send({"type": "unsubscribe", "id": 6, "budgetId": budget_ids[1]})
    peer.send(subscribe_frame(new_id()))  # there is room for it now
    bench.hub.subscriptions[2].follower.refused(Code.BUDGET_NOT_EXISTS)
    peer.send(subscribe_frame(new_id()))  # and again
    assert [frame["type"] for frame in peer.read()] == ["unsubscribed", "error"]
    assert len(bench.hub.subscriptions) == SUBSCRIPTIONS_MAX + 3


# LEAVING


def test_p11_leaving_verdicts_in_flight_are_sent_then_it_is_closed_1012(
    bench: Bench, peer: Peer
) -> None:
    peer.send(subscribe_frame(new_id()))
    peer.send(events_frame(5))
    peer.session.go_away(1830)
    assert peer.read() == [{"type": "goaway", "reconnectAfterMs": 1830, "reason": "deploy"}]
    assert not peer.wire.reading
    peer.send(events_frame(6))  # was read before
    assert len(bench.hub.posted) == 1
    bench.hub.posted.pop().settle()
    assert [(frame["type"], frame["id"]) for frame in peer.read()] == [("results", 5)]
    assert not peer.wire.reading
    assert peer.close_code is None
    peer.session.leave()
    assert peer.close_code == 1012
    assert_over(bench, peer)


def test_p11_who_comes_to_a_hub_that_has_ended_is_closed_1012(bench: Bench) -> None:
    bench.hub.ended = True
    who = whose("ann", 1, bench.clock)
    for principal, token in ((who, None), (None, "ann"), (None, None)):
        peer = bench.connect()
        peer.session.start(principal, token=token)
        assert peer.close_code == 1012
        assert peer.read() == []
        assert_over(bench, peer)


def test_leaving_nothing_makes_it_read_again(bench: Bench, peer: Peer) -> None:
    peer.session.go_away(1)
    peer.fill()
    peer.drain()
    assert not peer.wire.reading


def test_leaving_a_renewal_under_way_is_too_late(bench: Bench, peer: Peer) -> None:
    bench.authenticator.slow = True
    peer.send({"type": "auth", "token": "ann"})
    peer.session.go_away(1)
    peer.read()
    bench.go_on()
    assert peer.read() == []
    assert peer.close_code is None


@pytest.mark.parametrize("slow", [False, True], ids=["new", "authenticating"])
def test_leaving_before_it_was_open_closes_1012_without_goaway(bench: Bench, slow: bool) -> None:
    bench.authenticator.slow = slow
    peer = bench.connect()
    peer.session.start(token="ann" if slow else None)
    peer.session.go_away(1)
    assert peer.read() == []
    peer.session.leave()
    assert peer.close_code == 1012
    bench.go_on()
    assert peer.read() == []
    assert_over(bench, peer)


# CLOSED


@pytest.mark.parametrize("close_code", [1000, 1006, None])
def test_closed_a_peer_that_goes_leaves_nothing(
    bench: Bench, peer: Peer, close_code: int | None
) -> None:
    peer.send(subscribe_frame(new_id()))
    peer.session.lost(close_code)
    assert bench.clock.waiting == []
    assert_over(bench, peer)
