"""State: what decisions about one budget depend on, and what they change.

`Want` names what the events need, the storage loads it, `rules.decide` reads it, `apply` puts an
accepted event into it, and the storage writes its `changes`.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from hub.budget.events import Decidable, Event, Joining
from hub.budget.kinds import BUDGET, Kind
from hub.budget.records import (
    Budget,
    BudgetId,
    Invite,
    Membership,
    Record,
    RecordKey,
    UserId,
)
from hub.budget.verdicts import Verdict


class LogRow(NamedTuple):
    """One accepted event as the log keeps it: everything needed to replay it exactly.

    `event` is the stream event and `record` the verdict's record, both JSON text as first sent.
    """

    budget_id: BudgetId
    sequence: int
    event_id: str
    event_type: str
    record_id: str
    actor_id: UserId
    content_hash: bytes
    content_fields: int
    version: int | None
    event: bytes
    record: bytes | None

    def verdict(self, *, duplicate: bool = False) -> Verdict:
        return Verdict(
            self.event_id,
            self.event_type,
            self.budget_id,
            self.record_id,
            "accepted",
            sequence=self.sequence,
            version=self.version,
            record=self.record,
            duplicate=duplicate,
        )


class Change(NamedTuple):
    """An accepted event and what it does. `BudgetState.apply` puts it into the state, the storage
    into the tables."""

    row: LogRow
    budget: Budget  # with the new head and digest
    record: Record | None = None  # None where only the budget's own row changes
    member: Membership | None = None
    cascade: bool = False  # the live records that refer to `record` become tombstones
    invite: Invite | None = None  # with this use of it
    passes_on: bool = False  # the budget has another owner

    def verdict(self) -> Verdict:
        return self.row.verdict()


ANY_NUMBER = sys.maxsize


class Quotas(NamedTuple):
    """How much may be stored, up to `ANY_NUMBER`. `budgets` is how many a user may take part in,
    `records` and `log_bytes` are of one budget."""

    budgets: int = 200
    records: int = 200_000
    log_bytes: int = 500 * 1024 * 1024


# Deleted budgets and those somebody has left stay in the database. So that nobody fills it with
# them, the budgets a user ever took part in are so many times as many at most.
EVER_TIMES = 10


class Taken(NamedTuple):
    """In how many budgets a user takes part, and in how many they ever did."""

    now: int = 0
    ever: int = 0


class Want:
    """Everything a batch of events names, so that it is loaded in a few set-based statements."""

    __slots__ = (
        "budgets",
        "comers",
        "deletions",
        "doors",
        "events",
        "invites",
        "members",
        "records",
        "touched",
    )

    def __init__(self) -> None:
        self.budgets: set[BudgetId] = set()
        self.events: set[tuple[BudgetId, str]] = set()
        self.members: set[tuple[BudgetId, UserId]] = set()
        # Where membership may change: who takes part, in what order they came, and link sharing.
        self.doors: set[BudgetId] = set()
        self.invites: set[tuple[BudgetId, bytes]] = set()
        # Who would take part in one budget more.
        self.comers: set[UserId] = set()
        # By kind; the budget's own record comes with the budget.
        self.records: defaultdict[str, set[tuple[BudgetId, str]]] = defaultdict(set)
        # Events that would take other records along, and who sent them.
        self.deletions: list[tuple[UserId, Event]] = []
        # How often the batch makes or edits each record of these kinds.
        self.touched: Counter[tuple[BudgetId, str]] = Counter()

    def add(self, actor: UserId, event: Decidable) -> None:
        """What the rules read to decide `event` of `actor`."""
        budget_id, record_id = event.budget_id, event.record_id
        self.budgets.add(budget_id)
        self.events.add((budget_id, event.event_id))
        self.members.add((budget_id, actor))
        if isinstance(event, Event):
            kind = event.kind
            if kind is BUDGET:
                if event.verb == "create":
                    self.comers.add(actor)
                return
            self.records[kind.name].add((budget_id, record_id))
            for name, other in kind.references:
                if (other_id := event.named.get(name)) is not None:
                    self.records[other.name].add((budget_id, other_id))
            if kind.takes is not None:
                if event.verb == "delete":
                    self.deletions.append((actor, event))
                else:
                    self.touched[budget_id, record_id] += 1
            return
        self.members.add((budget_id, record_id))
        self.doors.add(budget_id)
        if isinstance(event, Joining):
            self.comers.add(record_id)
            if event.invite is not None:
                self.invites.add((budget_id, event.invite))


class BudgetState:
    """As loaded under the budget's lock, then as changed by the events before. Holds only what the
    batch names, not the whole budget."""

    __slots__ = (
        "budget",
        "changes",
        "invites",
        "known",
        "link_sharing",
        "members",
        "participants",
        "records",
        "sums",
        "taken",
    )

    def __init__(self, taken: dict[UserId, Taken] | None = None) -> None:
        """`taken` is of those who would take part in one budget more, and shared by the states of
        a batch: what one of its events adds counts for the next, whichever budget it is of."""
        self.taken = {} if taken is None else taken
        self.budget: Budget | None = None
        self.members: dict[UserId, Membership] = {}
        self.known: dict[str, LogRow] = {}  # by eventId
        self.records: dict[RecordKey, Record] = {}  # but for the budget's own
        # For each category the batch may delete (`cascades`): the sum of its live expenses'
        # fingerprints, those not loaded included. It lets the digest survive a cascade that runs in
        # SQL.
        self.sums: dict[str, int] = {}
        # Loaded only where membership may change.
        self.participants: list[UserId] = []  # who takes part, in the order they came
        self.link_sharing = True
        self.invites: dict[bytes, Invite] = {}  # by the hash of the token
        self.changes: list[Change] = []  # what was applied, in order

    def find(self, kind: Kind, record_id: str) -> Record | None:
        """The record, tombstones included."""
        if kind is BUDGET:
            return None if self.budget is None else self.budget.record
        return self.records.get((kind.name, record_id))

    def apply(self, change: Change) -> None:
        """Make the change visible to the events that follow in the same transaction."""
        self.changes.append(change)
        self.budget = change.budget
        self.known[change.row.event_id] = change.row
        if (member := change.member) is not None:
            if member.active:
                taken = self.taken.get(member.user_id, Taken())
                known = member.user_id in self.members
                self.taken[member.user_id] = Taken(taken.now + 1, taken.ever + (not known))
                self.participants.append(member.user_id)
            elif member.user_id in self.participants:  # not of who had left before
                self.participants.remove(member.user_id)
            self.members[member.user_id] = member
        if change.invite is not None:
            self.invites[change.invite.token_hash] = change.invite
        if (record := change.record) is not None:
            key = (record.kind.name, record.id)
            self._count(self.records.get(key), -1)
            self._count(record, +1)
            self.records[key] = record
            if change.cascade:
                self._cascade(record)

    def _count(self, record: Record | None, times: int) -> None:
        """Add a record that lives to the sum of the one that it would fall with."""
        if self.sums and record is not None and not record.deleted:
            for owner_id in owners(record):
                if owner_id in self.sums:
                    self.sums[owner_id] += times * record.fingerprint

    def _cascade(self, owner: Record) -> None:
        self.sums[owner.id] = 0
        for key, record in self.records.items():
            if not record.deleted and owner.id in owners(record):
                self.records[key] = record.tombstone(owner.when, owner.last_sequence)


def cascades(want: Want, states: Mapping[BudgetId, BudgetState]) -> set[tuple[BudgetId, str]]:
    """The records that the batch may delete together with those that refer to them: only for these
    `BudgetState.sums` is read, which costs as much as there are of them.

    `states` are as loaded, but for `sums`. Left out is every deletion that the rules refuse
    whatever becomes of the events before it in the batch:

    | left out where            | unless the batch                                             |
    |---------------------------|--------------------------------------------------------------|
    | the event is known        |                                                              |
    | the budget is deleted     |                                                              |
    | or does not exist         | creates it (then nothing in it has been stored)              |
    | the actor takes no part   | changes who does                                             |
    | the record is deleted     |                                                              |
    | or does not exist         | makes it                                                     |
    | the version is not its    | edits it: each edit before counts one                        |

    A deletion that is accepted and stands not here would leave a wrong digest: `rules` fails then.
    """
    possible: set[tuple[BudgetId, str]] = set()
    for actor, event in want.deletions:
        key = event.budget_id, event.record_id
        state, touched = states[event.budget_id], want.touched[key]
        if event.event_id in state.known or not _may_take_part(want, state, actor, event):
            continue
        record = state.find(event.kind, event.record_id)
        if record is None:
            fits = touched > 0
        else:
            ahead = (event.version or 0) - record.version
            fits = not record.deleted and 0 <= ahead <= touched
        if fits:
            possible.add(key)
    return possible


def _may_take_part(want: Want, state: BudgetState, actor: UserId, event: Event) -> bool:
    if state.budget is None:
        return True
    member = state.members.get(actor)
    active = member is not None and member.active
    return not state.budget.deleted and (active or event.budget_id in want.doors)


def owners(record: Record) -> list[str]:
    """The ids of the records that take this one along when they are deleted."""
    return [
        record.value(name)
        for name, kind in record.kind.references
        if kind.takes == record.kind.name
    ]
