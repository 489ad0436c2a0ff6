"""The bus on a Redis Cluster, by sharded pub/sub: each shard carries its share of the channels.

    bucket     a budget is of one of `BUCKETS`; all its channels have the bucket as their hash tag
    shard      the primary that has the bucket's slot at the moment
    link       a `RedisBus` to one shard: its own connection, heartbeat and deafness

A link that is lost or deaf concerns its shard only: what the others carry goes on, and for its
budgets the sweeper delivers from the log meanwhile (P7, P10). When the cluster gives slots to
another primary, after a failover or when it grows, the links that are affected are made anew.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import structlog
from redis.asyncio import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, SlotNotCoveredError

from hub.budget.records import BudgetId, UserId
from hub.frames.events import Frame
from hub.outage import Outage
from hub.ports import BusListener
from storage.redis.bus import RedisBus
from storage.redis.channels import BUCKETS, Shard, bucket_of
from storage.timeouts import STORAGE_TIMEOUTS, StorageTimeouts

_log = structlog.get_logger()


class Primary(NamedTuple):
    """A primary of the cluster, and the buckets whose slots it has."""

    host: str
    port: int
    buckets: frozenset[int]


class ClusterBus:
    """Implements `hub.ports.Bus`.

    `url` leads to any node of the cluster. `new_node_id` gives 16 random bytes; `jitter` a random
    number from 0 to 1. Each link has a node id of its own: when it falls silent, only presence that
    came by it is gone.
    """

    def __init__(
        self,
        url: str,
        log_id: str,
        *,
        new_node_id: Callable[[], bytes],
        jitter: Callable[[], float],
        timeouts: StorageTimeouts = STORAGE_TIMEOUTS,
    ) -> None:
        self._timeouts = timeouts
        self._url = url
        self._log_id = log_id
        self._new_node_id = new_node_id
        self._jitter = jitter
        self._wanted: set[BudgetId] = set()
        self._links: dict[Primary, RedisBus] = {}
        self._tasks: dict[Primary, asyncio.Task[None]] = {}
        self._of_bucket: dict[int, RedisBus] = {}
        self._outage = Outage("cluster lost", "cluster back")  # nobody tells who has what
        self.losses: Counter[str] = Counter()  # as a bus counts them; of all shards
        self.frames: Counter[str] = Counter()

    @property
    def connected(self) -> bool:
        """With every shard."""
        whole = len(self._of_bucket) == BUCKETS
        return whole and all(link.connected for link in self._links.values())

    async def run(self, listener: BusListener) -> None:
        """Keep the links until cancelled, and tell the listener what comes."""
        loop = asyncio.get_running_loop()
        # Coverage is for us to judge: a cluster that lacks a shard has the others still. And it
        # must not try again by itself: the loop below does that.
        cluster = RedisCluster.from_url(
            self._url,
            require_full_coverage=False,
            retry=Retry(NoBackoff(), 0, supported_errors=()),
            socket_connect_timeout=self._timeouts.redis_connect_s,
            socket_timeout=self._timeouts.redis_answer_s,
        )
        try:
            # A link that dies of a defect takes all of them along, and the process.
            async with asyncio.TaskGroup() as tasks:
                calm_s = self._timeouts.look_calm_s
                looked_at_s = -calm_s
                while True:
                    if not self.connected or loop.time() - looked_at_s >= calm_s:
                        looked_at_s = loop.time()
                        primaries = await self._look(cluster)
                        if primaries is not None and primaries != self._links.keys():
                            await self._relink(primaries, listener, tasks)
                    await asyncio.sleep(self._timeouts.look_s * (0.5 + self._jitter()))
        finally:
            await cluster.aclose()

    def publish(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if (link := self._link(frame.budget_id)) is not None:
                link.publish([frame])
            else:
                self.frames["dropped"] += 1

    def announce(self, budget_id: BudgetId, here: Mapping[UserId, int], *, asks: bool) -> None:
        if (link := self._link(budget_id)) is not None:
            link.announce(budget_id, here, asks=asks)

    async def subscribe(self, budget_id: BudgetId) -> None:
        self._wanted.add(budget_id)
        if (link := self._link(budget_id)) is not None:
            await link.subscribe(budget_id)

    def unsubscribe(self, budget_id: BudgetId) -> None:
        self._wanted.discard(budget_id)
        if (link := self._link(budget_id)) is not None:
            link.unsubscribe(budget_id)

    def _link(self, budget_id: BudgetId) -> RedisBus | None:
        return self._of_bucket.get(bucket_of(budget_id))

    async def _look(self, cluster: RedisCluster) -> set[Primary] | None:
        """Who has what, as the cluster says; None if nobody says it."""
        try:
            async with asyncio.timeout(self._timeouts.looking_s):
                await cluster.initialize()  # the first time
                await cluster.nodes_manager.initialize()
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            self._outage.lost(type(error).__name__)
            return None
        self._outage.back()
        buckets: dict[tuple[str, int], set[int]] = {}
        for bucket in range(BUCKETS):
            try:
                node = cluster.get_node_from_key(f"{{{bucket}}}")
            except SlotNotCoveredError:
                continue
            if node is not None:
                buckets.setdefault((str(node.host), int(node.port)), set()).add(bucket)
        return {Primary(*address, frozenset(has)) for address, has in buckets.items()}

    async def _relink(
        self, primaries: set[Primary], listener: BusListener, tasks: asyncio.TaskGroup
    ) -> None:
        gone = self._links.keys() - primaries
        for primary in gone:
            self._tasks[primary].cancel()
        await asyncio.gather(*(self._tasks[primary] for primary in gone), return_exceptions=True)
        for primary in gone:
            del self._links[primary], self._tasks[primary]
        new = primaries - self._links.keys()
        for primary in new:
            # All nodes that see the cluster alike choose the same bucket for their heartbeats.
            shard = Shard(f"{primary.host}:{primary.port}", min(primary.buckets))
            link = RedisBus(
                address_of(self._url, primary.host, primary.port),
                self._log_id,
                self._new_node_id(),
                jitter=self._jitter,
                shard=shard,
                timeouts=self._timeouts,
            )
            link.losses, link.frames = self.losses, self.frames
            self._links[primary] = link
        self._of_bucket = {
            bucket: link for primary, link in self._links.items() for bucket in primary.buckets
        }
        for budget_id in self._wanted:
            if (now := self._link(budget_id)) is not None:
                now.want(budget_id)
        for primary in new:
            self._tasks[primary] = tasks.create_task(self._links[primary].run(listener))
        _log.info("bus linked", shards=len(primaries), new=len(new))


def address_of(url: str, host: str, port: int) -> str:
    """The URL for another node of its cluster."""
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    named = f"[{host}]" if ":" in host else host
    return urlunsplit(parts._replace(netloc=f"{credentials}{at}{named}:{port}"))
