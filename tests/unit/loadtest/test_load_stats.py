"""What a run measures: it does not matter in how many processes."""

from random import Random

import orjson
import pytest
from hypothesis import given, strategies as st

from loadtest.event_ids import due_s, timed_id, untimed_id
from loadtest.plan import Options
from loadtest.ramp import Ramp
from loadtest.runner import INVALID, PROVEN, VIOLATED, exit_code, invalid_because
from loadtest.stats import LEAST_MS, RELATIVE_ERROR, Histogram, Sample, Series

VALUES = st.lists(st.floats(LEAST_MS, 1e6), min_size=1, max_size=200)


def histogram(values: list[float]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(VALUES, st.floats(0.01, 1.0))
def test_a_percentile_is_near_a_value_that_was_measured(values: list[float], share: float) -> None:
    ordered = sorted(values)
    rank = next(n for n in range(1, len(ordered) + 1) if n >= share * len(ordered))
    percentile = histogram(values).percentile(share)
    assert percentile == pytest.approx(ordered[rank - 1], rel=RELATIVE_ERROR * 1.001)


@given(VALUES, VALUES)
def test_merged_is_measured_together(first: list[float], second: list[float]) -> None:
    merged = histogram(first)
    merged.merge(Histogram.from_json(orjson.loads(orjson.dumps(histogram(second).to_json()))))
    assert merged.summary() == histogram(first + second).summary()
    assert merged.buckets() == histogram(first + second).buckets()


def test_nothing_measured_is_null() -> None:
    assert Histogram().summary() == {
        "p50": None, "p90": None, "p99": None, "p999": None, "max": None, "count": 0,
    }  # fmt: skip
    assert Sample(3).entry()["ackP99Ms"] is None


def test_samples_of_one_second_are_added_and_the_busiest_process_counts() -> None:
    series = Series()
    first = Sample(4, connected=2, accepted=3, cpu=0.5)
    first.ack.add(10)
    second = Sample(4, connected=1, accepted=4, cpu=0.25)
    second.ack.add(1000)
    assert series.add(first) == 1
    assert series.add(Sample.from_json(orjson.loads(orjson.dumps(second.to_json())))) == 2
    entry = series.at(4).entry()
    assert (entry["t"], entry["connected"], entry["accepted"]) == (4, 3, 7)
    assert entry["generatorCpu"] == 0.5
    assert entry["ackP99Ms"] == pytest.approx(1000, rel=RELATIVE_ERROR)


@given(st.floats(1e9, 4e9), st.integers())
def test_an_id_tells_when_its_event_was_due(at_s: float, seed: int) -> None:
    event_id = timed_id(at_s, Random(seed))
    due = due_s(event_id)
    assert due is not None and abs(due - at_s) < 2e-6
    assert event_id[14] == "7" and event_id[19] in "89ab"


@given(st.integers())
def test_an_untimed_id_tells_nothing(seed: int) -> None:
    event_id = untimed_id(Random(seed))
    assert due_s(event_id) is None
    assert event_id[14] == "4" and event_id[19] in "89ab"


def test_a_ramp_forgives_one_bad_moment() -> None:
    ramp = Ramp(100)
    ramp.stepped(1.0, kept=True)
    assert ramp.rate_per_s == 125
    ramp.stepped(500.0, kept=False)
    assert ramp.rate_per_s == 50  # to recover
    ramp.stepped(1.0, kept=True)
    assert ramp.rate_per_s == 125  # again
    ramp.stepped(1.0, kept=True)
    assert (ramp.highest, ramp.rate_per_s) == (125, 156.25)


@given(st.floats(1, 1e5), st.floats(0.5, 1e6))
def test_a_ramp_ends_near_the_highest_rate_that_is_kept(first: float, limit: float) -> None:
    ramp = Ramp(first)
    for _ in range(400):
        if ramp.rate_per_s is None:
            break
        ramp.stepped(1.0, kept=ramp.rate_per_s <= limit)
    assert ramp.rate_per_s is None
    if ramp.highest is None:
        assert limit < 1 or first > limit
    else:
        assert ramp.highest <= limit <= ramp.highest * 1.3


@pytest.mark.parametrize(
    ("scenario", "cpu", "lag_ms", "delivery_ms", "complaint"),
    [
        ("steady", 0.5, 2.0, 20.0, None),
        ("steady", 0.95, 2.0, 20.0, "use more processes"),
        ("steady", 0.5, 50.0, 60.0, "its machine was too busy"),
        ("steady", 0.5, 50.0, 500.0, None),  # late, but that is not what was measured
        ("smoke", 0.95, 50.0, 60.0, None),  # its figures do not count anyway
    ],
)
def test_a_run_does_not_count_where_the_generator_was_the_limit(
    scenario: str, cpu: float, lag_ms: float, delivery_ms: float, complaint: str | None
) -> None:
    options = Options(scenario, ["http://h:1"], 1, 1, 1.0, 1.0, 1, 1, 7, 100.0)
    work = Sample(0)
    work.delivery.add(delivery_ms)
    because = invalid_because(options, cpu, lag_ms, work)
    assert (complaint is None) == (because == [])
    report = {"proof": {"passed": True}, "valid": not because}
    assert exit_code(report) == (PROVEN if complaint is None else INVALID)
    if complaint is not None:
        assert complaint in because[0]
    assert exit_code({**report, "proof": {"passed": False}}) == VIOLATED
