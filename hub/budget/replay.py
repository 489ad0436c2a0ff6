"""Replay: a budget rebuilt from its stream events, and from nothing else.

The log is the truth and the tables are a convenience (design 1); `verify` compares the two, and
needs this second opinion. The steps restate what design 3.1 says an accepted event does. Whether it
should have been accepted is for `hub.budget.rules`.

| event                | what changes                                                            |
|----------------------|-------------------------------------------------------------------------|
| `*.create`, `*.add`  | a record at version 1, made by the event's actor                        |
| `*.edit`             | the fields it names; version +1                                         |
| `*.delete`           | a tombstone: the fields stay, version +1; the fingerprint of its last   |
|                      | living version stays with it, but counts in the digest no more          |
| … of a category      | its live expenses too: version +1, the event's sequence and `when`      |
| `budget.create`      | its actor takes part and owns the budget                                |
| `participant.add`    | the user takes part (again)                                             |
| `participant.remove` | they do no longer                                                       |
| … either             | `owner`, where it is named, owns the budget from now on                 |

Membership events change no record, so neither a version nor the digest.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from hub.budget.events import CLIENT_EVENTS
from hub.budget.records import (
    DIGEST_MODULUS,
    Budget,
    BudgetId,
    Category,
    Expense,
    Record,
    UserId,
    digest_text,
)

_MONEY = {"allocate", "amount"}
_R = TypeVar("_R", Budget, Category, Expense)


class ReplayError(Exception):
    """An event that cannot follow the ones before it; the replica is of no use from then on.

    `sequence` is the event's, `what` names the thing that is wrong; `expected` and `found` are ids
    and numbers, never anybody's text (P9: it ends on screens and in logs).
    """

    def __init__(self, sequence: object, what: str, expected: object, found: object) -> None:
        super().__init__(f"event {sequence}: {what}: expected {expected}, found {found}")
        self.sequence = sequence
        self.what = what
        self.expected = expected
        self.found = found


class Member(NamedTuple):
    """A participant, or a former one. `joined_at` (epoch milliseconds) is None where the log does
    not tell it: for the maker of the budget, whose joining is no event of its own."""

    active: bool
    joined_at: int | None


class Replica:
    """One budget after the events `1..head`, tombstones and former participants included.

    `digest` is the one after the last event; `budget.last_sequence` and `budget.digest` say the
    same as `head` and `digest`.
    """

    def __init__(self, budget_id: BudgetId) -> None:
        self.budget_id = budget_id
        self.head = 0
        self.digest = 0
        self.budget: Budget | None = None
        self.categories: dict[str, Category] = {}
        self.expenses: dict[str, Expense] = {}
        self.members: dict[UserId, Member] = {}
        self._live_expenses: dict[str, set[str]] = {}  # by category, so that a cascade finds them

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take the next stream event, decoded.

        Raises `ReplayError` for a gap in the sequences, another budget's event, a type that is not
        of design 3.1, a field that is missing or of the wrong kind, a record that must or must not
        exist, a version that is not the next one, and a digest other than the event's own.
        """
        sequence = event.get("sequence")
        if sequence != self.head + 1:
            raise ReplayError(sequence, "sequence", self.head + 1, sequence)
        try:
            self._step(event)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ReplayError(sequence, "fields", "as documented", type(error).__name__) from error

    def record_of(self, event: Mapping[str, Any]) -> Record | None:
        """The record that an applied event is about, as it is now; None for a membership event."""
        kind = str(event["eventType"]).partition(".")[0]
        if kind == "budget":
            return self.budget
        if kind == "category":
            return self.categories[event["recordId"]]
        return self.expenses[event["recordId"]] if kind == "expense" else None

    def _step(self, event: Mapping[str, Any]) -> None:
        event_type = event["eventType"]
        _check(event, "budgetId", self.budget_id, event["budgetId"])
        step = _STEPS.get(event_type)
        if step is None:
            raise ReplayError(event["sequence"], "eventType", "one of design 3.1", event_type)
        _check(event, "budget exists", event_type != "budget.create", self.budget is not None)
        step(self, event)
        self.head = event["sequence"]
        if self.budget is not None:
            self.budget = self.budget._replace(last_sequence=self.head, digest=self.digest)
        _check(event, "digest", digest_text(self.digest), event["digest"])

    def _create_budget(self, event: Mapping[str, Any]) -> None:
        budget = Budget(
            id=self.budget_id,
            created_by=event["actorId"],
            owner_id=event["actorId"],
            title=event["title"],
            details=event["details"],
            currency=event["currency"],
            version=1,
            deleted=False,
            when=event["when"],
            fingerprint=0,
            record_sequence=event["sequence"],
            last_sequence=event["sequence"],
            digest=0,
        )
        _check(event, "recordId", self.budget_id, event["recordId"])
        self.members[event["actorId"]] = Member(active=True, joined_at=None)
        self._put(None, _first(budget, event))

    def _change_budget(self, event: Mapping[str, Any]) -> None:
        _check(event, "recordId", self.budget_id, event["recordId"])
        changed = _changed(self.budget, event)
        self._put(self.budget, changed._replace(record_sequence=event["sequence"]))

    def _add_category(self, event: Mapping[str, Any]) -> None:
        category = Category(
            budget_id=self.budget_id,
            id=event["recordId"],
            created_by=event["actorId"],
            name=event["name"],
            allocate=Decimal(event["allocate"]),
            version=1,
            deleted=False,
            when=event["when"],
            fingerprint=0,
            created_sequence=event["sequence"],
            last_sequence=event["sequence"],
        )
        _check(event, "category exists", False, category.id in self.categories)
        self._put(None, _first(category, event))

    def _change_category(self, event: Mapping[str, Any]) -> None:
        before = self.categories.get(event["recordId"])
        after = _changed(before, event)._replace(last_sequence=event["sequence"])
        self._put(before, after)
        if after.deleted:
            for expense_id in sorted(self._live_expenses.get(after.id, ())):
                expense = self.expenses[expense_id]
                gone = expense._replace(
                    version=expense.version + 1,
                    deleted=True,
                    when=after.when,
                    last_sequence=after.last_sequence,
                )
                self._put(expense, gone)

    def _add_expense(self, event: Mapping[str, Any]) -> None:
        expense = Expense(
            budget_id=self.budget_id,
            id=event["recordId"],
            created_by=event["actorId"],
            category_id=event["categoryId"],
            amount=Decimal(event["amount"]),
            date=event["date"],
            note=event["note"],
            version=1,
            deleted=False,
            when=event["when"],
            fingerprint=0,
            created_sequence=event["sequence"],
            last_sequence=event["sequence"],
        )
        _check(event, "expense exists", False, expense.id in self.expenses)
        self._put(None, _first(expense, event))

    def _change_expense(self, event: Mapping[str, Any]) -> None:
        before = self.expenses.get(event["recordId"])
        after = _changed(before, event)._replace(last_sequence=event["sequence"])
        self._put(before, after)

    def _change_member(self, event: Mapping[str, Any]) -> None:
        participant = event["participant"]
        user_id = participant["userId"]
        _check(event, "participant.userId", event["recordId"], user_id)
        _check(event, "participant.budgetId", self.budget_id, participant["budgetId"])
        active = event["eventType"] == "participant.add"
        before = self.members.get(user_id)
        _check(event, "takes part before", not active, before is not None and before.active)
        self.members[user_id] = Member(active, participant["joinedAt"])
        if event.get("owner") is not None:
            owner = self.members.get(event["owner"])
            _check(event, "new owner takes part", True, owner is not None and owner.active)
            assert self.budget is not None  # `_step` looked
            self.budget = self.budget._replace(owner_id=event["owner"])

    def _put(self, before: Record | None, after: Record) -> None:
        """Keep a record, and the digest: what lived is taken out, what lives is added."""
        if before is not None:
            self.digest -= before.fingerprint
        if not after.deleted:
            self.digest += after.fingerprint
        self.digest %= DIGEST_MODULUS
        if isinstance(after, Budget):
            self.budget = after
        elif isinstance(after, Category):
            self.categories[after.id] = after
        else:
            self.expenses[after.id] = after
            if isinstance(before, Expense) and before.category_id is not None:
                self._live_expenses[before.category_id].discard(before.id)
            if after.category_id is not None and not after.deleted:
                self._live_expenses.setdefault(after.category_id, set()).add(after.id)


_STEPS: Mapping[str, Callable[[Replica, Mapping[str, Any]], None]] = {
    "budget.create": Replica._create_budget,
    "budget.edit": Replica._change_budget,
    "budget.delete": Replica._change_budget,
    "category.add": Replica._add_category,
    "category.edit": Replica._change_category,
    "category.delete": Replica._change_category,
    "expense.add": Replica._add_expense,
    "expense.edit": Replica._change_expense,
    "expense.delete": Replica._change_expense,
    "participant.add": Replica._change_member,
    "participant.remove": Replica._change_member,
}


def _first(record: _R, event: Mapping[str, Any]) -> _R:
    _check(event, "version", 1, event["version"])
    return record.fingerprinted()


def _changed(record: _R | None, event: Mapping[str, Any]) -> _R:
    """The record after an edit or delete of it."""
    if record is None or record.deleted:
        found = "none" if record is None else "a tombstone"
        raise ReplayError(event["sequence"], "record", "a live one", found)
    _check(event, "version", record.version + 1, event["version"])
    values: dict[str, Any] = {
        attribute: Decimal(event[name]) if name in _MONEY else event[name]
        for name, attribute in CLIENT_EVENTS[event["eventType"]].fields.items()
        if name in event
    }
    deleted = event["eventType"].endswith(".delete")
    after = record._replace(version=event["version"], when=event["when"], deleted=deleted, **values)
    return after if deleted else after.fingerprinted()


def _check(event: Mapping[str, Any], what: str, expected: object, found: object) -> None:
    if expected != found:
        raise ReplayError(event["sequence"], what, expected, found)
