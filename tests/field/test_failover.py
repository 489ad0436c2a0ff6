"""After a failover every node works again by itself: no session stays with a server that takes no
writes, none that was made in a bad moment is kept, and `/readyz` says 200 only where events can be
committed (P10).

Found with pools that got connections to the old primary, by then a reader, and kept them until the
hub was restarted.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from hub.errors import ReadOnly, StatementFailed
from loadtest.proxy import Proxy
from storage.postgres.database import Database
from tests.cluster import REST_S, Cluster, Node, Process, eventually
from tests.device import Device, connect, expense_add

# Sessions of hubs; the second those that were used since.
END_ALL = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'budget-hub'
"""
USED = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'budget-hub' AND query_start > $1
"""
READ_ONLY = "default_transaction_read_only = on"


class Server:
    """The Postgres of a database, by a session that may always write."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", name: str) -> None:
        self._connection = connection
        self._name = name

    async def run(self, *statements: str) -> None:
        for statement in statements:
            await self._connection.execute(statement.replace("DATABASE", f"DATABASE {self._name}"))

    async def now(self) -> datetime:
        now: datetime = await self._connection.fetchval("SELECT clock_timestamp()")
        return now

    async def used_since(self, moment: datetime) -> set[int]:
        """Sessions of hubs."""
        return {row["pid"] for row in await self._connection.fetch(USED, moment)}

    @asynccontextmanager
    async def new_sessions(self, setting: str) -> AsyncIterator[None]:
        """Who connects meanwhile has that setting, as with a name that leads to another server; who
        was connected is cut off."""
        name = setting.split()[0]
        await self.run(f"ALTER DATABASE SET {setting}", END_ALL)
        try:
            yield
        finally:
            await self.run(f"ALTER DATABASE RESET {name}")

    @asynccontextmanager
    async def read_only_in_place(self) -> AsyncIterator[None]:
        """Sessions stay, and may write no more."""
        await self.run(f"ALTER SYSTEM SET {READ_ONLY}", "SELECT pg_reload_conf()")
        try:
            yield
        finally:
            await self.run(
                "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"
            )


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[Server]:
    settings = {"default_transaction_read_only": "off", "application_name": "test"}
    connection = await asyncpg.connect(url, server_settings=settings)
    try:
        yield Server(connection, await connection.fetchval("SELECT current_database()"))
    finally:
        await connection.close()


@pytest.fixture
async def server(cluster: Cluster) -> AsyncIterator[Server]:
    async with serving(cluster.database_url) as server:
        yield server


async def until_ready(node: Node, code: int, **said: Any) -> None:
    """Until `/readyz` answers with that code, and at least says so."""
    async with node.rest() as rest, asyncio.timeout(REST_S):
        while True:
            answer = await rest.get("/readyz")
            assert answer.status_code in (200, 503)
            if answer.status_code == code and said.items() <= answer.json().items():
                return
            await asyncio.sleep(0.1)


async def commits(device: Device, budget_id: str) -> None:
    """An event gets its verdict, once; a client sends it again until then."""
    event = expense_add(budget_id)
    async with asyncio.timeout(REST_S):
        while True:
            [verdict] = await device.submit([event])
            if verdict["status"] == "accepted":
                return
            assert verdict["error"]["message"] == "UNAVAILABLE"


async def test_p10_sessions_with_a_reader_are_not_kept(cluster: Cluster, server: Server) -> None:
    nodes = await cluster.start_some(2)
    token = cluster.token("ada")
    budget_id = await nodes[0].new_budget(token)
    async with connect(nodes[0].url, token) as device:
        await commits(device, budget_id)
        async with server.new_sessions(READ_ONLY):
            for node in nodes:
                await until_ready(node, 503, postgres=False, reason="read-only")
            waiting = asyncio.create_task(commits(device, budget_id))
        await waiting
        for node in nodes:
            await until_ready(node, 200, status="ok")
    async with connect(nodes[1].url, token) as device:
        await commits(device, budget_id)
    for node in nodes:
        assert await node.stop() == 0


async def test_p10_a_session_that_became_read_only_is_ended(
    cluster: Cluster, server: Server
) -> None:
    node = await cluster.start()
    token = cluster.token("ada")
    budget_id = await node.new_budget(token)
    begun = await server.now()
    async with connect(node.url, token) as device, node.rest(token) as rest:

        async def use_all() -> None:
            await commits(device, budget_id)
            assert (await rest.get(f"/budgets/{budget_id}")).status_code == 200
            assert (await rest.get(f"/events?budgetId={budget_id}&key=0")).status_code == 200

        await use_all()
        async with server.read_only_in_place():
            before = await server.used_since(begun)
            await until_ready(node, 503, reason="read-only")
            waiting = asyncio.create_task(commits(device, budget_id))
        await waiting
        await until_ready(node, 200, status="ok")
        healed = await server.now()
        await use_all()
        await until_ready(node, 200, status="ok")
    # Nothing that was there before is in use, though it could write again.
    assert before
    assert not before & await server.used_since(healed)
    assert await node.stop() == 0


async def test_a_session_with_wrong_settings_is_not_kept(
    cluster: Cluster, server: Server, tmp_path: Path
) -> None:
    refused = Cluster(tmp_path, cluster.database_url, cluster.redis_url)  # its log may say so
    try:
        node = await refused.start()
        token = cluster.token("ada")
        budget_id = await node.new_budget(token)
        async with node.rest(token) as rest:

            async def reads() -> bool:
                return (await rest.get(f"/budgets/{budget_id}")).status_code == 200

            async with server.new_sessions("search_path = nowhere"):
                await until_ready(node, 503, reason="refused")
                assert not await reads()
            await eventually(reads)
            await until_ready(node, 200, postgres=True, degraded=["defects"])
    finally:
        await refused.close()


async def test_readyz_says_what_is_missing(cluster: Cluster) -> None:
    async with Proxy(cluster.database_url) as postgres, Proxy(str(cluster.redis_url)) as redis:
        node = await cluster.start(DATABASE_URL=postgres.url, REDIS_URL=redis.url)
        await until_ready(node, 200, status="ok")
        await redis.cut()
        await until_ready(node, 200, status="degraded", degraded=["bus"], postgres=True)
        await redis.heal()
        await until_ready(node, 200, status="ok")
        await postgres.cut()
        await until_ready(node, 503, status="unavailable", reason="out of reach")
        await postgres.heal()
        await until_ready(node, 200, status="ok")
        assert await node.stop() == 0


async def test_what_only_reads_does_so_on_a_reader(cluster: Cluster, server: Server) -> None:
    node = await cluster.start()
    budget_id = await node.new_budget(cluster.token("ada"))
    await node.stop()
    environ = {"DATABASE_URL": cluster.database_url}
    async with server.new_sessions(READ_ONLY):
        for name, arguments in (("verify", []), ("export", [budget_id])):
            process = Process(cluster.folder, f"reader-{name}", [name, *arguments], environ)
            assert await process.ended() == 0, process.err
        with pytest.raises(ReadOnly):
            await Database.connect(cluster.database_url)


async def test_a_lasting_defect_makes_no_session_for_each_statement(database_url: str) -> None:
    database = await Database.connect(database_url)
    pids = set()
    try:
        for _ in range(50):
            with pytest.raises(StatementFailed):
                async with database.connection("rest") as connection:
                    pids.add(await connection.fetchval("SELECT pg_backend_pid()"))
                    await connection.execute("SELECT * FROM missing")
    finally:
        await database.close()
    assert len(pids) <= 5  # 2 on a machine that is quick
