"""PromQL over recorded samples, as far as our alerts use it. The parser is a library's.

What it does not know raises `NotSupported`, so that no rule passes because nobody evaluated it.
Where there is a `promtool`, `tests/unit/infra/test_alerts.py` has Prometheus' own engine look at
the same recordings and compares.

It follows Prometheus 3: a range ends with its moment and leaves out its beginning, an instant sees
the last sample of five minutes, and `rate` extrapolates to the ends of its range.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import promql_parser as parser
import yaml

LOOKBACK_S = 300.0
NAME = "__name__"

Labels: TypeAlias = frozenset[tuple[str, str]]
Vector: TypeAlias = dict[Labels, float]


class NotSupported(Exception):
    """A part of PromQL that is not here."""


class Sample(NamedTuple):
    """`value` None is where Prometheus noticed that the series had ended."""

    at_s: float
    value: float | None


Recording: TypeAlias = Mapping[Labels, Sequence[Sample]]


def recorded(text: str) -> tuple[Recording, float]:
    """A recording, and when it ends (seconds). It is the input of a unit test of promtool: series
    with one value an interval, `_` where there is none, `stale` where one ends."""
    raw = yaml.safe_load(text)
    interval_s = parser.parse_duration(raw["interval"]).total_seconds()
    recording: dict[Labels, list[Sample]] = {}
    ends_s = 0.0
    for each in raw["input_series"]:
        selector = parser.parse(each["series"])
        assert isinstance(selector, parser.VectorSelector) and selector.name is not None
        pairs = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
        labels = frozenset({NAME: selector.name, **pairs}.items())
        recording[labels] = samples = []
        for number, word in enumerate(each["values"].split()):
            ends_s = max(ends_s, number * interval_s)
            if word != "_":
                value = None if word == "stale" else float(word)
                samples.append(Sample(number * interval_s, value))
    return recording, ends_s


def evaluate(expression: str, recording: Recording, at_s: float) -> Vector:
    """The expression's value at that moment. Raises `NotSupported`; `ValueError` where it is no
    PromQL."""
    value = _Evaluation(recording, at_s).of(parser.parse(expression))
    if isinstance(value, float):
        raise NotSupported("an alert on a number")
    return value


def selected(expression: str) -> list[tuple[str, dict[str, str]]]:
    """The series an expression reads: names, and what their labels are compared with."""
    found = []

    def visit(expr: parser.Expr) -> None:
        selector = expr.vector_selector if isinstance(expr, parser.MatrixSelector) else expr
        if isinstance(selector, parser.VectorSelector):
            compared = {each.name: each.value for each in selector.matchers.matchers}
            found.append((selector.name or "", compared))

    parser.walk(parser.parse(expression), visit)
    return found


def firing(
    expression: str, for_s: float, recording: Recording, until_s: float, every_s: float
) -> Iterator[tuple[float, set[Labels]]]:
    """At each evaluation, the labels of what an alert has been firing for: what had a value each
    time for `for_s`."""
    alert = Pending(expression, for_s)
    at_s = 0.0
    while at_s <= until_s:
        yield at_s, alert.look(recording, at_s)
        at_s += every_s


class Pending:
    """An alert between its evaluations."""

    def __init__(self, expression: str, for_s: float) -> None:
        self._expression = expression
        self._for_s = for_s
        self._since_s: dict[Labels, float] = {}

    def look(self, recording: Recording, at_s: float) -> set[Labels]:
        """Evaluate it at this moment, which is later than the one before: what it fires for."""
        found = evaluate(self._expression, recording, at_s)
        self._since_s = {labels: self._since_s.get(labels, at_s) for labels in found}
        return {
            _unnamed(labels)
            for labels, first_s in self._since_s.items()
            if at_s - first_s >= self._for_s
        }


class _Evaluation:
    def __init__(self, recording: Recording, at_s: float) -> None:
        self._recording = recording
        self._at_s = at_s

    def of(self, expr: parser.Expr) -> Vector | float:
        match expr:
            case parser.ParenExpr():
                return self.of(expr.expr)
            case parser.NumberLiteral():
                return expr.val
            case parser.VectorSelector():
                return self._instant(expr)
            case parser.Call():
                return self._call(expr)
            case parser.AggregateExpr():
                return self._aggregate(expr)
            case parser.BinaryExpr():
                return self._binary(expr)
        raise NotSupported(type(expr).__name__)

    def _vector(self, expr: parser.Expr) -> Vector:
        value = self.of(expr)
        if isinstance(value, float):
            raise NotSupported("a number in place of a vector")
        return value

    def _matching(self, selector: parser.VectorSelector) -> Iterator[tuple[Labels, list[Sample]]]:
        if selector.offset is not None or selector.at is not None:
            raise NotSupported("offset, @")
        tests = [_matches(matcher) for matcher in selector.matchers.matchers]
        for labels, samples in self._recording.items():
            of_series = dict(labels)
            named = selector.name is None or of_series[NAME] == selector.name
            if named and all(test(of_series) for test in tests):
                yield labels, [sample for sample in samples if sample.at_s <= self._at_s]

    def _instant(self, selector: parser.VectorSelector) -> Vector:
        vector = {}
        for labels, samples in self._matching(selector):
            recent = [sample for sample in samples if sample.at_s > self._at_s - LOOKBACK_S]
            if recent and recent[-1].value is not None:
                vector[labels] = recent[-1].value
        return vector

    def _call(self, call: parser.Call) -> Vector:
        name = call.func.name
        if name == "histogram_quantile":
            quantile = self.of(call.args[0])
            assert isinstance(quantile, float)
            return _quantiles(quantile, self._vector(call.args[1]))
        if name not in _OVER_TIME:
            raise NotSupported(name)
        (matrix,) = call.args
        if not isinstance(matrix, parser.MatrixSelector):
            raise NotSupported(type(matrix).__name__)
        range_s = matrix.range.total_seconds()
        vector = {}
        for labels, samples in self._matching(matrix.vector_selector):
            within = [
                (sample.at_s, sample.value)
                for sample in samples
                if sample.at_s > self._at_s - range_s and sample.value is not None
            ]
            if within:
                value = _OVER_TIME[name](within, self._at_s, range_s)
                if value is not None:
                    vector[_unnamed(labels)] = value
        return vector

    def _aggregate(self, expr: parser.AggregateExpr) -> Vector:
        if str(expr.op) not in _AGGREGATES or expr.param is not None:
            raise NotSupported(str(expr.op))
        by: list[str] = []
        if expr.modifier is not None:
            if expr.modifier.type is not parser.AggModifierType.By:
                raise NotSupported("without")
            by = expr.modifier.labels
        groups: dict[Labels, list[float]] = {}
        for labels, value in self._vector(expr.expr).items():
            groups.setdefault(_only(labels, by), []).append(value)
        return {labels: _AGGREGATES[str(expr.op)](values) for labels, values in groups.items()}

    def _binary(self, expr: parser.BinaryExpr) -> Vector:
        op, modifier = str(expr.op), expr.modifier
        left, right = self._vector(expr.lhs), self.of(expr.rhs)
        if modifier is not None and (modifier.return_bool or modifier.group_labels):
            raise NotSupported("bool, group_left, group_right")
        if isinstance(right, float):
            return _filtered({labels: (value, right) for labels, value in left.items()}, op)
        matching = None if modifier is None else modifier.matching
        if matching is not None and matching.type is not parser.LabelModifierType.Include:
            raise NotSupported("ignoring")

        def key(labels: Labels) -> Labels:
            return _unnamed(labels) if matching is None else _only(labels, matching.labels)

        if op == "and":
            there = {key(labels) for labels in right}
            return {labels: value for labels, value in left.items() if key(labels) in there}
        if op == "or":
            here = {key(labels) for labels in left}
            more = {labels: value for labels, value in right.items() if key(labels) not in here}
            return {**left, **more}
        partners = {key(labels): value for labels, value in right.items()}
        if len(partners) < len(right) or len({key(labels) for labels in left}) < len(left):
            raise NotSupported("several series for one")
        pairs = {
            labels: (value, partners[key(labels)])
            for labels, value in left.items()
            if key(labels) in partners
        }
        return _filtered(pairs, op)


def _filtered(pairs: Mapping[Labels, tuple[float, float]], op: str) -> Vector:
    """Comparisons keep the left side where they hold; arithmetic drops the name."""
    if op in _COMPARISONS:
        return {
            labels: left for labels, (left, right) in pairs.items() if _COMPARISONS[op](left, right)
        }
    if op == "/":
        return {_unnamed(labels): _divided(*pair) for labels, pair in pairs.items()}
    raise NotSupported(op)


def _divided(left: float, right: float) -> float:
    if right:
        return left / right
    return math.nan if left == 0 or math.isnan(left) else math.copysign(math.inf, left)


_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": lambda left, right: left > right,
    "<": lambda left, right: left < right,
    "==": lambda left, right: left == right,
}
_AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "sum": sum,
    "max": max,
    "count": len,
}


def _increase(samples: Sequence[tuple[float, float]], at_s: float, range_s: float) -> float | None:
    """Resets counted in, and extrapolated to the ends of the range, but not far beyond what was
    seen, nor below zero."""
    if len(samples) < 2:
        return None
    (first_s, first), (last_s, last) = samples[0], samples[-1]
    grown = (
        last
        - first
        + sum(before for (_, before), (_, after) in pairwise(samples) if after < before)
    )
    seen_s = last_s - first_s
    apart_s = seen_s / (len(samples) - 1)
    before_s, after_s = first_s - (at_s - range_s), at_s - last_s
    if before_s >= apart_s * 1.1:
        before_s = apart_s / 2
    if grown > 0 and first >= 0:
        before_s = min(before_s, seen_s * first / grown)
    if after_s >= apart_s * 1.1:
        after_s = apart_s / 2
    return grown * (seen_s + before_s + after_s) / seen_s


def _rate(samples: Sequence[tuple[float, float]], at_s: float, range_s: float) -> float | None:
    increase = _increase(samples, at_s, range_s)
    return None if increase is None else increase / range_s


_OVER_TIME: Mapping[str, Callable[[Sequence[tuple[float, float]], float, float], float | None]] = {
    "rate": _rate,
    "increase": _increase,
    "min_over_time": lambda samples, at_s, range_s: min(value for _, value in samples),
    "max_over_time": lambda samples, at_s, range_s: max(value for _, value in samples),
}


def _quantiles(quantile: float, buckets: Vector) -> Vector:
    histograms: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in buckets.items():
        of_bucket = dict(labels)
        bound = float(of_bucket.pop("le"))
        of_bucket.pop(NAME, None)
        histograms.setdefault(frozenset(of_bucket.items()), []).append((bound, count))
    return {labels: _quantile(quantile, sorted(each)) for labels, each in histograms.items()}


def _quantile(quantile: float, buckets: Sequence[tuple[float, float]]) -> float:
    """Linear within a bucket; above the last bound, that bound."""
    total = buckets[-1][1]
    if total == 0 or math.isnan(total):
        return math.nan
    rank = quantile * total
    below_bound, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if math.isinf(bound):
                return below_bound
            return below_bound + (bound - below_bound) * (rank - below) / (count - below)
        below_bound, below = bound, count
    raise AssertionError("the last bucket holds everything")


def _matches(matcher: parser.Matcher) -> Callable[[Mapping[str, str]], bool]:
    def value(labels: Mapping[str, str]) -> str:
        return labels.get(matcher.name, "")

    match matcher.op:
        case parser.MatchOp.Equal:
            return lambda labels: value(labels) == matcher.value
        case parser.MatchOp.NotEqual:
            return lambda labels: value(labels) != matcher.value
        case parser.MatchOp.Re:
            return lambda labels: re.fullmatch(matcher.value, value(labels)) is not None
    raise NotSupported(str(matcher.op))


def _only(labels: Labels, names: Sequence[str]) -> Labels:
    return frozenset(pair for pair in labels if pair[0] in names)


def _unnamed(labels: Labels) -> Labels:
    return frozenset(pair for pair in labels if pair[0] != NAME)
