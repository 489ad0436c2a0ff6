"""Places are shared by turns: none is lost, none is given twice, and no user overtakes another."""

import asyncio
from collections import Counter, defaultdict, deque
from contextlib import AsyncExitStack
from itertools import count

import pytest
from hypothesis import given, settings, strategies as st

from hub.gate import Gate
from hub.turns import Crowded, Turns

USERS = "abcde"


class Model:
    """Users who come, leave and give up, and what they may expect of each other."""

    def __init__(self, places: int, per_user: int) -> None:
        self.turns: Turns[int] = Turns(places, per_user)
        self.places, self.per_user = places, per_user
        self.held: Counter[str] = Counter()
        self.queues: defaultdict[str, deque[int]] = defaultdict(deque)
        # How many turns others had while the user waited for nothing but a place.
        self.others: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.numbers = count()

    def come(self, user: str) -> None:
        if self.turns.take(user):
            self.held[user] += 1
        else:
            number = next(self.numbers)
            self.turns.wait(user, number)
            self.queues[user].append(number)

    def leave(self, user: str) -> None:
        """Give one place back."""
        if not self.held[user]:
            return
        self.held[user] -= 1
        eligible = self.eligible()
        called = self.turns.give_back(user)
        if called is None:
            assert not eligible
            return
        [winner] = [each for each in eligible if self.queues[each][0] == called]
        self.queues[winner].popleft()
        self.held[winner] += 1
        for each in eligible - {winner}:
            self.others[each][winner] += 1
        self.others.pop(winner, None)

    def give_up(self, user: str, which: int) -> None:
        queue = self.queues[user]
        if queue:
            number = queue[which % len(queue)]
            queue.remove(number)
            assert self.turns.give_up(user, number)
            assert not self.turns.give_up(user, number)
            if not queue:
                self.others.pop(user, None)

    def eligible(self) -> set[str]:
        return {u for u in USERS if self.queues[u] and self.held[u] < self.per_user}

    def check(self) -> None:
        assert self.held.total() <= self.places
        assert max(self.held.values(), default=0) <= self.per_user
        assert not self.eligible() or self.held.total() == self.places
        assert self.turns.waiting == sum(map(len, self.queues.values()))
        # However many they are and whatever they do: one turn of each other user at most.
        for turns in self.others.values():
            assert max(turns.values(), default=0) <= 1


STEPS = st.lists(
    st.tuples(st.sampled_from(["come", "come", "leave", "give up"]), st.sampled_from(USERS)),
    max_size=200,
)


@settings(deadline=None)
@given(places=st.integers(1, 4), per_user=st.integers(1, 4), steps=STEPS, which=st.integers(0, 9))
def test_nobody_is_lost_or_overtaken(
    places: int, per_user: int, steps: list[tuple[str, str]], which: int
) -> None:
    model = Model(places, per_user)
    for step, user in steps:
        if step == "come":
            model.come(user)
        elif step == "leave":
            model.leave(user)
        else:
            model.give_up(user, which)
        model.check()
    while model.held.total():  # each who waits has a turn in the end
        for user in USERS:
            model.leave(user)
            model.check()
    assert not model.turns.waiting


def test_who_comes_after_ten_thousand_of_another_user_is_next() -> None:
    turns: Turns[str] = Turns(2, 2, waiting_max=10_000)
    assert turns.take("flood") and turns.take("flood")
    for number in range(10_000):
        turns.wait("flood", f"flood {number}")
    assert not turns.take("ann")
    turns.wait("ann", "ann")
    assert turns.give_back("flood") == "flood 0"
    assert turns.give_back("flood") == "ann"


def test_a_user_holds_so_many_and_leaves_the_rest_to_others() -> None:
    turns: Turns[str] = Turns(4, 2)
    assert turns.take("flood") and turns.take("flood")
    assert not turns.take("flood")
    turns.wait("flood", "third")
    assert turns.take("ann")
    assert turns.give_back("ann") is None
    assert turns.give_back("flood") == "third"


def test_a_queue_that_is_full_takes_no_more_of_its_user() -> None:
    turns: Turns[str] = Turns(1, 1, waiting_max=2)
    assert turns.take("ben")
    turns.wait("flood", "1")
    turns.wait("flood", "2")
    with pytest.raises(Crowded):
        turns.wait("flood", "3")
    turns.wait("ann", "1")
    assert turns.give_up("flood", "1")
    turns.wait("flood", "3")


async def test_a_gate_lets_in_who_is_next() -> None:
    gate = Gate(1, 1)
    passed: list[str] = []

    async def passing(user: str) -> None:
        async with gate.turn(user):
            passed.append(user)

    async with asyncio.TaskGroup() as group, gate.turn("ann"):
        for user in ("flood", "flood", "flood", "ben"):
            group.create_task(passing(user))
        await queued(gate, 4)
    assert passed == ["flood", "ben", "flood", "flood"]


async def test_who_waits_too_long_leaves_the_queue() -> None:
    gate = Gate(1, 1)
    async with gate.turn("ann"):
        with pytest.raises(TimeoutError):
            await gate.enter("ben", wait_s=0.001)
        assert gate.waiting == 0
    await gate.enter("ben", wait_s=0)


@pytest.mark.parametrize("called", [False, True], ids=["waiting", "just called"])
async def test_who_is_cancelled_keeps_no_place(called: bool) -> None:
    gate = Gate(1, 1)

    async def passing(user: str) -> None:
        async with gate.turn(user):
            pass

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(gate.turn("ann"))
        first, second = (asyncio.create_task(passing(user)) for user in ("ben", "cid"))
        await queued(gate, 2)
        if called:
            await stack.aclose()  # the place is the first one's, who does not know it yet
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    await second
    await gate.enter("dora", wait_s=0)


async def queued(gate: Gate, tasks: int) -> None:
    """Let new tasks run until they wait."""
    await asyncio.sleep(0)
    assert gate.waiting == tasks
