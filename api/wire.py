"""The two ways to write to a socket.

`DirectProtocol` is uvicorn's own WebSocket protocol with a door: it offers itself to the
application as an ASGI extension, and ready-made frames go straight to the transport, one write
however many frames (design 5). `AsgiWire` does the same through plain ASGI `send`, for any other
server.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from starlette.types import Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from hub.frames import texts

EXTENSION = "budget.wire"
HIGH_WATER_BYTES = 64 * 1024  # of the transport's buffer: above, the peer counts as slow


class DirectProtocol(WebSocketsSansIOProtocol):
    """A uvicorn WebSocket protocol that is a `hub.ports.Wire`."""

    full = False
    on_drained: Callable[[], None] | None = None

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.handshake_initiated and not self.handshake_complete:
            extensions = cast(dict[str, object], self.scope["extensions"])
            extensions[EXTENSION] = self
            self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def write(self, data: bytes) -> None:
        if not (self.close_sent or self.disconnected or self.transport.is_closing()):
            self.transport.write(data)

    async def drained(self) -> None:
        await self.writable.wait()

    def close(self, code: int, reason: str = "") -> None:
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        # The same steps as for an ASGI `websocket.close`, at once.
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self.full = False
        if self.on_drained is not None:
            self.on_drained()


class AsgiWire:
    """A `hub.ports.Wire` over plain ASGI `send`; `run` must be running beside the session.

    What is written waits here; as soon as it is more than `HIGH_WATER_BYTES` the wire is full, and
    nobody writes events to a full wire (P8).
    """

    def __init__(self, send: Send) -> None:
        self.on_drained: Callable[[], None] | None = None
        self._send = send
        self._outbox: deque[bytes] = deque()
        self._bytes = 0
        self._closing: tuple[int, str] | None = None
        self._some = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def full(self) -> bool:
        return self._bytes > HIGH_WATER_BYTES

    def write(self, data: bytes) -> None:
        if self._closing is None:
            self._outbox.append(data)
            self._bytes += len(data)
            self._some.set()
            if self.full:
                self._drained.clear()

    async def drained(self) -> None:
        await self._drained.wait()

    def close(self, code: int, reason: str = "") -> None:
        if self._closing is None:
            self._closing = (code, reason)
            self._some.set()

    async def run(self) -> None:
        """Send until closed. Raises `OSError` (as ASGI says) when the peer is gone."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._outbox:
                data = self._outbox.popleft()
                for text in texts(data):
                    await self._send({"type": "websocket.send", "text": text.decode()})
                self._bytes -= len(data)
                if not self.full and not self._drained.is_set():
                    self._drained.set()
                    if self.on_drained is not None:
                        self.on_drained()
            if self._closing is not None:
                code, reason = self._closing
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
                return
