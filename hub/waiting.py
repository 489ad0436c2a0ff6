"""What waits for a lane of the committer, in a queue for each user.

A batch is filled in rounds: the next submission of each user, then again of each. So whoever comes
waits for one submission of each other user, however many more these have waiting. What a user
submits to one budget stays in order; between users there is none before there are verdicts.

A submission whose budget is busy is passed over, and with it what comes later for any of its
budgets. Only so many of a user are looked through for what is free: a flood at one busy budget must
not cost every batch the time to look through the whole flood.
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Generic, Protocol, TypeVar

from hub.budget.records import BudgetId, UserId

PASSED_MAX = 1_000  # of one user, for one batch


class Queued(Protocol):
    """A submission, as far as its order is concerned."""

    @property
    def actor(self) -> UserId: ...
    @property
    def budgets(self) -> set[BudgetId]: ...
    @property
    def events(self) -> Sequence[object]: ...


S = TypeVar("S", bound=Queued)


class _Queue(Generic[S]):
    """Of one user. `passed` were passed over for the batch that is being filled; `batch` is the
    number of the last one that has something of it."""

    __slots__ = ("actor", "batch", "passed", "waiting")

    def __init__(self, actor: UserId) -> None:
        self.actor = actor
        self.batch = 0
        self.waiting: deque[S] = deque()
        self.passed: list[S] = []

    def next(self, blocked: set[BudgetId]) -> S | None:
        """The next one that is free."""
        waiting, passed = self.waiting, self.passed
        while waiting and len(passed) < PASSED_MAX:
            submission = waiting.popleft()
            if blocked.isdisjoint(submission.budgets):
                return submission
            blocked |= submission.budgets
            passed.append(submission)
        return None

    def restore(self) -> None:
        self.waiting.extendleft(reversed(self.passed))
        self.passed.clear()


class Waiting(Generic[S]):
    def __init__(self) -> None:
        self._queues: dict[UserId, _Queue[S]] = {}
        self._turns: deque[_Queue[S]] = deque()  # whose last turn is longest ago comes first
        self._batches = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, submission: S) -> None:
        actor = submission.actor
        queue = self._queues.get(actor)
        if queue is None:
            queue = self._queues[actor] = _Queue(actor)
            self._turns.append(queue)
        queue.waiting.append(submission)

    def take(self, busy: Collection[BudgetId], events_max: int) -> list[S]:
        """The next batch, of what touches no busy budget. Its last submission may exceed
        `events_max`."""
        batch: list[S] = []
        events, blocked, turns = 0, set(busy), self._turns
        stuck: list[_Queue[S]] = []  # nothing more of it is free
        passing: dict[_Queue[S], None] = {}
        self._batches += 1
        while turns and events < events_max:
            queue = turns.popleft()
            submission = queue.next(blocked)
            if submission is None:
                passing[queue] = None
                stuck.append(queue)
                continue
            if queue.passed:
                passing[queue] = None
            batch.append(submission)
            events += len(submission.events)
            queue.batch = self._batches
            if queue.waiting:
                turns.append(queue)
            elif queue.passed:
                stuck.append(queue)
            else:
                del self._queues[queue.actor]
        for queue in passing:
            queue.restore()
        # Who had no turn in this batch is the first of the next: else whoever keeps a budget busy
        # whenever its turn comes could keep it waiting for ever.
        turns.extend(queue for queue in stuck if queue.batch == self._batches)
        turns.extendleft(queue for queue in reversed(stuck) if queue.batch != self._batches)
        return batch
