"""Records: what has a version (the budget itself, a category, an expense), members and invites.

Money is `Decimal` with two places (P12). `when` is the client's clock of the last accepted change,
in epoch milliseconds; it goes out as `offlineLastModified`. `fingerprint` and `digest` are unsigned
64-bit integers (`hub.budget.digest`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from hub.budget.digest import Role, fields_hash, fingerprint
from hub.budget.kinds import BUDGET, REQUIRED, Kind

BudgetId: TypeAlias = str
UserId: TypeAlias = str
RecordKey: TypeAlias = tuple[str, str]  # name of the kind, id


class Record(NamedTuple):
    """`values` are those of `kind.fields`, in their order. A budget is a record of itself.

    `fields_hash` is C of the digest. It and the fingerprint of a tombstone are those of its last
    living version. Sequences are those of the events that made and last changed the record."""

    kind: Kind
    budget_id: BudgetId
    id: str
    created_by: UserId
    version: int
    deleted: bool
    when: int
    fields_hash: bytes
    fingerprint: int
    created_sequence: int
    last_sequence: int
    values: Sequence[Any]

    @classmethod
    def first(
        cls,
        kind: Kind,
        key: tuple[BudgetId, str],
        created_by: UserId,
        named: Mapping[str, Any],
        when: int,
        sequence: int,
    ) -> "Record":
        """Version 1. `key` is budget and record id; what is not in `named` has its default, so all
        required fields have to be."""
        values = []
        for name, default in kind.defaults:
            values.append(named[name] if default is REQUIRED else named.get(name, default))
        hashed = fields_hash(kind, values)
        value = fingerprint(kind.name, key[1], 1, hashed)
        return cls(
            kind, *key, created_by, 1, False, when, hashed, value, sequence, sequence, tuple(values)
        )

    def edited(self, named: Mapping[str, Any], when: int, sequence: int) -> "Record":
        """The next version, with the fields of `named` changed."""
        values = list(self.values)
        for name, value in named.items():
            values[self.kind.positions[name]] = value
        hashed = fields_hash(self.kind, values)
        version = self.version + 1
        value = fingerprint(self.kind.name, self.id, version, hashed)
        # `_replace` takes three times as long.
        return Record(
            *self[:4], version, False, when, hashed, value, self[9], sequence, tuple(values)
        )

    def tombstone(self, when: int, sequence: int) -> "Record":
        """The next version, deleted."""
        return Record(*self[:4], self.version + 1, True, when, *self[7:10], sequence, self.values)

    def value(self, name: str) -> Any:
        """Of one field, by its name in JSON."""
        return self.values[self.kind.positions[name]]

    def fields(self) -> dict[str, Any]:
        """Name → value, in the order of the table."""
        return dict(zip(self.kind.positions, self.values, strict=True))

    def to_json(self) -> dict[str, Any]:
        """As clients see it, for `orjson.dumps(…, default=str)`."""
        json: dict[str, Any] = {"id": self.id}
        if self.kind is not BUDGET:
            json["budgetId"] = self.budget_id
        json["createdBy"] = self.created_by
        json.update(zip(self.kind.positions, self.values, strict=True))
        json["version"] = self.version
        json["offlineLastModified"] = self.when
        if self.deleted:
            json["deleted"] = True
        return json


class Budget(NamedTuple):
    """A budget: its own record, who owns it, how far its log is, and what it uses of its quotas."""

    record: Record
    owner_id: UserId
    last_sequence: int  # the head of the budget's log
    digest: int
    record_count: int = 0  # categories, expenses, …; tombstones too
    log_bytes: int = 0  # of the events in the log, and of the records that their verdicts hold

    @property
    def deleted(self) -> bool:
        return self.record.deleted


class Membership(NamedTuple):
    """A participant, or a former one: the row stays when they leave (P9 tells them apart).

    `removed_at` says that the owner removed them, `last_sequence` by which event they came or went.
    Times are epoch milliseconds."""

    budget_id: BudgetId
    user_id: UserId
    joined_at: int
    active: bool
    removed_at: int | None = None
    last_sequence: int = 1


class Invite(NamedTuple):
    """A way into a budget for anybody with its token, which is stored as a hash. Times are epoch
    milliseconds; `created_sequence` is how long the log was, by which the storage knows what came
    before: the clocks of two nodes differ."""

    budget_id: BudgetId
    id: str
    token_hash: bytes
    created_at: int
    expires_at: int
    max_uses: int
    uses: int
    revoked: bool
    created_sequence: int = 0

    def admits(self, now_ms: int) -> bool:
        return not self.revoked and self.uses < self.max_uses and now_ms < self.expires_at


def role_of(user_id: UserId, owner_id: UserId) -> Role:
    """The role of a participant. Ownership stands once, with the budget."""
    return "owner" if user_id == owner_id else "editor"
