"""What the nightly comparison of benchmarks calls a regression."""

import re

import pytest

from loadtest.bench.regression import Regression, read, regressions
from loadtest.bench.results import RESULTS
from tests import ROOT

RECORDED = RESULTS.read_text()


def results(**reached: str) -> str:
    rows = {"fast": "≥ 1", "slow": "≤ 2"}
    lines = [f"| {says} | **{reached[says]}** | {rows[says]} | x |" for says in reached]
    return "\n".join(["<!-- bench -->", "| ratio | reached | goal | made of |", *lines]) + (
        "\n<!-- /bench -->\n"
    )


def test_every_recorded_ratio_is_read() -> None:
    # Those of the sections: the table of all at the top begins with the section's name.
    rows = re.findall(r"^\| [^|]+ \| \*\*", RECORDED, re.MULTILINE)
    assert len(read(RECORDED)) == len(rows) > 10
    assert list(regressions(RECORDED, RECORDED)) == []


@pytest.mark.parametrize(
    ("fast", "slow", "worse"),
    [
        ("2.00", "1.00", {}),
        ("9.00", "0.10", {}),  # better
        ("1.60", "1.20", {}),  # within the tolerance
        ("1.40", "1.00", {"fast": 1.4}),
        ("2.00", "1.30", {"slow": 1.3}),
    ],
)
def test_worse_is_less_or_more_as_the_goal_says(
    fast: str, slow: str, worse: dict[str, float]
) -> None:
    found = regressions(results(fast="2.00", slow="1.00"), results(fast=fast, slow=slow))
    assert {one.says.removeprefix("bench: "): one.after for one in found} == worse


def test_a_ratio_that_is_measured_no_longer_is_reported() -> None:
    found = list(regressions(results(fast="2.00", slow="1.00"), results(fast="2.00")))
    assert found == [Regression("bench: slow", 1.0, None)]


def test_a_hundredth_of_nearly_nothing_is_no_regression() -> None:
    assert list(regressions(results(slow="0.01"), results(slow="0.02"))) == []


def test_the_results_are_where_the_workflow_looks() -> None:
    assert (
        RESULTS.relative_to(ROOT).as_posix()
        in (ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    )
