"""The tail: exactly what is behind a cursor or nothing, in bounded memory (P2, P8)."""

import pytest
from hypothesis import given, settings, strategies as st

from hub.feed.tail import TAIL_BYTES_MAX, Tail
from hub.frames.events import Frame

BUDGET = "6414b6a3-9e0c-4a0e-8a3c-1c9d1a6f0b01"


def frame(first: int, last: int, size: int = 10) -> Frame:
    return Frame(BUDGET, first, last, bytes(size))


def tail_of(*frames: Frame) -> Tail:
    tail = Tail()
    for each in frames:
        tail.append(each)
    return tail


THREE = (frame(5, 5), frame(6, 8), frame(9, 9))


@pytest.mark.parametrize(
    ("cursor", "expected"),
    [
        (3, ()),  # begins too late
        (4, THREE),
        (5, THREE[1:]),
        (6, ()),  # inside a frame
        (7, ()),
        (8, THREE[2:]),
        (9, ()),  # nothing is behind
        (10, ()),
    ],
)
def test_after_a_cursor(cursor: int, expected: tuple[Frame, ...]) -> None:
    assert tuple(tail_of(*THREE).after(cursor)) == expected


def test_an_empty_tail_has_nothing() -> None:
    assert tuple(Tail().after(0)) == ()


def test_p8_the_oldest_go_first() -> None:
    half = TAIL_BYTES_MAX // 2
    first, second, third = (frame(n, n, half) for n in (1, 2, 3))
    tail = tail_of(first, second)
    assert tuple(tail.after(0)) == (first, second)  # exactly as much as it may
    tail.append(third)
    assert tuple(tail.after(0)) == ()
    assert tuple(tail.after(1)) == (second, third)


def test_p8_a_frame_too_big_for_it_is_not_kept_nor_what_was_before() -> None:
    """What is left would have a hole."""
    tail = tail_of(frame(1, 1), frame(2, 2, TAIL_BYTES_MAX + 1))
    assert [tuple(tail.after(cursor)) for cursor in (0, 1)] == [(), ()]
    tail.append(last := frame(3, 3))
    assert [tuple(tail.after(cursor)) for cursor in (0, 1, 2)] == [(), (), (last,)]


_SHAPES = st.lists(
    st.tuples(
        st.integers(1, 4),  # events
        st.one_of(
            st.integers(1, 100),
            st.integers(TAIL_BYTES_MAX // 3, TAIL_BYTES_MAX // 2),
            st.integers(TAIL_BYTES_MAX - 1, TAIL_BYTES_MAX + 1),
        ),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(st.integers(0, 5), _SHAPES)
def test_p2_p8_a_tail_is_the_end_of_the_list_of_all_frames(
    start: int, shapes: list[tuple[int, int]]
) -> None:
    """After each frame and for every cursor: all that follows it, if the last frames that have room
    together hold all of that; else nothing."""
    tail, everything = Tail(), list[Frame]()
    last = start
    for events, size in shapes:
        everything.append(frame(last + 1, last + events, size))
        last += events
        tail.append(everything[-1])
        for cursor in range(start - 1, last + 2):
            behind = [each for each in everything if each.to_sequence > cursor]
            whole = (
                bool(behind)
                and behind[0].from_sequence == cursor + 1
                and sum(len(each.data) for each in behind) <= TAIL_BYTES_MAX
            )
            assert list(tail.after(cursor)) == (behind if whole else [])
