"""The decision table: what becomes of one event, given the state of its budget.

The first check that fails decides (design 3.1):

  1. shape                     `INVALID_EVENT` (done by `hub.budget.events`)
  2. known to its author       the eventId stands in the log, from this user, with this content:
                               the original verdict again, marked `duplicate`. Before every other
                               check, so that a retry is answered alike in a year, after its author
                               left, after the budget was deleted (P3).
  3. may the user know?        no budget, or never took part: `BUDGET_NOT_EXISTS`; took part once:
                               `NOT_PARTICIPANT` (P9). A deleted budget does not exist either, but
                               for edits and deletions of the budget record itself (see 7).
                               `budget.create` skips this check: there is nothing to know yet; so
                               does `participant.add`, which needs but a budget that exists.
  4. eventId otherwise known   other content or another author: `EVENT_ID_REUSED`, nothing revealed.
  5. owner-only                `budget.delete` by another participant, or the removal of somebody
                               else: `NOT_OWNER`.
  6. ids and references        adding what exists, tombstones included: `*_EXISTS`, an id is never
                               used again. Editing what does not exist in *this* budget, or naming a
                               category that does not or that is deleted: `*_NOT_EXISTS`.
  7. version                   not the current one, or the record is a tombstone: `conflict` with
                               the record as it is now (P5). A version ahead of ours is stale too.

Membership has no versions. A budget is entered by an invite that is valid, or by its bare id while
link sharing is on; after a removal by the owner it takes an invite that was made later:

| who asks to join       | valid invite            | no invite, or one that is not valid           |
|------------------------|-------------------------|-----------------------------------------------|
| takes part already     | `ALREADY_PARTICIPANT`   | `ALREADY_PARTICIPANT`                         |
| removed by the owner   | in, if it is newer      | `NOT_PARTICIPANT`                             |
| link sharing on        | in                      | in                                            |
| off, never took part   | in                      | `BUDGET_NOT_EXISTS`; an invite of this budget |
|                        |                         | that ran out is told so: `INVITE_NOT_VALID`   |
| off, has left          | in                      | `NOT_PARTICIPANT`                             |

and a full budget is `PARTICIPANT_LIMIT_REACHED`. Removing twice is `ALREADY_LEFT`, and a stranger
cannot be removed: `PARTICIPANT_NOT_EXISTS`. While others take part the owner stays:
`OWNER_CANNOT_LEAVE`; only when their account is closed the budget passes to the first who joined.

What is left is accepted: sequence head+1, version 1 or current+1, and

| event             | the record                     | also                                       |
|-------------------|--------------------------------|--------------------------------------------|
| `budget.create`   | new budget, owned by its maker | the owner becomes the first participant    |
| `budget.edit`     | named fields change            |                                            |
| `budget.delete`   | tombstone                      | nothing else changes                       |
| `category.add`    | new category                   |                                            |
| `category.edit`   | named fields change            |                                            |
| `category.delete` | tombstone                      | its live expenses become tombstones too:   |
|                   |                                | each version +1, same sequence and `when`  |
| `expense.add`     | new expense                    |                                            |
| `expense.edit`    | named fields change, may move  |                                            |
| `expense.delete`  | tombstone                      |                                            |
| `participant.*`   | none: neither version nor      | the user takes part (again), or no longer  |
|                   | digest change                  |                                            |

An absent field is unchanged, `null` clears it; an edit that names nothing still counts a version.
Everything here is a pure function of its arguments.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import orjson

from hub.budget.events import (
    FIELD_LIST,
    FIELD_LISTS,
    BudgetCreate,
    BudgetDelete,
    BudgetEdit,
    CategoryAdd,
    CategoryDelete,
    CategoryEdit,
    Event,
    ExpenseAdd,
    ExpenseDelete,
    ExpenseEdit,
    Invalid,
    ParticipantAdd,
    ParticipantRemove,
    Submitted,
    content_hash,
)
from hub.budget.records import (
    DIGEST_MODULUS,
    Budget,
    BudgetId,
    Category,
    Expense,
    Invite,
    Membership,
    Record,
    UserId,
    digest_text,
)
from hub.budget.verdicts import Verdict
from hub.errors import Code


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
    cascade: bool = False  # the live expenses of category `row.record_id` become tombstones
    invite: Invite | None = None  # with this use of it
    passes_on: bool = False  # the budget has another owner

    def verdict(self) -> Verdict:
        return self.row.verdict()


class BudgetState:
    """What decisions about one budget depend on: as loaded under its lock, then as changed by the
    events before. Holds only what the batch names, not the whole budget."""

    __slots__ = (
        "budget",
        "categories",
        "category_sums",
        "changes",
        "expenses",
        "invites",
        "known",
        "link_sharing",
        "members",
        "participants",
    )

    def __init__(self) -> None:
        self.budget: Budget | None = None
        self.members: dict[UserId, Membership] = {}
        self.known: dict[str, LogRow] = {}  # by eventId
        self.categories: dict[str, Category] = {}
        self.expenses: dict[str, Expense] = {}
        # For each category the batch wants to delete: the sum of its live expenses' fingerprints,
        # those not loaded included. It lets the digest survive a cascade that runs in SQL.
        self.category_sums: dict[str, int] = {}
        # Loaded only where membership may change.
        self.participants: list[UserId] = []  # who takes part, in the order they came
        self.link_sharing = True
        self.invites: dict[bytes, Invite] = {}  # by the hash of the token
        self.changes: list[Change] = []  # what was applied, in order

    def apply(self, change: Change) -> None:
        """Make the change visible to the events that follow in the same transaction."""
        self.changes.append(change)
        self.budget = change.budget
        self.known[change.row.event_id] = change.row
        if (member := change.member) is not None:
            if member.active:
                self.participants.append(member.user_id)
            else:
                self.participants.remove(member.user_id)
            self.members[member.user_id] = member
        if change.invite is not None:
            self.invites[change.invite.token_hash] = change.invite
        record = change.record
        if isinstance(record, Category):
            self.categories[record.id] = record
        elif isinstance(record, Expense):
            old = self.expenses.get(record.id)
            if old is not None and not old.deleted:
                self._count(old.category_id, -old.fingerprint)
            if not record.deleted:
                self._count(record.category_id, record.fingerprint)
            self.expenses[record.id] = record
        if change.cascade:
            self._cascade(change)

    def _count(self, category_id: str | None, fingerprint: int) -> None:
        if category_id in self.category_sums:
            self.category_sums[category_id] += fingerprint

    def _cascade(self, change: Change) -> None:
        category = change.record
        assert isinstance(category, Category)
        self.category_sums[category.id] = 0
        for expense in list(self.expenses.values()):
            if expense.category_id == category.id and not expense.deleted:
                self.expenses[expense.id] = expense._replace(
                    version=expense.version + 1,
                    deleted=True,
                    when=category.when,
                    last_sequence=category.last_sequence,
                )


def decide(state: BudgetState, actor: UserId, event: Submitted, now_ms: int) -> Verdict | Change:
    """What becomes of `event`, sent by `actor`: a `Change` if it is accepted, else its verdict.

    `now_ms` is the server's clock in epoch milliseconds; it dates a participant's joining.
    """
    if type(event) is Invalid:
        return _invalid(event)
    known = state.known.get(event.event_id)
    if known is not None:
        if known.content_fields not in FIELD_LISTS:  # written by a newer server, in mid-deploy
            return _rejected(event, Code.UNAVAILABLE)
        if _says_the_same(known, actor, event):
            return known.verdict(duplicate=True)
    refusal = _access(state, actor, event)
    if refusal is None and known is not None:
        refusal = Code.EVENT_ID_REUSED
    if refusal is not None:
        return _rejected(event, refusal)
    head = 0 if state.budget is None else state.budget.last_sequence
    outcome = _RULES[type(event)](state, actor, event, head + 1, now_ms)
    if isinstance(outcome, _Effect):
        return _accept(state, actor, event, outcome, head + 1)
    if isinstance(outcome, Code):
        return _rejected(event, outcome)
    return _conflict(event, outcome)


def rejected(event: Submitted, code: Code, detail: str | None = None) -> Verdict:
    """The verdict of an event that was not decided by the rules: `BUSY`, `UNAVAILABLE`, poison."""
    if isinstance(event, Invalid):
        return _invalid(event)
    return _rejected(event, code, detail)


class _Effect(NamedTuple):
    """What an acceptable event does to the records, before sequence and digest are known."""

    record: Record | None = None
    before: Record | None = None
    fields: Mapping[str, Any] = {}  # of the stream event
    member: Membership | None = None
    cascade: bool = False
    invite: Invite | None = None
    owner: UserId | None = None  # the new one


# A rule answers with the effect, with the code of a rejection, or with the current record, which is
# a conflict.
_Outcome: TypeAlias = _Effect | Code | Record
_R = TypeVar("_R", Category, Expense)


def _says_the_same(known: LogRow, actor: UserId, event: Event) -> bool:
    return (
        known.actor_id == actor
        and known.event_type == event.type
        and known.content_hash == content_hash(event, known.content_fields)
    )


def _access(state: BudgetState, actor: UserId, event: Event) -> Code | None:
    if type(event) is BudgetCreate:
        return None
    if type(event) is ParticipantAdd:
        there = state.budget is not None and not state.budget.deleted
        return None if there else Code.BUDGET_NOT_EXISTS
    member = state.members.get(actor)
    if state.budget is None or member is None:
        return Code.BUDGET_NOT_EXISTS
    if state.budget.deleted and not (member.active and event.of == "budget"):
        return Code.BUDGET_NOT_EXISTS
    return None if member.active else Code.NOT_PARTICIPANT


def _create_budget(
    state: BudgetState, actor: UserId, event: BudgetCreate, sequence: int, now_ms: int
) -> _Outcome:
    if state.budget is not None:
        return Code.BUDGET_EXISTS
    budget = Budget(
        id=event.budget_id,
        created_by=actor,
        owner_id=actor,
        title=event.title,
        details=event.details,
        currency=event.currency,
        version=1,
        deleted=False,
        when=event.when,
        fingerprint=0,
        record_sequence=sequence,
        last_sequence=0,
        digest=0,
    ).fingerprinted()
    fields = {"title": event.title, "details": event.details, "currency": event.currency}
    member = Membership(event.budget_id, actor, joined_at=now_ms, active=True)
    return _Effect(budget, fields=fields, member=member)


def _edit_budget(
    state: BudgetState, actor: UserId, event: BudgetEdit, sequence: int, now_ms: int
) -> _Outcome:
    budget = _existing(state)
    if _stale(budget, event):
        return budget
    named = event.named()
    changed = budget._replace(
        version=budget.version + 1, when=event.when, record_sequence=sequence, **named
    )
    return _Effect(changed.fingerprinted(), before=budget, fields=named)


def _delete_budget(
    state: BudgetState, actor: UserId, event: BudgetDelete, sequence: int, now_ms: int
) -> _Outcome:
    budget = _existing(state)
    if budget.owner_id != actor:
        return Code.NOT_OWNER
    if _stale(budget, event):
        return budget
    gone = budget._replace(
        version=budget.version + 1, deleted=True, when=event.when, record_sequence=sequence
    )
    return _Effect(gone, before=budget)


def _add_category(
    state: BudgetState, actor: UserId, event: CategoryAdd, sequence: int, now_ms: int
) -> _Outcome:
    if event.record_id in state.categories:
        return Code.CATEGORY_EXISTS
    category = Category(
        budget_id=event.budget_id,
        id=event.record_id,
        created_by=actor,
        name=event.name,
        allocate=event.allocate,
        version=1,
        deleted=False,
        when=event.when,
        fingerprint=0,
        created_sequence=sequence,
        last_sequence=sequence,
    ).fingerprinted()
    return _Effect(category, fields={"name": event.name, "allocate": event.allocate})


def _edit_category(
    state: BudgetState, actor: UserId, event: CategoryEdit, sequence: int, now_ms: int
) -> _Outcome:
    category = state.categories.get(event.record_id)
    if category is None:
        return Code.CATEGORY_NOT_EXISTS
    if _stale(category, event):
        return category
    named = event.named()
    changed = category._replace(
        version=category.version + 1, when=event.when, last_sequence=sequence, **named
    )
    return _Effect(changed.fingerprinted(), before=category, fields=named)


def _delete_category(
    state: BudgetState, actor: UserId, event: CategoryDelete, sequence: int, now_ms: int
) -> _Outcome:
    category = state.categories.get(event.record_id)
    if category is None:
        return Code.CATEGORY_NOT_EXISTS
    if _stale(category, event):
        return category
    return _Effect(_tombstone(category, event.when, sequence), before=category, cascade=True)


def _add_expense(
    state: BudgetState, actor: UserId, event: ExpenseAdd, sequence: int, now_ms: int
) -> _Outcome:
    if event.record_id in state.expenses:
        return Code.EXPENSE_EXISTS
    if not _category_lives(state, event.category_id):
        return Code.CATEGORY_NOT_EXISTS
    expense = Expense(
        budget_id=event.budget_id,
        id=event.record_id,
        created_by=actor,
        category_id=event.category_id,
        amount=event.amount,
        date=event.date,
        note=event.note,
        version=1,
        deleted=False,
        when=event.when,
        fingerprint=0,
        created_sequence=sequence,
        last_sequence=sequence,
    ).fingerprinted()
    fields = {
        "categoryId": event.category_id,
        "amount": event.amount,
        "date": event.date,
        "note": event.note,
    }
    return _Effect(expense, fields=fields)


def _edit_expense(
    state: BudgetState, actor: UserId, event: ExpenseEdit, sequence: int, now_ms: int
) -> _Outcome:
    expense = state.expenses.get(event.record_id)
    if expense is None:
        return Code.EXPENSE_NOT_EXISTS
    named = event.named()
    if not _category_lives(state, named.get("categoryId")):
        return Code.CATEGORY_NOT_EXISTS
    if _stale(expense, event):
        return expense
    values = {ExpenseEdit.fields[name]: value for name, value in named.items()}
    changed = expense._replace(
        version=expense.version + 1, when=event.when, last_sequence=sequence, **values
    )
    return _Effect(changed.fingerprinted(), before=expense, fields=named)


def _delete_expense(
    state: BudgetState, actor: UserId, event: ExpenseDelete, sequence: int, now_ms: int
) -> _Outcome:
    expense = state.expenses.get(event.record_id)
    if expense is None:
        return Code.EXPENSE_NOT_EXISTS
    if _stale(expense, event):
        return expense
    return _Effect(_tombstone(expense, event.when, sequence), before=expense)


def _add_participant(
    state: BudgetState, actor: UserId, event: ParticipantAdd, sequence: int, now_ms: int
) -> _Outcome:
    before = state.members.get(event.user_id)
    if before is not None and before.active:
        return Code.ALREADY_PARTICIPANT
    invite = None if event.invite is None else state.invites.get(event.invite)
    admitted = invite is not None and invite.admits(now_ms)
    if before is not None and before.removed_at is not None:
        if invite is None or not admitted or invite.created_sequence < before.last_sequence:
            return Code.NOT_PARTICIPANT
    elif not admitted and not state.link_sharing:
        if before is not None:
            return Code.NOT_PARTICIPANT
        return Code.BUDGET_NOT_EXISTS if invite is None else Code.INVITE_NOT_VALID
    if len(state.participants) >= event.participants_max:
        return Code.PARTICIPANT_LIMIT_REACHED
    used = invite._replace(uses=invite.uses + 1) if invite is not None and admitted else None
    member = Membership(event.budget_id, event.user_id, joined_at=now_ms, active=True)
    # The last one to leave is the owner still, until somebody else comes: no budget that anybody
    # takes part in is without an owner who does.
    owner = None
    if _existing(state).owner_id not in (*state.participants, event.user_id):
        owner = [*state.participants, event.user_id][0]
    return _membership(member._replace(last_sequence=sequence), owner)._replace(invite=used)


def _remove_participant(
    state: BudgetState, actor: UserId, event: ParticipantRemove, sequence: int, now_ms: int
) -> _Outcome:
    budget = _existing(state)
    leaves = event.user_id == actor
    if not leaves and budget.owner_id != actor:
        return Code.NOT_OWNER
    before = state.members.get(event.user_id)
    if before is None:
        return Code.PARTICIPANT_NOT_EXISTS
    if not before.active:
        return Code.ALREADY_LEFT
    heirs = [user_id for user_id in state.participants if user_id != event.user_id]
    passes_on = leaves and budget.owner_id == actor and bool(heirs)
    if passes_on and not event.closes_account:
        return Code.OWNER_CANNOT_LEAVE
    removed_at = None if leaves else now_ms
    gone = before._replace(active=False, removed_at=removed_at, last_sequence=sequence)
    return _membership(gone, owner=heirs[0] if passes_on else None)


def _membership(member: Membership, owner: UserId | None = None) -> _Effect:
    participant = {
        "userId": member.user_id,
        "budgetId": member.budget_id,
        "joinedAt": member.joined_at,
    }
    passed_on = {} if owner is None else {"owner": owner}
    return _Effect(fields={"participant": participant, **passed_on}, member=member, owner=owner)


_RULES: Mapping[type[Event], Callable[..., _Outcome]] = {
    BudgetCreate: _create_budget,
    BudgetEdit: _edit_budget,
    BudgetDelete: _delete_budget,
    CategoryAdd: _add_category,
    CategoryEdit: _edit_category,
    CategoryDelete: _delete_category,
    ExpenseAdd: _add_expense,
    ExpenseEdit: _edit_expense,
    ExpenseDelete: _delete_expense,
    ParticipantAdd: _add_participant,
    ParticipantRemove: _remove_participant,
}


def _existing(state: BudgetState) -> Budget:
    assert state.budget is not None  # check 3 came before
    return state.budget


def _stale(record: Record, event: Event) -> bool:
    return record.deleted or event.stated_version != record.version


def _category_lives(state: BudgetState, category_id: str | None) -> bool:
    if category_id is None:
        return True
    category = state.categories.get(category_id)
    return category is not None and not category.deleted


def _tombstone(record: _R, when: int, sequence: int) -> _R:
    return record._replace(
        version=record.version + 1, deleted=True, when=when, last_sequence=sequence
    )


def _accept(
    state: BudgetState, actor: UserId, event: Event, effect: _Effect, sequence: int
) -> Change:
    """Number the change, bring the digest up to date, and write event and record down as text."""
    record = effect.record
    budget = record if isinstance(record, Budget) else _existing(state)
    digest = 0 if state.budget is None else state.budget.digest
    if effect.before is not None:
        digest -= effect.before.fingerprint
    if effect.cascade and record is not None:
        digest -= state.category_sums[record.id]
    if record is not None and not record.deleted:
        digest += record.fingerprint
    digest %= DIGEST_MODULUS
    version = {} if record is None else {"version": record.version}
    stream_event = {
        "sequence": sequence,
        "eventId": event.event_id,
        "eventType": event.type,
        "budgetId": event.budget_id,
        "recordId": event.subject_id,
        "actorId": actor,
        "when": event.when,
        **version,
        **effect.fields,
        "digest": digest_text(digest),
    }
    row = LogRow(
        budget_id=event.budget_id,
        sequence=sequence,
        event_id=event.event_id,
        event_type=event.type,
        record_id=event.subject_id,
        actor_id=actor,
        content_hash=content_hash(event),
        content_fields=FIELD_LIST,
        version=None if record is None else record.version,
        event=orjson.dumps(stream_event, default=str),
        record=None if record is None else orjson.dumps(record.to_json()),
    )
    budget = budget.moved_on(sequence, digest)
    if effect.owner is not None:
        budget = budget._replace(owner_id=effect.owner)
    return Change(
        row,
        budget,
        None if isinstance(record, Budget) else record,
        effect.member,
        effect.cascade,
        effect.invite,
        effect.owner is not None,
    )


def _rejected(event: Event, code: Code, detail: str | None = None) -> Verdict:
    return Verdict(
        event.event_id,
        event.type,
        event.budget_id,
        event.subject_id,
        "rejected",
        error=code,
        detail=detail,
    )


def _conflict(event: Event, current: Record) -> Verdict:
    return Verdict(
        event.event_id,
        event.type,
        event.budget_id,
        event.subject_id,
        "conflict",
        record=orjson.dumps(current.to_json()),
    )


def _invalid(event: Invalid) -> Verdict:
    return Verdict(
        event.event_id,
        event.event_type,
        event.budget_id,
        event.record_id,
        "rejected",
        error=Code.INVALID_EVENT,
        detail=event.detail,
    )
