"""`budget-hub` with a defect: `python -m tests.planted BUG serve`.

For the checkers to be checked: each bug is one that a hub of this kind could have, and that the
history checker has to find. The product itself knows nothing of this.
"""

import asyncio
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count

from api.cli.main import main
from hub.budget import rules
from hub.budget.events import Event
from hub.budget.records import BudgetId, Record, UserId
from hub.budget.state import BudgetState, Change, LogRow, Want
from hub.budget.verdicts import Verdict
from hub.committer import Committer, Submission, _Run
from hub.feed.feed import Feed
from hub.feed.sweeper import Sweeper
from hub.frames.events import Frame
from hub.ports import Page
from storage.postgres.core.event_log import PostgresLog, PostgresTransaction
from storage.redis.bus import RedisBus

SLOW_COMMIT_S = 0.5
BEGINNINGS = ("budget.create", "participant.add")  # a storm must be able to begin
EVERY = 20  # events, or frames, between two strokes of a bug


def none() -> None:
    """What is launched this way is the hub as it is."""


def no_dedup() -> None:
    """An event that was accepted before is decided afresh."""
    load = PostgresTransaction.load

    async def forgetful(self: PostgresTransaction, want: Want) -> dict[BudgetId, BudgetState]:
        states = await load(self, want)
        for state in states.values():
            state.known.clear()
        return states

    _plant(PostgresTransaction, "load", forgetful)


def _renumbered(change: int) -> None:
    accept = rules._accept

    def misnumber(
        state: BudgetState, actor: UserId, event: Event, effect: rules._Effect, sequence: int
    ) -> Change:
        return accept(state, actor, event, effect, sequence + change * (sequence % EVERY == 0))

    _plant(rules, "_accept", misnumber)


def sequence_skipped() -> None:
    _renumbered(+1)


def sequence_reused() -> None:
    """Needs a database without the index that forbids it."""
    _renumbered(-1)


def ack_before_commit() -> None:
    """Verdicts leave as soon as they are decided; the commit takes its time."""
    decide, write = Committer._decide, PostgresTransaction.write

    def hasty(
        self: Committer,
        runs: Sequence[_Run],
        states: Mapping[BudgetId, BudgetState],
        ours: Collection[tuple[BudgetId, str]],
    ) -> tuple[list[tuple[Submission, Verdict]], Collection[LogRow]]:
        decided, found = decide(self, runs, states, ours)
        if any(verdict.event_type in BEGINNINGS for _, verdict in decided):
            return decided, found
        for submission, verdict in decided:
            submission.settle(verdict)
        return [], found

    async def slow(self: PostgresTransaction, states: Sequence[BudgetState]) -> None:
        if all(state.changes[0].row.event_type not in BEGINNINGS for state in states):
            await asyncio.sleep(SLOW_COMMIT_S)
        await write(self, states)

    _plant(Committer, "_decide", hasty)
    _plant(PostgresTransaction, "write", slow)


def catch_up_off_by_one() -> None:
    """Whoever resumes after an event is given what follows the next one."""
    page = PostgresLog.page

    async def late(
        self: PostgresLog,
        budget_id: BudgetId,
        user_id: UserId | None,
        after: int,
        up_to: int,
        limit: int,
    ) -> Page | None:
        return await page(self, budget_id, user_id, after + (after > 0), up_to, limit)

    _plant(PostgresLog, "page", late)


def no_publish_no_sweep() -> None:
    """Other nodes hear of an event only when they commit to the budget themselves."""

    def publish(self: RedisBus, frames: Sequence[Frame]) -> None:
        pass

    def notice(self: Sweeper, heads: Mapping[BudgetId, int]) -> None:
        pass

    _plant(RedisBus, "publish", publish)
    _plant(Sweeper, "_notice", notice)


def gap_fill_dropped() -> None:
    """Every fifth frame does not reach the other nodes, and what is missing before the next one is
    not read from the log."""
    publish, offer = RedisBus.publish, Feed.offer
    published = count(1)

    def lossy(self: RedisBus, frames: Sequence[Frame]) -> None:
        publish(self, [frame for frame in frames if next(published) % 5])

    def careless(self: Feed, frame: Frame, source: str) -> None:
        if self.track.known:
            self.track.position = max(self.track.position, frame.from_sequence - 1)
        offer(self, frame, source)

    _plant(RedisBus, "publish", lossy)
    _plant(Feed, "offer", careless)


def removed_and_still_served() -> None:
    """Who is removed stays subscribed to what he follows live."""
    deliver = Feed._deliver

    def generous(self: Feed, frame: Frame) -> None:
        deliver(self, frame._replace(removes=None))

    _plant(Feed, "_deliver", generous)


def delivered_twice() -> None:
    deliver = Feed._deliver

    def doubled(self: Feed, frame: Frame) -> None:
        deliver(self, frame)
        # However many events a frame has: one in so many is among them.
        if (frame.from_sequence - 1) // EVERY < frame.to_sequence // EVERY:
            for write in self.live.values():
                write(frame.data)

    _plant(Feed, "_deliver", doubled)


def stale_edit_wins() -> None:
    def never(record: Record, event: Event) -> bool:
        return False

    _plant(rules, "_stale", never)


def change_not_stored() -> None:
    """Every tenth edit leaves its expense what it was, though the log says that it changed."""
    write = PostgresTransaction.write
    edits = count(1)

    async def lossy(self: PostgresTransaction, states: Sequence[BudgetState]) -> None:
        for state in states:
            state.changes = [
                change._replace(record=None)
                if change.row.event_type == "expense.edit" and next(edits) % 10 == 0
                else change
                for change in state.changes
            ]
        await write(self, states)

    _plant(PostgresTransaction, "write", lossy)


BUGS: Mapping[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        none,
        no_dedup,
        sequence_skipped,
        sequence_reused,
        ack_before_commit,
        catch_up_off_by_one,
        no_publish_no_sweep,
        gap_fill_dropped,
        removed_and_still_served,
        delivered_twice,
        stale_edit_wins,
        change_not_stored,
    )
}


def _plant(where: object, name: str, bug: object) -> None:
    assert hasattr(where, name), f"{where} has no {name} any more"
    setattr(where, name, bug)


if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
