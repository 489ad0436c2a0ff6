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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar
from uuid import UUID

import asyncpg
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from api.app import NotMigrated
from api.auth.tokens import Tokens
from api.doctor import Mark, examine
from api.process import server, supervisor
from api.settings import Settings, SettingsError
from api.stats import Interval, NoMetrics, Reading, check_target, columns, read, rows
from api.telemetry.logs import configure
from hub.errors import BadData, Disconnected
from storage.care.log_identity import HubsRunning, renew_log_id
from storage.care.transfer import Header, Refused, export_budget, import_budget
from storage.care.verify import NoSuchBudget, Progress as Verified, verify as verify_budgets
from storage.embedded import EmbeddedError
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis
from storage.postgres.database import Database, translated
from storage.postgres.migrate import migrate as apply_migrations, pending

DEV_TOKEN_TTL_S = 24 * 3600
DATABASE_WAIT_S = 30  # how long `serve` and `migrate` wait for Postgres to come up

DataDir = Annotated[Path, typer.Option(help="Where the embedded servers keep their data.")]

_T = TypeVar("_T")
# What is printed may quote a user id or a path, which can look like markup.
_out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

main = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A real-time sync hub for offline-first collaborative budgets.",
)


def run() -> None:
    """The entry point: errors of usage are one line too."""
    try:
        sys.exit(main(standalone_mode=False) or 0)
    except typer.TyperException as error:
        if line := " ".join(error.format_message().split()):  # none where help was printed
            _err.print(f"budget-hub: {line}")
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


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
    with _one_line_errors():
        listening = server.bind(host, port)
        _out.print(f"budget-hub: data in {data_dir}, starting Postgres and Redis …")
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
            supervisor.run(settings, listening, lambda: _welcome(url, option))
            _out.print("budget-hub: stopped")


@main.command()
def serve(
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on the one port; overrides the setting.")
    ] = None,
) -> None:
    """The hub alone, configured by the environment (see the settings in README.md)."""
    with _one_line_errors():
        environ = dict(os.environ)
        if workers is not None:
            environ["WEB_CONCURRENCY"] = str(workers)
        settings = Settings.from_env(environ)
        configure(settings)
        asyncio.run(_when_up(lambda: _reach(settings.database_url)))
        listening = server.bind(settings.host, settings.port)
        url = server.address(listening)
        supervisor.run(settings, listening, lambda: _out.print(f"budget-hub: serving on {url}"))


@main.command()
def migrate() -> None:
    """Bring the database at DATABASE_URL up to date."""
    with _one_line_errors():
        url = _database_url()
        asyncio.run(_when_up(lambda: _reach(url)))
        applied = asyncio.run(_when_up(lambda: apply_migrations(url)))
        for name in applied:
            _out.print(f"applied {name}")
        _out.print("the database is up to date")


@main.command()
def verify(
    budget: Annotated[UUID | None, typer.Option(help="Only this budget; else all.")] = None,
) -> None:
    """Compare the tables with what follows from the log, while the hub may be running.

    Writes the differences, one a line; exit 0 if there is none, 1 if there are any. They name ids,
    fields and numbers, never what people wrote.
    """
    with _one_line_errors():
        if asyncio.run(_verify(budget)):
            raise typer.Exit(1)


@main.command("export")
def export_(budget: Annotated[UUID, typer.Argument(help="The budget's id.")]) -> None:
    """Write a budget with its whole log to stdout, while the hub may be running.

    JSON Lines, described in storage/care/transfer.py. It has participants by user id only, without
    their names, and no invites.
    """
    with _one_line_errors():
        asyncio.run(_export(budget))


@main.command("import")
def import_(
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="What `export` wrote; - is stdin.")],
) -> None:
    """Add an exported budget, with its log, to a database that does not have it.

    All of it or nothing: a damaged file, one that contradicts itself and a budget that is here
    already are refused, with exit 1. Sequences, versions and digest stay what they were.
    """
    with _one_line_errors():
        header = asyncio.run(_import(file))
        _out.print(f"imported budget {header.budget_id}, {header.head} events")


@main.command("new-log-id")
def new_log_id() -> None:
    """Give the log a new identity, after a restore that lost events and before any hub starts.

    Every device then takes a snapshot when it comes back. Refused while hubs are connected.
    """
    with _one_line_errors():
        url = _database_url()
        asyncio.run(_reach(url))
        _out.print(f"the log is now {asyncio.run(renew_log_id(url))}")


@main.command()
def token(
    user: Annotated[str, typer.Argument(help="The user's id: any text of 1 to 128 characters.")],
    data_dir: DataDir = Path(".data"),
) -> None:
    """Print a token for a user (local identity only); valid for a day.

    Signs with AUTH_SECRET, or, without it, with the secret of `budget-hub dev` in the data folder.
    """
    with _one_line_errors():
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
            _err.print(f"budget-hub: --target: {error}")
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
    _out.print(table)


def _readings(targets: Sequence[str]) -> dict[str, Reading]:
    readings = {}
    for url in targets:
        try:
            readings[url] = read(url)
        except NoMetrics as error:
            _err.print(f"budget-hub: {url} {error}")
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
            _out.print(f"{finding.mark.value:5} {finding.about:9} {finding.says}")
            if finding.do:
                _out.print(f"{'':15} → {finding.do}")
    _out.print("something is wrong" if found else "nothing is wrong")
    return found


@main.command(
    add_help_option=False,  # its own
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def load(context: typer.Context) -> None:
    """Drive running hubs with simulated devices, and prove that nothing is lost."""
    from loadtest.__main__ import main as load_main  # only here: a hub has no use for it

    raise typer.Exit(load_main(context.args, "budget-hub load"))


async def _verify(budget: UUID | None) -> int:
    """Write the differences; how many there were."""
    columns = "{task.completed:,} of {task.total:,} budgets, {task.fields[events]:,} events"
    bar = Progress(
        TextColumn(columns),
        TimeElapsedColumn(),
        console=_err,
        transient=True,
        disable=not _err.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # lines go above the bar, but only where it is
    )
    task = bar.add_task("", total=0, events=0)

    def show(seen: Verified) -> None:
        bar.update(task, completed=seen.budgets, total=seen.budgets_total, events=seen.events)

    found = 0
    async with (
        _opened() as database,
        aclosing(verify_budgets(database, None if budget is None else str(budget), show)) as lines,
    ):
        with bar:
            async for difference in lines:
                found += 1
                sys.stdout.write(f"{difference}\n")  # `typer.echo` would write into the bar
    seen = bar.tasks[task]
    _err.print(f"{seen.completed} budgets, {seen.fields['events']} events, {found} differences")
    return found


async def _export(budget: UUID) -> None:
    async with _opened() as database, aclosing(export_budget(database, str(budget))) as lines:
        try:
            async for line in lines:
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _err.print(f"budget-hub: the file cannot be written: {error}")
            raise typer.Exit(1) from None


async def _import(file: BinaryIO) -> Header:
    async with _opened() as database:
        return await import_budget(database, file)


@asynccontextmanager
async def _opened() -> AsyncIterator[Database]:
    """The database at DATABASE_URL. Raises `SettingsError`, `Disconnected`, `NotMigrated`."""
    url = _database_url()
    await _reach(url)
    database = await Database.connect(url, commits_max=1, reads_max=1)
    try:
        async with database.reading() as connection:
            if lacking := await pending(connection):
                raise NotMigrated(", ".join(migration.name for migration in lacking))
        yield database
    finally:
        await database.close()


def _database_url() -> str:
    url = os.environ.get("DATABASE_URL", "")
    if not url:
        raise SettingsError("DATABASE_URL: is missing")
    return url


def _welcome(url: str, option: str) -> None:
    _out.print(f"budget-hub: serving on {url}  (Ctrl-C stops everything)")
    _out.print(f"  a token:       .venv/bin/budget-hub token alice{option}")
    budget = f'{{"eventId":"{uuid.uuid4()}","id":"{uuid.uuid4()}","title":"Home","when":0}}'
    _out.print(
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


async def _reach(database_url: str) -> None:
    try:
        with translated():
            connection = await asyncpg.connect(database_url, timeout=5)
            await connection.close()
    except BadData:  # its reason may quote the password
        raise SettingsError("DATABASE_URL: cannot be read as the URL of a Postgres") from None


async def _when_up(work: Callable[[], Awaitable[_T]]) -> _T:
    """Do it, waiting for a Postgres that is still starting. Raises `Disconnected`."""
    deadline = time.monotonic() + DATABASE_WAIT_S
    while True:
        try:
            with translated():
                return await work()
        except Disconnected as error:
            if time.monotonic() > deadline:
                raise
            _err.print(f"budget-hub: waiting for the database: {error}")
            await asyncio.sleep(1)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (SettingsError, server.PortTaken, EmbeddedError) as error:
        _err.print(f"budget-hub: {error}")
        raise typer.Exit(2) from None
    except NoSuchBudget as error:
        _err.print(f"budget-hub: no such budget: {error}")
        raise typer.Exit(2) from None
    except Refused as error:
        _err.print(f"budget-hub: not imported: {error}")
        raise typer.Exit(1) from None
    except Disconnected as error:
        _err.print(f"budget-hub: the database is out of reach: {error}")
        raise typer.Exit(1) from None
    except (HubsRunning, NotMigrated, supervisor.NodeFailed) as error:
        _err.print(f"budget-hub: {error}")
        raise typer.Exit(1) from None
