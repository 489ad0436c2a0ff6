"""An HTTP connection, byte by byte."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

from tests.cluster import BUSY_S


class Answer(NamedTuple):
    status: int
    code: str  # of an error, or nothing
    headers: bytes
    body: bytes


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, str]:
        """Status, and the code of an error."""
        return (await self.whole_answer())[:2]

    async def whole_answer(self) -> Answer:
        async with asyncio.timeout(BUSY_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None
            text = await self.reader.readexactly(int(length[1]))
        assert re.search(rb"(?i)x-request-id: ", head)
        body = orjson.loads(text)
        code = body.get("error", {}).get("message", "") if isinstance(body, dict) else ""
        return Answer(int(head.split()[1]), code, head, text)

    async def ended(self) -> bytes:
        """What came before the hub's end; with an end in order, no reset."""
        async with asyncio.timeout(BUSY_S):
            return await self.reader.read()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Peer]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()
