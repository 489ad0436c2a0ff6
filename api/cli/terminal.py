"""What a command prints: plain lines on stdout, and one line on stderr when it fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

import typer
from rich.console import Console

from api.process.server import PortTaken
from api.process.supervisor import NodeFailed
from api.services import NotMigrated
from api.settings import SettingsError
from api.telemetry.logs import opened
from hub.errors import Disconnected, StatementFailed
from storage.care.transfer import Refused
from storage.care.verify import NoSuchBudget
from storage.embedded import EmbeddedError
from storage.postgres.core.redigest import NotReplayable
from storage.postgres.log_identity import NodesRunning

# What is printed may quote a user id or a path, which can look like markup.
_PLAIN: Any = {"highlight": False, "soft_wrap": True, "markup": False, "emoji": False}
out = Console(**_PLAIN)
err = Console(stderr=True, **_PLAIN)


def telling() -> Console:
    """Stdout for a server, which goes on when nobody reads what it says."""
    return Console(file=cast(TextIO, opened(sys.stdout)), **_PLAIN)


@contextmanager
def one_line_errors() -> Iterator[None]:
    try:
        yield
    except (SettingsError, PortTaken, EmbeddedError) as error:
        err.print(f"budget-hub: {error}")
        raise typer.Exit(2) from None
    except NoSuchBudget as error:
        err.print(f"budget-hub: no such budget: {error}")
        raise typer.Exit(2) from None
    except Refused as error:
        err.print(f"budget-hub: not imported: {error}")
        raise typer.Exit(1) from None
    except Disconnected as error:
        err.print(f"budget-hub: the database is out of reach: {error}")
        raise typer.Exit(1) from None
    except StatementFailed as error:
        err.print(f"budget-hub: Postgres refused a statement, which is a defect: {error}")
        raise typer.Exit(1) from None
    except (NodesRunning, NotMigrated, NotReplayable, NodeFailed) as error:
        err.print(f"budget-hub: {error}")
        raise typer.Exit(1) from None
