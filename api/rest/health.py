"""`/healthz`: the process answers. `/readyz`: it can do its work, which is to commit events."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Literal, NotRequired

from pydantic import Field
from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypeAliasType, TypedDict

from api.http.answers import JsonResponse, respond
from hub.errors import Disconnected, Held, ReadOnly, StatementFailed, StorageError
from hub.ports import Bus
from storage.objects.photos import Photos
from storage.postgres.database import Database

# What every commit begins with, and a server that takes no writes refuses. It locks no row.
ASK = "SELECT FROM budgets WHERE false FOR UPDATE"

REASONS: Mapping[type[StorageError], str] = {
    ReadOnly: "read-only",  # a standby, before or after a failover; or somebody made it so
    Disconnected: "out of reach",
    StatementFailed: "refused",  # a defect: see `budget_hub_storage_defects_total`
    Held: "locked",  # the whole table, for longer than the lock timeout
}

Part = TypeAliasType(
    "Part",
    Annotated[
        str,
        Field(
            json_schema_extra={"x-extensible-enum": ["bus", "photos", "defects"]},
            description="`bus`: Redis is away, and other nodes' events come from the log, up to two"
            " seconds later. `photos`: the store of photos is away. `defects`: Postgres refuses"
            " statements. More may come.",
        ),
    ],
)
Reason = TypeAliasType(
    "Reason",
    Annotated[
        str,
        Field(
            json_schema_extra={"x-extensible-enum": [*REASONS.values()]},
            description="Why nothing can be committed: Postgres is `out of reach`, or `read-only`;"
            " it has `refused` the statement, or the table is `locked`. More may come.",
        ),
    ],
)


class Alive(TypedDict):
    status: Literal["ok"]


class Ready(TypedDict):
    """Events can be committed. `degraded`: what does not work besides, where something does not."""

    status: Literal["ok", "degraded"]
    postgres: Literal[True]
    degraded: NotRequired[list[Part]]
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
    """No event can be committed. The one answer from 400 on that is not an `ErrorAnswer`."""

    status: Literal["unavailable"]
    postgres: Literal[False]
    reason: Reason


class HealthRoutes:
    def __init__(self, database: Database, bus: Bus | None, photos: Photos) -> None:
        self._database = database
        self._bus = bus
        self._photos = photos
        self._asking: asyncio.Task[str | None] | None = None

    def routes(self) -> list[Route]:
        return [Route("/healthz", self.alive), Route("/readyz", self.ready)]

    async def alive(self, request: Request) -> JsonResponse[Alive]:
        return respond({"status": "ok"})

    async def ready(
        self, request: Request
    ) -> JsonResponse[Ready] | JsonResponse[Unready, Literal[503]]:
        if (reason := await self._why_not()) is not None:
            unready: JsonResponse[Unready, Literal[503]]
            unready = respond({"status": "unavailable", "postgres": False, "reason": reason}, 503)
            return unready
        defects = self._database.defects.recent()
        works = {
            "bus": self._bus is None or self._bus.connected,
            "photos": self._photos.up,
            "defects": not defects,
        }
        degraded = [part for part, well in works.items() if not well]
        said: Ready = {"status": "degraded" if degraded else "ok", "postgres": True}
        if degraded:
            said["degraded"] = degraded
        if defects:
            said["defects"] = defects
        ready: JsonResponse[Ready] = respond(said)
        return ready

    async def _why_not(self) -> str | None:
        """Probes that come while it is asked share the question. Anybody may send any number of
        them, and the sweeper needs the same few connections."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> str | None:
        try:
            async with self._database.connection("watch") as connection:
                await connection.execute(ASK)
        except tuple(REASONS) as error:
            return REASONS[type(error)]
        return None
