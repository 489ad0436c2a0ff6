"""What a run showed, for people, in a dozen lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

_OUTCOMES = ("accepted", "conflicts", "rejected", "retryable", "unknown")


def show(report: Mapping[str, Any], folder: Path, console: Console) -> None:
    """`report` is report.json, written to `folder`."""
    options, totals, generator = report["options"], report["totals"], report["generator"]
    counts = ", ".join(f"{totals[name]:,} {name}" for name in _OUTCOMES)
    duration_s = min(options["duration_s"], report["durationS"])  # a ramp may end early
    lines = {
        "seed": f"{report['seed']}",
        "devices": f"{options['devices']:,}, on {options['budgets']:,} budgets; "
        f"{totals['reconnects']:,} reconnects, {totals['errors']:,} errors",
        "events": f"{totals['sent']:,} sent: {counts}",
        "events/s": f"{totals['accepted'] / max(duration_s, 1e-9):,.1f} accepted",
        "deliveries": f"{totals['deliveries']:,}",
        "due → verdict": _latency(report["latency"]["ackMs"]),
        "due → delivery": _latency(report["latency"]["deliveryMs"]),
        "generator": f"{generator['processes']} processes, the busiest at "
        f"{generator['cpuShare']:.0%} of a core; late by {generator['lagP99Ms']:.1f} ms at p99",
        "report": f"{folder}",
    }
    if (resources := report["resources"]) is not None:
        lines["hub"] = (
            f"{resources['hubCpuShare']:.0%} of a core, {resources['hubRssMiB']:,.0f} MiB; "
            f"{resources['hubRssKiBPerDevice']:.1f} KiB for a device, "
            f"{resources.get('hubCpuUsPerEvent', 0):,.0f} µs for an event"
        )
    if (ramp := report.get("ramp")) is not None:
        kept = ramp["highestRate"]
        lines["highest rate"] = (
            f"none kept p99 under {ramp['p99Ms']:g} ms"
            if kept is None
            else f"{kept:,.0f} events/s, p99 under {ramp['p99Ms']:g} ms"
        )
    for name, value in lines.items():
        console.print(f"{name:<16}{value}", markup=False, highlight=False, soft_wrap=True)
    _verdict(report, console)


def _verdict(report: Mapping[str, Any], console: Console) -> None:
    proof = report["proof"]
    if not proof["passed"]:
        violation = proof["violation"]
        console.print(f"[bold red]FAILED[/] {violation['rule']}", highlight=False)
        for line in (violation["what"], *violation["story"]):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        return
    checked = ", ".join(f"{number:,} {name}" for name, number in proof["checked"].items())
    console.print(
        f"[bold green]PROVEN[/] nothing missed, repeated, misordered or lost: {checked}",
        highlight=False,
        soft_wrap=True,
    )
    for reason in report["invalidBecause"]:
        console.print(f"[bold yellow]INVALID[/] {reason}", highlight=False, soft_wrap=True)


def _latency(ms: Mapping[str, float | None]) -> str:
    if not ms["count"]:
        return "none measured"
    figures = ", ".join(
        f"{name} {ms[key]:.1f}"
        for name, key in (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99.9", "p999"))
    )
    return f"{figures}, max {ms['max']:.1f} ms; {ms['count']:,} measured"
