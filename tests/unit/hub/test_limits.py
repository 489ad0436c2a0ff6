"""The token bucket never gives more than its rate and its burst allow, and never starves (P8)."""

from hypothesis import given, settings, strategies as st

from hub.limits import COST_BYTES, UNSIGNED_FRAMES_AT_ONCE, Bucket, Places, Rate, Rates, cost_of

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
    def rates_of(rates: Rates, user_id: str | None) -> list[Rate]:
        return [bucket.rate for bucket in rates.of_frames(0, user_id)]

    assert rates_of(Rates(500, 1000), "ann") == [(5_000, 5_000), (10_000, 10_000)]
    assert rates_of(Rates(1, 2), "ann") == [(10, 1_000), (20, 1_000)]
    for rates in (Rates(500, 1000), Rates(1, 1000)):
        assert rates_of(rates, None) == [(10, UNSIGNED_FRAMES_AT_ONCE)]


def test_all_connections_of_a_user_share_a_rate_of_frames_and_no_two_users_do() -> None:
    rates = Rates(500, 1000)
    (own, shared), (own_too, shared_too) = rates.of_frames(0, "ann"), rates.of_frames(0, "ann")
    assert own is not own_too
    assert shared is shared_too
    assert rates.of_frames(0, "bob")[1] is not shared


def test_a_frame_costs_its_events_or_its_bytes() -> None:
    assert [cost_of(size) for size in (0, COST_BYTES, 10 * COST_BYTES)] == [1, 1, 10]
    assert [cost_of(10 * COST_BYTES, events) for events in (0, 9, 100)] == [10, 10, 100]


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
