"""The Postgres of this run: of the version that POSTGRES_MAJOR names, else of the embedded one.

18 and 16 come out of the wheel, others from where Debian's packages put them.
"""

import os
from pathlib import Path
from typing import Any

from storage.embedded.postgres import MAJOR as EMBEDDED, EmbeddedPostgres
from tests.requirements import unmet

MAJOR = os.environ.get("POSTGRES_MAJOR", EMBEDDED)
OF_WHEEL = (EMBEDDED, "16")


def start(folder: Path, **how: Any) -> EmbeddedPostgres:
    """As `EmbeddedPostgres.start`, but for commits that survive a crash of the machine."""
    programs = None if MAJOR in OF_WHEEL else _debian("postgres").parent
    return EmbeddedPostgres.start(
        folder, **{"durable": False, "major": MAJOR, "programs": programs, **how}
    )


def program(name: str) -> Path:
    """A client program of the same version."""
    return EmbeddedPostgres.program(name, MAJOR) if MAJOR in OF_WHEEL else _debian(name)


def _debian(name: str) -> Path:
    path = Path("/usr/lib/postgresql", MAJOR, "bin", name)
    if not path.exists():
        unmet(f"there is no Postgres {MAJOR}: apt-get install postgresql-{MAJOR}")
    return path
