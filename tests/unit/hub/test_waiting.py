"""Batches go round by users: nothing is lost, nothing overtakes in its budget, and nobody waits for
more than one submission of each other user."""

from collections import Counter, defaultdict
from typing import NamedTuple

import pytest
from hypothesis import given, settings, strategies as st

from hub import waiting as waiting_module
from hub.waiting import Waiting

USERS, BUDGETS = "abc", "UVWX"


class Thing(NamedTuple):
    actor: str
    budgets: set[str]
    events: range
    number: int = 0


def made(waiting: Waiting[Thing], actor: str, budget: str, events: int = 1) -> Thing:
    thing = Thing(actor, {budget}, range(events))
    waiting.add(thing)
    return thing


SUBMIT = st.tuples(
    st.sampled_from(USERS), st.sets(st.sampled_from(BUDGETS), max_size=2), st.integers(1, 3)
)
TAKE = st.tuples(st.sets(st.sampled_from(BUDGETS)), st.integers(1, 8))


@settings(deadline=None)
@given(st.lists(st.one_of(SUBMIT, TAKE), max_size=60))
def test_p2_nothing_is_lost_or_overtakes_in_its_budget(steps: list[tuple[object, ...]]) -> None:
    waiting, submitted, taken = Waiting[Thing](), list[Thing](), list[Thing]()
    for number, step in enumerate(steps):
        match step:
            case (str(actor), set(budgets), int(events)):
                thing = Thing(actor, budgets, range(events), number)
                submitted.append(thing)
                waiting.add(thing)
            case (set(busy), int(events_max)):
                batch = waiting.take(busy, events_max)
                assert all(busy.isdisjoint(each.budgets) for each in batch)
                assert sum(len(each.events) for each in batch[:-1]) < events_max
                taken += batch
    while batch := waiting.take(set(), 5):
        taken += batch
    assert not waiting
    assert Counter(map(repr, taken)) == Counter(map(repr, submitted))
    numbers = defaultdict[tuple[str, str], list[int]](list)
    for each in taken:
        for budget in each.budgets:
            numbers[each.actor, budget].append(each.number)
    assert all(order == sorted(order) for order in numbers.values())


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.integers(1, 10), st.integers(1, 3))
def test_p20_nobody_has_two_turns_while_another_waits_for_one(
    submissions: list[int], events_max: int, events: int
) -> None:
    """In whatever batches they come."""
    waiting, order = Waiting[Thing](), list[str]()
    for user, times in enumerate(submissions):
        for _ in range(times):
            made(waiting, f"user {user}", f"of {user}", events)
    while batch := waiting.take(set(), events_max):
        order += [each.actor for each in batch]
    left, turns = Counter(order), Counter[str]()
    for actor in order:
        left[actor] -= 1
        turns[actor] += 1
        fewest = min((turns[each] for each in left if left[each]), default=turns[actor])
        assert turns[actor] <= fewest + 1


def test_p20_who_comes_after_a_flood_is_in_the_next_batch() -> None:
    waiting = Waiting[Thing]()
    for number in range(9_000):
        made(waiting, "flood", f"budget {number % 200}")
    victim = made(waiting, "ann", "home")
    assert victim in waiting.take(set(), 10)


def test_p20_who_had_no_turn_is_the_first_of_the_next_batch() -> None:
    """Also where somebody keeps their budget busy whenever their turn comes."""
    waiting = Waiting[Thing]()
    victim = made(waiting, "ann", "home")
    for number in range(9):
        made(waiting, f"flood {number}", "theirs")
    assert victim not in waiting.take({"home"}, 4)
    assert waiting.take(set(), 1) == [victim]


def test_p20_a_flood_at_a_busy_budget_is_not_looked_through_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting_module, "PASSED_MAX", 3)
    waiting = Waiting[Thing]()
    flood = [made(waiting, "flood", "busy") for _ in range(3)]
    free = made(waiting, "flood", "free")
    assert waiting.take({"busy"}, 10) == []
    assert waiting.take(set(), 10) == [*flood, free]
