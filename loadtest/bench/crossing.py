"""How much later an event arrives on another node than on its own, when nothing else happens.

Two real hub processes on one Postgres and one Redis. A device on the first submits an event every
`PAUSE_S` seconds; one device on each node follows. Both times count from the same submission, so
their difference is the way over the bus. Each event is waited for on both sides before the next.

Run: `python -m loadtest.bench.crossing`, a quarter of a minute.
"""

import asyncio
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from loadtest.bench import load
from loadtest.bench.commit import hub_process, seed
from loadtest.bench.fast_socket import FastSocket, connect
from loadtest.bench.results import Row, show, write_section
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis
from storage.postgres.migrate import migrate

EVENTS = 500
WARMUP = 50
PAUSE_S = 0.01
ALLOWED_MS = 2.0

_console = Console(highlight=False, soft_wrap=True)


class Observer:
    """Notes when each event arrives."""

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.arrived = asyncio.Event()

    def received(self, text: bytes) -> None:
        if text.startswith(b'{"type":"events"'):
            self.at_s.append(time.perf_counter())
            self.arrived.set()

    async def next_s(self) -> float:
        await self.arrived.wait()
        self.arrived.clear()
        return self.at_s[-1]


def main(record: Annotated[bool, typer.Option(help="Write loadtest/RESULTS.md.")] = False) -> None:
    before = load.before(_console)
    with (
        tempfile.TemporaryDirectory(prefix="budget-hub-bench-") as folder,
        EmbeddedPostgres.start(Path(folder) / "postgres") as postgres,
        EmbeddedRedis.start(Path(folder) / "redis") as redis,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        row = runner.run(measure(postgres.url, redis.url))
    show([row], _console)
    if record:
        notes = "Two hub processes, Postgres, Redis and the devices."
        write_section("crossing", [row], notes, before)


async def measure(url: str, redis_url: str) -> Row:
    await migrate(url)
    [budget] = await seed(url, 1)
    with hub_process(url, redis_url) as (here_url, token), hub_process(url, redis_url) as there:
        here, far = Observer(), Observer()
        sockets = [
            await connect(here_url, token, here.received),
            await connect(*there, far.received),
        ]
        subscribe = b'{"type":"subscribe","budgetId":"%b","key":%d}'
        for socket in sockets:
            socket.send(subscribe % (budget.id.encode(), budget.head))
        writer = await connect(here_url, token, lambda text: None)
        await asyncio.sleep(1)  # every node listens
        local_ms, remote_ms = [], []
        for _ in range(WARMUP + EVENTS):
            began_s = _submit(writer, budget.id, budget.category_id)
            local_ms.append((await here.next_s() - began_s) * 1000)
            remote_ms.append((await far.next_s() - began_s) * 1000)
            await asyncio.sleep(PAUSE_S)
    local, remote = (statistics.median(ms[WARMUP:]) for ms in (local_ms, remote_ms))
    return Row(
        f"delivery on another node: p50 beyond the local p50 / {ALLOWED_MS:.0f} ms",
        (remote - local) / ALLOWED_MS,
        "≤ 1",
        f"{remote:.2f} ms, {local:.2f} ms from submission, {EVENTS} events",
    )


def _submit(writer: FastSocket, budget_id: str, category_id: str) -> float:
    frame = (
        f'{{"type":"events","id":1,"events":[{{"eventId":"{uuid.uuid4()}",'
        f'"recordId":"{uuid.uuid4()}","eventType":"expense.add","budgetId":"{budget_id}",'
        f'"categoryId":"{category_id}","amount":"12.50","date":"2026-11-21",'
        '"note":"weekly groceries","when":1795000000000}]}'
    ).encode()
    began_s = time.perf_counter()
    writer.send(frame)
    return began_s


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
