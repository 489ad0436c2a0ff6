"""uvicorn's HTTP protocol, with an end for peers that have stopped reading."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Without a byte taken, while there is more than the transport likes to hold. A slow peer takes in
# bursts: its kernel asks for more only when a sixteenth of its buffer is free again.
STALLED_S = 20.0


class HttpProtocol(HttpToolsProtocol):
    """What is written to a peer that takes nothing would stay, and with it the stream or the answer
    that waits for room (P8): uvicorn drops only connections without a request. `abort`, because
    `close` waits until everything is taken."""

    _left_bytes = 0
    _looking: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_again()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._look_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_no_more()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._left_bytes = self.transport.get_write_buffer_size()
        self._looking = self.loop.call_later(STALLED_S, self._look)

    def _look(self) -> None:
        if self.transport.get_write_buffer_size() >= self._left_bytes:
            self.transport.abort()
        else:
            self._look_again()  # slow, but there

    def _look_no_more(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
