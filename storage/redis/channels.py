"""The channels of one Redis: what they are called, and how they are asked for and published to."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from redis.asyncio.client import PubSub

from hub.budget.records import BudgetId

SUBSCRIBE_CHANNELS_MAX = 1_000  # in one command
BUCKETS = 1024  # of channels in a cluster; no more shards than that have anything to do


class Shard(NamedTuple):
    """Of a Redis Cluster: what it is called in the log, and a bucket of its own, whose channel
    carries the heartbeats of all nodes that are connected to it."""

    name: str
    bucket: int


def bucket_of(budget_id: BudgetId) -> int:
    """A cluster puts channels of one bucket on one shard: it looks at their hash tag only. So they
    can be asked for together, which it allows for one slot at a time."""
    return crc32(budget_id.encode()) % BUCKETS


class Channels:
    """Those of a Redis that stands alone."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.heartbeats = f"{prefix}nodes"

    def of(self, budget_id: BudgetId) -> str:
        return self._prefix + budget_id

    def publish(self, redis: Any, channel: str, payload: bytes) -> Any:
        """`redis` is a client or a pipeline."""
        return redis.publish(channel, payload)

    async def subscribe(self, pubsub: PubSub, channels: Iterable[str]) -> None:
        for part in _parts(channels):
            await pubsub.subscribe(*part)

    async def unsubscribe(self, pubsub: PubSub, channels: Iterable[str]) -> None:
        for part in _parts(channels):
            await pubsub.unsubscribe(*part)


class ShardChannels(Channels):
    """Those of one shard, each in its bucket."""

    def __init__(self, prefix: str, shard: Shard) -> None:
        super().__init__(prefix)
        self.heartbeats = f"{prefix}{{{shard.bucket}}}:nodes"

    def of(self, budget_id: BudgetId) -> str:
        return f"{self._prefix}{{{bucket_of(budget_id)}}}:{budget_id}"

    def publish(self, redis: Any, channel: str, payload: bytes) -> Any:
        return redis.spublish(channel, payload)

    async def subscribe(self, pubsub: PubSub, channels: Iterable[str]) -> None:
        for part in _parts_of_buckets(channels):
            await pubsub.ssubscribe(*part)

    async def unsubscribe(self, pubsub: PubSub, channels: Iterable[str]) -> None:
        for part in _parts_of_buckets(channels):
            await pubsub.sunsubscribe(*part)


def _parts(channels: Iterable[str]) -> Iterator[Sequence[str]]:
    """What can be said in one command."""
    ordered = sorted(channels)
    for start in range(0, len(ordered), SUBSCRIBE_CHANNELS_MAX):
        yield ordered[start : start + SUBSCRIBE_CHANNELS_MAX]


def _parts_of_buckets(channels: Iterable[str]) -> Iterator[Sequence[str]]:
    of_bucket: dict[str, list[str]] = {}
    for channel in channels:
        of_bucket.setdefault(channel.partition("}")[0], []).append(channel)
    for alike in of_bucket.values():
        yield from _parts(alike)
