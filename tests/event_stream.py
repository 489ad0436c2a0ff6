"""A reader of Server-Sent Events, as the standard describes them, on a real hub."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import orjson

from tests.cluster import Node
from tests.device import TIMEOUT_S, Json


class EventStream:
    """A reader of Server-Sent Events."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = _lines(response)
        self.last_id = ""

    async def next(self) -> tuple[str, Json]:
        """Name and data of the next event."""
        name, data = "", b""
        async with asyncio.timeout(TIMEOUT_S):
            async for line in self._lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data = value.encode()
                elif field == "id":
                    self.last_id = value
                elif line == "" and name:
                    return name, orjson.loads(data)
        raise AssertionError("the stream ended")

    async def ended(self) -> bool:
        """Wait for the end; whether nothing came before it."""
        return await self.rest() == []

    async def rest(self) -> list[str]:
        """All lines until the end."""
        async with asyncio.timeout(TIMEOUT_S):
            return [line async for line in self._lines if line]


async def _lines(response: httpx2.Response) -> AsyncIterator[str]:
    """Lines end with a newline: `str.splitlines` and `aiter_lines` know more ends, which may stand
    in a note."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()


@asynccontextmanager
async def streaming(
    node: Node, token: str, budget_id: str, key: int = 0, last_id: str | None = None
) -> AsyncIterator[EventStream]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with (
        node.rest(token) as rest,
        rest.stream(
            "GET", f"/budgets/{budget_id}/stream", params={"key": key}, headers=headers
        ) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield EventStream(response)
