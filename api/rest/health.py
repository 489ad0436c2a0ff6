"""`/healthz`: the process answers. `/readyz`: it can do its work (503 only without Postgres)."""

from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import respond
from hub.errors import Disconnected
from hub.ports import Bus
from storage.objects.photos import Photos
from storage.postgres.database import Database


class HealthRoutes(NamedTuple):
    database: Database
    bus: Bus | None
    photos: Photos

    def routes(self) -> list[Route]:
        return [Route("/healthz", self.alive), Route("/readyz", self.ready)]

    async def alive(self, request: Request) -> Response:
        return respond({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        try:
            async with self.database.connection("watch") as connection:
                await connection.fetchval("SELECT 1")
        except Disconnected:
            return respond({"status": "unavailable", "postgres": False}, 503)
        degraded = (self.bus is not None and not self.bus.connected) or not self.photos.up
        return respond({"status": "degraded" if degraded else "ok", "postgres": True})
