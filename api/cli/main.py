"""`budget-hub`: the command line.

Exit codes: 0 done, 1 could not be done, 2 asked for wrongly (a bad setting or option, a taken port,
a data folder that cannot be used). What goes wrong is said in one line on stderr.
"""

import asyncio
import os
import secrets
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from api.auth.tokens import Tokens
from api.cli import data
from api.cli.doctor import Mark, examine
from api.cli.stats import Interval, NoMetrics, Reading, check_target, columns, read, rows
from api.cli.terminal import err, one_line_errors, out, telling
from api.process import server, supervisor
from api.settings import Settings, SettingsError
from api.telemetry.logs import configure
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis
from storage.postgres.migrate import migrate as apply_migrations

DEV_TOKEN_TTL_S = 24 * 3600

DataDir = Annotated[Path, typer.Option(help="Where the embedded servers keep their data.")]

main = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A real-time sync hub for offline-first collaborative budgets.",
)


def run() -> None:
    """The entry point: errors of usage are one line too."""
    _open_standard_streams()
    try:
        sys.exit(main(standalone_mode=False) or 0)
    except typer.TyperException as error:
        if line := " ".join(error.format_message().split()):  # none where help was printed
            err.print(f"budget-hub: {line}")
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:  # the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _open_standard_streams() -> None:
    """Those that were closed when the process began: the next file or socket would be taken for
    one, and be written to."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


@main.command()
def dev(
    host: Annotated[str, typer.Option(envvar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="PORT", min=0, max=65535, help="0 lets the system choose.")
    ] = 8000,
    data_dir: DataDir = Path(".data"),
    workers: Annotated[int, typer.Option(min=1, help="Processes on the one port.")] = 1,
) -> None:
    """Everything on this machine: a real Postgres and Redis out of wheels, and the hub."""
    with one_line_errors():
        listening = server.bind(host, port)
        tell = telling()
        tell.print(f"budget-hub: data in {data_dir}, starting Postgres and Redis …")
        with EmbeddedPostgres.start(data_dir) as postgres, EmbeddedRedis.start(data_dir) as redis:
            settings = Settings(
                host=host,
                port=port,
                web_concurrency=workers,
                database_url=postgres.url,
                redis_url=redis.url,
                auth_secret=_dev_secret(data_dir),
                photo_dir=str(data_dir / "photos"),
                log_format="console",
                log_level="warning",
            )
            configure(settings)
            asyncio.run(apply_migrations(settings.database_url))
            url = server.address(listening)
            option = "" if data_dir == Path(".data") else f" --data-dir {data_dir}"
            supervisor.run(settings, listening, lambda: _welcome(tell, url, option))
            tell.print("budget-hub: stopped")


@main.command()
def serve(
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on the one port; overrides the setting.")
    ] = None,
) -> None:
    """The hub alone, configured by the environment (see the settings in README.md)."""
    with one_line_errors():
        environ = dict(os.environ)
        if workers is not None:
            environ["WEB_CONCURRENCY"] = str(workers)
        settings = Settings.from_env(environ)
        configure(settings)
        asyncio.run(data.when_up(lambda: data.reach(settings.database_url)))
        listening = server.bind(settings.host, settings.port)
        url, tell = server.address(listening), telling()
        supervisor.run(settings, listening, lambda: tell.print(f"budget-hub: serving on {url}"))


main.command("migrate")(data.migrate)
main.command("verify")(data.verify)
main.command("export")(data.export)
main.command("import")(data.import_)
main.command("new-log-id")(data.new_log_id)


@main.command()
def token(
    user: Annotated[str, typer.Argument(help="The user's id: any text of 1 to 128 characters.")],
    data_dir: DataDir = Path(".data"),
) -> None:
    """Print a token for a user (local identity only); valid for a day.

    Signs with AUTH_SECRET, or, without it, with the secret of `budget-hub dev` in the data folder.
    """
    with one_line_errors():
        if os.environ.get("AUTH_MODE", "local") not in ("", "local"):
            raise SettingsError("AUTH_MODE: tokens are made here with the local identity only")
        if not 1 <= len(user) <= 128:
            raise SettingsError("USER: 1 to 128 characters")
        secret = os.environ.get("AUTH_SECRET") or _dev_secret(data_dir, make=False)
        tokens = Tokens([secret.encode()], now=time.time, token_ttl_s=DEV_TOKEN_TTL_S)
        typer.echo(tokens.issue(user)[0])


@main.command()
def stats(
    target: Annotated[
        list[str] | None, typer.Option(help="URL of a running hub; again for more of them.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, max=300, help="How long to look.")] = 2.0,
) -> None:
    """What is live now: who is connected, what comes and goes and how fast, for each worker."""
    targets = target or ["http://127.0.0.1:8000"]
    for each in targets:
        try:
            check_target(each)
        except ValueError as error:
            err.print(f"budget-hub: --target: {error}")
            raise typer.Exit(2) from None
    before = _readings(targets)
    began_s = time.monotonic()
    time.sleep(seconds)
    after = _readings(targets)
    took_s = time.monotonic() - began_s
    shown = [*columns(before, after)]
    table = Table(box=None, pad_edge=False)
    table.add_column(f"in {took_s:.1f} s")
    for url, worker in shown:
        table.add_column(f"{url.partition('://')[2]} worker {worker}", justify="right")
    intervals = [Interval(before[url], after[url], worker, took_s) for url, worker in shown]
    for name, texts in rows(intervals):
        table.add_row(name, *texts)
    out.print(table)


def _readings(targets: Sequence[str]) -> dict[str, Reading]:
    readings = {}
    for url in targets:
        try:
            readings[url] = read(url)
        except NoMetrics as error:
            err.print(f"budget-hub: {url} {error}")
            raise typer.Exit(1) from None
    return readings


@main.command()
def doctor() -> None:
    """Check settings, Postgres, Redis, photo store and Firebase, and say what to do.

    Reads the environment as `serve` does, and changes nothing. Exit 1 if something is wrong. No
    finding shows a secret.
    """
    if asyncio.run(_doctor()):
        raise typer.Exit(1)


async def _doctor() -> int:
    """Print the findings; how many things are wrong."""
    found = 0
    async with aclosing(examine(os.environ, now=time.time)) as findings:
        async for finding in findings:
            found += finding.mark is Mark.WRONG
            out.print(f"{finding.mark.value:5} {finding.about:9} {finding.says}")
            if finding.do:
                out.print(f"{'':15} → {finding.do}")
    out.print("something is wrong" if found else "nothing is wrong")
    return found


@main.command(
    add_help_option=False,  # its own
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def load(context: typer.Context) -> None:
    """Drive running hubs with simulated devices, and prove that nothing is lost."""
    from loadtest.__main__ import main as load_main  # only here: a hub has no use for it

    raise typer.Exit(load_main(context.args, "budget-hub load"))


def _welcome(tell: Console, url: str, option: str) -> None:
    tell.print(f"budget-hub: serving on {url}  (Ctrl-C stops everything)")
    tell.print(f"  a token:       .venv/bin/budget-hub token alice{option}")
    budget = f'{{"eventId":"{uuid.uuid4()}","id":"{uuid.uuid4()}","title":"Home","when":0}}'
    tell.print(
        f'  a first event: curl -H "Authorization: Bearer $(.venv/bin/budget-hub token alice'
        f"{option})\" {url}/budget -d '{budget}'"
    )


def _dev_secret(data_dir: Path, *, make: bool = True) -> str:
    """The secret of the embedded default, made once and kept in the data folder."""
    path = data_dir / "auth-secret"
    if make and not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
    try:
        return path.read_text()
    except OSError:
        raise SettingsError(
            f"AUTH_SECRET: is missing, and {data_dir} holds no data of `budget-hub dev`"
        ) from None
