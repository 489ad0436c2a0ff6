"""The command line: `python -m loadtest SCENARIO …`.

Exit 0: every promise was kept; 1: there was a fault, or the hub refused to play along; 2: bad
arguments, or no hub at a target.
"""

import math
import random
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from loadtest import smoke
from loadtest.rest import Refused, Target, Unreachable
from loadtest.watch import watch

DEFAULT_TARGET = "http://127.0.0.1:8000"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def scenarios() -> None:
    """Simulated devices drive running hubs, and check that nothing is lost."""


@app.command("smoke")
def smoke_command(
    target: Annotated[
        list[str],
        typer.Option(
            metavar="URL",
            help="Address of a hub; repeat it for several nodes of one.",
            default_factory=lambda: [DEFAULT_TARGET],
            show_default=DEFAULT_TARGET,
        ),
    ],
    devices: Annotated[int, typer.Option(min=1, help="Sockets, spread over the targets.")] = 6,
    budgets: Annotated[int, typer.Option(min=1, help="Budgets the devices share.")] = 2,
    rate: Annotated[float, typer.Option(help="Events per second, of all devices.")] = 50.0,
    duration: Annotated[float, typer.Option(help="Seconds of sending.")] = 5.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Repeat the workload of another run.")
    ] = None,
) -> None:
    """A few devices for a few seconds: does everything arrive, once, in order, everywhere?"""
    options = smoke.Options(
        targets=_targets(target),
        devices=devices,
        budgets=budgets,
        rate_per_s=_positive("--rate", rate),
        duration_s=_positive("--duration", duration),
        seed=random.randrange(2**32) if seed is None else seed,
    )
    if devices < budgets:
        raise typer.BadParameter("every budget needs a device", param_hint="--devices")
    if not 1 <= options.rate_per_s * options.duration_s <= smoke.EVENTS_MAX:
        raise typer.BadParameter(
            f"rate times duration must make 1 to {smoke.EVENTS_MAX} events", param_hint="--rate"
        )
    try:
        report = uvloop.run(smoke.run(options, Console(stderr=True)))
    except Unreachable as error:
        raise typer.BadParameter(str(error), param_hint="--target") from error
    except Refused as error:
        Console(stderr=True).print(f"failed: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    smoke.show(report, options, Console())
    if report.faults:
        raise typer.Exit(1)


@app.command("watch")
def watch_command(
    budget: Annotated[str, typer.Argument(help="The budget's id.")],
    token: Annotated[str, typer.Option(envvar="TOKEN", help="Of a participant.")],
    target: Annotated[str, typer.Option(metavar="URL", help="A hub.")] = DEFAULT_TARGET,
    key: Annotated[int, typer.Option(min=0, help="The last sequence already known.")] = 0,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
) -> None:
    """Print what a live socket gets, a frame a line."""
    try:
        [address] = _targets([target])
        uvloop.run(watch(address, token, budget, key, frames, Console()))
    except Unreachable as error:
        raise typer.BadParameter(str(error), param_hint="--target") from error
    except Refused as error:
        Console(stderr=True).print(f"failed: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code."""
    try:
        code = app(arguments, prog_name="loadtest", standalone_mode=False)
    except typer.TyperException as error:
        line = " ".join(error.format_message().split())
        Console(stderr=True).print(f"loadtest: {line}", markup=False, soft_wrap=True)
        return 2
    return code if isinstance(code, int) else 0


def _targets(urls: Sequence[str]) -> list[Target]:
    try:
        return [Target.parse(url) for url in urls]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--target") from error


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise typer.BadParameter("must be more than 0", param_hint=name)
    return value


if __name__ == "__main__":
    sys.exit(main())
