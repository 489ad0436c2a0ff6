"""A deploy: the version before this one works on the new schema, beside the new one, and ends.

The order is that of every deploy: migrations first, while the old hubs serve; then hub after hub.
The old one is the code of its own commit, on today's dependencies (`tests/predecessor.py`).
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from loadtest.replica import Replica
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis
from tests import ROOT
from tests.cluster import AUTH_SECRET, BUSY_S, P7_S, Cluster, Node, Process, token
from tests.compatible import missing
from tests.conftest import with_database
from tests.device import (
    Device,
    Json,
    budget_create,
    budget_edit,
    category_add,
    connect,
    expense_add,
    expense_edit,
    new_id,
)
from tests.predecessor import Predecessor, Unknown, check_out
from tests.requirements import unmet
from tests.storm import SEED
from tests.travel import Travel

BACK_S = 5.0  # from its goaway until a device is live again
STOP_S = 13.0  # the longest for verdicts and peers
RESTART = 1012

WAITING = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
LEFT = "SELECT id::text FROM budgets WHERE fields_hash = '' ORDER BY id"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Predecessor:
    try:
        return check_out(ROOT, tmp_path_factory.mktemp("predecessor"))
    except Unknown as unknown:
        unmet(f"the version before this one is not known here: {unknown}")


@pytest.fixture(scope="module")
def rolling(old: Predecessor) -> Predecessor:
    """The version before this one, or where its hubs cannot run beside ours, this one."""
    return old if old.rolls else Predecessor("HEAD", "this version", ROOT)


@pytest.fixture
async def cluster(
    postgres: EmbeddedPostgres, redis: EmbeddedRedis, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """On a database with nothing in it, not even tables."""
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute("CREATE DATABASE upgraded")
        cluster = Cluster(tmp_path, with_database(postgres.url, "upgraded"), redis.url)
        try:
            yield cluster
        finally:
            await cluster.close()
            await admin.execute("DROP DATABASE upgraded WITH (FORCE)")
    finally:
        await admin.close()


async def test_p11_an_upgrade_under_load_loses_nothing(
    rolling: Predecessor, cluster: Cluster
) -> None:
    """Twenty devices write through both versions; whoever is sent away comes back to the other."""
    environ = rolling.environ()
    assert await ran_code_in(environ) == rolling.folder
    await ran(cluster, "old-migrate", ["migrate"], environ)
    old_nodes = list(await asyncio.gather(*(cluster.start(**environ) for _ in range(2))))
    urls = [node.url for node in old_nodes]
    async with Travel(urls, budgets=4, on_each=5, pause_s=0.1, seed=SEED) as travel:
        await ran(cluster, "new-migrate", ["migrate"], {})
        await grown(travel, 5)  # the old ones go on with the new tables

        new_nodes = [await replaced(cluster, old_nodes[0])]
        await travel.all_live(BACK_S + BUSY_S)
        await speak_both(old_nodes[1], new_nodes[0])
        await grown(travel, 5)

        new_nodes.append(await replaced(cluster, old_nodes[1]))
        await travel.all_live(BACK_S + BUSY_S)
        await travel.finish()
    assert {code for each in travel.travellers for code in each.ends} == {RESTART}
    await travel.nothing_lost_or_doubled(cluster.database_url)
    await ran(cluster, "verify", ["verify"], {})
    await cluster.close()
    assert [line for node in cluster.nodes for line in node.complaints()] == []


async def test_the_digest_of_0_1_0_is_renewed_with_all_nodes_stopped(
    old: Predecessor, cluster: Cluster
) -> None:
    """Killed in the middle it goes on; nothing is lost, no resend is taken for new (P3), and every
    device starts from a snapshot."""
    if old.rolls:
        pytest.skip("the version before this one has the digest of now")
    ann, environ = token("ann"), old.environ()
    await ran(cluster, "old-migrate", ["migrate"], environ)
    node = await cluster.start(**environ)
    written = {new_id(): list[tuple[Json, Json]]() for _ in range(5)}
    for budget_id, events in written.items():
        for event in every_kind(budget_id):
            events.append((event, await sent(node, ann, event)))
        async with node.rest(token("ben")) as rest:
            assert (await rest.get(f"/budgets/{budget_id}/join")).status_code == 200
    log_id = await fetched(cluster.database_url, "SELECT log_id::text FROM hub_identity")
    assert "stop all nodes first" in await refused(cluster, "early-migrate", ["migrate"], {})
    node.signal(signal.SIGTERM)
    assert await node.ended(STOP_S + BUSY_S) == 0

    await killed_at_the_third(cluster, sorted(written))
    assert "budget-hub migrate" in await refused(cluster, "too-early", ["serve"], {})
    await refused(cluster, "old-node", ["serve"], environ)
    await ran(cluster, "new-migrate", ["migrate"], {})
    await ran(cluster, "verify", ["verify"], {})

    node = await cluster.start()
    async with connect(node.url, ann) as device, node.rest(ann) as rest:
        for budget_id, events in written.items():
            again = await device.submit([event for event, _ in events], "each")
            for (_, first), repeated in zip(events, again, strict=True):
                assert {**first, "duplicate": True} == {**repeated, "event": first["event"]}
            await device.subscribe(budget_id)
            stream = await device.reached(budget_id, len(events) + 1)
            replica = Replica(budget_id)
            for each in stream.events:  # raises where a digest is not that of the records
                replica.apply({"participant": None, **each.body, **role_of(each.body)})
            snapshot = (await rest.get(f"/budgets/{budget_id}")).json()
            assert replica.difference(Replica.from_snapshot(snapshot)) is None
            assert snapshot["logId"] != log_id


async def fetched(database_url: str, statement: str) -> object:
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def sent(node: Node, who: str, event: Json) -> Json:
    """Its verdict, by REST: the socket of 0.1.0 speaks another version."""
    async with node.rest(who) as rest:
        answer = await rest.post("/events", json={"events": [event]})
    [verdict] = answer.json()["events"]
    assert verdict["status"] == "accepted", verdict
    return dict(verdict)


def role_of(event: Json) -> Json:
    """0.1.0 wrote no role into membership events; who joins one of these budgets is an editor."""
    if "participant" not in event:
        return {}
    return {"participant": {"role": "editor", **event["participant"]}}


async def killed_at_the_third(cluster: Cluster, budget_ids: list[str]) -> None:
    """`migrate` comes to a budget whose log somebody holds, and is killed there."""
    environ = {"DATABASE_URL": cluster.database_url}
    holder, onlooker = [await asyncpg.connect(cluster.database_url) for _ in range(2)]
    process = Process(cluster.folder, "killed-migrate", ["migrate"], environ)
    try:
        async with holder.transaction():
            await holder.execute(
                "SELECT FROM accepted_events WHERE budget_id = $1 FOR UPDATE", budget_ids[2]
            )
            async with asyncio.timeout(BUSY_S):
                while not await onlooker.fetchval(WAITING):
                    assert process.exit_code is None, process.err
                    await asyncio.sleep(0.01)
            await process.kill()
            left = await onlooker.fetch(LEFT)
            assert [row[0] for row in left] == budget_ids[2:]
    finally:
        await process.close()
        await holder.close()
        await onlooker.close()


async def refused(
    cluster: Cluster, name: str, arguments: list[str], environ: dict[str, str]
) -> str:
    """What it says on stderr when it does not do it."""
    environ = {**environ, "DATABASE_URL": cluster.database_url, "AUTH_SECRET": AUTH_SECRET}
    process = Process(cluster.folder, name, arguments, environ)
    try:
        assert await process.ended() != 0
        return process.err
    finally:
        await process.close()


async def replaced(cluster: Cluster, node: Node) -> Node:
    """A new hub on the same port, once the old one has drained."""
    node.signal(signal.SIGTERM)
    assert await node.ended(STOP_S + BUSY_S) == 0
    return await cluster.start(PORT=node.port)


async def grown(travel: Travel, events: int) -> None:
    """Until everybody has seen so many more."""
    wanted = [len(each.seen) + events for each in travel.travellers]
    async with asyncio.timeout(BACK_S + BUSY_S):
        while any(len(e.seen) < n for e, n in zip(travel.travellers, wanted, strict=True)):
            travel.check()
            await asyncio.sleep(0.02)


async def speak_both(old: Node, new: Node) -> None:
    """Whatever one version commits, the other delivers, remembers, and goes on from."""
    ann, ben = token("ann"), token("ben")
    budget_id = new_id()
    async with connect(old.url, ann) as on_old, connect(new.url, ann) as on_new:
        written: list[tuple[Json, Json]] = []
        events = iter(every_kind(budget_id))
        await settled(on_old, on_new, next(events), written)
        for device in (on_old, on_new):
            await device.subscribe(budget_id)
        for number, event in enumerate(events):
            turn = (on_old, on_new) if number % 2 else (on_new, on_old)
            await settled(*turn, event, written)
        streams = [await device.reached(budget_id, len(written)) for device in (on_old, on_new)]
        for by_old, by_new in zip(*(stream.events for stream in streams), strict=True):
            assert list(missing(by_old.body, by_new.body)) == []

        await member_comes_and_goes(budget_id, ben, old, new)
        await member_comes_and_goes(budget_id, token("cleo"), new, old)
        for path in (f"/budgets/{budget_id}", f"/budgets/{budget_id}/delta?key=2"):
            async with old.rest(ann) as at_old, new.rest(ann) as at_new:
                by_old, by_new = [(await rest.get(path)).json() for rest in (at_old, at_new)]
            assert list(missing(by_old, by_new)) == []


async def settled(
    writer: Device, other: Device, event: Json, written: list[tuple[Json, Json]]
) -> None:
    """Accepted by one version, and known to the other one, as is what was written before (P3)."""
    [verdict] = await writer.accepted(event)
    written.append((event, verdict))
    again = await other.submit([event for event, _ in written], "each")
    for (_, first), repeated in zip(written, again, strict=True):
        assert repeated["duplicate"] is True
        assert {**first, "duplicate": True} == repeated


def every_kind(budget_id: str) -> list[Json]:
    """One event of every kind a client sends, but for the deletion of the budget."""
    category, expense = new_id(), new_id()

    def deletion(kind: str, record_id: str, version: int) -> Json:
        event = expense_edit(budget_id, record_id, version)
        return {**event, "eventType": f"{kind}.delete"}

    category_edit = expense_edit(budget_id, category, 1, name="Food", allocate="80")
    return [
        budget_create(budget_id, details="before the deploy", currency="EUR"),
        budget_edit(budget_id, 1, title="Home", details=None),
        category_add(budget_id, recordId=category),
        {**category_edit, "eventType": "category.edit"},
        expense_add(budget_id, recordId=expense, categoryId=category, note="bread", amount="1.5"),
        expense_edit(budget_id, expense, 1, amount="2", note=None),
        deletion("expense", expense, 2),
        expense_add(budget_id, categoryId=category),
        deletion("category", category, 2),
    ]


async def member_comes_and_goes(budget_id: str, who: str, here: Node, there: Node) -> None:
    """Joins on one version, is removed on it, and so loses the other's live stream (P9)."""
    async with here.rest(who) as rest:
        joined = await rest.post(f"/budgets/{budget_id}/join")
        assert joined.status_code == 200, joined.text
        user_id = joined.json()["participant"]["userId"]
    async with connect(there.url, who) as device:
        await device.subscribe(budget_id)
        async with here.rest(token("ann")) as rest:
            removed = await rest.delete(f"/budgets/{budget_id}/participants/{user_id}")
            assert removed.status_code == 200, removed.text
        await device.wait_for(lambda: bool(device.of_type("unsubscribed")), P7_S + BUSY_S)
        assert device.of_type("unsubscribed")[0]["code"] == "NOT_PARTICIPANT"


async def ran(cluster: Cluster, name: str, arguments: list[str], environ: dict[str, str]) -> None:
    environ = {**environ, "DATABASE_URL": cluster.database_url}
    process = Process(cluster.folder, name, arguments, environ)
    try:
        assert await process.ended() == 0, process.out + process.err
    finally:
        await process.close()


async def ran_code_in(environ: dict[str, str]) -> Path:
    """The folder whose code a process with this environment runs."""
    shown = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import api; print(api.__file__)",
        env={"PATH": os.defpath, **environ},
        cwd=os.sep,
        stdout=subprocess.PIPE,
    )
    out, _ = await shown.communicate()
    return Path(out.decode().strip()).parents[1]
