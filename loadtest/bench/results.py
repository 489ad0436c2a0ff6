"""The committed results: `loadtest/RESULTS.md`, one section a bench, all ratios together before
them; and the plots beside it."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from loadtest.bench.load import Load

RESULTS = Path(__file__).parents[1] / "RESULTS.md"

_ROW = re.compile(
    r"^\| (?P<says>.+?) \| \*\*(?P<reached>[\d.]+|inf)\*\* \| (?P<goal>.+?) \| ", re.MULTILINE
)
_SECTION = re.compile(r"<!-- (?P<name>\w+) -->\n(?P<body>.*?)<!-- /(?P=name) -->", re.DOTALL)


class Row(NamedTuple):
    """A ratio: what it says, the figure that was reached, the goal, and what it was made of."""

    says: str
    reached: float
    goal: str
    made_of: str


def kept(reached: float, goal: str) -> bool | None:
    """Whether the goal (`≥ 0.6`, `≤ 1`) was reached; None where there is none."""
    sign, _, bound = goal.partition(" ")
    if sign not in ("≥", "≤"):
        return None
    # As it is shown: what reads 1.00 is 1.
    return round(reached, 2) >= float(bound) if sign == "≥" else round(reached, 2) <= float(bound)


def show(rows: Sequence[Row], console: Console) -> None:
    """A line for each, with the limit it is compared with."""
    for row in rows:
        mark = {True: "kept", False: "[bold red]MISSED[/]", None: ""}[kept(row.reached, row.goal)]
        console.print(f"{row.says}: {row.reached:.2f} ({row.goal}) {mark}; {row.made_of}")


def write_section(
    name: str,
    rows: Sequence[Row],
    notes: str,
    load: Load,
    plots: Mapping[str, str] | None = None,
    path: Path = RESULTS,
) -> None:
    """Replace the section `name` of the results, or add it; `plots` are SVG by the file's name."""
    table = ["| ratio | reached | goal | made of |", "|---|---|---|---|"]
    table += [f"| {r.says} | **{r.reached:.2f}** | {r.goal} | {r.made_of} |" for r in rows]
    pictures = []
    for file, svg in (plots or {}).items():
        (path.parent / "plots").mkdir(exist_ok=True)
        (path.parent / "plots" / f"{file}.svg").write_text(svg + "\n")
        pictures.append(f"![{file.replace('-', ' ')}](plots/{file}.svg)")
    shown = [*pictures, ""] if pictures else []
    section = [f"<!-- {name} -->", *table, "", notes, "", *shown, _where(load), f"<!-- /{name} -->"]
    text = path.read_text()
    begin, end = section[0], section[-1]
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2] if rest else "\n"
    path.write_text(with_summary(before + "\n".join(section) + after))


def with_summary(text: str) -> str:
    """The results with all their ratios between the markers of `summary`, if there are any."""
    lines = ["| bench | ratio | reached | goal | kept |", "|---|---|---|---|---|"]
    for bench, says, reached, goal in ratios(text):
        word = {True: "yes", False: "**no**", None: ""}[kept(reached, goal)]
        lines.append(f"| {bench} | {says} | **{reached:.2f}** | {goal} | {word} |")
    before, begin, rest = text.partition("<!-- summary -->\n")
    _, end, after = rest.partition("<!-- /summary -->")
    return before + begin + "\n".join(lines) + "\n" + end + after if begin and end else text


def ratios(text: str) -> list[tuple[str, str, float, str]]:
    """Bench, what it says, the figure and the goal, of every section."""
    return [
        (section["name"], row["says"], float(row["reached"]), row["goal"])
        for section in _SECTION.finditer(text)
        if section["name"] != "summary"
        for row in _ROW.finditer(section["body"])
    ]


def table(text: str) -> Table:
    """All ratios, for a terminal."""
    shown = Table("bench", "ratio", "reached", "goal", "kept")
    for bench, says, reached, goal in ratios(text):
        word = {True: "yes", False: "[bold red]no", None: ""}[kept(reached, goal)]
        shown.add_row(bench, says, f"{reached:.2f}", goal, word)
    return shown


def _where(load: Load) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"Measured {today} at commit {commit or 'unknown'} on {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()} built "
        f"{platform.python_build()[1][:11]} by {platform.python_compiler()}; Postgres, Redis, hub "
        f"and generator shared them; {load}."
    )
