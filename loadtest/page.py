"""`report.html`: one file that needs nothing else, for a phone as for a desk."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from math import ceil
from typing import TYPE_CHECKING, Literal

from loadtest import plot
from loadtest.plot import Limit, Point

if TYPE_CHECKING:  # the report writes this page
    from loadtest.report import Percentiles, Report, Second

POINTS_MAX = 300  # of a line; more do not fit its pixels

_Rate = Literal["accepted", "deliveries", "conflicts", "reconnects", "errors"]
_Latency = Literal["ackP50Ms", "ackP99Ms", "deliveryP50Ms", "deliveryP99Ms"]


def page(report: "Report") -> str:
    """The whole document."""
    title = f"{report['scenario']}: {verdict(report)}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style></head><body><main>",
            *_head(report),
            *_proof(report),
            *_tiles(report),
            '<section class="plots">',
            *(f"<figure>{svg}</figure>" for svg in plots(report).values()),
            "</section>",
            "<h2>Latency</h2>",
            _latency_table(report),
            "<h2>Totals</h2>",
            _table((words(name), f"{count:,}") for name, count in report["totals"].items()),
            "<h2>Cost</h2>",
            *_cost(report),
            "<h2>The run</h2>",
            _run_table(report),
            "</main></body></html>",
        ]
    )


def verdict(report: "Report") -> str:
    """One word: a violation comes first, since it holds also where the generator was the limit."""
    if not report["proof"]["passed"]:
        return "VIOLATION"
    return "PROVEN" if report["valid"] else "INVALID"


def plots(report: "Report") -> dict[str, str]:
    """SVG by name."""
    series = report["series"]
    ends = [second["t"] + 1 for second in series]
    time = plot.time(max([report["durationS"], *ends]))

    def rates(*names: _Rate) -> dict[str, Sequence[Point]]:
        return {name: thin([(s["t"], s[name]) for s in series], _mean) for name in names}

    def worst(names: Mapping[str, _Latency]) -> dict[str, Sequence[Point]]:
        return {
            says: thin([(s["t"], s[name]) for s in series], max) for says, name in names.items()
        }

    def chart(title: str, lines: Mapping[str, Sequence[Point]]) -> str:
        return plot.lines(title, lines, time, plot.linear(_values(lines)), x_name=TIME)

    latency = worst(
        {
            "ack p50": "ackP50Ms",
            "ack p99": "ackP99Ms",
            "delivery p50": "deliveryP50Ms",
            "delivery p99": "deliveryP99Ms",
        }
    )
    generator = {"CPU, % of a core": thin([(s["t"], _percent(s)) for s in series], max)}
    return _ramp(report) | {
        "throughput": chart("Throughput, events a second", rates("accepted", "deliveries")),
        "latency": plot.lines(
            "Latency, ms", latency, time, plot.logarithmic(_values(latency)), x_name=TIME
        ),
        "distribution": plot.histogram(
            "How many took how long",
            {"ack": report["histograms"]["ackMs"], "delivery": report["histograms"]["deliveryMs"]},
            x_name="ms",
        ),
        "connections": plot.areas(
            "Devices",
            {
                "connected": thin([(s["t"], s["connected"]) for s in series], _mean),
                "offline": thin([(s["t"], s["offline"]) for s in series], _mean),
            },
            time,
            x_name=TIME,
        ),
        "troubles": chart(
            "Conflicts, reconnects, errors a second", rates("conflicts", "reconnects", "errors")
        ),
        "generator": chart("The generator's busiest process", generator),
    }


TIME = "time from the start"


def _ramp(report: "Report") -> dict[str, str]:
    """What each rate came to, where the run tried several."""
    ramp = report.get("ramp")
    if not ramp:
        return {}
    steps = sorted(ramp["steps"], key=lambda step: step["rate"])
    series: dict[str, Sequence[Point]] = {"p99": [(s["rate"], s["p99Ms"]) for s in steps]}
    svg = plot.lines(
        "The worse p99 of verdicts and deliveries, ms",
        series,
        plot.linear([s["rate"] for s in steps]),
        plot.logarithmic([ramp["p99Ms"], *_values(series)]),
        x_name="events a second",
        limits=[Limit(f"bound: {ramp['p99Ms']:g}", ramp["p99Ms"])],
        dots=True,
    )
    return {"ramp": svg}


def thin(points: Sequence[Point], join: Callable[[list[float]], float]) -> Sequence[Point]:
    """At most `POINTS_MAX` points, each for several neighbours; None where all of them are."""
    each = max(ceil(len(points) / POINTS_MAX), 1)
    thinned: list[Point] = []
    for at in range(0, len(points), each):
        found = [value for _, value in points[at : at + each] if value is not None]
        thinned.append((points[at][0], join(found) if found else None))
    return thinned


def milliseconds(value: float | None) -> str:
    """Three digits are all that a latency is known by."""
    if value is None:
        return "-"
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def figure(value: float | None) -> str:
    """Any other number: four digits, or all of a whole one."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.4g}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _values(lines: Mapping[str, Sequence[Point]]) -> list[float | None]:
    return [value for line in lines.values() for _, value in line]


def _percent(second: "Second") -> float | None:
    cpu = second["generatorCpu"]
    return None if cpu is None else 100 * cpu


def _head(report: "Report") -> Iterable[str]:
    word = verdict(report)
    began = datetime.fromtimestamp(report["startedAt"] / 1000, UTC)
    yield f'<h1>{escape(report["scenario"])} <span class="{word.lower()}">{word}</span></h1>'
    yield (
        f"<p>{began:%Y-%m-%d %H:%M} UTC, {report['durationS']:,.0f} s, "
        f"seed {report['seed']}, {escape(', '.join(report['targets']))}</p>"
    )
    for reason in report["invalidBecause"]:
        yield f'<p class="invalid">The figures do not count: {escape(reason)}</p>'


def _proof(report: "Report") -> Iterable[str]:
    proof = report["proof"]
    checked = ", ".join(f"{count:,} {words(name)}" for name, count in proof["checked"].items())
    if proof["passed"]:
        said = f"Nothing lost, doubled or out of order. Checked: {checked}."
        yield f'<p class="box">{escape(said)}</p>'
        return
    broken = proof["violation"]
    if broken is None:
        yield '<p class="box violation">The proof did not pass.</p>'
    else:
        yield (
            f'<div class="box violation"><b>{escape(broken["rule"])}</b>: {escape(broken["what"])}'
        )
        yield f"<pre>{escape(chr(10).join(broken['story']))}</pre></div>"


def _tiles(report: "Report") -> Iterable[str]:
    seconds = max(report["durationS"], 1e-9)
    totals, latency = report["totals"], report["latency"]
    connected = [s["connected"] for s in report["series"] if s["connected"] is not None]
    ramp = report.get("ramp")
    found = {"highest rate kept, events a second": _rate(ramp["highestRate"])} if ramp else {}
    tiles = found | {
        "devices at most": f"{max(connected, default=0):,}",
        "events a second": f"{totals['accepted'] / seconds:,.0f}",
        "deliveries a second": f"{totals['deliveries'] / seconds:,.0f}",
        "ack p50, p99 ms": _pair(latency["ackMs"]),
        "delivery p50, p99 ms": _pair(latency["deliveryMs"]),
        "errors": f"{totals['errors']:,}",
    }
    yield '<dl class="tiles">'
    for name, value in tiles.items():
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
    yield "</dl>"


def _rate(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:,.0f}"


def _pair(percentiles: "Percentiles") -> str:
    return f"{milliseconds(percentiles['p50'])}, {milliseconds(percentiles['p99'])}"


def _latency_table(report: "Report") -> str:
    ack, delivery = report["latency"]["ackMs"], report["latency"]["deliveryMs"]
    rows = [
        ("p50", ack["p50"], delivery["p50"]),
        ("p90", ack["p90"], delivery["p90"]),
        ("p99", ack["p99"], delivery["p99"]),
        ("p99.9", ack["p999"], delivery["p999"]),
        ("max", ack["max"], delivery["max"]),
    ]
    head = ("ms, from the moment it was meant to be sent", "ack", "delivery")
    shown = [(name, milliseconds(a), milliseconds(d)) for name, a, d in rows]
    return _table([*shown, ("count", f"{ack['count']:,}", f"{delivery['count']:,}")], head)


def _cost(report: "Report") -> Iterable[str]:
    resources = report.get("resources")
    if not resources:
        yield "<p>Not measured: the hub is not a known process of this machine.</p>"
        return
    rows = [(words(name), figure(value)) for name, value in resources.items()]
    yield _table(rows)


def _run_table(report: "Report") -> str:
    machine, generator = report["machine"], report["generator"]
    rows = [(words(name), _option(value)) for name, value in report["options"].items()]
    return _table(
        [
            *rows,
            ("commit", report["commit"] or "unknown"),
            ("machine", f"{machine['cores']} cores, {machine['cpu']}"),
            ("system", f"{machine['system']}, Python {machine['python']}"),
            ("generator processes", str(generator["processes"])),
            ("generator's busiest process", f"{generator['cpuShare']:.0%} of a core"),
            ("generator's lag, p99", f"{milliseconds(generator['lagP99Ms'])} ms"),
        ]
    )


def _option(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    lines = ["<table>"]
    if head:
        lines.append(f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>")
    for name, *cells in rows:
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><th>{escape(name)}</th>{values}</tr>")
    return "\n".join([*lines, "</table>"])


def words(name: str) -> str:
    """`hubCpuUsPerEvent`, `duration_s`: for people."""
    spaced = re.sub("KiB|MiB|[A-Z][a-z]*", lambda m: f" {_WORDS.get(m[0], m[0].lower())}", name)
    return spaced.replace("_", " ").strip()


_WORDS = {"Cpu": "CPU", "Us": "µs", "Rss": "memory", "KiB": "KiB", "MiB": "MiB"}

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--faint:#6a737d;--back:#f3f4f6;--card:#fff;
--good:#00663f;--bad:#c1121f;--warn:#8a5a00}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--faint:#9aa3ad;--back:#0c0e11;--card:#15181c;
--good:#35c99a;--bad:#ff6b6b;--warn:#f0b84a}}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.45 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:12px;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.3em 0}h2{font-size:1.1rem;margin:1.4em 0 .4em}
h1 span{font-size:1rem;padding:.15em .5em;border-radius:4px;color:#fff;background:var(--good)}
h1 .violation{background:var(--bad)}h1 .invalid{background:var(--warn)}
@media(prefers-color-scheme:dark){h1 span{color:#000}}
.box{background:var(--card);border-left:4px solid var(--good);padding:.6em .8em;margin:.6em 0}
.box.violation{border-color:var(--bad)}p.invalid{color:var(--warn);font-weight:600}
pre{white-space:pre-wrap;font-size:.8rem;margin:.6em 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:8px;margin:0 0 8px}
.tiles div{background:var(--card);padding:.5em .7em;border-radius:6px}
dt{color:var(--faint);font-size:.8rem}dd{margin:0;font-size:1.25rem;font-weight:600}
.plots{display:grid;grid-template-columns:1fr;gap:10px}figure{margin:0}
.plots svg{display:block;width:100%;height:auto}
@media(min-width:900px){.plots{grid-template-columns:1fr 1fr}}
table{border-collapse:collapse;width:100%;background:var(--card);border-radius:6px}
th,td{padding:.3em .7em;text-align:right;font-variant-numeric:tabular-nums;font-weight:400}
th:first-child{text-align:left;color:var(--faint)}tr+tr{border-top:1px solid var(--back)}
"""
