"""`budget-hub stats`: what is live now, from the metrics of running hubs, read twice.

A rate, a quantile or a share is of the time between the two readings.
"""

import math
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from api.telemetry.metrics import PREFIX
from storage.postgres.database import SHARES

TIMEOUT_S = 5.0
PAGE_BYTES_MAX = 16 * 1024 * 1024

# By name without prefix, and by labels without the worker's.
Samples: TypeAlias = dict[tuple[str, frozenset[tuple[str, str]]], float]
NOTHING = "-"


class NoMetrics(Exception):
    """There are none at that address; the message is one line."""


class Reading(NamedTuple):
    """One moment of one server: its workers' samples by their numbers."""

    workers: Mapping[int, Samples]

    def sum(self, worker: int, name: str, **labels: str) -> float | None:
        """Of all series with these labels; None if there is none."""
        wanted = labels.items()
        found = [
            value
            for (sample, pairs), value in self.workers.get(worker, {}).items()
            if sample == name and wanted <= pairs
        ]
        return sum(found) if found else None


def check_target(target: str) -> None:
    """Raises `ValueError` with one line."""
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ValueError("the URL of a hub: http://127.0.0.1:8000")


def read(target: str) -> Reading:
    """What the server at this URL tells now. Raises `NoMetrics`."""
    try:
        with urllib.request.urlopen(f"{target.rstrip('/')}/metrics", timeout=TIMEOUT_S) as answer:
            text = answer.read(PAGE_BYTES_MAX).decode()
    except urllib.error.HTTPError as error:
        raise NoMetrics(f"answered with status {error.code}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise NoMetrics(f"does not answer: {reason}") from None
    reading = parsed(text)
    if not reading.workers:
        raise NoMetrics("is no Budget Hub: it has none of its metrics")
    return reading


def parsed(text: str) -> Reading:
    """Raises `NoMetrics` where it is nothing that Prometheus could read."""
    workers: dict[int, Samples] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(PREFIX):
                    labels = dict(sample.labels)
                    worker = int(labels.pop("worker"))
                    key = (sample.name.removeprefix(PREFIX), frozenset(labels.items()))
                    workers.setdefault(worker, {})[key] = sample.value
    except (ValueError, KeyError):
        raise NoMetrics("does not tell metrics") from None
    return Reading(workers)


class Interval(NamedTuple):
    """One worker between two readings, `seconds` apart."""

    before: Reading
    after: Reading
    worker: int
    seconds: float

    def now(self, name: str, **labels: str) -> float | None:
        return self.after.sum(self.worker, name, **labels)

    def grown(self, name: str, **labels: str) -> float | None:
        """What a counter counted; from zero for a worker that is new."""
        after = self.after.sum(self.worker, name, **labels)
        if after is None:
            return None
        before = self.before.sum(self.worker, name, **labels) or 0.0
        return after - before if after >= before else after

    def rate(self, name: str, **labels: str) -> float | None:
        grown = self.grown(name, **labels)
        return None if grown is None else grown / self.seconds

    def quantile(self, which: float, name: str) -> float | None:
        """The bound below which the share `which` of the values was; None without a value."""
        bounds = {
            dict(pairs)["le"]
            for sample, pairs in self.after.workers.get(self.worker, {})
            if sample == f"{name}_bucket"
        }
        buckets = [(float(le), self.grown(f"{name}_bucket", le=le) or 0.0) for le in bounds]
        buckets.sort()
        if not buckets or not buckets[-1][1]:
            return None
        rank = which * buckets[-1][1]
        return next(bound for bound, count in buckets if count >= rank)


def columns(
    before: Mapping[str, Reading], after: Mapping[str, Reading]
) -> Iterator[tuple[str, int]]:
    """The workers that both readings know, by target and number."""
    for target, reading in after.items():
        for worker in sorted(reading.workers):
            if worker in before[target].workers:
                yield target, worker


def rows(intervals: Sequence[Interval]) -> list[tuple[str, list[str]]]:
    """What the table shows: a name, and a text for each interval."""
    return [(name, [show(interval) for interval in intervals]) for name, show in _ROWS]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _per_s(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.1f}/s"


def _duration(seconds: float | None) -> str:
    """Bounds of buckets: below which it was."""
    if seconds is None:
        return NOTHING
    if math.isinf(seconds):
        return "beyond"
    return f"≤ {seconds * 1000:g} ms" if seconds < 1 else f"≤ {seconds:g} s"


def _times(name: str) -> Callable[[Interval], str]:
    def show(i: Interval) -> str:
        middle, most = i.quantile(0.5, name), i.quantile(0.99, name)
        return NOTHING if middle is None else f"{_duration(middle)}, {_duration(most)}"

    return show


def _pool(name: str) -> Callable[[Interval], str]:
    def show(i: Interval) -> str:
        used, most = i.now("pool_connections", pool=name), i.now("pool_connections_max", pool=name)
        waiting = i.now("pool_waiting", pool=name)
        text = f"{_number(used)} of {_number(most)}"
        return f"{text}, {_number(waiting)} wait" if waiting else text

    return show


def _share(part: Callable[[Interval], float | None], whole: str) -> Callable[[Interval], str]:
    def show(i: Interval) -> str:
        of, all_ = part(i), i.grown(whole)
        return NOTHING if of is None or not all_ else f"{of / all_:.0%}"

    return show


def _bus(i: Interval) -> str:
    connected = i.now("bus_connected")
    return NOTHING if connected is None else ("hears itself" if connected else "DEAF")


def _photos(i: Interval) -> str:
    return "there" if i.now("photo_store_up") else "AWAY"


def _megabytes(i: Interval) -> str:
    memory = i.now("process_resident_memory_bytes")
    return NOTHING if memory is None else f"{memory / 1e6:,.0f} MB"


_ROWS: Sequence[tuple[str, Callable[[Interval], str]]] = (
    ("events out", lambda i: _per_s(i.rate("delivery_seconds_count"))),
    ("delivery p50, p99", _times("delivery_seconds")),
    ("  from own commits", lambda i: _per_s(i.rate("fed_events_total", source="commit"))),
    ("  from the bus", lambda i: _per_s(i.rate("fed_events_total", source="bus"))),
    ("  late, from the log", lambda i: _per_s(i.rate("fed_events_total", source="log"))),
    ("bus", _bus),
    ("sockets", lambda i: _number(i.now("connections", kind="socket"))),
    ("long-polls waiting", lambda i: _number(i.now("connections", kind="poll"))),
    ("streams", lambda i: _number(i.now("connections", kind="stream"))),
    ("budgets followed", lambda i: _number(i.now("feeds"))),
    ("subscriptions live", lambda i: _number(i.now("subscriptions", state="live"))),
    ("  lagging", lambda i: _number(i.now("subscriptions", state="lagging"))),
    ("  catching up", lambda i: _number(i.now("subscriptions", state="catching up"))),
    ("events accepted", lambda i: _per_s(i.rate("events_total", verdict="accepted"))),
    ("  duplicates", lambda i: _per_s(i.rate("events_total", verdict="duplicate"))),
    ("  conflicts", lambda i: _per_s(i.rate("events_total", verdict="conflict"))),
    ("  rejected", lambda i: _per_s(i.rate("events_total", verdict="rejected"))),
    ("events queued", lambda i: _number(i.now("waiting_events"))),
    ("commit p50, p99", _times("commit_seconds")),
    ("commits failed", lambda i: _per_s(i.rate("commit_failures_total"))),
    *((f"connections: {purpose}", _pool(purpose)) for purpose in SHARES),
    ("photo store", _photos),
    (
        "tokens known already",
        _share(lambda i: i.grown("tokens_total", outcome="remembered"), "tokens_total"),
    ),
    ("refusals", lambda i: _per_s(i.rate("refusals_total"))),
    ("loop lag p50, p99", _times("loop_lag_seconds")),
    ("cores", lambda i: f"{i.rate('process_cpu_seconds_total') or 0:.2f}"),
    ("memory", _megabytes),
)
