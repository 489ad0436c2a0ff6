"""Records on the wire, their fingerprints and the digest (P6), against values computed by hand."""

from decimal import Decimal

import pytest
from hypothesis import given, settings, strategies as st

from hub.budget.records import (
    DIGEST_MODULUS,
    Budget,
    Category,
    Expense,
    Record,
    digest_text,
    fingerprint,
)

BUDGET_ID = "00000000-0000-4000-8000-00000000000b"
CATEGORY_ID = "00000000-0000-4000-8000-00000000000c"
EXPENSE_ID = "00000000-0000-4000-8000-00000000000e"

BUDGET = Budget(
    id=BUDGET_ID,
    created_by="ann",
    owner_id="ben",
    title="Home",
    details="Flat 3",
    currency="EUR",
    version=1,
    deleted=False,
    when=1_700_000_000_000,
    fingerprint=0,
    record_sequence=1,
    last_sequence=7,
    digest=0,
)
CATEGORY = Category(
    budget_id=BUDGET_ID,
    id=CATEGORY_ID,
    created_by="ann",
    name="Food",
    allocate=Decimal("200.00"),
    version=1,
    deleted=False,
    when=1_700_000_000_001,
    fingerprint=0,
    created_sequence=2,
    last_sequence=2,
)
EXPENSE = Expense(
    budget_id=BUDGET_ID,
    id=EXPENSE_ID,
    created_by="ben",
    category_id=CATEGORY_ID,
    amount=Decimal("12.50"),
    date="2026-03-01",
    note="Café",
    version=1,
    deleted=False,
    when=1_700_000_000_002,
    fingerprint=0,
    created_sequence=3,
    last_sequence=3,
)

# From the command line, field by field, as design 3.2 says:
#   printf 'category\x1f<id>\x1f1\x1fFood\x1f200.00' | sha256sum | cut -c1-16
BY_HAND: list[tuple[Record, int]] = [
    (BUDGET, 0x3AFC32AD71DF4F6B),
    (BUDGET._replace(version=2, details=None, currency=None), 0xE1490366946C3F16),
    (CATEGORY, 0x86388C91CC7FF833),
    (CATEGORY._replace(version=7, allocate=Decimal("0.00")), 0x559AE9875AA43822),
    (EXPENSE, 0x0AC559D56B64C0BA),
    (
        EXPENSE._replace(version=2, category_id=None, amount=Decimal("9999999999.99"), note=None),
        0x2991EF2DC6C39B7D,
    ),
]


@pytest.mark.parametrize(("record", "expected"), BY_HAND)
def test_p6_fingerprints_computed_by_hand(record: Record, expected: int) -> None:
    assert record.fingerprinted() == record._replace(fingerprint=expected)


def test_p6_a_digest_computed_by_hand() -> None:
    """0x3afc32ad71df4f6b + 0x86388c91cc7ff833 + 0x0ac559d56b64c0ba, and one that overflows."""
    total = sum(record.fingerprinted().fingerprint for record in (BUDGET, CATEGORY, EXPENSE))
    assert digest_text(total % DIGEST_MODULUS) == "cbfa1914a9c40858"
    total += 0xE1490366946C3F16
    assert digest_text(total % DIGEST_MODULUS) == "ad431c7b3e30476e"


@pytest.mark.parametrize(
    ("digest", "text"),
    [(0, "0" * 16), (10, "000000000000000a"), (2**64 - 1, "f" * 16), (2**63, "8" + "0" * 15)],
)
def test_a_digest_is_shown_as_16_lower_case_hex_digits(digest: int, text: str) -> None:
    assert digest_text(digest) == text


def test_p6_a_fingerprint_covers_what_everyone_sees_and_no_more() -> None:
    seen: list[tuple[Record, list[Record]]] = [
        (
            BUDGET,
            [
                BUDGET._replace(id=CATEGORY_ID),
                BUDGET._replace(version=2),
                BUDGET._replace(title="House"),
                BUDGET._replace(details=None),
                BUDGET._replace(currency="USD"),
            ],
        ),
        (
            CATEGORY,
            [
                CATEGORY._replace(id=EXPENSE_ID),
                CATEGORY._replace(version=2),
                CATEGORY._replace(name="food"),
                CATEGORY._replace(allocate=Decimal("200.01")),
            ],
        ),
        (
            EXPENSE,
            [
                EXPENSE._replace(id=CATEGORY_ID),
                EXPENSE._replace(version=2),
                EXPENSE._replace(category_id=None),
                EXPENSE._replace(amount=Decimal("12.51")),
                EXPENSE._replace(date="2026-03-02"),
                EXPENSE._replace(note="Cafe"),
            ],
        ),
    ]
    unseen: list[tuple[Record, Record]] = [
        (BUDGET, BUDGET._replace(created_by="x", owner_id="x", when=1, last_sequence=9, digest=9)),
        (CATEGORY, CATEGORY._replace(created_by="x", when=1, last_sequence=9)),
        (EXPENSE, EXPENSE._replace(created_by="x", when=1, last_sequence=9)),
    ]
    for record, others in seen:
        prints = {each.fingerprinted().fingerprint for each in (record, *others)}
        assert len(prints) == 1 + len(others)
    for record, other in unseen:
        assert record.fingerprinted().fingerprint == other.fingerprinted().fingerprint


def test_absent_and_empty_are_one_to_the_fingerprint() -> None:
    assert fingerprint("a", None, "b") == fingerprint("a", "", "b") != fingerprint("a", "b")


@settings(deadline=None)
@given(st.lists(st.none() | st.text(), min_size=1))
def test_a_fingerprint_has_64_bits_for_any_text(fields: list[str | None]) -> None:
    assert 0 <= fingerprint(*fields) < DIGEST_MODULUS


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, DIGEST_MODULUS - 1), st.booleans()), max_size=40))
def test_p6_a_digest_kept_is_a_digest_recomputed(steps: list[tuple[int, bool]]) -> None:
    """One addition per record that comes, one subtraction per record that goes, in any order."""
    kept, live = 0, list[int]()
    for value, goes in steps:
        if goes and live:
            kept = (kept - live.pop(value % len(live))) % DIGEST_MODULUS
        else:
            live.append(value)
            kept = (kept + value) % DIGEST_MODULUS
        assert digest_text(kept) == digest_text(sum(live) % DIGEST_MODULUS)


def test_records_on_the_wire() -> None:
    """P12: money as text."""
    assert BUDGET.to_json() == {
        "id": BUDGET_ID,
        "createdBy": "ann",
        "title": "Home",
        "details": "Flat 3",
        "currency": "EUR",
        "version": 1,
        "offlineLastModified": 1_700_000_000_000,
    }
    assert CATEGORY.to_json() == {
        "id": CATEGORY_ID,
        "budgetId": BUDGET_ID,
        "createdBy": "ann",
        "name": "Food",
        "allocate": "200.00",
        "version": 1,
        "offlineLastModified": 1_700_000_000_001,
    }
    assert EXPENSE.to_json() == {
        "id": EXPENSE_ID,
        "budgetId": BUDGET_ID,
        "categoryId": CATEGORY_ID,
        "createdBy": "ben",
        "date": "2026-03-01",
        "amount": "12.50",
        "note": "Café",
        "version": 1,
        "offlineLastModified": 1_700_000_000_002,
    }


@pytest.mark.parametrize("record", [BUDGET, CATEGORY, EXPENSE])
def test_a_tombstone_is_the_whole_record_marked_deleted(record: Record) -> None:
    assert record._replace(deleted=True).to_json() == {**record.to_json(), "deleted": True}
