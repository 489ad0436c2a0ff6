"""How fast events are committed, compared with what Postgres itself can take.

The same kind of events into the same tables of one Postgres, one way after the other:

*hub*
    Through sockets of a real hub process, one event a frame: 200 budgets of three live devices
    each, one of which writes with four frames awaiting their verdict; every event is delivered to
    all three. The generator is a process of its own.

*limit*
    The statements of the log (`storage/postgres/core/event_log.py`), driven by bare asyncpg in
    batches of the size the hub was just measured to make. Every parameter is prepared before the
    clock starts and every answer is thrown away. On one connection, and on as many as the hub has
    lanes.

*single*
    One event a transaction on 32 connections: the same statements with one event each, and (*lean*)
    single-row statements written for it, as a server would send them that commits event by event.

Everything is measured in rounds, one way right after the other, because the speed of a machine that
others use too comes and goes; a ratio is the median of those of the rounds.

Run: `python -m loadtest.bench.commit`, four minutes; `--flat` adds the large database, seven more.
"""

import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import typer
import uvloop
from rich.console import Console

from hub.budget.events import parse_event
from hub.budget.rules import decide
from hub.budget.state import BudgetState, Change
from hub.committer import LANES
from hub.feed.sweeper import COMPARED_MAX, LOOKBACK_S
from loadtest.bench import load
from loadtest.bench.results import Row, show, write_section
from storage.embedded.postgres import EmbeddedPostgres
from storage.postgres.core import event_log
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.core.record_sql import LOAD_BUDGETS, RECORD_SQL
from storage.postgres.database import COMMIT_SESSION, Database
from storage.postgres.migrate import migrate

BUDGETS = 200
DEVICES = 3
WINDOW = 4
WARMUP_S = 2.0
DURATION_S = 6.0
ROUNDS = 5
SINGLE_CONNECTIONS = 32
SWEEP_MS = 50.0  # one in twenty of the database's time
# As a database server of some size is set; no checkpoint of the filling falls into a measurement.
POSTGRES = {"shared_buffers": "1GB", "max_wal_size": "16GB", "checkpoint_timeout": "30min"}
PREPARED_PER_S = 26_000  # more than the limit takes
USER = "bench"

SECRET = secrets.token_hex(32)  # of this run; a token of one hub is good at the next

_console = Console(highlight=False, soft_wrap=True)


class Seeded(NamedTuple):
    """A budget of the bench, as it stands in the database."""

    state: BudgetState
    category_id: str

    @property
    def id(self) -> str:
        assert self.state.budget is not None
        return self.state.budget.record.id

    @property
    def head(self) -> int:
        assert self.state.budget is not None
        return self.state.budget.last_sequence


def main(
    duration_s: Annotated[float, typer.Option(help="Of each measurement.")] = DURATION_S,
    flat: Annotated[bool, typer.Option(help="Again with 5 million rows, 100,000 budgets.")] = False,
    record: Annotated[bool, typer.Option(help="Write loadtest/RESULTS.md.")] = False,
) -> None:
    before = load.before(_console)
    with (
        tempfile.TemporaryDirectory(prefix="budget-hub-bench-") as folder,
        EmbeddedPostgres.start(Path(folder), settings=POSTGRES) as postgres,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        rounds = runner.run(measure(postgres.url, duration_s, flat))
    found = rows(rounds)
    show(found, _console)
    if record:
        write_section("commit", found, NOTES, before)


def rows(rounds: Sequence[Mapping[str, float]]) -> list[Row]:
    """The figures as ratios."""

    def ratio(of: str, to: str) -> float:
        return statistics.median(f[of] / f[to] for f in rounds)

    def made(name: str, digits: int = 0) -> str:
        return f"{statistics.median(f[name] for f in rounds):,.{digits}f}"

    found = [
        Row(
            "hub / the same statements, one connection",
            ratio("hub", "limit_one"),
            "≥ 0.6",
            f"{made('hub')} events/s through the hub, {made('limit_one')} bare, "
            f"in batches of {made('batch_events')}",
        ),
        Row(
            f"hub / the same statements, {LANES} connections",
            ratio("hub", "limit"),
            "≥ 0.6",
            f"{made('limit')} bare",
        ),
        Row(
            "hub / one event a transaction, the same statements",
            ratio("hub", "single"),
            "≥ 8",
            f"{made('single')} on {SINGLE_CONNECTIONS} connections",
        ),
        Row(
            "hub / one event a transaction, single-row statements",
            ratio("hub", "lean"),
            "≥ 8",
            f"{made('lean')} on {SINGLE_CONNECTIONS} connections",
        ),
        Row(
            "idle: ack p50 / the bare transaction's p50",
            ratio("idle_ack_ms", "idle_bare_ms"),
            "≤ 2",
            f"{made('idle_ack_ms', 2)} ms, {made('idle_bare_ms', 2)} ms",
        ),
    ]
    if "hub_large" in rounds[0]:
        found.append(
            Row(
                "hub with 5 million log rows and 100,000 budgets / with none",
                ratio("hub_large", "hub"),
                "≥ 0.85",
                f"{made('hub_large')} events/s",
            )
        )
        found.append(
            Row(
                f"sweeping 100,000 subscribed budgets, each second / {SWEEP_MS:.0f} ms",
                rounds[0]["sweep_ms"] / SWEEP_MS,
                "≤ 1",
                f"{rounds[0]['sweep_ms']:.1f} ms; comparing all of them, when the bus is back, "
                f"{rounds[0]['sweep_all_ms']:,.0f} ms",
            )
        )
    return found


NOTES = """CPU is what holds it back: with the generator, the hub and Postgres on two cores, all of
them together use nearly both. Each event also went to three live devices. Medians of the rounds."""


async def measure(url: str, duration_s: float, flat: bool) -> list[dict[str, float]]:
    await migrate(url)
    rounds = []
    with ExitStack() as hubs:
        if flat:
            large_url = await _large(url)
            await migrate(large_url)
            _console.print("filling the large database …")
            await fill(large_url, budgets=100_000, rows=5_000_000)
            hub_large = hubs.enter_context(hub_process(large_url))
        hub = hubs.enter_context(hub_process(url))
        for number in range(1, ROUNDS + 1):
            loaded = await through_hub(url, *hub, BUDGETS, WINDOW, duration_s)
            figures = {"hub": loaded["accepted_per_s"], "batch_events": loaded["batch_events"]}
            if flat:
                large = await through_hub(large_url, *hub_large, BUDGETS, WINDOW, duration_s)
                figures["hub_large"] = large["accepted_per_s"]
            batch, spread = loaded["batch_events"], loaded["batch_budgets"]
            figures["limit_one"] = await limit(url, batch, spread, duration_s, 1)
            figures["limit"] = await limit(url, batch, spread, duration_s, LANES)
            figures["single"] = await single(url, duration_s)
            figures["lean"] = await lean(url, duration_s)
            idle = await through_hub(url, *hub, 1, 1, min(duration_s, 3))
            figures["idle_ack_ms"] = idle["ack_p50_ms"]
            figures["idle_bare_ms"] = await bare_idle(url, min(duration_s, 3))
            _say(f"round {number}", figures)
            rounds.append(figures)
    if flat:
        swept = await sweeping(large_url)
        _say("sweeping", swept)
        rounds = [figures | swept for figures in rounds]
    return rounds


async def _large(url: str) -> str:
    """Another database on the same server."""
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE DATABASE large")
    await connection.close()
    return urlunsplit(urlsplit(url)._replace(path="/large"))


def _say(what: str, figures: Mapping[str, float]) -> None:
    _console.print(f"{what}: " + ", ".join(f"{n} {v:,.2f}" for n, v in figures.items()))


@contextmanager
def hub_process(url: str, redis_url: str = "") -> Iterator[tuple[str, str]]:
    """A real hub, a single node without `redis_url`: its address, and a token of the bench's
    user."""
    environ = {
        **os.environ,
        "DATABASE_URL": url,
        "REDIS_URL": redis_url,
        "AUTH_SECRET": SECRET,
        "PORT": "0",
        "LOG_LEVEL": "warning",
        "EVENTS_PER_S_USER": "1000000",  # all devices of the bench are one user's
        "REQUESTS_PER_MIN_USER": "0",
        "BUDGETS_PER_USER": "0",
        "RECORDS_PER_BUDGET": "0",
        "LOG_MB_PER_BUDGET": "0",
        "CONNECTIONS_PER_USER": "0",
        "CONNECTIONS_PER_ADDRESS": "0",
        "REQUESTS_PER_MIN_ADDRESS": "0",
        "LOGINS_PER_MIN_ADDRESS": "0",
        "LOGINS_PER_MIN_EMAIL": "0",
    }
    command = [str(Path(sys.executable).with_name("budget-hub"))]
    token = subprocess.run(
        [*command, "token", USER], env=environ, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    hub = subprocess.Popen([*command, "serve"], env=environ, stdout=subprocess.PIPE, text=True)
    assert hub.stdout is not None
    try:
        yield hub.stdout.readline().split()[-1], token
    finally:
        hub.terminate()
        hub.wait(20)
        hub.stdout.close()


async def through_hub(
    url: str,
    hub_url: str,
    token: str,
    budgets: int,
    window: int,
    duration_s: float,
) -> dict[str, float]:
    seeded = await seed(url, budgets)
    plan = {
        "url": hub_url,
        "token": token,
        "budgets": [(b.id, b.category_id, b.head) for b in seeded],
        "devices": DEVICES,
        "window": window,
        "warmup_s": WARMUP_S,
        "duration_s": duration_s,
    }
    generator = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "loadtest.bench.generator",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    printed, _ = await generator.communicate(json.dumps(plan).encode())
    figures: dict[str, float] = json.loads(printed)
    async with connected(url, 1) as [connection]:
        batch, spread = await _batches_made(connection, seeded)
    return figures | {"batch_events": batch, "batch_budgets": spread}


async def limit(
    url: str, batch: float, spread: float, duration_s: float, connections_n: int
) -> float:
    """Events a second through the same statements, prepared beforehand."""
    per_lane = BUDGETS // connections_n
    seeded = await seed(url, BUDGETS)
    lanes = [seeded[lane * per_lane : (lane + 1) * per_lane] for lane in range(connections_n)]
    count = max(int(PREPARED_PER_S * duration_s / batch / connections_n), 1)
    _console.print(f"preparing {count * connections_n:,} batches of {batch:.0f} …")
    prepared = [list(_batches(lane, batch, spread, count)) for lane in lanes]
    async with connected(url, connections_n) as connections:
        began_s = time.perf_counter()
        done = await asyncio.gather(
            *(
                _drive(connection, batches, began_s + duration_s)
                for connection, batches in zip(connections, prepared, strict=True)
            )
        )
        return sum(done) / (time.perf_counter() - began_s)


async def bare_idle(url: str, duration_s: float) -> float:
    """Median time in ms of one transaction with one event, driven by bare asyncpg."""
    [budget] = await seed(url, 1)
    batches = _batches([budget], 1, 1, 1_000_000)
    times_ms = []
    async with connected(url, 1) as [connection]:
        until_s = time.perf_counter() + duration_s
        while time.perf_counter() < until_s:
            batch = next(batches)
            began_s = time.perf_counter()
            await _drive(connection, [batch], began_s + 60)
            times_ms.append((time.perf_counter() - began_s) * 1000)
    return sorted(times_ms)[len(times_ms) // 2]


async def sweeping(url: str) -> dict[str, float]:
    """What the sweeper's statements take in ms while 100,000 budgets have followers and 5,000
    events were accepted in the last seconds: each second, and once for all of them."""
    database = await Database.connect(url)
    log = PostgresLog(database)
    async with connected(url, 1) as [connection]:
        rows = await connection.fetch("SELECT id::text, last_sequence FROM budgets LIMIT 100000")
        await connection.execute(
            """
            UPDATE accepted_events SET accepted_at = clock_timestamp() WHERE (budget_id, event_id)
            IN (SELECT budget_id, event_id FROM accepted_events LIMIT 5000)
            """
        )
    heads = [(row[0], row[1]) for row in rows]
    positions = [dict(heads[at : at + COMPARED_MAX]) for at in range(0, len(heads), COMPARED_MAX)]
    times_ms = []
    for some in positions[:20]:
        began_s = time.perf_counter()
        await log.recent(LOOKBACK_S)
        await log.behind(some)
        times_ms.append((time.perf_counter() - began_s) * 1000)
    began_s = time.perf_counter()
    for some in positions:
        await log.behind(some)
    all_ms = (time.perf_counter() - began_s) * 1000
    await database.close()
    return {"sweep_ms": statistics.median(times_ms), "sweep_all_ms": all_ms}


class _Batch(NamedTuple):
    events: int
    reads: Sequence[tuple[str, Sequence[Any]]]
    writes: Sequence[tuple[str, Sequence[Any]]]


def _batches(
    budgets: Sequence[Seeded], batch: float, spread: float, count: int
) -> Iterator[_Batch]:
    """Every statement of `count` transactions with its parameters, as the hub would send them."""
    columns = event_log.columns
    position = 0
    budgets_each = min(max(round(spread), 1), len(budgets))
    events_each = max(round(batch / budgets_each), 1)
    for _ in range(count):
        chosen = [budgets[(position + i) % len(budgets)] for i in range(budgets_each)]
        position += budgets_each
        events, records, categories = [], [], []
        for budget in chosen:
            budget.state.changes = []
            for _ in range(events_each):
                event_id, record_id = str(uuid.uuid4()), str(uuid.uuid4())
                event = parse_event(_expense(budget, event_id, record_id))
                change = decide(budget.state, USER, event, 0)
                assert isinstance(change, Change)
                budget.state.apply(change)
                events.append((budget.id, event_id))
                records.append((budget.id, record_id))
            categories.append((budget.id, budget.category_id))
        writes = event_log.Writes([budget.state for budget in chosen])
        for budget in chosen:
            for key in [key for key in budget.state.records if key[0] == "expense"]:
                del budget.state.records[key]
            budget.state.known.clear()
        ids = sorted(budget.id for budget in chosen)
        yield _Batch(
            len(events),
            [
                (event_log.LOCK_FREE, [ids]),
                (LOAD_BUDGETS, [ids]),
                (event_log.LOAD_KNOWN, columns(events, 2)),
                (event_log.LOAD_MEMBERS, columns([(id, USER) for id in ids], 2)),
                (RECORD_SQL["category"].load, columns(categories, 2)),
                (RECORD_SQL["expense"].load, columns(records, 2)),
            ],
            [
                (RECORD_SQL["expense"].upsert, columns(writes.records["expense"], 14)),
                (event_log.INSERT_LOG, columns(writes.log, 11)),
                (event_log.UPDATE_HEADS, columns(writes.heads, 5)),
            ],
        )


async def _drive(
    connection: "asyncpg.Connection[asyncpg.Record]", batches: Sequence[_Batch], until_s: float
) -> int:
    done = 0
    for batch in batches:
        if time.perf_counter() > until_s:
            break
        async with connection.transaction():
            for statement, values in batch.reads:
                await connection.fetch(statement, *values)
            for statement, values in batch.writes:
                await connection.execute(statement, *values)
        done += batch.events
    return done


# What a server sends that commits event by event.
ONE_LOCK = "SELECT last_sequence, digest, deleted FROM budgets WHERE id = $1 FOR NO KEY UPDATE"
ONE_KNOWN = "SELECT sequence FROM accepted_events WHERE budget_id = $1 AND event_id = $2"
ONE_MEMBER = "SELECT active FROM participants WHERE budget_id = $1 AND user_id = $2"
ONE_CATEGORY = "SELECT deleted FROM categories WHERE budget_id = $1 AND id = $2"
ONE_EXPENSE = """
INSERT INTO expenses (budget_id, id, created_by, category_id, amount, date, note, version, deleted,
                      offline_last_modified, fingerprint, created_sequence, last_sequence,
                      fields_hash)
VALUES ($1, $2, $3, $4, $5, $6, $7, 1, false, $8, $9, $10, $10, $11)
"""
ONE_EVENT = """
INSERT INTO accepted_events (budget_id, sequence, event_id, event_type, record_id, actor_id,
                             content_hash, content_fields, version, event, record)
VALUES ($1, $2, $3, 'expense.add', $4, $5, $6, 1, 1, $7, $8)
"""
ONE_HEAD = "UPDATE budgets SET last_sequence = $2, digest = $3 WHERE id = $1"


async def single(url: str, duration_s: float) -> float:
    """Events a second, one event a transaction of the hub's own statements."""
    seeded = await seed(url, BUDGETS)
    async with connected(url, SINGLE_CONNECTIONS) as connections:
        shares = [seeded[n::SINGLE_CONNECTIONS] for n in range(SINGLE_CONNECTIONS)]
        count = int(4_000 * duration_s / SINGLE_CONNECTIONS)
        prepared = [list(_batches(share, 1, 1, count)) for share in shares]
        began_s = time.perf_counter()
        done = await asyncio.gather(
            *(
                _drive(connection, batches, began_s + duration_s)
                for connection, batches in zip(connections, prepared, strict=True)
            )
        )
        return sum(done) / (time.perf_counter() - began_s)


async def lean(url: str, duration_s: float) -> float:
    """Events a second, one event a transaction, with statements written for one event."""
    seeded = await seed(url, BUDGETS)
    [sample] = list(_batches(seeded[:1], 1, 1, 1))
    row = [column[0] for column in sample.writes[1][1]]
    content_hash, event, record = row[6], row[9], row[10]

    async def client(number: int, connection: "asyncpg.Connection[asyncpg.Record]") -> int:
        done = 0
        while time.perf_counter() < until_s:
            budget = seeded[(number + done * SINGLE_CONNECTIONS) % len(seeded)]
            event_id, record_id = str(uuid.uuid4()), str(uuid.uuid4())
            async with connection.transaction():
                head = await connection.fetchrow(ONE_LOCK, budget.id)
                assert head is not None
                await connection.fetchrow(ONE_KNOWN, budget.id, event_id)
                await connection.fetchrow(ONE_MEMBER, budget.id, USER)
                await connection.fetchrow(ONE_CATEGORY, budget.id, budget.category_id)
                sequence = head["last_sequence"] + 1
                await connection.execute(
                    ONE_EXPENSE, budget.id, record_id, USER, budget.category_id, Decimal("12.50"),
                    date(2026, 11, 21), "weekly groceries", 1795000000000, 1, sequence, bytes(32),
                )  # fmt: skip
                await connection.execute(
                    ONE_EVENT, budget.id, sequence, event_id, record_id, USER, content_hash, event,
                    record,
                )  # fmt: skip
                await connection.execute(ONE_HEAD, budget.id, sequence, 1)
            done += 1
        return done

    async with connected(url, SINGLE_CONNECTIONS) as connections:
        began_s = time.perf_counter()
        until_s = began_s + duration_s
        done = await asyncio.gather(*(client(n, c) for n, c in enumerate(connections)))
        return sum(done) / (time.perf_counter() - began_s)


async def seed(url: str, count: int) -> list[Seeded]:
    """New budgets of the bench's user with a category each, made by the hub's own rules."""
    seeded = []
    for _ in range(count):
        budget_id, category_id = str(uuid.uuid4()), str(uuid.uuid4())
        state = BudgetState()
        for event in (
            {"eventType": "budget.create", "title": "Bench", "currency": "EUR"},
            {"eventType": "category.add", "recordId": category_id, "name": "Food", "allocate": "9"},
        ):
            named = {**event, "eventId": str(uuid.uuid4()), "budgetId": budget_id, "when": 1}
            change = decide(state, USER, parse_event(named), 0)
            assert isinstance(change, Change)
            state.apply(change)
        seeded.append(Seeded(state, category_id))
    async with connected(url, 1) as [connection], connection.transaction():
        await event_log.PostgresTransaction(connection).write([b.state for b in seeded])
    return seeded


async def fill(url: str, *, budgets: int, rows: int) -> None:
    """Make the database large: other budgets with a long log and an expense for each event."""
    async with connected(url, 1) as [connection]:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(
            """
            INSERT INTO budgets (id, created_by, owner_id, title, version, offline_last_modified,
                                 fingerprint, record_sequence, last_sequence, digest, fields_hash)
            SELECT md5(n::text)::uuid, 'filler', 'filler', 'Filler', 1, 1, 1, 1, $2 / $1, 1, 'c'
            FROM generate_series(1, $1) n
            """,
            budgets,
            rows,
        )
        step = 500_000
        for start in range(0, rows, step):
            await connection.execute(
                """
                INSERT INTO expenses (budget_id, id, created_by, amount, date, version,
                                      offline_last_modified, fingerprint, created_sequence,
                                      last_sequence, fields_hash)
                SELECT md5((1 + n % $3)::text)::uuid, gen_random_uuid(), 'filler', 1, '2026-01-01',
                       1, 1, 1, 1 + n / $3, 1 + n / $3, 'c'
                FROM generate_series($1::int, $2::int - 1) n
                """,
                start,
                start + step,
                budgets,
            )
            await connection.execute(
                """
                INSERT INTO accepted_events (budget_id, event_id, sequence, event_type, record_id,
                                             actor_id, content_hash, content_fields, version,
                                             event, record)
                SELECT md5((1 + n % $3)::text)::uuid, gen_random_uuid(), 1 + n / $3, 'expense.add',
                       md5(n::text), 'filler', sha256(n::text::bytea), 1, 1, repeat('x', 420),
                       repeat('x', 300)
                FROM generate_series($1::int, $2::int - 1) n
                """,
                start,
                start + step,
                budgets,
            )
            _console.print(f"  {start + step:,} rows")
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")


@asynccontextmanager
async def connected(
    url: str, count: int
) -> AsyncIterator[list["asyncpg.Connection[asyncpg.Record]"]]:
    connections = [await asyncpg.connect(url, server_settings=COMMIT_SESSION) for _ in range(count)]
    try:
        yield connections
    finally:
        for connection in connections:
            await connection.close()


def _expense(budget: Seeded, event_id: str, record_id: str) -> Mapping[str, object]:
    return {
        "eventId": event_id,
        "eventType": "expense.add",
        "budgetId": budget.id,
        "recordId": record_id,
        "categoryId": budget.category_id,
        "amount": "12.50",
        "date": "2026-11-21",
        "note": "weekly groceries",
        "when": 1795000000000,
    }


async def _batches_made(
    connection: "asyncpg.Connection[asyncpg.Record]", seeded: Sequence[Seeded]
) -> tuple[float, float]:
    """Events and budgets in a transaction of the hub's, on average."""
    row = await connection.fetchrow(
        """
        SELECT count(*)::float8 / count(DISTINCT xmin::text),
               count(DISTINCT (xmin::text, budget_id))::float8 / count(DISTINCT xmin::text)
        FROM accepted_events WHERE budget_id = ANY($1::uuid[]) AND sequence > 2
        """,
        [budget.id for budget in seeded],
    )
    assert row is not None
    return row[0], row[1]


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
