"""Two runs beside each other: the ratio of each figure, and whether the difference matters.

A figure sways within a run too. Where a report has it second by second, both runs are cut into
blocks of neighbouring seconds, and the means of the blocks tell how exactly the run's own mean is
known ("batch means": neighbours resemble each other, so seconds by themselves would promise too
much). A difference matters when it is beyond three standard errors of that and at least 5 %.
Counts are taken as rare independent events: beyond three times the root of their sum, and 5 % of
their share; but an error where there was none is always one. A figure that a run gives once only
(p99.9, the maximum, the cost) has no such measure: it is shown, and called large from 20 % on.

None of it knows of what differs between two runs on one machine: repeat a pair before believing.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from loadtest.page import figure, verdict, words

if TYPE_CHECKING:
    from loadtest.report import Report

BLOCKS = 10
BLOCKS_MIN = 5  # of fewer, their spread says little
STANDARD_ERRORS = 3.0
MATTERS = 0.05
LARGE = 0.20

Judgement = Literal[
    "better", "worse", "different", "same", "large?", "too short to tell", "not measured"
]
Wanted = Literal["more", "less", "neither"]

_BySecond = Literal[
    "accepted", "deliveries", "ackP50Ms", "ackP99Ms", "deliveryP50Ms", "deliveryP99Ms"
]
_Once = Literal["ackMs", "deliveryMs"]
_Count = Literal[
    "conflicts", "duplicates", "rejected", "retryable", "unknown", "reconnects", "errors"
]

_BY_SECOND: Sequence[tuple[str, _BySecond, Wanted]] = [
    ("accepted a second", "accepted", "more"),
    ("deliveries a second", "deliveries", "more"),
    ("ack p50 by second, ms", "ackP50Ms", "less"),
    ("ack p99 by second, ms", "ackP99Ms", "less"),
    ("delivery p50 by second, ms", "deliveryP50Ms", "less"),
    ("delivery p99 by second, ms", "deliveryP99Ms", "less"),
]
_ONCE: Sequence[tuple[str, _Once]] = [("ack", "ackMs"), ("delivery", "deliveryMs")]
_COUNTS: Sequence[tuple[_Count, Wanted]] = [
    ("conflicts", "neither"),
    ("duplicates", "less"),
    ("rejected", "less"),
    ("retryable", "less"),
    ("unknown", "less"),
    ("reconnects", "less"),
    ("errors", "less"),
]
_NEVER: Sequence[_Count] = ("rejected", "unknown", "errors")  # one is one too many


class Difference(NamedTuple):
    """A figure of both runs."""

    name: str
    a: float | None
    b: float | None
    judgement: Judgement

    @property
    def ratio(self) -> float | None:
        """How many times `a` is `b`; None where that says nothing."""
        return self.b / self.a if self.a and self.b is not None else None

    @property
    def matters(self) -> bool:
        return self.judgement in ("better", "worse", "different")


def compare(a: "Report", b: "Report") -> list[Difference]:
    """Every figure that at least one of the two has."""
    found = [*_by_second(a, b), *_once(a, b), *_counted(a, b)]
    return [d for d in found if d.a is not None or d.b is not None]


def unlike(a: "Report", b: "Report") -> list[str]:
    """What else differs than the hub: a comparison has to be read with it."""
    said = [
        f"{name}: {a['options'].get(name)} and {b['options'].get(name)}"
        for name in sorted(a["options"].keys() | b["options"].keys())
        if name not in _HARMLESS and a["options"].get(name) != b["options"].get(name)
    ]
    if a["scenario"] != b["scenario"]:
        said.insert(0, f"scenario: {a['scenario']} and {b['scenario']}")
    if a["machine"] != b["machine"]:
        said.append("machine: not the same")
    for name, report in (("a", a), ("b", b)):
        word = verdict(report)
        if word != "PROVEN":
            said.append(f"{name} is {word}: its figures do not count")
    return said


_HARMLESS = {"out", "seed", "target", "targets"}


def show(a: "Report", b: "Report", console: Console) -> None:
    """The table: what matters is bold, and counted under it."""
    for line in unlike(a, b):
        console.print(f"[yellow]differs[/] {line}", highlight=False)
    table = Table(title=f"a: {_name(a)}\nb: {_name(b)}", title_justify="left")
    for column in ("figure", "a", "b", "b / a", "the difference"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    differences = compare(a, b)
    for d in differences:
        ratio = "-" if d.ratio is None else f"{d.ratio:.2f}"
        style = {"better": "bold green", "worse": "bold red", "different": "bold"}.get(d.judgement)
        table.add_row(d.name, figure(d.a), figure(d.b), ratio, d.judgement, style=style)
    console.print(table, highlight=False)
    matter = [d.name for d in differences if d.matters]
    console.print("matters: " + (", ".join(matter) or "nothing"), highlight=False)


def _name(report: "Report") -> str:
    return f"{report['scenario']}, commit {report['commit'] or 'unknown'}, {verdict(report)}"


def _by_second(a: "Report", b: "Report") -> Iterable[Difference]:
    for name, key, wanted in _BY_SECOND:
        ours, theirs = _blocks(_values(a, key)), _blocks(_values(b, key))
        if not ours or not theirs:
            shown = [statistics.fmean(blocks) if blocks else None for blocks in (ours, theirs)]
            yield Difference(name, shown[0], shown[1], "not measured")
            continue
        mean_a, mean_b = statistics.fmean(ours), statistics.fmean(theirs)
        if min(len(ours), len(theirs)) < BLOCKS_MIN:
            yield Difference(name, mean_a, mean_b, "too short to tell")
            continue
        error = math.hypot(_standard_error(ours), _standard_error(theirs))
        beyond = abs(mean_b - mean_a) > STANDARD_ERRORS * error
        enough = abs(mean_b - mean_a) >= MATTERS * max(abs(mean_a), 1e-9)
        yield Difference(name, mean_a, mean_b, _judge(mean_a, mean_b, beyond and enough, wanted))


def _values(report: "Report", key: _BySecond) -> list[float]:
    """While events were due: what comes in after that says nothing of a rate."""
    work_s = report["options"].get("duration_s", float("inf"))
    seconds = [second for second in report["series"] if second["t"] + 1 <= work_s]
    return [value for second in seconds if (value := second[key]) is not None]


def _blocks(values: Sequence[float]) -> list[float]:
    """The means of `BLOCKS` blocks of equal length, of fewer where there are not as many values;
    a rest at the end is left out."""
    count = min(BLOCKS, len(values))
    each = len(values) // count if count else 0
    rest = iter(values)
    return [statistics.fmean(islice(rest, each)) for _ in range(count)]


def _standard_error(blocks: Sequence[float]) -> float:
    return statistics.stdev(blocks) / math.sqrt(len(blocks))


def _once(a: "Report", b: "Report") -> Iterable[Difference]:
    for says, of in _ONCE:
        ours, theirs = a["latency"][of], b["latency"][of]
        yield _unsure(f"{says} p99.9, ms", ours["p999"], theirs["p999"])
        yield _unsure(f"{says} max, ms", ours["max"], theirs["max"])
    cost_a, cost_b = a.get("resources") or {}, b.get("resources") or {}
    for name in (*cost_a, *(name for name in cost_b if name not in cost_a)):
        yield _unsure(words(name), cost_a.get(name), cost_b.get(name))


def _unsure(name: str, a: float | None, b: float | None) -> Difference:
    if a is None or b is None:
        return Difference(name, a, b, "not measured")
    return Difference(name, a, b, "large?" if abs(b - a) > LARGE * abs(a) else "same")


def _counted(a: "Report", b: "Report") -> Iterable[Difference]:
    sent_a, sent_b = max(a["totals"]["sent"], 1), max(b["totals"]["sent"], 1)
    for name, wanted in _COUNTS:
        of_a, of_b = a["totals"][name], b["totals"][name]
        # As if both had sent as much as `a`.
        fair_b, wide = of_b * sent_a / sent_b, of_b * (sent_a / sent_b) ** 2
        beyond = abs(fair_b - of_a) > STANDARD_ERRORS * math.sqrt(of_a + wide)
        enough = abs(fair_b - of_a) >= MATTERS * of_a
        new = name in _NEVER and bool(of_a) != bool(of_b)
        judged = _judge(of_a, fair_b, new or (beyond and enough), wanted)
        yield Difference(name, of_a, of_b, judged)


def _judge(a: float, b: float, matters: bool, wanted: Wanted) -> Judgement:
    if not matters:
        return "same"
    if wanted == "neither":
        return "different"
    return "better" if (b > a) == (wanted == "more") else "worse"
