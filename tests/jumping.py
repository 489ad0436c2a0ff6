"""`budget-hub` on a machine whose clock is set while it runs: `python -m tests.jumping FILE serve`.

The file says by how many seconds. Only the time of day is changed, as a system does it: the steady
clock goes on. Postgres and Redis have the clock of the real machine.
"""

import sys
import time
from pathlib import Path


class SetClock:
    """`time.time`, by so many seconds wrong."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._time = time.time

    def __call__(self) -> float:
        return self._time() + float(self._file.read_text())

    def ns(self) -> int:
        return int(self() * 1_000_000_000)


def set_clock(file: Path, seconds: float) -> None:
    """From now on, for the hub that was started with the file."""
    new = file.with_suffix(".new")
    new.write_text(str(seconds))
    new.replace(file)


if __name__ == "__main__":
    clock = SetClock(Path(sys.argv.pop(1)))
    time.time, time.time_ns = clock, clock.ns
    from api.cli.main import main  # only now: it may keep the function

    main()
