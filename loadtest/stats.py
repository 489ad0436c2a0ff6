"""What a run measures: latencies in a mergeable histogram, and one `Sample` a second.

Pure. Generator processes send both to the parent as plain JSON; merging is addition, so it does
not matter in how many processes something was measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import ceil, exp, floor, log
from typing import Any, Self

RELATIVE_ERROR = 0.01  # of a percentile, at most; the maximum is exact
LEAST_MS = 0.001  # what is faster counts as this

_GROWTH = log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))  # of one bucket, as a logarithm


class Histogram:
    """Latencies in milliseconds, in buckets that grow by a constant factor: few, however many
    values there are, and a percentile is within `RELATIVE_ERROR` of a value that was measured."""

    __slots__ = ("_buckets", "count", "max_ms")

    def __init__(self) -> None:
        self.count = 0
        self.max_ms = 0.0
        self._buckets: dict[int, int] = {}  # exponent → how many

    def add(self, value_ms: float, times: int = 1) -> None:
        bucket = floor(log(max(value_ms, LEAST_MS)) / _GROWTH)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + times
        self.count += times
        self.max_ms = max(self.max_ms, value_ms)

    def merge(self, other: "Histogram") -> None:
        for bucket, times in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + times
        self.count += other.count
        self.max_ms = max(self.max_ms, other.max_ms)

    def percentile(self, share: float) -> float | None:
        """The nearest-rank percentile: what `share` of all values do not exceed. None without
        values."""
        rank = max(1, ceil(share * self.count))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(_middle(bucket), self.max_ms)
        return None

    def summary(self) -> dict[str, float | int | None]:
        """As in report.json."""
        return {
            "p50": self.percentile(0.50),
            "p90": self.percentile(0.90),
            "p99": self.percentile(0.99),
            "p999": self.percentile(0.999),
            "max": self.max_ms if self.count else None,
            "count": self.count,
        }

    def buckets(self) -> list[tuple[float, int]]:
        """The upper bound of each bucket that holds something, in ms, and how many are in it."""
        return [(exp((b + 1) * _GROWTH), self._buckets[b]) for b in sorted(self._buckets)]

    def to_json(self) -> dict[str, Any]:
        return {"maxMs": self.max_ms, "buckets": sorted(self._buckets.items())}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        histogram = cls()
        histogram.max_ms = raw["maxMs"]
        histogram._buckets = {int(bucket): int(times) for bucket, times in raw["buckets"]}
        histogram.count = sum(histogram._buckets.values())
        return histogram


def _middle(bucket: int) -> float:
    """The value of a bucket that is equally far, as a ratio, from both of its ends."""
    low, high = exp(bucket * _GROWTH), exp((bucket + 1) * _GROWTH)
    return 2 * low * high / (low + high)


@dataclass
class Sample:
    """What happened in one second, at one generator process or, merged, at all of them.

    `connected` and `offline` are states at the second's end, `cpu` shares of one core, the busiest
    process's once merged; everything else is a count."""

    second: int
    connected: int = 0
    offline: int = 0
    sent: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    retryable: int = 0
    deliveries: int = 0
    reconnects: int = 0
    errors: int = 0
    cpu: float = 0.0
    ack: Histogram = field(default_factory=Histogram)
    delivery: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)

    def merge(self, other: "Sample") -> None:
        """Add another process's sample of the same second."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in HISTOGRAMS:
            getattr(self, name).merge(getattr(other, name))
        self.cpu = max(self.cpu, other.cpu)

    def entry(self) -> dict[str, float | int | None]:
        """As in `series` of report.json; null where nothing was measured."""
        return {
            "t": self.second,
            "connected": self.connected,
            "offline": self.offline,
            "accepted": self.accepted,
            "deliveries": self.deliveries,
            "conflicts": self.conflicts,
            "reconnects": self.reconnects,
            "errors": self.errors,
            "ackP50Ms": self.ack.percentile(0.50),
            "ackP99Ms": self.ack.percentile(0.99),
            "deliveryP50Ms": self.delivery.percentile(0.50),
            "deliveryP99Ms": self.delivery.percentile(0.99),
            "generatorCpu": self.cpu,
            "generatorLagMs": self.lag.percentile(0.99),
        }

    def to_json(self) -> dict[str, Any]:
        raw = {each.name: getattr(self, each.name) for each in fields(self)}
        return raw | {name: raw[name].to_json() for name in HISTOGRAMS}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        histograms = {name: Histogram.from_json(raw[name]) for name in HISTOGRAMS}
        return cls(**{**raw, **histograms})


HISTOGRAMS = ("ack", "delivery", "lag")
COUNTS = tuple(
    each.name for each in fields(Sample) if each.name not in ("second", "cpu", *HISTOGRAMS)
)
TOTALS = tuple(name for name in COUNTS if name not in ("connected", "offline"))


class Series:
    """The samples of all processes, merged second by second."""

    def __init__(self) -> None:
        self._seconds: dict[int, Sample] = {}
        self._heard: dict[int, int] = {}  # processes that have told of a second

    def add(self, sample: Sample) -> int:
        """Take one process's second in; how many have told of that second now."""
        kept = self._seconds.setdefault(sample.second, Sample(sample.second))
        kept.merge(sample)
        self._heard[sample.second] = self._heard.get(sample.second, 0) + 1
        return self._heard[sample.second]

    @property
    def samples(self) -> Sequence[Sample]:
        return [self._seconds[second] for second in sorted(self._seconds)]

    def at(self, second: int) -> Sample:
        return self._seconds[second]

    def total(self, seconds: Iterable[int] | None = None) -> Sample:
        """All seconds, or these, as one."""
        total = Sample(0)
        for sample in (
            self.samples
            if seconds is None
            else (self._seconds[second] for second in seconds if second in self._seconds)
        ):
            total.merge(sample)
        return total
