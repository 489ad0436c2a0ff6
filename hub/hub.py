"""The hub: the one door for events, the connections of this process, and its drain.

The way of an event: frame → `Session` → `Hub.submit`, which is the committer's → `rules.decide` →
the log → `Feeds.publish` → `Feed.offer` → every wire, and over the bus to the feeds of the other
nodes (hub/README.md).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, Protocol

import structlog

from hub.budget.records import UserId
from hub.budget.rules import QUOTAS
from hub.budget.state import Quotas
from hub.committer import Committer
from hub.errors import Code, HubError
from hub.feed.feeds import Feeds
from hub.limits import Places, Rates
from hub.measures import Measures
from hub.ports import Bus, EventLog, Principal, Tracer
from hub.reconnects import reconnect_spread_ms
from hub.timeouts import TIMEOUTS, Timeouts
from hub.tracing import Trail

_TOO_MANY = "too many connections of this user: close some"

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
    no tracing, `connections_per_user` 0 any number."""

    def __init__(
        self,
        log: EventLog,
        log_id: str,
        bus: Bus | None,
        *,
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
        rates: Rates,
        quotas: Quotas = QUOTAS,
        connections_per_user: int = 0,
        tracer: Tracer | None = None,
        timeouts: Timeouts = TIMEOUTS,
    ) -> None:
        self.rates = rates
        self.log_id = log_id
        self._jitter = jitter
        self._timeouts = timeouts
        self.connections: set[Connection] = set()
        self._places = Places(connections_per_user)
        self._ended = False  # every connection was told to leave
        self._tasks: set[asyncio.Task[None]] = set()
        self.measures = Measures()
        trail = Trail(tracer)
        self.feeds = Feeds(
            log,
            bus,
            spawn=self.spawn,
            now_ms=now_ms,
            measures=self.measures,
            trail=trail,
            timeouts=timeouts,
        )
        self._committer = Committer(
            log,
            self.feeds.publish,
            now_ms=now_ms,
            jitter=jitter,
            quotas=quotas,
            measures=self.measures,
            trail=trail,
            timeouts=timeouts,
        )
        self.submit = self._committer.submit  # the one door for events

    def attach(self, connection: Connection) -> None:
        """Register a connection for drain and sign-out. After a drain it has to leave at once, or
        the process would never end."""
        self.connections.add(connection)
        if self._ended:
            connection.leave()

    def admit(self, connection: Connection, user_id: UserId) -> None:
        """Count an attached connection as its user's. Raises `HubError(QUOTA_EXCEEDED)`."""
        if not self._places.take(connection, user_id):
            raise HubError(Code.QUOTA_EXCEEDED, _TOO_MANY)

    def room_for(self, user_id: UserId) -> None:
        """Raises `HubError(QUOTA_EXCEEDED)` if `admit` would."""
        if not self._places.left(user_id):
            raise HubError(Code.QUOTA_EXCEEDED, _TOO_MANY)

    def detach(self, connection: Connection) -> None:
        """Forget a connection that has ended; again is harmless."""
        self.connections.discard(connection)
        self._places.give_back(connection)

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
            async with asyncio.timeout(self._timeouts.drain_s):
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

    def census(self) -> Census:
        """What is here now."""
        return Census(
            Counter(type(connection).__name__ for connection in self.connections),
            len(self.feeds),
            live=sum(len(feed.live) for feed in self.feeds),
            lagging=sum(feed.lagging for feed in self.feeds),
            followers=sum(feed.followers for feed in self.feeds),
            waiting_events=self._committer.waiting_events,
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it in the background, until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
