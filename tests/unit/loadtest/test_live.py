"""The live view: everything that happens now on a terminal, a line now and then elsewhere."""

from io import StringIO
from typing import Any

import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from loadtest.live import TRACE_S, LiveView, trace
from tests.reports import second


def told(seconds: int, *, terminal: bool, **changes: Any) -> str:
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    with LiveView(console, "steady", 60) as view:
        for t in range(seconds):
            view.update(second(t, **changes))
    return out.getvalue()


def test_terminal_shows_everything_that_happens_now() -> None:
    shown = told(10, terminal=True, reconnects=3, errors=0, offline=12, connected=1488)
    last = shown[shown.rindex("steady") :]
    for wanted in (
        "0:10 of 1:00", "devices connected", "1,488", "12 offline", "events/s", "500",
        "deliveries/s", "1,000", "ack p50, p99 ms", "delivery p50, p99 ms", "errors",
    ):  # fmt: skip
        assert wanted in last
    lines = {line.split("  ")[0]: line.split() for line in last.splitlines()}
    assert lines["devices connected"][2] == "1,488"
    assert "20" in lines["conflicts"] and "30" in lines["reconnects"]  # since the start
    assert lines["errors"] == ["errors", "0"]


def test_elsewhere_a_plain_line_every_few_seconds() -> None:
    lines = told(12, terminal=False).splitlines()
    assert [line.split()[0] for line in lines] == ["0:00", "0:05", "0:10"]
    assert "1,500 connected, 500 events/s, 1,000 deliveries/s" in lines[0]
    assert lines[-1].endswith("22 conflicts, 0 reconnects, 0 errors")
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_second_in_which_nothing_was_measured_is_shown_as_such(terminal: bool) -> None:
    nothing = dict.fromkeys(second(0))
    del nothing["t"]
    assert "-" in told(1, terminal=terminal, **nothing)


def test_totals_of_the_run_come_before_what_was_added_up() -> None:
    shown = told(1, terminal=False, totals={"conflicts": 77, "sent": 5})
    assert "77 conflicts, 0 reconnects" in shown


def test_terminal_is_given_back_when_the_run_fails() -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True)
    with pytest.raises(RuntimeError), LiveView(console, "steady", 60) as view:
        view.update(second(0))
        raise RuntimeError
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e9)), max_size=TRACE_S))
def test_trace_has_one_mark_a_second_and_more_is_never_lower(values: list[float | None]) -> None:
    marks = trace(values)
    assert len(marks) == len(values)
    measured = sorted((v, m) for v, m in zip(values, marks, strict=True) if v is not None)
    assert [m for _, m in measured] == sorted(m for _, m in measured)
    assert all(m == " " for v, m in zip(values, marks, strict=True) if v is None)
