"""The load script's own idea of a budget, against values computed by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from loadtest.replica import Diverged, Replica, fingerprint

BUDGET = "00000000-0000-4000-8000-00000000000b"
CATEGORY = "00000000-0000-4000-8000-00000000000c"
EXPENSE = "00000000-0000-4000-8000-00000000000e"
OTHER_EXPENSE = "00000000-0000-4000-8000-00000000000f"

# From the command line, field by field, as design-2 section 3 says: C of the first one is
#   printf '8:currency,3:EUR,5:title,4:Home,' | sha256sum
BUDGET_1 = 0xBC512C96EADD928E  # version 1, Home, no details, EUR
BUDGET_2 = 0x0706DD9B2A92F7D4  # version 2, Home, Flat 3, no currency
CATEGORY_1 = 0x295046C4261B7852  # version 1, Food, 200.00
EXPENSE_1 = 0x21796E9E6E49BF7A  # version 1, in the category, 12.50, 2026-03-01, Café
EXPENSE_2 = 0xD865685A2102D623  # version 2, the same without its note
OTHER_1 = 0x6364EC56EC15AB70  # version 1, in no category, 0.99, 2026-03-02, no note
OTHER_2 = 0xEED155EF20AF5AED  # version 2, moved into the category
ANN_OWNS = 0x7165111770C8C69D
ANN_EDITS = 0x12BC94CDCE9231B8
BOB_EDITS = 0x66108F473BD1899F
BOB_OWNS = 0xFCB04D2DD73C3820


def event(
    sequence: int,
    event_type: str,
    record_id: str,
    digest: int,
    members: int = ANN_OWNS,
    **fields: Any,
) -> Any:
    """`digest` is that of the records, `members` what those who take part add."""
    return {
        "sequence": sequence,
        "eventId": f"event-{sequence}",
        "eventType": event_type,
        "budgetId": BUDGET,
        "recordId": record_id,
        "actorId": "ann",
        "when": 1000 + sequence,
        "digest": f"{(digest + members) % 2**64:016x}",
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


def test_a_fingerprint_is_the_first_8_bytes_of_sha256() -> None:
    budget = {"id": BUDGET, "version": 1, "title": "Home", "details": None, "currency": "EUR"}
    assert fingerprint("budget", budget) == BUDGET_1
    assert fingerprint("budget", budget | {"currency": None}) != BUDGET_1


def test_the_digest_follows_every_event() -> None:
    # apply() compares the digest at each of them and raises
    total = ANN_OWNS + BUDGET_2 + CATEGORY_1 + EXPENSE_2 + OTHER_1
    assert replica_after(story()[:6]).digest == total % 2**64


def test_deleting_a_category_deletes_its_expenses_and_no_others() -> None:
    replica = replica_after(story())
    assert list(replica.records) == [("expense", OTHER_EXPENSE), ("budget", BUDGET)]
    assert replica.digest == (ANN_OWNS + BUDGET_2 + OTHER_1) % 2**64


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


def member(user_id: str, role: str) -> dict[str, Any]:
    return {"participant": {"userId": user_id, "budgetId": BUDGET, "joinedAt": 1, "role": role}}


def test_an_unknown_event_only_moves_the_sequence() -> None:
    newer = event(2, "budget.archive", BUDGET, BUDGET_1, version=1)
    replica = replica_after([story()[0], newer])
    assert (replica.sequence, replica.digest) == (2, (BUDGET_1 + ANN_OWNS) % 2**64)


def test_the_digest_counts_members_and_roles() -> None:
    both = ANN_OWNS + BOB_EDITS
    bob = member("bob", "editor")
    joins = event(2, "participant.add", "bob", BUDGET_1, both, **bob)
    leaves = event(3, "participant.remove", "bob", BUDGET_1, **bob)
    again = event(4, "participant.add", "bob", BUDGET_1, both, **bob)
    passes = event(
        5, "participant.remove", "ann", BUDGET_1, BOB_OWNS, **member("ann", "editor"), owner="bob"
    )
    back = event(
        6, "participant.add", "ann", BUDGET_1, BOB_OWNS + ANN_EDITS, **member("ann", "editor")
    )
    replica = replica_after([story()[0], joins, leaves, again, passes, back])
    assert replica.members == {"bob": "owner", "ann": "editor"}


def test_who_takes_part_cannot_join_and_a_stranger_cannot_leave() -> None:
    for verb, user in (("add", "ann"), ("remove", "bob")):
        wrong = event(2, f"participant.{verb}", user, BUDGET_1, **member(user, "editor"))
        wrong["actorId"] = user
        with pytest.raises(Diverged, match="take part"):
            replica_after([story()[0], wrong])


def test_who_had_left_is_removed_without_a_trace() -> None:
    removed = event(2, "participant.remove", "bob", BUDGET_1, **member("bob", "editor"))
    assert removed["actorId"] != "bob"
    assert replica_after([story()[0], removed]).members == {"ann": "owner"}


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
        "participants": [{"userId": "ann", "budgetId": BUDGET, "role": "owner"}],
        "lastEventSequence": 5,
        "digest": f"{(ANN_OWNS + BUDGET_2 + CATEGORY_1 + EXPENSE_1 + OTHER_1) % 2**64:016x}",
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
