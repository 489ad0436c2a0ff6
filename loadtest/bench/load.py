"""What others took of the machine before a bench began: on a busy one its figures are too low."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

WATCHED_S = 1.0
QUIET_AVERAGE = 0.5  # for each core
QUIET_BUSY = 0.1


class Load(NamedTuple):
    """`average`: processes that ran or wanted to, over the last minute. `busy`: the share of all
    cores' time that was used just now; 0 where that cannot be known."""

    average: float
    busy: float
    cores: int

    @property
    def quiet(self) -> bool:
        return self.average <= QUIET_AVERAGE * self.cores and self.busy <= QUIET_BUSY

    def __str__(self) -> str:
        word = "quiet" if self.quiet else "BUSY"
        return (
            f"the machine was {word} before the start: load average {self.average:.2f} on "
            f"{self.cores} cores, {self.busy:.0%} of their time in use"
        )


def before(console: Console) -> Load:
    """Look, and say it on the console. Takes a second."""
    load = now()
    console.print(str(load), style="" if load.quiet else "bold red", highlight=False)
    return load


def now() -> Load:
    used_s, all_s = _cpu_time()
    time.sleep(WATCHED_S)
    used_then_s, all_then_s = _cpu_time()
    busy = (used_then_s - used_s) / (all_then_s - all_s) if all_then_s > all_s else 0.0
    return Load(os.getloadavg()[0], busy, os.cpu_count() or 1)


def _cpu_time() -> tuple[int, int]:
    """Time in use, and all of it, since the machine started (Linux; else nothing)."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return 0, 0
    user, nice, system, idle, waiting, *rest = map(int, first.split()[1:9])
    used = user + nice + system + sum(rest)
    return used, used + idle + waiting
