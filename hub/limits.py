"""Rate limits: a token bucket. Time is an argument."""

from typing import NamedTuple


class Rate(NamedTuple):
    """So many a second in the long run, and `burst` at once."""

    per_s: float
    burst: float


class Bucket:
    """What is left to take, as of `at_s`. Full at first."""

    __slots__ = ("__weakref__", "at_s", "rate", "tokens")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self.rate = rate
        self.tokens = rate.burst
        self.at_s = now_s

    def take(self, cost: float, now_s: float) -> float:
        """Take `cost`; how many seconds are missing.

        0 seconds: it was taken. Otherwise nothing was taken, and it can be after that time. A cost
        above the burst counts as the burst, so that it can be taken at all."""
        per_s, burst = self.rate
        tokens = self.tokens
        if now_s > self.at_s:
            tokens = min(tokens + (now_s - self.at_s) * per_s, burst)
            self.at_s = now_s
        cost = min(cost, burst)
        if tokens < cost:
            self.tokens = tokens
            return (cost - tokens) / per_s
        self.tokens = tokens - cost
        return 0.0
