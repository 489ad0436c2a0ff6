"""One budget as a device holds it: the records after the last event, and their digest.

Pure: no socket, no clock. Events come in as the server streams them (design 3.2) and must be the
next in line; keeping that order is the caller's part. Written from the wire's description alone, so
that it and the hub cannot share a mistake.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]  # a live record, shaped like the server's DTO of it
RecordKey: TypeAlias = tuple[str, str]  # kind, id

# Kind → the fields an event may name, in the order in which the fingerprint covers them.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "budget": ("title", "details", "currency"),
    "category": ("name", "allocate"),
    "expense": ("categoryId", "amount", "date", "note"),
}

_DIGEST_MODULUS = 1 << 64
_SEPARATOR = "\x1f"


class Diverged(Exception):
    """An event does not fit the records before it, or its digest is not that of those after it."""


class Replica:
    """The live records of one budget at `sequence`, changed by `apply` only.

    `digest` is an unsigned 64-bit integer, kept with one subtraction and one addition per changed
    record. Deleted records are gone: their ids never come back.
    """

    def __init__(self, budget_id: str) -> None:
        self.budget_id = budget_id
        self.sequence = 0
        self.digest = 0
        self.records: dict[RecordKey, Record] = {}
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
        if snapshot["digest"] != replica.digest_text:
            raise Diverged(
                f"the snapshot's records have digest {replica.digest_text}, it states"
                f" {snapshot['digest']}"
            )
        return replica

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take the next stream event. An event of an unknown kind changes no record.

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
    """First 8 bytes, big-endian, of SHA-256 of the record's covered fields joined by U+001F."""
    fields = [kind, record["id"], str(record["version"])]
    fields += [record[field] or "" for field in FIELDS[kind]]
    return int.from_bytes(sha256(_SEPARATOR.join(fields).encode()).digest()[:8], "big")


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
