"""What the hub counts while it works: plain numbers, without a name, a unit or a vendor.

`api.telemetry.metrics` makes a page of them when it is asked for one. Counting costs an addition.
Keys are few: event types, verdicts, codes and causes come from our own tables, never from a client.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from hub.budget.verdicts import Verdict
from hub.errors import Code

# Bounds of the buckets: seconds, or events. P7 allows 2 s.
DELIVERY_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
COMMIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_EVENTS = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """How many values were at most as large as each of the ascending `bounds`, and the sum of all.

    `counts` has one more place, for what is above; it is not cumulative."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Measures:
    """Of one process, from its start on."""

    def __init__(self) -> None:
        self.verdicts: Counter[tuple[str, str]] = Counter()  # by event type and verdict
        self.rejections: Counter[str] = Counter()  # of events, by code
        self.refusals: Counter[str] = Counter()  # of frames and sockets, by code
        self.batch_events = Histogram(BATCH_EVENTS)  # decided in one transaction
        self.commit_s = Histogram(COMMIT_S)  # from the lock to the end of COMMIT
        self.commit_failures: Counter[str] = Counter()  # transactions, by cause
        # Weighted: an event that went to three wires counts three times.
        self.delivery_s = Histogram(DELIVERY_S)
        self.fed: Counter[str] = Counter()  # events by where feeds had them from
        self.gaps_filled = 0  # with at least one event
        self.sweeps: Counter[str] = Counter()  # by what came of them
        self.swept_behind = 0  # feeds that a sweep found behind their log

    def settled(self, verdict: Verdict) -> None:
        """An event has its verdict."""
        error = verdict.error
        if error is not None:
            self.rejections[error.name] += 1
        # What is not of our shape may say any type.
        kind = "invalid" if error is Code.INVALID_EVENT else verdict.event_type or "invalid"
        self.verdicts[kind, "duplicate" if verdict.duplicate else verdict.status] += 1

    def refused(self, code: Code) -> None:
        """A frame or a whole socket was."""
        self.refusals[code.name] += 1
