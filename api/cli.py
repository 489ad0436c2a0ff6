"""`budget-hub`: the command line.

Exit codes: 0 done, 1 could not be done, 2 asked for wrongly (a bad setting or option, a taken port,
a data folder that cannot be used). What goes wrong is said in one line on stderr.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import asyncpg
import typer
from rich.console import Console

from api import server
from api.app import NotMigrated
from api.auth.tokens import Tokens
from api.logs import configure
from api.settings import Settings, SettingsError
from hub.errors import Disconnected
from storage.database import translated
from storage.embedded import EmbeddedError, EmbeddedPostgres, EmbeddedRedis
from storage.migrate import migrate as apply_migrations

DEV_TOKEN_TTL_S = 24 * 3600
DATABASE_WAIT_S = 30  # how long `serve` and `migrate` wait for Postgres to come up

DataDir = Annotated[Path, typer.Option(help="Where the embedded servers keep their data.")]

_T = TypeVar("_T")
_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

main = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A real-time sync hub for offline-first collaborative budgets.",
)


@main.command()
def dev(
    host: Annotated[str, typer.Option(envvar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PORT", help="0 lets the system choose.")] = 8000,
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
                log_format="console",
                log_level="warning",
            )
            configure(settings)
            asyncio.run(apply_migrations(settings.database_url))
            url = server.address(listening)
            option = "" if data_dir == Path(".data") else f" --data-dir {data_dir}"
            server.run(settings, listening, lambda: _welcome(url, option))
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
        server.run(settings, listening, lambda: _out.print(f"budget-hub: serving on {url}"))


@main.command()
def migrate() -> None:
    """Bring the database at DATABASE_URL up to date."""
    with _one_line_errors():
        url = os.environ.get("DATABASE_URL", "")
        if not url:
            raise SettingsError("DATABASE_URL: is missing")
        applied = asyncio.run(_when_up(lambda: apply_migrations(url)))
        for name in applied:
            _out.print(f"applied {name}")
        _out.print("the database is up to date")


@main.command()
def token(
    user: Annotated[str, typer.Argument(help="The user's id: any text of 1 to 128 characters.")],
    data_dir: DataDir = Path(".data"),
) -> None:
    """Print a token for a user (local identity only); valid for a day.

    Signs with AUTH_SECRET, or, without it, with the secret of `budget-hub dev` in the data folder.
    """
    with _one_line_errors():
        if not 1 <= len(user) <= 128:
            raise SettingsError("USER: 1 to 128 characters")
        secret = os.environ.get("AUTH_SECRET") or _dev_secret(data_dir, make=False)
        tokens = Tokens([secret.encode()], now=time.time, token_ttl_s=DEV_TOKEN_TTL_S)
        typer.echo(tokens.issue(user)[0])


def _welcome(url: str, option: str) -> None:
    _out.print(f"budget-hub: serving on {url}  (Ctrl-C stops everything)")
    _out.print(f"  a token:       .venv/bin/budget-hub token alice{option}")
    _out.print(
        f'  a first look:  curl -H "Authorization: Bearer $(.venv/bin/budget-hub token alice'
        f'{option})" {url}/budgets/00000000-0000-0000-0000-000000000000'
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
    with translated():
        connection = await asyncpg.connect(database_url, timeout=5)
        await connection.close()


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
    except Disconnected as error:
        _err.print(f"budget-hub: the database is out of reach: {error}")
        raise typer.Exit(1) from None
    except NotMigrated as error:
        _err.print(f"budget-hub: run `budget-hub migrate` first; missing: {error}")
        raise typer.Exit(1) from None
    except server.WorkerFailed as error:
        _err.print(f"budget-hub: {error}")
        raise typer.Exit(1) from None
