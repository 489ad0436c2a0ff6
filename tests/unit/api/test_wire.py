"""The socket's wire over a transport and a clock of the test's own: its order, bounds and end."""

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings, strategies as st
from websockets.frames import Frame, Opcode
from websockets.http11 import Request

from api.http.unread import Unread
from api.sync import wire as wire_module
from api.sync.framing import DROPPED_MAX
from api.sync.wire import (
    FRAMES_PER_TURN,
    HIGH_WATER_BYTES,
    LINGER_S_MAX,
    Admitted,
    SocketWire,
)
from api.timeouts import APP_TIMEOUTS
from hub.errors import Code, HubError
from hub.limits import Bucket, Rate
from tests.masked import masked

HEAD = (
    b"GET /sync HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
FLUSH_S, CLOSE_S, PING_S = APP_TIMEOUTS.flush_s, APP_TIMEOUTS.close_s, APP_TIMEOUTS.ping_s
BYTES_MAX = 256 * 1024
UNSIGNED_BYTES_MAX = 1024
PLENTY = Rate(1e6, 1e6)
UNSIGNED = Rate(per_s=1, burst=5)
PEER = ("192.0.2.1", 4711)


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """These transports have none."""
    monkeypatch.setattr(wire_module, "_KERNEL_HOLDS", None)


TEXT = masked(Opcode.TEXT, b"x")
PING = masked(Opcode.PING)


class Clock:
    """A loop, as far as a wire needs one."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.defects: list[BaseException] = []
        self._soon: list[Callable[[], object]] = []
        self._later: list[tuple[float, int, Timer]] = []
        self._number = count()
        self._task: Coroutine[Any, Any, None] | None = None

    def time(self) -> float:
        return self.now_s

    def call_soon(self, call: Callable[..., object], *args: object) -> None:
        self._soon.append(lambda: call(*args))

    def call_later(self, delay_s: float, call: Callable[..., object], *args: object) -> "Timer":
        timer = Timer(lambda: call(*args))
        heapq.heappush(self._later, (self.now_s + delay_s, next(self._number), timer))
        return timer

    def create_task(self, work: Coroutine[Any, Any, None]) -> "Clock":
        self._task = work
        return self

    def add_done_callback(self, call: object) -> None: ...

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.defects.append(context["exception"])

    def answer(self) -> None:
        """The door answers."""
        assert self._task is not None
        with pytest.raises(StopIteration):
            self._task.send(None)
        self._task = None

    def turn(self) -> None:
        soon, self._soon = self._soon, []
        for call in soon:
            call()

    def settle(self) -> int:
        """All that is to be done at once; in how many turns."""
        turns = 0
        while self._soon:
            self.turn()
            turns += 1
        return turns

    def advance(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self._later and self._later[0][0] <= until_s:
            self.now_s, _, timer = heapq.heappop(self._later)
            if timer.call is not None:
                timer.call()
            self.settle()
        self.now_s = until_s


class Timer:
    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.ended = ""  # how
        self.unsent = 0
        self.high: int | None = None

    def get_extra_info(self, name: str) -> object:
        assert name == "peername"
        return PEER

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: bytes) -> None:
        assert not self.ended
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"


class Receiver:
    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.lost_with: list[int | None] = []
        self.told: list[str] = []
        self.during: Callable[[], object] = lambda: None

    def begun(self) -> "Receiver":
        return self

    def received(self, data: bytes, *, text: bool) -> None:
        self.messages.append(data)
        self.during()

    def full(self) -> None:
        self.told.append("full")

    def drained(self) -> None:
        self.told.append("drained")

    def lost(self, close_code: int | None = None) -> None:
        self.lost_with.append(close_code)

    def close(self, code: Code) -> None:
        self.told.append(code.name)


class Socket:
    """One connection, and the door it came through."""

    timeouts = APP_TIMEOUTS

    def __init__(
        self,
        rate: Rate = PLENTY,
        refuse: Exception | None = None,
        of_user: Bucket | None = None,
        unread: Unread | None = None,
    ) -> None:
        self.of_user = of_user or Bucket(PLENTY, 0)
        self.unread = unread or Unread()
        self.clock, self.transport, self.receiver = Clock(), Transport(), Receiver()
        self.connected: set[SocketWire] = set()
        self.refusals: list[Code] = []
        self.forgotten: list[object] = []
        self._rate, self._refuse = rate, refuse
        loop = cast(asyncio.AbstractEventLoop, self.clock)
        self.wire = SocketWire(self, self.connected, set(), loop)
        self.wire.connection_made(cast(asyncio.Transport, self.transport))

    async def admit(self, peer: tuple[str, int] | None, request: Request) -> Admitted:
        assert peer == PEER
        if self._refuse is not None:
            raise self._refuse
        return Admitted("spoken", lambda wire: self.receiver.begun())

    def refused(self, code: Code) -> None:
        self.refusals.append(code)

    def ended(self, transport: asyncio.Transport) -> None:
        self.forgotten.append(transport)

    def message_bytes_max(self, *, signed_in: bool) -> int:
        return BYTES_MAX if signed_in else UNSIGNED_BYTES_MAX

    def pace(self, now_s: float, user_id: str | None) -> tuple[Bucket, ...]:
        if user_id is None:
            return (Bucket(UNSIGNED, now_s),)
        return Bucket(self._rate, now_s), self.of_user

    def opened(self, *, signed_in: bool = True) -> "Socket":
        self.wire.data_received(HEAD + b"\r\n")
        self.clock.answer()
        self.clock.settle()
        assert self.written().startswith(b"HTTP/1.1 101 ")
        assert self.transport.reading
        if signed_in:
            self.wire.signed_in("ann")
        return self

    def send(self, data: bytes) -> None:
        assert self.transport.reading
        self.wire.data_received(data)

    def written(self) -> bytes:
        """Since the last time."""
        written, self.transport.written = self.transport.written, b""
        return written

    def lost(self) -> None:
        self.wire.connection_lost(None)
        self.clock.settle()
        assert self.connected == set()
        assert self.forgotten == [self.transport]


SMALL = {
    "text": TEXT,
    "binary": masked(Opcode.BINARY),
    "ping": PING,
    "pong": masked(Opcode.PONG),
    "fragment": masked(Opcode.CONT, fin=False),
}


def begun(data: bytes) -> bytes:
    """The message whose fragments these are, if they are."""
    return masked(Opcode.TEXT, b"begun", fin=False) if data is SMALL["fragment"] else b""


def closing(code: int, reason: bytes = b"") -> bytes:
    return Frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason).serialize(mask=False)


# The handshake


def test_an_admitted_peer_gets_101_and_its_subprotocol() -> None:
    socket = Socket()
    assert socket.transport.high == HIGH_WATER_BYTES
    assert not socket.transport.reading  # until the door has answered
    socket.wire.data_received(HEAD + b"Sec-WebSocket-Protocol: spoken\r\n\r\n")
    socket.clock.answer()
    assert b"Sec-WebSocket-Protocol: spoken\r\n" in socket.written()


REFUSED = {
    "by the door": (HEAD, HubError(Code.NOT_LOGGED_IN), 401),
    "by a defect": (HEAD, RuntimeError("defect"), 500),
    "line over 8 KiB": (HEAD + b"Cookie: " + b"x" * 9000 + b"\r\n", None, 400),
    "over 128 fields": (HEAD + b"X: y\r\n" * 140, None, 400),
    "a body": (HEAD + b"Content-Length: 5\r\n", None, 400),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n", None, 400),
    "another version": (HEAD.replace(b": 13", b": 12"), None, 400),
    "no key": (HEAD.replace(b"Sec-WebSocket-Key", b"X"), None, 400),
    "not GET": (HEAD.replace(b"GET", b"PUT"), None, 400),
    "not HTTP/1.1": (HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"), None, 400),
}


@pytest.mark.parametrize(("head", "error", "status"), REFUSED.values(), ids=REFUSED)
def test_refused_handshakes_are_answered_and_end(
    head: bytes, error: Exception | None, status: int
) -> None:
    socket = Socket(refuse=error)
    socket.wire.data_received(head + b"X-Request-Id: mine\r\n\r\n")
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError):
            socket.clock.answer()
    elif error is not None:
        socket.clock.answer()
    answer = socket.written()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in head
    assert orjson.loads(body)["error"]["statusCode"] == status
    assert [code.status for code in socket.refusals] == [status]
    socket.send(b"whatever " * 1000)  # is not answered with a reset
    socket.wire.shutdown()
    assert socket.transport.ended == ""
    socket.clock.advance(APP_TIMEOUTS.farewell_s)
    assert socket.transport.ended == "aborted"
    socket.lost()
    assert socket.receiver.lost_with == []


def test_a_shutdown_while_the_door_thinks_refuses() -> None:
    socket = Socket()
    socket.wire.data_received(HEAD + b"\r\n")
    socket.wire.shutdown()
    socket.clock.answer()
    assert socket.written().startswith(b"HTTP/1.1 503 ")


def test_a_peer_that_goes_while_the_door_thinks_is_not_begun_with() -> None:
    socket = Socket()
    socket.wire.data_received(HEAD + b"\r\n")
    socket.lost()
    socket.clock.answer()
    assert socket.written() == b""


def test_frames_that_come_while_the_door_thinks_wait() -> None:
    socket = Socket()
    socket.wire.data_received(HEAD + b"\r\n")
    socket.wire.data_received(TEXT)
    socket.clock.answer()
    socket.clock.settle()
    assert socket.receiver.messages == [b"x"]


def test_a_defect_at_the_beginning_closes_1011() -> None:
    socket = Socket()
    socket.receiver = cast(Receiver, None)
    socket.wire.data_received(HEAD + b"\r\n")
    with pytest.raises(AttributeError):
        socket.clock.answer()
    assert socket.written().endswith(closing(1011, b"INTERNAL_SERVER_ERROR"))


# Frames in


def test_whole_messages_and_fragments_come_in_order() -> None:
    socket = Socket().opened()
    socket.send(
        masked(Opcode.TEXT, b"1", fin=False)
        + masked(Opcode.PING, b"between")
        + masked(Opcode.CONT, b"st")
        + masked(Opcode.TEXT, b"2nd")
    )
    assert socket.receiver.messages == [b"1st", b"2nd"]
    socket.clock.settle()
    assert socket.written() == Frame(Opcode.PONG, b"between").serialize(mask=False)


def test_p8_a_stranger_sends_small_messages_and_few_frames() -> None:
    socket = Socket().opened(signed_in=False)
    socket.send(PING * 50)
    socket.clock.settle()
    assert socket.written().count(b"\x8a\x00") == UNSIGNED.burst
    assert not socket.transport.reading
    socket.clock.advance(2.1)
    assert socket.written().count(b"\x8a\x00") == 2
    socket.wire.signed_in("ann")
    socket.clock.advance(0.2)
    assert socket.written().count(b"\x8a\x00") == 43  # the rest
    large = masked(Opcode.TEXT, b"x" * (UNSIGNED_BYTES_MAX + 1))
    socket.send(large)
    assert [len(message) for message in socket.receiver.messages] == [UNSIGNED_BYTES_MAX + 1]
    stranger = Socket().opened(signed_in=False)
    stranger.send(large)
    assert stranger.written()[2:4] == (1009).to_bytes(2, "big")


@pytest.mark.parametrize("data", SMALL.values(), ids=SMALL)
def test_p8_a_turn_of_the_loop_takes_a_bounded_number_of_frames(data: bytes) -> None:
    socket = Socket().opened()
    socket.send(begun(data) + data * 10 * FRAMES_PER_TURN)
    assert not socket.transport.reading  # nor anything new
    assert socket.clock.settle() >= 10
    assert socket.transport.reading
    if data is TEXT:
        assert len(socket.receiver.messages) == 10 * FRAMES_PER_TURN


@pytest.mark.parametrize("data", SMALL.values(), ids=SMALL)
def test_p8_every_frame_is_charged_and_above_the_rate_read_slower(data: bytes) -> None:
    socket = Socket(Rate(per_s=100, burst=200)).opened()
    socket.send(begun(data) + data * 1000)
    socket.clock.settle()
    assert not socket.transport.reading
    socket.clock.advance(7.9)
    assert not socket.transport.reading
    socket.clock.advance(0.3)
    assert socket.transport.reading
    assert socket.transport.ended == ""


def test_p8_all_sockets_of_a_user_share_a_rate_of_frames() -> None:
    of_user = Bucket(Rate(per_s=100, burst=200), 0)
    socket, another, bobs = Socket(of_user=of_user), Socket(of_user=of_user), Socket()
    for each in (socket, another, bobs):
        each.opened().send(PING * 150)
        each.clock.settle()
    assert [each.transport.reading for each in (socket, another, bobs)] == [True, False, True]
    another.clock.advance(2)
    assert another.transport.reading


def test_p8_nothing_is_taken_while_the_receiver_does_not_read() -> None:
    socket = Socket().opened()
    socket.receiver.during = socket.wire.pause_reading
    socket.send(TEXT * 3 + masked(Opcode.TEXT, b"y", fin=False) + masked(Opcode.CONT, b"z"))
    assert socket.receiver.messages == [b"x"]
    assert not socket.transport.reading
    for messages in (2, 3, 4):
        socket.wire.resume_reading()
        assert len(socket.receiver.messages) == messages - 1  # not in the midst of its caller
        socket.clock.settle()
        assert len(socket.receiver.messages) == messages
    assert socket.receiver.messages[-1] == b"yz"


def test_pausing_and_resuming_at_once_keeps_one_owner_of_reading() -> None:
    socket = Socket().opened()
    socket.wire.pause_reading()
    socket.wire.resume_reading()
    socket.wire.pause_reading()
    socket.clock.settle()
    assert not socket.transport.reading
    socket.wire.resume_reading()
    socket.clock.settle()
    assert socket.transport.reading


def test_a_defect_closes_with_1011_and_the_loop_is_told() -> None:
    socket = Socket().opened()

    def fail() -> None:
        raise RuntimeError("defect")

    socket.receiver.during = fail
    socket.send(TEXT)
    assert socket.receiver.told == ["INTERNAL_SERVER_ERROR"]
    assert [str(defect) for defect in socket.clock.defects] == ["defect"]


# Frames out


def test_what_is_written_soon_leaves_as_one_and_before_what_is_written() -> None:
    socket = Socket().opened()
    socket.wire.write_soon(b"1")
    socket.wire.write_soon(b"2")
    assert socket.written() == b""
    socket.wire.write(b"3")
    socket.wire.write_soon(b"4")
    assert socket.written() == b"123"
    socket.clock.settle()
    assert socket.written() == b"4"


def test_the_receiver_is_told_when_the_peer_does_not_take_what_is_written() -> None:
    socket = Socket().opened()
    socket.wire.pause_writing()
    assert socket.wire.full
    socket.wire.resume_writing()
    assert not socket.wire.full
    assert socket.receiver.told == ["full", "drained"]


def test_p8_what_the_peer_does_not_take_counts_for_its_user_also_what_is_written_later() -> None:
    """Verdicts in flight still come when nothing more is read."""
    unread = Unread()
    socket = Socket(unread=unread).opened()
    socket.transport.unsent = 70_000
    socket.wire.pause_writing()
    assert unread.of("ann") == 70_000
    socket.transport.unsent = 3_000_000
    socket.wire.write(b"verdicts")
    assert unread.bytes == 3_000_000
    socket.transport.unsent = 0
    socket.wire.resume_writing()
    assert unread.bytes == 0
    socket.transport.unsent = 70_000
    socket.wire.pause_writing()
    socket.lost()
    assert unread.bytes == 0


def test_p8_a_socket_with_too_much_unread_is_dropped() -> None:
    """Not at once: its hub is just writing to it."""
    socket = Socket(unread=Unread(all_bytes_max=100_000)).opened()
    socket.transport.unsent = 100_001
    socket.wire.pause_writing()
    assert socket.transport.ended == ""
    socket.clock.settle()
    assert socket.transport.ended == "aborted"
    socket.lost()
    assert socket.receiver.lost_with == [1006]


# The end


def test_a_close_lingers_until_the_peer_has_answered() -> None:
    socket = Socket().opened()
    socket.wire.write_soon(b"last")
    socket.wire.close(4400, "not JSON")
    assert socket.receiver.lost_with == [4400]
    assert socket.written() == b"last" + closing(4400, b"not JSON")
    socket.wire.write(b"more")
    socket.send(TEXT * 1000 + PING)
    assert (socket.written(), socket.receiver.messages) == (b"", [])
    assert socket.transport.ended == ""
    socket.send(masked(Opcode.CLOSE, b"\x11\x30"))
    assert socket.transport.ended == "closed"
    socket.lost()
    assert socket.receiver.lost_with == [4400]


def test_a_peer_that_does_not_answer_a_close_is_dropped() -> None:
    socket = Socket().opened()
    socket.wire.close(1012)
    socket.clock.advance(CLOSE_S - 0.1)
    assert socket.transport.ended == ""
    socket.clock.advance(0.2)
    assert socket.transport.ended == "aborted"


def test_a_peer_that_reads_up_to_our_close_slowly_has_time_for_it() -> None:
    socket = Socket().opened()
    socket.transport.unsent = 300_000
    socket.wire.close(4401)
    for _ in range(4):
        socket.transport.unsent -= 50_000
        socket.clock.advance(CLOSE_S)
        assert socket.transport.ended == ""
    socket.clock.advance(CLOSE_S)
    assert socket.transport.ended == "aborted"


def test_p8_a_peer_that_reads_up_to_our_close_for_ever_is_dropped() -> None:
    socket = Socket().opened()
    socket.transport.unsent = 300_000
    socket.wire.close(4401)
    socket.clock.advance(CLOSE_S / 2)
    while socket.clock.now_s < LINGER_S_MAX + CLOSE_S and not socket.transport.ended:
        socket.transport.unsent -= 1
        socket.clock.advance(CLOSE_S)
    assert socket.transport.ended == "aborted"


def test_a_shutdown_waits_for_no_slow_reader() -> None:
    socket = Socket().opened()
    socket.transport.unsent = 300_000
    socket.wire.close(4401)
    socket.wire.shutdown()
    socket.transport.unsent -= 50_000
    socket.clock.advance(APP_TIMEOUTS.farewell_s + 0.1)
    assert socket.transport.ended == "aborted"


def test_p8_a_flood_behind_a_close_is_not_read_for_long() -> None:
    socket = Socket().opened()
    socket.wire.close(4429)
    for _ in range(DROPPED_MAX // 1000):
        assert socket.transport.ended == ""
        socket.send(PING * 1000)
    assert socket.transport.ended == "aborted"


def test_closing_reads_also_where_reading_was_held() -> None:
    """The peer's close frame would never come."""
    socket = Socket().opened()
    socket.wire.pause_reading()
    socket.wire.close(1012)
    socket.wire.pause_reading()
    assert socket.transport.reading


def test_p8_a_frame_that_is_too_big_closes_1009_and_is_read_to_its_end() -> None:
    """Closed with the rest unread, TCP would reset the connection, and the code be lost."""
    socket = Socket().opened()
    sent = masked(Opcode.TEXT, b"x" * (20 * BYTES_MAX))
    socket.send(sent[:BYTES_MAX])
    assert socket.receiver.lost_with == [1009]
    assert socket.written() == closing(1009, b"over 262144 bytes")
    for at in range(BYTES_MAX, len(sent), BYTES_MAX):
        socket.send(sent[at : at + BYTES_MAX])
        assert len(socket.wire._frames._buffer) < 14  # nothing of it is kept
    assert socket.transport.ended == ""
    socket.send(masked(Opcode.CLOSE, b"\x03\xf1"))
    assert socket.transport.ended == "closed"


@pytest.mark.parametrize(
    ("payload", "answer", "code"),
    [
        (b"", b"\x88\x00", 1005),
        (b"\x03\xe8", closing(1000), 1000),
        (b"\x0f\xa0bye", closing(4000, b"bye"), 4000),
    ],
)
def test_the_peers_close_is_answered(payload: bytes, answer: bytes, code: int) -> None:
    socket = Socket().opened()
    socket.send(TEXT + masked(Opcode.CLOSE, payload) + TEXT)
    assert socket.receiver.messages == [b"x"]
    assert socket.written() == answer
    assert socket.transport.ended == "closed"
    assert socket.receiver.lost_with == [code]
    socket.clock.advance(FLUSH_S)
    assert socket.transport.ended == "aborted"  # where what was written cannot leave


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"\x03", 1002), (b"\x03\xee", 1002), (b"\x00\x00", 1002), (b"\x03\xe8\xff", 1007)],
    ids=["one byte", "1006", "0", "not UTF-8"],
)
def test_a_bad_close_is_told_so_and_is_the_end_too(payload: bytes, code: int) -> None:
    """Nothing more comes of its peer, which waits for the end."""
    socket = Socket().opened()
    socket.send(masked(Opcode.CLOSE, payload))
    assert socket.receiver.lost_with == [code]
    assert socket.written()[2:4] == code.to_bytes(2, "big")
    assert socket.transport.ended == "closed"


def test_a_reason_that_is_too_long_is_cut_at_a_character() -> None:
    socket = Socket().opened()
    socket.wire.close(4400, "é" * 100)
    assert socket.written() == closing(4400, "é".encode() * 61)


def test_a_shutdown_gives_everybody_time_to_read_it() -> None:
    told, untold = Socket().opened(), Socket().opened()
    told.wire.close(1012, "restart")
    for socket in (told, untold):
        socket.wire.shutdown()
        assert socket.written() == closing(1012, b"restart")
        socket.clock.advance(APP_TIMEOUTS.farewell_s - 0.1)
        assert socket.transport.ended == ""
        socket.clock.advance(0.2)
        assert socket.transport.ended == "aborted"


def test_a_peer_that_is_lost_leaves_nothing() -> None:
    socket = Socket().opened()
    socket.wire.write_soon(b"late")
    socket.lost()
    assert socket.receiver.lost_with == [1006]
    assert socket.written() == b""
    socket.wire.close(1012)
    socket.wire.shutdown()
    socket.clock.advance(10 * PING_S)
    assert socket.transport.ended == ""


# Signs of life (P8)


def test_a_peer_that_answers_pings_stays() -> None:
    socket = Socket().opened()
    for _ in range(5):
        socket.clock.advance(PING_S)
        assert socket.written() == b"\x89\x00"
        socket.send(masked(Opcode.PONG))
    assert socket.transport.ended == ""


def test_a_peer_without_a_sign_of_life_is_closed_4408_and_dropped() -> None:
    socket = Socket().opened()
    socket.clock.advance(2 * PING_S)
    assert socket.receiver.lost_with == [4408]
    assert socket.written() == b"\x89\x00" + closing(4408, b"no answer")
    socket.clock.advance(FLUSH_S)
    assert socket.transport.ended == "aborted"


def test_a_peer_that_is_slow_to_take_what_is_written_stays() -> None:
    """Its pong waits behind megabytes."""
    socket = Socket().opened()
    socket.transport.unsent = 5_000_000
    for _ in range(5):
        socket.clock.advance(PING_S)
        socket.transport.unsent -= 500_000
    assert socket.transport.ended == ""
    socket.clock.advance(2 * PING_S)
    assert socket.receiver.lost_with == [4408]


def test_a_peer_that_has_taken_what_was_written_stays() -> None:
    socket = Socket().opened()
    socket.clock.advance(PING_S)
    socket.wire.pause_writing()
    socket.wire.resume_writing()
    socket.clock.advance(PING_S)
    assert socket.receiver.lost_with == []


def test_a_peer_whose_frames_wait_for_their_pace_stays() -> None:
    """All were read at once; the transport brings nothing more meanwhile."""
    socket = Socket(Rate(per_s=10, burst=10)).opened()
    socket.send(PING * 1500)
    for _ in range(7):
        socket.clock.advance(PING_S)
    assert socket.receiver.lost_with == []


# Any bytes in any pieces


pieces = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.builds(masked, st.sampled_from(list(Opcode)), st.binary(max_size=20)),
        st.builds(masked, st.sampled_from([Opcode.TEXT, Opcode.CONT]), fin=st.just(False)),
        st.sampled_from(["pause", "resume", "turn", "second", "close", "shutdown", "eof"]),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(pieces)
def test_any_bytes_in_any_order_raise_nothing_and_end_once(steps: list[bytes | str]) -> None:
    socket = Socket(Rate(per_s=50, burst=50)).opened()
    doings: dict[str, Callable[[], object]] = {
        "pause": socket.wire.pause_reading,
        "resume": socket.wire.resume_reading,
        "turn": socket.clock.turn,
        "second": lambda: socket.clock.advance(1),
        "close": lambda: socket.wire.close(1012),
        "shutdown": socket.wire.shutdown,
        "eof": lambda: socket.wire.eof_received(),
    }
    for step in steps:
        if socket.transport.ended:
            break
        if isinstance(step, str):
            doings[step]()
        elif socket.transport.reading:
            socket.wire.data_received(step)
        assert len(socket.receiver.lost_with) <= 1
    socket.lost()
    assert len(socket.receiver.lost_with) == 1
    assert socket.clock.defects == []
