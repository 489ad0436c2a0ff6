"""One server program of a wheel as a child process: its folder, its user, its port, its end."""

from __future__ import annotations

import logging
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from storage.embedded import EmbeddedError
from storage.embedded.locks import POLL_S, lock, open_held
from storage.embedded.wheels import installed, public_copy

READY_TIMEOUT_S = 60.0
LEFTOVER_TIMEOUT_S = 30.0
_SIGNAL_AGAIN_S = 2.0
_PORT_ATTEMPTS_MAX = 5
_LOG_TAIL_LINES = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Server:
    """A running server. Use as a context manager, or call `stop()`."""

    url: str = field(repr=False)  # carries the password; 127.0.0.1 only
    _process: subprocess.Popen[bytes]
    _claim: Claim = field(repr=False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Stop the server and wait for its end; again is harmless."""
        self._end(signal.SIGTERM)

    def _end(self, first: signal.Signals) -> None:
        _end(self._process, first)
        self._claim.held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Claim:
    """One server's folder while it is ours, and the way to run programs there."""

    home: Path
    user: pwd.struct_passwd | None  # the user that programs run as; None: our own
    home_fd: int
    running_lock_fd: int
    log_fd: int
    log_path: Path
    held: ExitStack  # the descriptors, and with them the locks

    @property
    def home_for_server(self) -> str:
        """`home` as the server's user can open it.

        The folders above may be closed to that user, as pytest's tmp_path is. A path through an
        inherited descriptor begins at `home` itself, so none of them has to change.
        """
        by_descriptor = self.user is not None and sys.platform == "linux"
        return f"/proc/self/fd/{self.home_fd}" if by_descriptor else str(self.home)

    def reachable(self, package: str, folder: str, program: str) -> Path:
        """The package's folder, or a copy from which the server's user can run `program`."""
        source = installed(package, folder, program)
        if self.user is None:
            return source
        try:
            subprocess.run(
                [source / program, "--version"],
                user=self.user.pw_uid,
                group=self.user.pw_gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                check=True,
            )
        except (PermissionError, subprocess.CalledProcessError):
            return public_copy(source, package, Path(folder))
        return source

    def serve(
        self,
        command: list[str | Path],
        port: int | None,
        *,
        death_signal: signal.Signals = signal.SIGTERM,
        stdin: str = "",
    ) -> tuple[subprocess.Popen[bytes], int]:
        """Run `command` with a port as its last word until it says that it is ready."""
        for _ in range(_PORT_ATTEMPTS_MAX):
            chosen = port or _free_port()
            with ExitStack() as on_failure:
                process = self.spawn([*command, str(chosen)], death_signal, stdin)
                on_failure.callback(_end, process, signal.SIGQUIT)
                deadline_s = time.monotonic() + READY_TIMEOUT_S
                while process.poll() is None and time.monotonic() < deadline_s:
                    # Its own word: a connection could reach another server that took the port.
                    if "eady to accept connections" in self.log_path.read_text(errors="replace"):
                        on_failure.pop_all()
                        return process, chosen
                    time.sleep(POLL_S)
            # Somebody can take a port between the system's giving it and the server's bind.
            if port is not None or "Address already in use" not in self.log_tail():
                break
        raise EmbeddedError(f"{self.home.name} did not start; {self.log_tail()}")

    def run(self, command: list[str | Path], stdin: str = "") -> None:
        process = self.spawn(command, signal.SIGTERM, stdin)
        try:
            status = process.wait(READY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process, signal.SIGTERM)
        if status != 0:
            raise EmbeddedError(f"{command[0]} did not succeed; {self.log_tail()}")

    def spawn(
        self, command: list[str | Path], death_signal: signal.Signals, stdin: str
    ) -> subprocess.Popen[bytes]:
        uid, gid = (self.user.pw_uid, self.user.pw_gid) if self.user else (-1, -1)
        numbers = [str(number) for number in (os.getpid(), int(death_signal), uid, gid)]
        process = _SPAWNER.submit(
            lambda: subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, *numbers, *command],
                stdin=subprocess.PIPE,
                stdout=self.log_fd,
                stderr=self.log_fd,
                cwd=self.home,
                pass_fds=(self.home_fd, self.running_lock_fd),
                start_new_session=True,
            )
        ).result()
        assert process.stdin is not None
        # One that has died already is for the caller to notice, who shows its log.
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(stdin.encode())
        return process

    def log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join([f"{self.log_path} ends:", *lines[-_LOG_TAIL_LINES:]])


# The system sends the death signal when the *thread* that started a child ends: this one lasts.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedded-spawner")

# Becomes the server. A program of its own, not a `preexec_fn`: Python code between fork and exec
# can deadlock when other threads run.
_LAUNCHER = """
import ctypes, os, sys
parent, death_signal, uid, gid = map(int, sys.argv[1:5])
if uid != -1:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1  # after setuid, which clears it
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit("cannot tie this server to its parent")
if os.getppid() != parent:
    sys.exit("the process that wanted this server is gone")
os.execve(sys.argv[5], sys.argv[5:], {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath})
"""


@contextmanager
def claimed(data_dir: Path, name: str) -> Iterator[Claim]:
    """Take `data_dir/name` for one server; a block that fails gives it back."""
    data_dir = data_dir.resolve()
    home, log_path = data_dir / name, data_dir / f"{name}.log"
    in_use = f"{data_dir} is in use: the process that started its {name} still runs"
    lingers = f"the {name} of an earlier run in {data_dir} is still shutting down; try again later"
    held = ExitStack()
    with ExitStack() as on_failure:
        on_failure.callback(held.close)
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock(data_dir / f"{name}.lock", held, wait_s=0, refusal=in_use)
            running_lock = data_dir / f"{name}.running.lock"
            running_lock_fd = lock(running_lock, held, wait_s=LEFTOVER_TIMEOUT_S, refusal=lingers)
            user = _server_user(home)
            home.mkdir(mode=0o700, exist_ok=True)
            if user is not None:
                os.chown(home, user.pw_uid, user.pw_gid)
            home_fd = open_held(home, os.O_RDONLY | os.O_DIRECTORY, held)
            if log_path.exists():
                log_path.replace(f"{log_path}.1")
            log_fd = open_held(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, held)
            yield Claim(home, user, home_fd, running_lock_fd, log_fd, log_path, held)
        except OSError as error:
            raise EmbeddedError(f"cannot start {name} in {data_dir}: {error}") from error
        on_failure.pop_all()


def _server_user(home: Path) -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    users = {user.pw_name: user for user in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in users and (not home.exists() or home.stat().st_uid in (0, users[name].pw_uid)):
            return users[name]
    raise EmbeddedError(f"root runs {home} as the user postgres or nobody, and it is neither's")


def _end(process: subprocess.Popen[bytes], first: signal.Signals) -> None:
    first_s = 10.0 if first is signal.SIGQUIT else 60.0
    for harder, wait_s in ((first, first_s), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
        until_s = time.monotonic() + wait_s
        while process.poll() is None and time.monotonic() < until_s:
            process.send_signal(harder)  # again: a server that is just starting may miss the first
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SIGNAL_AGAIN_S)
        if process.poll() is not None:
            return
        _logger.warning("embedded server %d outlived %s", process.pid, harder.name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
