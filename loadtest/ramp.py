"""The search for the highest rate that a hub keeps up with: pure.

It grows the rate until a step fails, and then halves the distance between what was kept and what
failed. After a step that fails the hub gets a slow one to recover in; and a rate has failed only
when it fails a second time, since a machine has moments of its own.
"""

from typing import NamedTuple

GROWTH = 1.25
CLOSE_ENOUGH = 1.06  # between what failed and what was kept


class Step(NamedTuple):
    rate_per_s: float
    p99_ms: float | None  # the worse of verdicts and deliveries
    kept: bool


class Ramp:
    """`rate_per_s` is the rate of the step under way; None when the search is over."""

    def __init__(self, rate_per_s: float) -> None:
        self.rate_per_s: float | None = rate_per_s
        self.steps: list[Step] = []
        self._kept: float | None = None
        self._failed: float | None = None
        self._recovering = False
        self._suspect: float | None = None  # failed once

    @property
    def highest(self) -> float | None:
        """The highest rate that was kept."""
        return self._kept

    def stepped(self, p99_ms: float | None, kept: bool) -> None:
        """The step under way is over: what was measured, and whether the hub kept up."""
        rate = self.rate_per_s
        assert rate is not None
        if self._recovering:
            self._recovering = False
            self.rate_per_s = self._next()
            return
        self.steps.append(Step(rate, p99_ms, kept))
        if kept:
            self._kept = max(rate, self._kept or 0.0)
            self._suspect = None
            self.rate_per_s = self._next()
            return
        if rate == self._suspect:
            self._failed = min(rate, self._failed or rate)
        else:
            self._suspect = rate
        self._recovering = True
        self.rate_per_s = None if self._next() is None else (self._kept or rate) / 2

    def _next(self) -> float | None:
        if self._suspect is not None and self._suspect != self._failed:
            return self._suspect
        if self._failed is None:
            assert self._kept is not None
            return self._kept * GROWTH
        if self._kept is None:
            return self._failed / 2 if self._failed > 1 else None
        if self._failed <= self._kept * CLOSE_ENOUGH:
            return None
        return (self._failed + self._kept) / 2
