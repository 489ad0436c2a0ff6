"""Whoever reads the log may go, sleep, or have no room: that costs log lines, and nothing else.

Found with log collectors that were restarted, and disks of logs that ran full: every new socket was
dropped while the probes said that all was well, and a hub did not start.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from signal import SIGKILL

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.cluster import Port
from loadtest.process import START_TIMEOUT_S
from tests.cluster import (
    POLL_S,
    PROGRAM,
    REST_S,
    Cluster,
    Node,
    all_say,
    eventually,
    family,
    until,
)
from tests.device import connect

LOST = "budget_hub_log_lines_lost"
SOCKETS = 3

# What a shell does before it becomes the hub; `fifo` is one in its folder.
GONE = "exec 3<>fifo {n}>fifo 3<&-"  # it had a reader, which has gone
UNREAD = "exec 3<>fifo {n}>fifo; head -c 65536 /dev/zero >&3"  # it has one, and is full
FULL = "exec {n}>/dev/full"
CLOSED = "exec {n}>&-"
BROKEN = {"gone": GONE, "unread": UNREAD, "full": FULL, "closed": CLOSED}


@asynccontextmanager
async def hubs(cluster: Cluster, folder: Path, before: str = "true") -> AsyncIterator[Cluster]:
    """Its hubs begin with that line of the shell."""
    os.mkfifo(folder / "fifo")
    program = ("/bin/sh", "-c", f'{before}; exec "$0" "$@"', PROGRAM)
    others = Cluster(folder, cluster.database_url, cluster.redis_url, program)
    try:
        yield others
    finally:
        await others.close()


async def silent(others: Cluster, port: Port, **settings: str) -> Node:
    """A hub that may not be able to say that it serves."""
    environ = {**others.environ, "PORT": str(port.number), **settings}
    node = Node(others.folder, "silent", environ, others.program)
    others.nodes.append(node)
    node.url = f"http://127.0.0.1:{port.number}"
    async with asyncio.timeout(START_TIMEOUT_S), node.rest() as rest:
        while True:
            assert node.exit_code is None, "it ended"
            try:
                if (await rest.get("/healthz")).status_code == 200:
                    return node
            except httpx2.TransportError:
                await asyncio.sleep(POLL_S)


async def serve(node: Node, token: str) -> None:
    """New sockets and requests, for which something is logged."""
    for _ in range(SOCKETS):
        async with connect(node.url, token):
            pass
    await node.new_budget(token)
    await all_say([node], token, "ok")


async def until_lost(node: Node, lines: int) -> None:
    async def counted() -> bool:
        return await lost(node) >= lines

    await eventually(counted)


async def lost(node: Node) -> float:
    async with node.rest() as rest:
        text = (await rest.get("/metrics")).text
    [metric] = [each for each in text_string_to_metric_families(text) if each.name == LOST]
    return sum(sample.value for sample in metric.samples if sample.name == f"{LOST}_total")


async def test_a_log_whose_reader_goes_costs_lines_only(cluster: Cluster, tmp_path: Path) -> None:
    token = cluster.token("ada")
    async with hubs(cluster, tmp_path, "exec 2>fifo") as others:
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        try:
            node = await others.start()
            await serve(node, token)
            assert await lost(node) == 0
        finally:
            os.close(reader)
        await serve(node, token)
        await until_lost(node, SOCKETS)
        assert await node.stop() == 0


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_log_that_takes_nothing_from_the_start_costs_lines_only(
    cluster: Cluster, tmp_path: Path, broken: str
) -> None:
    async with hubs(cluster, tmp_path, BROKEN[broken].format(n=2)) as others:
        node = await others.start(LOG_LEVEL="debug")
        await serve(node, cluster.token("ada"))
        if broken != "unread":  # those wait for a reader, until there are too many
            await until_lost(node, SOCKETS)
        assert await node.stop() == 0


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_hub_serves_where_nobody_reads_that_it_does(
    cluster: Cluster, tmp_path: Path, broken: str
) -> None:
    with closing(Port()) as port:
        async with hubs(cluster, tmp_path, BROKEN[broken].format(n=1)) as others:
            node = await silent(others, port)
            await serve(node, cluster.token("ada"))
            assert await node.stop() == 0


@pytest.mark.parametrize("broken", ["gone", "full"])
async def test_nodes_are_replaced_where_nobody_reads_that_one_died(
    cluster: Cluster, tmp_path: Path, broken: str
) -> None:
    async with hubs(cluster, tmp_path, BROKEN[broken].format(n=2)) as others:
        node = await others.start(WEB_CONCURRENCY="2")
        before = family(node.pid)
        assert len(before) == 2
        pid, _ = next(iter(before))
        os.kill(pid, SIGKILL)
        await until(lambda: len(family(node.pid).keys() - before.keys()) == 1, REST_S)
        await serve(node, cluster.token("ada"))
        assert await node.stop() == 0
