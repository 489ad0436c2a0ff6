"""The feeds of this process: one for each budget that somebody follows here.

What is committed on this node is published here, and over the bus to the other nodes; what these
publish arrives as `received`. Presence goes the same ways.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from hub.budget.records import BudgetId, UserId
from hub.budget.scalars import INTEGER_MAX
from hub.budget.state import LogRow
from hub.feed.feed import Feed, Follower, Shared, Subscription, permitted
from hub.feed.sweeper import Sweeper
from hub.frames.events import Frame, event_frames
from hub.gate import Gate
from hub.measures import Measures
from hub.ports import Bus, EventLog, NodeId, Page
from hub.timeouts import Timeouts
from hub.tracing import Origins, Trail, in_context, shared_ids

# First pages that are read at a time: twice what feeds have connections, so that none is idle.
JOINS = 8
JOINS_PER_USER = 4
# Of one user's that wait: more than all their devices have budgets.
JOINS_WAITING_MAX = 20_000


class Feeds:
    """Implements `hub.ports.BusListener`. `bus` None is a single node; `spawn` runs a coroutine in
    the background."""

    def __init__(
        self,
        log: EventLog,
        bus: Bus | None,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        now_ms: Callable[[], int],
        measures: Measures,
        trail: Trail,
        timeouts: Timeouts,
    ) -> None:
        self._bus = bus
        self._spawn = spawn
        self._trail = trail
        self._feeds: dict[BudgetId, Feed] = {}
        self._stirred: set[Feed] = set()
        self._shared = Shared(
            log,
            measures,
            trail,
            timeouts,
            Gate(JOINS, JOINS_PER_USER, JOINS_WAITING_MAX),
            now_ms,
            spawn,
            self._stir,
            self._abandon,
        )
        self.sweeper = Sweeper(log, self._feeds, measures)

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds.values())

    def __len__(self) -> int:
        return len(self._feeds)

    def followers(self, budget_id: BudgetId) -> int:
        """How many live subscriptions the budget has here."""
        feed = self._feeds.get(budget_id)
        return 0 if feed is None else len(feed.live)

    def subscribe(
        self, user_id: UserId, budget_id: BudgetId, key: int, follower: Follower
    ) -> Subscription:
        """Follow a budget from `key` on. `follower.joined` comes before the first event, or
        `follower.refused`; later `follower.ended` may say that it is over."""
        feed = self._feeds.get(budget_id)
        if feed is None:
            feed = self._feeds[budget_id] = Feed(budget_id, self._shared)
            self._spawn(self._listen(feed))
        return feed.subscribe(user_id, key, follower)

    async def read(self, budget_id: BudgetId, user_id: UserId, key: int, count: int) -> Page:
        """At most `count` events after `key`. Raises `HubError` where the user may not read them,
        `Disconnected`, `Held`, `StatementFailed`."""
        return permitted(await self._shared.log.page(budget_id, user_id, key, INTEGER_MAX, count))

    def publish(
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
                    feed.offer(said, "commit")
                if self._bus is not None:
                    self._bus.publish([said])

    # What the bus tells.

    def received(self, frame: Frame) -> None:
        feed = self._feeds.get(frame.budget_id)
        if feed is not None:
            feed.offer(frame, "bus")

    def attending(
        self, budget_id: BudgetId, node_id: NodeId, users: Mapping[UserId, int], *, asks: bool
    ) -> None:
        feed = self._feeds.get(budget_id)
        if feed is None:
            return
        if feed.presence.heard(node_id, users):
            self._stir(feed)
        if asks and self._bus is not None:
            self._bus.announce(budget_id, feed.presence.here, asks=False)

    def silent(self, node_id: NodeId) -> None:
        for feed in self:
            if feed.presence.silent(node_id):
                self._stir(feed)

    async def restored(self) -> None:
        if self._bus is not None:
            for feed in self:
                feed.presence.forget()
                self._bus.announce(feed.budget_id, feed.presence.here, asks=True)
                self._stir(feed)
        await self.sweeper.sweep()

    # What the feeds tell.

    async def _listen(self, feed: Feed) -> None:
        # It may have been abandoned already, and then nobody would unsubscribe.
        if self._bus is not None and self._feeds.get(feed.budget_id) is feed:
            await self._bus.subscribe(feed.budget_id)
            self._bus.announce(feed.budget_id, {}, asks=True)
        feed.listening.set()

    def _abandon(self, feed: Feed) -> None:
        if self._feeds.get(feed.budget_id) is feed:
            del self._feeds[feed.budget_id]
            if self._bus is not None:
                self._announce(feed)
                self._bus.unsubscribe(feed.budget_id)

    def _stir(self, feed: Feed) -> None:
        if not self._stirred:
            self._spawn(self._tell_presence())
        self._stirred.add(feed)

    async def _tell_presence(self) -> None:
        await asyncio.sleep(self._shared.timeouts.presence_s)
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
