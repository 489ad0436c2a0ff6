"""The other nodes of one server, which share its port, and what each has counted.

A scrape of the port reaches any node and has to show all. So each node listens on a Unix socket in
a folder that the supervisor made, and answers a connection with its numbers. A node that does not
answer in time is left out; the gap in its series is the signal.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import structlog

ANSWER_S = 1.0
ANSWER_BYTES_MAX = 4 * 1024 * 1024

_log = structlog.get_logger()


class Siblings:
    """`number` is this node's own; without a `folder` there are no others."""

    def __init__(self, folder: Path | None = None, number: int = 0) -> None:
        self.number = number
        self._folder = folder
        self._server: asyncio.Server | None = None

    async def open(self, tell: Callable[[], bytes]) -> None:
        """Answer the other nodes with `tell`, until `close`."""
        if self._folder is None:
            return

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, TimeoutError):
                writer.write(tell())
                async with asyncio.timeout(ANSWER_S):
                    await writer.drain()
            writer.close()

        path = self._path(self.number)
        try:
            path.unlink(missing_ok=True)  # of a node that was killed
            self._server = await asyncio.start_unix_server(answer, path)
        except OSError as error:  # it still answers with its own numbers
            _log.warning("the other nodes cannot ask for metrics", error=str(error))

    async def close(self) -> None:
        if self._folder is not None and self._server is not None:
            self._server.close()
            self._path(self.number).unlink(missing_ok=True)

    async def told(self) -> dict[int, Any]:
        """What the other nodes answer, by their numbers."""
        if self._folder is None:
            return {}
        numbers = [int(path.stem) for path in self._folder.glob("*.socket")]
        others = [number for number in numbers if number != self.number]
        answers = await asyncio.gather(*map(self._ask, others))
        return {number: said for number, said in zip(others, answers, strict=True) if said}

    async def _ask(self, number: int) -> Any:
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._path(number))
                try:
                    text = bytearray()
                    while data := await reader.read(65536):
                        text += data
                        if len(text) > ANSWER_BYTES_MAX:
                            return None
                finally:
                    writer.close()
            return orjson.loads(text)
        except (OSError, TimeoutError, orjson.JSONDecodeError) as error:
            _log.info(
                "no metrics from a node of this server", worker=number, error=type(error).__name__
            )
            return None

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{number}.socket"
