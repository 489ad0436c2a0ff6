"""One trace from the submission to its delivery on another node, and none where tracing is off."""

import asyncio
import gc
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from uuid import uuid4

import orjson
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from redis.asyncio import Redis
from structlog.testing import capture_logs

from api.http.verdicts import submitted
from api.settings import Settings, SettingsError
from api.telemetry.tracing import OpenTelemetry
from hub.budget.events import parse_batch
from hub.errors import Code
from hub.frames.events import Context, Frame
from hub.frames.websocket import texts
from hub.hub import Hub
from hub.limits import Rates
from hub.tracing import NO_ORIGINS, NO_SPAN, NOWHERE, Correlation, Trail, in_context
from storage.embedded.redis import EmbeddedRedis
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.database import Database
from storage.redis.bus import RedisBus
from tests.cluster import until
from tests.device import Json, budget_create, expense_add, expense_edit, new_id
from tests.patience import PATIENT

DEADLINE_S = 30.0


class Wire:
    """Follows a budget; see `hub.feed.feed.Follower`."""

    attends = False
    full = False

    def __init__(self) -> None:
        self.frames: list[Json] = []

    def write(self, data: bytes) -> None:
        self.frames += [orjson.loads(text) for text in texts(data)]

    def joined(self, key: int, head: int) -> None: ...
    def refused(self, code: Code) -> None:
        raise AssertionError(code)

    def ended(self, code: Code) -> None: ...


class Node:
    """A hub with a bus, and the spans that it has ended; `sampler` None: tracing is off."""

    def __init__(self, database: Database, bus: RedisBus, log_id: str, sampler: Sampler | None):
        self._exporter = InMemorySpanExporter()
        self.tracer: OpenTelemetry | None = None
        if sampler is not None:
            provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
            provider.add_span_processor(SimpleSpanProcessor(self._exporter))
            self.tracer = OpenTelemetry(provider)
        self.bus = bus
        self.hub = Hub(
            PostgresLog(database),
            log_id,
            bus,
            now_ms=lambda: int(time.time() * 1000),
            jitter=random.random,
            rates=Rates(1e6, 1e6),
            tracer=self.tracer,
            timeouts=PATIENT,
        )

    def spans(self, name: str) -> Sequence[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    async def follow(self, budget_id: str) -> Wire:
        wire = Wire()
        self.hub.feeds.subscribe("ann", budget_id, 0, wire)
        await until(lambda: self.hub.feeds.followers(budget_id) > 0, DEADLINE_S)
        return wire

    async def made(self, *events: Json, called: Correlation | None = None) -> int:
        """Commit them; the sequence of the last."""
        async with asyncio.timeout(DEADLINE_S):
            batch = parse_batch(list(events), 100)
            verdicts = await submitted(self.hub, "ann", batch, "stop", called)
        assert [verdict.status for verdict in verdicts] == ["accepted"] * len(events)
        assert verdicts[-1].sequence is not None
        return verdicts[-1].sequence


@asynccontextmanager
async def running(
    database: Database, redis: EmbeddedRedis, *samplers: Sampler | None
) -> AsyncIterator[list[Node]]:
    log_id = new_id()
    nodes = []
    for sampler in samplers:
        bus = RedisBus(redis.url, log_id, uuid4().bytes, jitter=random.random, timeouts=PATIENT)
        nodes.append(Node(database, bus, log_id, sampler))
    tasks = [asyncio.create_task(node.bus.run(node.hub.feeds)) for node in nodes]
    try:
        await until(lambda: all(node.bus.connected for node in nodes), DEADLINE_S)
        yield nodes
    finally:
        for node in nodes:
            await node.hub.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def ids(span: ReadableSpan) -> tuple[int, int]:
    """Its trace and itself."""
    return span.context.trace_id, span.context.span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def links(span: ReadableSpan) -> set[tuple[int, int]]:
    return {(link.context.trace_id, link.context.span_id) for link in span.links}


async def test_one_trace_from_the_submission_to_its_delivery_on_another_node(
    database: Database, redis: EmbeddedRedis
) -> None:
    budget_id = new_id()
    async with running(database, redis, ALWAYS_ON, ALWAYS_ON) as (here, there):
        await here.made(budget_create(budget_id))
        await here.follow(budget_id)
        await there.follow(budget_id)
        await here.made(expense_add(budget_id), called=Correlation("tap-17", shared=True))
        await until(lambda: bool(there.spans("deliver")), DEADLINE_S)
        submit = here.spans("submit")[-1]
        batch, commit, publish = (here.spans(n)[-1] for n in ("batch", "commit", "publish"))
        at_home, away = here.spans("deliver")[-1], there.spans("deliver")[-1]
    assert parent(submit) is None
    assert parent(batch) == parent(publish) == ids(submit)
    assert parent(commit) == ids(batch)
    assert parent(at_home) == parent(away) == ids(publish)
    assert all(span.status.is_unset for span in (submit, batch, commit, publish, at_home, away))
    said = dict(away.attributes or {})
    assert said["budget_hub.correlation_id"] == "tap-17"
    assert (said["budget_hub.budget_id"], said["budget_hub.to_sequence"]) == (budget_id, 2)


async def test_a_batch_is_linked_with_all_that_it_joins(
    database: Database, redis: EmbeddedRedis
) -> None:
    mine, yours = new_id(), new_id()
    async with running(database, redis, ALWAYS_ON) as (node,):
        await asyncio.gather(  # in one turn of the loop
            node.made(budget_create(mine)),
            node.made(budget_create(yours)),
            node.made(expense_add(mine)),
        )
        first, second, third = sorted(node.spans("submit"), key=lambda span: span.start_time or 0)
        (batch,) = node.spans("batch")
        publishes = {
            dict(s.attributes or {})["budget_hub.budget_id"]: s for s in node.spans("publish")
        }
    assert parent(batch) == ids(first)
    assert links(batch) == {ids(second), ids(third)}
    for other in (second, third):
        assert links(other) == {ids(batch)}
    assert dict(batch.attributes or {})["budget_hub.submissions"] == 3
    # Each delivery is in the trace of who made it, and knows who else did.
    assert parent(publishes[mine]) == ids(first)
    assert links(publishes[mine]) == {ids(third)}
    assert parent(publishes[yours]) == ids(second)


async def test_what_is_not_sampled_leaves_no_trace_anywhere(
    database: Database, redis: EmbeddedRedis
) -> None:
    budget_id = new_id()
    async with running(database, redis, ALWAYS_OFF, ALWAYS_ON) as (here, there):
        await here.made(budget_create(budget_id))
        wire = await there.follow(budget_id)
        await here.made(expense_add(budget_id))
        await until(lambda: len(wire.frames) == 2, DEADLINE_S)
        assert not here.spans("submit")
        assert not there.spans("deliver")
        assert here.tracer is not None


async def test_a_failed_commit_and_a_refused_event_are_said_so(
    database: Database, redis: EmbeddedRedis
) -> None:
    """With the client's id, one line each."""
    budget_id = new_id()
    async with running(database, redis, ALWAYS_ON) as (node,):
        await node.made(budget_create(budget_id))
        called = Correlation("tap-18", shared=True)
        with capture_logs() as lines:
            stale = parse_batch([expense_edit(budget_id, new_id(), 1, note="secret")], 1)
            [verdict] = await submitted(node.hub, "ann", stale, "stop", called)
    assert verdict.error is Code.EXPENSE_NOT_EXISTS
    [line] = lines
    assert line["log_level"] == "debug"
    assert line["correlation_ids"] == ("tap-18",)
    assert line["code"] == "EXPENSE_NOT_EXISTS"
    assert "secret" not in str(line)


async def test_p7_a_context_never_changes_or_holds_up_the_frame(
    redis: EmbeddedRedis,
) -> None:
    """A node of another version, which does not know contexts, reads the same bytes as ever."""
    log_id, budget_id, node_id = new_id(), new_id(), uuid4().bytes
    plain = Frame(budget_id, 1, 1, b"\x81\x02{}")
    told = plain._replace(context=Context("00-" + "1" * 32 + "-" + "2" * 16 + "-01", ("tap-19",)))
    bus = RedisBus(redis.url, log_id, node_id, jitter=random.random, timeouts=PATIENT)
    hub = HubEar()
    task = asyncio.create_task(bus.run(hub))
    try:
        await until(lambda: bus.connected, DEADLINE_S)
        async with Redis.from_url(redis.url) as other, other.pubsub() as old_node:
            await old_node.subscribe(f"budget-hub:{log_id}:{budget_id}")
            confirmed = await old_node.get_message(timeout=DEADLINE_S)
            assert confirmed is not None and confirmed["type"] == "subscribe"
            bus.publish([plain, told])
            said: list[bytes] = []
            async with asyncio.timeout(DEADLINE_S):
                while len(said) < 3:
                    message = await old_node.get_message(timeout=DEADLINE_S)
                    if message is not None and message["type"] == "message":
                        said.append(message["data"])
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    frames = [data for data in said if data[0] == said[0][0]]
    assert frames == [said[0]] * 2
    assert len(said[1]) < 200


class HubEar:
    """See `hub.ports.BusListener`."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def received(self, frame: Frame) -> None:
        self.frames.append(frame)

    def attending(self, *told: object, asks: bool) -> None: ...
    def silent(self, node_id: bytes) -> None: ...
    async def restored(self) -> None: ...


async def test_a_context_stays_with_its_own_frame(redis: EmbeddedRedis) -> None:
    log_id, budget_id = new_id(), new_id()
    context = Context(None, ("tap-20", "tap-21"))
    frames = [
        Frame(budget_id, 1, 1, b"a"),
        Frame(budget_id, 2, 3, b"b", context=context),
        Frame(budget_id, 4, 4, b"c"),
    ]
    here, there = (
        RedisBus(redis.url, log_id, uuid4().bytes, jitter=random.random, timeouts=PATIENT)
        for _ in range(2)
    )
    ear = HubEar()
    tasks = [asyncio.create_task(bus.run(of)) for bus, of in ((here, HubEar()), (there, ear))]
    try:
        await until(lambda: here.connected and there.connected, DEADLINE_S)
        async with asyncio.timeout(DEADLINE_S):
            await there.subscribe(budget_id)
        here.publish(frames)
        await until(lambda: len(ear.frames) == 3, DEADLINE_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert ear.frames == frames


@pytest.mark.parametrize("on", [False, True])
async def test_tracing_that_is_off_is_never_called(
    database: Database, redis: EmbeddedRedis, on: bool
) -> None:
    """Nothing of OpenTelemetry is; what the engine calls instead is called for each submission,
    batch and frame, and costs the same however many events they have. Counted, not timed: with
    tracing on the same count sees the calls."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith(
            ("hub.tracing", "api.telemetry.tracing", "opentelemetry")
        ):
            calls[module.partition(".")[0] + "." + frame.f_code.co_name] += 1

    counted: list[Counter[str]] = []
    async with running(database, redis, *[ALWAYS_ON if on else None] * 2) as (here, there):
        for events in (1, 20):
            budget_id = new_id()
            await here.made(budget_create(budget_id))
            wire = await there.follow(budget_id)
            gc.collect()  # what others left is not called here
            calls.clear()
            sys.setprofile(count)
            try:
                for _ in range(5):
                    last = await here.made(*(expense_add(budget_id) for _ in range(events)))
                await until(lambda: wire.frames[-1]["toSequence"] == last, DEADLINE_S)  # noqa: B023
            finally:
                sys.setprofile(None)
            counted.append(calls.copy())
    few, many = counted
    traced = {name for name in many if not name.startswith("hub.")}
    assert bool(traced) is on, many
    if not on:
        assert few == many
        assert few.total() <= 5 * 25


def test_tracing_that_is_off_allocates_nothing() -> None:
    trail, frame = Trail(), Frame(new_id(), 1, 1, b"")
    assert trail.submit(1, None) is trail.submit(2, None) is NOWHERE
    steps = [trail.batch([NOWHERE], 1), trail.commit([NOWHERE])]
    steps += [trail.publish(frame, NO_ORIGINS), trail.deliver(frame)]
    assert [step is NO_SPAN for step in steps] == [True] * 4
    with steps[0] as span:
        assert in_context(frame, span) is frame


def test_tracing_that_is_off_is_never_imported() -> None:
    """By the whole server. The Redis client imports a part of the SDK where it finds one."""
    wanted = {"api.telemetry.tracing", "opentelemetry.sdk.trace", "opentelemetry.exporter"}
    code = f"import api.cli.main, api.process.server, sys; print({wanted} & set(sys.modules))"
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert said.stdout.strip() == "set()"


@pytest.mark.parametrize("endpoint", ["collector:4317", "ftp://collector", "http://a b"])
def test_an_address_that_is_none_ends_the_start(endpoint: str) -> None:
    environ = {
        "DATABASE_URL": "postgres://",
        "AUTH_SECRET": "x" * 32,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
    }
    with pytest.raises(SettingsError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT: "):
        Settings.from_env(environ)


def test_a_collector_without_the_extra_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "DATABASE_URL": "postgres://",
        "AUTH_SECRET": "x" * 32,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
    }
    assert Settings.from_env(environ).otel_exporter_otlp_endpoint is not None
    monkeypatch.setattr("api.settings.find_spec", lambda module: None)
    with pytest.raises(
        SettingsError, match=r"needs the extra: pip install 'budget-hub\[tracing\]'"
    ):
        Settings.from_env(environ)
