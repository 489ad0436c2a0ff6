"""A WebSocket echo server. It runs the same protocol classes as `/sync`
(`api.process.server.configured`), with another receiver."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from websockets.frames import Frame, Opcode
from websockets.http11 import Request

from api.http.unread import Unread
from api.process import server
from api.sync.wire import Admitted, SocketWire
from api.timeouts import APP_TIMEOUTS
from hub.errors import Code
from hub.limits import Bucket, Rate

MESSAGE_BYTES_MAX = 64 * 2**20
ANY_NUMBER = Rate(1e9, 1e9)


class Echo:
    """An `api.sync.wire.Receiver`."""

    def __init__(self, wire: SocketWire) -> None:
        self._wire = wire

    def received(self, data: bytes, *, text: bool) -> None:
        opcode = Opcode.TEXT if text else Opcode.BINARY
        self._wire.write(Frame(opcode, data).serialize(mask=False))

    def full(self) -> None:
        self._wire.pause_reading()

    def drained(self) -> None:
        self._wire.resume_reading()

    def lost(self, close_code: int | None = None) -> None: ...

    def close(self, code: Code) -> None:
        self._wire.close(code.close or 1011)


class EchoDoor:
    """An `api.sync.wire.Door` that admits every request."""

    timeouts = APP_TIMEOUTS
    unread = Unread()

    async def admit(self, peer: tuple[str, int] | None, request: Request) -> Admitted:
        return Admitted(None, Echo)

    def refused(self, code: Code) -> None: ...

    def ended(self, transport: asyncio.Transport) -> None: ...

    def message_bytes_max(self, *, signed_in: bool) -> int:
        return MESSAGE_BYTES_MAX

    def pace(self, now_s: float, user_id: str | None) -> tuple[Bucket, ...]:
        return (Bucket(ANY_NUMBER, now_s),)


@asynccontextmanager
async def echoing() -> AsyncIterator[str]:
    """Run the server; yields its URL."""

    async def nothing() -> None: ...

    listening = server.bind("127.0.0.1", 0)
    config = server.configured(Starlette(), EchoDoor())
    running = server.Server(config, lambda: None, nothing)
    serving = asyncio.create_task(running.serve(sockets=[listening]))
    try:
        yield server.address(listening).replace("http", "ws")
    finally:
        running.should_exit = True
        await serving
        gc.collect()
