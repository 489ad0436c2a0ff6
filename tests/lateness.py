"""What a test does where the machine was too slow for what it was about to provoke.

Some of it has to happen before something else does: before a token ends, before a hub pings again.
A machine that stops for seconds in between has shown nothing, neither way. Then the test goes once
more, from its beginning; what it shows is judged as ever.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, ParamSpec

import pytest

TRIES_MAX = 5
LOOK_S = 0.01
FAILURES = (Exception, pytest.fail.Exception)  # the latter of `pytest.raises`

P = ParamSpec("P")


class TooLate(Exception):
    """It was not possible in time; the message says what took how long."""


def again_if_too_late(
    test: Callable[P, Awaitable[None]],
) -> Callable[P, Coroutine[Any, Any, None]]:
    """The test, once more where it was too late. It makes its ids anew each time."""

    @functools.wraps(test)
    async def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(TRIES_MAX - 1):
            with suppress(TooLate):
                return await test(*args, **kwargs)
        await test(*args, **kwargs)

    return tried


@contextmanager
def in_time(limit_s: float) -> Iterator[None]:
    """What fails in here after so many seconds raises `TooLate`."""
    begun_s = time.monotonic()
    try:
        yield
    except FAILURES as failure:
        took_s = time.monotonic() - begun_s
        if took_s < limit_s:
            raise
        raise TooLate(f"it took {took_s:.1f} s, where there were {limit_s:.1f}") from failure


@asynccontextmanager
async def unpaused(limit_s: float) -> AsyncIterator[None]:
    """What fails in here raises `TooLate` if this process was once as late as that with anything
    it wanted to do."""
    due_s, late_s = time.monotonic(), 0.0

    def late() -> float:
        return max(late_s, time.monotonic() - due_s)

    async def look() -> None:
        nonlocal due_s, late_s
        while True:
            due_s = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            late_s = late()

    looking = asyncio.create_task(look())
    try:
        yield
    except FAILURES as failure:
        if late() < limit_s:
            raise
        raise TooLate(f"this process stood still for {late():.1f} s") from failure
    finally:
        looking.cancel()
