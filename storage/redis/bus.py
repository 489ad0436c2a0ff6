"""The bus: Redis pub/sub between nodes. It carries frames and is never the truth.

Each subscribed budget has a channel; one more carries the heartbeats of all nodes. A node that
does not hear its own for `deaf_s` seconds is deaf, whatever its sockets say: the connection is
rebuilt and every channel subscribed again. A node that the others do not hear for `silent_s`
seconds is gone for them. While Redis is away publishing drops frames and subscribing returns at
once; the sweeper delivers from the log until the bus is back (P7, P10).
"""

import asyncio
import contextlib
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import orjson
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from hub.budget.records import BudgetId, UserId
from hub.frames.events import Context, Frame
from hub.outage import Outage
from hub.ports import BusListener, NodeId
from storage.redis.channels import Channels, Shard, ShardChannels
from storage.timeouts import STORAGE_TIMEOUTS, StorageTimeouts

BACKOFF_S = (0.1, 2.0)  # first and longest pause between two attempts to connect
OUTGOING_BYTES_MAX = 32 * 1024 * 1024
PIPELINE_FRAMES_MAX = 500

# What it is, and the node it comes from; in a heartbeat there is no more.
_ORIGIN = struct.Struct("!B16s")
# What a node does not know it leaves alone, and its sweeper finds the events: two versions get on
# with each other while one is deployed. The number that is missing was used before 0.1.0.
# `_CONTEXT` comes right before the events it belongs to, a message of its own, so that a node which
# does not know it still takes the events.
_HEARTBEAT, _PRESENCE, _BACK, _EVENTS, _CONTEXT = 0, 2, 3, 4, 5
# When it was written (epoch milliseconds), first and last sequence, whether it deletes, length of
# the removed user's id.
_EVENTS_HEAD = struct.Struct("!QQQ?H")

_log = structlog.get_logger()


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
        timeouts: StorageTimeouts = STORAGE_TIMEOUTS,
    ) -> None:
        self._timeouts = timeouts
        self._url = url
        prefix = f"budget-hub:{log_id}:"
        self._channels = Channels(prefix) if shard is None else ShardChannels(prefix, shard)
        self._facts = {} if shard is None else {"shard": shard.name}  # for the log
        self._outage = Outage("bus lost", "bus back", **self._facts)
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
                self._outage.lost(lost.exceptions[0])
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
        channel = self._channels.of(budget_id)
        self._wanted.add(channel)
        if not self.connected or channel in self._confirmed:
            return
        self._changed.set()
        if channel not in self._confirming:
            self._confirming[channel] = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._confirming[channel])

    def unsubscribe(self, budget_id: BudgetId) -> None:
        channel = self._channels.of(budget_id)
        self._wanted.discard(channel)
        self._changed.set()
        if (confirming := self._confirming.pop(channel, None)) is not None:
            confirming.set_result(None)  # perhaps it was never asked for

    def want(self, budget_id: BudgetId) -> None:
        """Subscribe with the next connection, which is yet to be made."""
        self._wanted.add(self._channels.of(budget_id))

    def _send(self, budget_id: BudgetId, payload: bytes) -> None:
        self._send_to(self._channels.of(budget_id), payload)

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
            socket_connect_timeout=self._timeouts.redis_connect_s,
            socket_timeout=None,
        )
        pubsub = redis.pubsub()
        try:
            asked = {self._channels.heartbeats, *self._wanted}
            self._confirmations_due = len(asked)
            self._all_confirmed.clear()
            # The handshake too, which the driver lets hang.
            async with asyncio.timeout(self._timeouts.redis_connect_s):
                await self._channels.subscribe(pubsub, asked)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(pubsub, listener))
                tasks.create_task(self._keep_alive(redis, listener))
                async with asyncio.timeout(self._timeouts.deaf_s):
                    await self._all_confirmed.wait()
                self.connected = True
                if self._outage.back(channels=len(asked)):
                    # Sent first: peers forget our old presence, including users who left while
                    # we were away.
                    self._send_to(self._channels.heartbeats, _ORIGIN.pack(_BACK, self._node_id))
                else:
                    _log.info("bus connected", channels=len(asked), **self._facts)
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
        if kind == _EVENTS:
            self.frames["received"] += 1
            frame = _unpack(budget_id, payload)
            known = self._contexts.pop(node_id, None)
            if known is not None and known[:2] == (budget_id, frame.from_sequence):
                frame = frame._replace(context=known[2])
            listener.received(frame)
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
            async with asyncio.timeout(self._timeouts.deaf_s):
                beat = _ORIGIN.pack(_HEARTBEAT, self._node_id)
                with _driver():
                    await self._channels.publish(redis, self._channels.heartbeats, beat)
            due_s = asyncio.get_running_loop().time() + self._timeouts.heartbeat_s
            await asyncio.sleep(self._timeouts.heartbeat_s)
            now_s = asyncio.get_running_loop().time()
            if (late_s := now_s - due_s) > self._timeouts.heartbeat_s:
                # This process stood still: what others said meanwhile it has yet to read.
                for node_id in self._heard_at_s:
                    self._heard_at_s[node_id] += late_s
            if now_s - self._heard_at_s[self._node_id] > self._timeouts.deaf_s:
                raise TimeoutError(f"nothing heard for {self._timeouts.deaf_s} s")
            for node_id, heard_at_s in list(self._heard_at_s.items()):
                if now_s - heard_at_s > self._timeouts.silent_s:
                    del self._heard_at_s[node_id]
                    self._contexts.pop(node_id, None)
                    _log.info("node gone", node_id=node_id.hex())
                    listener.silent(node_id)

    async def _keep_subscribed(self, pubsub: PubSub, asked: set[str]) -> None:
        """Ask for channels, and drop them, as `_wanted` changes."""
        while True:
            wanted = {self._channels.heartbeats, *self._wanted}
            added = wanted - asked
            # Before it is confirmed a channel is not dropped, so that each answer has one meaning.
            dropped = (asked - wanted) & self._confirmed
            asked = (asked | added) - dropped
            self._confirmed -= dropped
            with _driver():
                await self._channels.unsubscribe(pubsub, dropped)
                await self._channels.subscribe(pubsub, added)
            await self._changed.wait()
            self._changed.clear()

    async def _write(self, redis: "Redis") -> None:
        while True:
            await self._outgoing_some.wait()
            self._outgoing_some.clear()
            while self._outgoing:
                pipeline = redis.pipeline(transaction=False)
                for _ in range(min(len(self._outgoing), PIPELINE_FRAMES_MAX)):
                    channel, payload = self._outgoing.popleft()
                    self._outgoing_bytes -= len(payload)
                    self._channels.publish(pipeline, channel, payload)
                async with asyncio.timeout(self._timeouts.stalled_s):
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
    head = _EVENTS_HEAD.pack(
        frame.written_at_ms or 0,
        frame.from_sequence,
        frame.to_sequence,
        frame.deletes,
        len(removes),
    )
    return b"".join((_ORIGIN.pack(_EVENTS, node_id), head, removes, frame.data))


def _pack_context(node_id: NodeId, frame: Frame, context: Context) -> bytes:
    told = orjson.dumps([frame.from_sequence, context.trace, context.correlation_ids])
    return _ORIGIN.pack(_CONTEXT, node_id) + told


def _unpack_context(payload: bytes) -> tuple[int, Context]:
    from_sequence, trace, correlation_ids = orjson.loads(payload[_ORIGIN.size :])
    return from_sequence, Context(trace, tuple(correlation_ids))


def _unpack(budget_id: BudgetId, payload: bytes) -> Frame:
    head = _EVENTS_HEAD.unpack_from(payload, _ORIGIN.size)
    written_at_ms, from_sequence, to_sequence, deletes, size = head
    start = _ORIGIN.size + _EVENTS_HEAD.size
    removes = payload[start : start + size].decode() or None
    data = payload[start + size :]
    return Frame(
        budget_id, from_sequence, to_sequence, data, removes, deletes, written_at_ms or None
    )
