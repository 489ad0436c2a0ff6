"""One simulated phone on one socket: it sends events, and checks all that reaches it.

A device follows one budget from its cursor, keeps a replica of it and remembers what arrived when.
It judges on the spot only what it can know alone: frames that are none, a digest that differs, a
lost socket. What was missed, repeated or misordered is judged after the run, over all devices.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from loadtest.replica import Diverged, Replica
from loadtest.rest import Refused, Target, Unreachable

PROTOCOL = Subprotocol("budget.sync.v1")
FRAME_BYTES_MAX = 256 * 1024  # the server promises no larger frame
CONNECT_TIMEOUT_S = 10.0

Event: TypeAlias = dict[str, Any]


class Seen(NamedTuple):
    """A stream event as it came in. `at_s` is on the clock of `time.perf_counter`."""

    sequence: int
    event_id: str
    at_s: float


class Verdict(NamedTuple):
    status: str  # accepted, conflict, rejected
    sequence: int | None
    code: str | None  # why it was rejected
    retryable: bool
    at_s: float


class Device:
    """A device of the user whose `token` it has, at one hub, with one budget.

    `changed` is set whenever anything arrives; devices may share one. `fault` is the first thing
    that was wrong, in words; a device with a fault goes on listening.
    """

    def __init__(
        self, name: str, target: Target, token: str, budget_id: str, changed: asyncio.Event
    ) -> None:
        self.name = name
        self.target = target
        self.token = token
        self.replica = Replica(budget_id)
        self.seen: list[Seen] = []
        self.verdicts: dict[str, Verdict] = {}  # by eventId
        self.unsettled: set[str] = set()  # eventIds that were sent and have no verdict
        self.fault: str | None = None
        self._head: int | None = None  # of the budget, when the subscription began
        self.changed = changed
        self._request_ids = count(1)
        self._socket: ClientConnection | None = None
        self._welcomed = False
        self._leaving = False

    def __str__(self) -> str:
        return f"{self.name} at {self.target}"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """On the socket, subscribed, and up to date with what was in the log before.

        Raises `Unreachable` or `Refused` where that fails.
        """
        socket = await self._open()
        self._socket = socket
        reader = asyncio.create_task(self._read(socket))
        try:
            await self._subscribe()
            yield
        finally:
            self._leaving = True
            await socket.close()
            await reader  # ends with its socket

    async def submit(self, event: Event) -> None:
        """Send one event in a frame of its own; its verdict will stand in `verdicts`."""
        self.unsettled.add(event["eventId"])
        await self._send({"type": "events", "events": [event]})

    async def _open(self) -> ClientConnection:
        try:
            socket = await connect(
                self.target.socket_url,
                subprotocols=[PROTOCOL],
                additional_headers={"Authorization": f"Bearer {self.token}"},
                compression=None,
                proxy=None,
                open_timeout=CONNECT_TIMEOUT_S,
                max_size=FRAME_BYTES_MAX,
            )
        except InvalidHandshake as error:
            raise Refused(f"{self.target} refused the socket of {self.name}: {error}") from error
        except OSError as error:  # timeouts too
            raise Unreachable(f"no hub answers at {self.target.socket_url}: {error}") from error
        if socket.subprotocol != PROTOCOL:
            await socket.close()
            raise Refused(f"{self.target} does not speak {PROTOCOL}")
        return socket

    async def _subscribe(self) -> None:
        budget_id, key = self.replica.budget_id, self.replica.sequence
        await self._send({"type": "subscribe", "budgetId": budget_id, "key": key})

        def ready() -> bool:
            up_to_date = self._head is not None and self.replica.sequence >= self._head
            return up_to_date or self.fault is not None

        while not ready():  # a long log may take its time, as long as it keeps coming
            before = len(self.seen)

            def moved(before: int = before) -> bool:
                return ready() or len(self.seen) > before

            if not await until(moved, self.changed, CONNECT_TIMEOUT_S):
                raise Refused(f"{self.target} did not bring {self.name} up to date")
        if self.fault is not None:
            raise Refused(f"{self} {self.fault}")

    async def _send(self, frame: dict[str, object]) -> None:
        assert self._socket is not None
        try:
            await self._socket.send(
                orjson.dumps({"id": next(self._request_ids), **frame}), text=True
            )
        except ConnectionClosed:
            return  # the reader meets the same end, and says why

    async def _read(self, socket: ClientConnection) -> None:
        try:
            while True:
                text = await socket.recv(decode=False)
                self._receive(text, time.perf_counter())
                self.changed.set()
        except ConnectionClosed as end:
            if not self._leaving:
                self._fail(f"lost its socket: {end}")

    def _receive(self, text: bytes, at_s: float) -> None:
        try:
            frame = orjson.loads(text)
            if frame["type"] != "welcome" and not self._welcomed:
                self._fail(f"was not welcomed, but sent {_excerpt(text)}")
            match frame["type"]:
                case "welcome":
                    self._welcomed = True
                case "events":
                    self._receive_events(frame, at_s)
                case "results":
                    for result in frame["results"]:
                        self._receive_verdict(result, at_s)
                case "subscribed":
                    self._head = frame["head"]
                case "unsubscribed" | "error":
                    self._fail(f"was refused: {_excerpt(text)}")
        except Diverged as error:
            self._fail(f"diverged: {error}")
        except (ValueError, KeyError, TypeError) as error:
            self._fail(f"got a frame of another shape ({error!r}): {_excerpt(text)}")

    def _receive_events(self, frame: Event, at_s: float) -> None:
        if self._head is None or frame["budgetId"] != self.replica.budget_id:
            self._fail(f"got events of budget {frame['budgetId']} without being subscribed to it")
            return
        events = frame["events"]
        stated = frame["fromSequence"], frame["toSequence"]
        if stated != (events[0]["sequence"], events[-1]["sequence"]):
            self._fail("got a frame of events {}..{} that holds others".format(*stated))
        # All first, then the replica: what it stumbles over must not hide that the rest came.
        self.seen += [Seen(event["sequence"], event["eventId"], at_s) for event in events]
        for event in events:
            if event["sequence"] == self.replica.sequence + 1:
                self.replica.apply(event)

    def _receive_verdict(self, result: Event, at_s: float) -> None:
        event_id = result["eventId"]
        if event_id not in self.unsettled:
            self._fail(f"got a verdict it was not waiting for, on event {event_id}")
            return
        error = result.get("error", {})
        verdict = Verdict(
            result["status"],
            result["sequence"] if result["status"] == "accepted" else None,
            error.get("message"),
            error.get("retryable", False),
            at_s,
        )
        self.unsettled.remove(event_id)
        self.verdicts[event_id] = verdict

    def _fail(self, fault: str) -> None:
        if self.fault is None:
            self.fault = fault
        self.changed.set()


async def until(done: Callable[[], bool], changed: asyncio.Event, timeout_s: float) -> bool:
    """Wait for `done`, asked again at every `changed`; whether it came true in `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            while not done():
                changed.clear()
                await changed.wait()
    except TimeoutError:
        return done()
    return True


def _excerpt(text: bytes) -> str:
    return text[:300].decode(errors="replace")
