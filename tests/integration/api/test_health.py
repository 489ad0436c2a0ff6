"""Probes cost little, however many come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from httpx2 import ASGITransport, AsyncClient
from starlette.applications import Starlette

from api.rest.health import ASK, HealthRoutes
from hub.errors import Disconnected
from storage.objects.photos import Photos
from storage.postgres.database import Database
from storage.postgres.errors import Defects


class SlowDatabase:
    """Answers when it may."""

    def __init__(self) -> None:
        self.defects = Defects()
        self.asked = 0
        self.answers = asyncio.Event()
        self.away = False

    @asynccontextmanager
    async def connection(self, purpose: str) -> AsyncIterator[Any]:
        assert purpose == "watch"
        self.asked += 1
        await self.answers.wait()
        if self.away:
            raise Disconnected
        yield self

    async def execute(self, statement: str) -> None:
        assert statement == ASK


class Up:
    up = True


async def test_p8_probes_share_one_question_to_postgres() -> None:
    database = SlowDatabase()
    health = HealthRoutes(cast(Database, database), None, cast(Photos, Up()))
    app = Starlette(routes=health.routes())
    async with AsyncClient(transport=ASGITransport(app), base_url="http://hub") as client:
        for away in (False, True, False):
            database.away = away
            asked = database.asked
            probes = [asyncio.create_task(client.get("/readyz")) for _ in range(50)]
            for _ in range(100):  # turns of the loop, until all of them wait
                await asyncio.sleep(0)
            probes[0].cancel()  # its client has gone; the others are answered still
            database.answers.set()
            answers = await asyncio.gather(*probes[1:])
            database.answers.clear()
            assert database.asked == asked + 1
            assert {answer.status_code for answer in answers} == {503 if away else 200}
