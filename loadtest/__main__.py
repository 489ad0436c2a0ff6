"""The command line: `python -m loadtest SCENARIO …`, also `budget-hub load SCENARIO …`.

Exit 0: everything is proven; 1: the hub broke a promise, or refused to let the run be set up; 2:
bad arguments, or no hub at a target; 3: the run says nothing, the load script was the limit.
"""

import math
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from loadtest.plan import Options
from loadtest.scenarios import SCENARIOS, Scenario
from loadtest.target import Refused, Target, Unreachable

# What only some commands need they import themselves: all of it together takes half a second.

DEFAULT_TARGET = "http://127.0.0.1:8000"
USERS = 20  # as many as a hub signs in within a minute, with some to spare
SECRET_BYTES_MIN = 32

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def scenarios() -> None:
    """Simulated devices drive running hubs, and prove that nothing is lost."""


def _command(scenario: Scenario) -> Callable[..., None]:
    """The sub-command of a scenario: all have the same options, with defaults of their own."""

    def command(
        target: Annotated[
            list[str],
            typer.Option(
                metavar="URL",
                help="Address of a hub; repeat it for several nodes of one.",
                default_factory=lambda: [DEFAULT_TARGET],
                show_default=DEFAULT_TARGET,
            ),
        ],
        devices: Annotated[
            int, typer.Option(min=1, help="Devices, spread over budgets and targets.")
        ] = scenario.devices,
        budgets: Annotated[
            int, typer.Option(min=1, help="Budgets the devices share.")
        ] = scenario.budgets,
        rate: Annotated[
            float, typer.Option(help="Events per second, of all devices; of `ramp`, at first.")
        ] = scenario.rate_per_s,
        duration: Annotated[
            float, typer.Option(help="Seconds of work; of `ramp`, at most.")
        ] = scenario.duration_s,
        processes: Annotated[int, typer.Option(min=1, help="Generator processes.")] = 1,
        users: Annotated[
            int | None,
            typer.Option(
                min=1,
                help="Whose the budgets are.",
                show_default=f"{USERS}; with the secret one for each budget",
            ),
        ] = None,
        seed: Annotated[
            int | None,
            typer.Option(
                min=0, help="Repeat the workload of another run.", show_default="a new one"
            ),
        ] = None,
        p99_ms: Annotated[
            float, typer.Option(help="`ramp`: what p99 may be, of verdicts and of deliveries.")
        ] = 100.0,
        out: Annotated[
            Path | None,
            typer.Option(
                help="Folder of report and history.", show_default="loadtest-out/SCENARIO-SEED"
            ),
        ] = None,
        secret: Annotated[
            str,
            typer.Option(
                envvar="AUTH_SECRET",
                help="The hub's AUTH_SECRET: tokens are made with it, and nobody is registered.",
                show_default=False,
            ),
        ] = "",
    ) -> None:
        budgets = min(budgets, devices) if scenario.budgets == budgets else budgets
        if devices < budgets:
            raise typer.BadParameter("every budget needs a device", param_hint="--devices")
        if secret and len(secret.encode()) < SECRET_BYTES_MIN:
            raise typer.BadParameter("is no AUTH_SECRET: too short", param_hint="--secret")
        processes = min(processes, devices)
        options = Options(
            scenario=scenario.name,
            targets=[str(each) for each in _targets(target)],
            devices=devices,
            budgets=budgets,
            rate_per_s=_positive("--rate", rate),
            duration_s=_positive("--duration", duration),
            processes=processes,
            users=max(processes, min(users or (budgets if secret else USERS), budgets)),
            seed=random.randrange(2**32) if seed is None else seed,
            p99_ms=_positive("--p99-ms", p99_ms),
        )
        _run(options, out, secret)

    return command


def _run(options: Options, out: Path | None, secret: str) -> None:
    from loadtest import runner
    from loadtest.fleet import GeneratorFailed
    from loadtest.summary import show

    folder = out or Path("loadtest-out") / f"{options.scenario}-{options.seed}"
    errors = Console(stderr=True)
    try:
        outcome = uvloop.run(runner.run(options, folder, errors, secret=secret))
    except Unreachable as error:
        raise typer.BadParameter(str(error), param_hint="--target") from error
    except (Refused, GeneratorFailed) as error:
        errors.print(f"failed: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    show(outcome.report, folder, Console())
    raise typer.Exit(outcome.exit_code)


for _scenario in SCENARIOS.values():
    app.command(_scenario.name, help=f"{_scenario.about[0].upper()}{_scenario.about[1:]}")(
        _command(_scenario)
    )


@app.command("watch")
def watch_command(
    budget: Annotated[str, typer.Argument(help="The budget's id.")],
    token: Annotated[str, typer.Option(envvar="TOKEN", help="Of a participant.")],
    target: Annotated[str, typer.Option(metavar="URL", help="A hub.")] = DEFAULT_TARGET,
    key: Annotated[int, typer.Option(min=0, help="The last sequence already known.")] = 0,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
) -> None:
    """Print what a live socket gets, a frame a line."""
    from loadtest.watch import watch

    try:
        [address] = _targets([target])
        uvloop.run(watch(address, token, budget, key, frames, Console()))
    except Unreachable as error:
        raise typer.BadParameter(str(error), param_hint="--target") from error
    except Refused as error:
        Console(stderr=True).print(f"failed: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


@app.command("compare")
def compare_command(
    a: Annotated[Path, typer.Argument(help="A report.json, or the folder of one.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """Show two runs beside each other, and which differences matter."""
    from loadtest import compare, report

    try:
        compare.show(report.read(a), report.read(b), Console())
    except report.BadReport as error:
        raise typer.BadParameter(str(error)) from error


@app.command("check")
def check_command(
    histories: Annotated[list[Path], typer.Argument(help="The history-*.jsonl of one run.")],
) -> None:
    """Judge the recorded history of a run again."""
    from loadtest.checker import Violation, check
    from loadtest.history import BadHistory, read

    try:
        history = read(histories)
        figures = check(history, history.logs, history.snapshots)
    except (OSError, BadHistory) as error:
        raise typer.BadParameter(str(error)) from error
    except Violation as violation:
        Console().print(str(violation), markup=False, soft_wrap=True)
        raise typer.Exit(1) from violation
    Console().print(f"{figures}", markup=False, soft_wrap=True)


@app.command("faults")
def faults_command(
    runs: Annotated[int, typer.Option(min=1, help="How many, four seconds each.")] = 20,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Repeat the schedule of others.", show_default="a new one"),
    ] = None,
    only: Annotated[
        int | None, typer.Option(min=1, help="Of these runs the one of this number.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of what failed.", show_default="a new one, gone when nothing did"
        ),
    ] = None,
    record: Annotated[bool, typer.Option(help="Write loadtest/FAULTS.md.")] = False,
) -> None:
    """Break a cluster on this machine while devices work, again and again."""
    from loadtest import faults
    from loadtest.cluster import EmbeddedError

    seed = random.randrange(2**32) if seed is None else seed
    todo = [case for case in faults.cases(runs, seed) if only in (None, case.number)]
    if not todo:
        raise typer.BadParameter(f"there are {runs} runs", param_hint="--only")
    if out is not None and out.exists() and any(out.iterdir()):
        raise typer.BadParameter(f"{out} is not empty", param_hint="--out")
    folder = Path(tempfile.mkdtemp(prefix="budget-hub-faults-")) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"seed {seed}")
    # As Ctrl-C does: the hubs have to be stopped, they do not end with us by themselves.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results, wrong = uvloop.run(faults.torment(todo, folder, console))
    except (Refused, Unreachable, TimeoutError, EmbeddedError) as error:
        console.print(f"failed: {error!r}; what there is is in {folder}")
        raise typer.Exit(1) from error
    violations = sum(result.violation is not None for result in results)
    for line in wrong:
        console.print(line)
    if record:
        faults.TABLE_PATH.write_text(faults.table(results, seed, f"{date.today()}"))
    console.print(f"{len(results)} runs, {violations} violations")
    if violations or wrong:
        console.print(f"histories and logs are in {folder}")
        raise typer.Exit(1)
    if out is None:
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None, name: str = "loadtest") -> int:
    """Run the command line (`sys.argv` by default) and return the exit code."""
    try:
        code = app(arguments, prog_name=name, standalone_mode=False)
    except typer.TyperException as error:
        line = " ".join(error.format_message().split())
        Console(stderr=True).print(f"{name}: {line}", markup=False, soft_wrap=True)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        return 130
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
