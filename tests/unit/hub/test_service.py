"""A background service goes on without what it needs, and ends of a defect."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from hub.errors import Disconnected
from hub.service import Service

LONG_S = 3600.0


class Defect(Exception):
    """Nothing of the storage."""


def steps(*outcomes: Exception | None) -> tuple[list[float], Service]:
    """The times of a service that meets these, one after the other, and a defect at the end."""
    at_s: list[float] = []
    left: Iterator[Exception | None] = iter([*outcomes, Defect()])

    async def run_once() -> None:
        at_s.append(asyncio.get_running_loop().time())
        if (outcome := next(left)) is not None:
            raise outcome

    return at_s, Service("tester", 0.0, run_once)


async def test_what_is_away_is_said_once_and_tried_again() -> None:
    at_s, service = steps(None, Disconnected("a"), Disconnected("b"), None, Disconnected("c"))
    with capture_logs() as logs, pytest.raises(Defect):
        await service.run()
    assert len(at_s) == 6
    assert [(line["event"], line["service"], line.get("error")) for line in logs] == [
        ("service failed", "tester", "Disconnected: a"),
        ("service works again", "tester", None),
        ("service failed", "tester", "Disconnected: c"),
    ]


@pytest.mark.parametrize(
    ("first_s", "retry_s", "times"), [(None, None, 0), (0.0, None, 1), (0.0, 0.0, 2)]
)
async def test_it_waits_before_the_first_time_and_after_a_failure(
    first_s: float | None, retry_s: float | None, times: int
) -> None:
    at_s, service = steps(Disconnected("a"))
    service = Service("tester", LONG_S, service.run_once, first_s=first_s, retry_s=retry_s)
    running = asyncio.create_task(service.run())
    for _ in range(20):  # all that can be done at once
        await asyncio.sleep(0)
    assert len(at_s) == times
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_it_begins_every_interval_however_long_it_takes() -> None:
    at_s: list[float] = []

    async def run_once() -> None:
        at_s.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.05)
        if len(at_s) == 3:
            raise Defect

    with pytest.raises(Defect):
        await Service("tester", 0.06, run_once, first_s=0.0).run()
    assert all(later - sooner >= 0.059 for sooner, later in pairwise(at_s))
