"""Cascades are looked for where they can happen, and nowhere else (P20); never in too few places,
for the digest would be wrong (P6)."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings, strategies as st

from hub.budget.events import Decidable, Invalid, Joining, Leaving, parse_event
from hub.budget.records import UserId
from hub.budget.rules import decide
from hub.budget.state import BudgetState, Change, Want, cascades

BUDGET = "00000000-0000-4000-8000-00000000000b"
FOOD, GONE, NEW = (f"00000000-0000-4000-8000-0000000000c{n}" for n in range(3))
LUNCH = "00000000-0000-4000-8000-0000000000e1"

_numbers = itertools.count(1)


class Sent(NamedTuple):
    actor: UserId
    event: Decidable


def event(actor: UserId, event_type: str, **fields: Any) -> Sent:
    wire = {"eventId": new_id(), "eventType": event_type, "budgetId": BUDGET, "when": 1, **fields}
    parsed = parse_event(wire)
    assert not isinstance(parsed, Invalid), parsed.detail
    return Sent(actor, parsed)


def delete(actor: UserId = "ann", recordId: str = FOOD, version: int = 2, **fields: Any) -> Sent:
    return event(actor, "category.delete", recordId=recordId, version=version, **fields)


def edit(actor: UserId = "ann", recordId: str = FOOD, version: int = 2) -> Sent:
    return event(actor, "category.edit", recordId=recordId, version=version, name="Else")


def add(recordId: str = NEW) -> Sent:
    return event("ann", "category.add", recordId=recordId, name="New", allocate="0")


def create() -> Sent:
    return event("ann", "budget.create", title="Home")


def joins(user_id: UserId) -> Sent:
    return Sent(user_id, Joining(new_id(), BUDGET, user_id, 1, 10))


def leaves(user_id: UserId) -> Sent:
    return Sent(user_id, Leaving(new_id(), BUDGET, user_id, 1))


def new_id() -> str:
    return f"00000000-0000-4000-9000-{next(_numbers):012x}"


def applied(state: BudgetState, *batch: Sent) -> list[Change]:
    """What of it is accepted."""
    changes = []
    for actor, each in batch:
        outcome = decide(state, actor, each, 1)
        if isinstance(outcome, Change):
            state.apply(outcome)
            changes.append(outcome)
    return changes


def world() -> BudgetState:
    """ann's budget with the category FOOD at version 2, which has an expense; GONE was deleted, and
    ben has left."""
    state = BudgetState()
    state.sums = {FOOD: 0, GONE: 0}
    lunch = {"recordId": LUNCH, "amount": "1", "date": "2026-03-01", "categoryId": FOOD}
    made = applied(
        state,
        create(),
        add(FOOD),
        edit(version=1),
        event("ann", "expense.add", **lunch),
        add(GONE),
        delete(recordId=GONE, version=1),
        joins("ben"),
        leaves("ben"),
    )
    assert len(made) == 8
    state.sums, state.changes = {}, []
    return state


def looked_for(state: BudgetState, *batch: Sent) -> set[str]:
    want = Want()
    for actor, each in batch:
        want.add(actor, each)
    found = cascades(want, {BUDGET: state})
    assert {budget_id for budget_id, _ in found} <= {BUDGET}
    return {category_id for _, category_id in found}


KNOWN = delete(version=2)
BARRED: dict[str, tuple[Sent, ...]] = {
    "unknown": (delete(recordId=NEW, version=1),),
    "stale": (delete(version=1),),
    "ahead": (delete(version=3),),
    "too far ahead": (edit(), delete(version=4)),
    "of another record": (edit(recordId=GONE), delete(version=3)),
    "deleted": (delete(recordId=GONE, version=2),),
    "a stranger": (delete("eve"),),
    "one who left": (delete("ben"),),
    "a repeated event": (KNOWN,),
    "another's event id": (delete("ann", eventId=KNOWN.event.event_id),),
}


@pytest.mark.parametrize("batch", BARRED.values(), ids=BARRED)
def test_p20_a_deletion_that_is_refused_looks_for_no_cascade(batch: tuple[Sent, ...]) -> None:
    state = world()
    state.known[KNOWN.event.event_id] = next(iter(state.known.values()))
    assert looked_for(state, *batch) == set()
    assert not any(change.cascade for change in applied(state, *batch))


@pytest.mark.parametrize("ends", [True, False], ids=["deleted", "not there"])
def test_p20_in_a_budget_that_does_not_live_none_is_looked_for(ends: bool) -> None:
    state = BudgetState()
    if ends:
        state = world()
        assert applied(state, event("ann", "budget.delete", recordId=BUDGET, version=1))
    assert looked_for(state, delete()) == set()


ALLOWED: dict[str, tuple[Sent, ...]] = {
    "at its version": (delete(),),
    "after a stale one": (delete(version=1), delete()),
    "after an edit": (edit(), delete(version=3)),
    "after two edits": (edit(), edit(version=3), delete(version=4)),
    "after an edit that is refused": (edit(version=1), delete()),
    "after joining": (joins("ben"), delete("ben")),
    "after its making": (add(), delete(recordId=NEW, version=1)),
}


@pytest.mark.parametrize("batch", ALLOWED.values(), ids=ALLOWED)
def test_p6_a_deletion_that_is_accepted_knows_what_it_takes_along(batch: tuple[Sent, ...]) -> None:
    state = world()
    state.sums = dict.fromkeys(looked_for(state, *batch), 0)
    assert applied(state, *batch)[-1].cascade


def test_p6_so_does_one_in_a_budget_that_is_made_by_the_same_batch() -> None:
    state, batch = BudgetState(), (create(), add(), delete(recordId=NEW, version=1))
    state.sums = dict.fromkeys(looked_for(state, *batch), 0)
    assert applied(state, *batch)[-1].cascade


MAKES: list[Callable[[], Sent]] = [
    lambda: joins("ben"),
    lambda: leaves("ben"),
    lambda: leaves("ann"),
    lambda: add(FOOD),
    lambda: add(NEW),
    lambda: event("ann", "budget.delete", recordId=BUDGET, version=1),
]
ACTORS, CATEGORIES = st.sampled_from(["ann", "ben", "eve"]), st.sampled_from([FOOD, GONE, NEW])
EVENTS = st.one_of(
    st.sampled_from(MAKES).map(lambda make: make()),
    st.builds(delete, ACTORS, CATEGORIES, st.integers(1, 5)),
    st.builds(edit, ACTORS, CATEGORIES, st.integers(1, 5)),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(EVENTS, max_size=12))
def test_p6_whatever_a_batch_does_no_cascade_is_missed(batch: list[Sent]) -> None:
    state = world()
    found = looked_for(state, *batch)
    state.sums = dict.fromkeys(found, 0)
    for change in applied(state, *batch):  # fails where a sum is missing
        assert not change.cascade or change.row.record_id in found
