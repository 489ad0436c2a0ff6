"""Records: the rows with a version (the budget itself, a category, an expense), and their digest.

Money is `Decimal` with two places (P12). `when` is the client's clock of the last accepted change,
in epoch milliseconds; it goes out as `offlineLastModified`. `fingerprint` and `digest` are unsigned
64-bit integers.
"""

from decimal import Decimal
from hashlib import sha256
from typing import NamedTuple, TypeAlias

BudgetId: TypeAlias = str
UserId: TypeAlias = str

DIGEST_MODULUS = 1 << 64
_SEPARATOR = "\x1f"


class Budget(NamedTuple):
    id: BudgetId
    created_by: UserId
    owner_id: UserId
    title: str
    details: str | None
    currency: str | None
    version: int
    deleted: bool
    when: int
    fingerprint: int
    record_sequence: int  # the event that last changed this record
    last_sequence: int  # the head of the budget's log
    digest: int

    def fingerprinted(self) -> "Budget":
        value = fingerprint(
            "budget", self.id, str(self.version), self.title, self.details, self.currency
        )
        return Budget(*self[:9], value, *self[10:])  # `_replace` takes three times as long

    def moved_on(self, sequence: int, digest: int) -> "Budget":
        """With another head and digest."""
        return Budget(*self[:11], sequence, digest)

    def to_json(self) -> dict[str, object]:
        return _marked(
            self.deleted,
            {
                "id": self.id,
                "createdBy": self.created_by,
                "title": self.title,
                "details": self.details,
                "currency": self.currency,
                "version": self.version,
                "offlineLastModified": self.when,
            },
        )


class Category(NamedTuple):
    budget_id: BudgetId
    id: str
    created_by: UserId
    name: str
    allocate: Decimal
    version: int
    deleted: bool
    when: int
    fingerprint: int
    created_sequence: int
    last_sequence: int  # the event that last changed this record

    def fingerprinted(self) -> "Category":
        value = fingerprint("category", self.id, str(self.version), self.name, str(self.allocate))
        return Category(*self[:8], value, *self[9:])

    def to_json(self) -> dict[str, object]:
        return _marked(
            self.deleted,
            {
                "id": self.id,
                "budgetId": self.budget_id,
                "createdBy": self.created_by,
                "name": self.name,
                "allocate": str(self.allocate),
                "version": self.version,
                "offlineLastModified": self.when,
            },
        )


class Expense(NamedTuple):
    budget_id: BudgetId
    id: str
    created_by: UserId
    category_id: str | None
    amount: Decimal
    date: str  # YYYY-MM-DD
    note: str | None
    version: int
    deleted: bool
    when: int
    fingerprint: int
    created_sequence: int
    last_sequence: int  # the event that last changed this record

    def fingerprinted(self) -> "Expense":
        value = fingerprint(
            "expense",
            self.id,
            str(self.version),
            self.category_id,
            str(self.amount),
            self.date,
            self.note,
        )
        return Expense(*self[:10], value, *self[11:])

    def to_json(self) -> dict[str, object]:
        return _marked(
            self.deleted,
            {
                "id": self.id,
                "budgetId": self.budget_id,
                "categoryId": self.category_id,
                "createdBy": self.created_by,
                "date": self.date,
                "amount": str(self.amount),
                "note": self.note,
                "version": self.version,
                "offlineLastModified": self.when,
            },
        )


Record: TypeAlias = Budget | Category | Expense


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


def fingerprint(*fields: str | None) -> int:
    """First 8 bytes, big-endian, of SHA-256 of the fields joined by U+001F; absent is empty
    (design 3.2)."""
    text = _SEPARATOR.join([field or "" for field in fields])
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def digest_text(digest: int) -> str:
    """16 lower-case hex digits, as the wire shows a digest."""
    return f"{digest:016x}"


def _marked(deleted: bool, json: dict[str, object]) -> dict[str, object]:
    if deleted:
        json["deleted"] = True
    return json
