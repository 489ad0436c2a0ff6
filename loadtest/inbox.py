"""What a device holds of one budget, and how it notices that something is missing: pure.

| it gets                                             | and then                                   |
|-----------------------------------------------------|--------------------------------------------|
| the next event                                      | applies it and compares the digest         |
| an event it has                                     | skips it: a renewed subscription may       |
|                                                     | overlap with the one before                |
| an event with others missing before it              | subscribes again from its cursor           |
| an event that does not fit, or makes another digest | takes a snapshot                           |
| `subscribed` with another `logId`                   | takes a snapshot: another history          |
| `CURSOR_AHEAD`                                      | takes a snapshot                           |
| `heads` ahead of it twice in a row, nothing between | subscribes again from its cursor           |
| `unsubscribed` by the hub                           | keeps what it has, and asks no more        |
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from loadtest.replica import Diverged, Replica

BEHIND_MAX = 2  # heads in a row


class Step(Enum):
    """What the device has to do next about this budget."""

    NOTHING = "nothing"
    SUBSCRIBE = "subscribe"  # again, from the cursor
    SNAPSHOT = "snapshot"  # and then subscribe


class Inbox:
    """`replica` is the budget as the device knows it, `log_id` the history it belongs to. `trouble`
    says, in words, why the last step is not `NOTHING`."""

    __slots__ = (
        "_behind",
        "budget_id",
        "ended",
        "head",
        "live",
        "log_id",
        "renewed",
        "replica",
        "trouble",
    )

    def __init__(self, budget_id: str) -> None:
        self.budget_id = budget_id
        self.replica = Replica(budget_id)
        self.log_id: str | None = None
        self.head = 0  # the last one heard of
        self.live = False  # `subscribed` has come on this connection
        self.ended: str | None = None  # the hub's code, where it ended the subscription for good
        self.renewed = False  # by a snapshot, and not yet subscribed since
        self.trouble = ""
        self._behind = 0

    @property
    def cursor(self) -> int:
        """The last sequence it has; a subscription continues after it."""
        return self.replica.sequence

    def subscribed(self, head: int, log_id: str) -> Step:
        """The subscription began."""
        self._behind = 0
        self.live = True
        self.renewed = False
        if self.log_id is not None and log_id != self.log_id:
            return self._step(Step.SNAPSHOT, f"history {log_id} where {self.log_id} was known")
        self.log_id = log_id
        self.head = max(self.head, head)
        return Step.NOTHING

    def take(self, events: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], Step]:
        """Stream events came: those that were new here, applied, and what to do next.

        Raises `KeyError` or `TypeError` for events of another shape."""
        if not self.live:  # of a subscription that is being replaced: all of it comes again
            return (), Step.NOTHING
        self._behind = 0
        replica = self.replica
        fresh: list[Mapping[str, Any]] = []
        for event in events:
            sequence = event["sequence"]
            if sequence > replica.sequence + 1:
                missing = f"sequence {sequence} came after {replica.sequence}"
                return fresh, self._step(Step.SUBSCRIBE, missing)
            if sequence == replica.sequence + 1:
                try:
                    replica.apply(event)
                except Diverged as error:
                    return fresh, self._step(Step.SNAPSHOT, str(error))
                fresh.append(event)
        self.head = max(self.head, replica.sequence)
        return fresh, Step.NOTHING

    def heard(self, head: int) -> Step:
        """A heartbeat told the budget's head."""
        self.head = max(self.head, head)
        self._behind = self._behind + 1 if self.live and head > self.cursor else 0
        if self._behind < BEHIND_MAX:
            return Step.NOTHING
        self._behind = 0
        return self._step(
            Step.SUBSCRIBE, f"the head is {head}, and nothing came after {self.cursor}"
        )

    def snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Replace everything by `GET /budgets/:id`. Raises `Diverged`, `KeyError`."""
        self.replica = Replica.from_snapshot(snapshot)
        self.log_id = snapshot["logId"]
        self.head = self.replica.sequence
        self.renewed = True
        self.live = False
        self._behind = 0

    def disconnected(self) -> None:
        self.live = False
        self._behind = 0

    def _step(self, step: Step, trouble: str) -> Step:
        self.trouble = trouble
        self.live = False
        return step
