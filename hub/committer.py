"""The committer: the one way an event gets into the log.

Submissions wait in a bounded queue for each user (`hub.waiting`). A *lane* takes what is waiting,
user by user, as much as fits one batch, and carries it through one transaction: lock, load, decide,
write, commit (design 4). What arrives meanwhile is the next batch; there is no timer. Several lanes
work at once on different budgets; a budget is in one lane at a time, so that what a user submits to
one budget stays in order.

    submit ──> waiting ──> lane: lock · load · decide · write · commit ──> publish, verdicts
                             │  a budget locked by another node
                             └─> apart: its own transaction, which waits for the lock (or BUSY)

What can go wrong with a transaction, and what follows:

| what                    | what follows                                                           |
|-------------------------|------------------------------------------------------------------------|
| `LostRace`              | rolled back; decided afresh at once, after a short random pause if it  |
|                         | happens again                                                          |
| `BadData`               | the batch is halved until the one bad event is alone: it is rejected   |
| `Disconnected`          | retried with backoff until `settle_s` have passed, then `UNAVAILABLE`; |
|                         | so is what a full disk turns down: no event is to blame for it         |
| … in COMMIT             | the same: an event found in the log by the retry is our own (P4)       |
| `Held`                  | every budget apart, in a transaction of its own; held there, or no     |
|                         | turn within `turn_s`: `BUSY`                                           |
| `StatementFailed`, and  | a defect: no verdict; a request is answered 500, a connection closed   |
| any other exception     | 1011, and the events are sent again (P4)                               |

A verdict is given only after the commit that made it true (P1). Nobody can cancel a lane: a closing
socket only loses the answer.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import structlog

from hub.budget.events import Invalid, Submitted
from hub.budget.records import BudgetId, UserId
from hub.budget.rules import QUOTAS, decide, rejected
from hub.budget.state import ANY_NUMBER, BudgetState, Change, LogRow, Quotas, Want
from hub.budget.verdicts import Verdict
from hub.errors import BadData, Code, Disconnected, Held, LostRace
from hub.gate import Gate
from hub.measures import Measures
from hub.ports import EventLog
from hub.timeouts import TIMEOUTS, Timeouts
from hub.tracing import (
    NO_ORIGINS,
    NOWHERE,
    Correlation,
    Origin,
    Origins,
    Trail,
    correlation_ids,
)
from hub.turns import Crowded
from hub.waiting import Waiting

Mode: TypeAlias = Literal["stop", "each"]

LANES = 2
APART_MAX = 4  # transactions at a time that wait for another node's lock
BATCH_EVENTS_MAX = 1_000
APART_PER_USER = 2
WAITING_EVENTS_MAX = 20_000  # queued and set apart
WAITING_PER_USER = 10_000  # half of it: nobody fills the queue alone
# Of a user, also beyond that, up to twice as many of everybody: some accounts together may fill
# the queue, and a device with a handful of events is not to be refused for them.
WAITING_FEW = 200
RACES_MAX = 50
BACKOFF_S = (0.05, 1.0)  # first and longest pause

_log = structlog.get_logger()


class Answer(Protocol):
    """Takes the verdicts, once, or the defect of ours that prevented them: a future, or what does
    not want to wait for the next turn of the loop."""

    def done(self) -> bool: ...
    def set_result(self, verdicts: list[Verdict], /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


class Submission:
    """Events of one user, in order, and the verdicts they have so far."""

    __slots__ = (
        "actor",
        "answer",
        "budgets",
        "events",
        "halted",
        "measures",
        "mode",
        "origin",
        "verdicts",
    )

    def __init__(
        self,
        actor: UserId,
        events: Sequence[Submitted],
        mode: Mode,
        answer: Answer,
        measures: Measures,
        origin: Origin,
    ) -> None:
        self.actor = actor
        self.events = events
        self.mode = mode
        self.answer = answer
        self.measures = measures
        self.origin = origin
        self.budgets = _budgets(events)
        self.verdicts: list[Verdict] = []
        self.halted = False  # mode `stop` met an event that was not accepted

    def settle(self, verdict: Verdict) -> None:
        """Add the verdict of the next event; answer when it was the last."""
        self.verdicts.append(verdict)
        self.measures.settled(verdict)
        if verdict.status != "accepted":
            if self.mode == "stop":
                self.halted = True
            if self.origin.correlation is not None:
                self._tell(verdict)
        if self.halted or len(self.verdicts) == len(self.events):
            if not self.answer.done():
                self.answer.set_result(self.verdicts)
            self.origin.span.end()

    def _tell(self, verdict: Verdict) -> None:
        """Log at debug under the client's correlation id: a rejected event is not our failure."""
        _log.debug(
            "event not accepted",
            correlation_ids=correlation_ids([self.origin]),
            budget_id=verdict.budget_id,
            event_id=verdict.event_id,
            status=verdict.status,
            code=None if verdict.error is None else verdict.error.name,
        )


class _Run(NamedTuple):
    """A stretch of a submission: all of it, unless a batch was split."""

    submission: Submission
    start: int
    stop: int

    def budgets(self) -> set[BudgetId]:
        if self.stop - self.start == len(self.submission.events):
            return self.submission.budgets
        return _budgets(self.submission.events[self.start : self.stop])

    def keys(self) -> set[object]:
        """What orders it: its budgets, and the submission itself."""
        return {*self.budgets(), self.submission}


class _Batch(NamedTuple):
    """Runs that go through one transaction after another until each event has its verdict. With
    `wait` they wait for budgets that another node holds, else they are left out. `ours` are events
    that an earlier attempt may have committed. A lost connection is retried until `until_s` on the
    loop's clock."""

    runs: list[_Run]
    wait: bool
    ours: set[tuple[BudgetId, str]]
    until_s: float


class Committer:
    """`publish` is called after each commit, for each budget, with its new rows in order and the
    time they were written (epoch milliseconds; None: by an earlier attempt, nobody knows when), and
    where they came from."""

    def __init__(
        self,
        log: EventLog,
        publish: Callable[[BudgetId, Sequence[LogRow], int | None, Origins], None],
        *,
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
        lanes: int = LANES,
        quotas: Quotas = QUOTAS,
        measures: Measures | None = None,
        trail: Trail | None = None,
        timeouts: Timeouts = TIMEOUTS,
    ) -> None:
        self._log = log
        self._publish = publish
        self._trail = trail or Trail()
        self._timeouts = timeouts
        self._now_ms = now_ms
        self._quotas = quotas
        self._jitter = jitter  # a random number from 0 to 1
        self._measures = measures or Measures()
        self._lanes_free = lanes
        self._apart = Gate(APART_MAX, APART_PER_USER)
        self._waiting: Waiting[Submission] = Waiting()
        self._waiting_events = 0
        self._waiting_of: dict[UserId, int] = {}
        self._busy: set[BudgetId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[asyncio.Task[None], BaseException] = {}  # defects that somebody logs
        self._pump_due = False

    @property
    def waiting_events(self) -> int:
        """Queued and set apart: what `WAITING_EVENTS_MAX` bounds."""
        return self._waiting_events

    def submit(
        self,
        actor: UserId,
        events: Sequence[Submitted],
        mode: Mode,
        answer: Answer,
        correlation: Correlation | None = None,
    ) -> None:
        """Queue the events, to be decided and committed in order. `answer` takes their verdicts: in
        `stop` mode up to and with the first that is not accepted; at once where there is no room.

        All answers of a commit are given in one turn of the loop, so that those of one socket can
        leave in one write. Nobody who stops to wait for an answer cancels the commit."""
        origin = self._trail.submit(len(events), correlation)
        submission = Submission(actor, events, mode, answer, self._measures, origin)
        if not self._room(actor, len(events)):
            _refuse([_Run(submission, 0, len(events))], Code.BUSY)
            return
        self._waiting.add(submission)
        self._count(actor, len(events))
        if self._lanes_free and not self._pump_due:
            self._pump_due = True  # after the other frames that this turn of the loop has read
            asyncio.get_running_loop().call_soon(self._pump)

    async def drain(self) -> None:
        """Return when everything submitted has its verdict."""
        while self._tasks or self._waiting:
            if self._tasks:
                await asyncio.wait(self._tasks)
            await asyncio.sleep(0)

    def _room(self, actor: UserId, events: int) -> bool:
        """Whether the user may have so many more waiting: few also where others fill the queue."""
        theirs = self._waiting_of.get(actor, 0) + events
        everybodys = self._waiting_events + events
        if everybodys > WAITING_EVENTS_MAX:
            return theirs <= WAITING_FEW and everybodys <= 2 * WAITING_EVENTS_MAX
        return theirs <= WAITING_PER_USER

    def _count(self, actor: UserId, events: int) -> None:
        """So many more of the user's events wait, or fewer."""
        self._waiting_events += events
        if of_user := self._waiting_of.get(actor, 0) + events:
            self._waiting_of[actor] = of_user
        else:
            self._waiting_of.pop(actor, None)

    def _pump(self) -> None:
        """Start lanes on what waits and is free."""
        self._pump_due = False
        while self._lanes_free and (batch := self._next_batch()):
            self._lanes_free -= 1
            self._start(self._lane(batch))

    def _next_batch(self) -> list[Submission]:
        batch = self._waiting.take(self._busy, BATCH_EVENTS_MAX)
        for submission in batch:
            self._count(submission.actor, -len(submission.events))
            self._busy |= submission.budgets
        return batch

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        told = self._told.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not told:
            _log.error("commit failed", exc_info=error)

    async def _lane(self, submissions: list[Submission]) -> None:
        runs = [_Run(submission, 0, len(submission.events)) for submission in submissions]
        batch = _Batch(runs, False, set(), self._settling())
        held: list[_Run] = []
        try:
            with self._trail.batch([each.origin for each in submissions], _events(runs)):
                held = await self._settle(batch)
        except BaseException as error:
            self._measures.commit_failures["defect"] += 1
            self._fail(runs, error)
            raise
        finally:
            held_budgets = {budget for run in held for budget in run.budgets()}
            for submission in submissions:
                self._busy -= submission.budgets
            self._busy |= held_budgets
            for group in _groups(held):
                self._count_apart(group, 1)
                self._start(self._lane_apart(group, batch.ours))
            self._lanes_free += 1
            self._pump()

    def _count_apart(self, runs: Sequence[_Run], times: int) -> None:
        for submission, start, stop in runs:
            self._count(submission.actor, times * (stop - start))

    async def _lane_apart(self, runs: list[_Run], ours: set[tuple[BudgetId, str]]) -> None:
        """Commit runs whose budgets another node held: wait for its lock, and hold up nobody."""
        actor = runs[0].submission.actor
        try:
            await self._apart.enter(actor, self._timeouts.turn_s)
            try:
                await self._settle(_Batch(runs, True, ours, self._settling()))
            finally:
                self._apart.leave(actor)
        except (Crowded, TimeoutError):
            _refuse(runs, Code.BUSY)
        except BaseException as error:
            self._measures.commit_failures["defect"] += 1
            self._fail(runs, error)
            raise
        finally:
            self._count_apart(runs, -1)
            for run in runs:
                self._busy -= run.budgets()
            self._pump()

    def _settling(self) -> float:
        """Until when a transaction that begins now is retried, on the loop's clock."""
        return asyncio.get_running_loop().time() + self._timeouts.settle_s

    def _fail(self, runs: Sequence[_Run], error: BaseException) -> None:
        """A defect of ours: nobody waits for ever (P4), the connections end. Whoever submitted
        logs it, each for himself; the lane does only if none of them is there any more."""
        lane = asyncio.current_task()
        for run in runs:
            submission = run.submission
            if not submission.answer.done():
                submission.answer.set_exception(error)
                if lane is not None:
                    self._told[lane] = error
            submission.origin.span.end(type(error).__name__)

    async def _settle(self, batch: _Batch) -> list[_Run]:
        """Bring every event of the batch to its verdict, whatever it takes; return the runs that
        were left out because another node holds their budgets."""
        runs = batch.runs
        failures = self._measures.commit_failures
        races = 0
        pause_s, pause_max_s = BACKOFF_S
        while True:
            try:
                return await self._attempt(batch)
            except LostRace as race:
                failures["race"] += 1
                races += 1
                if races == RACES_MAX:
                    called = _called(runs)
                    _log.error("commit keeps losing races", error=str(race), correlation_ids=called)
                    _refuse(runs, Code.BUSY)
                    return []
                await asyncio.sleep(0.01 * self._jitter() if races > 1 else 0)
            except Held:
                failures["held"] += 1
                if not batch.wait:  # another node is just creating one of the budgets
                    return runs
                _refuse(runs, Code.BUSY)
                return []
            except BadData as bad:
                failures["bad data"] += 1
                return await self._split(batch, bad)
            except Disconnected as lost:
                failures["disconnected"] += 1
                if asyncio.get_running_loop().time() >= batch.until_s:
                    _log.warning("commit given up", error=str(lost), correlation_ids=_called(runs))
                    _refuse(runs, Code.UNAVAILABLE)
                    return []
                await asyncio.sleep(pause_s * (0.5 + self._jitter()))
                pause_s = min(2 * pause_s, pause_max_s)

    async def _split(self, batch: _Batch, bad: BadData) -> list[_Run]:
        """Something among the events cannot be stored: try the halves, the second after the
        first."""
        halves = _halves(batch.runs)
        if halves is None:
            called = _called(batch.runs)
            _log.error("an event cannot be stored", error=str(bad), correlation_ids=called)
            _refuse(batch.runs, Code.INTERNAL_SERVER_ERROR)
            return []
        held: list[_Run] = []
        for half in halves:
            free, behind = _apart(half, set(), after=held)
            if free:
                held += await self._settle(batch._replace(runs=free))
            held += behind  # last: it may come after what was just found held
        return held

    async def _attempt(self, batch: _Batch) -> list[_Run]:
        """One transaction. Rows are published and verdicts given only after it has committed."""
        runs, held = batch.runs, list[_Run]()
        states: dict[BudgetId, BudgetState] = {}
        written_at_ms: int | None = None
        want = self._wanted(runs)
        if not want.budgets:
            decided, found = self._decide(runs, states, batch.ours)
        else:
            begun_s = asyncio.get_running_loop().time()
            with self._trail.commit(run.submission.origin for run in runs):
                async with self._log.transaction() as transaction:
                    away = await transaction.lock(want.budgets, wait=batch.wait)
                    free, held = _apart(runs, away)
                    if held:
                        if not free:
                            return held
                        want = self._wanted(free)
                    states = await transaction.load(want)
                    decided, found = self._decide(free, states, batch.ours)
                    changed = [state for state in states.values() if state.changes]
                    if changed:
                        written_at_ms = self._now_ms()
                        await transaction.write(changed)
                        # From here on, and until we know better, the commit may have happened.
                        batch.ours.update(
                            [
                                (change.row.budget_id, change.row.event_id)
                                for state in changed
                                for change in state.changes
                            ]
                        )
        if written_at_ms is not None:
            self._measures.commit_s.observe(asyncio.get_running_loop().time() - begun_s)
            self._measures.batch_events.observe(len(decided))
        origins = _origins(decided)
        for row in found:
            self._publish(row.budget_id, [row], None, origins.get(row.budget_id, NO_ORIGINS))
        for budget_id, state in states.items():
            if state.changes:
                rows = [change.row for change in state.changes]
                self._publish(budget_id, rows, written_at_ms, origins.get(budget_id, NO_ORIGINS))
        for submission, verdict in decided:
            submission.settle(verdict)
        return held

    def _wanted(self, runs: Sequence[_Run]) -> Want:
        want = Want()
        for submission, start, stop in runs:
            for event in submission.events[start:stop]:
                if type(event) is not Invalid:
                    want.add(submission.actor, event)
        if self._quotas.budgets == ANY_NUMBER:
            want.comers.clear()  # nobody counts theirs
        return want

    def _decide(
        self,
        runs: Sequence[_Run],
        states: Mapping[BudgetId, BudgetState],
        ours: Collection[tuple[BudgetId, str]],
    ) -> tuple[list[tuple[Submission, Verdict]], Collection[LogRow]]:
        """Verdicts of all runs, each decision seen by the next; and those rows of our own earlier
        attempt that turn out to be committed."""
        now_ms = self._now_ms()
        decided: list[tuple[Submission, Verdict]] = []
        found: dict[tuple[BudgetId, str], LogRow] = {}
        nothing = BudgetState()
        stopped: set[Submission] = set()
        for submission, start, stop in runs:
            if submission.halted or submission in stopped:
                continue
            for event in submission.events[start:stop]:
                state = nothing if type(event) is Invalid else states[event.budget_id]
                outcome = decide(state, submission.actor, event, now_ms, self._quotas)
                if isinstance(outcome, Change):
                    state.apply(outcome)
                    verdict = outcome.verdict()
                else:
                    verdict = outcome
                    if verdict.duplicate:
                        row = state.known[verdict.event_id]
                        key = row.budget_id, row.event_id
                        if key in ours and key not in found:
                            found[key] = row
                            verdict = row.verdict()
                decided.append((submission, verdict))
                if submission.mode == "stop" and not verdict.accepted:
                    stopped.add(submission)
                    break
        return decided, found.values()


def _origins(decided: Sequence[tuple[Submission, Verdict]]) -> dict[BudgetId, dict[int, Origin]]:
    """Of the events that are new in the log, by budget and sequence."""
    origins: dict[BudgetId, dict[int, Origin]] = {}
    for submission, verdict in decided:
        if submission.origin is NOWHERE or verdict.duplicate:
            continue
        if verdict.budget_id is not None and verdict.sequence is not None:
            origins.setdefault(verdict.budget_id, {})[verdict.sequence] = submission.origin
    return origins


def _called(runs: Sequence[_Run]) -> tuple[str, ...]:
    return correlation_ids(run.submission.origin for run in runs)


def _budgets(events: Sequence[Submitted]) -> set[BudgetId]:
    return {event.budget_id for event in events if type(event) is not Invalid}


def _events(runs: Sequence[_Run]) -> int:
    return sum(run.stop - run.start for run in runs)


def _refuse(runs: Sequence[_Run], code: Code) -> None:
    """Every event without a verdict gets this one."""
    for submission, start, stop in runs:
        for event in submission.events[start:stop]:
            if submission.halted:
                break
            submission.settle(rejected(event, code))


def _apart(
    runs: Sequence[_Run], budgets: set[BudgetId], after: Sequence[_Run] = ()
) -> tuple[list[_Run], list[_Run]]:
    """The runs that may go on, and those that touch one of the budgets, or that come `after` a run
    which was set apart: order is kept within a budget and within a submission."""
    blocked: set[object] = set(budgets)
    for run in after:
        blocked |= run.keys()
    if not blocked:
        return list(runs), []
    free: list[_Run] = []
    apart: list[_Run] = []
    for run in runs:
        keys = run.keys()
        if blocked.isdisjoint(keys):
            free.append(run)
        else:
            blocked |= keys
            apart.append(run)
    return free, apart


def _groups(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Runs that share a budget together, so that one held budget does not hold up another."""
    groups: list[tuple[set[object], list[_Run]]] = []
    for run in runs:
        keys, members, apart = run.keys(), [run], []
        for group in groups:
            if group[0].isdisjoint(keys):
                apart.append(group)
            else:
                keys |= group[0]
                members = group[1] + members
        groups = [*apart, (keys, members)]
    return [members for _, members in groups]


def _halves(runs: list[_Run]) -> tuple[list[_Run], list[_Run]] | None:
    """Two parts with all the events in their order; None where there is but one event."""
    if len(runs) > 1:
        middle = len(runs) // 2
        return runs[:middle], runs[middle:]
    (submission, start, stop) = runs[0]
    if stop - start == 1:
        return None
    middle = (start + stop) // 2
    return [_Run(submission, start, middle)], [_Run(submission, middle, stop)]
