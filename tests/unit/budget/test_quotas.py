"""Quotas: what would grow beyond one is refused, what makes room or ends something never is."""

from typing import Any
from uuid import uuid4

import pytest

from hub.budget.events import Joining, Leaving, Submitted, parse_event
from hub.budget.rules import decide
from hub.budget.state import EVER_TIMES, BudgetState, Change, Quotas, Taken
from hub.errors import Code

HOME = "00000000-0000-4000-8000-00000000000a"
FOOD = "00000000-0000-4000-8000-0000000000c1"
RENT = "00000000-0000-4000-8000-0000000000e1"
NOW_MS = 1_700_000_000_000


def event(event_type: str, record_id: str = HOME, **fields: Any) -> Submitted:
    ids = {"eventId": str(uuid4()), "budgetId": HOME, "recordId": record_id, "when": 1}
    return parse_event({**ids, "eventType": event_type, **fields})


def expense(record_id: str = RENT) -> Submitted:
    return event("expense.add", record_id, amount="1.00", date="2026-03-01")


def joining(user_id: str, budget_id: str = HOME) -> Joining:
    return Joining(str(uuid4()), budget_id, user_id, 1, 10)


def outcome(state: BudgetState, said: Submitted, quotas: Quotas, actor: str = "ann") -> Code | None:
    """None if it was accepted, and applied."""
    decided = decide(state, actor, said, NOW_MS, quotas)
    if isinstance(decided, Change):
        state.apply(decided)
        return None
    assert decided.error is None or not decided.error.retryable
    return decided.error


def home(taken: dict[str, Taken] | None = None) -> BudgetState:
    """ann's budget, with a category."""
    state = BudgetState(taken)
    for said in (
        event("budget.create", title="Home"),
        event("category.add", FOOD, name="Food", allocate="1"),
    ):
        assert outcome(state, said, Quotas()) is None
    return state


def test_a_budget_has_so_many_records_and_tombstones_count() -> None:
    state, quotas = home(), Quotas(records=2)
    assert outcome(state, expense(), quotas) is None
    assert outcome(state, expense(str(uuid4())), quotas) is Code.QUOTA_EXCEEDED
    edited = event("expense.edit", RENT, version=1, note="paid")
    assert outcome(state, edited, quotas) is None
    assert outcome(state, event("expense.delete", RENT, version=2), quotas) is None
    assert outcome(state, expense(str(uuid4())), quotas) is Code.QUOTA_EXCEEDED
    assert state.budget is not None
    assert state.budget.record_count == 2


def test_a_log_that_is_full_takes_deletions_and_lets_people_go() -> None:
    state = home()
    assert outcome(state, expense(), Quotas()) is None
    for user_id in ("ben", "cyd"):
        assert outcome(state, joining(user_id), Quotas(), user_id) is None
    assert state.budget is not None
    quotas = Quotas(log_bytes=state.budget.log_bytes)
    state.sums[FOOD] = 0  # as the storage loads it: the expense is in no category
    for said in (
        expense(str(uuid4())),
        event("expense.edit", RENT, version=1, note="x"),
        event("budget.edit", version=1, title="x"),
        joining("dan"),
    ):
        actor = "dan" if isinstance(said, Joining) else "ann"
        assert outcome(state, said, quotas, actor) is Code.QUOTA_EXCEEDED
    for said in (
        event("expense.delete", RENT, version=1),
        event("category.delete", FOOD, version=1),
        Leaving(str(uuid4()), HOME, "ben", 1),
    ):
        assert outcome(state, said, quotas) is None
    assert outcome(state, Leaving(str(uuid4()), HOME, "cyd", 1), quotas, "cyd") is None
    assert outcome(state, event("budget.delete", version=1), quotas) is None


def test_a_log_counts_its_events_and_the_records_of_its_verdicts() -> None:
    state = home()
    assert state.budget is not None
    written = [change.row for change in state.changes]
    assert state.budget.log_bytes == sum(len(row.event) + len(row.record or b"") for row in written)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (Taken(1, 1), None),
        (Taken(2, 2), Code.QUOTA_EXCEEDED),
        (Taken(0, 2 * EVER_TIMES), Code.QUOTA_EXCEEDED),  # made and deleted, over and over
        (Taken(1, 2 * EVER_TIMES - 1), None),
    ],
)
def test_a_user_takes_part_in_so_many_budgets(taken: Taken, expected: Code | None) -> None:
    quotas = Quotas(budgets=2)
    created = outcome(BudgetState({"ann": taken}), event("budget.create", title="One"), quotas)
    assert created is expected
    joined = outcome(home({"ben": taken}), joining("ben"), quotas, "ben")
    assert joined is expected


def test_budgets_of_one_batch_count_together() -> None:
    """The states of a batch share what its users have."""
    taken: dict[str, Taken] = {}
    made = [
        outcome(BudgetState(taken), event("budget.create", title="One"), Quotas(budgets=2))
        for _ in range(3)
    ]
    assert made == [None, None, Code.QUOTA_EXCEEDED]


def test_p3_what_was_accepted_is_answered_alike_when_the_quota_is_reached() -> None:
    state = home()
    said = expense()
    assert outcome(state, said, Quotas()) is None
    again = decide(state, "ann", said, NOW_MS, Quotas(1, 1, 1))
    assert not isinstance(again, Change)
    assert again.duplicate
    assert again.accepted
