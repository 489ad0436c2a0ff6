"""`/healthz`: the process answers. `/readyz`: it can do its work (503 only without Postgres)."""

from typing import Annotated, Literal, NamedTuple, NotRequired

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
                description="SQLSTATEs of statements that Postgres refused in the last five"
                " minutes, for reasons that are none of the hub's: what needs them does not work"
            ),
        ]
    ]


class Unready(TypedDict):
    """Postgres is out of reach. The one answer from 400 on that is not an `ErrorAnswer`."""

    status: Literal["unavailable"]
    postgres: Literal[False]


class HealthRoutes(NamedTuple):
    database: Database
    bus: Bus | None
    photos: Photos

    def routes(self) -> list[Route]:
        return [Route("/healthz", self.alive), Route("/readyz", self.ready)]

    async def alive(self, request: Request) -> JsonResponse[Alive]:
        return respond({"status": "ok"})

    async def ready(
        self, request: Request
    ) -> JsonResponse[Ready] | JsonResponse[Unready, Literal[503]]:
        try:
            async with self.database.connection("watch") as connection:
                await connection.fetchval("SELECT 1")
        except Disconnected:
            unready: JsonResponse[Unready, Literal[503]]
            unready = respond({"status": "unavailable", "postgres": False}, 503)
            return unready
        deaf = self.bus is not None and not self.bus.connected
        defects = self.database.defects.recent()
        degraded = deaf or not self.photos.up or defects
        said: Ready = {"status": "degraded" if degraded else "ok", "postgres": True}
        if defects:
            said["defects"] = defects
        ready: JsonResponse[Ready] = respond(said)
        return ready
