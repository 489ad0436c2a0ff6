"""One budget as a device holds it: records, members and roles after the last event; their digest.

Pure: no socket, no clock. Events come in as the server streams them (design 3.2) and must be the
next in line; keeping that order is the caller's part. Written from the wire's description alone, so
that it and the hub cannot share a mistake.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]  # a live record, shaped like the server's DTO of it
RecordKey: TypeAlias = tuple[str, str]  # kind, id

# Kind → the fields an event may name, and which of them are null unless they are named.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "budget": ("title", "details", "currency"),
    "category": ("name", "allocate"),
    "expense": ("categoryId", "amount", "date", "note"),
}
NULL_BY_DEFAULT = {"details", "currency", "categoryId", "note"}

_DIGEST_MODULUS = 1 << 64


class Diverged(Exception):
    """An event does not fit the records before it, or its digest is not that of those after it."""


class Replica:
    """The live records and the members of one budget at `sequence`, changed by `apply` only.

    `digest` is an unsigned 64-bit integer, kept with one subtraction and one addition per changed
    record or member. Deleted records are gone: their ids never come back. `members` has the role of
    each user who takes part.
    """

    def __init__(self, budget_id: str) -> None:
        self.budget_id = budget_id
        self.sequence = 0
        self.digest = 0
        self.records: dict[RecordKey, Record] = {}
        self.members: dict[str, str] = {}
        self._expenses: dict[str, set[str]] = {}  # ids, by category

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any]) -> "Replica":
        """What `GET /budgets/:id` shows.

        Raises `Diverged` where its digest is not that of its records, and `KeyError` where a field
        of the documented shape is missing.
        """
        replica = cls(snapshot["id"])
        replica.sequence = snapshot["lastEventSequence"]
        replica._put("budget", _record("budget", snapshot))
        for category in snapshot["categories"]:
            replica._put("category", _record("category", category))
        for expense in snapshot["expenses"]:
            replica._put("expense", _record("expense", expense))
        for participant in snapshot["participants"]:
            replica._join(participant["userId"], participant["role"])
        if snapshot["digest"] != replica.digest_text:
            raise Diverged(
                f"the snapshot's records have digest {replica.digest_text}, it states"
                f" {snapshot['digest']}"
            )
        return replica

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take the next stream event. An event of an unknown kind changes nothing.

        Raises `Diverged`, and `KeyError` where the event is not of the documented shape.
        """
        kind, _, verb = event["eventType"].partition(".")
        if kind in FIELDS:
            if verb in ("create", "add"):
                self._add(kind, event)
            elif verb == "edit":
                self._edit(kind, event)
            elif verb == "delete":
                self._delete(kind, event)
        elif kind == "participant":
            self._member(verb, event)
        if event["eventType"] == "budget.create":
            self._join(event["actorId"], "owner")
        self.sequence = event["sequence"]
        if event["digest"] != self.digest_text:
            raise Diverged(
                f"the digest after {_named(event)} is {self.digest_text} here and"
                f" {event['digest']} at the server"
            )

    @property
    def digest_text(self) -> str:
        """16 lower-case hex digits, as on the wire."""
        return f"{self.digest:016x}"

    def expenses_of(self, category_id: str) -> list[str]:
        """The ids of its live expenses, which go when it is deleted."""
        return list(self._expenses.get(category_id, ()))

    def difference(self, other: "Replica") -> str | None:
        """Where two replicas of one budget differ, in words; None if they are the same."""
        if self.sequence != other.sequence:
            return f"sequence {self.sequence} against {other.sequence}"
        if self.records != other.records:
            for key in sorted(self.records.keys() | other.records.keys()):
                mine, theirs = self.records.get(key), other.records.get(key)
                if mine != theirs:
                    return f"{key[0]} {key[1]}: {mine} against {theirs}"
        if self.members != other.members:
            return f"members {self.members} against {other.members}"
        if self.digest != other.digest:
            return f"digest {self.digest_text} against {other.digest_text}"
        return None

    def _add(self, kind: str, event: Mapping[str, Any]) -> None:
        if (kind, event["recordId"]) in self.records:
            raise Diverged(f"{_named(event)} adds a record that exists")
        _check_version(event, 1)
        origin = {
            "id": event["recordId"],
            "budgetId": event["budgetId"],
            "createdBy": event["actorId"],
            "offlineLastModified": event["when"],
        }
        self._put(kind, _record(kind, {**event, **origin}))

    def _edit(self, kind: str, event: Mapping[str, Any]) -> None:
        record = self._changed(kind, event)
        named = {field: event[field] for field in FIELDS[kind] if field in event}
        self._take_out(kind, record["id"])
        self._put(
            kind,
            {
                **record,
                **named,
                "version": event["version"],
                "offlineLastModified": event["when"],
            },
        )

    def _delete(self, kind: str, event: Mapping[str, Any]) -> None:
        record = self._changed(kind, event)
        if kind == "category":
            for expense_id in self.expenses_of(record["id"]):
                self._take_out("expense", expense_id)
            self._expenses.pop(record["id"], None)
        self._take_out(kind, record["id"])

    def _member(self, verb: str, event: Mapping[str, Any]) -> None:
        participant = event["participant"]
        user_id = participant["userId"]
        if verb == "remove" and user_id not in self.members and event["actorId"] != user_id:
            return  # they had left before: only the way back is barred now
        if (verb == "add") == (user_id in self.members):
            raise Diverged(f"{_named(event)} and {user_id} does or does not take part before")
        owner_id = event.get("owner")
        if owner_id is not None:
            for former in [each for each, role in self.members.items() if role == "owner"]:
                self._leave(former)
                self._join(former, "editor")
        if verb == "add":
            self._join(user_id, participant["role"])
        else:
            self._leave(user_id)
        if owner_id is not None:
            self._leave(owner_id)
            self._join(owner_id, "owner")

    def _join(self, user_id: str, role: str) -> None:
        self.members[user_id] = role
        self.digest = (self.digest + member_fingerprint(user_id, role)) % _DIGEST_MODULUS

    def _leave(self, user_id: str) -> None:
        role = self.members.pop(user_id)
        self.digest = (self.digest - member_fingerprint(user_id, role)) % _DIGEST_MODULUS

    def _changed(self, kind: str, event: Mapping[str, Any]) -> Record:
        record = self.records.get((kind, event["recordId"]))
        if record is None:
            raise Diverged(f"{_named(event)} changes a record that is not here")
        _check_version(event, record["version"] + 1)
        return record

    def _put(self, kind: str, record: Record) -> None:
        self.records[kind, record["id"]] = record
        if kind == "expense" and record["categoryId"] is not None:
            self._expenses.setdefault(record["categoryId"], set()).add(record["id"])
        self.digest = (self.digest + fingerprint(kind, record)) % _DIGEST_MODULUS

    def _take_out(self, kind: str, record_id: str) -> None:
        record = self.records.pop((kind, record_id))
        if kind == "expense" and record["categoryId"] is not None:
            self._expenses.get(record["categoryId"], set()).discard(record_id)
        self.digest = (self.digest - fingerprint(kind, record)) % _DIGEST_MODULUS


def fingerprint(kind: str, record: Mapping[str, Any]) -> int:
    """What a record adds to the digest."""
    fields = {
        name: record[name]
        for name in FIELDS[kind]
        if record[name] is not None or name not in NULL_BY_DEFAULT
    }
    return _fingerprint(kind, record["id"], record["version"], fields)


def member_fingerprint(user_id: str, role: str) -> int:
    """What somebody who takes part adds to the digest."""
    return _fingerprint("participant", user_id, 1, {"role": role})


def _fingerprint(kind: str, id: str, version: int, fields: Mapping[str, str]) -> int:
    said = "".join(f"{_netstring(name)}{_netstring(fields[name])}" for name in sorted(fields))
    of_fields = sha256(said.encode()).digest()
    head = f"{_netstring(kind)}{_netstring(id)}{_netstring(str(version))}"
    return int.from_bytes(sha256(head.encode() + of_fields).digest()[:8], "big")


def _netstring(text: str) -> str:
    return f"{len(text.encode())}:{text},"


def _record(kind: str, source: Mapping[str, Any]) -> Record:
    """The documented fields of a record. Others are left out: a newer server may send more."""
    of_budget = () if kind == "budget" else ("budgetId",)
    names = ("id", *of_budget, "createdBy", *FIELDS[kind], "version", "offlineLastModified")
    return {name: source[name] for name in names}


def _check_version(event: Mapping[str, Any], due: int) -> None:
    if event["version"] != due:
        raise Diverged(f"{_named(event)} makes version {event['version']} where {due} is next")


def _named(event: Mapping[str, Any]) -> str:
    return f"sequence {event['sequence']} ({event['eventType']}, event {event['eventId']})"
