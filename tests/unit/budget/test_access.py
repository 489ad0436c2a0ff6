"""P9: every row of the tables at the top of `hub/budget/access.py`, and what they amount to."""

import pytest
from hypothesis import given, strategies as st

from hub.budget.access import ending, standing
from hub.errors import Code


@pytest.mark.parametrize(
    ("member", "there", "deleted", "past"),
    [
        (True, None, Code.BUDGET_NOT_EXISTS, None),
        (False, Code.NOT_PARTICIPANT, Code.BUDGET_NOT_EXISTS, Code.BUDGET_NOT_EXISTS),
        (None, Code.BUDGET_NOT_EXISTS, Code.BUDGET_NOT_EXISTS, Code.BUDGET_NOT_EXISTS),
    ],
)
def test_p9_who_may(
    member: bool | None, there: Code | None, deleted: Code | None, past: Code | None
) -> None:
    assert standing(False, member) is standing(False, member, past_counts=True) is there
    assert standing(True, member) is deleted
    assert standing(True, member, past_counts=True) is past


@pytest.mark.parametrize(
    ("at", "member_at", "removed_at", "deleted_at", "code"),
    [
        (None, None, None, None, None),
        (3, 3, None, None, None),
        (None, None, 5, None, None),  # its first read decides
        (3, 4, 5, None, Code.NOT_PARTICIPANT),
        (None, 4, 5, None, Code.NOT_PARTICIPANT),  # while it joins
        (5, 5, 5, None, None),  # they have come back
        (5, 6, 5, None, None),
        (4, 3, None, 5, None),
        (5, 3, None, 5, Code.BUDGET_DELETED),
        (None, 5, None, 5, None),  # it stands first, and ends then
        (9, 3, 5, 9, Code.NOT_PARTICIPANT),  # a removal comes first
    ],
)
def test_p9_when_a_subscription_ends(
    at: int | None,
    member_at: int | None,
    removed_at: int | None,
    deleted_at: int | None,
    code: Code | None,
) -> None:
    found = ending(at, member_at=member_at, removed_at=removed_at, deleted_at=deleted_at)
    assert found is code


@given(st.lists(st.booleans(), min_size=1).filter(any), st.data())
def test_p9_it_stands_as_long_as_its_user_takes_part(log: list[bool], data: st.DataObject) -> None:
    """`log`: whether they do, after each event. All removals have been delivered, in this order or
    before the read, which was made at any time when they did."""
    read = data.draw(st.sampled_from([head for head, member in enumerate(log, 1) if member]))
    removed_at = max((head for head, member in enumerate(log, 1) if not member), default=None)
    code = ending(None, member_at=read, removed_at=removed_at, deleted_at=None)
    assert (code is None) is all(log[read - 1 :])
