"""P9: who closes the account is gone from every node within two seconds. And that housekeeping,
which does the rest of it, is at work in every hub."""

import asyncio
import time

import asyncpg

from tests.cluster import BUSY_S, P7_S, POLL_S, REST_S, Cluster
from tests.device import budget_create, connect, new_id


async def test_p9_a_closed_account_is_signed_out_on_every_node(cluster: Cluster) -> None:
    """Its access tokens, on sockets and over REST, its refresh token and its password."""
    here, there = await cluster.start_some(2)
    login = {"email": f"{new_id()}@example.org", "password": "correct horse battery"}
    async with here.rest() as nobody:
        ann = (await nobody.post("/auth/register", json=login)).json()
        async with here.rest(ann["token"]) as rest, there.rest(ann["token"]) as other:
            budget_id = new_id()
            async with connect(there.url, ann["token"]) as device:
                await device.accepted(budget_create(budget_id))
                await device.subscribe(budget_id)
                assert (await other.get("/user")).status_code == 200
                began_s = time.monotonic()
                assert (await rest.delete("/user")).status_code == 200
                assert (await rest.get("/user")).status_code == 401
                assert await device.until_closed() == 4401
            async with asyncio.timeout(REST_S):
                while (await other.get("/user")).status_code != 401:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
            assert time.monotonic() - began_s < P7_S + BUSY_S
            for node in (rest, other):  # again: the answer may have been lost
                assert (await node.delete("/user")).json() == {"userId": ann["userId"]}
        refresh = {"refreshToken": ann["refreshToken"]}
        for path, body in (("/auth/refresh", refresh), ("/auth/login", login)):
            assert (await nobody.post(path, json=body)).status_code == 401
        again = (await nobody.post("/auth/register", json=login)).json()
        assert again["userId"] != ann["userId"]


async def test_a_hub_keeps_house(cluster: Cluster) -> None:
    node = await cluster.start(HOUSEKEEPING_INTERVAL_S="1")
    login = {"email": f"{new_id()}@example.org", "password": "correct horse battery"}
    async with node.rest() as nobody:
        ann = (await nobody.post("/auth/register", json=login)).json()["userId"]
    sql = await asyncpg.connect(cluster.database_url)
    try:
        await sql.execute("UPDATE refresh_families SET expires_at = now() - interval '2 days'")
        count = "SELECT count(*) FROM refresh_families WHERE user_id = $1"
        async with asyncio.timeout(REST_S):
            while await sql.fetchval(count, ann):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(POLL_S)
    finally:
        await sql.close()
