"""What the hub takes of this machine, where it runs on it: seen from outside, by /proc."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from loadtest.target import Target

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LISTENING = "0A"


class Usage(NamedTuple):
    """Of some processes together, at one moment."""

    pids: tuple[int, ...]
    cpu_s: float  # since they started
    rss_kib: int


def hubs(targets: Sequence[Target]) -> tuple[int, ...]:
    """The processes that listen at the targets, if all targets are on this machine and their
    processes can be looked at (Linux)."""
    ports = {target.port for target in targets}
    if any(target.host not in LOOPBACK for target in targets):
        return ()
    try:
        wanted = {f"socket:[{inode}]" for inode in _listening(ports)}
        return tuple(sorted(pid for pid in _pids() if wanted & _open_files(pid)))
    except OSError:
        return ()


def usage(pids: Sequence[int]) -> Usage | None:
    """None where one of them is gone."""
    cpu_s, rss_kib = 0.0, 0
    try:
        for pid in pids:
            # The name before the bracket may hold spaces.
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu_s += (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
            rss_kib += int(stat[21]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except (OSError, IndexError):
        return None
    return Usage(tuple(pids), cpu_s, rss_kib)


def costs(
    empty: Usage | None,
    connected: Usage | None,
    quiet: Usage | None,
    *,
    devices: int,
    accepted: int,
    lasted_s: float,
) -> Mapping[str, float] | None:
    """As in report.json: before the devices came, when all were connected, when their work was
    done. None where the hub was not to be seen, or was not the same all the time."""
    if empty is None or connected is None or quiet is None or not empty.pids:
        return None
    cpu_s = quiet.cpu_s - connected.cpu_s
    found = {
        "hubProcesses": float(len(quiet.pids)),
        "hubCpuShare": cpu_s / lasted_s,
        "hubRssKiBPerDevice": (connected.rss_kib - empty.rss_kib) / devices,
        "hubRssMiB": quiet.rss_kib / 1024,
    }
    return found | ({"hubCpuUsPerEvent": cpu_s * 1e6 / accepted} if accepted else {})


def _listening(ports: Iterable[int]) -> list[str]:
    """The inodes of the sockets that listen on these ports."""
    inodes = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for row in (line.split() for line in lines):
            if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) in ports:
                inodes.append(row[9])
    return inodes


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _open_files(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):  # another user's process, or gone
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.add(os.readlink(path))
    return found
