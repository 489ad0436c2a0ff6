"""Run Autobahn's WebSocket test suite against `tests.echo`: `python -m tests.autobahn WSTEST`.

Prints every case whose result is not OK, and totals for each chapter. Exits with 1 if a case
failed. The chapters on compression are left out, because the hub declines compression.
"""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from tests.echo import echoing

COUNTED = ("1", "2", "3", "4", "5", "6", "7", "9", "10")
# "NON-STRICT" behaviour is allowed by RFC 6455, but not what the suite recommends.
RIGHT = ("OK", "NON-STRICT", "INFORMATIONAL")

_console = Console(highlight=False, soft_wrap=True)


async def run(wstest: str) -> dict[str, dict[str, Any]]:
    """Run the suite; return the result of each case."""
    with tempfile.TemporaryDirectory(prefix="budget-hub-autobahn-") as name:
        folder = Path(name)
        async with echoing() as url:
            plan = {
                "outdir": str(folder / "reports"),
                "servers": [{"agent": "budget-hub", "url": url}],
                "cases": [f"{chapter}.*" for chapter in COUNTED],
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
            (folder / "plan.json").write_text(json.dumps(plan))
            process = await asyncio.create_subprocess_exec(
                wstest, "-m", "fuzzingclient", "-s", str(folder / "plan.json")
            )
            if await process.wait() != 0:
                sys.exit("wstest failed")
        text = (folder / "reports" / "index.json").read_text()
    results: dict[str, dict[str, Any]] = json.loads(text)["budget-hub"]
    return results


def main(wstest: str) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(run(wstest))
    behaved: dict[str, Counter[str]] = {chapter: Counter() for chapter in COUNTED}
    wrong = []
    for case, result in results.items():
        said = {result["behavior"], result["behaviorClose"]}
        behaved[case.partition(".")[0]][result["behavior"]] += 1
        if said != {"OK"}:
            _console.print(f"{case}: {result['behavior']}, closing {result['behaviorClose']}")
        if not said <= set(RIGHT):
            wrong.append(case)
    for chapter, counts in behaved.items():
        _console.print(f"{chapter}: {dict(counts)}")
    _console.print(f"{len(results)} cases, wrong: {wrong or 'none'}")
    return 1 if wrong or not results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
