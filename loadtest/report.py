"""What a run found: the shape of `report.json`, how it is written and read again.

All of it is plain JSON. Latencies are in milliseconds and count from the moment an event was meant
to be sent; `None` stands where nothing was measured. `page.py` makes the report one can look at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import orjson
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # typing's, before 3.12, is not enough for pydantic

from loadtest.page import page

Count = Annotated[int, Field(ge=0)]


class Machine(TypedDict):
    cores: int
    cpu: str
    python: str
    system: str


class Generator(TypedDict):
    """The load script itself: the share of one core that its busiest process took, and how late
    its event loop was."""

    processes: int
    cpuShare: float
    lagP99Ms: float


class Totals(TypedDict):
    """Of the whole run. `retryable` answers were sent again; `unknown` never got a verdict."""

    sent: Count
    accepted: Count
    duplicates: Count
    conflicts: Count
    rejected: Count
    retryable: Count
    unknown: Count
    deliveries: Count
    reconnects: Count
    errors: Count


class Percentiles(TypedDict):
    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    max: float | None
    count: Count


class Latency(TypedDict):
    """`ackMs`: until the sender's verdict; `deliveryMs`: until each other device had the event."""

    ackMs: Percentiles
    deliveryMs: Percentiles


class Histograms(TypedDict):
    """Buckets: the upper bound in ms (None: it has none), and the count."""

    ackMs: Sequence[tuple[float | None, Count]]
    deliveryMs: Sequence[tuple[float | None, Count]]


class Second(TypedDict):
    """One second of the run, `t` seconds after its start: counts are of that second, `connected`
    and `offline` are devices."""

    t: float
    connected: int | None
    offline: int | None
    accepted: int | None
    deliveries: int | None
    conflicts: int | None
    reconnects: int | None
    errors: int | None
    ackP50Ms: float | None
    ackP99Ms: float | None
    deliveryP50Ms: float | None
    deliveryP99Ms: float | None
    generatorCpu: float | None
    generatorLagMs: float | None


class BrokenRule(TypedDict):
    """The first offending event, and its history."""

    rule: str
    what: str
    story: Sequence[str]


class Proof(TypedDict):
    passed: bool
    checked: Mapping[str, int]
    violation: BrokenRule | None


class RampStep(TypedDict):
    """A rate, the worse p99 of verdicts and deliveries, and whether that was under the bound."""

    rate: float
    p99Ms: float | None
    kept: bool


class Ramp(TypedDict):
    """Of the scenario `ramp`: the highest rate with p99 under the bound; None if none was."""

    p99Ms: float
    highestRate: float | None
    steps: Sequence[RampStep]


class Report(TypedDict):
    version: Literal[1]
    scenario: str
    seed: int
    options: Mapping[str, Any]
    startedAt: float
    durationS: float
    machine: Machine
    commit: str | None
    targets: Sequence[str]
    valid: bool
    invalidBecause: Sequence[str]
    generator: Generator
    totals: Totals
    latency: Latency
    histograms: Histograms
    series: Sequence[Second]
    proof: Proof
    ramp: NotRequired[Ramp | None]
    resources: NotRequired[Mapping[str, float | None] | None]


class BadReport(Exception):
    """The file is no report of this script; the text says why, in one line."""


_REPORT = TypeAdapter(Report)


def read(path: Path) -> Report:
    """The report of a file, or of the folder that a run wrote. Raises `BadReport`."""
    path = path / "report.json" if path.is_dir() else path
    try:
        return _REPORT.validate_json(path.read_bytes())
    except OSError as error:
        raise BadReport(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadReport(f"{path}: no report of this script; {where}: {first['msg']}") from error


def write(report: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html`; where they are.

    Raises `BadReport` where the mapping is no report, `OSError` where it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    data, html = folder / "report.json", folder / "report.html"
    data.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    html.write_text(page(read(data)), encoding="utf-8")
    return data, html
