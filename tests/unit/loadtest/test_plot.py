"""Plots are well-formed, keep inside their frame, and show what they were given."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings, strategies as st

from loadtest import plot
from loadtest.plot import Limit, Point, Scale

SVG = "{http://www.w3.org/2000/svg}"

anything = st.one_of(st.none(), st.floats())
points = st.lists(st.tuples(st.floats(0, 1e6), anything), max_size=30)
names = st.text(max_size=20)
buckets = st.lists(st.tuples(st.one_of(st.none(), st.floats()), st.integers(0, 10**9)), max_size=30)


def shapes(svg: str, kind: str) -> list[ElementTree.Element]:
    """The drawn elements of this kind, without their like in the legend."""
    return [e for e in ElementTree.fromstring(svg) if kind in e.get("class", "").split()]


def paths(svg: str, kind: str) -> list[str]:
    return [e.get("d", "") for e in shapes(svg, kind) if not e.get("d", "").endswith("h16")]


def check_frame(svg: str) -> None:
    """Parses, and nothing is drawn outside of the frame."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for element in root.iter():
        places = [element.get("x"), element.get("cx")], [element.get("y"), element.get("cy")]
        for found, size in zip(places, (width, height), strict=True):
            assert all(0 <= float(at) <= size for at in found if at is not None)
        for x, y in re.findall(r"[ML](\S+?) ([^\sHVLMZh]+)", element.get("d", "")):
            assert 0 <= float(x) <= width and 0 <= float(y) <= height
        if element.get("class") == "x":  # centred
            half = len(element.text or "") * plot.LETTER / 2
            assert half <= float(element.get("x", "")) <= width - half


@settings(max_examples=50)
@given(st.dictionaries(names, points, max_size=8), names, st.booleans(), st.floats(0, 1e9))
def test_lines_are_well_formed_and_inside_whatever_they_are_given(
    series: dict[str, Sequence[Point]], title: str, log: bool, limit: float
) -> None:
    values = [value for line in series.values() for _, value in line]
    scale: Callable[[list[float | None]], Scale] = plot.logarithmic if log else plot.linear
    svg = plot.lines(
        title, series, plot.time(1e6), scale(values), limits=[Limit("goal", limit)], dots=True
    )
    check_frame(svg)


@given(st.dictionaries(names, buckets, max_size=8), names)
def test_histogram_is_well_formed_and_inside_whatever_it_is_given(
    series: dict[str, list[tuple[float | None, int]]], title: str
) -> None:
    check_frame(plot.histogram(title, series, x_name=title))


@given(st.lists(st.tuples(anything, anything), max_size=30))
def test_areas_are_well_formed_and_inside_whatever_they_are_given(
    rows: list[tuple[float | None, float | None]],
) -> None:
    series = {
        name: [(float(at), row[which]) for at, row in enumerate(rows)]
        for which, name in enumerate(("connected", "offline"))
    }
    check_frame(plot.areas("devices", series, plot.time(len(rows))))


@given(buckets)
def test_histogram_loses_no_count(rows: list[tuple[float | None, int]]) -> None:
    assert plot.binned(rows).total() == sum(count for _, count in rows)


@given(st.floats(0.01, 1e6), st.integers(1, 100))
def test_histogram_counts_a_value_at_its_place(upper: float, count: int) -> None:
    [(number, counted)] = plot.binned([(upper, count)]).items()
    low, high = 10 ** (number / 10), 10 ** ((number + 1) / 10)
    assert counted == count
    assert low * (1 - 1e-6) <= upper <= high * (1 + 1e-6)


def test_histogram_shows_a_single_slow_one_among_a_million() -> None:
    svg = plot.histogram("latency", {"ack": [(1.0, 10**6), (900.0, 1)]})
    [outline] = paths(svg, "h")
    xs, ys = zip(
        *((float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) ([\d.]+)", outline)),
        strict=True,
    )
    floor = max(ys)
    assert [y for x, y in zip(xs, ys, strict=True) if x == max(xs)] != [floor]
    assert min(y for x, y in zip(xs, ys, strict=True) if x > max(xs) - 1) < floor - 5


@given(st.lists(anything, max_size=30))
@pytest.mark.parametrize("scale", [plot.linear, plot.logarithmic])
def test_ticks_are_few_in_order_inside_and_told_apart(
    scale: Callable[[list[float | None]], Scale], values: list[float | None]
) -> None:
    check_ticks(scale(values))


@given(st.floats(0, 1e8))
def test_ticks_of_time_are_few_in_order_inside_and_told_apart(end_s: float) -> None:
    check_ticks(plot.time(end_s))


def check_ticks(scale: Scale) -> None:
    at = [value for value, _ in scale.ticks]
    labels = [label for _, label in scale.ticks]
    assert 2 <= len(at) <= plot.TICKS_MAX + 1
    assert all(a < b for a, b in pairwise(at))
    assert scale.low <= at[0] and at[-1] <= scale.high * (1 + 1e-9)
    assert len(set(labels)) == len(labels)


@given(st.floats(0.001, 1e9), st.floats(0.001, 1e9))
@pytest.mark.parametrize("scale", [plot.linear, plot.logarithmic])
def test_more_is_never_drawn_lower(
    scale: Callable[[list[float | None]], Scale], one: float, other: float
) -> None:
    axis = scale([one, other])
    low, high = sorted((one, other))
    assert 0 <= axis.place(low) <= axis.place(high) <= 1
    if high > 2 * low and high > 0.1 * axis.high:
        assert axis.place(low) < axis.place(high)


def test_where_nothing_was_measured_the_line_breaks() -> None:
    line = [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, float("nan")), (4.0, 3.0)]
    svg = plot.lines("p50", {"ack": line}, plot.time(4), plot.linear([3]))
    [path] = paths(svg, "l")
    assert (path.count("M"), path.count("L")) == (2, 1)


def test_a_limit_that_does_not_fit_is_left_out_of_legend_and_plot() -> None:
    def with_limit(at: float) -> str:
        line = [(0.0, 1.0), (1.0, 2.0)]
        return plot.lines("x", {"a": line}, plot.time(1), plot.linear([2]), limits=[Limit("g", at)])

    assert len(shapes(with_limit(1.5), "limit")) == 2
    assert shapes(with_limit(1e6), "limit") == []


def test_title_and_names_are_shown_and_cannot_break_the_page() -> None:
    nasty = '</svg><script>alert("1")</script>&'
    svg = plot.lines(nasty, {nasty: [(0.0, 1.0)]}, plot.time(1), plot.linear([1]))
    texts = [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert texts.count(nasty) == 2
    assert "<script" not in svg


@given(st.integers(2, 6))
def test_every_line_looks_different(count: int) -> None:
    series: dict[str, Sequence[Point]] = {str(n): [(0.0, 1.0)] for n in range(count)}
    svg = plot.lines("x", series, plot.time(1), plot.linear([1]))
    kinds = [e.get("class") for e in shapes(svg, "l") if not e.get("d", "").endswith("h16")]
    assert len(set(kinds)) == len(series)
