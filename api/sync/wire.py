"""One WebSocket: from its transport to who it talks to, and back.

| state   | what arrives                           | it ends when                                |
|---------|----------------------------------------|---------------------------------------------|
| NEW     | the head of the request, whole         | it has come: ASKING; it is none: CLOSING    |
| ASKING  | waits                                  | the door has answered: OPEN, or CLOSING     |
|         |                                        | with an HTTP error                          |
| OPEN    | frames, one by one, unless held        | we close: CLOSING; the peer closes: GONE    |
| CLOSING | is dropped unread                      | the peer's close frame or end comes, or     |
|         |                                        | `close_s` is over: GONE                     |
| GONE    | is dropped unread                      |                                             |

CLOSING lingers because TCP resets a connection that is closed with something of the peer's unread,
and the reset would overtake our close frame: the client would not learn its code.

The handshake is that of `websockets` (`ServerProtocol`), and so are the frames that we write. The
server below is known by uvicorn's `ws=` alone: a transport, and who is connected.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Protocol, cast

from websockets.exceptions import ProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from api.http.edge import id_of
from api.http.refusals import refuse
from api.sync import framing
from api.sync.framing import Frames, Violation
from api.timeouts import AppTimeouts
from hub.errors import Code, HubError
from hub.limits import Bucket

HIGH_WATER_BYTES = 64 * 1024  # of what is written and not taken: above, the peer counts as slow
# Of one connection in one turn of the loop: thousands that were read at once must not keep the
# others waiting.
FRAMES_PER_TURN = 64
PACE_S = 0.1  # between two looks at a rate that is used up

DEFECT, RESTART = 1011, 1012
STALLED = 4408  # ours: the peer is gone, or has stopped reading
ABNORMAL = 1006  # never sent: there was no close frame
REASON_BYTES_MAX = framing.CONTROL_BYTES_MAX - 2

# What holds the frames back; while one does, nothing is read.
_OPENING, _RECEIVER, _TURN, _PACE = 1, 2, 4, 8

_PING = Frame(Opcode.PING, b"").serialize(mask=False)


class State(Enum):
    NEW = "new"
    ASKING = "asking"
    OPEN = "open"
    CLOSING = "closing"
    GONE = "gone"


class Receiver(Protocol):
    """Who a socket talks to: a `hub.session.Session`."""

    def received(self, data: bytes, *, text: bool) -> None: ...
    def full(self) -> None: ...
    def drained(self) -> None: ...
    def lost(self, close_code: int | None = None) -> None: ...
    def close(self, code: Code) -> None: ...


class Admitted(NamedTuple):
    """`begin` is called with the open wire."""

    subprotocol: str | None
    begin: "Callable[[SocketWire], Receiver]"


class Door(Protocol):
    """Decides who may open a socket."""

    timeouts: AppTimeouts
    message_bytes_max: int  # of one message of the peer

    async def admit(self, request: Request) -> Admitted:
        """Raises `HubError`, and the request is answered with it."""
        ...

    def refused(self, code: Code) -> None:
        """Count a request that was not admitted, also one that the door was not asked about."""
        ...

    def pace(self, now_s: float) -> Bucket:
        """How many frames one connection may send, of any kind; on the loop's clock."""
        ...


class SocketWire(asyncio.Protocol):
    """A `hub.ports.Wire`. It is in `connected` as long as its connection stands, and in `tasks` is
    what a shutdown has to wait for."""

    __slots__ = (
        "_connected",
        "_door",
        "_frames",
        "_heard",
        "_held",
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
        self._frames = Frames(door.message_bytes_max)
        self._pace = door.pace(self._loop.time())
        self._paid = 0  # frames that may come before the pace is asked again
        self._held = _OPENING
        self._soon: list[bytes] | None = None  # for the end of this turn of the loop
        self._heard = True  # something of the peer, since the last ping
        self._unsent = 0  # bytes that had not left at the last ping
        self._timer: asyncio.TimerHandle | None = None
        self._shutting_down = False
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
        if self._receiver is not None:
            self._receiver.full()

    def resume_writing(self) -> None:
        self.full = False
        self._heard = True  # it reads
        if self._receiver is not None:
            self._receiver.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = State.GONE
        self._connected.discard(self)
        self._after(None)
        self._lost(ABNORMAL)

    def shutdown(self) -> None:
        """The process ends. A peer that was told to go gets time to read it, and to answer."""
        self._shutting_down = True
        self.close(RESTART, "restart")
        if self._state is State.CLOSING:
            self._after(self._door.timeouts.farewell_s)

    # The handshake

    def _shake_hands(self, head: bytes) -> None:
        """`head` is a whole request: uvicorn has parsed it, and writes it anew."""
        protocol = ServerProtocol()
        protocol.receive_data(head)
        request = next((e for e in protocol.events_received() if isinstance(e, Request)), None)
        if request is None:  # a line or their number is beyond its bounds, or there is a body
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
            admitted = await self._door.admit(request)
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
        """Take what has come, as far as turn and pace allow."""
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
        if not left and not self._held & _TURN and self._state is State.OPEN:
            self._hold(_TURN)  # also where nothing waits: the loop may read on in this turn
            self._loop.call_soon(self._go_on)

    def _pay(self) -> bool:
        """Pay for the next frames, some at a time, as far as the rate has it."""
        now_s = self._loop.time()
        self._paid = min(FRAMES_PER_TURN, int(self._pace.left(now_s)))
        self._pace.take(self._paid, now_s)
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
        # Where the peer does not take what is buffered for it, that would hold the socket.
        self._after(self._door.timeouts.flush_s)
        self._lost(code)

    # What is read, and when: the one owner of the transport's reading

    def _hold(self, reason: int) -> None:
        if self._state is State.OPEN:
            if not self._held:
                self._transport.pause_reading()
            self._held |= reason

    def _release(self, reason: int) -> None:
        if self._held & reason:
            self._held &= ~reason
            if not self._held:
                self._held = _TURN  # not at once: the caller is in the middle of something
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

    def close(self, code: int, reason: str = "") -> None:
        if self._state is State.OPEN:
            self.write(Frame(Opcode.CLOSE, _close(code, reason)).serialize(mask=False))
            self._linger(self._door.timeouts.close_s)
            self._lost(code)

    # The end

    def _linger(self, seconds: float) -> None:
        """Drop what comes, until the peer has read what we wrote last."""
        self._state = State.CLOSING
        self._after(seconds)
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._drop()

    def _drop(self) -> None:
        if self._frames.drop():
            self._state = State.GONE
            self._transport.close()

    def _after(self, seconds: float | None) -> None:
        """Do what is due after so long, and nothing else; None: nothing at all."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._due)

    def _due(self) -> None:
        if self._state is not State.OPEN:
            self._transport.abort()  # `close` would wait until the peer has taken everything
            return
        unsent = self._transport.get_write_buffer_size()
        if self._heard or unsent < self._unsent:
            self._heard, self._unsent = False, unsent
            self.write(_PING)
            self._after(self._door.timeouts.ping_s)
        else:  # what is buffered for it would hold the socket for ever (P8)
            self.close(STALLED, "no answer")
            self._after(self._door.timeouts.flush_s)

    def _lost(self, close_code: int) -> None:
        """Tell the receiver at once: from here on the transport takes nothing."""
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            receiver.lost(close_code)


def _close(code: int, reason: str) -> bytes:
    """The payload of a close frame; a reason that is too long is cut."""
    return Close(code, reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")).serialize()


def raw_headers(request: Request) -> list[tuple[bytes, bytes]]:
    """As ASGI has them."""
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in request.headers.raw_items()
    ]


def _why(protocol: ServerProtocol) -> str:
    """What the library has against a request."""
    error: BaseException | None = protocol.handshake_exc
    assert error is not None
    return f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
