"""Long-polls and Server-Sent Events in the order of steps that a real network seldom makes: the
whole application in this process, driven request by request."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import orjson
import pytest
import uvloop
from starlette.types import Message

from api.app import App, open_app
from api.http import reads
from api.http.reads import READS_PER_USER
from api.http.verdicts import submitted
from api.rest.core import events as events_module, followers
from api.rest.core.followers import EventStream
from api.settings import Settings
from api.sync.wire import HIGH_WATER_BYTES
from api.timeouts import APP_TIMEOUTS
from hub.budget.events import Joining, Leaving, parse_batch
from hub.frames.websocket import FRAME_BYTES_MAX
from hub.hub import Hub
from hub.ports import Page, Principal
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.database import SHARES
from tests.cluster import AUTH_SECRET, token, until
from tests.device import Json, budget_create, expense_add, new_id
from tests.patience import PATIENT

TIMEOUT_S = 30.0


@pytest.fixture
async def app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[App]:
    for purpose in ("rest", "owners"):
        monkeypatch.setitem(SHARES, purpose, SHARES[purpose]._replace(wait_s=0.5))
    settings = Settings(database_url=database_url, auth_secret=AUTH_SECRET)
    # No sweep: it would find what the followers missed.
    async with open_app(settings, timeouts=replace(PATIENT, sweep_s=3600.0)) as app:
        yield app


@pytest.fixture
async def budget_id(app: App) -> str:
    budget_id = new_id()
    await submit(app.hub, budget_create(budget_id))
    return budget_id


async def submit(hub: Hub, *events: Json) -> None:
    for start in range(0, len(events), 100):
        some = list(events[start : start + 100])
        verdicts = await submitted(hub, "ann", parse_batch(some, len(some)), "stop")
        assert [verdict.error for verdict in verdicts] == [None] * len(some)


class Request:
    """A GET whose answer is taken piece by piece, while `taking` is set."""

    def __init__(self, path: str, bearer: str = "") -> None:
        parts = urlsplit(path)
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": parts.path,
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "root_path": "",
            "headers": [(b"authorization", f"Bearer {bearer or token('ann')}".encode())],
            "state": {},
        }
        self.status = 0
        self.body = b""
        self.chunks = 0
        self.taking = asyncio.Event()
        self.taking.set()
        self.gone = asyncio.Event()
        self._asked = False

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        await self.taking.wait()
        self.chunks += bool(message.get("body"))
        self.body += message.get("body", b"")

    def sequences(self) -> list[int]:
        """Of the events of a stream, as far as it came."""
        return [
            event["sequence"]
            for data in re.findall(
                rb"^event: events\ndata: (.*)\nid: \d+\n\n", self.body, re.MULTILINE
            )
            for event in orjson.loads(data)["events"]
        ]


@asynccontextmanager
async def under_way(app: App, request: Request) -> AsyncIterator["asyncio.Task[None]"]:
    async def run() -> None:
        await app.rest(request.scope, request.receive, request.send)

    task = asyncio.create_task(run())
    try:
        yield task
    finally:
        request.gone.set()
        request.taking.set()
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(task, return_exceptions=True)


def poll_path(budget_id: str, key: int, wait_s: int = 60) -> str:
    return f"/events?budgetId={budget_id}&key={key}&wait={wait_s}"


class Halting:
    """The log; what the `nth` page holds is known, and its reader is not told before `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
        self.read = asyncio.Event()
        self.go_on = asyncio.Event()
        page, left = PostgresLog.page, nth

        async def halting(log: PostgresLog, *asked: Any) -> Page | None:
            nonlocal left
            found = await page(log, *asked)
            left -= 1
            if left == 0:
                self.read.set()
                await self.go_on.wait()
            return found

        monkeypatch.setattr(PostgresLog, "page", halting)


@pytest.mark.parametrize("nth", [1, 2], ids=["before it subscribes", "before it waits"])
async def test_p2_an_event_between_the_read_and_the_wait_is_not_missed(
    app: App, budget_id: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    halting = Halting(monkeypatch, nth)
    request = Request(poll_path(budget_id, 1))
    async with under_way(app, request) as polling, asyncio.timeout(TIMEOUT_S):
        await halting.read.wait()
        await submit(app.hub, expense_add(budget_id))
        halting.go_on.set()
        await polling
    body = orjson.loads(request.body)
    assert [event["sequence"] for event in body["events"]] == [2]
    assert (body["nextKey"], body["head"], body["hasMore"]) == (2, 2, False)


async def test_p8_a_poll_whose_client_has_gone_is_over(app: App, budget_id: str) -> None:
    request = Request(poll_path(budget_id, 1))
    async with under_way(app, request) as polling:
        await until(lambda: app.hub.feeds.followers(budget_id) == 1, TIMEOUT_S)
        request.gone.set()
        async with asyncio.timeout(TIMEOUT_S):
            await polling
        assert app.hub.feeds.followers(budget_id) == 0


@pytest.mark.parametrize("path", ["/events?budgetId={}&key=1&wait=60", "/budgets/{}/stream?key=1"])
async def test_p11_who_asks_while_the_hub_ends_is_not_kept(
    app: App, budget_id: str, path: str
) -> None:
    """Begun before the hub was told to end, and so far behind that nobody told it."""
    await app.hub.drain()
    request = Request(path.format(budget_id))
    async with under_way(app, request) as asking, asyncio.timeout(TIMEOUT_S):
        await asking
    assert request.status == 200
    assert not app.hub.connections


@pytest.mark.parametrize("when", ["before it begins", "while it waits", "while it is slow"])
async def test_p8_a_stream_whose_client_has_gone_is_over(
    app: App, budget_id: str, when: str
) -> None:
    request = Request(f"/budgets/{budget_id}/stream")
    if when == "before it begins":
        request.gone.set()
    if when == "while it is slow":
        request.taking.clear()
    async with under_way(app, request) as streaming:
        if when == "while it waits":
            await until(lambda: request.sequences() == [1], TIMEOUT_S)
        await until(lambda: app.hub.feeds.followers(budget_id) == 1 or streaming.done(), TIMEOUT_S)
        request.gone.set()
        async with asyncio.timeout(TIMEOUT_S):
            await streaming
        assert app.hub.feeds.followers(budget_id) == 0
        assert not app.hub.connections


async def test_p8_a_slow_stream_holds_little_and_converges(
    app: App, budget_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = 0

    class Watched(followers.EventStream):
        def _send(self, data: bytes) -> None:
            nonlocal peak
            super()._send(data)
            peak = max(peak, self._bytes)

    monkeypatch.setattr(events_module, "EventStream", Watched)
    slow, fast = (Request(f"/budgets/{budget_id}/stream") for _ in range(2))
    slow.taking.clear()
    note = "x" * 2000
    async with under_way(app, slow), under_way(app, fast):
        await until(lambda: app.hub.feeds.followers(budget_id) == 2, TIMEOUT_S)
        for _ in range(15):  # 3 MB, far more than there is room for
            await submit(app.hub, *(expense_add(budget_id, note=note) for _ in range(100)))
        await until(lambda: fast.sequences()[-1:] == [1501], TIMEOUT_S)
        # The slow one lags; the other one is live again.
        await until(lambda: app.hub.feeds.followers(budget_id) == 1, TIMEOUT_S)
        assert slow.sequences() == []
        # The live frame that did not fit any more is the last one of its kind.
        assert peak <= HIGH_WATER_BYTES + FRAME_BYTES_MAX + 512
        slow.taking.set()
        await until(lambda: slow.sequences()[-1:] == [1501], TIMEOUT_S)
        await until(lambda: app.hub.feeds.followers(budget_id) == 2, TIMEOUT_S)
        await submit(app.hub, expense_add(budget_id))
        await until(lambda: slow.sequences()[-1:] == [1502], TIMEOUT_S)
    assert slow.sequences() == fast.sequences() == list(range(1, 1503))
    assert peak <= HIGH_WATER_BYTES + FRAME_BYTES_MAX + 512


async def test_p9_a_slow_stream_ends_with_its_token_too(
    app: App, budget_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    now_s, ahead_s = loop.time, 0
    monkeypatch.setattr(loop, "time", lambda: now_s() + ahead_s)
    request = Request(f"/budgets/{budget_id}/stream?key=1", token("ann", ttl_s=60))
    async with under_way(app, request) as streaming:
        await until(lambda: app.hub.feeds.followers(budget_id) == 1, TIMEOUT_S)
        request.taking.clear()
        for _ in range(10):  # each is a piece of its own
            await submit(app.hub, expense_add(budget_id))
        ahead_s = 60
        request.taking.set()
        async with asyncio.timeout(TIMEOUT_S):
            await streaming
    assert request.sequences() in ([2], [2, 3])  # what was on its way


async def test_p9_a_slow_stream_ends_with_the_removal_and_without_what_it_missed(
    app: App, budget_id: str
) -> None:
    joins = Joining(new_id(), budget_id, "ben", 1, participants_max=10)
    removes = Leaving(new_id(), budget_id, "ben", 1)
    await submitted(app.hub, "ben", [joins], "stop")
    request = Request(f"/budgets/{budget_id}/stream?key=2", token("ben"))
    async with under_way(app, request) as streaming, asyncio.timeout(TIMEOUT_S):
        await until(lambda: app.hub.feeds.followers(budget_id) == 1, TIMEOUT_S)
        request.taking.clear()
        await submit(app.hub, expense_add(budget_id))  # on its way
        for _ in range(2):
            await submit(app.hub, *(expense_add(budget_id, note="x" * 2000) for _ in range(100)))
        await until(lambda: app.hub.feeds.followers(budget_id) == 0, TIMEOUT_S)
        await submitted(app.hub, "ann", [removes], "stop")
        request.taking.set()
        await streaming
    assert request.sequences() == [3]
    assert request.body.endswith(b'data: {"type":"unsubscribed","code":"NOT_PARTICIPANT"}\n\n')


async def test_a_silent_stream_is_kept_alive(database_url: str, budget_id: str) -> None:
    assert APP_TIMEOUTS.keep_alive_s < 30  # what proxies and phones mostly allow
    settings = Settings(database_url=database_url, auth_secret=AUTH_SECRET)
    request = Request(f"/budgets/{budget_id}/stream?key=1")
    impatient = replace(PATIENT, keep_alive_s=0.05)
    async with open_app(settings, timeouts=impatient) as app, under_way(app, request):
        await until(lambda: request.chunks >= 3, TIMEOUT_S)
        assert re.fullmatch(rb"(:[^\n]*\n\n)+", request.body)  # comments: no client sees an event
        await submit(app.hub, expense_add(budget_id))
        await until(lambda: request.sequences() == [2], TIMEOUT_S)


def test_a_stream_ends_with_its_token_though_timers_strike_early(app: App) -> None:
    """uvloop's count in milliseconds: at the end it is often not yet time, but no silence."""

    async def ends() -> list[bytes]:
        said = []
        for after in range(300):
            stream = EventStream(app.hub, Principal("ann", 0, 0, 0.0), APP_TIMEOUTS.keep_alive_s)
            said += [chunk async for chunk in stream.chunks(0.001 + after / 1e6)]
        return said

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ends()) == []


@pytest.mark.parametrize(
    ("path", "table", "at_once"),
    [
        ("", "expenses", READS_PER_USER),
        ("/invites", "invites", SHARES["owners"].per_user),
    ],
)
async def test_p7_what_waits_for_the_database_leaves_the_feeds_their_connections(
    app: App,
    budget_id: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    table: str,
    at_once: int,
) -> None:
    monkeypatch.setattr(reads, "TURN_S", 0.5)
    sql = await asyncpg.connect(database_url)
    requests = [Request(f"/budgets/{budget_id}{path}") for _ in range(20)]
    try:
        async with AsyncExitStack() as stack, asyncio.timeout(TIMEOUT_S):
            holding = sql.transaction()
            await holding.start()
            await sql.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")  # all of them hang
            reading = [await stack.enter_async_context(under_way(app, each)) for each in requests]
            waiting = list(reading)
            while len(waiting) > at_once:  # the others are told to come again
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                waiting = [task for task in waiting if not task.done()]
            page = await app.hub.feeds.read(budget_id, "ann", 0, 100)
            assert [event.sequence for event in page.events] == [1]
            await holding.rollback()
            await asyncio.gather(*reading)
    finally:
        await sql.close()
    statuses = sorted(request.status for request in requests)
    assert statuses == [200] * at_once + [503] * (20 - at_once)
    [busy] = {orjson.loads(r.body)["error"]["message"] for r in requests if r.status == 503}
    assert busy == "BUSY"
