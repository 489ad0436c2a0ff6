"""Every bench in one run: `python -m loadtest.bench [NAME …] [--record] [--small]`.

Each runs as a process of its own, one after the other, says what it does, and compares its figures
with their limits. `make bench` records them in `loadtest/RESULTS.md`, with the plots beside it.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import typer
from rich.console import Console

from loadtest.bench import load
from loadtest.bench.results import RESULTS, table

QUIET_WITHIN_S = 120.0  # what the bench before has left in the load average is gone by then


class Bench(NamedTuple):
    """A module of this folder, how long it takes, and how it is run: in full and for a try."""

    name: str
    minutes: float
    about: str
    full: Sequence[str] = ()
    small: Sequence[str] = ()


BENCHES = (
    Bench("fanout", 2, "one budget to 1,000 sockets", small=("--idle-sockets", "500")),
    Bench("crossing", 0.3, "from one node to another"),
    Bench("rest", 0.5, "reading over HTTP, and catching up"),
    Bench("commit", 11, "events into Postgres", full=("--flat",), small=("--duration-s", "0.5")),
    Bench("fleet", 14, "the load script drives thousands of devices", small=("--small",)),
)

_console = Console(highlight=False, soft_wrap=True)


def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Only these.")
    ] = None,
    record: Annotated[bool, typer.Option(help="Write loadtest/RESULTS.md.")] = False,
    small: Annotated[bool, typer.Option(help="Only try them; the figures say nothing.")] = False,
) -> None:
    chosen = [bench for bench in BENCHES if not names or bench.name in names]
    if unknown := set(names or ()) - {bench.name for bench in BENCHES}:
        known = ", ".join(bench.name for bench in BENCHES)
        raise typer.BadParameter(f"no bench {', '.join(sorted(unknown))}; there are {known}")
    if record and small:
        raise typer.BadParameter("figures of small forms are not for the record")
    failed = []
    for number, bench in enumerate(chosen, 1):
        minutes = "" if small else f", about {bench.minutes:g} min"
        _console.rule(f"{number} of {len(chosen)}: {bench.name}, {bench.about}{minutes}")
        if number > 1 and not small:
            _wait_until_quiet()
        began_s = time.monotonic()
        arguments = [*(bench.small if small else bench.full), *(["--record"] if record else [])]
        command = [sys.executable, "-m", f"loadtest.bench.{bench.name}", *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(bench.name)
        _console.print(f"{bench.name} took {time.monotonic() - began_s:.0f} s")
    if record:
        _console.print(table(RESULTS.read_text()))
    if failed:
        _console.print(f"failed: {', '.join(failed)}", style="bold red")
        raise typer.Exit(1)


def _wait_until_quiet() -> None:
    until_s = time.monotonic() + QUIET_WITHIN_S
    with _console.status("waiting for the machine to be quiet"):
        while not load.now().quiet and time.monotonic() < until_s:
            time.sleep(2)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
