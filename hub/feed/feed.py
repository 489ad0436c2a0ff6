"""A feed: one budget's ordered events inside this process, and who follows them.

Frames are offered by the committer (own commits) and by the bus (other nodes'), in any order and
any number of times; `cursors.Track` says what to do with each. A gap is filled from the log by
a single reader. A subscription is a cursor and a wire; its states and steps stand in `cursors`.

Registration comes first, then, in statements begun after it, the check of membership and the read
of the log; so an event is either in what is read or offered to the feed afterwards, never lost
between the two.

For live subscriptions a read that fails is tried again, also when a defect is the cause: they keep
their place and miss nothing. A new subscription is refused, and its client tries again.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple, Protocol

import structlog

from hub.budget.access import ending, standing
from hub.budget.records import BudgetId, UserId
from hub.budget.scalars import INTEGER_MAX
from hub.errors import Code, Disconnected, Held, HubError, StatementFailed
from hub.feed.cursors import Place, Step, SubscriptionState, Track, next_step
from hub.feed.presence import Presence
from hub.feed.tail import Tail
from hub.frames import server
from hub.frames.events import Frame, event_frames
from hub.gate import Gate
from hub.measures import Measures
from hub.ports import EventLog, Page
from hub.timeouts import Timeouts
from hub.tracing import Trail
from hub.turns import Crowded

PAGE_EVENTS_MAX = 500

_log = structlog.get_logger()


class Follower(Protocol):
    """Whoever gets a feed's frames: a socket, a stream, a waiting poll."""

    @property
    def attends(self) -> bool:
        """Whether its user counts as present, and is told who else is."""
        ...

    def write(self, data: bytes) -> None: ...

    @property
    def full(self) -> bool:
        """Whether more was written than the peer takes at the moment."""
        ...

    def joined(self, key: int, head: int) -> None:
        """The subscription stands; the events after `key` follow."""
        ...

    def refused(self, code: Code) -> None:
        """There is no subscription."""
        ...

    def ended(self, code: Code) -> None:
        """The feed ended the subscription, after `joined`."""
        ...


class Shared(NamedTuple):
    """What the feeds of a process have in common. `spawn` runs a coroutine in the background;
    `stirred` says that presence has changed, or somebody has not been told of it, `abandoned` that
    nobody follows the feed any more."""

    log: EventLog
    measures: Measures
    trail: Trail
    timeouts: Timeouts
    joins: Gate
    now_ms: Callable[[], int]
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    stirred: Callable[["Feed"], None]
    abandoned: Callable[["Feed"], None]


class Subscription:
    """`member_at`, `removed_at`: see `hub.budget.access`. `greeted` is whether it was told who is
    present since it went live."""

    __slots__ = (
        "attends",
        "cursor",
        "feed",
        "follower",
        "greeted",
        "joined",
        "member_at",
        "removed_at",
        "state",
        "user_id",
    )

    def __init__(self, feed: "Feed", user_id: UserId, cursor: int, follower: Follower) -> None:
        self.feed = feed
        self.user_id = user_id
        self.cursor = cursor
        self.follower = follower
        self.state = SubscriptionState.CATCHING_UP
        self.member_at: int | None = None
        self.removed_at: int | None = None
        self.joined = False  # its follower was told so
        self.attends = False  # not before that
        self.greeted = False

    def lag(self) -> None:
        """Its wire is full."""
        if self.state is SubscriptionState.LIVE:
            self.feed.live.pop(self, None)
            self.cursor = self.feed.position
            self.state = SubscriptionState.LAGGING

    def drained(self) -> None:
        """Its wire takes more."""
        if self.state is SubscriptionState.LAGGING:
            self.state = SubscriptionState.CATCHING_UP
            self.feed.catch_up(self)

    def end(self) -> None:
        if self.state is not SubscriptionState.ENDED:
            self.state = SubscriptionState.ENDED
            self.feed.leave(self)


class Feed:
    def __init__(self, budget_id: BudgetId, shared: Shared) -> None:
        self.budget_id = budget_id
        self.presence = Presence()
        # Each with its follower's `write`: to look it up costs a twentieth of all a delivery costs.
        self.live: dict[Subscription, Callable[[bytes], None]] = {}
        self._all: set[Subscription] = set()
        self.track = Track()
        self.listening = asyncio.Event()  # set once the bus carries this budget's frames to us
        self._caught_up = asyncio.Event()
        self._deleted_at: int | None = None
        self._tail: Tail | None = None
        self._presence_told = b""
        self._shared = shared

    @property
    def position(self) -> int:
        return self.track.position

    def subscribe(self, user_id: UserId, key: int, follower: Follower) -> Subscription:
        """Register, then catch up in the background; `follower.joined` or `.refused` answers."""
        subscription = Subscription(self, user_id, key, follower)
        self._all.add(subscription)
        self._shared.spawn(self._join(subscription))
        return subscription

    def leave(self, subscription: Subscription) -> None:
        self.live.pop(subscription, None)
        self._all.discard(subscription)
        if subscription.attends:
            subscription.attends = False
            self.presence.left(subscription.user_id)
            self._shared.stirred(self)
        if not self._all:
            self._shared.abandoned(self)

    @property
    def followers(self) -> int:
        """How many there are, live or on the way to it."""
        return len(self._all)

    @property
    def lagging(self) -> int:
        """How many take nothing at the moment, their wires being full."""
        if len(self._all) == len(self.live):
            return 0
        return sum(each.state is SubscriptionState.LAGGING for each in self._all)

    def offer(self, frame: Frame, source: str) -> None:
        """Deliver the frame if it is the next one. `source` is where it comes from, for the
        measures: a commit here, or the bus."""
        with self._shared.trail.deliver(frame) as span:
            placed = self.track.offered(frame.from_sequence, frame.to_sequence)
            if placed is Place.DELIVER:
                self._deliver(frame)
                self._shared.measures.fed[source] += frame.events
            else:
                span.end("not the next one")
                if placed is Place.GAP:
                    self._fill_if_behind()
        if frame.context is not None and frame.context.correlation_ids:
            _log.debug(
                "events delivered" if placed is Place.DELIVER else "events not next",
                correlation_ids=frame.context.correlation_ids,
                budget_id=frame.budget_id,
                from_sequence=frame.from_sequence,
                to_sequence=frame.to_sequence,
                source=source,
            )

    def noticed(self, head: int) -> None:
        """The log is at least this long: read what is missing."""
        self.track.noticed(head)
        self._fill_if_behind()

    def catch_up(self, subscription: Subscription) -> None:
        self._shared.spawn(self._catch_up(subscription))

    def tell_presence(self) -> None:
        """To everybody live if it has changed, else to those who do not know yet."""
        data = server.presence(self.budget_id, self.presence.users())
        changed = data != self._presence_told
        self._presence_told = data
        for subscription in list(self.live):
            if subscription.attends and (changed or not subscription.greeted):
                subscription.greeted = True
                subscription.follower.write(data)

    def _deliver(self, frame: Frame) -> None:
        self.track.position = frame.to_sequence
        data = frame.data
        wires = list(self.live.values())
        for write in wires:  # a wire that fills up takes itself out (`lag`)
            write(data)
        if wires and frame.written_at_ms is not None:
            # Two machines' clocks may differ by more than it took.
            took_s = max(self._shared.now_ms() - frame.written_at_ms, 0) / 1000
            self._shared.measures.delivery_s.observe(took_s, len(wires) * frame.events)
        self._remember(frame)
        if frame.removes is not None or frame.deletes:
            self._part(frame)

    def _part(self, frame: Frame) -> None:
        """With somebody who is removed, or, at the budget's end, with everybody."""
        if frame.deletes:
            self._deleted_at = frame.to_sequence
        for subscription in list(self._all):
            if subscription.user_id == frame.removes:
                subscription.removed_at = frame.to_sequence
            self._end_if_over(subscription)

    def _end_if_over(self, subscription: Subscription) -> bool:
        at = subscription.cursor if subscription.joined else None
        if subscription.state is SubscriptionState.LIVE:
            at = self.position
        code = ending(
            at,
            member_at=subscription.member_at,
            removed_at=subscription.removed_at,
            deleted_at=self._deleted_at,
        )
        if code is not None:
            self._end(subscription, code)
        return code is not None

    def _remember(self, frame: Frame) -> None:
        if len(self._all) == len(self.live):
            self._tail = None  # nobody is behind any more
            return
        if self._tail is None:
            self._tail = Tail()
        self._tail.append(frame)

    def _end(self, subscription: Subscription, code: Code) -> None:
        if subscription.state is not SubscriptionState.ENDED:
            subscription.end()
            if subscription.joined:
                subscription.follower.ended(code)
            else:
                subscription.follower.refused(code)

    def _fill_if_behind(self) -> None:
        if not self.track.filling and self.track.missing_to is not None:
            self.track.filling = True
            self._shared.spawn(self._fill())

    async def _fill(self) -> None:
        """The single reader: deliver from the log until nothing is known to be missing."""
        begun_at = self.position
        try:
            while self._all and (missing_to := self.track.missing_to) is not None:
                try:
                    page = await self._shared.log.page(
                        self.budget_id, None, self.position, missing_to, PAGE_EVENTS_MAX
                    )
                except (Disconnected, Held, StatementFailed):
                    await asyncio.sleep(self._shared.timeouts.retry_s)
                    continue
                if page is None or not page.events:
                    _log.error("the log is shorter than was said", budget_id=self.budget_id)
                    self.track.forget_missing()
                    break
                written_at_ms = page.events[0].written_at_ms
                for frame in event_frames(self.budget_id, page.events, written_at_ms):
                    self._deliver(frame)
        finally:
            if self.position > begun_at:
                self._shared.measures.gaps_filled += 1
                self._shared.measures.fed["log"] += self.position - begun_at
            self.track.filling = False
            # Wake up who waits for the feed to get where its client is already.
            self._caught_up.set()
            self._caught_up = asyncio.Event()

    async def _join(self, subscription: Subscription) -> None:
        await self.listening.wait()
        try:
            page = await self._first_page(subscription)
            if page is None:
                return
            if not self.track.known:
                self.track.begin(page.head)
            self.noticed(page.head)
            if subscription.cursor > page.head:
                raise HubError(Code.CURSOR_AHEAD)
        except (Disconnected, TimeoutError):
            self._end(subscription, Code.UNAVAILABLE)
            return
        except (Held, Crowded):
            self._end(subscription, Code.BUSY)
            return
        except StatementFailed:
            self._end(subscription, Code.INTERNAL_SERVER_ERROR)
            return
        except HubError as error:
            self._end(subscription, error.code)
            return
        while subscription.cursor > self.position:  # the client may be ahead of this node
            await self._caught_up.wait()
            if subscription.state is SubscriptionState.ENDED:
                return
        subscription.joined = True
        subscription.follower.joined(subscription.cursor, page.head)
        if subscription.follower.attends:
            subscription.attends = True
            self.presence.came(subscription.user_id)
            self._shared.stirred(self)
        if not self._end_if_over(subscription):  # of a deleted budget it may have had all before
            self._give(subscription, event_frames(self.budget_id, page.events))
        await self._catch_up(subscription)

    async def _first_page(self, subscription: Subscription) -> Page | None:
        """None if it ended before its turn: a client that subscribes again and again, or is gone,
        costs no reads. Raises what `_read` raises, `Crowded` and `TimeoutError`."""
        async with self._shared.joins.turn(subscription.user_id, self._shared.timeouts.join_s):
            if subscription.state is SubscriptionState.ENDED:
                return None
            up_to = self.position if self.track.known else INTEGER_MAX
            return await self._read(subscription, up_to)

    async def _catch_up(self, subscription: Subscription) -> None:
        while True:
            full = subscription.follower.full
            match next_step(subscription.state, subscription.cursor, self.position, full=full):
                case Step.STOP:
                    return
                case Step.LAG:
                    subscription.state = SubscriptionState.LAGGING
                    return
                case Step.GO_LIVE:
                    subscription.state = SubscriptionState.LIVE
                    self.live[subscription] = subscription.follower.write
                    if len(self._all) == len(self.live):
                        self._tail = None  # nobody is behind any more
                    subscription.greeted = False
                    self._shared.stirred(self)
                    return
                case Step.WAIT:
                    await self._caught_up.wait()
                case Step.READ:
                    await self._read_on(subscription)

    async def _read_on(self, subscription: Subscription) -> None:
        """Give what follows the cursor: from the tail, which holds nothing from before the
        subscription, or a page of the log."""
        if self._tail is not None and (recent := self._tail.after(subscription.cursor)):
            self._give(subscription, recent)
            return
        try:
            page = await self._read(subscription, self.position)
        except (Disconnected, Held, StatementFailed):
            await asyncio.sleep(self._shared.timeouts.retry_s)
            return
        except HubError as error:
            self._end(subscription, error.code)
            return
        if page is None:
            return
        if not page.events:
            _log.error("the log is shorter than was delivered", budget_id=self.budget_id)
            await asyncio.sleep(self._shared.timeouts.retry_s)
        self._give(subscription, event_frames(self.budget_id, page.events))

    async def _read(self, subscription: Subscription, up_to: int) -> Page | None:
        """The next page for this subscription, None if it ended meanwhile.

        Raises `HubError` where its user may not read (any more), `Disconnected`, `Held`,
        `StatementFailed`."""
        page = await self._shared.log.page(
            self.budget_id, subscription.user_id, subscription.cursor, up_to, PAGE_EVENTS_MAX
        )
        if subscription.state is SubscriptionState.ENDED:
            return None
        page = permitted(page)
        if page.deleted:
            self._deleted_at = page.head
        subscription.member_at = page.head
        return None if self._end_if_over(subscription) else page

    def _give(self, subscription: Subscription, pieces: Iterable[Frame]) -> None:
        for frame in pieces:
            subscription.follower.write(frame.data)
            subscription.cursor = frame.to_sequence
            if self._end_if_over(subscription):
                return
            if subscription.follower.full:
                return  # the rest is read again when there is room for it


def permitted(page: Page | None) -> Page:
    """The page, if its reader takes part, or did when the budget was deleted. Raises `HubError` for
    the others (P9)."""
    if page is None:
        raise HubError(Code.BUDGET_NOT_EXISTS)
    if (refusal := standing(page.deleted, page.member, past_counts=True)) is not None:
        raise HubError(refusal)
    return page
