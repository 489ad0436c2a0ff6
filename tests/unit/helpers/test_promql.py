"""The evaluator of PromQL that the alerts are tested with: values worked out by hand, and what it
does not know is refused."""

import math

import pytest

from tests.promql import NotSupported, Vector, evaluate, firing, recorded

# One value every ten seconds.
TEXT = """
interval: 10s
input_series:
  - {series: 'steady_total{job="a"}', values: '0 10 20 30 40 50 60'}
  - {series: 'reset_total{job="a"}', values: '50 60 70 0 10 20 30'}
  - {series: 'level{job="a", pool="x"}', values: '5 5 5 0 2 2 2'}
  - {series: 'level{job="b", pool="x"}', values: '1 1 1 1 1 1 1'}
  - {series: 'gone{job="a"}', values: '1 1 1 stale _ _ _'}
  - {series: 'late{job="a"}', values: '_ _ _ _ _ _ 7'}
  - {series: 'wait_bucket{job="a", le="0.1"}', values: '0 0 0 0 0 0 0'}
  - {series: 'wait_bucket{job="a", le="1"}', values: '0 10 20 30 40 50 60'}
  - {series: 'wait_bucket{job="a", le="+Inf"}', values: '0 10 20 30 40 50 60'}
  - {series: 'idle_bucket{job="a", le="1"}', values: '5 5 5 5 5 5 5'}
  - {series: 'idle_bucket{job="a", le="+Inf"}', values: '5 5 5 5 5 5 5'}
"""
RECORDING, ENDS_S = recorded(TEXT)


def value(expression: str, at_s: float = 60) -> Vector:
    return evaluate(expression, RECORDING, at_s)


def alone(expression: str, at_s: float = 60) -> float:
    (only,) = value(expression, at_s).values()
    return only


def labels(**pairs: str) -> frozenset[tuple[str, str]]:
    return frozenset(pairs.items())


def test_a_recording_ends_with_its_last_value() -> None:
    assert ENDS_S == 60
    assert alone("late") == 7
    assert value("late", 50) == {}


def test_an_instant_is_the_last_sample_before_it_unless_the_series_ended() -> None:
    assert alone('level{job="a"}', 39) == 0
    assert alone("gone", 29) == 1
    assert value("gone", 30) == {}
    assert alone('level{job="b"}', 60 + 299) == 1
    assert value('level{job="b"}', 60 + 300) == {}


def test_matchers() -> None:
    assert len(value("level")) == 2
    assert len(value('level{job=~"a|b"}')) == 2
    assert value('level{job=~"a.+"}') == {}
    assert len(value('level{job!="a"}')) == 1


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("rate(steady_total[1m])", 1.0),
        ("increase(steady_total[30s])", 30.0),
        # (0, 60] holds 60 70 0 10 20 30: grown by 10, then from zero by 30, in 50 s; and ten
        # more to the beginning of the range.
        ("increase(reset_total[1m])", 48.0),
        ("min_over_time(level{job='a'}[40s])", 0.0),
        ("max_over_time(level{job='a'}[1m])", 5.0),
    ],
)
def test_over_a_range(expression: str, expected: float) -> None:
    assert alone(expression) == pytest.approx(expected)


def test_rate_wants_two_samples() -> None:
    assert value("rate(late[1m])") == {}


def test_sum_max_and_count_by() -> None:
    assert value("sum(level)") == {frozenset(): 3}
    assert value("count by (pool) (level)") == {labels(pool="x"): 2}
    assert value("max by (pool) (level)") == {labels(pool="x"): 2}


def test_quantile_is_linear_within_its_bucket() -> None:
    # All between 0.1 and 1.
    median = "histogram_quantile(0.5, sum by (job, le) (rate(wait_bucket[1m])))"
    assert value(median) == {labels(job="a"): pytest.approx(0.55)}
    assert math.isnan(alone(median.replace("wait", "idle")))
    assert value(median, 0) == {}  # one sample is no rate


def test_comparisons_filter() -> None:
    assert value("level > 1") == {labels(__name__="level", job="a", pool="x"): 2}
    assert value("level == 3") == {}
    assert len(value("level < 3")) == 2


def test_and_or_and_division_match_labels() -> None:
    assert [*value("level and on (job) late")] == [labels(__name__="level", job="a", pool="x")]
    assert len(value('level{job="b"} or on (job) late')) == 2
    assert len(value('level{job="a"} or on (job) late')) == 1
    assert value("sum by (job) (level) / sum by (job) (late)") == {labels(job="a"): 2 / 7}
    assert value('level{job="b"} > on (job) late') == {}


def test_an_alert_fires_when_it_has_held_long_enough_without_a_break() -> None:
    told = dict(firing('level{job="a"} > 1', 20, RECORDING, 60, 10))
    expected = {labels(job="a", pool="x")}
    assert [bool(told[at]) for at in range(0, 70, 10)] == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    assert told[60] == expected


@pytest.mark.parametrize(
    "expression",
    [
        "avg(level)",
        "sum without (job) (level)",
        "level offset 1m",
        "deriv(level[1m])",
        "rate(steady_total[1m:10s])",
        "level + 1",
        "level unless late",
        "level > bool 1",
        "level * on (job) group_left late",
        "level / on (pool) level",
        "1",
    ],
)
def test_what_it_does_not_know_is_refused(expression: str) -> None:
    with pytest.raises(NotSupported):
        value(expression)


def test_what_is_no_promql_is_refused() -> None:
    with pytest.raises(ValueError):
        value("rate(level)")
