"""The load script against one hub: how fast is it for a fleet of thousands, and what does it cost?

One hub process, embedded Postgres and Redis, and the generator, all on this machine; a new hub for
each run, so that its memory is that run's. Three devices share a budget, so each event is delivered
three times, its sender included.

*steady*
    5,000 devices at 500 events a second for five minutes: latency as a tester sees it, from the
    moment an event was meant to be sent. The run's proof must pass.
*ramp*
    The highest rate that keeps p99 under 100 ms.
*cost*
    At the same rate with 500, 1,000, 2,000 and 5,000 devices: the hub's CPU time for each event,
    and the memory it took for each device. Both should stay as they are.
*load*
    Latency of 1,000 devices as their rate grows.

Each run is `python -m loadtest SCENARIO`, as testers do it. Where the generator was the limit that
is said, and the run is not drawn.

Run: `python -m loadtest.bench.fleet`, a quarter of an hour; `--small` tries it in a minute or two.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
import uvloop
from rich.console import Console

from loadtest import page, plot, report as reports
from loadtest.bench import load
from loadtest.bench.commit import SECRET, hub_process
from loadtest.bench.process import Process, allow_files
from loadtest.bench.results import Row, show, write_section
from loadtest.page import milliseconds
from loadtest.plot import Limit, Point
from loadtest.report import Percentiles, Report
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis
from storage.postgres.migrate import migrate

DEVICES_PER_BUDGET = 3
P50_MS, P99_MS = 10.0, 100.0
LOOK_EVERY_S = 0.5
SLACK_S = 300.0  # of a run beyond its duration: connecting, coming to rest, the proof
SEED = 1
FILES_SPARE = 500  # what a hub has open beside its sockets, and more
KEPT = Path("loadtest-out") / "bench-fleet"  # histories of runs that broke a promise
PROVEN, VIOLATED, INVALID = 0, 1, 3  # exit codes of the load script

_console = Console(highlight=False, soft_wrap=True)


class Fleet(NamedTuple):
    """What is asked of the load script."""

    scenario: str
    devices: int
    rate_per_s: float
    duration_s: float

    def __str__(self) -> str:
        return (
            f"{self.scenario}: {self.devices:,} devices, {self.rate_per_s:g} events/s, "
            f"{self.duration_s:g} s"
        )


class Program(NamedTuple):
    """All runs of the bench."""

    steady: Fleet
    ramp: Fleet
    cost: Sequence[Fleet]
    load: Sequence[Fleet]

    @property
    def fleets(self) -> Iterator[Fleet]:
        yield from (self.steady, self.ramp, *self.cost, *self.load)


FULL = Program(
    Fleet("steady", 5_000, 500, 300),
    Fleet("ramp", 5_000, 250, 200),
    [Fleet("steady", devices, 500, 30) for devices in (500, 1_000, 2_000, 5_000)],
    [Fleet("steady", 1_000, rate, 20) for rate in (125, 250, 500, 1_000, 2_000)],
)
SMALL = Program(
    Fleet("steady", 200, 50, 10),
    Fleet("ramp", 50, 50, 20),
    [Fleet("steady", devices, 50, 5) for devices in (50, 200)],
    [Fleet("steady", 100, rate, 5) for rate in (50, 200)],
)


class Run(NamedTuple):
    """A run and what the hub took for it: CPU time from the start of sending to the end of the run,
    and its memory then beyond what it had without a device."""

    fleet: Fleet
    report: Report
    cpu_us_per_event: float
    memory_kib_per_device: float

    @property
    def valid(self) -> bool:
        return self.report["valid"] and self.report["proof"]["passed"]

    @property
    def remark(self) -> str:
        """What has to be known with its figures."""
        if not self.report["proof"]["passed"]:
            return "; A PROMISE WAS BROKEN"
        return "" if self.report["valid"] else "; the generator was the limit"


class Sample(NamedTuple):
    """The hub's process at one moment."""

    at_s: float  # of `time.time`
    cpu_s: float
    memory_kib: int


def main(
    record: Annotated[bool, typer.Option(help="Write loadtest/RESULTS.md.")] = False,
    small: Annotated[bool, typer.Option(help="Only try it; the figures say nothing.")] = False,
) -> None:
    if record and small:
        raise typer.BadParameter("figures of the small form are not for the record")
    before = load.before(_console)
    program = SMALL if small else FULL
    allow_files(max(fleet.devices for fleet in program.fleets) + FILES_SPARE)
    with (
        tempfile.TemporaryDirectory(prefix="budget-hub-bench-") as name,
        EmbeddedPostgres.start(Path(name) / "postgres") as postgres,
        EmbeddedRedis.start(Path(name) / "redis") as redis,
    ):
        uvloop.run(migrate(postgres.url))
        numbers, total = count(1), sum(1 for _ in program.fleets)

        def driven(fleet: Fleet) -> Run:
            number = next(numbers)
            _console.print(f"[bold]run {number} of {total}[/], {fleet}")
            run = drive(fleet, postgres.url, redis.url, Path(name) / str(number))
            _console.print(said(run))
            if not run.report["proof"]["passed"]:
                evidence = Path(
                    shutil.copytree(Path(name) / str(number), _free(KEPT / str(number)))
                )
                _console.print(f"its history is kept in {evidence}", style="bold red")
            return run

        steady, ramp = driven(program.steady), driven(program.ramp)
        cost = [driven(fleet) for fleet in program.cost]
        loaded = [driven(fleet) for fleet in program.load]
    found = rows(steady, ramp, cost)
    show(found, _console)
    if record:
        write_section("fleet", found, NOTES, before, plots(steady, ramp, cost, loaded))
    if any(not run.report["proof"]["passed"] for run in (steady, ramp, *cost, *loaded)):
        raise typer.Exit(VIOLATED)


NOTES = f"""One hub, {DEVICES_PER_BUDGET} devices a budget. Latency counts from the moment an event
was meant to be sent. The hub's CPU time and memory are those of its process, Postgres and Redis not
among them. Runs in which the generator was the limit are not drawn."""


def drive(fleet: Fleet, postgres_url: str, redis_url: str, folder: Path) -> Run:
    """Start a hub, run the load script on it, and watch the hub meanwhile.

    Raises `RuntimeError` where the load script gives no report."""
    with hub_process(postgres_url, redis_url) as (url, _):
        hub = Process.listening(url)
        alone_kib = hub.memory_kib()
        arguments = {
            "--target": url,
            "--devices": fleet.devices,
            "--budgets": max(fleet.devices // DEVICES_PER_BUDGET, 1),
            "--rate": fleet.rate_per_s,
            "--duration": fleet.duration_s,
            "--processes": 2,
            "--seed": SEED,
            "--p99-ms": P99_MS,
            "--out": folder,
        }
        command = [sys.executable, "-m", "loadtest", fleet.scenario]
        command += [str(word) for pair in arguments.items() for word in pair]
        # With the hub's secret the devices need no registration, which is slow on purpose.
        script = subprocess.Popen(command, env={**os.environ, "AUTH_SECRET": SECRET})
        try:
            samples = list(_watched(hub, script, fleet.duration_s + SLACK_S))
        finally:
            script.kill()
            script.wait()
    if script.returncode not in (PROVEN, VIOLATED, INVALID):
        raise RuntimeError(f"the load script ended with {script.returncode}: {fleet}")
    report = reports.read(folder)
    cpu_s, memory_kib = cost_of(samples, report["startedAt"] / 1000, report["durationS"])
    return Run(
        fleet,
        report,
        cpu_s * 1e6 / max(report["totals"]["accepted"], 1),
        (memory_kib - alone_kib) / fleet.devices,
    )


def cost_of(samples: Sequence[Sample], began_s: float, duration_s: float) -> tuple[float, float]:
    """CPU seconds of that time, and the most memory in it in KiB."""
    inside = [s for s in samples if began_s <= s.at_s <= began_s + duration_s] or samples[-1:]
    if not inside:
        return 0.0, 0.0
    watched_s = inside[-1].at_s - inside[0].at_s
    cpu_s = inside[-1].cpu_s - inside[0].cpu_s
    # The first and the last look are not at the very ends.
    whole = duration_s / watched_s if watched_s > 0 else 1.0
    return cpu_s * whole, max(s.memory_kib for s in inside)


def _watched(hub: Process, script: "subprocess.Popen[bytes]", timeout_s: float) -> Iterator[Sample]:
    deadline_s = time.monotonic() + timeout_s
    while script.poll() is None:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the load script was not done after {timeout_s:g} s")
        yield Sample(time.time(), hub.cpu_s(), hub.memory_kib())
        time.sleep(LOOK_EVERY_S)


def rows(steady: Run, ramp: Run, cost: Sequence[Run]) -> list[Row]:
    """The figures as ratios."""
    fleet, latency = steady.fleet, _delivery(steady)
    who = f"{fleet.devices:,} devices, {fleet.rate_per_s:g} events/s, {fleet.duration_s:g} s"
    ack, totals = steady.report["latency"]["ackMs"], steady.report["totals"]
    each = totals["deliveries"] / max(totals["accepted"], 1)
    least, most = cost[0], cost[-1]
    rate = highest_rate(ramp.report)
    spread = ", ".join(f"{run.fleet.devices:,}" for run in cost)
    doubts = "".join(f"{r.remark} at {r.fleet.devices:,}" for r in cost if r.remark)
    return [
        Row(
            f"{who}: p50 to delivery / {P50_MS:g} ms",
            _known(latency["p50"]) / P50_MS,
            "≤ 1",
            f"{milliseconds(latency['p50'])} ms, ack {milliseconds(ack['p50'])} ms; "
            f"{each:.2f} deliveries an event{steady.remark}",
        ),
        Row(
            f"{who}: p99 to delivery / {P99_MS:g} ms",
            _known(latency["p99"]) / P99_MS,
            "≤ 1",
            f"{milliseconds(latency['p99'])} ms, ack {milliseconds(ack['p99'])} ms, "
            f"p99.9 {milliseconds(latency['p999'])} ms{steady.remark}",
        ),
        Row(
            f"{who}: promises broken",
            0.0 if steady.report["proof"]["passed"] else 1.0,
            "≤ 0",
            f"{totals['accepted']:,} events and {totals['deliveries']:,} deliveries checked",
        ),
        Row(
            f"highest rate with p99 ≤ {P99_MS:g} ms, {ramp.fleet.devices:,} devices / 500 a second",
            rate / 500,
            "≥ 1",
            f"{rate:,.0f} events a second{ramp.remark}",
        ),
        Row(
            f"the hub's CPU time for an event, {most.fleet.devices:,} devices / "
            f"{least.fleet.devices:,}",
            most.cpu_us_per_event / max(least.cpu_us_per_event, 1e-9),
            "≤ 1.5",
            f"{_list(run.cpu_us_per_event for run in cost)} µs with {spread} devices{doubts}",
        ),
        Row(
            f"the hub's memory for a device, {most.fleet.devices:,} devices / "
            f"{least.fleet.devices:,}",
            most.memory_kib_per_device / max(least.memory_kib_per_device, 1e-9),
            "≤ 1.5",
            f"{_list(run.memory_kib_per_device for run in cost)} KiB{doubts}",
        ),
    ]


def highest_rate(report: Report) -> float:
    """What `ramp` found, in events a second; 0 if no rate was kept."""
    ramp = report.get("ramp")
    return (ramp["highestRate"] if ramp else None) or 0.0


def plots(steady: Run, ramp: Run, cost: Sequence[Run], loaded: Sequence[Run]) -> Mapping[str, str]:
    """SVG by the file's name."""
    fair = [run for run in cost if run.valid]
    devices = plot.linear([0, *(run.fleet.devices for run in fair)])

    def by_devices(title: str, name: str, points: Sequence[Point]) -> str:
        scale = plot.linear([value for _, value in points])
        return plot.lines(title, {name: points}, devices, scale, x_name="devices", dots=True)

    against: Mapping[str, Sequence[Point]] = {
        "p50": [(run.fleet.rate_per_s, _delivery(run)["p50"]) for run in loaded if run.valid],
        "p99": [(run.fleet.rate_per_s, _delivery(run)["p99"]) for run in loaded if run.valid],
    }
    of_steady, of_ramp = page.plots(steady.report), page.plots(ramp.report)
    return {
        "cpu-per-event": by_devices(
            "The hub's CPU time for an event, µs",
            f"at {fair[0].fleet.rate_per_s:g} events/s" if fair else "no valid run",
            [(run.fleet.devices, run.cpu_us_per_event) for run in fair],
        ),
        "memory-per-device": by_devices(
            "The hub's memory for a device, KiB",
            "beyond a hub without devices",
            [(run.fleet.devices, run.memory_kib_per_device) for run in fair],
        ),
        "latency-against-load": plot.lines(
            "Latency against load, ms to delivery",
            against,
            plot.linear([0, *(x for points in against.values() for x, _ in points)]),
            plot.logarithmic([P99_MS, *(y for points in against.values() for _, y in points)]),
            x_name="events a second",
            limits=[Limit(f"limit of p99: {P99_MS:g}", P99_MS)],
            dots=True,
        ),
        **({"ramp": of_ramp["ramp"]} if "ramp" in of_ramp else {}),
        "steady-latency": of_steady["latency"],
        "steady-distribution": of_steady["distribution"],
        "steady-throughput": of_steady["throughput"],
    }


def said(run: Run) -> str:
    """A line for the terminal."""
    latency = _delivery(run)
    return (
        f"  delivery p50 {milliseconds(latency['p50'])} ms, p99 {milliseconds(latency['p99'])} ms, "
        f"CPU {run.cpu_us_per_event:,.0f} µs an event, "
        f"memory {run.memory_kib_per_device:.1f} KiB a device{run.remark}"
    )


def _free(path: Path) -> Path:
    """`path`, or the same with the first number that is not taken."""
    return next(p for n in count() if not (p := path.with_name(f"{path.name}-{n}")).exists())


def _delivery(run: Run) -> Percentiles:
    return run.report["latency"]["deliveryMs"]


def _known(value: float | None) -> float:
    """Nothing measured keeps no limit."""
    return float("inf") if value is None else value


def _list(values: Iterator[float]) -> str:
    return ", ".join(f"{value:,.0f}" for value in values)


if __name__ == "__main__":
    if sys.platform != "linux":
        raise SystemExit("the fleet bench needs Linux")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
