"""Rate limits: a token bucket, as a function of its state and the time."""

from typing import NamedTuple


class Rate(NamedTuple):
    """So many a second in the long run, and `burst` at once."""

    per_s: float
    burst: float


class Bucket(NamedTuple):
    """What is left to take, as of `at_s`."""

    tokens: float
    at_s: float

    @classmethod
    def filled(cls, rate: Rate, now_s: float) -> "Bucket":
        return cls(rate.burst, now_s)


def take(bucket: Bucket, rate: Rate, cost: float, now_s: float) -> tuple[Bucket, float]:
    """Take `cost` from the bucket; the bucket afterwards, and how many seconds are missing.

    0 seconds: it was taken. Otherwise nothing was taken, and it can be after that time. A cost
    above the burst counts as the burst, so that it can be taken at all."""
    cost = min(cost, rate.burst)
    tokens = min(rate.burst, bucket.tokens + max(now_s - bucket.at_s, 0) * rate.per_s)
    if tokens < cost:
        return Bucket(tokens, now_s), (cost - tokens) / rate.per_s
    return Bucket(tokens - cost, now_s), 0.0
