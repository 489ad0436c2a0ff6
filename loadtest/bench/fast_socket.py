"""A WebSocket client that costs next to nothing: for generators that must not be the bottleneck.

Only what the benches need of RFC 6455: the upgrade, unfragmented text frames in both directions,
and an answer to a ping. Frames to the server are masked with zeros, which is a mask like any other.
"""

import asyncio
import base64
import os
import struct
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit


class FastSocket(asyncio.Protocol):
    """`received` is called with the bytes of each text frame."""

    def __init__(self, received: Callable[[bytes], None]) -> None:
        self.received = received
        self.lost = asyncio.get_running_loop().create_future()
        self.opened = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, text: bytes) -> None:
        assert self._transport is not None
        self._transport.write(masked(text))

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            head, found, data = (self._rest + data).partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return
            self._rest = b""
            self.opened.set_result(head.split(b"\r\n", 1)[0])
        if self._rest:
            data = self._rest + data
        start, end = 0, len(data)
        received = self.received
        while end - start >= 2:
            size, body = data[start + 1], start + 2
            if size == 126:
                if end - start < 4:
                    break
                size, body = int.from_bytes(data[start + 2 : start + 4], "big"), start + 4
            elif size == 127:
                if end - start < 10:
                    break
                size, body = int.from_bytes(data[start + 2 : start + 10], "big"), start + 10
            if end < body + size:
                break
            opcode = data[start] & 15
            if opcode == 1:
                received(data[body : body + size])
            elif opcode == 9:
                self._pong(data[body : body + size])
            start = body + size
        self._rest = data[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("closed before the upgrade"))
        if not self.lost.done():
            self.lost.set_result(exc)

    def _pong(self, payload: bytes) -> None:
        assert self._transport is not None
        self._transport.write(b"\x8a%c\x00\x00\x00\x00%b" % (128 | len(payload), payload))


def masked(text: bytes) -> bytes:
    """`text` as one frame from a client."""
    size = len(text)
    if size < 126:
        return b"\x81%c\x00\x00\x00\x00%b" % (128 | size, text)
    if size < 65536:
        return b"\x81\xfe%b\x00\x00\x00\x00%b" % (struct.pack("!H", size), text)
    return b"\x81\xff%b\x00\x00\x00\x00%b" % (struct.pack("!Q", size), text)


async def connect(url: str, token: str, received: Callable[[bytes], None]) -> FastSocket:
    """An open socket on the hub at `url` (`http://host:port`). Raises `ConnectionError`."""
    host, port = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80
    _, socket = await asyncio.get_running_loop().create_connection(
        lambda: FastSocket(received), host, port
    )
    key = base64.b64encode(os.urandom(16)).decode()
    assert socket._transport is not None
    socket._transport.write(
        (
            f"GET /sync HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: budget.sync.v2\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()
    )
    status: bytes = await socket.opened
    if b" 101 " not in status:
        raise ConnectionError(status.decode())
    return socket
