"""What got worse between two tables of results: `python -m loadtest.bench.regression BEFORE AFTER`.

Prints a Markdown table of the ratios that are worse by more than the tolerance, nothing where none
is. Ratios, not speeds: they were made to be compared between machines.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOLERANCE = 0.25  # of a ratio: what a shared machine makes of the same code

_SECTION = re.compile(r"^<!-- (\w+) -->\n(.*?)^<!-- /\1 -->", re.MULTILINE | re.DOTALL)
_ROW = re.compile(
    r"^\| (?P<says>[^|]+) \| \*\*(?P<reached>[0-9.]+)\*\* \| (?P<goal>[≥≤])", re.MULTILINE
)


class Ratio(NamedTuple):
    reached: float
    more_is_better: bool


class Regression(NamedTuple):
    """`after` is None where a ratio is measured no longer."""

    says: str
    before: float
    after: float | None


def read(results: str) -> dict[str, Ratio]:
    """The ratios of the text of a RESULTS.md, by section and what they say."""
    return {
        f"{section}: {row['says']}": Ratio(float(row["reached"]), row["goal"] == "≥")
        for section, text in _SECTION.findall(results)
        for row in _ROW.finditer(text)
    }


def regressions(before: str, after: str, tolerance: float = TOLERANCE) -> Iterator[Regression]:
    """What of `before` is worse, or missing, in `after`."""
    now = read(after)
    for says, ratio in read(before).items():
        if says not in now:
            yield Regression(says, ratio.reached, None)
            continue
        reached = now[says].reached
        worst = ratio.reached * (1 - tolerance if ratio.more_is_better else 1 + tolerance)
        # Two decimals are known: of a ratio near nothing, a hundredth is no regression.
        if ratio.more_is_better:
            worse = reached < worst - 0.01
        else:
            worse = reached > worst + 0.01
        if worse:
            yield Regression(says, ratio.reached, reached)


def _table(found: list[Regression]) -> str:
    lines = ["| ratio | recorded | now |", "|---|---|---|"]
    for one in found:
        now = "not measured" if one.after is None else f"**{one.after:.2f}**"
        lines.append(f"| {one.says} | {one.before:.2f} | {now} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    options = parser.parse_args()
    found = list(
        regressions(options.before.read_text(), options.after.read_text(), options.tolerance)
    )
    if found:
        sys.stdout.write(_table(found))


if __name__ == "__main__":
    main()
