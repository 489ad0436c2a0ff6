"""`budget.sync.v2` over a WebSocket: the sans-I/O client of `websockets` on a bare asyncio
protocol. A connection costs some kilobytes and a frame some microseconds, so that one process can
be thousands of devices."""

import asyncio
import socket
from typing import Any, cast

import orjson
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame as RawFrame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from loadtest.target import Refused, Target, Unreachable
from loadtest.wire import ABNORMAL, FRAME_BYTES_MAX, Decode, Frame, Lost, Receiver, text

PROTOCOL = Subprotocol("budget.sync.v2")
OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
CLIENT_LEFT = 1000


class WebSocket(asyncio.Protocol):
    """A wire (see `loadtest.wire.Wire`)."""

    def __init__(self, target: Target, token: str, receiver: Receiver, decode: Decode) -> None:
        self._receiver = receiver
        self._decode = decode
        self._protocol = ClientProtocol(
            parse_uri(target.socket_url), subprotocols=[PROTOCOL], max_size=FRAME_BYTES_MAX
        )
        self._token = token
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []  # of a fragmented message
        self._left = False  # by the device
        self._closing: asyncio.TimerHandle | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # Wire

    def send(self, frame: Frame) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(text(frame))
            self._flush()

    def close(self) -> None:
        self._left = True
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(CLIENT_LEFT)
            self._flush()
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(CLOSE_TIMEOUT_S, self.abort)
        else:
            self.abort()

    def abort(self) -> None:
        self._left = True
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def extra(self, name: str) -> Any:
        assert self._transport is not None
        return self._transport.get_extra_info(name)

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        request = self._protocol.connect()
        request.headers["Authorization"] = f"Bearer {self._token}"
        self._protocol.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        self._take()
        self._flush()

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._take()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        if self._protocol.state is not State.CLOSED:
            self._protocol.receive_eof()
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionResetError("closed before the upgrade"))
            return
        if self.opened.cancelled() or self.opened.exception() is not None:
            return  # whoever opened it knows
        said = self._protocol.close_rcvd
        code = ABNORMAL if said is None else int(said.code)
        reason = "" if said is None else said.reason
        self._receiver.lost(Lost(code, reason, self._left))

    def _take(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, RawFrame):
                self._take_frame(event)
            elif isinstance(event, Response) and self._protocol.handshake_exc is None:
                self._opened()
        if self._protocol.handshake_exc is not None:
            self._fail(self._protocol.handshake_exc)

    def _take_frame(self, frame: RawFrame) -> None:
        if frame.opcode is Opcode.TEXT and frame.fin:
            self._receiver.received(self._decoded(bytes(frame.data)))
        elif frame.opcode in (Opcode.TEXT, Opcode.CONT):
            self._parts.append(bytes(frame.data))
            if frame.fin:
                whole, self._parts = b"".join(self._parts), []
                self._receiver.received(self._decoded(whole))

    def _opened(self) -> None:
        if self._protocol.subprotocol != PROTOCOL:
            self._fail(ConnectionRefusedError(f"it does not speak {PROTOCOL}"))
        elif not self.opened.done():
            self.opened.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)
        self.abort()

    def _decoded(self, message: bytes) -> Frame:
        try:
            frame = self._decode(message)
        except ValueError:
            frame = None
        if isinstance(frame, dict):
            return frame
        return {"type": "?", "text": message[:300].decode(errors="replace")}

    def _flush(self) -> None:
        transport = self._transport
        assert transport is not None
        for data in self._protocol.data_to_send():
            if transport.is_closing():
                return
            if data:
                transport.write(data)
            elif transport.can_write_eof():
                transport.write_eof()


async def open_websocket(
    target: Target,
    token: str,
    receiver: Receiver,
    decode: Decode = orjson.loads,
    *,
    receive_bytes: int | None = None,
) -> WebSocket:
    """A socket that is open; what the hub says goes to `receiver`.

    Raises `Unreachable`, and `Refused` with the status of the upgrade's answer."""
    loop = asyncio.get_running_loop()
    wire: WebSocket | None = None
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            _, wire = await loop.create_connection(
                lambda: WebSocket(target, token, receiver, decode),
                target.host,
                target.port,
                ssl=target.tls,
            )
            if receive_bytes is not None:
                # Bounds what the kernel takes from now on, which is all but the upgrade.
                connection: socket.socket = wire.extra("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            await wire.opened
    except InvalidStatus as error:
        status = error.response.status_code
        raise Refused(f"{target} refused the socket with {status}", status=status) from error
    except OSError as error:  # timeouts too
        if wire is not None:
            wire.abort()
        raise Unreachable(f"no hub answers at {target}: {error or type(error).__name__}") from error
    except InvalidHandshake as error:
        raise Unreachable(f"{target} is no hub: {error}") from error
    return wire
