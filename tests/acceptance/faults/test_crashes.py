"""Hubs and Postgres are killed in the middle of everything, and nothing is lost or done twice."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from api.cli.stats import parsed
from loadtest.cluster import FragilePostgres
from loadtest.history import History
from loadtest.proxy import Proxy
from storage.embedded.redis import EmbeddedRedis
from storage.postgres.database import IDLE_IN_TRANSACTION_S
from tests.cluster import BUSY_S, P7_S, POLL_S, REST_S, Cluster, all_say, checked, token
from tests.conftest import migrated
from tests.device import Device, Json, budget_create, connect, expense_add, new_id
from tests.lateness import again_if_too_late, in_time
from tests.storm import SEED, SILENCE_S, Plan, check, storm, take

DELAY_S = 0.4  # long enough to stop a hub between two of its statements
STOPS_MAX = 20  # attempts to do so

IDLE_IN_TRANSACTION = """
SELECT query FROM pg_stat_activity
WHERE datname = current_database() AND state = 'idle in transaction'
"""

READ_HEAD = "SELECT last_sequence FROM budgets WHERE id = $1"

_numbers = count(1)


@pytest.fixture(scope="module")
def fragile_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FragilePostgres]:
    postgres = FragilePostgres(tmp_path_factory.mktemp("fragile"))
    yield postgres
    postgres.close()


@pytest.fixture
async def fragile_cluster(
    fragile_postgres: FragilePostgres, redis: EmbeddedRedis, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """No node yet, on a Postgres that may be crashed. At the end no log may hold a defect."""
    url = await migrated(fragile_postgres.url, f"crashes_{next(_numbers)}")
    async with checked(Cluster(tmp_path, url, redis.url)) as cluster:
        yield cluster


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(1, writers=50, kills=2), id="one-budget"),
        pytest.param(
            Plan(2, users=10, budgets=20, writers=5, kills=1, crashes=1), id="200-budgets"
        ),
        pytest.param(
            Plan(SEED, writers=100, kills=20, freezes=5, crashes=5),
            marks=pytest.mark.faults,
            id="one-budget-for-long",
        ),
        pytest.param(
            Plan(SEED, users=10, budgets=20, writers=10, kills=20, freezes=5, crashes=5),
            marks=pytest.mark.faults,
            id="200-budgets-for-long",
        ),
    ],
)
async def test_nothing_is_lost_or_done_twice(
    plan: Plan, fragile_cluster: Cluster, fragile_postgres: FragilePostgres
) -> None:
    """P1 to P6, P11: with devices that resend until they know."""
    await storm(plan, fragile_cluster, fragile_postgres)


@again_if_too_late
async def test_a_frozen_hub_holds_no_budget_for_long(fragile_cluster: Cluster) -> None:
    """It is stopped inside its transaction, with the lock taken. Another hub has the budget back
    when Postgres has lost patience, and other budgets all the while; and when the frozen one goes
    on, its clients get their verdicts."""
    history = History()

    def noted(event: Json) -> Json:
        history.submitted("ada", event, time.monotonic())
        return event

    async def settled(device: Device, event: Json, request_id: int) -> Json:
        """The acceptance of what was posted, sent again as often as the hub asks for it."""
        while True:
            [verdict] = await device.verdicts(request_id, SILENCE_S)
            if verdict["status"] == "accepted":
                return verdict
            assert verdict["error"]["retryable"], verdict
            request_id = await device.post([noted(event)])

    contended, unconcerned = new_id(), new_id()
    async with Proxy(fragile_cluster.database_url) as proxy, AsyncExitStack() as stack:
        postgres = await asyncpg.connect(fragile_cluster.database_url)
        stack.push_async_callback(postgres.close)
        frozen, awake = await asyncio.gather(
            fragile_cluster.start(DATABASE_URL=proxy.url), fragile_cluster.start()
        )
        stuck = [
            await stack.enter_async_context(connect(frozen.url, token("ada"))) for _ in range(3)
        ]
        free = await stack.enter_async_context(connect(awake.url, token("ada")))
        await stuck[0].accepted(noted(budget_create(contended)))  # its statements are prepared now
        await free.accepted(noted(budget_create(unconcerned)))
        for device in (free, stuck[0]):
            await device.subscribe(contended)
        proxy.delay_s = DELAY_S
        posted = []
        for _ in range(STOPS_MAX):
            for device in stuck:
                event = noted(expense_add(contended))
                posted.append((device, event, await device.post([event])))
            await until_locked(postgres)
            frozen.pause()
            frozen_s = time.monotonic()
            if await postgres.fetch(IDLE_IN_TRANSACTION):
                break
            frozen.resume()  # it was too late, and got further
        try:
            head = await postgres.fetchval(READ_HEAD, contended)
            waiting = noted(expense_add(contended))
            waits = await free.post([waiting])
            with in_time(IDLE_IN_TRANSACTION_S):
                await free.accepted(noted(expense_add(unconcerned)))
                # Which needed not wait for what is locked.
                assert not any(frame["id"] == waits for frame in free.of_type("results"))
            verdict = await settled(free, waiting, waits)
            assert verdict["sequence"] == head + 1
            assert time.monotonic() - frozen_s < IDLE_IN_TRANSACTION_S + BUSY_S
        finally:
            frozen.resume()
        proxy.delay_s = 0
        for device, event, request_id in posted:
            await settled(device, event, request_id)
        for device in (free, stuck[0]):
            await device.reached(contended, 2 + len(posted))
        for device in (*stuck, free):
            take(history, f"device {id(device)}", device, "ada")
        await check(history, fragile_cluster, [frozen, awake], {"ada": [contended, unconcerned]})


async def test_a_hub_killed_between_commit_and_publish_leaves_nobody_waiting(
    fragile_cluster: Cluster, redis: EmbeddedRedis
) -> None:
    """P7, P11."""
    async with Proxy(redis.url) as proxy:
        doomed, other = await asyncio.gather(
            fragile_cluster.start(REDIS_URL=proxy.url), fragile_cluster.start()
        )
        budget_id = new_id()
        async with connect(other.url, token("ada")) as watching:
            async with connect(doomed.url, token("ada")) as writing:
                await all_say([doomed, other], token("ada"), "ok")  # on the bus
                await writing.accepted(budget_create(budget_id))
                await watching.subscribe(budget_id)
                proxy.black_hole()
                await writing.accepted(expense_add(budget_id))
                await doomed.kill()
            await proxy.cut()  # and what it may have published is gone for good
            await watching.reached(budget_id, 2, P7_S + BUSY_S)
            async with other.rest() as rest:
                told = parsed((await rest.get("/metrics")).text)
            fed = [told.sum(0, "fed_events_total", source=source) for source in ("bus", "log")]
            assert fed == [0, 1]


async def until_locked(postgres: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Wait until some hub has locked budgets and has not come to the next statement yet."""
    async with asyncio.timeout(REST_S):
        while True:
            idle = await postgres.fetch(IDLE_IN_TRANSACTION)
            if any("FOR NO KEY UPDATE" in row["query"] for row in idle):
                return
            await asyncio.sleep(POLL_S)
