"""The committed table of results: `loadtest/RESULTS.md`, one section a bench."""

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parents[1] / "RESULTS.md"


class Row(NamedTuple):
    """A ratio: what it says, the figure that was reached, the goal, and what it was made of."""

    says: str
    reached: float
    goal: str
    made_of: str


def write_section(name: str, rows: Sequence[Row], notes: str) -> None:
    """Replace the section `name` of the results, or add it."""
    table = ["| ratio | reached | goal | made of |", "|---|---|---|---|"]
    table += [f"| {r.says} | **{r.reached:.2f}** | {r.goal} | {r.made_of} |" for r in rows]
    section = [f"<!-- {name} -->", *table, "", notes, "", _where(), f"<!-- /{name} -->"]
    text = RESULTS.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2] if rest else "\n"
    RESULTS.write_text(before + "\n".join(section) + after)


def _where() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"Measured {today} at commit {commit or 'unknown'} on {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}; Postgres, Redis, hub and "
        "generator shared them."
    )
