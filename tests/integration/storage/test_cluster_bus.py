"""The bus and the rate limits on a real Redis Cluster: three primaries, of which one has a replica.

The tests are in the order of what they break; each leaves the cluster whole."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from redis.crc import key_slot
from redis.exceptions import MovedError
from structlog.testing import capture_logs

from api.settings import Settings, SettingsError
from hub.budget.records import BudgetId
from hub.frames.events import Frame
from storage.redis.channels import BUCKETS, bucket_of
from storage.redis.cluster_bus import ClusterBus, address_of
from storage.redis.rate_limits import Limit, RateLimits
from storage.timeouts import STORAGE_TIMEOUTS, StorageTimeouts
from tests.cluster import POLL_S, until
from tests.device import new_id
from tests.listener import Listener, linked
from tests.patience import PATIENT
from tests.redis_cluster import NODE_TIMEOUT_MS, Member, RedisCluster

BUDGETS = 30  # of each shard some
SOON_DEAF = replace(PATIENT, deaf_s=STORAGE_TIMEOUTS.deaf_s)
DEADLINE_S = 60.0


class Node(Listener):
    """A bus that runs, and what it told its listener."""

    def __init__(self, url: str, log_id: str, timeouts: StorageTimeouts = PATIENT) -> None:
        super().__init__()
        self.bus = ClusterBus(
            url,
            log_id,
            new_node_id=lambda: uuid4().bytes,
            jitter=random.random,
            timeouts=timeouts,
        )

    async def follow(self, budget_ids: list[BudgetId]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(self.bus.subscribe(each) for each in budget_ids))

    def has_heard_all_shards(self) -> bool:
        """Some other node by each of them."""
        return all(len(link._heard_at_s) > 1 for link in self.bus._links.values())

    def has_heard_nobody(self, for_s: float) -> None:
        """As if so much more time had passed since it last heard any other node."""
        for link in self.bus._links.values():
            for node_id in link._heard_at_s.keys() - {link._node_id}:
                link._heard_at_s[node_id] -= for_s


@asynccontextmanager
async def running(
    url: str, log_id: str, timeouts: StorageTimeouts = PATIENT
) -> AsyncIterator[Node]:
    """A node of that log, once it is linked with every shard."""
    node = Node(url, log_id, timeouts)
    async with linked(node.bus, node):
        yield node


@pytest.fixture
def timeouts() -> StorageTimeouts:
    """Those of `pair`."""
    return PATIENT


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisCluster]:
    folder: Path = tmp_path_factory.mktemp("redis-cluster")
    cluster = await RedisCluster.start(folder, primaries=3, replicas=1)
    # Until a server is to be lost, none is because the machine stops for a moment.
    await cluster.give_up_after(30_000)
    yield cluster
    cluster.close()


@pytest.fixture
def log_id() -> str:
    return new_id()


@pytest.fixture
def budgets(cluster: RedisCluster, log_id: str) -> dict[BudgetId, Member]:
    """And the shard of each; every shard has some."""
    found = [new_id() for _ in range(BUDGETS)]
    shards = {each: cluster.primary_of(f"{{{bucket_of(each)}}}") for each in found}
    assert len(set(shards.values())) == 3
    return shards


@pytest.fixture
async def pair(
    cluster: RedisCluster, log_id: str, budgets: dict[BudgetId, Member], timeouts: StorageTimeouts
) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes that follow all budgets, each led to the cluster by another of its servers."""
    await cluster.until_whole()
    async with (
        running(cluster.members[0].url, log_id, timeouts) as here,
        running(cluster.members[-1].url, log_id, timeouts) as there,
    ):
        for node in (here, there):
            await node.follow(list(budgets))
        yield here, there


def publish(node: Node, budget_ids: set[BudgetId], sequence: int) -> None:
    node.bus.publish([Frame(each, sequence, sequence, b"x") for each in sorted(budget_ids)])


async def crossing(here: Node, there: Node, budget_ids: set[BudgetId], sequence: int) -> int:
    """Publish them again and again until each has crossed once; the next sequence."""

    def crossed() -> bool:
        return budget_ids <= {f.budget_id for f in there.frames if f.from_sequence >= sequence}

    async with asyncio.timeout(DEADLINE_S):
        latest = sequence
        while not crossed():
            publish(here, budget_ids, latest)
            latest += 1
            await asyncio.sleep(5 * POLL_S)
    return latest


async def test_frames_cross_on_every_shard(
    pair: tuple[Node, Node], budgets: dict[BudgetId, Member]
) -> None:
    """Byte for byte, and nobody hears himself, nor what it has left."""
    here, there = pair
    left = next(iter(budgets))
    there.bus.unsubscribe(left)
    await there.follow([new_id() for _ in range(BUDGETS)])  # asked for after that
    frames = [Frame(each, 1, 2, bytes(range(256)), removes="Zoë") for each in budgets]
    here.bus.publish(frames)
    await until(lambda: len(there.frames) >= BUDGETS - 1, DEADLINE_S)
    assert sorted(there.frames) == sorted(frame for frame in frames if frame.budget_id != left)
    assert here.frames == []


async def test_presence_crosses_and_ends_with_its_node(cluster: RedisCluster, log_id: str) -> None:
    budget_id = new_id()
    async with running(cluster.url, log_id) as here:
        await here.follow([budget_id])
        async with running(cluster.url, log_id) as there:
            there.bus.announce(budget_id, {"ada": 2}, asks=True)
            await until(lambda: bool(here.attended), DEADLINE_S)
            [(of, _, users, _)] = here.attended
            assert (of, users) == (budget_id, {"ada": 2})
            assert here.gone == []
            await until(here.has_heard_all_shards, DEADLINE_S)

        def gone() -> bool:
            here.has_heard_nobody(PATIENT.silent_s)
            return len(set(here.gone)) == 3  # of each shard one

        await until(gone, DEADLINE_S)


async def test_p9_histories_never_mix(cluster: RedisCluster) -> None:
    budget_id = new_id()
    ours, theirs = new_id(), new_id()
    async with (
        running(cluster.url, ours) as here,
        running(cluster.url, ours) as there,
        running(cluster.url, theirs) as other,
    ):
        for node in (there, other):
            await node.follow([budget_id])
        publish(here, {budget_id}, 1)
        await until(lambda: bool(there.frames), DEADLINE_S)
        await asyncio.sleep(PATIENT.heartbeat_s)
        assert other.frames == []


async def test_rate_limits_count_together(cluster: RedisCluster, log_id: str) -> None:
    """Users are of all shards."""
    asking = replace(PATIENT, patience_s=30.0)
    nodes = [
        RateLimits(
            member.url, log_id, b"secret", now_s=time.monotonic, cluster=True, timeouts=asking
        )
        for member in cluster.members[:2]
    ]
    try:
        limit = Limit("user", 5)
        for user in range(9):
            within = [not await node.take(limit, f"user-{user}") for node in nodes * 4]
            assert within == [True] * 5 + [False] * 3
    finally:
        for node in nodes:
            await node.close()


async def test_p7_a_slot_that_moves_takes_its_channels_along(
    cluster: RedisCluster, pair: tuple[Node, Node], budgets: dict[BudgetId, Member]
) -> None:
    """When the cluster grows: nobody's connection is lost, and the old shard carries it no more."""
    here, there = pair
    budget_id = next(each for each, shard in budgets.items() if shard is cluster.primaries[2])
    slot = key_slot(f"{{{bucket_of(budget_id)}}}".encode())
    old, new = cluster.primaries[2], cluster.primaries[1]
    ids = [await each.ask("CLUSTER MYID") for each in (old, new)]
    await new.ask("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
    await old.ask("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
    for each in (new, old):
        await each.ask("CLUSTER SETSLOT", slot, "NODE", ids[1])
    with pytest.raises(MovedError):
        await old.ask("SPUBLISH", f"{{{bucket_of(budget_id)}}}", "x")
    sequence = await crossing(here, there, {budget_id}, 1)
    await until(lambda: here.bus.connected and there.bus.connected, DEADLINE_S)
    assert there.restorations > 3  # so that nothing of before is missed
    await crossing(here, there, set(budgets), sequence)


@pytest.mark.parametrize("timeouts", [SOON_DEAF])
@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_p10_a_lost_shard_takes_only_its_own_along(
    cluster: RedisCluster, pair: tuple[Node, Node], budgets: dict[BudgetId, Member], fault: str
) -> None:
    """Its connections may look well all the while: each shard has its own heartbeat."""
    await cluster.give_up_after(NODE_TIMEOUT_MS)
    here, there = pair
    lost = cluster.primaries[1]
    others = {each for each, shard in budgets.items() if shard is cluster.primaries[0]}
    lost.kill() if fault == "killed" else lost.freeze()
    try:
        await until(lambda: not (here.bus.connected or there.bus.connected), DEADLINE_S)
        sequence = await crossing(here, there, others, 1)
        publish(here, set(budgets) - others, sequence)  # in vain, and without harm
        newcomer = next(each for each, shard in budgets.items() if shard is lost)
        there.bus.unsubscribe(newcomer)
        await there.follow([newcomer])  # waits for nobody who is away
        before = there.restorations
    finally:
        lost.restart() if fault == "killed" else lost.thaw()
    await until(lambda: here.bus.connected and there.bus.connected, DEADLINE_S)
    assert there.restorations > before
    await crossing(here, there, set(budgets), sequence)


async def test_p7_a_replica_that_takes_over_is_found(
    cluster: RedisCluster, pair: tuple[Node, Node], budgets: dict[BudgetId, Member]
) -> None:
    """Also by the node whose URL leads to the one that is gone."""
    here, there = pair
    await cluster.give_up_after(NODE_TIMEOUT_MS)
    lost = await cluster.serving(0)
    lost.kill()
    try:
        await until(lambda: not (here.bus.connected or there.bus.connected), DEADLINE_S)
        await until(lambda: here.bus.connected and there.bus.connected, DEADLINE_S)
        await crossing(here, there, set(budgets), 1)
    finally:
        lost.restart()


async def test_a_bus_that_finds_no_cluster_waits_for_nobody(
    log_id: str,
) -> None:
    node = Node("redis://127.0.0.1:1", log_id, replace(PATIENT, look_s=0.1))
    with capture_logs() as logs:
        task = asyncio.create_task(node.bus.run(node))
        await until(lambda: bool(logs), DEADLINE_S)
        await node.follow([new_id()])
        publish(node, {new_id()}, 1)
        await asyncio.sleep(0.5)
    assert [line["event"] for line in logs] == ["cluster lost"]  # once, however often it looks
    assert not task.done()
    assert not node.bus.connected
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("made", [lambda n: new_id(), lambda n: f"{n:08x}-0000-7000-8000-0"])
def test_buckets_are_of_equal_size(made: Callable[[int], BudgetId]) -> None:
    """Whatever kind of UUID clients make."""
    counts = [0] * BUCKETS
    for number in range(20 * BUCKETS):
        counts[bucket_of(made(number))] += 1
    assert 2 < min(counts) <= max(counts) < 50


ENVIRON = {"DATABASE_URL": "postgres://hub", "AUTH_SECRET": "s" * 32, "REDIS_CLUSTER": "true"}


@pytest.mark.parametrize("url", ["", "unix:///run/redis.sock", "redis://:word@host:6379/1"])
def test_a_cluster_needs_an_address_that_can_be_one(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^REDIS_CLUSTER: ") as refused:
        Settings.from_env({**ENVIRON, "REDIS_URL": url})
    assert "word" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "host", "found"),
    [
        ("redis://host", "10.0.0.2", "redis://10.0.0.2:7000"),
        ("rediss://u:p%40@host:1/0?a=f", "b.c", "rediss://u:p%40@b.c:7000/0?a=f"),
        ("redis://:pass@[::1]:6379", "fd00::2", "redis://:pass@[fd00::2]:7000"),
    ],
)
def test_each_shard_is_reached_as_the_first_one(url: str, host: str, found: str) -> None:
    """With the same credentials, and by TLS where that was."""
    assert Settings.from_env({**ENVIRON, "REDIS_URL": url}).redis_cluster
    assert address_of(url, host, 7000) == found
