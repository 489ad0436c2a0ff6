"""What `budget-hub stats` makes of two readings of a hub."""

import pytest

from api.cli.stats import NOTHING, Interval, NoMetrics, check_target, columns, parsed, rows

BEFORE = parsed("""
# TYPE budget_hub_events counter
budget_hub_events_total{type="a",verdict="accepted",worker="0"} 10
budget_hub_events_total{type="b",verdict="accepted",worker="0"} 10
budget_hub_events_total{type="b",verdict="conflict",worker="0"} 5
budget_hub_events_total{type="b",verdict="accepted",worker="1"} 500
# TYPE budget_hub_delivery_seconds histogram
budget_hub_delivery_seconds_bucket{le="0.01",worker="0"} 100
budget_hub_delivery_seconds_bucket{le="2.0",worker="0"} 100
budget_hub_delivery_seconds_bucket{le="+Inf",worker="0"} 100
budget_hub_delivery_seconds_count{worker="0"} 100
# TYPE other gauge
other 3
""")
AFTER = parsed("""
budget_hub_events_total{type="a",verdict="accepted",worker="0"} 14
budget_hub_events_total{type="b",verdict="accepted",worker="0"} 16
budget_hub_events_total{type="b",verdict="conflict",worker="0"} 5
budget_hub_events_total{type="b",verdict="accepted",worker="1"} 8
budget_hub_events_total{type="b",verdict="accepted",worker="2"} 1
budget_hub_delivery_seconds_bucket{le="0.01",worker="0"} 160
budget_hub_delivery_seconds_bucket{le="2.0",worker="0"} 198
budget_hub_delivery_seconds_bucket{le="+Inf",worker="0"} 200
budget_hub_delivery_seconds_count{worker="0"} 200
budget_hub_bus_connected{worker="0"} 0
budget_hub_bus_connected{worker="1"} 1
budget_hub_pool_connections{pool="rest",worker="0"} 10
budget_hub_pool_connections_max{pool="rest",worker="0"} 10
budget_hub_pool_waiting{pool="rest",worker="0"} 7
""")


def shown(worker: int) -> dict[str, str]:
    interval = Interval(BEFORE, AFTER, worker, 2.0)
    return {name.strip(): texts[0] for name, texts in rows([interval])}


def test_rates_are_of_the_time_between_and_sums_over_labels() -> None:
    assert shown(0)["events accepted"] == "5.0/s"
    assert shown(0)["conflicts"] == "0.0/s"
    assert shown(0)["events out"] == "50.0/s"


def test_a_worker_that_began_anew_counts_from_zero() -> None:
    assert shown(1)["events accepted"] == "4.0/s"


def test_a_quantile_is_a_bound_and_of_this_time_only() -> None:
    assert shown(0)["delivery p50, p99"] == "≤ 10 ms, beyond"
    assert Interval(BEFORE, AFTER, 0, 2.0).quantile(0.98, "delivery_seconds") == 2.0
    assert shown(1)["delivery p50, p99"] == NOTHING


def test_what_is_wrong_is_told() -> None:
    assert (shown(0)["bus"], shown(1)["bus"], shown(2)["bus"]) == ("DEAF", "hears itself", NOTHING)
    assert shown(0)["connections: rest"] == "10 of 10, 7 wait"


def test_only_workers_of_both_readings_are_shown() -> None:
    assert [*columns({"x": BEFORE}, {"x": AFTER})] == [("x", 0), ("x", 1)]


@pytest.mark.parametrize("text", ["<html>", "budget_hub_feeds 3", 'budget_hub_feeds{worker="a"} 3'])
def test_what_is_not_the_metrics_of_a_hub_is_refused(text: str) -> None:
    with pytest.raises(NoMetrics):
        parsed(text)


@pytest.mark.parametrize(
    "target", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://", "http://x/?y=1"]
)
def test_a_target_is_the_url_of_a_hub(target: str) -> None:
    with pytest.raises(ValueError):
        check_target(target)


def test_a_target_may_stand_behind_a_path() -> None:
    check_target("https://hub.example.org/hub/")
