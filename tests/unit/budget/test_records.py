"""Records on the wire, and what becomes of them. Their digest is in test_digest.py."""

from decimal import Decimal

import orjson
import pytest

from hub.budget.digest import fields_hash, fingerprint
from hub.budget.kinds import BUDGET as BUDGETS, CATEGORY as CATEGORIES, EXPENSE as EXPENSES
from hub.budget.records import Record, role_of

BUDGET_ID = "00000000-0000-4000-8000-00000000000b"
CATEGORY_ID = "00000000-0000-4000-8000-00000000000c"
EXPENSE_ID = "00000000-0000-4000-8000-00000000000e"

BUDGET = Record.first(
    BUDGETS,
    (BUDGET_ID, BUDGET_ID),
    "ann",
    {"title": "Home", "details": "Flat 3", "currency": "EUR"},
    1_700_000_000_000,
    1,
)
CATEGORY = Record.first(
    CATEGORIES,
    (BUDGET_ID, CATEGORY_ID),
    "ann",
    {"name": "Food", "allocate": Decimal("200.00")},
    1_700_000_000_001,
    2,
)
EXPENSE = Record.first(
    EXPENSES,
    (BUDGET_ID, EXPENSE_ID),
    "ben",
    {"amount": Decimal("12.50"), "date": "2026-03-01", "note": "Café"},
    1_700_000_000_002,
    3,
)


def hashes(record: Record) -> tuple[bytes, int]:
    """C and fingerprint, computed anew."""
    hashed = fields_hash(record.kind, record.values)
    return hashed, fingerprint(record.kind.name, record.id, record.version, hashed)


def test_records_on_the_wire() -> None:
    """P12: money as text."""
    records = [
        orjson.loads(orjson.dumps(each.to_json(), default=str))
        for each in (BUDGET, CATEGORY, EXPENSE)
    ]
    assert records == [
        {
            "id": BUDGET_ID,
            "createdBy": "ann",
            "title": "Home",
            "details": "Flat 3",
            "currency": "EUR",
            "version": 1,
            "offlineLastModified": 1_700_000_000_000,
        },
        {
            "id": CATEGORY_ID,
            "budgetId": BUDGET_ID,
            "createdBy": "ann",
            "name": "Food",
            "allocate": "200.00",
            "version": 1,
            "offlineLastModified": 1_700_000_000_001,
        },
        {
            "id": EXPENSE_ID,
            "budgetId": BUDGET_ID,
            "categoryId": None,
            "createdBy": "ben",
            "date": "2026-03-01",
            "amount": "12.50",
            "note": "Café",
            "version": 1,
            "offlineLastModified": 1_700_000_000_002,
        },
    ]


@pytest.mark.parametrize("record", [BUDGET, CATEGORY, EXPENSE])
def test_a_first_version(record: Record) -> None:
    assert (record.version, record.deleted) == (1, False)
    assert record.created_sequence == record.last_sequence
    assert (record.fields_hash, record.fingerprint) == hashes(record)


def test_a_required_field_has_to_be_named() -> None:
    with pytest.raises(KeyError):
        Record.first(EXPENSES, (BUDGET_ID, EXPENSE_ID), "ben", {"date": "2026-03-01"}, 0, 1)


def test_an_edit_changes_what_it_names() -> None:
    edited = EXPENSE.edited({"note": None, "amount": Decimal("1.00")}, 5, 9)
    assert edited.fields() == {**EXPENSE.fields(), "note": None, "amount": Decimal("1.00")}
    assert (edited.version, edited.when, edited.last_sequence) == (2, 5, 9)
    assert edited.created_sequence == EXPENSE.created_sequence
    assert (edited.fields_hash, edited.fingerprint) == hashes(edited)


@pytest.mark.parametrize("record", [BUDGET, CATEGORY, EXPENSE])
def test_a_tombstone_is_the_whole_record_marked_deleted(record: Record) -> None:
    gone = record.tombstone(7, 9)
    changed = {"version": 2, "offlineLastModified": 7, "deleted": True}
    assert gone.to_json() == {**record.to_json(), **changed}
    assert (gone.fields_hash, gone.fingerprint) == (record.fields_hash, record.fingerprint)
    assert gone.last_sequence == 9


def test_ownership_stands_with_the_budget() -> None:
    assert (role_of("ann", "ann"), role_of("ben", "ann")) == ("owner", "editor")
