"""How late the event loop is: what it does meanwhile, nobody else on it can do."""

import asyncio

from hub.measures import Histogram

PERIOD_S = 0.25


async def watch(lag_s: Histogram) -> None:
    """Measure until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        lag_s.observe(max(loop.time() - due_s, 0.0))
