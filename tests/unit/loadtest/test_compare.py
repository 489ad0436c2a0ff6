"""Two reports compared: what differs beyond the noise is said, and noise is not."""

from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import TypeAdapter
from rich.console import Console

from loadtest.__main__ import main
from loadtest.compare import Difference, compare, show, unlike
from loadtest.report import Report, write
from tests import reports

REPORT = TypeAdapter(Report)


def made(**changes: Any) -> Report:
    return REPORT.validate_python(reports.report(**changes))


def noisy(seed: int, scale: float = 1.0, seconds: int = 60) -> Report:
    """A minute whose latencies stray by a fifth, slowly, as a machine's do."""
    random = Random(seed)
    stray, series = 0.0, []
    for t in range(seconds):
        stray = 0.5 * stray + random.gauss(0, 0.2)
        series.append(reports.second(t, scale=scale * (1 + max(stray, -0.5))))
    return made(series=series)


def named(differences: list[Difference], name: str) -> Difference:
    [found] = [d for d in differences if d.name == name]
    return found


def test_a_run_beside_itself_differs_in_nothing() -> None:
    differences = compare(made(), made())
    assert {d.ratio for d in differences} <= {1.0, None}
    assert not any(d.matters for d in differences)


def test_slower_is_worse_and_faster_is_better() -> None:
    slow = noisy(2, scale=2.0)
    for name in (
        "ack p50 by second, ms",
        "ack p99 by second, ms",
        "delivery p50 by second, ms",
        "delivery p99 by second, ms",
    ):
        assert named(compare(noisy(1), slow), name).judgement == "worse"
        assert named(compare(slow, noisy(1)), name).judgement == "better"


def test_more_events_are_better() -> None:
    fast = made(series=[reports.second(t, rate=600) for t in range(60)])
    difference = named(compare(made(), fast), "accepted a second")
    assert difference.judgement == "better"
    assert difference.ratio == pytest.approx(1.2)


def test_noise_alone_is_rarely_taken_for_a_difference() -> None:
    pairs = [(noisy(seed), noisy(seed + 1000)) for seed in range(100)]
    alarms = sum(named(compare(a, b), "ack p99 by second, ms").matters for a, b in pairs)
    assert alarms <= 5


def test_half_again_as_slow_is_nearly_always_found() -> None:
    pairs = [(noisy(seed), noisy(seed + 1000, scale=1.5)) for seed in range(100)]
    assert sum(named(compare(a, b), "ack p99 by second, ms").matters for a, b in pairs) >= 95


def test_what_is_certain_but_small_does_not_matter() -> None:
    a = made(series=[reports.second(t) | {"ackP50Ms": 3.0 + t % 2 * 0.001} for t in range(60)])
    b = made(series=[reports.second(t) | {"ackP50Ms": 3.1 + t % 2 * 0.001} for t in range(60)])
    assert named(compare(a, b), "ack p50 by second, ms").judgement == "same"


def test_few_seconds_are_too_short_to_tell() -> None:
    short = made(series=[reports.second(t, scale=9.0) for t in range(4)])
    assert named(compare(made(), short), "ack p50 by second, ms").judgement == "too short to tell"


def test_what_came_in_after_the_last_event_was_due_is_no_rate() -> None:
    ending = [reports.second(t, rate=0) for t in range(60, 75)]
    slow_end = made(series=[reports.second(t) for t in range(60)] + ending)
    difference = named(compare(made(), slow_end), "accepted a second")
    assert (difference.a, difference.b) == (500, 500)


def test_what_only_one_run_has_is_shown_and_not_judged() -> None:
    differences = compare(made(), made(resources=None))
    assert named(differences, "hub CPU µs per event") == Difference(
        "hub CPU µs per event", 610.0, None, "not measured"
    )


def test_a_figure_given_once_is_at_most_called_large() -> None:
    other = made(resources={"hubCpuUsPerEvent": 900.0, "hubRssKiBPerDevice": 19.0})
    differences = compare(made(), other)
    assert named(differences, "hub CPU µs per event").judgement == "large?"
    assert named(differences, "hub memory KiB per device").judgement == "same"


@pytest.mark.parametrize(
    ("name", "was", "now", "sent", "judgement"),
    [
        ("conflicts", 100, 110, 30_000, "same"),  # as it comes by chance
        ("conflicts", 100, 200, 30_000, "different"),
        ("conflicts", 1000, 2000, 60_000, "same"),  # of twice as many events
        ("reconnects", 0, 2, 30_000, "same"),
        ("reconnects", 0, 50, 30_000, "worse"),
        ("errors", 0, 1, 30_000, "worse"),
        ("errors", 1, 0, 30_000, "better"),
    ],
)
def test_counts_are_judged_by_their_share(
    name: str, was: int, now: int, sent: int, judgement: str
) -> None:
    totals = reports.report()["totals"]
    a = made(totals=totals | {name: was, "sent": 30_000})
    b = made(totals=totals | {name: now, "sent": sent})
    assert named(compare(a, b), name).judgement == judgement


def test_another_workload_machine_or_a_failed_proof_is_said() -> None:
    options = reports.report()["options"]
    proof = {"passed": False, "checked": {}, "violation": None}
    other = made(options=options | {"devices": 9, "out": "b"}, scenario="ramp", proof=proof)
    assert unlike(made(options=options | {"out": "a"}), other) == [
        "scenario: steady and ramp",
        "devices: 1500 and 9",
        "b is VIOLATION: its figures do not count",
    ]
    machine = reports.report()["machine"] | {"cores": 64}
    assert unlike(made(), made(machine=machine)) == ["machine: not the same"]
    assert unlike(made(), made()) == []


def test_table_shows_ratios_and_names_what_matters() -> None:
    out = StringIO()
    show(noisy(1), noisy(2, scale=2.0), Console(file=out, width=120))
    shown = out.getvalue()
    assert "b / a" in shown
    assert "worse" in shown
    assert "matters: ack p50 by second, ms, ack p99 by second, ms" in shown


def test_command_compares_two_files_or_says_which_one_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, found in (("a", reports.report()), ("b", reports.report(durationS=61.0))):
        write(found, tmp_path / name)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b" / "report.json")]) == 0
    assert "matters: nothing" in capsys.readouterr().out

    (tmp_path / "bad.json").write_text("[]")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "bad.json")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "bad.json: no report of this script" in said[0]
