"""A machine that was too slow costs another try; a defect costs the test."""

import time

import pytest

from tests.lateness import TRIES_MAX, TooLate, again_if_too_late, in_time, unpaused


async def tries_of(failures: list[Exception]) -> int:
    """How often a test is run that fails so, one time after the other, and then does not."""
    tries = 0

    @again_if_too_late
    async def test() -> None:
        nonlocal tries
        tries += 1
        if tries <= len(failures):
            raise failures[tries - 1]

    await test()
    return tries


async def test_what_was_too_late_is_tried_again() -> None:
    assert await tries_of([]) == 1
    assert await tries_of([TooLate()] * (TRIES_MAX - 1)) == TRIES_MAX


async def test_a_defect_is_not_tried_again() -> None:
    with pytest.raises(AssertionError):
        await tries_of([TooLate(), AssertionError()])
    with pytest.raises(TooLate):  # as is one that takes all the time there is
        await tries_of([TooLate()] * TRIES_MAX)


def test_a_failure_in_time_is_a_failure() -> None:
    with pytest.raises(AssertionError), in_time(60):
        raise AssertionError
    with pytest.raises(TooLate), in_time(0):
        raise AssertionError
    with pytest.raises(TooLate), in_time(0), pytest.raises(AssertionError):
        pass  # nothing


async def test_only_who_stood_still_was_paused() -> None:
    with pytest.raises(AssertionError):
        async with unpaused(60):
            raise AssertionError
    with pytest.raises(TooLate):
        async with unpaused(0.03):
            time.sleep(0.06)  # noqa: ASYNC251  (this is what is to be noticed)
            raise AssertionError
