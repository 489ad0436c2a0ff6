"""`/healthz`: the process answers. `/readyz`: it can do its work (503 only without Postgres)."""

import asyncio
from typing import Annotated, Literal, NotRequired

from pydantic import Field
from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypedDict

from api.http.answers import JsonResponse, respond
from hub.errors import Disconnected
from hub.ports import Bus
from storage.objects.photos import Photos
from storage.postgres.database import Database


class Alive(TypedDict):
    status: Literal["ok"]


class Ready(TypedDict):
    """`degraded`: without the bus, which is slower and still correct, without the store of photos,
    or with statements that Postgres refuses."""

    status: Literal["ok", "degraded"]
    postgres: Literal[True]
    defects: NotRequired[
        Annotated[
            list[str],
            Field(
                description="SQLSTATEs with which Postgres refused statements in the last five"
                " minutes, if the hub does not know the reason: what needs them fails"
            ),
        ]
    ]


class Unready(TypedDict):
    """Postgres is out of reach. The one answer from 400 on that is not an `ErrorAnswer`."""

    status: Literal["unavailable"]
    postgres: Literal[False]


class HealthRoutes:
    def __init__(self, database: Database, bus: Bus | None, photos: Photos) -> None:
        self._database = database
        self._bus = bus
        self._photos = photos
        self._asking: asyncio.Task[bool] | None = None

    def routes(self) -> list[Route]:
        return [Route("/healthz", self.alive), Route("/readyz", self.ready)]

    async def alive(self, request: Request) -> JsonResponse[Alive]:
        return respond({"status": "ok"})

    async def ready(
        self, request: Request
    ) -> JsonResponse[Ready] | JsonResponse[Unready, Literal[503]]:
        if not await self._postgres_answers():
            unready: JsonResponse[Unready, Literal[503]]
            unready = respond({"status": "unavailable", "postgres": False}, 503)
            return unready
        deaf = self._bus is not None and not self._bus.connected
        defects = self._database.defects.recent()
        degraded = deaf or not self._photos.up or defects
        said: Ready = {"status": "degraded" if degraded else "ok", "postgres": True}
        if defects:
            said["defects"] = defects
        ready: JsonResponse[Ready] = respond(said)
        return ready

    async def _postgres_answers(self) -> bool:
        """Probes that come while it is asked share the question. Anybody may send any number of
        them, and the sweeper needs the same few connections."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> bool:
        try:
            async with self._database.connection("watch") as connection:
                await connection.fetchval("SELECT 1")
        except Disconnected:
            return False
        return True
