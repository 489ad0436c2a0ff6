"""How fast one budget's events reach 1,000 live sockets, compared with a bare `send()` loop in C.

A hub serves in this process, with real sockets drained by a C program in another (`fanout.c`).
Frames are handed to it as the bus would: one event of 300 bytes at a time, and bursts of ten in one
frame. The limit writes the same bytes to as many sockets, from C, to the same drain. Each pair is
measured one right after the other; the figure is the median of the pairs.

Also how many connections a second are accepted, and what an idle one costs in memory: those are of
a hub process of their own.

Run: `python -m loadtest.bench.fanout`; needs a C compiler (`cc`).
"""

import asyncio
import gc
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
import uvloop
from rich.console import Console

from api.app import open_app
from api.auth.tokens import Tokens
from api.process import server
from api.settings import Settings
from api.telemetry import logs
from api.timeouts import APP_TIMEOUTS
from hub.frames.events import Frame, event_frames
from hub.hub import Hub
from hub.ports import LogEvent
from loadtest.bench import load
from loadtest.bench.commit import USER, hub_process, seed
from loadtest.bench.process import Process as HubProcess
from loadtest.bench.results import Row, show, write_section
from storage.embedded.postgres import EmbeddedPostgres
from storage.postgres.migrate import migrate

SOCKETS = 1_000
EVENT_BYTES = 300
ROUNDS = 200
PAIRS = 9
IDLE_SOCKETS = 9_000

_console = Console(highlight=False, soft_wrap=True)


class Figures(NamedTuple):
    """Deliveries a second of the hub and of the bare loop, for one frame at a time."""

    hub_per_s: float
    bare_per_s: float
    events: int  # in a frame

    @property
    def ratio(self) -> float:
        return self.hub_per_s / self.bare_per_s


def main(
    record: Annotated[bool, typer.Option(help="Write loadtest/RESULTS.md.")] = False,
    idle_sockets: Annotated[int, typer.Option(help="For the memory of a connection.")] = (
        IDLE_SOCKETS
    ),
) -> None:
    before = load.before(_console)
    with (
        tempfile.TemporaryDirectory(prefix="budget-hub-bench-") as folder,
        EmbeddedPostgres.start(Path(folder)) as postgres,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        program = Path(folder) / "fanout"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O2", "-o", program, source], check=True)
        rows = runner.run(measure(postgres.url, program, idle_sockets))
    show(rows, _console)
    if record:
        notes = "One hub process; one core for it, one for the drain."
        write_section("fanout", rows, notes, before)


async def measure(url: str, program: Path, idle_sockets: int) -> list[Row]:
    await migrate(url)
    [budget] = await seed(url, 1)
    with hub_process(url) as (hub_url, token):
        accept_per_s, kib = await idle(program, hub_url, token, idle_sockets)
    async with hub_here(url) as (hub, port, token):
        request = upgrade(token, f"/sync?budgetId={budget.id}&key={budget.head}")
        async with drain(program, port, SOCKETS, request) as received:
            await _until(lambda: hub.feeds.followers(budget.id) == SOCKETS)
            gc.collect()
            gc.freeze()
            head = budget.head
            single: list[Figures] = []
            bursts: list[Figures] = []
            for _ in range(PAIRS):
                for events, figures in ((1, single), (10, bursts)):
                    frames = list(_frames(budget.id, head, ROUNDS, events))
                    head = frames[-1].to_sequence
                    hub_per_s = await _through_hub(hub, frames, received)
                    bare_per_s = await bare(program, frames[0].data)
                    figures.append(Figures(hub_per_s, bare_per_s, events))
    return [
        _row("isolated events: deliveries of the hub / sends of a bare loop", single, "≥ 0.7"),
        _row("bursts of ten: events delivered / sends of a bare loop", bursts, "≥ 4"),
        Row(
            "connections accepted / 1,000 a second", accept_per_s / 1000, "≥ 1",
            f"{accept_per_s:,.0f} a second",
        ),
        Row(
            "memory of an idle connection / 12 KiB", kib / 12, "≤ 1",
            f"{kib:.1f} KiB of the process's RSS at {idle_sockets:,} connections",
        ),
    ]  # fmt: skip


def _row(says: str, figures: Sequence[Figures], goal: str) -> Row:
    ratio = statistics.median(figure.ratio for figure in figures)
    hub = statistics.median(figure.hub_per_s for figure in figures)
    bare_per_s = statistics.median(figure.bare_per_s for figure in figures)
    return Row(says, ratio, goal, f"{hub:,.0f}/s, {bare_per_s:,.0f}/s; median of {len(figures)}")


async def _through_hub(
    hub: Hub, frames: Sequence[Frame], received: Callable[[], "asyncio.Future[int]"]
) -> float:
    """Events delivered a second, until the drain has all bytes."""
    due = await received() + SOCKETS * sum(len(frame.data) for frame in frames)
    began_s = time.perf_counter()
    for frame in frames:
        hub.feeds.received(frame)
        await asyncio.sleep(0)  # each frame by itself, as the bus brings them
    while await received() < due:  # noqa: ASYNC110 - another process has no event to wait for
        await asyncio.sleep(0.002)  # asking costs the drain time
    events = sum(frame.to_sequence - frame.from_sequence + 1 for frame in frames)
    return SOCKETS * events / (time.perf_counter() - began_s)


async def bare(program: Path, data: bytes) -> float:
    """Sends a second of the C loop."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        sender = await _start(program, "send", str(SOCKETS), file.name, str(ROUNDS))
        port = int(await _line(sender, "port"))
        async with drain(program, port, SOCKETS, ""):
            await _line(sender, "accepted")
            await _say(sender)
            elapsed_s = float(await _line(sender, "seconds"))
            await _stop(sender)
    return SOCKETS * ROUNDS / elapsed_s


async def idle(program: Path, url: str, token: str, sockets: int) -> tuple[float, float]:
    """Connections accepted a second, and KiB of RSS for each, of the hub at `url`."""
    hub, port = HubProcess.listening(url), int(url.rpartition(":")[2])
    request = upgrade(token, "/sync")
    async with drain(program, port, 100, request):  # what is made once
        await asyncio.sleep(1)
    before_kib, began_s = hub.memory_kib(), time.perf_counter()
    async with drain(program, port, sockets, request) as received:
        last = -1
        while (total := await received()) != last:  # every welcome has come
            last, until_s = total, time.perf_counter()
            await asyncio.sleep(0.25)
        kib = (hub.memory_kib() - before_kib) / sockets
    return sockets / (until_s - began_s), kib


@asynccontextmanager
async def hub_here(url: str) -> AsyncIterator[tuple[Hub, int, str]]:
    """A hub in this process: itself, its port, and a token of the bench's user."""
    secret = secrets.token_hex(32)
    settings = Settings(database_url=url, auth_secret=secret, port=0, log_level="warning")
    logs.configure(settings)
    listening = server.bind("127.0.0.1", 0)
    unanswered = replace(APP_TIMEOUTS, ping_s=3600.0)  # the drain answers nothing
    async with open_app(settings, timeouts=unanswered) as app:
        config = server.configured(app.rest, app.door)
        running = server.Server(config, lambda: None, app.hub.drain)
        serving = asyncio.create_task(running.serve(sockets=[listening]))
        token, _ = Tokens([secret.encode()], now=time.time).issue(USER)
        yield app.hub, listening.getsockname()[1], token
        running.should_exit = True
        await serving


@asynccontextmanager
async def drain(
    program: Path, port: int, sockets: int, request: str
) -> AsyncIterator[Callable[[], "asyncio.Future[int]"]]:
    """Sockets that read and drop everything; what is yielded gives the bytes so far."""
    process = await _start(program, "drain", str(port), str(sockets), request)

    async def received() -> int:
        await _say(process)
        return int(await _line(process, "bytes"))

    yield lambda: asyncio.ensure_future(received())
    await _stop(process)


def upgrade(token: str, path: str) -> str:
    return (
        f"GET {path} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    )


def _frames(budget_id: str, head: int, rounds: int, events: int) -> "Sequence[Frame]":
    frames: list[Frame] = []
    for _ in range(rounds):
        rows = [_event(head + number) for number in range(1, events + 1)]
        frames += event_frames(budget_id, rows)
        head += events
    return frames


def _event(sequence: int) -> LogEvent:
    text = (b'{"sequence":%d,"note":"' % sequence).ljust(EVENT_BYTES - 2, b"x") + b'"}'
    return LogEvent(sequence, "expense.add", "", text)


async def _start(program: Path, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        program, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


async def _stop(process: Process) -> None:
    with suppress(ProcessLookupError):  # it ends by itself when its sockets are closed
        process.kill()
    await process.wait()


async def _say(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    await process.stdin.drain()


async def _line(process: Process, word: str) -> str:
    """What follows `word` on the next line. Raises `RuntimeError` if the process says otherwise."""
    assert process.stdout is not None
    said = (await process.stdout.readline()).decode().split()
    if not said or said[0] != word:
        raise RuntimeError(f"fanout said {said}, not {word}")
    return said[-1]


async def _until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline_s = time.perf_counter() + timeout_s
    while not true() and time.perf_counter() < deadline_s:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    if sys.platform != "linux":
        raise SystemExit("the fan-out bench needs Linux")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
