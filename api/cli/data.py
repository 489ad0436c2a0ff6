"""The commands about stored data: migrate, verify, export, import, a new log identity."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, BinaryIO, TypeVar
from uuid import UUID

import asyncpg
import typer
from asyncpg.connect_utils import SessionAttribute
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from api.cli.terminal import err, one_line_errors, out
from api.services import open_database
from api.settings import SettingsError
from hub.errors import BadData, Disconnected
from storage.care.transfer import Header, export_budget, import_budget
from storage.care.verify import Progress as Verified, verify as verify_budgets
from storage.postgres.database import Database
from storage.postgres.errors import translated
from storage.postgres.log_identity import renew_log_id
from storage.postgres.migrate import migrate as apply_migrations

DATABASE_WAIT_S = 30  # how long `serve` and `migrate` wait for Postgres to come up

REDIGESTED_SHOWN = 100  # budgets between two lines of `migrate`

_T = TypeVar("_T")


def migrate() -> None:
    """Bring the database at DATABASE_URL up to date.

    From 0.1.0 with all hubs stopped: every digest is made anew, budget by budget. A run that was
    ended goes on where it was. Every device then takes a snapshot.
    """
    with one_line_errors():
        url = _database_url()
        asyncio.run(when_up(lambda: reach(url)))
        applied = asyncio.run(when_up(lambda: apply_migrations(url, _redigested)))
        for name in applied:
            out.print(f"applied {name}")
        out.print("the database is up to date")


def verify(
    budget: Annotated[UUID | None, typer.Option(help="Only this budget; else all.")] = None,
) -> None:
    """Compare the tables with what follows from the log, while the hub may be running.

    Writes the differences, one a line; exit 0 if there is none, 1 if there are any. They name ids,
    fields and numbers, never what people wrote.
    """
    with one_line_errors():
        if asyncio.run(_verify(budget)):
            raise typer.Exit(1)


def export(budget: Annotated[UUID, typer.Argument(help="The budget's id.")]) -> None:
    """Write a budget with its whole log to stdout, while the hub may be running.

    JSON Lines, described in storage/care/transfer.py. It has participants by user id only, without
    their names, and no invites.
    """
    with one_line_errors():
        asyncio.run(_export(budget))


def import_(
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="What `export` wrote; - is stdin.")],
) -> None:
    """Add an exported budget, with its log, to a database that does not have it.

    All of it or nothing: a damaged file, one that contradicts itself and a budget that is here
    already are refused, with exit 1. Sequences, versions and digest stay what they were.
    """
    with one_line_errors():
        header = asyncio.run(_import(file))
        out.print(f"imported budget {header.budget_id}, {header.head} events")


def new_log_id() -> None:
    """Give the log a new identity, after a restore that lost events and before any hub starts.

    Every device then takes a snapshot when it comes back. Refused while hubs are connected.
    """
    with one_line_errors():
        url = _database_url()
        asyncio.run(reach(url))
        out.print(f"the log is now {asyncio.run(renew_log_id(url))}")


def _redigested(done: int, total: int) -> None:
    """A line now and then: the step takes minutes where there are many budgets."""
    if done % REDIGESTED_SHOWN == 0 or done == total:
        err.print(f"new digests: {done:,} of {total:,} budgets")


async def _verify(budget: UUID | None) -> int:
    """Write the differences; how many there were."""
    columns = "{task.completed:,} of {task.total:,} budgets, {task.fields[events]:,} events"
    bar = Progress(
        TextColumn(columns),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # lines go above the bar, but only where it is
    )
    task = bar.add_task("", total=0, events=0)

    def show(seen: Verified) -> None:
        bar.update(task, completed=seen.budgets, total=seen.budgets_total, events=seen.events)

    found = 0
    async with (
        _opened(SessionAttribute.any) as database,
        aclosing(verify_budgets(database, None if budget is None else str(budget), show)) as lines,
    ):
        with bar:
            async for difference in lines:
                found += 1
                sys.stdout.write(f"{difference}\n")  # `typer.echo` would write into the bar
    seen = bar.tasks[task]
    err.print(f"{seen.completed} budgets, {seen.fields['events']} events, {found} differences")
    return found


async def _export(budget: UUID) -> None:
    async with (
        _opened(SessionAttribute.any) as database,
        aclosing(export_budget(database, str(budget))) as lines,
    ):
        try:
            async for line in lines:
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            err.print(f"budget-hub: the file cannot be written: {error}")
            raise typer.Exit(1) from None


async def _import(file: BinaryIO) -> Header:
    async with _opened(SessionAttribute.read_write) as database:
        return await import_budget(database, file)


@asynccontextmanager
async def _opened(target: SessionAttribute) -> AsyncIterator[Database]:
    """The database at DATABASE_URL. Raises `SettingsError`, `Disconnected`, `NotMigrated`."""
    url = _database_url()
    await reach(url, target)
    async with open_database(url, target=target) as database:
        yield database


def _database_url() -> str:
    url = os.environ.get("DATABASE_URL", "")
    if not url:
        raise SettingsError("DATABASE_URL: is missing")
    return url


async def reach(database_url: str, target: SessionAttribute = SessionAttribute.read_write) -> None:
    try:
        with translated():
            connection = await asyncpg.connect(database_url, timeout=5, target_session_attrs=target)
            await connection.close()
    except BadData:  # its reason may quote the password
        raise SettingsError("DATABASE_URL: cannot be read as the URL of a Postgres") from None


async def when_up(work: Callable[[], Awaitable[_T]]) -> _T:
    """Do it, waiting for a Postgres that is still starting. Raises `Disconnected`."""
    deadline = time.monotonic() + DATABASE_WAIT_S
    while True:
        try:
            with translated():
                return await work()
        except Disconnected as error:
            if time.monotonic() > deadline:
                raise
            err.print(f"budget-hub: waiting for the database: {error}")
            await asyncio.sleep(1)
