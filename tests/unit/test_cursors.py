"""Where a frame belongs: in order, each event once, whatever the bus does to frames (P2)."""

import pytest
from hypothesis import given, settings, strategies as st

from hub.cursors import Place, place


@pytest.mark.parametrize(
    ("position", "first", "last", "expected"),
    [
        (0, 1, 1, Place.DELIVER),
        (0, 1, 9, Place.DELIVER),
        (5, 6, 6, Place.DELIVER),
        (5, 5, 5, Place.SKIP),
        (5, 1, 5, Place.SKIP),
        (5, 1, 4, Place.SKIP),
        (5, 7, 7, Place.GAP),
        (5, 7, 9, Place.GAP),
        (0, 2, 2, Place.GAP),
        (5, 5, 6, Place.GAP),
        (5, 1, 9, Place.GAP),
    ],
)
def test_the_table(position: int, first: int, last: int, expected: Place) -> None:
    assert place(position, first, last) is expected


_RANGES = st.tuples(st.integers(1, 12), st.integers(0, 5)).map(lambda r: (r[0], r[0] + r[1]))


@settings(deadline=None)
@given(st.integers(0, 12), _RANGES)
def test_a_frame_is_placed_as_one_event_after_the_other_would_be(
    position: int, frame: tuple[int, int]
) -> None:
    """The naive reading: a frame is its events; deliver it whole, drop it whole, or not at all."""
    first, last = frame
    seen = set(range(1, position + 1))
    new = [sequence for sequence in range(first, last + 1) if sequence not in seen]
    if not new:
        expected = Place.SKIP
    elif len(new) == last - first + 1 and max(seen, default=0) + 1 == first:
        expected = Place.DELIVER
    else:
        expected = Place.GAP
    assert place(position, first, last) is expected


@settings(deadline=None)
@given(st.lists(_RANGES, max_size=30))
def test_p2_any_order_repetition_and_loss_gives_every_event_once(
    frames: list[tuple[int, int]],
) -> None:
    """A gap is read from the log, which has everything up to what the frame says."""
    given: list[int] = []
    for first, last in frames:
        match place(len(given), first, last):
            case Place.DELIVER:
                given += range(first, last + 1)
            case Place.GAP:
                given += range(len(given) + 1, last + 1)
            case Place.SKIP:
                pass
    assert given == list(range(1, max((last for _, last in frames), default=0) + 1))
