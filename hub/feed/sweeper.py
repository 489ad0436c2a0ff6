"""The sweeper: finds feeds that are behind the log, whatever the reason, and has them filled.

One mechanism for every way a frame can fail to come: the bus lost it, its publisher was killed
between commit and publish, the bus is away, this node has gone deaf (P7 allows 2 s).

Every second, while the feeds are few, all of them are compared with their heads. Are they more than
`COMPARED_ALL_MAX`, it asks instead for what was accepted in the last seconds: the cost follows what
changed, not what is subscribed. `LOOKBACK_S` covers the time between the writing of a log row,
which dates it, and its commit, which makes it visible: a hub that is frozen in between is cut off
after three seconds. For what took still longer, a share of all feeds is compared each time, in
turn; all of them are when the bus comes back.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog

from hub.budget.records import BudgetId
from hub.errors import Disconnected, Held, StatementFailed
from hub.feed.feed import Feed
from hub.measures import Measures
from hub.ports import EventLog

LOOKBACK_S = 5.0
COMPARED_MAX = 1_000  # feeds in one statement
COMPARED_ALL_MAX = 5_000  # comparing as many costs less than reading a busy second of the log

_log = structlog.get_logger()


class Sweeper:
    """`feeds` are those of this process, now and later."""

    def __init__(
        self,
        log: EventLog,
        feeds: Mapping[BudgetId, Feed],
        measures: Measures,
    ) -> None:
        self._log = log
        self._feeds = feeds
        self._measures = measures
        self._round: list[BudgetId] = []  # feeds to be compared before it is all feeds' turn again

    async def run_once(self) -> None:
        """All feeds in turn, and those with recent events."""
        if len(self._feeds) <= COMPARED_ALL_MAX:
            await self.sweep()
            return
        with self._counted():
            self._notice(await self._log.recent(LOOKBACK_S))
            await self._compare(self._turn())

    async def sweep(self) -> None:
        """Compare all feeds with their heads."""
        feeds = list(self._feeds)
        with self._counted():
            for start in range(0, len(feeds), COMPARED_MAX):
                await self._compare(feeds[start : start + COMPARED_MAX])

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """One sweep, and what came of it; where the log cannot be read nothing does."""
        before = self._measures.swept_behind
        outcome = "failed"
        try:
            yield
            outcome = "clean" if self._measures.swept_behind == before else "found"
        except (Disconnected, Held, StatementFailed) as lost:
            _log.debug("no sweep: the log cannot be read", error=str(lost))
        finally:
            self._measures.sweeps[outcome] += 1

    def _turn(self) -> Sequence[BudgetId]:
        if not self._round:
            self._round = list(self._feeds)
        turn, self._round = self._round[:COMPARED_MAX], self._round[COMPARED_MAX:]
        return turn

    async def _compare(self, budget_ids: Sequence[BudgetId]) -> None:
        feeds = [self._feeds[id] for id in budget_ids if id in self._feeds]
        positions = {feed.budget_id: feed.position for feed in feeds if feed.track.known}
        if positions:
            self._notice(await self._log.behind(positions))

    def _notice(self, heads: Mapping[BudgetId, int]) -> None:
        for budget_id, head in heads.items():
            feed = self._feeds.get(budget_id)
            if feed is not None:
                if feed.track.known and head > feed.position:
                    self._measures.swept_behind += 1
                feed.noticed(head)
