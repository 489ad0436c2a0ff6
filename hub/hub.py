"""The hub: the one door for events, and the feeds of this process.

The way of an event: frame → `Session` → `Hub.submit` → `Committer` → `rules.decide` → the log →
`Feed.offer` → every wire, and through the bus to the feeds of the other nodes (hub/README.md).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import structlog

from hub.budget.events import INTEGER_MAX
from hub.budget.records import BudgetId, UserId
from hub.budget.rules import LogRow
from hub.committer import Committer
from hub.feed.feed import Feed, Follower, Subscription, permitted
from hub.feed.sweeper import Sweeper
from hub.frames import Frame, event_frames
from hub.limits import Rates
from hub.measures import Measures
from hub.ports import Bus, EventLog, NodeId, Page, Principal, Tracer
from hub.reconnects import reconnect_spread_ms
from hub.tracing import Origins, TracedTrail, Trail, in_context, shared_ids

READERS_MAX = 4  # reads of the log at a time, for all users together
DRAIN_S = 8.0
PRESENCE_S = 0.5  # how long changes of presence are gathered before they are told

_log = structlog.get_logger()


class Connection(Protocol):
    """What the hub asks of a session, a waiting poll and a stream."""

    @property
    def principal(self) -> Principal | None:
        """Who is signed in; None while that is not known."""
        ...

    def sign_out(self) -> None:
        """The principal's token counts no more."""
        ...

    def go_away(self, reconnect_after_ms: int) -> None: ...

    def leave(self) -> None: ...


class Census(NamedTuple):
    """Who and what a hub has at one moment: the `followers` of all its feeds are `live`, `lagging`,
    or catching up. `connections` counts by class."""

    connections: Mapping[str, int]
    feeds: int
    live: int
    lagging: int
    followers: int
    waiting_events: int


class Hub:
    """`log_id` identifies the log's history (design 1). `bus` None is a single node, `tracer` None
    no tracing."""

    def __init__(
        self,
        log: EventLog,
        log_id: str,
        bus: Bus | None,
        *,
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
        rates: Rates,
        tracer: Tracer | None = None,
    ) -> None:
        self.rates = rates
        self._trail = Trail() if tracer is None else TracedTrail(tracer)
        self.log = log
        self.log_id = log_id
        self._bus = bus
        self._jitter = jitter
        self.connections: set[Connection] = set()
        self._ended = False  # every connection was told to leave
        self._feeds: dict[BudgetId, Feed] = {}
        self._stirred: set[Feed] = set()
        self.gate = asyncio.Semaphore(READERS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self.measures = Measures()
        self._now_ms = now_ms
        self.sweeper = Sweeper(log, self._feeds, self.measures)
        self._committer = Committer(
            log,
            self._publish,
            now_ms=now_ms,
            jitter=jitter,
            measures=self.measures,
            trail=self._trail,
        )
        self.submit = self._committer.submit  # the one door for events

    def subscribe(
        self, user_id: UserId, budget_id: BudgetId, key: int, follower: Follower
    ) -> Subscription:
        """Follow a budget from `key` on. `follower.joined` comes before the first event, or
        `follower.refused`; later `follower.ended` may say that it is over."""
        feed = self._feeds.get(budget_id)
        if feed is None:
            feed = Feed(budget_id, self)
            self._feeds[budget_id] = feed
            self.spawn(self._listen(feed))
        return feed.subscribe(user_id, key, follower)

    async def read(self, budget_id: BudgetId, user_id: UserId, key: int, count: int) -> Page:
        """At most `count` events after `key`. Raises `HubError` where the user may not read them,
        `Disconnected`."""
        async with self.gate:
            page = await self.log.page(budget_id, user_id, key, INTEGER_MAX, count)
        return permitted(page)

    def followers(self, budget_id: BudgetId) -> int:
        """How many live subscriptions the budget has here."""
        feed = self._feeds.get(budget_id)
        return 0 if feed is None else len(feed.live)

    def received(self, frame: Frame) -> None:
        """A frame from the bus."""
        feed = self._feeds.get(frame.budget_id)
        if feed is not None:
            self._offer(feed, frame, "bus")

    def attending(
        self, budget_id: BudgetId, node_id: NodeId, users: Mapping[UserId, int], *, asks: bool
    ) -> None:
        """Another node tells which users it has on a budget, and may ask for the same."""
        feed = self._feeds.get(budget_id)
        if feed is None:
            return
        if feed.presence.heard(node_id, users):
            self.stirred(feed)
        if asks and self._bus is not None:
            self._bus.announce(budget_id, feed.presence.here, asks=False)

    def silent(self, node_id: NodeId) -> None:
        """Another node is gone, and its users with it."""
        for feed in self._feeds.values():
            if feed.presence.silent(node_id):
                self.stirred(feed)

    async def restored(self) -> None:
        """The bus is back: what it carried meanwhile is lost."""
        if self._bus is not None:
            for feed in self._feeds.values():
                feed.presence.forget()
                self._bus.announce(feed.budget_id, feed.presence.here, asks=True)
                self.stirred(feed)
        await self.sweeper.sweep()

    def attach(self, connection: Connection) -> None:
        """Register a connection for drain and sign-out. After a drain it has to leave at once, or
        the process would never end."""
        self.connections.add(connection)
        if self._ended:
            connection.leave()

    def detach(self, connection: Connection) -> None:
        """Forget a connection that has ended; again is harmless."""
        self.connections.discard(connection)

    def signed_in(self) -> set[UserId]:
        """The users who are connected here."""
        return {c.principal.user_id for c in self.connections if c.principal is not None}

    def sign_out(self, valid_since_ms: Mapping[UserId, int]) -> None:
        """End connections whose token was issued before their user's time (epoch milliseconds)."""
        for connection in list(self.connections):
            who = connection.principal
            if who is not None and who.issued_at_ms < valid_since_ms.get(who.user_id, 0):
                connection.sign_out()

    async def drain(self) -> None:
        """Before the process ends: tell each connection when to come back, at a time of its own so
        that the other nodes are not stormed; let submitted events have their verdicts; then close
        the sockets."""
        spread_ms = reconnect_spread_ms(len(self.connections))
        for connection in list(self.connections):
            connection.go_away(int(self._jitter() * spread_ms))
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._committer.drain()
        except TimeoutError:
            _log.warning("drain ended before every event had its verdict")
        self._ended = True
        for connection in list(self.connections):
            connection.leave()

    async def close(self) -> None:
        """Finish what was submitted, then stop everything in the background."""
        await self._committer.drain()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _publish(
        self,
        budget_id: BudgetId,
        rows: Sequence[LogRow],
        written_at_ms: int | None,
        origins: Origins,
    ) -> None:
        """Just committed: to the feed here, and over the bus to those of the other nodes."""
        feed = self._feeds.get(budget_id)
        for frame in event_frames(budget_id, rows, written_at_ms, shared_ids(origins)):
            with self._trail.publish(frame, origins) as span:
                said = in_context(frame, span)
                if feed is not None:
                    self._offer(feed, said, "commit")
                if self._bus is not None:
                    self._bus.publish([said])

    def _offer(self, feed: Feed, frame: Frame, source: str) -> None:
        """To the feed, from a commit here or from the bus."""
        with self._trail.deliver(frame) as span:
            delivered = feed.offer(frame)
            if delivered:
                self.measures.fed[source] += _events(frame)
            else:
                span.end("not the next one")
        if frame.context is not None and frame.context.correlation_ids:
            _log.debug(
                "events delivered" if delivered else "events not next",
                correlation_ids=frame.context.correlation_ids,
                budget_id=frame.budget_id,
                from_sequence=frame.from_sequence,
                to_sequence=frame.to_sequence,
                source=source,
            )

    async def _listen(self, feed: Feed) -> None:
        # It may have been abandoned already, and then nobody would unsubscribe.
        if self._bus is not None and self._feeds.get(feed.budget_id) is feed:
            await self._bus.subscribe(feed.budget_id)
            self._bus.announce(feed.budget_id, {}, asks=True)
        feed.listening.set()

    def abandoned(self, feed: Feed) -> None:
        """Nobody follows the feed any more."""
        if self._feeds.get(feed.budget_id) is feed:
            del self._feeds[feed.budget_id]
            if self._bus is not None:
                self._announce(feed)
                self._bus.unsubscribe(feed.budget_id)

    def delivered(self, frame: Frame, wires: int) -> None:
        """See `hub.feed.feed.Home`."""
        if wires and frame.written_at_ms is not None:
            # Two machines' clocks may differ by more than it took.
            took_s = max(self._now_ms() - frame.written_at_ms, 0) / 1000
            self.measures.delivery_s.observe(took_s, wires * _events(frame))

    def filled(self, events: int) -> None:
        """See `hub.feed.feed.Home`."""
        self.measures.gaps_filled += 1
        self.measures.fed["log"] += events

    def census(self) -> Census:
        """What is here now."""
        feeds = self._feeds.values()
        return Census(
            Counter(type(connection).__name__ for connection in self.connections),
            len(feeds),
            live=sum(len(feed.live) for feed in feeds),
            lagging=sum(feed.lagging for feed in feeds),
            followers=sum(feed.followers for feed in feeds),
            waiting_events=self._committer.waiting_events,
        )

    def stirred(self, feed: Feed) -> None:
        """Presence has changed on this feed, or somebody has not been told of it."""
        if not self._stirred:
            self.spawn(self._tell_presence())
        self._stirred.add(feed)

    async def _tell_presence(self) -> None:
        await asyncio.sleep(PRESENCE_S)
        feeds, self._stirred = self._stirred, set()
        for feed in feeds:
            self._announce(feed)
            # Without the bus nobody knows who is elsewhere: better nothing than half the truth.
            if self._bus is None or self._bus.connected:
                feed.tell_presence()

    def _announce(self, feed: Feed) -> None:
        if self._bus is not None and feed.presence.moved:
            feed.presence.moved = False
            self._bus.announce(feed.budget_id, feed.presence.here, asks=False)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it in the background, until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _events(frame: Frame) -> int:
    return frame.to_sequence - frame.from_sequence + 1
