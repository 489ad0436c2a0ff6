"""What a run does at this moment, on a terminal; elsewhere a plain line now and then."""

from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.page import milliseconds

LINE_EVERY_S = 5.0
TRACE_S = 40  # seconds of which each trace shows
_BLOCKS = "▁▂▃▄▅▆▇█"

# What is added up where a sample brings no totals.
_COUNTED = ("accepted", "deliveries", "conflicts", "reconnects", "errors")


class LiveView:
    """A context manager; `update` it once a second with a merged entry of the report's `series`.

    The entry may bring `totals`, counts from the start; else they are added up here."""

    def __init__(self, console: Console, scenario: str, duration_s: float) -> None:
        self._console = console
        self._scenario = scenario
        self._duration_s = duration_s
        self._counted = dict.fromkeys(_COUNTED, 0)
        self._traces: dict[str, deque[float | None]] = {}
        self._said_at_s = float("-inf")
        # Drawn when there is something new: no thread redraws it while the loop is busy.
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, sample: Mapping[str, Any]) -> None:
        for name in _COUNTED:
            self._counted[name] += sample.get(name) or 0
        totals = {**self._counted, **(sample.get("totals") or {})}
        for name in ("accepted", "deliveries", "ackP99Ms", "deliveryP99Ms"):
            trace = self._traces.setdefault(name, deque(maxlen=TRACE_S))
            trace.append(sample.get(name))
        if self._live is not None:
            self._live.update(self._table(sample, totals), refresh=True)
        elif sample["t"] - self._said_at_s >= LINE_EVERY_S:
            self._said_at_s = sample["t"]
            self._console.print(self._line(sample, totals), highlight=False, soft_wrap=True)

    def _line(self, sample: Mapping[str, Any], totals: Mapping[str, int]) -> str:
        return (
            f"{_clock(sample['t'])} {_count(sample.get('connected'))} connected, "
            f"{_count(sample.get('accepted'))} events/s, "
            f"{_count(sample.get('deliveries'))} deliveries/s, "
            f"ack {_pair(sample, 'ack')} ms, delivery {_pair(sample, 'delivery')} ms, "
            f"{totals['conflicts']:,} conflicts, {totals['reconnects']:,} reconnects, "
            f"{totals['errors']:,} errors"
        )

    def _table(self, sample: Mapping[str, Any], totals: Mapping[str, int]) -> Group:
        at_s = min(sample["t"] + 1, self._duration_s)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self._scenario, "bold"),
            f"{_clock(at_s)} of {_clock(self._duration_s)}",
            ProgressBar(total=self._duration_s, completed=at_s, width=40),
        )
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(justify="right", min_width=14)
        table.add_column(no_wrap=True)
        offline = sample.get("offline") or 0
        away = f"{offline:,} offline" if offline else ""
        table.add_row("devices connected", _count(sample.get("connected")), away)
        for says, name in (("events/s", "accepted"), ("deliveries/s", "deliveries")):
            table.add_row(says, _count(sample.get(name)), trace(self._traces[name]))
        for name in ("ack", "delivery"):
            shown = trace(self._traces[f"{name}P99Ms"])
            table.add_row(f"{name} p50, p99 ms", _pair(sample, name), shown)
        for name, style in (("conflicts", ""), ("reconnects", "yellow"), ("errors", "bold red")):
            figure = Text(f"{totals[name]:,}", style=style if totals[name] else "")
            table.add_row(name, figure, f"{_count(sample.get(name))} now" if totals[name] else "")
        return Group(head, table)


def trace(values: Sequence[float | None]) -> str:
    """The last seconds as a row of blocks, from 0 to their highest; a gap where nothing was
    measured."""
    most = max((value for value in values if value is not None), default=0)
    steps = len(_BLOCKS) - 1
    return "".join(
        " " if value is None else _BLOCKS[round(value / most * steps) if most else 0]
        for value in values
    )


def _pair(sample: Mapping[str, Any], of: str) -> str:
    return f"{milliseconds(sample.get(f'{of}P50Ms'))}, {milliseconds(sample.get(f'{of}P99Ms'))}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _clock(at_s: float) -> str:
    minutes, seconds = divmod(round(at_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
