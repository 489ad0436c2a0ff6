"""The two ways to a socket.

`DirectProtocol` is uvicorn's own WebSocket protocol with a door: it offers itself to the
application as an ASGI extension. Frames to the client are ready-made and go straight to the
transport, one write however many frames (design 5); whole text frames from the client go straight
to the session. All else (the handshake, control frames, fragments, oversized frames, closing) is
left to uvicorn and websockets. `AsgiWire` does the same through plain ASGI `receive` and `send`,
for any other server.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from starlette.types import Message, Receive, Send
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame as WebSocketFrame, Opcode
from websockets.http11 import Request

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the compiled part
    from websockets.utils import apply_mask

from hub.errors import Code
from hub.frames import texts
from hub.session import Session

EXTENSION = "budget.wire"
HIGH_WATER_BYTES = 64 * 1024  # of what is written and not taken: above, the peer counts as slow

STALLED = 4408  # close codes: ours, and that of RFC 6455 for text which is not UTF-8
NOT_UTF8 = 1007
ABNORMAL = 1006  # never sent: there was no close frame
CLOSE_S = 1.0  # for the close frame to leave, where the peer still reads
FAREWELL_S = 3.0  # for the peer to answer it, when the process ends

_TEXT = 0x80 | Opcode.TEXT  # a whole message in one frame
_MASKED = 0x80


class DirectProtocol(WebSocketsSansIOProtocol):
    """A uvicorn WebSocket protocol that is a `hub.ports.Wire`."""

    full = False
    _session: Session | None = None
    _partial = b""  # the beginning of a frame whose rest has not arrived
    _soon: list[bytes] | None = None  # for the end of this turn of the loop

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.handshake_complete:  # it is complete already where it was refused
            extensions = cast(dict[str, object], self.scope["extensions"])
            extensions[EXTENSION] = self
            self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # refused; else uvicorn logs an error for each

    async def run(self, session: Session, receive: Receive) -> None:
        """Give what arrives to the session until the connection ends."""
        del self.request, self.response, self.scope  # an idle connection keeps nothing of them
        try:
            # What came before is in uvicorn's queue and goes first; then the door opens, in the
            # same turn of the loop.
            while not self.queue.empty():
                if not _give(session, await receive()):
                    return
            self._session = session
            while _give(session, await receive()):
                pass
        finally:
            self._lost(ABNORMAL)
            session.lost(ABNORMAL)

    @property
    def write_open(self) -> Callable[[bytes], None]:
        return self.transport.write

    def write(self, data: bytes) -> None:
        if self._soon is not None:
            self._flush()
        if not (self.close_sent or self.disconnected or self.transport.is_closing()):
            self.transport.write(data)

    def write_soon(self, data: bytes) -> None:
        if self._soon is None:
            self._soon = []
            self.loop.call_soon(self._flush)
        self._soon.append(data)

    def _flush(self) -> None:
        if self._soon is not None:
            soon, self._soon = self._soon, None
            self.write(b"".join(soon))

    def pause_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def close(self, code: int, reason: str = "") -> None:
        """The same steps as for an ASGI `websocket.close`, at once."""
        self._flush()
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.resume_reading()  # the peer's closing frame must be read
        # Not `close`, which waits for the peer to take what is buffered.
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)
        self._lost(code)

    def shutdown(self) -> None:
        """The process ends. A peer that was told to go has yet to read it: were the connection
        closed now, with something of the peer's unread, TCP would reset it, and the close frame
        would be lost with it. So the peer's own close frame ends it, or `FAREWELL_S`."""
        if self.close_sent and not self.transport.is_closing():
            self.stop_keepalive()
            if self.close_timer is not None:
                self.close_timer.cancel()
            self.close_timer = self.loop.call_later(FAREWELL_S, self.transport.abort)
        else:
            super().shutdown()
        self._abort_soon()

    def keepalive_timeout(self) -> None:
        """The peer has not answered a ping: it is gone, or has stopped reading. What is buffered
        for it would hold the socket for ever, so the connection is dropped (P8)."""
        self.pong_timer = None
        self.pending_ping_payload = None
        self.close(STALLED, "no answer")
        self.loop.call_later(CLOSE_S, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.full = True
        if self._session is not None:
            self._session.full()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.full = False
        if self._session is not None:
            self._session.drained()

    def handle_close(self, event: WebSocketFrame) -> None:
        super().handle_close(event)
        received = self.conn.close_rcvd
        self._lost(ABNORMAL if received is None else received.code)
        self._abort_soon()

    def _abort_soon(self) -> None:
        """Where the peer does not take what is buffered for it, that would hold the socket."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(CLOSE_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost(ABNORMAL)

    def _lost(self, close_code: int) -> None:
        """Tell the session at once: from here on the transport takes nothing."""
        if self._session is not None:
            session, self._session = self._session, None
            session.lost(close_code)

    def data_received(self, data: bytes) -> None:
        """Cut the stream into frames (RFC 6455 section 5.2). Whole text messages are unmasked and
        given to the session; other frames go to websockets, each of them complete."""
        if not self.handshake_initiated:
            super().data_received(data)
            return
        if self._partial:
            data = self._partial + data
        start, end = 0, len(data)
        while end - start >= 2:
            size, mask_at = data[start + 1] & 0x7F, start + 2
            if size == 126:
                size, mask_at = int.from_bytes(data[start + 2 : start + 4], "big"), start + 4
            elif size == 127:
                size, mask_at = int.from_bytes(data[start + 2 : start + 10], "big"), start + 10
            body = mask_at + 4
            if body > end:
                break
            if size > self.config.ws_max_size or not data[start + 1] & _MASKED:
                super().data_received(data[start:])  # refused by its header
                start = end
                break
            if body + size > end:
                break
            if (
                data[start] == _TEXT
                and self._session is not None
                and not self.close_sent
                and self.conn.current_size is None  # no message in fragments is under way
            ):
                self._receive(apply_mask(data[body : body + size], data[mask_at:body]))
            else:
                super().data_received(data[start : body + size])
            start = body + size
        self._partial = data[start:]

    def send_receive_event_to_app(self) -> None:
        """A message that uvicorn has put together."""
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self.close(NOT_UTF8, "not UTF-8")
        else:
            super().send_receive_event_to_app()

    def _receive(self, text: bytes) -> None:
        assert self._session is not None
        if not _is_utf8(text):
            self.close(NOT_UTF8, "not UTF-8")
            return
        try:
            self._session.received(text)
        except Exception:
            self._session.close(Code.INTERNAL_SERVER_ERROR)
            raise  # the loop logs it


class AsgiWire:
    """A `hub.ports.Wire` over plain ASGI.

    What is written waits here; as soon as it is more than `HIGH_WATER_BYTES` the wire is full, and
    nobody writes events to a full wire (P8).
    """

    def __init__(self, send: Send) -> None:
        self.full = False
        self._send = send
        self._session: Session | None = None
        self._outbox: deque[bytes] = deque()
        self._bytes = 0
        self._closing: tuple[int, str] | None = None
        self._some = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()

    async def run(self, session: Session, receive: Receive) -> None:
        """Give what arrives to the session until the connection ends."""
        self._session = session
        writer = asyncio.create_task(self._write())
        try:
            while _give(session, await receive()):
                await self._reading.wait()
        finally:
            session.lost()
            self._some.set()
            await asyncio.wait([writer], timeout=1)
            writer.cancel()

    @property
    def write_open(self) -> Callable[[bytes], None]:
        return self.write

    def write_soon(self, data: bytes) -> None:
        self.write(data)

    def write(self, data: bytes) -> None:
        if self._closing is None:
            self._outbox.append(data)
            self._bytes += len(data)
            self._some.set()
            if not self.full and self._bytes > HIGH_WATER_BYTES:
                self.full = True
                if self._session is not None:
                    self._session.full()

    def pause_reading(self) -> None:
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    def close(self, code: int, reason: str = "") -> None:
        if self._closing is None:
            self._closing = (code, reason)
            self._some.set()
            self._reading.set()

    async def _write(self) -> None:
        try:
            while self._closing is None or self._outbox:
                await self._some.wait()
                self._some.clear()
                while self._outbox:
                    data = self._outbox.popleft()
                    for text in texts(data):
                        await self._send({"type": "websocket.send", "text": text.decode()})
                    self._bytes -= len(data)
                    if self.full and self._bytes <= HIGH_WATER_BYTES // 4:
                        self.full = False
                        if self._session is not None:
                            self._session.drained()
            code, reason = self._closing
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except OSError:  # what ASGI says when the peer is gone; `receive` says it too
            self._closing = self._closing or (1006, "")
            self._outbox.clear()
            self._reading.set()


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _give(session: Session, message: Message) -> bool:
    """Whether the connection goes on after this ASGI message."""
    if message["type"] == "websocket.disconnect":
        return False
    session.received(message.get("text") or "")  # a binary message is no frame of ours
    return True
