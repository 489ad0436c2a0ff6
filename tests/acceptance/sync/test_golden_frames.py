"""The frames of every released version of the protocol, replayed: old clients are still understood.

A transcript in `tests/golden/<protocol>/<release>/` is a list of steps of devices by name:

- `opens` a socket as `user`, by one `way` of signing in (or with a `token` that is none), with a
  `query`; where it is `refused`, with that status of HTTP. `rest` is a call beside the sockets,
  and `import` a budget that a hub of that release has exported: logs are kept for ever;
- `sends` a frame, or a `text`; `"token": "<ann>"` in it stands for a token of that user;
- `receives` a frame. `results` and `events` have no mutual order, so each is the next one of its
  type; how events are cut into frames is the hub's affair; of `presence` some frame has to be it;
- is `closed` with that code. `hub` gets that signal.

What differs from run to run is `…`. A frame may have more fields than the release knew, which its
clients ignore, but none less and none other. Nothing a client was not told of may come either.

A release is recorded once, with `GOLDEN=record`, of transcripts whose `receives` have only what
chooses a frame (`type`, for `events` also `budgetId` and `toSequence`). Ids are never used again in
another one.
"""

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import pytest
from websockets.exceptions import InvalidStatus

from tests import ROOT
from tests.cluster import Cluster, Node, Process, token
from tests.compatible import missing
from tests.device import PROTOCOL, Device, Json, open_device

FOLDER = ROOT / "tests" / "golden"
TRANSCRIPTS = sorted(FOLDER.glob("*/*/*.json"))
RECORD = os.environ.get("GOLDEN") == "record"
VOLATILE = {
    "connectionId",
    "detail",  # for people
    "expiresAt",
    "heartbeatS",
    "joinedAt",
    "logId",
    "reconnectAfterMs",
    "serverTime",
}
UNASKED = {"heads", "presence"}  # come by the clock
CLIENT_FRAMES = {"auth", "subscribe", "unsubscribe", "events", "ping"}
SERVER_FRAMES = {
    "welcome",
    "auth",
    "auth.expiring",
    "subscribed",
    "events",
    "results",
    "unsubscribed",
    "presence",
    "goaway",
    "error",
    "pong",
}


class Reader:
    """A device of a transcript, and what of all it received has been accounted for."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._taken = Counter[str]()  # frames of a type; events of a budget
        self._told: list[Json] = []  # of what comes by the clock

    async def next(self, wanted: Json) -> Json:
        """The next frame that `wanted` chooses."""
        kind = wanted["type"]
        if kind in UNASKED:
            await self.device.wait_for(lambda: any(self._fits(wanted)))
            return next(self._fits(wanted))
        if kind == "events":
            return await self._events(wanted["budgetId"], wanted["toSequence"])
        number = self._taken[kind]
        await self.device.wait_for(lambda: len(self.device.of_type(kind)) > number)
        self._taken[kind] += 1
        return steady(self.device.of_type(kind)[number])

    def left(self) -> list[Json]:
        """What came and nobody waited for."""
        frames: list[Json] = []
        seen = Counter[str]()
        for frame in self.device.of_type(*(SERVER_FRAMES - UNASKED - {"events"})):
            seen[frame["type"]] += 1
            if seen[frame["type"]] > self._taken[frame["type"]]:
                frames.append(frame)
        for budget_id in {frame["budgetId"] for frame in self.device.of_type("events")}:
            frames += self._of(budget_id)[self._taken[budget_id] :]
        known = {*SERVER_FRAMES, *UNASKED}
        return frames + [f.body for f in self.device.frames if f.body["type"] not in known]

    async def _events(self, budget_id: str, to_sequence: int) -> Json:
        def arrived() -> list[Json]:
            return self._of(budget_id)[self._taken[budget_id] :]

        await self.device.wait_for(
            lambda: any(event["sequence"] == to_sequence for event in arrived())
        )
        sequences = [event["sequence"] for event in arrived()]
        events = arrived()[: sequences.index(to_sequence) + 1]
        self._taken[budget_id] += len(events)
        return {
            "type": "events",
            "budgetId": budget_id,
            "fromSequence": sequences[0],
            "toSequence": to_sequence,
            "events": [steady(event) for event in events],
        }

    def _of(self, budget_id: str) -> list[Json]:
        frames = self.device.of_type("events")
        return [e for frame in frames if frame["budgetId"] == budget_id for e in frame["events"]]

    def _fits(self, wanted: Json) -> Iterator[Json]:
        frames = (steady(frame) for frame in self.device.of_type(wanted["type"]))
        return (frame for frame in frames if not any(missing(wanted, frame)))


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_a_released_client_is_still_understood(
    cluster: Cluster, node: Node, path: Path
) -> None:
    steps = orjson.loads(path.read_bytes())  # noqa: ASYNC240  (nothing else runs here)
    assert path.parts[-3] == PROTOCOL
    if any("hub" in step for step in steps):
        node = await cluster.start()
    readers: dict[str, Reader] = {}
    async with AsyncExitStack() as stack:
        for number, step in enumerate(steps):
            if "import" in step:
                await imported(cluster, path.parent / step["import"])
                continue
            differences = [d async for d in take(stack, node, readers, step)]
            assert differences == [], f"step {number}: {step}"
        for name, reader in readers.items():
            assert reader.left() == [], name
    if RECORD:
        path.write_bytes(orjson.dumps(steps, option=orjson.OPT_INDENT_2) + b"\n")  # noqa: ASYNC240


async def take(
    stack: AsyncExitStack, node: Node, readers: dict[str, Reader], step: Json
) -> AsyncIterator[str]:
    """Do the step; what came of it that is not what stands there."""
    match step:
        case {"hub": name}:
            node.signal(signal.Signals[name])
        case {"rest": asked}:
            async with node.rest(token(asked["user"])) as rest:
                response = await rest.request(asked["method"], asked["path"])
            if not response.is_success:
                yield response.text
        case {"device": name, "opens": how}:
            try:
                readers[name] = Reader(await opened(stack, node, how))
            except InvalidStatus as refused:
                status = refused.response.status_code
                if status != step.get("refused"):
                    yield f"refused with {status}"
            else:
                if "refused" in step:
                    yield "it was let in"
        case {"device": name, "text": text}:
            await readers[name].device.send_raw(text)
        case {"device": name, "sends": frame}:
            device = readers[name].device
            if frame["type"] == "events":
                device.expect(frame["id"], frame["events"], frame.get("mode"))
            if "token" in frame:
                frame = {**frame, "token": bearer(frame["token"])}
            await device.send(frame)
        case {"device": name, "receives": known}:
            given = await readers[name].next(known)
            for difference in missing(known, given):
                yield difference
            if RECORD:
                step["receives"] = given
        case {"device": name, "closed": code}:
            found = await readers[name].device.until_closed()
            if found != code:
                yield f"closed with {found}"
        case _:
            raise AssertionError("no step of a transcript")


async def imported(cluster: Cluster, path: Path) -> None:
    environ = {"DATABASE_URL": cluster.database_url}
    process = Process(cluster.folder, f"import-{path.stem}", ["import", path], environ)
    try:
        assert await process.ended() == 0, process.err
    finally:
        await process.close()


async def opened(stack: AsyncExitStack, node: Node, how: Json) -> Device:
    """Raises `InvalidStatus`."""
    who = how.get("token") or token(how["user"], ttl_s=how.get("ttlS", 3600))
    way = how.get("way", "header")
    device = await stack.enter_async_context(
        open_device(
            node.url,
            headers={"Authorization": f"Bearer {who}"} if way == "header" else {},
            subprotocols=[PROTOCOL, *([f"bearer.{who}"] if way == "subprotocol" else [])],
            query=how.get("query", ""),
        )
    )
    assert device.socket.subprotocol == PROTOCOL
    return device


def bearer(text: str) -> str:
    """`<ann>`: a token of hers. Anything else is what it is."""
    return token(text[1:-1]) if text.startswith("<") else text


def steady(frame: Json) -> Json:
    """The frame without what differs from run to run."""

    def plain(value: object, volatile: frozenset[str]) -> object:
        if isinstance(value, list):
            return [plain(item, volatile) for item in value]
        if not isinstance(value, dict):
            return value
        if str(value.get("eventType", "")).startswith("participant."):  # made by the hub
            volatile |= {"eventId", "when"}
        return {
            name: {each: "…" for each in item}
            if name == "limits"
            else "…"
            if name in volatile
            else plain(item, volatile)
            for name, item in value.items()
        }

    found = plain(frame, frozenset(VOLATILE))
    assert isinstance(found, dict)
    return found


def test_every_release_has_transcripts_of_the_whole_protocol() -> None:
    """But for `heads`, which come every fifteen seconds only."""
    releases = {path.parent for path in TRANSCRIPTS}
    assert releases
    for release in releases:
        steps = [s for path in release.glob("*.json") for s in orjson.loads(path.read_bytes())]
        assert {s["sends"]["type"] for s in steps if "sends" in s} == CLIENT_FRAMES
        assert {s["receives"]["type"] for s in steps if "receives" in s} >= SERVER_FRAMES
        assert any("import" in step for step in steps)
        told = orjson.dumps(steps).decode()
        for kind in ("budget", "category", "expense"):
            for verb in ("create" if kind == "budget" else "add", "edit", "delete"):
                assert f'"eventType":"{kind}.{verb}"' in told
        for status in ("accepted", "conflict", "rejected"):
            assert f'"status":"{status}"' in told
        assert {s["closed"] for s in steps if "closed" in s} >= {1012, 4400, 4401}
