"""A feed: one budget's ordered events inside this process, and who follows them.

`position` is the last sequence delivered here. Frames are offered by the committer (own commits)
and by the bus (other nodes'), in any order and any number of times; `hub.cursors.place` says where
each belongs. A gap is filled from the log by a single reader; while it runs, only the highest
sequence that was offered is remembered, never the frames (P8).

A subscription is a cursor and a wire. Its states:

| state       | its cursor           | leaves it when                                             |
|------------|---------------------|-------------------------------------------------------------|
| CATCHING_UP | behind, moved by its | cursor == position: LIVE, in the same turn of the loop     |
|             | own reads of the log | its wire is full: LAGGING                                  |
| LIVE        | is `feed.position`   | its wire is full: LAGGING                                  |
| LAGGING     | stands still         | its wire has drained: CATCHING_UP                          |
| ENDED       |                      | never; from everywhere, when unsubscribed, removed or closed|

Registration comes first, then, in statements begun after it, the check of membership and the read
of the log; so an event is either in what is read or offered to the feed afterwards, never lost
between the two.
"""

import asyncio
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, Protocol

import structlog

from hub.cursors import Place, place
from hub.errors import Code, Disconnected, HubError
from hub.events import INTEGER_MAX
from hub.frames import Frame, event_frames
from hub.ports import EventLog, Page
from hub.records import BudgetId, UserId

PAGE_EVENTS_MAX = 500
RETRY_S = 0.25  # between reads while the log is out of reach

_log = structlog.get_logger()


class State(Enum):
    CATCHING_UP = "catching up"
    LIVE = "live"
    LAGGING = "lagging"
    ENDED = "ended"


class Follower(Protocol):
    """Whoever gets a feed's frames: a socket, a stream, a waiting poll."""

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


class Subscription:
    __slots__ = ("cursor", "feed", "follower", "state", "user_id", "write")

    def __init__(self, feed: "Feed", user_id: UserId, cursor: int, follower: Follower) -> None:
        self.feed = feed
        self.user_id = user_id
        self.cursor = cursor
        self.follower = follower
        self.write = follower.write
        self.state = State.CATCHING_UP

    def lag(self) -> None:
        """Its wire is full: it costs nothing from here on but its cursor."""
        if self.state is State.LIVE:
            self.feed.live.discard(self)
            self.cursor = self.feed.position
            self.state = State.LAGGING

    def drained(self) -> None:
        """Its wire takes more: catch up from the log."""
        if self.state is State.LAGGING:
            self.state = State.CATCHING_UP
            self.feed.catch_up(self)

    def end(self) -> None:
        if self.state is not State.ENDED:
            self.state = State.ENDED
            self.feed.leave(self)


class Feed:
    """`spawn` runs a coroutine in the background; `gate` bounds the readers of the log."""

    def __init__(
        self,
        budget_id: BudgetId,
        log: EventLog,
        gate: asyncio.Semaphore,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        abandoned: Callable[["Feed"], None],
    ) -> None:
        self.budget_id = budget_id
        self.position = 0
        self.live: set[Subscription] = set()
        self._all: set[Subscription] = set()
        self.known = False  # whether `position` has been read yet
        self.listening = asyncio.Event()  # set once the bus carries this budget's frames to us
        self._missing_to = 0  # what is known to be in the log and was not delivered
        self._filling = False
        self._caught_up = asyncio.Event()
        self._log = log
        self._gate = gate
        self._spawn = spawn
        self._abandoned = abandoned

    def subscribe(self, user_id: UserId, key: int, follower: Follower) -> Subscription:
        """Register, then catch up in the background; `follower.joined` or `.refused` answers."""
        subscription = Subscription(self, user_id, key, follower)
        self._all.add(subscription)
        self._spawn(self._join(subscription))
        return subscription

    def leave(self, subscription: Subscription) -> None:
        self.live.discard(subscription)
        self._all.discard(subscription)
        if not self._all:
            self._abandoned(self)

    def offer(self, frame: Frame) -> None:
        """Deliver the frame if it is the next one."""
        if not self.known or self._filling:
            self._missing_to = max(self._missing_to, frame.to_sequence)
            return
        match place(self.position, frame.from_sequence, frame.to_sequence):
            case Place.DELIVER:
                self._deliver(frame)
            case Place.GAP:
                self.noticed(frame.to_sequence)
            case Place.SKIP:
                pass

    def noticed(self, head: int) -> None:
        """The log is at least this long: read what is missing."""
        self._missing_to = max(self._missing_to, head)
        if self.known and not self._filling and self._missing_to > self.position:
            self._filling = True
            self._spawn(self._fill())

    def catch_up(self, subscription: Subscription) -> None:
        self._spawn(self._catch_up(subscription))

    def _deliver(self, frame: Frame) -> None:
        self.position = frame.to_sequence
        data = frame.data
        for subscription in list(self.live):  # a wire that fills up takes itself out (`lag`)
            subscription.write(data)
        if frame.removes is not None:
            self._end([s for s in self._all if s.user_id == frame.removes], Code.NOT_PARTICIPANT)
        if frame.deletes:
            self._end(list(self.live), Code.BUDGET_DELETED)

    def _end(self, subscriptions: list[Subscription], code: Code) -> None:
        for subscription in subscriptions:
            if subscription.state is not State.ENDED:
                subscription.end()
                subscription.follower.ended(code)

    async def _fill(self) -> None:
        """The single reader: deliver from the log until nothing is known to be missing."""
        try:
            while self.position < self._missing_to and self._all:
                try:
                    async with self._gate:
                        page = await self._log.page(
                            self.budget_id, None, self.position, self._missing_to, PAGE_EVENTS_MAX
                        )
                except Disconnected:
                    await asyncio.sleep(RETRY_S)
                    continue
                if page is None or not page.events:
                    _log.error("the log is shorter than was said", budget_id=self.budget_id)
                    self._missing_to = self.position
                    break
                for frame in event_frames(self.budget_id, page.events):
                    self._deliver(frame)
        finally:
            self._filling = False
            self._caught_up.set()
            self._caught_up = asyncio.Event()

    async def _join(self, subscription: Subscription) -> None:
        await self.listening.wait()
        try:
            page = await self._read(subscription, self.position if self.known else INTEGER_MAX)
            if page is None:
                return
            if not self.known:
                self.known = True
                self.position = page.head
            self.noticed(page.head)
            if subscription.cursor > page.head:
                raise HubError(Code.CURSOR_AHEAD)
        except Disconnected:
            subscription.end()
            subscription.follower.refused(Code.UNAVAILABLE)
            return
        except HubError as error:
            subscription.end()
            subscription.follower.refused(error.code)
            return
        await self._reached(subscription)  # the client may be ahead of this node
        if subscription.state is State.ENDED:
            return
        subscription.follower.joined(subscription.cursor, page.head)
        self._give(subscription, page)
        if page.deleted and subscription.cursor == page.head:
            self._end([subscription], Code.BUDGET_DELETED)
        await self._catch_up(subscription)

    async def _catch_up(self, subscription: Subscription) -> None:
        while True:
            await self._reached(subscription)
            if subscription.state is not State.CATCHING_UP:
                return
            if subscription.cursor == self.position:
                subscription.state = State.LIVE
                self.live.add(subscription)
                return
            if subscription.follower.full:
                subscription.state = State.LAGGING
                return
            try:
                page = await self._read(subscription, self.position)
            except Disconnected:
                await asyncio.sleep(RETRY_S)
                continue
            except HubError as error:
                self._end([subscription], error.code)
                return
            if page is not None:
                self._give(subscription, page)

    async def _reached(self, subscription: Subscription) -> None:
        """Return when the feed is not behind the subscription (any more)."""
        while subscription.cursor > self.position and subscription.state is not State.ENDED:
            await self._caught_up.wait()

    async def _read(self, subscription: Subscription, up_to: int) -> Page | None:
        """The next page for this subscription, None if it ended meanwhile.

        Raises `HubError` where its user may not read (any more), `Disconnected`."""
        async with self._gate:
            page = await self._log.page(
                self.budget_id, subscription.user_id, subscription.cursor, up_to, PAGE_EVENTS_MAX
            )
        if subscription.state is State.ENDED:
            return None
        return permitted(page)

    def _give(self, subscription: Subscription, page: Page) -> None:
        for frame in event_frames(self.budget_id, page.events):
            subscription.follower.write(frame.data)
            subscription.cursor = frame.to_sequence
            if frame.deletes:
                self._end([subscription], Code.BUDGET_DELETED)
                return
            if subscription.follower.full:
                return  # the rest is read again when there is room for it


def permitted(page: Page | None) -> Page:
    """The page, if its reader takes part (or did when the budget was deleted). Raises `HubError`
    for the others (P9)."""
    if page is None or page.member is None:
        raise HubError(Code.BUDGET_NOT_EXISTS)
    if not page.member:
        raise HubError(Code.BUDGET_NOT_EXISTS if page.deleted else Code.NOT_PARTICIPANT)
    return page
