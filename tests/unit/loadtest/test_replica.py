"""The load script's own idea of a budget, against values computed by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from loadtest.replica import Diverged, Replica, fingerprint

BUDGET = "00000000-0000-4000-8000-00000000000b"
CATEGORY = "00000000-0000-4000-8000-00000000000c"
EXPENSE = "00000000-0000-4000-8000-00000000000e"
OTHER_EXPENSE = "00000000-0000-4000-8000-00000000000f"

# From the command line, field by field, as design 3.2 says:
#   printf 'budget\x1f<id>\x1f1\x1fHome\x1f\x1fEUR' | sha256sum | cut -c1-16
BUDGET_1 = 0x4E44B29D17938B14  # version 1, Home, no details, EUR
BUDGET_2 = 0x09B9E90F6D4D32E4  # version 2, Home, Flat 3, no currency
CATEGORY_1 = 0x86388C91CC7FF833  # version 1, Food, 200.00
EXPENSE_1 = 0x0AC559D56B64C0BA  # version 1, in the category, 12.50, 2026-03-01, Café
EXPENSE_2 = 0xE739BD4F8030EA37  # version 2, the same without its note
OTHER_1 = 0x7850F9801C893F15  # version 1, in no category, 0.99, 2026-03-02, no note
OTHER_2 = 0x5DA0BD8EAF7CB8D9  # version 2, moved into the category


def event(sequence: int, event_type: str, record_id: str, digest: int, **fields: Any) -> Any:
    return {
        "sequence": sequence,
        "eventId": f"event-{sequence}",
        "eventType": event_type,
        "budgetId": BUDGET,
        "recordId": record_id,
        "actorId": "ann",
        "when": 1000 + sequence,
        "digest": f"{digest % 2**64:016x}",
        **fields,
    }


def story() -> list[Any]:
    """One budget's stream from its creation to a cascade."""
    first = BUDGET_1 + CATEGORY_1 + EXPENSE_1
    return [
        event(
            1, "budget.create", BUDGET, BUDGET_1, version=1, title="Home", details=None,
            currency="EUR",
        ),
        event(
            2, "category.add", CATEGORY, BUDGET_1 + CATEGORY_1, version=1, name="Food",
            allocate="200.00",
        ),
        event(
            3, "expense.add", EXPENSE, first, version=1, categoryId=CATEGORY, amount="12.50",
            date="2026-03-01", note="Café",
        ),
        event(
            4, "expense.add", OTHER_EXPENSE, first + OTHER_1, version=1, categoryId=None,
            amount="0.99", date="2026-03-02", note=None,
        ),
        event(
            5, "budget.edit", BUDGET, BUDGET_2 + CATEGORY_1 + EXPENSE_1 + OTHER_1, version=2,
            details="Flat 3", currency=None,
        ),
        event(
            6, "expense.edit", EXPENSE, BUDGET_2 + CATEGORY_1 + EXPENSE_2 + OTHER_1, version=2,
            note=None,
        ),
        event(7, "category.delete", CATEGORY, BUDGET_2 + OTHER_1, version=2),
    ]  # fmt: skip


def replica_after(events: Sequence[Any]) -> Replica:
    replica = Replica(BUDGET)
    for item in events:
        replica.apply(item)
    return replica


def test_a_fingerprint_is_the_first_8_bytes_of_sha256_with_null_as_empty() -> None:
    budget = {"id": BUDGET, "version": 1, "title": "Home", "details": None, "currency": "EUR"}
    assert fingerprint("budget", budget) == BUDGET_1
    assert fingerprint("budget", budget | {"currency": None}) != BUDGET_1


def test_the_digest_follows_every_event() -> None:
    # apply() compares the digest at each of them and raises
    assert replica_after(story()[:6]).digest == (BUDGET_2 + CATEGORY_1 + EXPENSE_2 + OTHER_1) % (
        2**64
    )


def test_deleting_a_category_deletes_its_expenses_and_no_others() -> None:
    replica = replica_after(story())
    assert list(replica.records) == [("expense", OTHER_EXPENSE), ("budget", BUDGET)]
    assert replica.digest == (BUDGET_2 + OTHER_1) % 2**64


def test_an_expense_that_moved_into_the_category_goes_with_it() -> None:
    moved = event(
        7, "expense.edit", OTHER_EXPENSE, BUDGET_2 + CATEGORY_1 + EXPENSE_2 + OTHER_2, version=2,
        categoryId=CATEGORY,
    )  # fmt: skip
    gone = event(8, "category.delete", CATEGORY, BUDGET_2, version=2)
    assert list(replica_after([*story()[:6], moved, gone]).records) == [("budget", BUDGET)]


def test_the_expenses_of_an_edited_category_go_with_it_too() -> None:
    renamed = {"id": CATEGORY, "version": 2, "name": "Meals", "allocate": "200.00"}
    digest = BUDGET_2 + fingerprint("category", renamed) + EXPENSE_2 + OTHER_1
    edited = event(7, "category.edit", CATEGORY, digest, version=2, name="Meals")
    gone = event(8, "category.delete", CATEGORY, BUDGET_2 + OTHER_1, version=3)
    replica = replica_after([*story()[:6], edited, gone])
    assert list(replica.records) == [("expense", OTHER_EXPENSE), ("budget", BUDGET)]


def test_deleting_the_budget_leaves_its_other_records() -> None:
    gone = event(3, "budget.delete", BUDGET, CATEGORY_1, version=2)
    replica = replica_after([*story()[:2], gone])
    assert list(replica.records) == [("category", CATEGORY)]


def test_an_edit_changes_what_it_names_and_null_clears() -> None:
    replica = replica_after(story()[:6])
    assert replica.records["budget", BUDGET] == {
        "id": BUDGET,
        "createdBy": "ann",
        "title": "Home",
        "details": "Flat 3",
        "currency": None,
        "version": 2,
        "offlineLastModified": 1005,
    }
    assert replica.records["expense", EXPENSE]["note"] is None
    assert replica.records["expense", EXPENSE]["amount"] == "12.50"


def test_membership_and_unknown_events_only_move_the_sequence() -> None:
    joined = event(2, "participant.add", "bob", BUDGET_1, participant={"userId": "bob"})
    newer = event(3, "budget.archive", BUDGET, BUDGET_1, version=1)
    replica = replica_after([story()[0], joined, newer])
    assert (replica.sequence, replica.digest) == (3, BUDGET_1)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (event(3, "category.edit", CATEGORY, 0, version=2, name="Eating"), "the digest after"),
        (event(3, "category.edit", CATEGORY, 0, version=3), "version 3 where 2 is next"),
        (event(3, "expense.edit", EXPENSE, 0, version=2), "not here"),
        (event(3, "category.add", CATEGORY, 0, version=1, name="", allocate=""), "exists"),
    ],
)
def test_an_event_that_does_not_fit_is_noticed_at_once(wrong: Any, complaint: str) -> None:
    replica = replica_after(story()[:2])
    with pytest.raises(Diverged, match=complaint):
        replica.apply(wrong)


def snapshot_after_five() -> dict[str, Any]:
    return {
        "id": BUDGET,
        "createdBy": "ann",
        "title": "Home",
        "details": "Flat 3",
        "currency": None,
        "version": 2,
        "offlineLastModified": 1005,
        "fromANewerServer": True,
        "categories": [
            {
                "id": CATEGORY,
                "budgetId": BUDGET,
                "createdBy": "ann",
                "name": "Food",
                "allocate": "200.00",
                "version": 1,
                "offlineLastModified": 1002,
            }
        ],
        "expenses": [
            {
                "id": EXPENSE,
                "budgetId": BUDGET,
                "categoryId": CATEGORY,
                "createdBy": "ann",
                "date": "2026-03-01",
                "amount": "12.50",
                "note": "Café",
                "version": 1,
                "offlineLastModified": 1003,
            },
            {
                "id": OTHER_EXPENSE,
                "budgetId": BUDGET,
                "categoryId": None,
                "createdBy": "ann",
                "date": "2026-03-02",
                "amount": "0.99",
                "note": None,
                "version": 1,
                "offlineLastModified": 1004,
            },
        ],
        "participants": [],
        "lastEventSequence": 5,
        "digest": f"{(BUDGET_2 + CATEGORY_1 + EXPENSE_1 + OTHER_1) % 2**64:016x}",
    }


def test_a_snapshot_and_the_events_up_to_it_make_the_same_replica() -> None:
    snapshot = Replica.from_snapshot(snapshot_after_five())
    assert replica_after(story()[:5]).difference(snapshot) is None


def test_a_snapshot_and_the_events_after_it_make_the_same_replica() -> None:
    replica = Replica.from_snapshot(snapshot_after_five())
    for item in story()[5:]:
        replica.apply(item)
    assert replica.difference(replica_after(story())) is None


def test_a_snapshot_with_a_digest_of_other_records_is_refused() -> None:
    with pytest.raises(Diverged, match="digest"):
        Replica.from_snapshot(snapshot_after_five() | {"expenses": []})


def test_a_difference_outside_the_digest_is_found_too() -> None:
    other = snapshot_after_five()
    other["expenses"][0]["createdBy"] = "bob"
    difference = replica_after(story()[:5]).difference(Replica.from_snapshot(other))
    assert difference is not None and EXPENSE in difference
