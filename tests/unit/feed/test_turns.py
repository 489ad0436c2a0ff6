"""Turns are each user's own (P8)."""

import asyncio

from hub.feed.turns import Turns


async def test_who_comes_third_waits_for_their_own_and_for_nobody_else() -> None:
    turns, order, over = Turns(2), list[str](), asyncio.Event()

    async def take(name: str, user_id: str) -> None:
        async with turns.turn(user_id):
            order.append(name)
            await over.wait()

    async with asyncio.TaskGroup() as group:
        for name, user_id in (("1", "ann"), ("2", "ann"), ("3", "ann"), ("bobs", "bob")):
            group.create_task(take(name, user_id))
        for _ in range(10):
            await asyncio.sleep(0)
        assert order == ["1", "2", "bobs"]
        over.set()
    assert order[-1] == "3"
    assert turns._queues == {}


async def test_who_waits_no_longer_leaves_nothing() -> None:
    turns = Turns(1)
    async with turns.turn("ann"):
        waiting = asyncio.create_task(turns.turn("ann").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert turns._queues == {}
