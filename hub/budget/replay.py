"""Replay: a budget rebuilt from its stream events, and from nothing else.

The log is the truth and the tables are a convenience (design 1); `verify` compares the two, and
needs this second opinion. The steps restate what design 3.1 says an accepted event does; of the
kinds' table they take the names of the fields only. Whether an event should have been accepted is
for `hub.budget.rules`.

| event                | what changes                                                            |
|----------------------|-------------------------------------------------------------------------|
| `*.create`, `*.add`  | a record at version 1, made by the event's actor; a field that an old   |
|                      | event lacks has its default                                             |
| `*.edit`             | the fields it names; version +1                                         |
| `*.delete`           | a tombstone: the fields stay, version +1; the fingerprint of its last   |
|                      | living version stays with it, but counts in the digest no more          |
| … of a category      | its live expenses too: version +1, the event's sequence and `when`      |
| `budget.create`      | its actor takes part and owns the budget                                |
| `participant.add`    | the user takes part (again)                                             |
| `participant.remove` | they do no longer; of who had left by themselves the owner says so too  |
| … either             | `owner`, where it is named, owns the budget from now on                 |

Membership events change no record. The digest counts who takes part, with their role.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hub.budget.digest import DIGEST_MODULUS, digest_text, participant_fingerprint
from hub.budget.kinds import BUDGET, KINDS, Kind
from hub.budget.records import Budget, BudgetId, Record, RecordKey, UserId, role_of

_MEMBERSHIP = {"participant.add": True, "participant.remove": False}


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

    `digest` is the one after the last event.
    """

    def __init__(self, budget_id: BudgetId) -> None:
        self.budget_id = budget_id
        self.head = 0
        self.digest = 0
        self.owner_id: UserId | None = None
        self.records: dict[RecordKey, Record] = {}  # the budget's own is among them
        self.members: dict[UserId, Member] = {}
        self._live: dict[str, set[RecordKey]] = {}  # by what they fall with, for a cascade

    @property
    def budget(self) -> Budget | None:
        record = self.records.get((BUDGET.name, self.budget_id))
        if record is None or self.owner_id is None:
            return None
        return Budget(record, self.owner_id, self.head, self.digest)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take the next stream event, decoded, and hold its digest against the replica's.

        Raises `ReplayError` for what `follow` does, and a digest other than the event's own.
        """
        self.follow(event)
        if "digest" not in event:
            raise ReplayError(self.head, "fields", "as documented", "no digest")
        _check(event, "digest", digest_text(self.digest), event["digest"])

    def follow(self, event: Mapping[str, Any]) -> None:
        """Take the next stream event without a look at its digest.

        Raises `ReplayError` for a gap in the sequences, another budget's event, a type that is not
        of design 3.1, a field that is missing or of the wrong kind, a record that must or must not
        exist, and a version that is not the next one.
        """
        sequence = event.get("sequence")
        if sequence != self.head + 1:
            raise ReplayError(sequence, "sequence", self.head + 1, sequence)
        try:
            self._step(event)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ReplayError(sequence, "fields", "as documented", type(error).__name__) from error
        self.head = sequence

    def record_of(self, event: Mapping[str, Any]) -> Record | None:
        """The record that an applied event is about, as it is now; None for a membership event."""
        kind = str(event["eventType"]).partition(".")[0]
        return self.records[kind, event["recordId"]] if kind in KINDS else None

    def _step(self, event: Mapping[str, Any]) -> None:
        event_type = event["eventType"]
        kind_name, _, verb = event_type.partition(".")
        kind = KINDS.get(kind_name)
        _check(event, "budgetId", self.budget_id, event["budgetId"])
        if event_type not in _MEMBERSHIP and (kind is None or verb not in kind.verbs):
            raise ReplayError(event["sequence"], "eventType", "one of design 3.1", event_type)
        _check(event, "budget exists", verb != "create", self.owner_id is not None)
        if kind is None:
            self._change_member(event)
            return
        if kind is BUDGET:
            _check(event, "recordId", self.budget_id, event["recordId"])
        if verb == "create":
            self.owner_id = event["actorId"]
            self._put_member(event["actorId"], Member(active=True, joined_at=None))
        if verb in ("create", "add"):
            self._add(kind, event)
        else:
            self._change(kind, event, deleted=verb == "delete")

    def _add(self, kind: Kind, event: Mapping[str, Any]) -> None:
        key = (kind.name, event["recordId"])
        _check(event, f"{kind.name} exists", False, key in self.records)
        _check(event, "version", 1, event["version"])
        self._put(
            None,
            Record.first(
                kind,
                (self.budget_id, event["recordId"]),
                event["actorId"],
                dict(_named(kind, event)),
                event["when"],
                event["sequence"],
            ),
        )

    def _change(self, kind: Kind, event: Mapping[str, Any], *, deleted: bool) -> None:
        record = self.records.get((kind.name, event["recordId"]))
        if record is None or record.deleted:
            found = "none" if record is None else "a tombstone"
            raise ReplayError(event["sequence"], "record", "a live one", found)
        _check(event, "version", record.version + 1, event["version"])
        when, sequence = event["when"], event["sequence"]
        if not deleted:
            self._put(record, record.edited(dict(_named(kind, event)), when, sequence))
            return
        self._put(record, record.tombstone(when, sequence))
        if kind.takes is not None:
            for key in sorted(self._live.get(record.id, ())):
                self._put(self.records[key], self.records[key].tombstone(when, sequence))

    def _change_member(self, event: Mapping[str, Any]) -> None:
        participant = event["participant"]
        user_id = participant["userId"]
        _check(event, "participant.userId", event["recordId"], user_id)
        _check(event, "participant.budgetId", self.budget_id, participant["budgetId"])
        active = _MEMBERSHIP[event["eventType"]]
        before = self.members.get(user_id)
        removed = not active and event["actorId"] != user_id
        if before is None or not removed:
            _check(event, "takes part before", not active, before is not None and before.active)
        self._put_member(user_id, Member(active, participant["joinedAt"]))
        if event.get("owner") is not None:
            owner = self.members.get(event["owner"])
            _check(event, "new owner takes part", True, owner is not None and owner.active)
            self._pass_on(event["owner"])
        assert self.owner_id is not None  # `_step` looked
        role = role_of(user_id, self.owner_id)
        # 0.1.0 wrote no role.
        _check(event, "participant.role", role, participant.get("role", role))

    def _put(self, before: Record | None, after: Record) -> None:
        """Keep a record, and the digest: what lived is taken out, what lives is added."""
        key = (after.kind.name, after.id)
        if before is not None:
            self._count(-before.fingerprint)
            for owner_id in _owners(before):
                self._live[owner_id].discard(key)
        if not after.deleted:
            self._count(after.fingerprint)
            for owner_id in _owners(after):
                self._live.setdefault(owner_id, set()).add(key)
        self.records[key] = after

    def _put_member(self, user_id: UserId, member: Member) -> None:
        self._count(-self._weight(user_id))
        self.members[user_id] = member
        self._count(self._weight(user_id))

    def _pass_on(self, owner_id: UserId) -> None:
        users = [each for each in (self.owner_id, owner_id) if each is not None]
        self._count(-sum(map(self._weight, users)))
        self.owner_id = owner_id
        self._count(sum(map(self._weight, users)))

    def _weight(self, user_id: UserId) -> int:
        """What the user adds to the digest: nothing, unless they take part."""
        member = self.members.get(user_id)
        if member is None or not member.active or self.owner_id is None:
            return 0
        return participant_fingerprint(user_id, role_of(user_id, self.owner_id))

    def _count(self, difference: int) -> None:
        self.digest = (self.digest + difference) % DIGEST_MODULUS


def _named(kind: Kind, event: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields that the event names, as records hold them."""
    for field in kind.fields:
        if field.name in event:
            value = event[field.name]
            if value is None and not field.nullable:
                raise TypeError(f"{field.name} is null")
            yield field.name, None if value is None else field.type.read(value)


def _owners(record: Record) -> Iterator[str]:
    """The ids of the records that take this one along when they are deleted."""
    for name, kind in record.kind.references:
        if kind.takes == record.kind.name and (owner_id := record.value(name)) is not None:
            yield owner_id


def _check(event: Mapping[str, Any], what: str, expected: object, found: object) -> None:
    if expected != found:
        raise ReplayError(event["sequence"], what, expected, found)
