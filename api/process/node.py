"""One of several nodes on a port, as the supervisor starts it: `python -m api.process.node`."""

import os
import socket
import sys
from pathlib import Path

import structlog

from api.process.server import run_loop, serve
from api.services import NotMigrated
from api.settings import Settings
from api.telemetry.logs import configure
from api.telemetry.siblings import Siblings
from hub.errors import Disconnected, StatementFailed

# How the supervisor tells a node what it inherits.
LISTENING_FD = "BUDGET_HUB_LISTENING_FD"
PARENT_FD = "BUDGET_HUB_PARENT_FD"
NUMBER = "BUDGET_HUB_NODE"
FOLDER = "BUDGET_HUB_NODES_FOLDER"

_log = structlog.get_logger()


def main() -> None:
    listening = socket.socket(fileno=int(os.environ[LISTENING_FD]))
    parent = socket.socket(fileno=int(os.environ[PARENT_FD]))
    folder = os.environ.get(FOLDER)
    siblings = Siblings(None if folder is None else Path(folder), int(os.environ[NUMBER]))
    settings = Settings.from_env(os.environ)
    configure(settings)
    with listening, parent:  # the parent takes the end of its socket for ours, so last of all
        try:
            run_loop(serve(settings, listening, lambda: _tell(parent), parent, siblings))
        except (Disconnected, StatementFailed, NotMigrated) as error:
            _log.error("cannot start", error=f"{type(error).__name__}: {error}")
            sys.exit(1)


def _tell(parent: socket.socket) -> None:
    parent.send(b"!")


if __name__ == "__main__":
    main()
