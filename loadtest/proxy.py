"""A TCP proxy that breaks the network between two programs, on command and back.

In front of Postgres, Redis or a hub, on a port of its own:

    forward      what arrives on one side leaves on the other; so it begins, and after `heal`
    cut          every connection is reset and new ones are refused
    black_hole   connections stay and new ones are accepted, but nothing passes; what was sent
                 waits, as behind a broken link, and arrives after `heal`
    hold_back    as a black hole, but only for what comes back: what is asked for is done, and
                 nobody hears of it
    delay_s      every piece of data is held up for so long
"""

import asyncio
import socket
import struct
from typing import Self
from urllib.parse import urlsplit, urlunsplit

PIECE_BYTES = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, for no time at all


class Proxy:
    """Forwards `127.0.0.1:self.port` to where `url` leads. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._url = parts
        self._upstream = parts.hostname, parts.port
        self._flowing = asyncio.Event()  # there
        self._flowing_back = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        # Bound for good and never listening, so that nobody takes the port while the proxy is cut.
        self._keeper = _bound(0)
        self.port: int = self._keeper.getsockname()[1]

    @property
    def url(self) -> str:
        """The same URL, through the proxy."""
        user, at, _ = self._url.netloc.rpartition("@")
        return urlunsplit(self._url._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    @property
    def connections(self) -> int:
        return len(self._links)

    async def heal(self) -> None:
        """Forward again, at once, what may have been held back too."""
        self.delay_s = 0.0
        self._flowing.set()
        self._flowing_back.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=_bound(self.port))

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def black_hole(self) -> None:
        self._flowing.clear()
        self._flowing_back.clear()

    def hold_back(self) -> None:
        self._flowing_back.clear()

    async def __aenter__(self) -> Self:
        await self.heal()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        self._keeper.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.get_running_loop().create_task(self._link(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._flowing.wait()
            there_reader, there_writer = await self._dial()
            writers.append(there_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, there_writer, self._flowing))
                both.create_task(self._pump(there_reader, writer, self._flowing_back))
            for each in writers:
                each.close()
                await each.wait_closed()
        except* OSError:
            pass  # one side is gone, and below the other follows
        finally:
            for each in writers:
                _reset(each)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._upstream)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        while data := await reader.read(PIECE_BYTES):
            await asyncio.sleep(self.delay_s)
            await flowing.wait()
            writer.write(data)
            await writer.drain()
        await flowing.wait()
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.is_closing():
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.transport.abort()


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
