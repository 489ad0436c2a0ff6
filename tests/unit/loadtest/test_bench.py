"""What the benches make of their figures: ratios with their limits, the results page, the plots."""

import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import TypeAdapter
from rich.console import Console

from loadtest.bench.fleet import FULL, SMALL, Fleet, Run, Sample, cost_of, plots, rows
from loadtest.bench.load import Load, now
from loadtest.bench.process import Process, allow_files
from loadtest.bench.results import RESULTS, Row, kept, ratios, show, with_summary, write_section
from loadtest.report import Report
from tests import reports

QUIET = Load(0.1, 0.01, 2)
REPORT = TypeAdapter(Report)

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def run(devices: int, *, cpu_us: float = 600, kib: float = 18, **changes: Any) -> Run:
    report = REPORT.validate_python(reports.report(**changes))
    return Run(Fleet("steady", devices, 500, 60), report, cpu_us, kib)


@pytest.mark.parametrize(
    ("reached", "goal", "wanted"),
    [
        (0.7, "≥ 0.7", True),
        (0.69, "≥ 0.7", False),
        (1.0, "≤ 1", True),
        (1.01, "≤ 1", False),
        (0.0, "≤ 0", True),
        (3.0, "none", None),
    ],
)
def test_goal_is_kept_or_missed(reached: float, goal: str, wanted: bool | None) -> None:
    assert kept(reached, goal) is wanted


def test_missed_limit_is_said_beside_the_figure() -> None:
    out = StringIO()
    bad, good = Row("a / b", 0.5, "≥ 0.6", "5, 10"), Row("c / d", 0.5, "≤ 0.6", "5, 10")
    show([bad, good], Console(file=out, width=200))
    first, second = out.getvalue().splitlines()
    assert first == "a / b: 0.50 (≥ 0.6) MISSED; 5, 10"
    assert second == "c / d: 0.50 (≤ 0.6) kept; 5, 10"


def test_section_is_replaced_and_its_ratios_stand_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n<!-- summary -->\n<!-- /summary -->\n## Own\nprose\n")
    write_section("own", [Row("a / b", 0.5, "≥ 0.6", "5, 10")], "old notes", QUIET, path=path)
    write_section("other", [Row("c / d", 2, "≤ 3", "6, 3")], "notes", QUIET, path=path)
    write_section("own", [Row("a / b", 0.7, "≥ 0.6", "7, 10")], "notes", QUIET, path=path)
    text = path.read_text()
    assert "old notes" not in text and "prose" in text
    assert ratios(text) == [("own", "a / b", 0.7, "≥ 0.6"), ("other", "c / d", 2.0, "≤ 3")]
    summary = text.partition("<!-- /summary -->")[0]
    assert "| own | a / b | **0.70** | ≥ 0.6 | yes |" in summary
    assert "| other | c / d | **2.00** | ≤ 3 | yes |" in summary
    assert text.count("quiet before the start: load average 0.10 on 2 cores") == 2


def test_results_say_where_the_machine_was_busy(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("")
    write_section("own", [], "", Load(3.5, 0.9, 2), path=path)
    assert "the machine was BUSY before the start: load average 3.50" in path.read_text()


def test_plots_are_files_beside_the_results(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("")
    write_section("own", [], "", QUIET, {"cpu-per-event": "<svg/>"}, path)
    assert "![cpu per event](plots/cpu-per-event.svg)" in path.read_text()
    assert (tmp_path / "plots" / "cpu-per-event.svg").read_text() == "<svg/>\n"


def test_committed_summary_is_of_the_committed_sections() -> None:
    text = RESULTS.read_text()
    assert with_summary(text) == text
    assert len(ratios(text)) >= 18


def test_committed_results_name_only_pictures_that_are_there() -> None:
    named = [part.partition(")")[0] for part in RESULTS.read_text().split("](")[1:]]
    assert all((RESULTS.parent / name).is_file() for name in named)


@pytest.mark.parametrize(
    ("average", "busy", "quiet"),
    [(0.2, 0.0, True), (1.9, 0.0, False), (0.2, 0.5, False)],
)
def test_machine_is_quiet_only_if_nobody_used_it(average: float, busy: float, quiet: bool) -> None:
    load = Load(average, busy, 2)
    assert load.quiet is quiet
    assert ("BUSY" in str(load)) is not quiet


@needs_linux
def test_work_of_others_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(_: float) -> None:
        until_s = time.process_time() + 0.2
        while time.process_time() < until_s:
            pass

    monkeypatch.setattr("loadtest.bench.load.time.sleep", work)
    # Again where we were stopped in the middle: then nobody worked for most of the time.
    assert any(now().busy > 0.5 / (os.cpu_count() or 1) for _ in range(20))


@needs_linux
def test_process_is_found_by_its_socket_and_measured() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = listening_at(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert found.pid == os.getpid()
    assert found.memory_kib() <= found.memory_kib("VmHWM")
    before_s = found.cpu_s()
    while time.process_time() < before_s + 0.05:
        pass
    assert before_s < found.cpu_s() <= time.process_time() + 0.1


def listening_at(url: str) -> Process:
    """Looked for again where another process ended while its files were looked at."""
    while True:
        with suppress(FileNotFoundError, ProcessLookupError):
            return Process.listening(url)


def test_too_few_open_files_are_said_before_the_bench_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: asked.append(limits))
    allow_files(100)
    allow_files(1000)
    assert asked == [(1000, 4096)]
    with pytest.raises(RuntimeError, match="ulimit -n"):
        allow_files(5000)


def test_cost_is_that_of_the_measured_time_only() -> None:
    # One core second a second from 100 to 110, next to nothing before and after.
    samples = [
        Sample(at, min(max(at - 100, 0), 10.0), 1_000 + (500 if 100 <= at <= 110 else 0))
        for at in [n / 2 for n in range(160, 240)]
    ]
    cpu_s, memory_kib = cost_of(samples, 100.0, 10.0)
    assert cpu_s == pytest.approx(10.0)
    assert memory_kib == 1_500
    assert cost_of(samples, 100.2, 9.6)[0] == pytest.approx(9.6)
    assert cost_of([], 0, 1) == (0.0, 0.0)


RAMP: Mapping[str, Any] = {
    "p99Ms": 100.0,
    "highestRate": 1500.0,
    "steps": [{"rate": 1500.0, "p99Ms": 80.0, "kept": True}],
}


def test_fleet_is_held_against_its_limits() -> None:
    costs = [run(500, cpu_us=600, kib=20), run(5_000, cpu_us=750, kib=16)]
    found = {r.says: r for r in rows(run(5_000), run(1_000, ramp=RAMP), costs)}
    reached = {says: round(row.reached, 3) for says, row in found.items()}
    assert reached == {
        "5,000 devices, 500 events/s, 60 s: p50 to delivery / 10 ms": 0.34,
        "5,000 devices, 500 events/s, 60 s: p99 to delivery / 100 ms": 0.215,
        "5,000 devices, 500 events/s, 60 s: promises broken": 0,
        "highest rate with p99 ≤ 100 ms, 1,000 devices / 500 a second": 3,
        "the hub's CPU time for an event, 5,000 devices / 500": 1.25,
        "the hub's memory for a device, 5,000 devices / 500": 0.8,
    }
    assert all(kept(row.reached, row.goal) for row in found.values())


def test_broken_promise_misses_its_limit_and_a_busy_generator_is_said() -> None:
    proof = {"passed": False, "checked": {}, "violation": None}
    cost = [run(500), run(5_000)]
    broken = rows(run(5_000, proof=proof), run(9, ramp=RAMP), cost)
    assert kept(broken[2].reached, broken[2].goal) is False
    assert "A PROMISE WAS BROKEN" in broken[0].made_of
    late = rows(run(5_000, valid=False), run(9, ramp=RAMP), cost)
    assert "the generator was the limit" in late[0].made_of
    doubted = rows(run(5_000), run(9, ramp=RAMP), [run(500), run(5_000, valid=False)])
    assert "the generator was the limit at 5,000" in doubted[4].made_of
    assert "the generator was the limit" not in doubted[0].made_of


def test_nothing_delivered_keeps_no_limit() -> None:
    none = dict.fromkeys(("p50", "p90", "p99", "p999", "max"))
    latency = {"ackMs": {**none, "count": 0}, "deliveryMs": {**none, "count": 0}}
    found = rows(run(5_000, latency=latency), run(9, ramp=None), [run(500), run(5_000)])
    assert [kept(row.reached, row.goal) for row in found[:2]] == [False, False]
    assert kept(found[3].reached, found[3].goal) is False


def test_plots_leave_out_what_the_generator_limited() -> None:
    cost = [run(500), run(1_000, valid=False), run(2_000)]
    drawn = plots(run(5_000), run(9, ramp=RAMP), cost, cost)
    assert set(drawn) == {
        "cpu-per-event", "memory-per-device", "latency-against-load", "ramp", "steady-latency",
        "steady-distribution", "steady-throughput",
    }  # fmt: skip
    assert drawn["cpu-per-event"].count("<circle") == 2
    assert drawn["latency-against-load"].count("<circle") == 4
    for svg in drawn.values():
        ElementTree.fromstring(svg)


def test_bench_asks_for_what_it_is_to_show() -> None:
    assert FULL.steady == Fleet("steady", 5_000, 500, 300)
    assert [fleet.devices for fleet in FULL.cost] == [500, 1_000, 2_000, 5_000]
    assert len({fleet.rate_per_s for fleet in FULL.cost}) == 1
    assert len({fleet.devices for fleet in FULL.load}) == 1
    assert sum(fleet.duration_s for fleet in SMALL.fleets) < 60
