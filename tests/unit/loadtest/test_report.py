"""report.json is checked when it is read; report.html shows all of it and needs nothing else."""

import json
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from loadtest import report
from loadtest.page import POINTS_MAX, page, thin, verdict
from loadtest.plot import Point
from loadtest.report import BadReport, Report
from tests import reports

VOID = {"meta", "br", "hr", "link", "img"}


class Parsed(HTMLParser):
    """Tags, texts and what is asked from elsewhere; every tag must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.asked: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def read(tmp_path: Path, **changes: Any) -> Report:
    """The made-up report as it comes back from its file."""
    data, _ = report.write(reports.report(**changes), tmp_path)
    return report.read(data)


def test_report_comes_back_as_it_was_written_by_file_or_folder(tmp_path: Path) -> None:
    made = reports.report()
    data, html = report.write(made, tmp_path / "new" / "folder")
    assert json.loads(data.read_bytes()) == made
    assert report.read(data) == report.read(data.parent)
    assert html.read_text() == page(report.read(data))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version"),
        ({"totals": {}}, "totals.sent"),
        ({"proof": None}, "proof"),
        ({"series": [{}]}, "series.0.t"),
    ],
)
def test_what_is_no_report_is_refused_with_the_field(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(reports.report() | change))
    with pytest.raises(BadReport, match=rf"a\.json: no report of this script; {said}"):
        report.read(path)


def test_no_file_or_no_json_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadReport, match="No such file"):
        report.read(tmp_path / "missing.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(BadReport) as refused:
        report.read(tmp_path / "b.json")
    assert "\n" not in str(refused.value)


def test_page_holds_all_plots_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    html = page(read(tmp_path))
    parsed = Parsed(html)
    assert parsed.tags.count("svg") == 6
    assert parsed.asked == []
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert "url(" not in html and "@import" not in html
    for title in ("Throughput", "Latency, ms", "How many took how long", "Devices"):
        assert any(text.startswith(title) for text in parsed.texts)


def test_page_is_made_for_a_phone_and_for_the_dark(tmp_path: Path) -> None:
    html = page(read(tmp_path))
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme:dark" in html
    assert "grid-template-columns:1fr}" in html.replace(";gap:10px", "")


def test_page_shows_the_figures(tmp_path: Path) -> None:
    text = Parsed(page(read(tmp_path))).text
    for shown in (
        "29,900",
        "143",
        "p99.9",
        "hub CPU µs per event",
        "hub memory KiB per device",
        "610",
        "e12ceba",
        "41% of a",
    ):
        assert shown in text


def test_violation_stands_on_the_page_with_its_history(tmp_path: Path) -> None:
    broken = {"rule": "P3", "what": "e1 is in the log twice", "story": ["sent 1.0", "<b>seen</b>"]}
    found = read(tmp_path, proof={"passed": False, "checked": {}, "violation": broken})
    text = Parsed(page(found)).text
    assert verdict(found) == "VIOLATION"
    assert "e1 is in the log twice" in text and "<b>seen</b>" in text and "VIOLATION" in text


def test_invalid_run_says_why_on_the_page(tmp_path: Path) -> None:
    found = read(tmp_path, valid=False, invalidBecause=["the generator took 99% of a core"])
    assert verdict(found) == "INVALID"
    assert "the generator took 99% of a core" in Parsed(page(found)).text


def test_violation_is_told_also_where_the_generator_was_the_limit(tmp_path: Path) -> None:
    proof = {"passed": False, "checked": {}, "violation": None}
    assert verdict(read(tmp_path, valid=False, proof=proof)) == "VIOLATION"


def test_page_of_a_ramp_shows_the_rate_it_found_and_every_step(tmp_path: Path) -> None:
    steps = [
        {"rate": 500.0, "p99Ms": 20.0, "kept": True},
        {"rate": 1777.0, "p99Ms": None, "kept": False},
        {"rate": 1234.0, "p99Ms": 90.0, "kept": True},
    ]
    ramp = {"p99Ms": 100.0, "highestRate": 1234.0, "steps": steps}
    parsed = Parsed(page(read(tmp_path, ramp=ramp)))
    assert "1,234" in parsed.text and "bound: 100" in parsed.texts
    assert parsed.tags.count("svg") == 7
    none = Parsed(page(read(tmp_path, ramp=ramp | {"highestRate": None, "steps": []})))
    assert "none" in none.texts


def test_run_that_measured_nothing_has_a_page(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("p50", "p90", "p99", "p999", "max"))
    second = dict.fromkeys(reports.second(0)) | {"t": 0.0}
    found = read(
        tmp_path,
        durationS=0.0,
        latency={"ackMs": {**nothing, "count": 0}, "deliveryMs": {**nothing, "count": 0}},
        histograms={"ackMs": [], "deliveryMs": []},
        series=[second],
        resources=None,
    )
    assert Parsed(page(found)).tags.count("svg") == 6


def test_page_of_hours_is_not_much_larger(tmp_path: Path) -> None:
    hours = read(tmp_path, series=[reports.second(t) for t in range(5_000)], durationS=5_000.0)
    assert len(page(hours)) < 200_000


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=1000))
def test_thinned_line_is_short_and_keeps_its_peak_and_its_order(
    values: list[float | None],
) -> None:
    points: list[Point] = [(float(at), value) for at, value in enumerate(values)]
    thinned = thin(points, max)
    assert len(thinned) <= POINTS_MAX
    assert all(a[0] < b[0] for a, b in pairwise(thinned))
    measured = [value for value in values if value is not None]
    kept = [value for _, value in thinned if value is not None]
    assert max(kept, default=None) == max(measured, default=None)
