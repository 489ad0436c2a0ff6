"""What goes wrong in production, caused on real hubs, and what `/metrics` said meanwhile.

Each `Trouble` is two hubs with devices that write and read, and a way to break something.
`python -m tests.troubles [NAME…]` records them into `tests/recorded/`, all at once, in five minutes
(`make recordings`, after a change of the metrics that the alerts read). The tests of the alerts
evaluate these recordings.
"""

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import asyncpg
import httpx2
import yaml
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import WebSocketException

from loadtest.cluster import FragileRedis
from loadtest.proxy import Proxy
from storage.embedded.postgres import EmbeddedPostgres
from storage.postgres.database import CONNECTIONS_MAX
from tests import ROOT
from tests.cluster import PROGRAM, Cluster, Node, family
from tests.conftest import migrated
from tests.device import Ended, Refused, budget_create, connect, expense_add, new_id
from tests.google import FIREBASE_HUB, Google, Signer, encoded, running
from tests.promql import Labels, selected

ALERTS = ROOT / "infra" / "prometheus" / "alerts.yml"
RECORDED = ROOT / "tests" / "recorded"
JOB = "budget-hub"
INTERVAL_S = 5
HEALTHY_S, BROKEN_S = 60, 180
WRITES_PER_S = 4  # to each hub

Do: TypeAlias = Callable[[], Awaitable[None]]


class Trouble(NamedTuple):
    """Hubs that work, until `breaks`."""

    nodes: list[Node]
    breaks: Do


class Place(NamedTuple):
    """Where troubles are made: a folder of its own for each, and a Postgres for all."""

    folder: Path
    postgres: EmbeddedPostgres

    async def cluster(
        self, redis: FragileRedis, database_url: str, program: Sequence[str | Path]
    ) -> Cluster:
        name = f"trouble_{re.sub('[^a-z]', '_', self.folder.name)}"
        url = database_url or await migrated(self.postgres.url, name)
        return Cluster(self.folder, url, redis.url, program)


async def nothing() -> None:
    """What breaks in a healthy hub."""


@asynccontextmanager
async def pair(
    place: Place, database_url: str = "", program: Sequence[str | Path] = (PROGRAM,)
) -> AsyncIterator[tuple[Cluster, FragileRedis]]:
    redis = FragileRedis(place.folder / "redis")
    cluster = await place.cluster(redis, database_url, program)
    try:
        yield cluster, redis
    finally:
        await cluster.close()
        redis.close()


@asynccontextmanager
async def healthy(place: Place) -> AsyncIterator[Trouble]:
    async with pair(place) as (cluster, _):
        nodes = await cluster.start_some(2)
        async with traffic(cluster, nodes):
            yield Trouble(nodes, nothing)


@asynccontextmanager
async def deploy(place: Place) -> AsyncIterator[Trouble]:
    """Not a trouble: one hub after the other is drained and started anew, three times."""
    async with pair(place) as (cluster, _):
        nodes = await cluster.start_some(2)

        async def replace() -> None:
            for number in (0, 1) * 3:
                await nodes[number].stop()
                nodes[number] = await cluster.start()
                await asyncio.sleep(20)

        async with traffic(cluster, nodes):
            yield Trouble(nodes, replace)


@asynccontextmanager
async def redis_killed(place: Place) -> AsyncIterator[Trouble]:
    async with pair(place) as (cluster, redis):
        nodes = await cluster.start_some(2)

        async def kill() -> None:
            await asyncio.to_thread(redis.kill)

        async with traffic(cluster, nodes):
            yield Trouble(nodes, kill)


@asynccontextmanager
async def node_deaf(place: Place) -> AsyncIterator[Trouble]:
    """The second hub's connections to Redis stay, and nothing passes."""
    async with pair(place) as (cluster, redis), Proxy(redis.url) as proxy:
        nodes = [await cluster.start(), await cluster.start(REDIS_URL=proxy.url)]

        async def cut() -> None:
            proxy.black_hole()

        async with traffic(cluster, nodes):
            yield Trouble(nodes, cut)
        await proxy.heal()


@asynccontextmanager
async def two_buses(place: Place) -> AsyncIterator[Trouble]:
    """The second hub is restarted with the URL of another Redis: both hear themselves."""
    other = FragileRedis(place.folder / "other-redis")
    try:
        async with pair(place) as (cluster, _):
            nodes = await cluster.start_some(2)

            async def restart() -> None:
                await nodes[1].stop()
                nodes[1] = await cluster.start(REDIS_URL=other.url)

            async with traffic(cluster, nodes):
                yield Trouble(nodes, restart)
    finally:
        other.close()


@asynccontextmanager
async def postgres_stopped(place: Place) -> AsyncIterator[Trouble]:
    postgres = await asyncio.to_thread(EmbeddedPostgres.start, place.folder / "own", durable=False)
    try:
        url = await migrated(postgres.url, "trouble")
        async with pair(place, url) as (cluster, _):
            nodes = await cluster.start_some(2)

            async def stop() -> None:
                await asyncio.to_thread(postgres.stop, "immediate")

            async with traffic(cluster, nodes):
                yield Trouble(nodes, stop)
    finally:
        postgres.stop()


class Administered(NamedTuple):
    """Two nodes, whose database somebody is connected to. `run` keeps a client at work until the
    end."""

    cluster: Cluster
    nodes: list[Node]
    admin: "asyncpg.Connection[asyncpg.Record]"
    run: Callable[[Coroutine[Any, Any, None]], None]


@asynccontextmanager
async def administered(place: Place) -> AsyncIterator[Administered]:
    async with pair(place) as (cluster, _), AsyncExitStack() as stack:
        nodes = await cluster.start_some(2)
        admin = await asyncpg.connect(cluster.database_url)
        stack.push_async_callback(admin.close)
        clients = await stack.enter_async_context(asyncio.TaskGroup())
        running: list[asyncio.Task[None]] = []
        stack.callback(lambda: [task.cancel() for task in running])
        yield Administered(
            cluster, nodes, admin, lambda work: running.append(clients.create_task(work))
        )


@asynccontextmanager
async def pool_exhausted(place: Place) -> AsyncIterator[Trouble]:
    """Somebody holds a lock on a table, and each request that reads it keeps its connection."""
    async with administered(place) as (cluster, nodes, admin, run):

        async def read_profiles() -> None:
            async with nodes[0].rest(cluster.token("ada")) as rest:
                while True:
                    await attempt(rest.get("/user", timeout=30))

        async def lock() -> None:
            await admin.execute("BEGIN")
            await admin.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            for _ in range(25):
                run(read_profiles())

        async with traffic(cluster, nodes):
            yield Trouble(nodes, lock)


@asynccontextmanager
async def schema_broken(place: Place) -> AsyncIterator[Trouble]:
    """A table is not there, and requests for what is in it are answered 500."""
    async with administered(place) as (cluster, nodes, admin, run):

        async def read_profiles(node: Node) -> None:
            async with node.rest(cluster.token("ada")) as rest:
                while True:
                    await attempt(rest.get("/user", timeout=30))
                    await asyncio.sleep(INTERVAL_S)

        async def rename() -> None:
            await admin.execute("ALTER TABLE users RENAME TO people")
            for node in nodes:
                run(read_profiles(node))

        async with traffic(cluster, nodes):
            yield Trouble(nodes, rename)


@asynccontextmanager
async def tokens_refused(place: Place) -> AsyncIterator[Trouble]:
    """The hubs are restarted with another secret than the one that signed what clients have."""
    async with pair(place) as (cluster, _):
        nodes = await cluster.start_some(2)

        async def restart() -> None:
            for number, node in enumerate(nodes):
                await node.stop()
                nodes[number] = await cluster.start(AUTH_SECRET="another-secret-by-mistake" * 2)

        async with traffic(cluster, nodes):
            yield Trouble(nodes, restart)


@asynccontextmanager
async def certificates_away(place: Place) -> AsyncIterator[Trouble]:
    """Firebase has a new certificate and nobody can fetch it: Google is out of reach."""
    with running() as google:
        async with (
            pair(place, program=FIREBASE_HUB) as (cluster, _),
            AsyncExitStack() as stack,
        ):
            nodes = [await firebase_hub(cluster, google) for _ in range(2)]
            signers = [google.signer]
            await stack.enter_async_context(knocking(nodes, lambda: fresh(signers[-1])))

            async def break_() -> None:
                # A hub that was just started knows no certificate at all.
                google.down |= {"keys", "accounts"}
                for number, node in enumerate(nodes):
                    await node.stop()
                    nodes[number] = await firebase_hub(cluster, google)

            yield Trouble(nodes, break_)


@asynccontextmanager
async def node_killed(place: Place) -> AsyncIterator[Trouble]:
    async with pair(place) as (cluster, _):
        nodes = await cluster.start_some(2)
        async with traffic(cluster, nodes):
            yield Trouble(nodes, nodes[1].kill)


@asynccontextmanager
async def worker_hung(place: Place) -> AsyncIterator[Trouble]:
    """One of two workers of the second hub stands still."""
    async with pair(place) as (cluster, _):
        nodes = [await cluster.start(WEB_CONCURRENCY="2") for _ in range(2)]
        workers = [
            pid for (pid, _), name in family(nodes[1].pid).items() if "api.process.node" in name
        ]

        async def stop() -> None:
            os.kill(workers[0], signal.SIGSTOP)

        try:
            async with traffic(cluster, nodes):
                yield Trouble(nodes, stop)
        finally:
            os.kill(workers[0], signal.SIGCONT)


TROUBLES: Mapping[str, Callable[[Place], AbstractAsyncContextManager[Trouble]]]


# Who writes and reads.


@asynccontextmanager
async def traffic(cluster: Cluster, nodes: Sequence[Node]) -> AsyncIterator[None]:
    """At each hub somebody writes to a budget of his own, over REST, and two devices follow all.
    They find their hub where `nodes` has it at the moment."""
    token = cluster.token("ada")
    budget_ids = [new_id() for _ in nodes]

    async def write(number: int, budget_id: str) -> None:
        while True:
            async with nodes[number].rest(token) as rest:
                await attempt(rest.post("/events", json={"events": [expense_add(budget_id)]}))
            await asyncio.sleep(1 / WRITES_PER_S)

    async def follow(number: int) -> None:
        while True:
            try:
                async with connect(nodes[number].url, token) as device:
                    for budget_id in budget_ids:
                        await device.subscribe(budget_id)
                    await device.until_closed(timeout_s=3600)
            except (OSError, Ended, Refused, TimeoutError, WebSocketException):
                pass
            await asyncio.sleep(1)

    async with nodes[0].rest(token) as rest:
        budgets = [budget_create(budget_id) for budget_id in budget_ids]
        made = await rest.post("/events", json={"events": budgets})
        assert made.status_code == 200
    writers = [write(number, budget_id) for number, budget_id in enumerate(budget_ids)]
    followers = [follow(number) for number in [*range(len(nodes))] * 2]
    async with background(*writers, *followers):
        yield


@asynccontextmanager
async def knocking(nodes: Sequence[Node], token: Callable[[], str]) -> AsyncIterator[None]:
    """Somebody asks each hub for his budgets, twice a second."""

    async def ask(number: int) -> None:
        while True:
            async with nodes[number].rest(token()) as rest:
                await attempt(rest.get("/budgets"))
            await asyncio.sleep(0.5)

    async with background(*(ask(number) for number, _ in enumerate(nodes))):
        yield


async def attempt(asking: Awaitable[object]) -> None:
    try:
        await asking
    except (httpx2.HTTPError, OSError):
        await asyncio.sleep(0.5)


@asynccontextmanager
async def background(*work: Awaitable[None]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def firebase_hub(cluster: Cluster, google: Google) -> Node:
    return await cluster.start(
        PYTHONPATH=str(ROOT),
        GOOGLE_URL=google.url,
        AUTH_MODE="firebase",
        FIREBASE_SERVICE_ACCOUNT_BASE64=encoded(google.service_account()),
    )


def fresh(signer: Signer) -> str:
    """A token that no cache knows."""
    return signer.token(f"user-{new_id()}")


# What they said.


def scraped(text: str, instance: str) -> dict[Labels, float]:
    """The samples of one scrape, as Prometheus stores them."""
    samples = {}
    for told_of in text_string_to_metric_families(text):
        for sample in told_of.samples:
            labels = {
                "__name__": sample.name,
                "job": JOB,
                "instance": instance,
                **sample.labels,
            }
            samples[frozenset(labels.items())] = sample.value
    return samples


async def scrape(nodes: Sequence[Node]) -> dict[Labels, float]:
    """All of them, at this moment, and whether they answered (`up`)."""
    samples: dict[Labels, float] = {}
    for number, node in enumerate(nodes, 1):
        instance = f"hub-{number}:8000"
        up = {"__name__": "up", "job": JOB, "instance": instance}
        try:
            async with node.rest() as rest:
                answer = await rest.get("/metrics", timeout=INTERVAL_S - 1)
            samples |= scraped(answer.text, instance)
            samples[frozenset(up.items())] = 1.0
        except (httpx2.HTTPError, OSError):
            samples[frozenset(up.items())] = 0.0
    return samples


def of_alerts() -> frozenset[str]:
    """The names of all series that the alerts read."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return frozenset(name for rule in group["rules"] for name, _ in selected(rule["expr"]))


async def record(name: str, place: Place, begin_s: float) -> None:
    wanted = of_alerts()
    moments: list[dict[Labels, float]] = []
    async with TROUBLES[name](place) as trouble:
        await asyncio.sleep(max(begin_s - time.monotonic(), 0))
        broken = asyncio.ensure_future(nothing())
        begun_s = time.monotonic()
        for tick in range((HEALTHY_S + BROKEN_S) // INTERVAL_S + 1):
            await asyncio.sleep(max(begun_s + tick * INTERVAL_S - time.monotonic(), 0))
            moments.append(await scrape(trouble.nodes))
            if tick * INTERVAL_S == HEALTHY_S:
                broken = asyncio.ensure_future(trouble.breaks())
        await broken
    keys = {key for moment in moments for key in moment if dict(key)["__name__"] in wanted}
    series = [
        {
            "series": told(key),
            "values": " ".join(words([moment.get(key) for moment in moments])),
        }
        for key in sorted(keys, key=told)
    ]
    text = yaml.safe_dump({"interval": f"{INTERVAL_S}s", "input_series": series}, width=10**6)
    (RECORDED / f"{name}.yml").write_text(text)


def told(labels: Labels) -> str:
    """A series as Prometheus writes it."""
    rest = dict(sorted(labels))
    name = rest.pop("__name__")
    return (
        f"{name}{{{', '.join(f'{key}={chr(34)}{value}{chr(34)}' for key, value in rest.items())}}}"
    )


def words(values: Sequence[float | None]) -> Iterator[str]:
    """As promtool reads them. Prometheus marks where a series is not there any more."""
    before = None
    for value in values:
        if value is None:
            yield "_" if before is None else "stale"
        else:
            yield f"{int(value)}" if value == int(value) else f"{value!r}"
        before = value


async def main(names: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="troubles-") as folder:
        postgres_folder = Path(folder) / "postgres"
        # Of each trouble two nodes, with every connection that their pools may have, and some more.
        settings = {"max_connections": str(2 * (CONNECTIONS_MAX + 5) * len(names))}
        with EmbeddedPostgres.start(postgres_folder, durable=False, settings=settings) as postgres:
            begin_s = time.monotonic() + 20 + 5 * len(names)
            async with asyncio.TaskGroup() as all_at_once:
                for name in names:
                    place = Place(Path(folder) / name, postgres)
                    place.folder.mkdir()
                    all_at_once.create_task(record(name, place, begin_s))


TROUBLES = {
    "healthy": healthy,
    "deploy": deploy,
    "redis-killed": redis_killed,
    "node-deaf": node_deaf,
    "two-buses": two_buses,
    "postgres-stopped": postgres_stopped,
    "pool-exhausted": pool_exhausted,
    "schema-broken": schema_broken,
    "tokens-refused": tokens_refused,
    "certificates-away": certificates_away,
    "node-killed": node_killed,
    "worker-hung": worker_hung,
}


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or list(TROUBLES)))
