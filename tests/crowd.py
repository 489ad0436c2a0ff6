"""A crowd for tests: hundreds of sockets on a real hub that cost next to nothing.

`tests.device.Device` keeps everything that arrives. A `Spectator` keeps the order of the events and
the few other frames, and does what no library for clients would: it stops reading, vanishes without
a word, answers no ping. Below it: hubs with a patch, hubs inside the test's own loop, and what one
sees of a process from outside.
"""

import asyncio
import base64
import gc
import os
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias, cast
from urllib.parse import urlsplit

import orjson
import pytest

from api.app import App, open_app
from api.process import server
from api.settings import Settings
from loadtest.bench.fast_socket import masked
from tests.cluster import until
from tests.device import PROTOCOL

OPEN_S = 60.0
SMALL_BYTES = 4096  # a receive buffer that is full at once
ABNORMAL = 1006  # no close frame came
_TEXT, _CLOSE, _PING = 1, 8, 9
_PONG_FRAME, _CLOSE_FRAME = 0x8A, 0x88
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, for no time at all

Json: TypeAlias = dict[str, Any]


class Seen(NamedTuple):
    """One event as it arrived; `at_s` is on the clock of `time.monotonic`."""

    sequence: int
    event_id: str
    at_s: float


class Spectator(asyncio.Protocol):
    """One socket. `broken` says what the hub did that it must never do; `close_code` is None as
    long as the connection stands. `took` is called with each frame, after it was taken in."""

    def __init__(self, *, pongs: bool = True, took: Callable[[Json], None] | None = None) -> None:
        self.events: dict[str, list[Seen]] = {}
        self.cursors: dict[str, int] = {}
        self.frames: list[Json] = []  # all but events
        self.broken: str | None = None
        self.close_code: int | None = None
        self.status = b""  # of the upgrade
        self._pongs = pongs
        self._took = took
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._said: int | None = None  # the code of the hub's close frame
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def of_type(self, kind: str) -> list[Json]:
        return [frame for frame in self.frames if frame["type"] == kind]

    def errors(self) -> list[str]:
        return [frame["error"]["message"] for frame in self.of_type("error")]

    def send(self, *frames: Json) -> None:
        self.transport.write(b"".join(masked(orjson.dumps(frame)) for frame in frames))

    def subscribe(self, budget_id: str, key: int = 0) -> None:
        self.cursors[budget_id] = key
        self.send({"type": "subscribe", "budgetId": budget_id, "key": key})

    def post(self, events: list[Json], request_id: int = 0) -> None:
        self.send({"type": "events", "id": request_id, "events": events, "mode": "each"})

    def stop_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def reset(self) -> None:
        """Be gone at once: the hub gets a TCP reset, and no close frame."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    async def joined(self, budget_id: str, timeout_s: float = OPEN_S) -> None:
        """Wait for the answer to `subscribe`, and for the log up to that moment."""

        def has_joined() -> bool:
            self.check()
            heads = [f["head"] for f in self.of_type("subscribed") if f["budgetId"] == budget_id]
            return bool(heads) and self.cursors[budget_id] >= heads[-1]

        await until(has_joined, timeout_s)

    def check(self) -> None:
        assert self.broken is None, self.broken
        assert self.close_code is None, (self.close_code, self.errors())

    # What comes from the hub.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        self._rest = b""
        if not self.status:
            head, found, after = data.partition(b"\r\n\r\n")
            if not found:
                self._rest = data
                return
            self.status, data = head.split(b"\r\n", 1)[0], after
        start, end = 0, len(data)
        while end - start >= 2:
            size, body = data[start + 1], start + 2
            if size == 126:
                size, body = int.from_bytes(data[start + 2 : start + 4], "big"), start + 4
            elif size == 127:
                size, body = int.from_bytes(data[start + 2 : start + 10], "big"), start + 10
            if end < body + size:
                break
            self._frame(data[start] & 15, data[body : body + size])
            start = body + size
        self._rest = data[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.close_code = ABNORMAL if self._said is None else self._said
        if not self.lost.done():
            self.lost.set_result(None)

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == _TEXT:
            self._take(orjson.loads(payload))
        elif opcode == _PING and self._pongs:
            self._control(_PONG_FRAME, payload)
        elif opcode == _CLOSE:
            self._said = int.from_bytes(payload[:2], "big")
            self._control(_CLOSE_FRAME, payload[:2])

    def _control(self, head: int, payload: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(
                b"%c%c\x00\x00\x00\x00%b" % (head, 0x80 | len(payload), payload)  # masked with 0
            )

    def _take(self, frame: Json) -> None:
        if frame["type"] == "events":
            self._take_events(frame)
        else:
            self.frames.append(frame)
        if self._took is not None:
            self._took(frame)

    def _take_events(self, frame: Json) -> None:
        now_s = time.monotonic()
        budget_id = frame["budgetId"]
        sequences = [event["sequence"] for event in frame["events"]]
        cursor = self.cursors[budget_id]
        if sequences != list(range(cursor + 1, cursor + 1 + len(sequences))):
            self.broken = self.broken or f"{sequences} after {cursor}"
        self.cursors[budget_id] = sequences[-1]
        self.events.setdefault(budget_id, []).extend(
            Seen(event["sequence"], event["eventId"], now_s) for event in frame["events"]
        )


async def open_spectator(
    url: str,
    token: str | None,
    *,
    pongs: bool = True,
    took: Callable[[Json], None] | None = None,
    receive_bytes: int | None = None,
    upgrade: bool = True,
) -> Spectator:
    """A spectator on the hub at `url`, welcomed if it has a token. `receive_bytes` is the size of
    its kernel's buffer; without `upgrade` it is a bare TCP connection. Raises `OSError` where it is
    refused."""
    host, port = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(connection, (host, port))
        _, spectator = await loop.create_connection(
            lambda: Spectator(pongs=pongs, took=took), sock=connection
        )
    except BaseException:  # also where nobody waits for it any more
        connection.close()
        raise
    if not upgrade:
        return spectator
    bearer = "" if token is None else f"Authorization: Bearer {token}\r\n"
    key = base64.b64encode(os.urandom(16)).decode()
    spectator.transport.write(
        (
            f"GET /sync HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: {PROTOCOL}\r\n{bearer}\r\n"
        ).encode()
    )

    def opened() -> bool:
        ready = spectator.of_type("auth") if token is not None else spectator.status
        return bool(ready) or spectator.close_code is not None

    try:
        await until(opened, OPEN_S)
    except BaseException:
        spectator.transport.abort()
        raise
    if b" 101 " not in spectator.status or spectator.close_code is not None:
        spectator.transport.abort()
        raise ConnectionRefusedError(f"{spectator.status!r} {spectator.close_code}")
    return spectator


class Crowd:
    """Spectators that are all gone at the end. Use as a context manager."""

    def __init__(self) -> None:
        self.all: list[Spectator] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for spectator in self.all:
            spectator.transport.abort()

    async def join(self, *opening: "asyncio.Future[Spectator] | Any") -> list[Spectator]:
        """Open them at the same time."""
        opened = await asyncio.gather(*opening, return_exceptions=True)
        spectators = [each for each in opened if isinstance(each, Spectator)]
        self.all += spectators
        for each in opened:
            if isinstance(each, BaseException):
                raise each
        return spectators


# Hubs that are not quite as they come.


def patched(*statements: str) -> list[str]:
    """A program that is `budget-hub` after these statements, for `Cluster(program=...)`."""
    lines = ("import api.process.server", *statements, "from api.cli.main import main", "main()")
    return [sys.executable, "-c", "\n".join(lines)]


def waiting(**seconds: float) -> str:
    """A statement for `patched`: these instead of the same `api.timeouts.AppTimeouts`."""
    return (
        "from dataclasses import replace; from api.process import server; "
        f"server.APP_TIMEOUTS = replace(server.APP_TIMEOUTS, **{seconds!r})"
    )


@asynccontextmanager
async def in_this_process(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, App]]:
    """What `serve` runs, in the test's own loop: its URL, and the inside. It drains at the end."""
    apps: list[App] = []

    @asynccontextmanager
    async def remembered(*settings: Any) -> AsyncIterator[App]:
        async with open_app(*settings) as app:
            apps.append(app)
            yield app

    monkeypatch.setattr(server, "open_app", remembered)
    ready = asyncio.Event()
    listening = server.bind("127.0.0.1", 0)
    url = server.address(listening)
    ours, theirs = socket.socketpair()
    thresholds = gc.get_threshold()
    serving = asyncio.create_task(server.serve(settings, listening, ready.set, theirs))
    try:
        await until(lambda: ready.is_set() or serving.done(), OPEN_S)
        if not ready.is_set():
            await serving
        yield url, apps[0]
    finally:
        ours.close()
        await serving
        theirs.close()
        gc.unfreeze()
        gc.set_threshold(*thresholds)


# A process from outside, by /proc.


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such process")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def connections(url: str) -> int:
    """How many connections to this port some process holds at its end."""
    port, listening, orphan = urlsplit(url).port, "0A", "0"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # By both ends: while connections come and go, the kernel may show one twice.
    ends = {
        (row[1], row[2])
        for row in rows
        if int(row[1].rpartition(":")[2], 16) == port and row[3] != listening and row[9] != orphan
    }
    return len(ends)
