"""What a hub's process costs, by `/proc` (Linux)."""

import os
import resource
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """A process by its pid; all of its threads."""

    pid: int

    @classmethod
    def listening(cls, url: str) -> "Process":
        """Whoever listens there: found by the socket's inode, since it may be a child's child.

        Raises `LookupError`."""
        port = urlsplit(url).port
        inode = ""
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].partition(":")[2], 16) == port:
                inode = fields[9]
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if str(link.readlink()) == f"socket:[{inode}]":
                    return cls(int(link.parts[2]))
            except OSError:
                continue
        raise LookupError("nobody listens there")

    def memory_kib(self, name: Literal["VmRSS", "VmHWM"] = "VmRSS") -> int:
        """`VmRSS`: now; `VmHWM`: the most so far."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise LookupError(f"no {name}")

    def cpu_s(self) -> float:
        """Since it started."""
        # The name before the bracket may hold spaces.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def allow_files(count: int) -> None:
    """Let this process and those it starts have so many open files: sockets are files.

    Raises `RuntimeError` where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise RuntimeError(f"{count:,} open files are needed and {hard:,} allowed: ulimit -n")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
