"""A background service: something that is done again and again, as long as its process runs."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hub.errors import StorageError
from hub.outage import Outage


@dataclass(frozen=True)
class Service:
    """`run_once` begins every `interval_s` seconds, and one that took longer at once again.

    What it needs and cannot reach (`StorageError`) is said once, and tried again after `retry_s`
    where that is sooner. Any other exception is a defect: it ends the service, which has to end
    the process with it."""

    name: str
    interval_s: float
    run_once: Callable[[], Awaitable[object]]
    first_s: float | None = None  # before the first time; None: `interval_s`
    retry_s: float | None = None

    async def run(self) -> None:
        """Until cancelled."""
        outage = Outage("service failed", "service works again", service=self.name)
        loop = asyncio.get_running_loop()
        due_s = loop.time() + (self.interval_s if self.first_s is None else self.first_s)
        while True:
            await asyncio.sleep(max(due_s - loop.time(), 0.0))
            due_s = loop.time() + self.interval_s
            try:
                await self.run_once()
                outage.back()
            except StorageError as error:
                outage.lost(error)
                if self.retry_s is not None:
                    due_s = min(due_s, loop.time() + self.retry_s)
