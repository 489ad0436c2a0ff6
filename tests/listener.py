"""What a bus tells, kept; and a bus that runs for as long as a test wants it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from hub.budget.records import BudgetId, UserId
from hub.frames.events import Frame
from hub.ports import BusListener, NodeId
from storage.redis.bus import RedisBus
from storage.redis.cluster_bus import ClusterBus
from tests.cluster import until


class Listener:
    """Implements `hub.ports.BusListener`."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.attended: list[tuple[BudgetId, NodeId, Mapping[UserId, int], bool]] = []
        self.gone: list[NodeId] = []
        self.restorations = 0

    def received(self, frame: Frame) -> None:
        self.frames.append(frame)

    def attending(
        self, budget_id: BudgetId, node_id: NodeId, users: Mapping[UserId, int], *, asks: bool
    ) -> None:
        self.attended.append((budget_id, node_id, users, asks))

    def silent(self, node_id: NodeId) -> None:
        self.gone.append(node_id)

    async def restored(self) -> None:
        self.restorations += 1


@asynccontextmanager
async def linked(bus: RedisBus | ClusterBus, listener: BusListener) -> AsyncIterator[None]:
    """The bus, once it has its connections. It must not end by itself."""
    task = asyncio.create_task(bus.run(listener))
    try:
        await until(lambda: bus.connected or task.done(), 30)
        yield
    finally:
        task.cancel()
        [ended] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended
