"""Rate limits: a token bucket, and how slowly the sessions of a drained hub come back to the
others. Time is an argument."""

from typing import NamedTuple

RECONNECT_MS_MIN = 1_000
GENTLE_PER_S = 100
GENTLE_MS_MAX = 4_000
RECONNECTS_PER_S = 500


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


def reconnect_spread_ms(sessions: int) -> float:
    """Over how many milliseconds so many sessions are told to come back.

    Each costs Postgres a read, and a commit of what its device had kept. A few hundred come so
    slowly that Postgres hardly notices; more than that as fast as the others can take them, so that
    nobody is away for long."""
    gentle_ms = min(sessions * 1000 / GENTLE_PER_S, GENTLE_MS_MAX)
    return max(RECONNECT_MS_MIN, gentle_ms, sessions * 1000 / RECONNECTS_PER_S)
