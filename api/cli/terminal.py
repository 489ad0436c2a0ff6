"""What a command prints: plain lines on stdout, and one line on stderr when it fails."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from api.process.server import PortTaken
from api.process.supervisor import NodeFailed
from api.services import NotMigrated
from api.settings import SettingsError
from hub.errors import Disconnected, StatementFailed
from storage.care.transfer import Refused
from storage.care.verify import NoSuchBudget
from storage.embedded import EmbeddedError
from storage.postgres.core.redigest import NotReplayable
from storage.postgres.log_identity import NodesRunning

# What is printed may quote a user id or a path, which can look like markup.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


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
