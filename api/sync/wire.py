"""One WebSocket connection: bytes of a transport become messages for a receiver, and back.

| state   | what arrives                           | it ends when                                |
|---------|----------------------------------------|---------------------------------------------|
| NEW     | the head of the request, whole         | it has come: ASKING; it is none: CLOSING    |
| ASKING  | waits                                  | the door has answered: OPEN, or CLOSING     |
|         |                                        | with an HTTP error                          |
| OPEN    | frames, one by one, unless held        | we close: CLOSING; the peer closes: GONE    |
| CLOSING | is dropped unread                      | the peer's close frame or end comes, or     |
|         |                                        | `close_s` is over in which it took nothing, |
|         |                                        | or `LINGER_S_MAX`: GONE                     |
| GONE    | is dropped unread                      |                                             |

CLOSING reads on because TCP resets a connection that is closed while data is unread. The reset
would overtake our close frame, and the client would never see its code.

`websockets` makes the handshake (`ServerProtocol`) and the frames that the hub writes. Of the
server, the wire needs a transport, the set of open connections and the set of tasks; uvicorn passes
them to the class in its `ws=` parameter.
"""

import asyncio
import fcntl
import sys
import termios
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple, Protocol, cast

from websockets.exceptions import ProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from api.http.addresses import peer_of
from api.http.edge import id_of
from api.http.refusals import refuse
from api.http.unread import Backlog, Unread
from api.sync import framing
from api.sync.framing import Frames, Violation
from api.timeouts import AppTimeouts
from hub.budget.records import UserId
from hub.errors import Code, HubError
from hub.limits import Bucket
from hub.session import RESTART

HIGH_WATER_BYTES = 64 * 1024  # written and not sent: above this, the peer counts as slow
# How many frames of one connection a turn of the loop handles. One read can bring thousands, and
# the other connections would wait for all of them.
FRAMES_PER_TURN = 64
LINGER_S_MAX = 60.0  # a slow peer has so long to read up to our close frame
PACE_S = 0.1  # pause of a connection that has used up its rate

DEFECT = 1011
STALLED = 4408  # ours: the peer is gone, or has stopped reading
ABNORMAL = 1006  # never sent: there was no close frame
REASON_BYTES_MAX = framing.CONTROL_BYTES_MAX - 2

# Reasons to stop reading. The transport reads only while there is none.
_OPENING, _RECEIVER, _TURN, _PACE = 1, 2, 4, 8

# What asks Linux how many bytes of a socket the other end has not acknowledged.
_KERNEL_HOLDS = termios.TIOCOUTQ if sys.platform == "linux" else None

_PING = Frame(Opcode.PING, b"").serialize(mask=False)


class State(Enum):
    NEW = "new"
    ASKING = "asking"
    OPEN = "open"
    CLOSING = "closing"
    GONE = "gone"


class Receiver(Protocol):
    """What handles the messages of a socket. `hub.session.Session` is one."""

    def received(self, data: bytes, *, text: bool) -> None: ...
    def full(self) -> None: ...
    def drained(self) -> None: ...
    def lost(self, close_code: int | None = None) -> None: ...
    def close(self, code: Code) -> None: ...


class Admitted(NamedTuple):
    """The answer to a request that becomes a socket. `begin` is called with the open wire."""

    subprotocol: str | None
    begin: "Callable[[SocketWire], Receiver]"


class Door(Protocol):
    """Decides which requests become sockets."""

    timeouts: AppTimeouts
    unread: Unread

    async def admit(self, peer: tuple[str, int] | None, request: Request) -> Admitted:
        """`peer` is the other end of the connection. Raises `HubError`; the wire answers the
        request with it."""
        ...

    def refused(self, code: Code) -> None:
        """Count a refused request, including one that never reached `admit`."""
        ...

    def ended(self, transport: asyncio.Transport) -> None:
        """The connection no longer counts for its address."""
        ...

    def message_bytes_max(self, *, signed_in: bool) -> int:
        """The largest message that a peer may send."""
        ...

    def pace(self, now_s: float, user_id: UserId | None) -> Sequence[Bucket]:
        """The rates of WebSocket frames: of one connection, and of all connections of the user, if
        one has signed in. `now_s` is on the loop's clock."""
        ...


class SocketWire(asyncio.Protocol):
    """A `hub.ports.Wire`. It is in `connected` while its connection is open; `tasks` holds the
    handshakes that a shutdown waits for."""

    __slots__ = (
        "_backlog",
        "_connected",
        "_door",
        "_frames",
        "_heard",
        "_held",
        "_linger_until_s",
        "_loop",
        "_pace",
        "_paid",
        "_receiver",
        "_shutting_down",
        "_soon",
        "_state",
        "_tasks",
        "_timer",
        "_transport",
        "_unsent",
        "_user_id",
        "full",
    )
    _transport: asyncio.Transport

    def __init__(
        self,
        door: Door,
        connected: "set[SocketWire]",
        tasks: "set[asyncio.Task[None]]",
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._door = door
        self._connected = connected
        self._tasks = tasks
        self._loop = loop or asyncio.get_running_loop()
        self._state = State.NEW
        self._receiver: Receiver | None = None
        self._frames = Frames(door.message_bytes_max(signed_in=False))
        self._pace = door.pace(self._loop.time(), None)
        self._paid = 0  # frames already charged to the pace and not received yet
        self._held = _OPENING
        self._soon: list[bytes] | None = None  # for the end of this turn of the loop
        self._heard = True  # any sign of life since the last ping
        self._unsent = 0  # how much the peer had not taken when we looked last
        self._linger_until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._shutting_down = False
        self._user_id: UserId | None = None
        self._backlog: Backlog | None = None  # most sockets never have one
        self.full = False

    # From the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._transport.pause_reading()
        self._connected.add(self)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._state is State.NEW:
            self._shake_hands(data)
            return
        self._frames.feed(data)
        if self._state is State.OPEN:
            self._take()
        elif self._state is not State.ASKING:
            self._drop()

    def pause_writing(self) -> None:
        self.full = True
        if self._backlog is None:
            drop = partial(self._loop.call_soon, self._transport.abort)
            unsent = self._transport.get_write_buffer_size
            self._backlog = self._door.unread.backlog(unsent, drop)
            if self._user_id is not None:
                self._backlog.belongs_to(self._user_id)
        self._backlog.full()
        if self._receiver is not None:
            self._receiver.full()

    def resume_writing(self) -> None:
        self.full = False
        self._heard = True  # it reads
        if self._backlog is not None:
            self._backlog.drained()
        if self._receiver is not None:
            self._receiver.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = State.GONE
        self._connected.discard(self)
        self._door.ended(self._transport)
        if self._backlog is not None:
            self._backlog.lost()
        self._after(None)
        self._lost(ABNORMAL)

    def shutdown(self) -> None:
        """The process ends. Peers get `farewell_s` to read the close frame and to answer it."""
        self._shutting_down = True
        self.close(RESTART, "restart")
        self._linger_until_s = 0.0
        if self._state is State.CLOSING:
            self._after(self._door.timeouts.farewell_s)

    def abort(self) -> None:
        self._transport.abort()

    # The handshake

    def _shake_hands(self, head: bytes) -> None:
        """`head` is a complete request: uvicorn parses it and writes it out again."""
        protocol = ServerProtocol()
        protocol.receive_data(head)
        request = next((e for e in protocol.events_received() if isinstance(e, Request)), None)
        if request is None:  # a line too long, too many of them, or a body
            self._refuse(HubError(Code.BAD_REQUEST, _why(protocol)), None)
            return
        response = protocol.accept(request)
        if response.status_code != 101:
            self._refuse(HubError(Code.BAD_REQUEST, _why(protocol)), request)
            return
        self._state = State.ASKING
        task = self._loop.create_task(self._ask(request, response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, request: Request, response: Response) -> None:
        """Open if the door admits the peer."""
        try:
            admitted = await self._door.admit(peer_of(self._transport), request)
        except HubError as error:
            self._refuse(error, request)
            return
        except Exception:
            self._refuse(HubError(Code.INTERNAL_SERVER_ERROR), request)
            raise
        if self._shutting_down:
            self._refuse(HubError(Code.UNAVAILABLE, "the hub is shutting down"), request)
        elif self._state is State.ASKING:
            self._open(admitted, response)

    def _open(self, admitted: Admitted, response: Response) -> None:
        if admitted.subprotocol is not None:
            response.headers["Sec-WebSocket-Protocol"] = admitted.subprotocol
        self._transport.write(response.serialize())
        self._state = State.OPEN
        self._after(self._door.timeouts.ping_s)
        try:
            self._receiver = admitted.begin(self)
        except Exception:
            self.close(DEFECT, Code.INTERNAL_SERVER_ERROR.name)
            raise
        self._release(_OPENING)

    def _refuse(self, error: HubError, request: Request | None) -> None:
        if self._state in (State.NEW, State.ASKING):
            request_id = None if request is None else id_of(raw_headers(request))
            self._door.refused(error.code)
            refuse(self._transport, error, request_id)
            self._linger(self._door.timeouts.flush_s)

    # Frames from the peer

    def _take(self) -> None:
        """Handle the frames that have arrived, within the limits of turn and pace."""
        frames, left = self._frames, FRAMES_PER_TURN
        try:
            while left and frames.pending and not self._held and self._state is State.OPEN:
                if not self._paid and not self._pay():
                    self._hold(_PACE)
                    self._loop.call_later(PACE_S, self._release, _PACE)
                    break
                frame = frames.next()
                if frame is None:
                    break
                left -= 1
                self._paid -= 1
                self._received(*frame)
        except Violation as violation:
            self.close(violation.code, violation.reason)
        if left < FRAMES_PER_TURN:
            self._heard = True  # what waited for its pace was read from the peer long before
        if not left and not self._held & _TURN and self._state is State.OPEN:
            self._hold(_TURN)  # even with nothing pending: the loop may read again in this turn
            self._loop.call_soon(self._go_on)

    def _pay(self) -> bool:
        """Charge the next frames to the pace in advance; return whether it allowed any."""
        now_s = self._loop.time()
        self._paid = min(FRAMES_PER_TURN, *(int(bucket.left(now_s)) for bucket in self._pace))
        for bucket in self._pace:
            bucket.take(self._paid, now_s)
        return self._paid > 0

    def _received(self, opcode: int, data: bytes) -> None:
        receiver = self._receiver
        assert receiver is not None
        if opcode == framing.TEXT or opcode == framing.BINARY:
            try:
                receiver.received(data, text=opcode == framing.TEXT)
            except Exception as defect:  # noqa: BLE001 - raised, it would end the connection ...
                receiver.close(Code.INTERNAL_SERVER_ERROR)  # ... before this has left
                found = {"message": "a frame met a defect", "exception": defect}
                self._loop.call_exception_handler(found)
        elif opcode == framing.PING:
            self.write_soon(Frame(Opcode.PONG, data).serialize(mask=False))
        elif opcode == framing.CLOSE:
            self._closed_by_peer(data)

    def _closed_by_peer(self, data: bytes) -> None:
        """Answer with the same code (RFC 6455 section 5.5.1), and close first (7.1.1)."""
        try:
            code, answer = Close.parse(data).code, data
        except ProtocolError:
            code, answer = framing.PROTOCOL_ERROR, _close(framing.PROTOCOL_ERROR, "bad close frame")
        except UnicodeDecodeError:
            code, answer = framing.NOT_UTF8, _close(framing.NOT_UTF8, "not UTF-8")
        self.write(Frame(Opcode.CLOSE, answer).serialize(mask=False))
        self._state = State.GONE
        self._transport.close()
        # A peer that does not read would keep the socket open with what is unsent.
        self._after(self._door.timeouts.flush_s)
        self._lost(code)

    # Reading: only these three functions pause and resume the transport

    def _hold(self, reason: int) -> None:
        if self._state is State.OPEN:
            if not self._held:
                self._transport.pause_reading()
            self._held |= reason

    def _release(self, reason: int) -> None:
        if self._held & reason:
            self._held &= ~reason
            if not self._held:
                self._held = _TURN  # in the next turn: the caller must finish first
                self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._held &= ~_TURN
        if self._state is State.OPEN and not self._held:
            self._take()
            if self._state is State.OPEN and not self._held:
                self._transport.resume_reading()

    # To the peer: `hub.ports.Wire`

    @property
    def write_open(self) -> Callable[[bytes], None]:
        return self._transport.write

    def write(self, data: bytes) -> None:
        if self._soon is not None:
            self._flush()
        if self._state is State.OPEN and not self._transport.is_closing():
            self._transport.write(data)
            if self._backlog is not None and self.full:
                self._backlog.full()  # by so much more: verdicts in flight, for one

    def write_soon(self, data: bytes) -> None:
        if self._soon is None:
            self._soon = []
            self._loop.call_soon(self._flush)
        self._soon.append(data)

    def _flush(self) -> None:
        if self._soon is not None:
            soon, self._soon = self._soon, None
            self.write(b"".join(soon))

    def pause_reading(self) -> None:
        self._hold(_RECEIVER)

    def resume_reading(self) -> None:
        self._release(_RECEIVER)

    def signed_in(self, user_id: UserId) -> None:
        self._user_id = user_id
        self._frames.message_bytes_max = self._door.message_bytes_max(signed_in=True)
        self._pace = self._door.pace(self._loop.time(), user_id)
        self._paid = 0

    def close(self, code: int, reason: str = "") -> None:
        if self._state is State.OPEN:
            self.write(Frame(Opcode.CLOSE, _close(code, reason)).serialize(mask=False))
            self._linger(self._door.timeouts.close_s)
            self._lost(code)

    # The end

    def _linger(self, seconds: float) -> None:
        """Read and discard, so that the peer can read what was written last."""
        self._state = State.CLOSING
        self._unsent = self._untaken()
        self._linger_until_s = self._loop.time() + LINGER_S_MAX
        self._after(seconds)
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._drop()

    def _drop(self) -> None:
        if self._frames.drop():
            self._state = State.GONE
            self._transport.close()
        elif self._frames.dropped >= framing.DROPPED_MAX:  # a flood, and no close frame in sight
            self._transport.abort()

    def _after(self, seconds: float | None) -> None:
        """Set the one timer of this wire, or clear it with None."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._due)

    def _due(self) -> None:
        unsent = self._untaken()
        if self._state is not State.OPEN:
            takes = self._state is State.CLOSING and unsent < self._unsent
            if takes and self._loop.time() < self._linger_until_s:
                self._unsent = unsent
                self._after(self._door.timeouts.close_s)
            else:
                self._transport.abort()  # `close` would wait until everything is sent
            return
        if self._heard or unsent < self._unsent:
            self._heard, self._unsent = False, unsent
            self.write(_PING)
            self._after(self._door.timeouts.ping_s)
        else:  # unsent data would keep the socket open for ever (P8)
            self.close(STALLED, "no answer")
            self._linger_until_s = 0.0
            self._after(self._door.timeouts.flush_s)

    def _untaken(self) -> int:
        """How many bytes the peer has not taken. The kernel holds megabytes of them, and asks for
        more only when a third of that has left."""
        size = self._transport.get_write_buffer_size()
        if _KERNEL_HOLDS is not None and not self._transport.is_closing():
            held = fcntl.ioctl(self._transport.get_extra_info("socket"), _KERNEL_HOLDS, bytes(4))
            size += int.from_bytes(held, sys.byteorder)
        return size

    def _lost(self, close_code: int) -> None:
        """Tell the receiver at once: nothing can be written from here on."""
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            receiver.lost(close_code)


def _close(code: int, reason: str) -> bytes:
    """The payload of a close frame. A reason that is too long is cut off."""
    return Close(code, reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")).serialize()


def raw_headers(request: Request) -> list[tuple[bytes, bytes]]:
    """The headers in the form that ASGI has: lower-case names, bytes."""
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in request.headers.raw_items()
    ]


def _why(protocol: ServerProtocol) -> str:
    """Why `websockets` refused a request."""
    error: BaseException | None = protocol.handshake_exc
    assert error is not None
    return f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
