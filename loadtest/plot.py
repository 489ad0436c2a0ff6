"""Plots as SVG text, for the report and for the committed results: no library, no script, no font.

Three kinds: `lines` over time or over any number, `areas` stacked, `histogram` in log scale. Each
gives one `<svg>` that stands by itself in a page or a file, scales with its place, and follows the
reader's light or dark setting. Measured for a phone: on 360 pixels its text has 10.

What is not finite is taken as not measured, and breaks a line.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias
from xml.sax.saxutils import escape, quoteattr

from typing_extensions import TypeIs

Point: TypeAlias = tuple[float, float | None]

WIDTH = 420
PLOT_HEIGHT = 170
LEFT, RIGHT, BOTTOM = 46, 10, 34
TITLE_HEIGHT, LEGEND_ROW = 24, 17
LETTER = 6.3  # at most the mean width of one, at the size of the legend
MARK = 22  # in front of a name in the legend
TICKS_MAX = 8
BINS_PER_DECADE = 10
LOG_LOW, LOG_HIGH = 1e-3, 1e9  # of a logarithmic axis; what is outside is drawn at its edge
LINEAR_MAX = 1e12

# Colours that stay apart for the colour-blind, each for light and for dark; dashes tell lines apart
# where colours do not.
_COLOURS = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9e5e"),
    ("#007a55", "#35c99a"),
    ("#b0508a", "#e59ac4"),
    ("#8a6d00", "#f0d24a"),
    ("#5b5b5b", "#b9b9b9"),
)
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 4")


class Limit(NamedTuple):
    """A horizontal line to compare with."""

    name: str
    at: float


class Scale(NamedTuple):
    """An axis: its ends and its ticks with what stands at them."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one; what is outside is at an end."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            value, low, high = math.log(value), math.log(self.low), math.log(self.high)
            return (value - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def lines(
    title: str,
    series: Mapping[str, Sequence[Point]],
    x: Scale,
    y: Scale,
    *,
    x_name: str = "",
    limits: Sequence[Limit] = (),
    dots: bool = False,
) -> str:
    """Lines by name. `dots` marks every point: for the few of a bench."""
    frame = _Frame(title, list(series), x, y, x_name, limits)
    for number, points in enumerate(series.values()):
        frame.draw(_path(points, frame), f"l c{number % len(_COLOURS)}")
        if dots:
            for at, value in points:
                if _measured(value):
                    frame.body.append(
                        f'<circle class="d c{number % len(_COLOURS)}" r="3" '
                        f'cx="{frame.x(at):.1f}" cy="{frame.y(value):.1f}"/>'
                    )
    return frame.svg()


def areas(title: str, series: Mapping[str, Sequence[Point]], x: Scale, *, x_name: str = "") -> str:
    """Areas on top of each other, the first one lowest; all have the same x in the same order."""
    floor: list[float] = [0.0] * max((len(points) for points in series.values()), default=0)
    stacked: list[tuple[list[Point], list[Point]]] = []
    for points in series.values():
        tops = [
            base + (value if _measured(value) else 0.0)
            for base, (_, value) in zip(floor, points, strict=True)
        ]
        edges = [at for at, _ in points]
        stacked.append((list(zip(edges, tops, strict=True)), list(zip(edges, floor, strict=True))))
        floor = tops
    frame = _Frame(title, list(series), x, linear(floor), x_name, filled=True)
    for number, (top, bottom) in enumerate(stacked):
        if top:
            outline = _path([*top, *reversed(bottom)], frame) + "Z"
            frame.draw(outline, f"a c{number % len(_COLOURS)}")
    return frame.svg()


def histogram(
    title: str,
    series: Mapping[str, Iterable[tuple[float | None, int]]],
    *,
    x_name: str = "",
) -> str:
    """How many values lie where, both axes logarithmic: the few slow ones are what one looks for.

    Of each bucket: its upper bound (None: it has none) and its count."""
    counts = {name: binned(buckets) for name, buckets in series.items()}
    used = [bin_number for bins in counts.values() for bin_number in bins]
    x = logarithmic([_bin_low(number) for number in used] + [_bin_low(n + 1) for n in used])
    most = max((count for bins in counts.values() for count in bins.values()), default=1)
    decades = math.ceil(math.log10(max(most, 10)))
    every = -(-decades // TICKS_MAX)
    ticks = [(10.0**n, short(10.0**n)) for n in range(0, decades + 1, every)]
    y = Scale(0.5, 10.0**decades, ticks, True)  # so that a single one is seen
    frame = _Frame(title, list(series), x, y, x_name, filled=True)
    for number, bins in enumerate(counts.values()):
        outline: list[Point] = []
        for at in range(min(bins, default=0), max(bins, default=-1) + 1):
            height = float(max(bins.get(at, 0), y.low))
            outline += [(_bin_low(at), height), (_bin_low(at + 1), height)]
        if outline:
            closed = [(outline[0][0], y.low), *outline, (outline[-1][0], y.low)]
            frame.draw(_path(closed, frame) + "Z", f"h c{number % len(_COLOURS)}")
    return frame.svg()


def binned(buckets: Iterable[tuple[float | None, int]]) -> Counter[int]:
    """Counts by the number of the bin, a tenth of a decade; none is lost."""
    low, high = _bin(LOG_LOW), _bin(LOG_HIGH) - 1
    bins: Counter[int] = Counter()
    for upper, count in buckets:
        if count > 0:
            number = _bin(upper) if _measured(upper) and upper > 0 else high if upper != 0 else low
            bins[min(max(number, low), high)] += count
    return bins


def _bin(upper: float) -> int:
    """The bin that a bucket ends in; one that ends at a bin's edge lies before it."""
    return math.ceil(round(math.log10(upper) * BINS_PER_DECADE, 6)) - 1


def _bin_low(number: int) -> float:
    return math.pow(10, number / BINS_PER_DECADE)


# Axes.


def linear(values: Iterable[float | None]) -> Scale:
    """From 0, or from below the least, up to above the highest, in round steps."""
    found = [value for value in values if _measured(value)]
    low, high = max(min([0.0, *found]), -LINEAR_MAX), min(max([0.0, *found]), LINEAR_MAX)
    if high - low < 1 / LINEAR_MAX:
        high = 1.0
    step = _round_step((high - low) / (TICKS_MAX - 2))
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [(number * step, short(number * step)) for number in range(first, last + 1)]
    return Scale(first * step, last * step, ticks)


def logarithmic(values: Iterable[float | None]) -> Scale:
    """Whole decades, or halves of them where there are few."""
    found = [min(max(v, LOG_LOW), LOG_HIGH) for v in values if _measured(v) and v > 0]
    first = math.floor(round(math.log10(min(found, default=1.0)), 9))
    last = max(math.ceil(round(math.log10(max(found, default=10.0)), 9)), first + 1)
    digits = (1, 2, 5) if last - first <= 2 else (1,)
    every = -(-(last - first) // TICKS_MAX)
    ticks = [
        (digit * 10.0**power, short(digit * 10.0**power))
        for power in range(first, last + 1, every)
        for digit in digits
        if power < last or digit == 1
    ]
    return Scale(10.0**first, 10.0**last, ticks, True)


_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


def time(end_s: float) -> Scale:
    """From the start of a run to its end, in seconds."""
    end_s = max(end_s, 1.0)
    fitting = [step for step in _TIME_STEPS_S if end_s / step <= TICKS_MAX - 1]
    step = fitting[0] if fitting else 86400 * math.ceil(end_s / 86400 / (TICKS_MAX - 1))
    ticks = [(float(at), _clock(at)) for at in range(0, int(end_s) + 1, step)]
    return Scale(0.0, end_s, ticks)


def _clock(at_s: int) -> str:
    hours, minutes, seconds = at_s // 3600, at_s // 60 % 60, at_s % 60
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}" if seconds else f"{hours}:{minutes:02} h"
    return f"{minutes}:{seconds:02}"


def short(value: float) -> str:
    """A number as it stands at an axis: 0.05, 12, 1.5k, 20M."""
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, not less than `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))


# Drawing.


class _Frame:
    """Title, legend, axes and limits; what is drawn inside is gathered in `body`."""

    def __init__(
        self,
        title: str,
        names: Sequence[str],
        x: Scale,
        y: Scale,
        x_name: str,
        limits: Sequence[Limit] = (),
        *,
        filled: bool = False,
    ) -> None:
        self._title, self._x, self._y, self._x_name = title, x, y, x_name
        self._limits = [limit for limit in limits if y.low <= limit.at <= y.high]
        marks = [(f"{'k' if filled else 'l'} c{n % len(_COLOURS)}", s) for n, s in enumerate(names)]
        marks += [("limit", limit.name) for limit in self._limits]
        self._legend, rows = _legend(marks)
        self._top = TITLE_HEIGHT + rows * LEGEND_ROW + 6
        self.body: list[str] = []

    def x(self, value: float) -> float:
        return LEFT + self._x.place(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self._top + (1 - self._y.place(value)) * PLOT_HEIGHT

    def draw(self, path: str, kind: str) -> None:
        if path:
            self.body.append(f'<path class="{kind}" d="{path}"/>')

    def svg(self) -> str:
        height = self._top + PLOT_HEIGHT + BOTTOM
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
                f' class="plot" role="img" aria-label={quoteattr(_clean(self._title))}>',
                f"<style>{STYLE}</style>",
                f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>',
                f'<text class="title" x="8" y="17">{_text(self._title)}</text>',
                *self._legend,
                *self._axes(),
                *self.body,
                *self._limit_lines(),
                "</svg>",
            ]
        )

    def _axes(self) -> Iterable[str]:
        bottom = self._top + PLOT_HEIGHT
        for value, label in self._y.ticks:
            y = self.y(value)
            yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            yield f'<text class="y" x="{LEFT - 5}" y="{y + 4:.1f}">{_text(label)}</text>'
        for value, label in self._x.ticks:
            x = self.x(value)
            yield f'<path class="grid" d="M{x:.1f} {self._top}V{bottom}"/>'
            # Kept inside: the last label would be cut off in its middle.
            half = len(label) * LETTER / 2
            x = min(max(x, half + 1), WIDTH - half - 1)
            yield f'<text class="x" x="{x:.1f}" y="{bottom + 14}">{_text(label)}</text>'
        yield f'<path class="axis" d="M{LEFT} {self._top}V{bottom}H{WIDTH - RIGHT}"/>'
        if self._x_name:
            middle = (LEFT + WIDTH - RIGHT) / 2
            yield f'<text class="x" x="{middle}" y="{bottom + 29}">{_text(self._x_name)}</text>'

    def _limit_lines(self) -> Iterable[str]:
        for limit in self._limits:
            y = self.y(limit.at)
            yield f'<path class="limit" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'


def _legend(marks: Sequence[tuple[str, str]]) -> tuple[list[str], int]:
    """Kinds and names, in as many rows as they need."""
    out: list[str] = []
    x, row = 8.0, 0
    for kind, name in marks:
        width = MARK + len(name) * LETTER + 12
        if x > 8 and x + width > WIDTH:
            x, row = 8.0, row + 1
        y = TITLE_HEIGHT + row * LEGEND_ROW + 8
        out.append(f'<path class="{kind}" d="M{x:.1f} {y}h16"/>')
        out.append(f'<text x="{x + MARK:.1f}" y="{y + 4}">{_text(name)}</text>')
        x += width
    return out, row + 1 if marks else 0


def _path(points: Sequence[Point], frame: _Frame) -> str:
    parts: list[str] = []
    drawing = False
    for at, value in points:
        if not _measured(value):
            drawing = False
            continue
        # `h0` makes a point that stands alone a dot.
        where = f"{frame.x(at):.1f} {frame.y(value):.1f}"
        parts.append(f"L{where}" if drawing else f"M{where}h0")
        drawing = True
    return "".join(parts)


def _measured(value: float | None) -> TypeIs[float]:
    return value is not None and math.isfinite(value)


def _text(text: str) -> str:
    return escape(_clean(text))


def _clean(text: str) -> str:
    """Without what XML cannot hold in any form."""
    return "".join(c if c.isprintable() else " " for c in text)


def _style() -> str:
    def colours(which: int) -> str:
        return "".join(f"--c{n}:{pair[which]};" for n, pair in enumerate(_COLOURS))

    light = f"--ink:#1f2328;--faint:#d5d9de;--paper:#fff;--limit:#c1121f;{colours(0)}"
    dark = f"--ink:#e6e8eb;--faint:#3a4048;--paper:#15181c;--limit:#ff6b6b;{colours(1)}"
    kinds = "".join(
        f".plot .c{n}{{stroke:var(--c{n});stroke-dasharray:{dash or 'none'}}}"
        f".plot .a.c{n},.plot .h.c{n},.plot .d.c{n}{{fill:var(--c{n});stroke-dasharray:none}}"
        for n, dash in enumerate(_DASHES)
    )
    return (
        f".plot{{{light}}}@media(prefers-color-scheme:dark){{.plot{{{dark}}}}}"
        ".plot text{fill:var(--ink);font:12px system-ui,sans-serif}"
        ".plot .title{font-size:13px;font-weight:600}"
        ".plot .x,.plot .y{font-size:11px}.plot .x{text-anchor:middle}.plot .y{text-anchor:end}"
        ".plot path{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}"
        f"{kinds}"
        ".plot .k{stroke-width:8;stroke-opacity:.6;stroke-dasharray:none;stroke-linecap:butt}"
        ".plot .a{fill-opacity:.45}.plot .h{fill-opacity:.2}.plot .paper{fill:var(--paper)}"
        ".plot .grid{stroke:var(--faint);stroke-width:.7}.plot .axis{stroke:var(--ink)}"
        ".plot .limit{stroke:var(--limit);stroke-dasharray:5 3}"
    )


STYLE = _style()
