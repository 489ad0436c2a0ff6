"""The proxy in front of the hubs, which devices know: as `infra/containers/haproxy.cfg` has it.

A new connection goes to the hub that has the fewest of those that are ready (`/readyz`), and to
another one if that is not there; where none is ready it is refused. What is connected stays.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

from loadtest.proxy import Proxy

CHECK_S = 0.2  # there once a second
CHECK_TIMEOUT_S = 2.0
FALL = 2  # failed checks in a row until a hub is out; one that succeeds takes it in again

_CHECK = b"GET /readyz HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n"


class Balancer(Proxy):
    """In front of the hubs at `urls`, whatever process is there. Use as an async context manager.

    It may be cut, and heal, as any `Proxy`: then all that were connected are dealt out anew."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(urls[0])
        self._hubs = [(parts.hostname, parts.port) for parts in map(urlsplit, urls)]
        self._failed = [0] * len(urls)  # checks in a row
        self._dialled = [0] * len(urls)
        self._held: list[tuple[int, asyncio.StreamWriter]] = []  # by the number of the hub
        self._checking: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> list[int]:
        """The hubs, by their numbers, that get new connections."""
        return [number for number, failed in enumerate(self._failed) if failed < FALL]

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._checking = [
            asyncio.create_task(self._check(number)) for number, _ in enumerate(self._hubs)
        ]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._checking:
            task.cancel()
        await asyncio.gather(*self._checking, return_exceptions=True)
        await super().__aexit__(*error)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for number in sorted(self.ready, key=self._load):
            self._dialled[number] += 1
            try:
                reader, writer = await asyncio.open_connection(*self._hubs[number])
                self._held.append((number, writer))
                return reader, writer
            except OSError:
                pass  # to the next one
            finally:
                self._dialled[number] -= 1
        raise ConnectionRefusedError("no hub is ready")

    def _load(self, hub: int) -> int:
        """Its connections, with those to be: many devices come at once."""
        self._held = [held for held in self._held if not held[1].is_closing()]
        return self._dialled[hub] + len([number for number, _ in self._held if number == hub])

    async def _check(self, number: int) -> None:
        while True:
            ready = False
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    ready = await _is_ready(*self._hubs[number])
            self._failed[number] = 0 if ready else self._failed[number] + 1
            await asyncio.sleep(CHECK_S)


async def _is_ready(host: str | None, port: int | None) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(_CHECK)
        return (await reader.readline()).split()[1:2] == [b"200"]
    finally:
        writer.close()
