"""`/metrics` of real hubs: every worker's numbers, the right ones, in trouble too, and what
`budget-hub stats` and `doctor` make of them."""

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from httpx2 import AsyncClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from api.cli.stats import Reading, parsed
from api.telemetry.metrics import METRICS
from loadtest.process import START_TIMEOUT_S
from tests.acceptance.conftest import Pair
from tests.cluster import AUTH_SECRET, POLL_S, REST_S, Cluster, Node, Process, family, until
from tests.device import Device, Ended, budget_create, budget_edit, connect, expense_add, new_id
from tests.requirements import program


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


async def read(client: AsyncClient) -> Reading:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return parsed(answer.text)


async def until_read(
    client: AsyncClient, condition: Callable[[Reading], bool], timeout_s: float = REST_S
) -> Reading:
    async with asyncio.timeout(timeout_s):
        while True:
            reading = await read(client)
            if condition(reading):
                return reading
            await asyncio.sleep(POLL_S)


def grown(before: Reading, after: Reading, name: str, **labels: str) -> float:
    return (after.sum(0, name, **labels) or 0) - (before.sum(0, name, **labels) or 0)


async def test_what_is_counted_is_what_happened(node: Node, cluster: Cluster) -> None:
    token, budget_id = cluster.token("ada"), new_id()
    created = budget_create(budget_id)
    async with node.rest() as client, connect(node.url, token) as one:
        before = await read(client)
        await one.accepted(created)
        await one.submit([created])
        await one.subscribe(budget_id)
        await one.reached(budget_id, 1)
        async with connect(node.url, token) as other:
            await other.subscribe(budget_id)
            await other.reached(budget_id, 1)
            # Both are live, which they are told by each other's presence.
            for device in (one, other):
                await device.wait_for(lambda device=device: two_devices(device))  # type: ignore[misc]
            await one.accepted(*(expense_add(budget_id) for _ in range(3)))
            await other.reached(budget_id, 4)
            assert (await one.submit([budget_edit(budget_id, 9)]))[0]["status"] == "conflict"
            unknown = await one.submit([expense_add(new_id())])
            assert unknown[0]["error"]["message"] == "BUDGET_NOT_EXISTS"
            await one.submit([{**expense_add(budget_id), "eventType": "made up", "amount": "x"}])
            async with node.rest(token) as rest:
                poll = asyncio.create_task(
                    rest.get("/events", params={"budgetId": budget_id, "key": 4, "wait": 30})
                )
                after = await until_read(
                    client,
                    lambda reading: (
                        reading.sum(0, "connections", kind="poll") == 1
                        and reading.sum(0, "bus_connected") == 1
                    ),
                )
                await one.accepted(expense_add(budget_id))
                assert (await poll).json()["nextKey"] == 5

    def events(**labels: str) -> float:
        return grown(before, after, "events_total", **labels)

    assert events(verdict="accepted", type="budget.create") == 1
    assert events(verdict="duplicate", type="budget.create") == 1
    assert events(verdict="accepted", type="expense.add") == 3
    assert events(verdict="conflict", type="budget.edit") == 1
    assert events(verdict="rejected", type="expense.add") == 1
    assert events(verdict="rejected", type="invalid") == 1
    assert events() == 8
    assert grown(before, after, "rejected_events_total", code="INVALID_EVENT") == 1
    assert grown(before, after, "rejected_events_total", code="BUDGET_NOT_EXISTS") == 1
    assert grown(before, after, "commit_seconds_count") == 2
    assert grown(before, after, "batch_events_sum") == 4
    assert grown(before, after, "delivery_seconds_count") == 3 * 2
    # By the commit, as a rule; the sweeper may be quicker.
    assert grown(before, after, "fed_events_total") == 3
    assert after.sum(0, "connections", kind="socket") == 2
    assert after.sum(0, "subscriptions", state="live") == 3  # the poll too
    assert after.sum(0, "feeds") == 1
    assert after.sum(0, "bus_connected") == 1
    assert grown(before, after, "tokens_total", outcome="remembered") == 2


def two_devices(device: Device) -> bool:
    told = device.of_type("presence")
    return bool(told) and told[-1]["users"][0]["devices"] == 2


async def test_refusals_are_counted_by_door_and_code(node: Node, cluster: Cluster) -> None:
    async with node.rest("not a token") as client:
        before = await read(client)
        assert (await client.get("/budgets")).status_code == 401
        assert (await client.get("/nowhere")).status_code == 404
        async with connect(node.url, cluster.token("ada")) as device:
            with pytest.raises(Ended):
                await device.send_raw("no frame")
                await device.ping()
        after = await read(client)
    assert grown(before, after, "refusals_total", door="rest", code="NOT_LOGGED_IN") == 1
    assert grown(before, after, "refusals_total", door="rest", code="NOT_FOUND") == 1
    assert grown(before, after, "refusals_total", door="socket", code="BAD_FRAME") == 1
    assert grown(before, after, "tokens_total", outcome="refused") == 1


async def test_every_metric_is_told_and_nothing_of_anybody(node: Node, cluster: Cluster) -> None:
    budget_id = new_id()
    async with node.rest(cluster.token("ada-of-the-metrics")) as client:
        made = await client.post("/events", json={"events": [budget_create(budget_id)]})
        assert made.status_code == 200
        assert (await client.get("/budgets", headers={"Authorization": "Bearer x"})).is_error
        text = (await client.get("/metrics")).text
        asked = await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    for metric in METRICS:
        assert f"\n{metric.series}{'_count' if metric.kind == 'histogram' else ''}{{" in text
    for private in (budget_id, "ada-of-the-metrics", "Trip"):
        assert private not in text
    assert {f"budget_hub_{metric.name}" for metric in METRICS} <= {
        each.name
        for each in openmetrics(asked.text)  # type: ignore[no-untyped-call]
    }


async def test_promtool_takes_the_page(node: Node) -> None:
    promtool = program("promtool", "prometheus")
    async with node.rest() as client:
        text = (await client.get("/metrics")).text
    checked = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=text.encode(),
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, b"")


async def test_p7_a_deaf_node_shows_and_delivers_from_the_log(fragile_pair: Pair) -> None:
    cluster, nodes, _, proxy = fragile_pair
    token, budget_id = cluster.token("ada"), new_id()
    async with (
        nodes[1].rest() as client,
        connect(nodes[0].url, token) as here,
        connect(nodes[1].url, token) as there,
    ):
        await here.accepted(budget_create(budget_id))
        await there.subscribe(budget_id)
        await there.reached(budget_id, 1)
        before = await read(client)
        proxy.black_hole()
        try:
            await until_read(client, lambda now: now.sum(0, "bus_connected") == 0)
            await here.accepted(expense_add(budget_id))
            await there.reached(budget_id, 2)
            after = await read(client)
        finally:
            await proxy.heal()
        await until_read(client, lambda now: now.sum(0, "bus_connected") == 1)
    assert grown(before, after, "bus_losses_total", cause="deaf") == 1
    assert grown(before, after, "fed_events_total", source="log") == 1
    assert grown(before, after, "gaps_filled_total") == 1
    assert grown(before, after, "sweeps_total", outcome="found") >= 1
    assert grown(before, after, "delivery_seconds_count") == 1  # dated by the log


# Several workers, and the commands.


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*arguments: str, environ: Mapping[str, str] = {}) -> Process:
        started.append(Process(tmp_path, f"run-{len(started)}", arguments, environ))
        return started[-1]

    yield start
    for process in started:
        await process.close()


async def test_any_worker_tells_of_all_and_one_that_was_killed_begins_anew(
    run: Callable[..., Process], cluster: Cluster
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a Unix socket's path is short
        environ = {
            "DATABASE_URL": cluster.database_url,
            "AUTH_SECRET": AUTH_SECRET,
            "PORT": "0",
            "TMPDIR": folder,
        }
        serve = run("serve", "--workers", "2", environ=environ)
        url = await serve.serving()

        async def readings(number: int) -> list[Reading]:
            """Each over a connection of its own, so from whichever worker takes it. A worker that
            does not answer the other one within a second is left out."""
            told: list[Reading] = []
            async with asyncio.timeout(START_TIMEOUT_S):
                while len(told) < number:
                    async with AsyncClient(base_url=url, trust_env=False, timeout=REST_S) as client:
                        reading = await read(client)
                    if reading.workers.keys() == {0, 1}:
                        told.append(reading)
                    else:
                        await asyncio.sleep(POLL_S)
            return told

        async with connect(url, cluster.token("ada")) as device:
            for _ in range(5):
                await device.accepted(budget_create(new_id()))
            for told in await readings(6):
                accepted = [told.sum(n, "events_total", verdict="accepted") or 0 for n in (0, 1)]
                assert sorted(accepted) == [0, 5]
                sockets = [told.sum(n, "connections", kind="socket") for n in (0, 1)]
                assert [count * 5 for count in sockets if count is not None] == accepted
            while True:
                stats = run("stats", "--target", url, "--seconds", "0.5")
                assert await stats.ended() == 0, stats.err
                lines = [line.split() for line in stats.out.splitlines()]
                [row] = [line for line in lines if line[:1] == ["sockets"]]
                if len(row) == 3:  # both were heard, each time
                    break
            assert sorted(row[1:]) == ["0", "1"]

        def workers() -> list[int]:
            return [
                pid for (pid, _), name in family(serve.pid).items() if "api.process.node" in name
            ]

        killed = workers()[0]
        os.kill(killed, signal.SIGKILL)
        await until(lambda: len(workers()) == 2 and killed not in workers(), START_TIMEOUT_S)
        await readings(1)
        assert await serve.stop() == 0
        assert os.listdir(folder) == []


async def test_stats_of_nobody_is_one_line(run: Callable[..., Process]) -> None:
    stats = run("stats", "--target", "127.0.0.1:8000")
    assert await stats.ended() == 2
    assert stats.err.startswith("budget-hub: --target: ")
    stats = run("stats", "--target", "http://127.0.0.1:1")
    assert await stats.ended() == 1
    assert stats.err.startswith("budget-hub: http://127.0.0.1:1 does not answer: ")
    assert len(stats.err.splitlines()) == 1


async def test_doctor_ends_with_1_where_something_is_wrong(
    run: Callable[..., Process], cluster: Cluster
) -> None:
    environ = {"DATABASE_URL": cluster.database_url, "AUTH_SECRET": AUTH_SECRET}
    doctor = run("doctor", environ=environ)
    assert await doctor.ended() == 1  # the tests' Postgres runs without fsync
    assert "WRONG postgres  fsync = off" in doctor.out
    assert (doctor.out.splitlines()[-1], doctor.err) == ("something is wrong", "")
    doctor = run("doctor", environ={**environ, "PORT": "door"})
    assert await doctor.ended() == 1
    assert "WRONG settings  PORT: " in doctor.out
