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
  8. quota                     what would be accepted and is too much: `QUOTA_EXCEEDED`.

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

and a full budget is `PARTICIPANT_LIMIT_REACHED`. The owner removes also who has just left, or their
leaving would be a way round the removal; only removing twice is `ALREADY_LEFT`. A stranger cannot
be removed: `PARTICIPANT_NOT_EXISTS`. While others take part the owner stays:
`OWNER_CANNOT_LEAVE`; only when their account is closed the budget passes to the first who joined.

A quota (`hub.budget.state.Quotas`) refuses only what adds to the thing it counts. Who has reached
one can always delete, leave and remove:

| quota       | refuses                    | what it counts                                       |
|-------------|----------------------------|------------------------------------------------------|
| `budgets`   | `budget.create`, joining   | where the user takes part and that is not deleted;   |
|             |                            | ten times as many where they ever did                |
| `records`   | `*.add`                    | the budget's records, tombstones too                 |
| `log_bytes` | all but `*.delete`,        | the events and the verdicts' records in its log      |
|             | leaving and removing       |                                                      |

What is left is accepted: sequence head+1, version 1 or current+1, and

| event             | the record                     | also                                       |
|-------------------|--------------------------------|--------------------------------------------|
| `budget.create`   | new budget, owned by its maker | the owner becomes the first participant    |
| `*.add`           | new record                     |                                            |
| `*.edit`          | named fields change            |                                            |
| `budget.delete`   | tombstone                      | nothing else changes                       |
| `category.delete` | tombstone                      | its live expenses become tombstones too:   |
|                   |                                | each version +1, same sequence and `when`  |
| `*.delete`        | tombstone                      |                                            |
| `participant.*`   | none                           | the user takes part (again), or no longer; |
|                   |                                | the digest counts them with their role     |

An absent field is unchanged, `null` clears it; an edit that names nothing still counts a version.
Everything here is a pure function of its arguments.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import orjson

from hub.budget.access import standing
from hub.budget.digest import DIGEST_MODULUS, digest_text, participant_fingerprint
from hub.budget.events import (
    FIELD_LIST,
    FIELD_LISTS,
    Decidable,
    Event,
    Invalid,
    Joining,
    Leaving,
    Submitted,
    content_hash,
)
from hub.budget.kinds import BUDGET
from hub.budget.records import Budget, Invite, Membership, Record, UserId, role_of
from hub.budget.state import EVER_TIMES, BudgetState, Change, LogRow, Quotas, Taken
from hub.budget.verdicts import Verdict
from hub.errors import Code

QUOTAS = Quotas()


def decide(
    state: BudgetState, actor: UserId, event: Submitted, now_ms: int, quotas: Quotas = QUOTAS
) -> Verdict | Change:
    """What becomes of `event`, sent by `actor`: a `Change` if it is accepted, else its verdict.

    `now_ms` is the server's clock in epoch milliseconds; it dates a participant's joining.
    """
    if isinstance(event, Invalid):
        return rejected(event, Code.INVALID_EVENT)
    known = state.known.get(event.event_id)
    if known is not None:
        if known.content_fields not in FIELD_LISTS:  # written by a newer server, in mid-deploy
            return rejected(event, Code.UNAVAILABLE)
        if _says_the_same(known, actor, event):
            return known.verdict(duplicate=True)
    refusal = _access(state, actor, event)
    if refusal is None and known is not None:
        refusal = Code.EVENT_ID_REUSED
    if refusal is not None:
        return rejected(event, refusal)
    sequence = 1 if state.budget is None else state.budget.last_sequence + 1
    if isinstance(event, Event):
        outcome = _RULES[event.verb](state, actor, event, sequence, now_ms)
    elif isinstance(event, Joining):
        outcome = _join(state, event, sequence, now_ms)
    else:
        outcome = _leave(state, actor, event, sequence, now_ms)
    if isinstance(outcome, _Effect):
        if (beyond := _beyond(state, event, outcome, quotas)) is not None:
            return rejected(event, Code.QUOTA_EXCEEDED, beyond)
        return _accept(state, actor, event, outcome, sequence)
    if isinstance(outcome, Code):
        return rejected(event, outcome)
    return Verdict.of(event, "conflict", record=_text(outcome))


def rejected(event: Submitted, code: Code, detail: str | None = None) -> Verdict:
    """The verdict of an event that is not accepted. What is not of its shape is always that."""
    if isinstance(event, Invalid):
        return Verdict.of(event, "rejected", error=Code.INVALID_EVENT, detail=event.detail)
    return Verdict.of(event, "rejected", error=code, detail=detail)


class _Effect(NamedTuple):
    """What an acceptable event does, before sequence and digest are known."""

    record: Record | None = None
    before: Record | None = None
    fields: Mapping[str, Any] = {}  # of the stream event
    member: Membership | None = None
    owner: UserId | None = None  # the new one
    invite: Invite | None = None


# A rule answers with the effect, with the code of a rejection, or with the current record, which is
# a conflict.
_Outcome: TypeAlias = _Effect | Code | Record


def _says_the_same(known: LogRow, actor: UserId, event: Decidable) -> bool:
    return (
        known.actor_id == actor
        and known.event_type == event.event_type
        and known.content_hash == content_hash(event, known.content_fields)
    )


def _access(state: BudgetState, actor: UserId, event: Decidable) -> Code | None:
    budget = state.budget
    if isinstance(event, Event) and event.verb == "create":
        return None
    if isinstance(event, Joining):
        there = budget is not None and not budget.deleted
        return None if there else Code.BUDGET_NOT_EXISTS
    if budget is None:
        return Code.BUDGET_NOT_EXISTS
    member = state.members.get(actor)
    of_budget = isinstance(event, Event) and event.kind is BUDGET
    active = None if member is None else member.active
    return standing(budget.deleted, active, past_counts=of_budget)


def _create(
    state: BudgetState, actor: UserId, event: Event, sequence: int, now_ms: int
) -> _Outcome:
    member = Membership(event.budget_id, actor, joined_at=now_ms, active=True)
    outcome = _add(state, actor, event, sequence, now_ms)
    return outcome._replace(member=member) if isinstance(outcome, _Effect) else outcome


def _add(state: BudgetState, actor: UserId, event: Event, sequence: int, now_ms: int) -> _Outcome:
    kind = event.kind
    if state.find(kind, event.record_id) is not None:
        return kind.exists
    if (missing := _missing_reference(state, event)) is not None:
        return missing
    key = (event.budget_id, event.record_id)
    record = Record.first(kind, key, actor, event.named, event.when, sequence)
    return _Effect(record, fields=record.fields())


def _edit(state: BudgetState, actor: UserId, event: Event, sequence: int, now_ms: int) -> _Outcome:
    record = state.find(event.kind, event.record_id)
    if record is None:
        return event.kind.missing
    if (missing := _missing_reference(state, event)) is not None:
        return missing
    if _stale(record, event):
        return record
    changed = record.edited(event.named, event.when, sequence)
    return _Effect(changed, before=record, fields=event.named)


def _delete(
    state: BudgetState, actor: UserId, event: Event, sequence: int, now_ms: int
) -> _Outcome:
    record = state.find(event.kind, event.record_id)
    if record is None:
        return event.kind.missing
    if event.kind is BUDGET and _existing(state).owner_id != actor:
        return Code.NOT_OWNER
    if _stale(record, event):
        return record
    return _Effect(record.tombstone(event.when, sequence), before=record)


_RULES: Mapping[str, Callable[[BudgetState, UserId, Event, int, int], _Outcome]] = {
    "create": _create,
    "add": _add,
    "edit": _edit,
    "delete": _delete,
}


def _join(state: BudgetState, event: Joining, sequence: int, now_ms: int) -> _Outcome:
    user_id = event.record_id
    before = state.members.get(user_id)
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
    member = Membership(event.budget_id, user_id, now_ms, active=True, last_sequence=sequence)
    # The last one to leave is the owner still, until somebody else comes: no budget that anybody
    # takes part in is without an owner who does.
    owner = None
    if _existing(state).owner_id not in (*state.participants, user_id):
        owner = [*state.participants, user_id][0]
    return _membership(state, member, owner)._replace(invite=used)


def _leave(
    state: BudgetState, actor: UserId, event: Leaving, sequence: int, now_ms: int
) -> _Outcome:
    user_id = event.record_id
    leaves = user_id == actor
    owns = _existing(state).owner_id == actor
    if not leaves and not owns:
        return Code.NOT_OWNER
    before = state.members.get(user_id)
    if before is None:
        return Code.PARTICIPANT_NOT_EXISTS
    if not before.active and (leaves or before.removed_at is not None):
        return Code.ALREADY_LEFT
    heirs = [each for each in state.participants if each != user_id]
    passes_on = leaves and owns and bool(heirs)
    if passes_on and not event.closes_account:
        return Code.OWNER_CANNOT_LEAVE
    removed_at = None if leaves else now_ms
    gone = before._replace(active=False, removed_at=removed_at, last_sequence=sequence)
    return _membership(state, gone, owner=heirs[0] if passes_on else None)


def _membership(state: BudgetState, member: Membership, owner: UserId | None) -> _Effect:
    participant = {
        "userId": member.user_id,
        "budgetId": member.budget_id,
        "joinedAt": member.joined_at,
        "role": role_of(member.user_id, owner or _existing(state).owner_id),
    }
    passed_on = {} if owner is None else {"owner": owner}
    return _Effect(fields={"participant": participant, **passed_on}, member=member, owner=owner)


def _existing(state: BudgetState) -> Budget:
    assert state.budget is not None  # check 3 came before
    return state.budget


def _stale(record: Record, event: Event) -> bool:
    return record.deleted or event.version != record.version


def _missing_reference(state: BudgetState, event: Event) -> Code | None:
    """The code for a record that the event refers to and that does not live."""
    for name, kind in event.kind.references:
        if (record_id := event.named.get(name)) is not None:
            record = state.find(kind, record_id)
            if record is None or record.deleted:
                return kind.missing
    return None


def _beyond(state: BudgetState, event: Decidable, effect: _Effect, quotas: Quotas) -> str | None:
    """Which quota the effect would go beyond, in words for people."""
    budget = state.budget
    if (member := effect.member) is not None and member.active:
        taken = state.taken.get(member.user_id, Taken())
        if taken.now >= quotas.budgets or taken.ever >= EVER_TIMES * quotas.budgets:
            return f"a user takes part in at most {quotas.budgets} budgets"
    if budget is None or isinstance(event, Leaving):
        return None
    adds = effect.record is not None and effect.before is None
    if adds and budget.record_count >= quotas.records:
        return f"a budget has at most {quotas.records} records, deleted ones too"
    deletes = effect.record is not None and effect.record.deleted
    if budget.log_bytes >= quotas.log_bytes and not deletes:
        return f"the log of a budget has at most {quotas.log_bytes} bytes"
    return None


def _accept(
    state: BudgetState, actor: UserId, event: Decidable, effect: _Effect, sequence: int
) -> Change:
    """Number the change, bring the digest up to date, and write event and record down as text."""
    record = effect.record
    of_budget = record is not None and record.kind is BUDGET
    cascade = record is not None and record.deleted and record.kind.takes is not None
    digest = _digest(state, actor, effect, cascade=cascade)
    version = None if record is None else record.version
    stream_event = {
        "sequence": sequence,
        "eventId": event.event_id,
        "eventType": event.event_type,
        "budgetId": event.budget_id,
        "recordId": event.record_id,
        "actorId": actor,
        "when": event.when,
        **({} if version is None else {"version": version}),
        **effect.fields,
        "digest": digest_text(digest),
    }
    row = LogRow(
        budget_id=event.budget_id,
        sequence=sequence,
        event_id=event.event_id,
        event_type=event.event_type,
        record_id=event.record_id,
        actor_id=actor,
        content_hash=content_hash(event),
        content_fields=FIELD_LIST,
        version=version,
        event=orjson.dumps(stream_event, default=str),
        record=None if record is None else _text(record),
    )
    log_bytes = len(row.event) + len(row.record or b"")
    if state.budget is None:
        assert record is not None  # the first event of a budget makes its record
        budget = Budget(record, actor, sequence, digest, 0, log_bytes)
    else:
        before = state.budget
        kept = record if record is not None and of_budget else before.record
        adds = record is not None and effect.before is None
        used = before.record_count + adds, before.log_bytes + log_bytes
        budget = Budget(kept, effect.owner or before.owner_id, sequence, digest, *used)
    return Change(
        row,
        budget,
        None if of_budget else record,
        effect.member,
        cascade,
        effect.invite,
        effect.owner is not None,
    )


def _digest(state: BudgetState, actor: UserId, effect: _Effect, *, cascade: bool) -> int:
    """The budget's digest after the effect."""
    digest = 0 if state.budget is None else state.budget.digest
    record = effect.record
    if effect.before is not None:
        digest -= effect.before.fingerprint
    if record is not None and not record.deleted:
        digest += record.fingerprint
    if record is not None and cascade:
        digest -= state.sums[record.id]
    if (member := effect.member) is not None:
        owner_id = actor if state.budget is None else state.budget.owner_id
        others = [each for each in state.participants if each != member.user_id]
        now = [*others, member.user_id] if member.active else others
        digest -= _of_participants(state.participants, owner_id, (member.user_id, effect.owner))
        digest += _of_participants(now, effect.owner or owner_id, (member.user_id, effect.owner))
    return digest % DIGEST_MODULUS


def _of_participants(
    participants: Collection[UserId], owner_id: UserId, users: Collection[UserId | None]
) -> int:
    """What those of `users` who take part add to the digest."""
    return sum(
        participant_fingerprint(user_id, role_of(user_id, owner_id))
        for user_id in dict.fromkeys(users)
        if user_id is not None and user_id in participants
    )


def _text(record: Record) -> bytes:
    return orjson.dumps(record.to_json(), default=str)
