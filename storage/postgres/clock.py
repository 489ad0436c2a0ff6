"""The time of day, as the database has it.

What is written into rows, signed, or compared with either, goes by one clock for all nodes. This
machine's own clock is not asked: it may be wrong, and it jumps when it is set right. What the hub
measures, limits or waits for goes by no time of day at all, but by `time.monotonic`.
"""

import time
from collections.abc import Callable

from storage.postgres.database import Database

LOOK_S = 30.0  # between two looks: a machine's clocks drift apart by a millisecond or so meanwhile
PRECISE_S = 0.5  # an answer that took longer says too little
NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


class DatabaseClock:
    """Tells nothing before the first `look`; later ones set it. `now_s` is a clock that goes
    steadily."""

    def __init__(self, database: Database, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._now_s = now_s
        self._ahead_s: float | None = None  # of `now_s`

    async def look(self) -> None:
        """Raises `Disconnected`, `StatementFailed`."""
        async with self._database.connection("watch") as connection:
            asked_s = self._now_s()
            theirs: float = await connection.fetchval(NOW)
            answered_s = self._now_s()
        if self._ahead_s is None or answered_s - asked_s <= PRECISE_S:
            self._ahead_s = theirs - (asked_s + answered_s) / 2

    def now(self) -> float:
        """Epoch seconds."""
        assert self._ahead_s is not None
        return self._ahead_s + self._now_s()

    def now_ms(self) -> int:
        """Epoch milliseconds."""
        return int(self.now() * 1000)
