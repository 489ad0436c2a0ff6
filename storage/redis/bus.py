"""The bus: Redis pub/sub between nodes. It carries frames and is never the truth.

Each subscribed budget has a channel; one more carries the heartbeats of all nodes. A node that
does not hear its own for `DEAF_S` seconds is deaf, whatever its sockets say: the connection is
rebuilt and every channel subscribed again. A node that the others do not hear for `SILENT_S`
seconds is gone for them. While Redis is away publishing drops frames and subscribing returns at
once; the sweeper delivers from the log until the bus is back (P7, P10).
"""

import asyncio
import contextlib
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import orjson
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from hub.budget.records import BudgetId, UserId
from hub.frames import Context, Frame
from hub.ports import BusListener, NodeId

HEARTBEAT_S = 0.5
DEAF_S = 2.0  # noticed half a second later at most
SILENT_S = 10.0
STALLED_S = 3.0  # for frames to be taken
CONNECT_S = 2.0
BACKOFF_S = (0.1, 2.0)  # first and longest pause between two attempts to connect
OUTGOING_BYTES_MAX = 32 * 1024 * 1024
PIPELINE_FRAMES_MAX = 500
SUBSCRIBE_CHANNELS_MAX = 1_000  # in one command
BUCKETS = 1024  # of channels in a cluster; no more shards than that have anything to do

# What it is, and the node it comes from; in a heartbeat there is no more.
_ORIGIN = struct.Struct("!B16s")
# `_EVENTS`, without the time, is what older nodes sent: while a new version is deployed both come.
# What a node does not know it leaves alone, and its sweeper finds the events.
# `_CONTEXT` comes right before the events it belongs to, a message of its own, so that a node which
# does not know it still takes the events.
_HEARTBEAT, _EVENTS, _PRESENCE, _BACK, _DATED_EVENTS, _CONTEXT = range(6)
# First and last sequence, whether it deletes, length of the removed user's id.
_RANGE = struct.Struct("!QQ?H")
_WRITTEN = struct.Struct("!Q")  # epoch milliseconds; stands before the range

_log = structlog.get_logger()


class Shard(NamedTuple):
    """Of a Redis Cluster: what it is called in the log, and a bucket of its own, whose channel
    carries the heartbeats of all nodes that are connected to it."""

    name: str
    bucket: int


def bucket_of(budget_id: BudgetId) -> int:
    """A cluster puts channels of one bucket on one shard: it looks at their hash tag only. So they
    can be asked for together, which it allows for one slot at a time."""
    return crc32(budget_id.encode()) % BUCKETS


class RedisBus:
    """Implements `hub.ports.Bus`.

    `node_id` is 16 bytes of this process's own. `jitter` gives a random number from 0 to 1. With
    `shard` it is one shard's part of a `storage.redis.cluster_bus.ClusterBus`.
    """

    def __init__(
        self,
        url: str,
        log_id: str,
        node_id: bytes,
        *,
        jitter: Callable[[], float],
        shard: Shard | None = None,
    ) -> None:
        self._url = url
        self._prefix = f"budget-hub:{log_id}:"
        self._sharded = shard is not None
        self._heartbeats = f"{self._prefix}nodes"
        self._log = _log
        if shard is not None:
            self._heartbeats = f"{self._prefix}{{{shard.bucket}}}:nodes"
            self._log = _log.bind(shard=shard.name)
        self._node_id = node_id
        self._jitter = jitter
        self._wanted: set[str] = set()  # channels
        self._confirmed: set[str] = set()  # channels the connection has for certain
        self._confirming: dict[str, asyncio.Future[None]] = {}
        self._confirmations_due = 0  # of a new connection
        self._all_confirmed = asyncio.Event()
        self._changed = asyncio.Event()  # set when `_wanted` differs from what was asked for
        self._outgoing: deque[tuple[str, bytes]] = deque()
        self._outgoing_bytes = 0
        self._outgoing_some = asyncio.Event()
        self._heard_at_s: dict[NodeId, float] = {}
        # Of the events that the node will send next: their budget, first sequence, and context.
        self._contexts: dict[NodeId, tuple[BudgetId, int, Context]] = {}
        self.connected = False
        self._lost = False  # and not back yet
        self.losses: Counter[str] = Counter()  # of the connection, by cause
        self.frames: Counter[str] = Counter()  # of events, by what became of them

    async def run(self, listener: BusListener) -> None:
        """Keep the connection until cancelled, and tell the listener what comes."""
        try:
            await self._reconnect(listener)
        finally:
            self._disconnected()

    async def _reconnect(self, listener: BusListener) -> None:
        pause_s, pause_max_s = BACKOFF_S
        while True:
            # A task of its own: a task group that is cancelled in the moment of a loss tells only
            # of the loss, before Python 3.13.
            connection = asyncio.create_task(self._connection(listener))
            try:
                await asyncio.wait([connection])
            finally:
                connection.cancel()
                await asyncio.gather(connection, return_exceptions=True)
            try:
                connection.result()
            except* (RedisError, OSError, TimeoutError) as lost:
                if self.connected:
                    deaf = isinstance(lost.exceptions[0], TimeoutError)
                    self.losses["deaf" if deaf else "error"] += 1
                if not self._lost:  # once for each time it is lost
                    self._lost = True
                    error = lost.exceptions[0]
                    self._log.warning("bus lost", error=f"{type(error).__name__}: {error}")
            if self.connected:
                pause_s = BACKOFF_S[0]
            self._disconnected()
            await asyncio.sleep(pause_s * (0.5 + self._jitter()))
            pause_s = min(2 * pause_s, pause_max_s)

    def publish(self, frames: Sequence[Frame]) -> None:
        if not self.connected:
            self.frames["dropped"] += len(frames)
            return
        for number, frame in enumerate(frames):
            if self._outgoing_bytes + len(frame.data) > OUTGOING_BYTES_MAX:
                # The bus is too slow for this load; sweepers deliver what is dropped.
                self.frames["dropped"] += len(frames) - number
                return
            self.frames["published"] += 1
            if frame.context is not None:
                self._send(frame.budget_id, _pack_context(self._node_id, frame, frame.context))
            self._send(frame.budget_id, _pack(self._node_id, frame))

    def announce(self, budget_id: BudgetId, here: Mapping[UserId, int], *, asks: bool) -> None:
        if self.connected and self._outgoing_bytes < OUTGOING_BYTES_MAX:
            told = orjson.dumps({"users": here, "asks": asks})
            self._send(budget_id, _ORIGIN.pack(_PRESENCE, self._node_id) + told)

    async def subscribe(self, budget_id: BudgetId) -> None:
        channel = self._channel(budget_id)
        self._wanted.add(channel)
        if not self.connected or channel in self._confirmed:
            return
        self._changed.set()
        if channel not in self._confirming:
            self._confirming[channel] = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._confirming[channel])

    def unsubscribe(self, budget_id: BudgetId) -> None:
        channel = self._channel(budget_id)
        self._wanted.discard(channel)
        self._changed.set()
        if (confirming := self._confirming.pop(channel, None)) is not None:
            confirming.set_result(None)  # perhaps it was never asked for

    def want(self, budget_id: BudgetId) -> None:
        """Subscribe with the next connection, which is yet to be made."""
        self._wanted.add(self._channel(budget_id))

    def _channel(self, budget_id: BudgetId) -> str:
        if self._sharded:
            return f"{self._prefix}{{{bucket_of(budget_id)}}}:{budget_id}"
        return self._prefix + budget_id

    def _send(self, budget_id: BudgetId, payload: bytes) -> None:
        self._send_to(self._channel(budget_id), payload)

    def _send_to(self, channel: str, payload: bytes) -> None:
        self._outgoing.append((channel, payload))
        self._outgoing_bytes += len(payload)
        self._outgoing_some.set()

    async def _connection(self, listener: BusListener) -> None:
        """One connection, from its making to its loss."""
        # Without this `retry` the client reconnects by itself, and what was published meanwhile is
        # missed without a trace. With `socket_timeout` it writes through `asyncio.wait_for`, which
        # in Python 3.11 may swallow a cancellation; silence is what `_keep_alive` is for.
        redis = Redis.from_url(
            self._url,
            retry=Retry(NoBackoff(), 0, supported_errors=()),
            socket_connect_timeout=CONNECT_S,
            socket_timeout=None,
        )
        pubsub = redis.pubsub()
        try:
            asked = {self._heartbeats, *self._wanted}
            self._confirmations_due = len(asked)
            self._all_confirmed.clear()
            async with asyncio.timeout(CONNECT_S):  # the handshake too, which the driver lets hang
                await self._ask_for(pubsub, asked)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(pubsub, listener))
                tasks.create_task(self._keep_alive(redis, listener))
                async with asyncio.timeout(DEAF_S):
                    await self._all_confirmed.wait()
                self.connected = True
                if self._lost:
                    self._lost = False
                    self._log.warning("bus back", channels=len(asked))
                    # Sent first: peers forget our old presence, including users who left while
                    # we were away.
                    self._send_to(self._heartbeats, _ORIGIN.pack(_BACK, self._node_id))
                else:
                    self._log.info("bus connected", channels=len(asked))
                tasks.create_task(self._keep_subscribed(pubsub, asked))
                tasks.create_task(self._write(redis))
                await listener.restored()
        finally:
            for close in (pubsub.aclose, redis.aclose):  # each, whatever becomes of the other
                with contextlib.suppress(RedisError, OSError), _driver():
                    await close()

    def _disconnected(self) -> None:
        self.connected = False
        self._confirmed.clear()
        self._outgoing.clear()
        self._outgoing_bytes = 0
        for confirming in self._confirming.values():
            confirming.set_result(None)  # nobody waits for a bus that is away
        self._confirming.clear()

    async def _read(self, pubsub: PubSub, listener: BusListener) -> None:
        while True:
            with _driver():
                message = await pubsub.get_message(timeout=None)
            if message is None:
                continue
            channel = message["channel"].decode()
            if message["type"] in ("message", "smessage"):
                self._hear(channel[-36:], message["data"], listener)
            elif message["type"] in ("subscribe", "ssubscribe"):
                self._confirmed.add(channel)
                if len(self._confirmed) == self._confirmations_due:
                    self._all_confirmed.set()
                if (confirming := self._confirming.pop(channel, None)) is not None:
                    confirming.set_result(None)
                if channel not in self._wanted:
                    self._changed.set()  # left meanwhile
            elif message["type"] == "sunsubscribe" and channel in self._confirmed:
                raise ConnectionError("another shard has the channel now")

    def _hear(self, budget_id: BudgetId, payload: bytes, listener: BusListener) -> None:
        kind, node_id = _ORIGIN.unpack_from(payload)
        self._heard_at_s[node_id] = asyncio.get_running_loop().time()
        if node_id == self._node_id:
            return  # what is our own our feeds had at once
        if kind == _DATED_EVENTS:
            self.frames["received"] += 1
            (written_at_ms,) = _WRITTEN.unpack_from(payload, _ORIGIN.size)
            frame = _unpack(budget_id, payload, _WRITTEN.size, written_at_ms or None)
            known = self._contexts.pop(node_id, None)
            if known is not None and known[:2] == (budget_id, frame.from_sequence):
                frame = frame._replace(context=known[2])
            listener.received(frame)
        elif kind == _EVENTS:
            self.frames["received"] += 1
            listener.received(_unpack(budget_id, payload, 0, None))
        elif kind == _PRESENCE:
            told = orjson.loads(payload[_ORIGIN.size :])
            listener.attending(budget_id, node_id, told["users"], asks=told["asks"])
        elif kind == _BACK:
            listener.silent(node_id)
        elif kind == _CONTEXT:
            self._contexts[node_id] = (budget_id, *_unpack_context(payload))

    async def _keep_alive(self, redis: "Redis", listener: BusListener) -> None:
        """Tell that this node lives, and notice those that do not. Raises `TimeoutError` when we do
        not hear ourselves."""
        now_s = asyncio.get_running_loop().time()
        # Nobody could be heard while there was no connection.
        self._heard_at_s = dict.fromkeys({*self._heard_at_s, self._node_id}, now_s)
        while True:
            async with asyncio.timeout(DEAF_S):
                beat = _ORIGIN.pack(_HEARTBEAT, self._node_id)
                with _driver():
                    if self._sharded:
                        await redis.spublish(self._heartbeats, beat)
                    else:
                        await redis.publish(self._heartbeats, beat)
            due_s = asyncio.get_running_loop().time() + HEARTBEAT_S
            await asyncio.sleep(HEARTBEAT_S)
            now_s = asyncio.get_running_loop().time()
            if (late_s := now_s - due_s) > HEARTBEAT_S:
                # This process stood still: what others said meanwhile it has yet to read.
                for node_id in self._heard_at_s:
                    self._heard_at_s[node_id] += late_s
            if now_s - self._heard_at_s[self._node_id] > DEAF_S:
                raise TimeoutError(f"nothing heard for {DEAF_S} s")
            for node_id, heard_at_s in list(self._heard_at_s.items()):
                if now_s - heard_at_s > SILENT_S:
                    del self._heard_at_s[node_id]
                    self._contexts.pop(node_id, None)
                    _log.info("node gone", node_id=node_id.hex())
                    listener.silent(node_id)

    async def _keep_subscribed(self, pubsub: PubSub, asked: set[str]) -> None:
        """Ask for channels, and drop them, as `_wanted` changes."""
        while True:
            wanted = {self._heartbeats, *self._wanted}
            added = wanted - asked
            # Before it is confirmed a channel is not dropped, so that each answer has one meaning.
            dropped = (asked - wanted) & self._confirmed
            asked = (asked | added) - dropped
            self._confirmed -= dropped
            for part in self._parts(dropped):
                with _driver():
                    if self._sharded:
                        await pubsub.sunsubscribe(*part)
                    else:
                        await pubsub.unsubscribe(*part)
            with _driver():
                await self._ask_for(pubsub, added)
            await self._changed.wait()
            self._changed.clear()

    async def _ask_for(self, pubsub: PubSub, channels: Iterable[str]) -> None:
        for part in self._parts(channels):
            if self._sharded:
                await pubsub.ssubscribe(*part)
            else:
                await pubsub.subscribe(*part)

    def _parts(self, channels: Iterable[str]) -> Iterator[Sequence[str]]:
        """What can be said in one command."""
        if not self._sharded:
            yield from _parts(channels)
            return
        of_bucket: dict[str, list[str]] = {}
        for channel in channels:
            of_bucket.setdefault(channel.partition("}")[0], []).append(channel)
        for alike in of_bucket.values():
            yield from _parts(alike)

    async def _write(self, redis: "Redis") -> None:
        while True:
            await self._outgoing_some.wait()
            self._outgoing_some.clear()
            while self._outgoing:
                pipeline = redis.pipeline(transaction=False)
                for _ in range(min(len(self._outgoing), PIPELINE_FRAMES_MAX)):
                    channel, payload = self._outgoing.popleft()
                    self._outgoing_bytes -= len(payload)
                    if self._sharded:
                        pipeline.spublish(channel, payload)
                    else:
                        pipeline.publish(channel, payload)
                async with asyncio.timeout(STALLED_S):
                    with _driver():
                        await pipeline.execute()


@contextlib.contextmanager
def _driver() -> Iterator[None]:
    """A connection that is lost between two tasks of ours makes the driver fall over its own reset
    state, and uvloop refuse to write. Both mean that it is lost."""
    try:
        yield
    except (AttributeError, RuntimeError) as error:
        raise ConnectionError(repr(error)) from error


def _pack(node_id: NodeId, frame: Frame) -> bytes:
    removes = (frame.removes or "").encode()
    span = _RANGE.pack(frame.from_sequence, frame.to_sequence, frame.deletes, len(removes))
    origin = _ORIGIN.pack(_DATED_EVENTS, node_id)
    written = _WRITTEN.pack(frame.written_at_ms or 0)
    return b"".join((origin, written, span, removes, frame.data))


def _pack_context(node_id: NodeId, frame: Frame, context: Context) -> bytes:
    told = orjson.dumps([frame.from_sequence, context.trace, context.correlation_ids])
    return _ORIGIN.pack(_CONTEXT, node_id) + told


def _unpack_context(payload: bytes) -> tuple[int, Context]:
    from_sequence, trace, correlation_ids = orjson.loads(payload[_ORIGIN.size :])
    return from_sequence, Context(trace, tuple(correlation_ids))


def _unpack(budget_id: BudgetId, payload: bytes, skipped: int, written_at_ms: int | None) -> Frame:
    start = _ORIGIN.size + skipped
    from_sequence, to_sequence, deletes, size = _RANGE.unpack_from(payload, start)
    start += _RANGE.size
    removes = payload[start : start + size].decode() or None
    data = payload[start + size :]
    return Frame(budget_id, from_sequence, to_sequence, data, removes, deletes, written_at_ms)


def _parts(channels: Iterable[str]) -> Iterator[Sequence[str]]:
    ordered = sorted(channels)
    for start in range(0, len(ordered), SUBSCRIBE_CHANNELS_MAX):
        yield ordered[start : start + SUBSCRIBE_CHANNELS_MAX]
