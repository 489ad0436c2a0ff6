"""`/healthz`: the process answers. `/readyz`: it can do its work (503 only without Postgres)."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import respond
from hub.errors import Disconnected
from hub.ports import Bus
from storage.objects.photos import Photos
from storage.postgres.database import Database


def routes(database: Database, bus: Bus | None, photos: Photos) -> list[Route]:
    async def alive(request: Request) -> Response:
        return respond({"status": "ok"})

    async def ready(request: Request) -> Response:
        try:
            async with database.connection("watch") as connection:
                await connection.fetchval("SELECT 1")
        except Disconnected:
            return respond({"status": "unavailable", "postgres": False}, 503)
        degraded = (bus is not None and not bus.connected) or not photos.up
        return respond({"status": "degraded" if degraded else "ok", "postgres": True})

    return [Route("/healthz", alive), Route("/readyz", ready)]
