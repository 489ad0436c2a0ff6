"""Where a frame belongs: in order, each event once, whatever the bus does to frames (P2)."""

import pytest
from hypothesis import given, settings, strategies as st

from hub.feed.cursors import Place, Step, SubscriptionState, Track, next_step, place


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


# A feed's track: frames and what is read from the log, merged.


def track_at(position: int) -> Track:
    track = Track()
    track.begin(position)
    return track


def test_nothing_is_delivered_before_it_is_known_where_the_feed_stands() -> None:
    track = Track()
    assert track.offered(1, 3) is Place.SKIP
    assert track.missing_to is None  # how much is missing is not known either
    track.begin(2)
    assert track.missing_to == 3
    assert track.offered(3, 3) is Place.DELIVER


@pytest.mark.parametrize(
    ("first", "last", "expected", "missing_to"),
    [
        (4, 5, Place.SKIP, None),
        (6, 6, Place.DELIVER, None),
        (7, 9, Place.GAP, 9),
        (5, 6, Place.GAP, 6),
    ],
)
def test_a_gap_is_remembered_as_how_far_the_log_reaches(
    first: int, last: int, expected: Place, missing_to: int | None
) -> None:
    track = track_at(5)
    assert track.offered(first, last) is expected
    assert track.position == 5  # the feed moves it, as it delivers
    if expected is not Place.DELIVER:
        assert track.missing_to == missing_to


def test_p8_while_a_gap_is_filled_only_the_highest_sequence_is_kept() -> None:
    track = track_at(5)
    track.filling = True
    assert [track.offered(*frame) for frame in ((6, 6), (12, 20), (7, 9))] == [Place.SKIP] * 3
    assert track.missing_to == 20
    track.position = 20
    assert track.missing_to is None


def test_a_head_that_is_behind_means_nothing() -> None:
    track = track_at(5)
    track.noticed(5)
    assert track.missing_to is None
    track.noticed(8)
    track.noticed(6)
    assert track.missing_to == 8


def test_a_log_that_is_shorter_than_was_said_is_not_asked_for_ever() -> None:
    track = track_at(5)
    track.noticed(8)
    track.forget_missing()
    assert track.missing_to is None
    track.noticed(6)
    assert track.missing_to == 6


_LOG_MAX = 30
_OFFERS = st.tuples(st.integers(1, _LOG_MAX), st.integers(0, 5)).map(
    lambda r: (r[0], min(r[0] + r[1], _LOG_MAX))
)
_HAPPENINGS = st.lists(
    st.one_of(
        _OFFERS,  # of the committer or the bus
        st.integers(0, _LOG_MAX).map(lambda head: ("head", head)),  # the sweeper says
        st.integers(1, 7).map(lambda events: ("page", events)),  # the reader got so many
    ),
    max_size=60,
)


@settings(deadline=None)
@given(st.integers(0, _LOG_MAX), st.integers(0, 60), _HAPPENINGS)
def test_p2_every_event_once_and_in_order_whatever_is_offered_while_gaps_are_filled(
    start: int, begins_at: int, happenings: list[tuple[int, int] | tuple[str, int]]
) -> None:
    """The feed's protocol without its loop: offers in any order, again, or never; one reader, whose
    pages come in between."""
    track = Track()
    given: list[int] = []
    heard = start

    def deliver(first: int, last: int) -> None:
        given.extend(range(first, last + 1))
        track.position = last

    def read(events: int) -> None:
        """One page of the log, while there is a reader."""
        if track.filling and (missing_to := track.missing_to) is not None:
            deliver(track.position + 1, min(track.position + events, missing_to))
        if track.missing_to is None:
            track.filling = False

    for turn, (what, number) in enumerate(happenings):
        if turn == begins_at:
            track.begin(start)
        if what == "page":
            read(number)
        elif what == "head":
            heard = max(heard, number)
            track.noticed(number)
        else:
            assert isinstance(what, int)
            heard = max(heard, number)
            if track.offered(what, number) is Place.DELIVER:
                deliver(what, number)
        if track.missing_to is not None:
            track.filling = True
    if not track.known:
        track.begin(start)
    while track.missing_to is not None:
        track.filling = True
        read(5)
    assert given == list(range(start + 1, heard + 1))


# A subscription's next step: each row of the table.


@pytest.mark.parametrize(
    ("state", "cursor", "position", "full", "expected"),
    [
        (SubscriptionState.CATCHING_UP, 7, 5, False, Step.WAIT),
        (SubscriptionState.CATCHING_UP, 7, 5, True, Step.WAIT),
        (SubscriptionState.CATCHING_UP, 5, 5, False, Step.GO_LIVE),
        (SubscriptionState.CATCHING_UP, 5, 5, True, Step.LAG),
        (SubscriptionState.CATCHING_UP, 3, 5, True, Step.LAG),
        (SubscriptionState.CATCHING_UP, 3, 5, False, Step.READ),
        (SubscriptionState.CATCHING_UP, 0, 0, False, Step.GO_LIVE),
        *(
            (state, cursor, 5, full, Step.STOP)
            for state in (
                SubscriptionState.LIVE,
                SubscriptionState.LAGGING,
                SubscriptionState.ENDED,
            )
            for cursor in (3, 5, 7)
            for full in (False, True)
        ),
    ],
)
def test_the_next_step(
    state: SubscriptionState, cursor: int, position: int, full: bool, expected: Step
) -> None:
    assert next_step(state, cursor, position, full=full) is expected
