"""The token bucket never gives more than its rate and its burst allow, and never starves (P8)."""

from hypothesis import given, settings, strategies as st

from hub.limits import UNSIGNED_FRAMES_AT_ONCE, Bucket, Places, Rate, Rates

RATE = Rate(per_s=10, burst=20)


def emptied(at_s: float) -> Bucket:
    bucket = Bucket(RATE, at_s)
    assert bucket.take(RATE.burst, at_s) == 0
    return bucket


def test_a_burst_is_taken_at_once_and_then_it_runs_dry() -> None:
    bucket = Bucket(RATE, 0)
    assert bucket.take(20, 0) == 0
    assert bucket.take(5, 0) == 0.5


def test_what_was_refused_can_be_taken_after_the_stated_time() -> None:
    bucket = emptied(0)
    missing_s = bucket.take(7, 0)
    assert missing_s > 0
    assert bucket.take(7, missing_s) == 0


def test_what_is_not_taken_is_not_lost() -> None:
    bucket = emptied(0)
    assert bucket.take(20, 1) > 0
    assert bucket.take(10, 1) == 0


def test_a_cost_above_the_burst_is_given_when_the_bucket_is_full() -> None:
    assert Bucket(RATE, 0).take(1000, 0) == 0


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    bucket = emptied(100)
    assert bucket.take(1, 50) > 0
    assert bucket.take(1, 100) > 0  # nor when it has caught up
    assert bucket.tokens == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.floats(0.1, 30)),
        max_size=50,
    )
)
def test_never_more_than_burst_and_rate(steps: list[tuple[float, float]]) -> None:
    bucket, now_s, taken = Bucket(RATE, 0), 0.0, 0.0
    for pause_s, cost in steps:
        now_s += pause_s
        if bucket.take(cost, now_s) == 0:
            taken += min(cost, RATE.burst)
        assert taken <= RATE.burst + now_s * RATE.per_s + 1e-6


def test_websocket_frames_have_ten_times_the_rate_of_events_and_a_second_of_it_at_once() -> None:
    assert Rates(500, 1000).of_frames(0, signed_in=True).rate == Rate(per_s=5_000, burst=5_000)
    assert Rates(1, 1000).of_frames(0, signed_in=True).rate == Rate(per_s=10, burst=1_000)
    for rates in (Rates(500, 1000), Rates(1, 1000)):
        stranger = rates.of_frames(0, signed_in=False)
        assert stranger.rate == Rate(per_s=10, burst=UNSIGNED_FRAMES_AT_ONCE)


def test_what_is_left_grows_with_time_up_to_the_burst() -> None:
    bucket = emptied(0)
    assert [bucket.left(at_s) for at_s in (0, 1, 0.5, 100)] == [0, 10, 10, 20]


@settings(deadline=None)
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.sampled_from("ab")), max_size=60),
)
def test_nobody_has_more_places_than_there_are(
    most: int, steps: list[tuple[bool, int, str]]
) -> None:
    places, model = Places(most), dict[int, str]()
    for takes, thing, holder in steps:
        if takes:
            held = list(model.values()).count(holder)
            allowed = thing in model or not most or held < most
            assert places.left(holder) is (not most or held < most)
            assert places.take(thing, holder) is allowed
            if allowed:
                model.setdefault(thing, holder)
        else:
            places.give_back(thing)
            model.pop(thing, None)
