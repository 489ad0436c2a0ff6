"""What clients without sockets pay: a whole budget over HTTP, and catching up by each transport.

One real hub process, one budget of 10,000 expenses, so with as many events in its log. In turns
with it: the statement that makes the JSON of the snapshot, driven by bare asyncpg. The clients
parse no more than they need to know where they are, in this process.

Run: `python -m loadtest.bench.rest`, half a minute.
"""

import asyncio
import re
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

import asyncpg
import typer
import uvloop
from rich.console import Console

from hub.budget.events import parse_event
from hub.budget.rules import decide
from hub.budget.state import Change
from loadtest.bench import load
from loadtest.bench.commit import POSTGRES, USER, connected, hub_process, seed
from loadtest.bench.fast_socket import connect
from loadtest.bench.process import Process
from loadtest.bench.results import Row, show, write_section
from storage.embedded.postgres import EmbeddedPostgres
from storage.postgres.core.event_log import PostgresTransaction
from storage.postgres.core.snapshots import READ_SNAPSHOT
from storage.postgres.database import SESSION
from storage.postgres.migrate import migrate

EXPENSES = 10_000
ROUNDS = 15
UNCHANGED = 500  # requests that are answered 304
ALLOWED_304_MS = 3.0
WANTED_PER_S = 50_000

_TO_SEQUENCE = re.compile(rb'"toSequence":(\d+)')
_NEXT_KEY = re.compile(rb'"nextKey":(\d+)')
_LENGTH = re.compile(rb"content-length: (\d+)")
_ETAG = re.compile(rb"etag: ([^\r]+)")

_console = Console(highlight=False, soft_wrap=True)


class Client:
    """HTTP on one connection, with next to no work."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str
    ) -> None:
        self.reader = reader
        self._writer = writer
        self._headers = f"Host: bench\r\nAuthorization: Bearer {token}\r\n"

    @classmethod
    async def open(cls, url: str, token: str) -> Self:
        parts = urlsplit(url)
        opened = await asyncio.open_connection(parts.hostname, parts.port, limit=1024 * 1024)
        return cls(*opened, token)

    def ask(self, path: str, headers: str = "") -> None:
        self._writer.write(f"GET {path} HTTP/1.1\r\n{self._headers}{headers}\r\n".encode())

    async def get(self, path: str, headers: str = "") -> tuple[bytes, bytes]:
        """Head and body of the answer."""
        self.ask(path, headers)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        return head, await self.reader.readexactly(int(length[1]) if length else 0)

    def close(self) -> None:
        self._writer.close()


def main(record: Annotated[bool, typer.Option(help="Write loadtest/RESULTS.md.")] = False) -> None:
    before = load.before(_console)
    with (
        tempfile.TemporaryDirectory(prefix="budget-hub-bench-") as folder,
        EmbeddedPostgres.start(Path(folder) / "postgres", settings=POSTGRES) as postgres,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        rows = runner.run(measure(postgres.url))
    show(rows, _console)
    if record:
        write_section("rest", rows, NOTES, before)


NOTES = f"""One hub process, one client at a time; medians of {ROUNDS} rounds. The bare statement is
fetched by asyncpg too. A long-poll gets 100 events a request, one after the other."""


async def measure(url: str) -> list[Row]:
    await migrate(url)
    budget_id, head = await filled(url)
    http_ms: list[float] = []
    bare_ms: list[float] = []
    per_s: dict[str, list[float]] = {}
    with hub_process(url) as (hub_url, token):
        client = await Client.open(hub_url, token)
        bare = await asyncpg.connect(url, server_settings=SESSION)
        path = f"/budgets/{budget_id}"
        first, body = await client.get(path)
        assert b" 200 " in first and len(body) > 1_000_000
        hub = Process.listening(hub_url)
        before_kib, ways = hub.memory_kib(), _ways(hub_url, token, budget_id, head)
        for _ in range(ROUNDS):
            http_ms.append(await _timed_ms(client.get(path)))
            bare_ms.append(await _timed_ms(bare.fetchrow(READ_SNAPSHOT, budget_id, USER)))
            for name, way in ways.items():
                took_ms = await _timed_ms(way())
                per_s.setdefault(name, []).append(head / took_ms * 1000)
        grown_mib = (hub.memory_kib("VmHWM") - before_kib) / 1024
        etag = _ETAG.search(first)
        assert etag is not None
        offered = f"If-None-Match: {etag[1].decode()}\r\n"
        assert b" 304 " in (await client.get(path, offered))[0]
        same_ms = [await _timed_ms(client.get(path, offered)) for _ in range(UNCHANGED)]
        await bare.close()
        client.close()
    http, sql = statistics.median(http_ms), statistics.median(bare_ms)
    ratio = statistics.median(a / b for a, b in zip(http_ms, bare_ms, strict=True))
    rows = [
        Row(
            f"snapshot of {EXPENSES:,} expenses over HTTP / its bare statement",
            ratio,
            "≤ 1.5",
            f"{http:.1f} ms, {sql:.1f} ms, {len(body) / 1e6:.1f} MB",
        ),
        Row(
            f"nothing changed (304): p50 / {ALLOWED_304_MS:.0f} ms",
            statistics.median(same_ms) / ALLOWED_304_MS,
            "≤ 1",
            f"{statistics.median(same_ms):.2f} ms",
        ),
    ]
    for name, rates in per_s.items():
        rate = statistics.median(rates)
        rows.append(
            Row(
                f"catching up by {name} / {WANTED_PER_S:,} events a second",
                rate / WANTED_PER_S,
                "≥ 1",
                f"{rate:,.0f} a second, {head:,} events",
            )
        )
    rows.append(
        Row(
            "most memory the hub took for all of this / 64 MiB",
            grown_mib / 64,
            "≤ 1",
            f"{grown_mib:.0f} MiB above {before_kib / 1024:.0f}",
        )
    )
    return rows


async def filled(url: str) -> tuple[str, int]:
    """A budget with `EXPENSES` expenses, made by the hub's own rules: its id and its head."""
    [budget] = await seed(url, 1)
    state = budget.state
    state.changes = []
    for _ in range(EXPENSES):
        event = {
            "eventId": str(uuid.uuid4()),
            "eventType": "expense.add",
            "budgetId": budget.id,
            "recordId": str(uuid.uuid4()),
            "categoryId": budget.category_id,
            "amount": "12.50",
            "date": "2026-11-21",
            "note": "weekly groceries",
            "when": 1795000000000,
        }
        change = decide(state, USER, parse_event(event), 0)
        assert isinstance(change, Change)
        state.apply(change)
    async with connected(url, 1) as [connection]:
        async with connection.transaction():
            await PostgresTransaction(connection).write([state])
        await connection.execute("VACUUM ANALYZE")
    return budget.id, budget.head


def _ways(
    url: str, token: str, budget_id: str, head: int
) -> dict[str, Callable[[], Awaitable[None]]]:
    """How to read the whole log, up to `head`."""

    async def by_socket() -> None:
        done = asyncio.Event()

        def received(text: bytes) -> None:
            to_sequence = _TO_SEQUENCE.search(text, 0, 200)
            if to_sequence is not None and int(to_sequence[1]) == head:
                done.set()

        socket = await connect(url, token, received)
        socket.send(b'{"type":"subscribe","budgetId":"%b","key":0}' % budget_id.encode())
        await done.wait()
        socket.close()

    async def by_server_sent_events() -> None:
        client = await Client.open(url, token)
        client.ask(f"/budgets/{budget_id}/stream")
        last = b"\nid: %d\n" % head
        end = b""
        while last not in end:
            data = await client.reader.read(256 * 1024)
            assert data
            end = end[-len(last) :] + data
        client.close()

    async def by_long_poll() -> None:
        client = await Client.open(url, token)
        key = 0
        while key < head:
            _, body = await client.get(f"/events?budgetId={budget_id}&key={key}")
            next_key = _NEXT_KEY.search(body, 0, 200)
            assert next_key is not None
            key = int(next_key[1])
        client.close()

    return {
        "socket": by_socket,
        "Server-Sent Events": by_server_sent_events,
        "long-poll": by_long_poll,
    }


async def _timed_ms(work: Awaitable[object]) -> float:
    began_s = time.perf_counter()
    await work
    return (time.perf_counter() - began_s) * 1000


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
