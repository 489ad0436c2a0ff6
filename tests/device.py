"""A device for tests: one socket on a real hub, all it received, and how to wait for it.

It believes nothing. A stream that leaves out, repeats or reorders an event, events without a
subscription, a frame over the limit, verdicts for something else than was sent: `Broken` is raised
by whatever waits next. What arrived is kept as bytes too, so that two devices can be compared.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

import orjson
from websockets.asyncio.client import ClientConnection, connect as connect_socket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

PROTOCOL = "budget.sync.v2"
FRAME_BYTES_MAX = 256 * 1024
TIMEOUT_S = 30.0  # for what comes at once: a busy machine may stop for seconds
IDS = Random()  # where new ids come from

Json: TypeAlias = dict[str, Any]
Way: TypeAlias = Literal["header", "subprotocol", "frame"]


class Broken(AssertionError):
    """The hub did on this socket what it must never do."""


class Refused(Exception):
    """An `error` frame answered the request."""

    def __init__(self, error: Json) -> None:
        super().__init__(f"{error['message']}: {error['detail']}")
        self.error = error
        self.code: str = error["message"]


class Ended(Exception):
    """The connection ended while something was awaited from it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code


class Frame(NamedTuple):
    """`at_s` is on the clock of `time.monotonic`."""

    raw: bytes
    body: Json
    at_s: float


class StreamEvent(NamedTuple):
    """`raw` are the event's own bytes, cut out of its frame."""

    raw: bytes
    body: Json
    at_s: float


@dataclass
class Stream:
    """One subscription. `cursor` is the last sequence that arrived, dense from `key` on."""

    key: int
    head: int  # when it began
    log_id: str
    cursor: int
    events: list[StreamEvent] = field(default_factory=list)
    live: bool = True


class _Posted(NamedTuple):
    event_ids: list[str]
    mode: str


class Device:
    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[Frame] = []
        self.streams: dict[str, Stream] = {}  # by budget; the latest subscription of each
        self.closed: Ended | None = None
        self._posted: dict[int | str, _Posted] = {}
        self._verdicts: dict[int | str, list[Json]] = {}
        self._errors: dict[int | str, Json] = {}
        self._broken: Broken | None = None
        self._ids = count(1)
        self._changed = asyncio.Event()

    def of_type(self, *kinds: str) -> list[Json]:
        """The bodies of the frames of these types, in the order they came."""
        return [frame.body for frame in self.frames if frame.body["type"] in kinds]

    async def wait_for(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Return as soon as it holds. Raises `Broken`, `Ended`, or `TimeoutError` with what came
        last."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self._broken is not None:
                        raise self._broken
                    if condition():
                        return
                    if self.closed is not None:
                        raise self.closed
                    await self._changed.wait()
        except TimeoutError:
            last = [frame.raw[:300] for frame in self.frames[-3:]]
            raise TimeoutError(f"not within {timeout_s} s; the last frames: {last}") from None

    async def send(self, frame: Json) -> None:
        await self.send_raw(orjson.dumps(frame).decode())

    async def send_raw(self, message: str | bytes) -> None:
        """Whatever it is; `bytes` make a binary message. Raises `Ended`."""
        try:
            await self.socket.send(message)
        except ConnectionClosed:
            await self.until_closed()
            assert self.closed is not None
            raise self.closed from None

    async def ask(self, frame: Json, timeout_s: float = TIMEOUT_S) -> Json:
        """Send it under a new id; the first frame that answers it. Raises `Refused`."""
        request_id = next(self._ids)
        answers: list[Json] = []

        def answered() -> bool:
            answers.extend(f.body for f in self.frames if f.body.get("id") == request_id)
            return bool(answers)

        await self.send({**frame, "id": request_id})
        await self.wait_for(answered, timeout_s)
        if answers[0]["type"] == "error":
            raise Refused(answers[0]["error"])
        return answers[0]

    async def ping(self) -> Json:
        answer = await self.ask({"type": "ping"})
        assert answer["type"] == "pong"
        return answer

    async def subscribe(self, budget_id: str, key: int | None = None) -> Stream:
        """Raises `Refused`."""
        wanted = {} if key is None else {"key": key}
        answer = await self.ask({"type": "subscribe", "budgetId": budget_id, **wanted})
        assert (answer["type"], answer["budgetId"]) == ("subscribed", budget_id.lower())
        assert answer["key"] == (key or 0)
        return self.streams[budget_id.lower()]

    async def unsubscribe(self, budget_id: str) -> None:
        answer = await self.ask({"type": "unsubscribe", "budgetId": budget_id})
        assert (answer["type"], answer["budgetId"]) == ("unsubscribed", budget_id.lower())

    async def post(self, events: Sequence[Json], mode: str | None = None) -> int:
        """Send the events in one frame and do not wait; `verdicts` gives what became of them."""
        request_id = next(self._ids)
        self.expect(request_id, events, mode)
        wanted = {} if mode is None else {"mode": mode}
        await self.send({"type": "events", "id": request_id, "events": list(events), **wanted})
        return request_id

    def expect(self, request_id: int | str, events: Sequence[Json], mode: str | None) -> None:
        """These events go out under this id, by `send_raw`."""
        event_ids = [str(event.get("eventId")).lower() for event in events]
        self._posted[request_id] = _Posted(event_ids, mode or "stop")

    async def verdicts(self, request_id: int | str, timeout_s: float = TIMEOUT_S) -> list[Json]:
        """All the verdicts of one `post`, however many frames they came in. Raises `Refused`."""
        await self.wait_for(lambda: self._settled(request_id), timeout_s)
        if request_id in self._errors:
            raise Refused(self._errors[request_id])
        return self._verdicts[request_id]

    async def submit(
        self, events: Sequence[Json], mode: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> list[Json]:
        return await self.verdicts(await self.post(events, mode), timeout_s)

    async def accepted(self, *events: Json) -> list[Json]:
        """Submit them; all are accepted."""
        verdicts = await self.submit(events)
        assert [v["status"] for v in verdicts] == ["accepted"] * len(events), verdicts
        return verdicts

    async def reached(self, budget_id: str, sequence: int, timeout_s: float = TIMEOUT_S) -> Stream:
        """The budget's stream, as soon as it has come that far."""
        await self.wait_for(
            lambda: budget_id in self.streams and self.streams[budget_id].cursor >= sequence,
            timeout_s,
        )
        return self.streams[budget_id]

    async def until_closed(self, timeout_s: float = TIMEOUT_S) -> int:
        """The code with which the connection ended."""
        await self.wait_for(lambda: self.closed is not None, timeout_s)
        assert self.closed is not None
        return self.closed.code

    def _settled(self, request_id: int | str) -> bool:
        verdicts = self._verdicts.get(request_id, [])
        event_ids, mode = self._posted[request_id]
        stopped = mode == "stop" and bool(verdicts) and verdicts[-1]["status"] != "accepted"
        return request_id in self._errors or stopped or len(verdicts) == len(event_ids)

    async def read(self) -> None:
        """Take in everything until the connection ends."""
        try:
            while True:
                message = await self.socket.recv()
                try:
                    self._take(message)
                except Broken as broken:
                    self._broken = self._broken or broken
                self._notify()
        except ConnectionClosed:
            pass
        code, reason = self.socket.close_code, self.socket.close_reason
        self.closed = Ended(1006 if code is None else code, reason or "")
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _take(self, message: str | bytes) -> None:
        _must(isinstance(message, str), "a binary message")
        assert isinstance(message, str)
        frame = Frame(message.encode(), orjson.loads(message), time.monotonic())
        self.frames.append(frame)
        body = frame.body
        match body["type"]:
            case "subscribed":
                key = body["key"]
                self.streams[body["budgetId"]] = Stream(key, body["head"], body["logId"], key)
            case "unsubscribed":
                if body["budgetId"] in self.streams:
                    self.streams[body["budgetId"]].live = False
            case "events":
                self._take_events(frame, message)
            case "results":
                self._take_results(body)
            case "error" if "id" in body:
                self._errors[body["id"]] = body["error"]

    def _take_events(self, frame: Frame, message: str) -> None:
        body = frame.body
        stream = self.streams.get(body["budgetId"])
        _must(stream is not None and stream.live, "events without a subscription")
        assert stream is not None
        events = body["events"]
        sequences = [event["sequence"] for event in events]
        _must(body["fromSequence"] == stream.cursor + 1, f"{sequences} after {stream.cursor}")
        _must(
            sequences == list(range(body["fromSequence"], body["toSequence"] + 1)),
            f"{sequences} as {body['fromSequence']}..{body['toSequence']}",
        )
        _must({event["budgetId"] for event in events} == {body["budgetId"]}, "another budget's")
        stream.cursor = body["toSequence"]
        stream.events += [
            StreamEvent(raw, event, frame.at_s)
            for raw, event in zip(raw_events(message), events, strict=True)
        ]

    def _take_results(self, body: Json) -> None:
        posted = self._posted.get(body.get("id", 0))
        _must(posted is not None, "verdicts for a frame that was never sent")
        assert posted is not None
        verdicts = self._verdicts.setdefault(body["id"], [])
        verdicts += body["results"]
        event_ids = [verdict["eventId"] for verdict in verdicts]
        _must(event_ids == posted.event_ids[: len(event_ids)], "verdicts for other events")


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def raw_events(message: str) -> list[bytes]:
    """The text of each event of an `events` frame."""
    decoder = json.JSONDecoder()
    at = message.index('"events":[') + len('"events":[')
    raw = []
    while True:
        _, end = decoder.raw_decode(message, at)
        raw.append(message[at:end].encode())
        if message[end] == "]":
            return raw
        at = end + 1


@asynccontextmanager
async def open_device(
    url: str,
    *,
    headers: Mapping[str, str] = {},
    subprotocols: Sequence[str] = (PROTOCOL,),
    query: str = "",
) -> AsyncIterator[Device]:
    """A device on its socket, signed in by nothing but what is given; it may not have been welcomed
    yet. `url` is the hub's, with `http`.

    Raises `websockets.exceptions.InvalidStatus` where the hub refuses the upgrade."""
    async with connect_socket(
        f"ws{url.removeprefix('http')}/sync{query}",
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        additional_headers=headers,
        compression=None,
        proxy=None,
        open_timeout=TIMEOUT_S,
        close_timeout=TIMEOUT_S,
        ping_interval=None,  # a hub that a test has frozen is not to be given up
        max_size=FRAME_BYTES_MAX,
        max_queue=None,
    ) as socket:
        device = Device(socket)
        reading = asyncio.create_task(device.read())
        try:
            yield device
        finally:
            await socket.close()
            await reading


@asynccontextmanager
async def connect(
    url: str, token: str, *, way: Way = "header", query: str = ""
) -> AsyncIterator[Device]:
    """A device that signed in, the given way, and has been welcomed."""
    headers = {"Authorization": f"Bearer {token}"} if way == "header" else {}
    subprotocols = [PROTOCOL, f"bearer.{token}"] if way == "subprotocol" else [PROTOCOL]
    async with open_device(url, headers=headers, subprotocols=subprotocols, query=query) as device:
        if way == "frame":
            await device.send({"type": "auth", "token": token})
        await device.wait_for(lambda: bool(device.of_type("auth")))
        yield device


# Events as a client builds them. Every field can be given; ids are new and `when` is now otherwise.


def budget_create(budget_id: str, **fields: object) -> Json:
    return _event("budget.create", budget_id, {"title": "Trip", **fields})


def budget_edit(budget_id: str, version: int, **fields: object) -> Json:
    return _event("budget.edit", budget_id, {"version": version, **fields})


def category_add(budget_id: str, **fields: object) -> Json:
    new = {"recordId": new_id(), "name": "Food", "allocate": "100.00"}
    return _event("category.add", budget_id, {**new, **fields})


def expense_add(budget_id: str, **fields: object) -> Json:
    new = {"recordId": new_id(), "amount": "12.50", "date": "2026-11-21"}
    return _event("expense.add", budget_id, {**new, **fields})


def expense_edit(budget_id: str, record_id: str, version: int, **fields: object) -> Json:
    return _event("expense.edit", budget_id, {"recordId": record_id, "version": version, **fields})


def new_id() -> str:
    """A test draws the same ids each time it runs: `conftest.py` seeds them with its name."""
    return str(UUID(int=IDS.getrandbits(128), version=4))


def _event(event_type: str, budget_id: str, fields: Json) -> Json:
    return {
        "eventId": new_id(),
        "eventType": event_type,
        "budgetId": budget_id,
        "when": int(time.time() * 1000),
        **fields,
    }
