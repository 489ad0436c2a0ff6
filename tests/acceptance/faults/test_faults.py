"""Redis, Postgres and the network between them fail under two hubs, and the devices go on.

Each fault once; its long form, repeated in an order of the seed's, runs with `make faults`.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeAlias

import asyncpg
import pytest
from redis.asyncio import Redis
from websockets import frames

from loadtest.cluster import FragilePostgres, FragileRedis
from loadtest.proxy import Proxy
from storage.timeouts import STORAGE_TIMEOUTS
from tests.acceptance.conftest import Pair
from tests.cluster import BUSY_S, P7_S, POLL_S, REST_S, Cluster, Node, all_say, checked, until
from tests.conftest import migrated
from tests.device import Device, Json, Refused, budget_create, connect, expense_add, new_id
from tests.storm import SEED

DEAF_AFTER_S = STORAGE_TIMEOUTS.deaf_s + STORAGE_TIMEOUTS.heartbeat_s
LONG_S = 10.0
AWAY_S = 4.0  # of Postgres
AT_ONCE_S = 0.5  # as a rule; by the bus, where the sweeper would take a second each time
NOTICED_S = DEAF_AFTER_S + BUSY_S
BACK_S = 30.0  # the longest pause between two attempts to connect is three
ROUNDS = 3
FLOW_S = 40.0  # for some events of a flow, whatever befalls it

_numbers = count(1)


class Site(NamedTuple):
    """A `Pair`, and the log's identity."""

    cluster: Cluster
    nodes: list[Node]
    redis: FragileRedis
    proxy: Proxy
    log_id: str

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Redis]:
        async with Redis.from_url(self.redis.url) as admin:
            yield admin

    async def until_heard(self, budget_id: str, listeners: int) -> None:
        """Wait until exactly so many connections are given the budget's frames."""
        channel = f"budget-hub:{self.log_id}:{budget_id}"
        async with self.admin() as admin, asyncio.timeout(BACK_S):
            while True:
                [(_, number)] = await admin.pubsub_numsub(channel)
                if number == listeners:
                    return
                await asyncio.sleep(POLL_S)


@pytest.fixture(scope="module")
async def site(fragile_pair: Pair) -> Site:
    postgres = await asyncpg.connect(fragile_pair.cluster.database_url)
    log_id = str(await postgres.fetchval("SELECT log_id FROM log_identity"))
    await postgres.close()
    return Site(*fragile_pair, log_id)


class Outbox:
    """A device that writes one event after the other, each until it is accepted."""

    def __init__(self, device: Device, budget_id: str) -> None:
        self.budget_id = budget_id
        self.sequences: dict[str, int] = {}  # of the accepted events
        self.settled_s: dict[int, float] = {}  # when that was known, by sequence
        self.refusals: list[Json] = []
        self.device = device

    async def run(self, enough: asyncio.Event) -> None:
        while not enough.is_set():
            await self.write()
            await asyncio.sleep(0.03)

    async def write(self) -> int:
        """One event; its sequence."""
        event = expense_add(self.budget_id)
        while True:
            [verdict] = await self.device.submit([event], timeout_s=FLOW_S)
            if verdict["status"] == "accepted":
                sequence: int = verdict["sequence"]
                self.settled_s[sequence] = time.monotonic()
                self.sequences[event["eventId"]] = sequence
                return sequence
            self.refusals.append(verdict["error"])
            assert verdict["error"]["retryable"], verdict


class Flow(Outbox):
    """One device writes, and one on the other node reads. Nobody else writes to the budget: no
    commit of its own tells the reader's node what it has missed."""

    def __init__(self, writer: Device, reader: Device, budget_id: str) -> None:
        super().__init__(writer, budget_id)
        self._reader = reader

    @classmethod
    async def begin(cls, writer: Device, reader: Device) -> "Flow":
        budget_id = new_id()
        await writer.accepted(budget_create(budget_id))
        for device in (writer, reader):
            await device.subscribe(budget_id)
        return cls(writer, reader, budget_id)

    async def lags_s(self) -> list[float]:
        """How long after its verdict each event arrived. All have, and are the same."""
        head = 1 + len(self.settled_s)
        own, streamed = [await d.reached(self.budget_id, head) for d in (self.device, self._reader)]
        assert [event.raw for event in own.events] == [event.raw for event in streamed.events]
        return [e.at_s - self.settled_s[e.body["sequence"]] for e in streamed.events[1:]]

    async def lag_s(self) -> float:
        """How long after its verdict an event arrives, as a rule."""
        lags_s = []
        for _ in range(7):
            sequence = await self.write()
            stream = await self._reader.reached(self.budget_id, sequence)
            lags_s.append(stream.events[-1].at_s - self.settled_s[sequence])
        return median(lags_s)


# Redis

Hold: TypeAlias = Callable[[], Awaitable[None]]


class RedisFault(NamedTuple):
    """`strike` brings it about, waits in `hold` and ends it; at the earliest it ends when it was
    noticed, and after so many seconds. `hits` are the nodes that lose their connection."""

    strike: Callable[[Site, float, Hold], Awaitable[None]]
    hits: tuple[int, ...] = (0, 1)


async def connections_killed(site: Site, hold_s: float, hold: Hold) -> None:
    async with site.admin() as admin:
        assert await admin.client_kill_filter(_type="pubsub") == 2
    await hold()


async def paused(site: Site, hold_s: float, hold: Hold) -> None:
    """It goes on by itself: while it is paused it would not listen to us either. So it is paused
    for long enough to be noticed, also by a busy machine."""
    async with site.admin() as admin:
        await admin.client_pause(int(max(hold_s, 2 * DEAF_AFTER_S) * 1000), all=True)
    await hold()


async def frozen(site: Site, hold_s: float, hold: Hold) -> None:
    site.redis.pause()
    try:
        await hold()
    finally:
        site.redis.resume()


async def black_holed(site: Site, hold_s: float, hold: Hold) -> None:
    site.proxy.black_hole()
    try:
        await hold()
    finally:
        await site.proxy.heal()


async def cut_off(site: Site, hold_s: float, hold: Hold) -> None:
    await site.proxy.cut()
    try:
        await hold()
    finally:
        await site.proxy.heal()


async def restarted(site: Site, hold_s: float, hold: Hold) -> None:
    site.redis.kill()
    try:
        await hold()
    finally:
        await site.redis.restart()


REDIS_FAULTS = {
    "connections-killed": RedisFault(connections_killed),
    "paused": RedisFault(paused),
    "frozen": RedisFault(frozen),
    "black-holed": RedisFault(black_holed, hits=(1,)),
    "cut-off": RedisFault(cut_off, hits=(1,)),
    "restarted": RedisFault(restarted),
}


@pytest.mark.parametrize("name", [name for name in REDIS_FAULTS if name != "cut-off"])
async def test_p7_p10_whatever_happens_to_redis(site: Site, name: str) -> None:
    """During the fault and after it every event is everywhere in time, once, in order; then the
    bus carries them again; and the logs tell of it once."""
    await survives(site, REDIS_FAULTS[name], hold_s=0)


@pytest.mark.faults
async def test_p7_p10_whatever_happens_to_redis_again_and_again(site: Site) -> None:
    """Ten seconds each."""
    rng = random.Random(SEED)
    faults = [*REDIS_FAULTS.items()] * ROUNDS
    rng.shuffle(faults)
    for number, (name, fault) in enumerate(faults):
        try:
            await survives(site, fault, LONG_S)
        except BaseException as error:
            error.add_note(f"STORM_SEED={SEED}, fault {number}: {name}")
            raise


async def survives(site: Site, fault: RedisFault, hold_s: float) -> None:
    token = site.cluster.token(f"user-{next(_numbers)}")
    logged = [len(node.log()) for node in site.nodes]

    def said(at: int) -> list[str]:
        """What was worth a warning on that node, in order."""
        lines = site.nodes[at].log()[logged[at] :]
        return [line["event"] for line in lines if line["level"] not in ("debug", "info")]

    async with AsyncExitStack() as stack:
        pair = [await stack.enter_async_context(connect(node.url, token)) for node in site.nodes]
        flows = [await Flow.begin(pair[0], pair[1]), await Flow.begin(pair[1], pair[0])]

        async def flow_on() -> None:
            due = [len(flow.settled_s) + 15 for flow in flows]
            await until(
                lambda: all(len(f.settled_s) > n for f, n in zip(flows, due, strict=True)), FLOW_S
            )

        async def hold() -> None:
            begun_s = time.monotonic()
            await until(lambda: all(said(at) for at in fault.hits), NOTICED_S)
            await flow_on()
            if fault.strike is not connections_killed:  # long over
                await asyncio.sleep(max(0, begun_s + hold_s - time.monotonic()))

        enough = asyncio.Event()
        async with asyncio.TaskGroup() as writing:
            for flow in flows:
                writing.create_task(flow.run(enough))
            await flow_on()
            await fault.strike(site, hold_s, hold)
            await until(lambda: all(len(said(at)) >= 2 for at in fault.hits), BACK_S)
            await all_say(site.nodes, token, "ok")
            await flow_on()
            enough.set()
        for flow in flows:
            lags_s = await flow.lags_s()
            assert median(lags_s) < P7_S
            assert max(lags_s) < P7_S + BUSY_S
            # Both nodes listen again, each once, and what they hear arrives at once.
            await site.until_heard(flow.budget_id, 2)
            assert await flow.lag_s() < AT_ONCE_S

    for at in range(2):
        assert said(at) == (["bus lost", "bus back"] if at in fault.hits else [])


async def test_p8_a_budget_that_was_left_is_not_listened_to(site: Site) -> None:
    """However fast it was left: both frames are read in one piece."""
    budget_id, other_id = new_id(), new_id()
    async with connect(site.nodes[0].url, site.cluster.token("ada")) as device:
        await device.accepted(budget_create(budget_id), budget_create(other_id))
        await device.subscribe(budget_id)
        await site.until_heard(budget_id, 1)
        await device.unsubscribe(budget_id)
        await site.until_heard(budget_id, 0)
        texts = [
            b'{"type":"%b","budgetId":"%b"}' % (kind, budget_id.encode())
            for kind in (b"subscribe", b"unsubscribe")
        ]
        device.socket.transport.write(
            b"".join(frames.Frame(frames.Opcode.TEXT, t).serialize(mask=True) for t in texts)
        )
        # Subscribed after it, on the same connection to Redis; so Redis has heard of the first.
        await device.subscribe(other_id)
        await site.until_heard(other_id, 1)
        await site.until_heard(budget_id, 0)


# Postgres


@pytest.fixture(scope="module")
def away_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FragilePostgres]:
    postgres = FragilePostgres(tmp_path_factory.mktemp("away"))
    yield postgres
    postgres.close()


@pytest.fixture
async def away_cluster(
    away_postgres: FragilePostgres, site: Site, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """No node yet, on a Postgres that goes away. At the end no log may hold a defect."""
    url = await migrated(away_postgres.url, f"faults_{next(_numbers)}")
    async with checked(Cluster(tmp_path, url, site.redis.url)) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("away_s", "rounds"),
    [
        pytest.param(AWAY_S, 1, id="for-a-moment"),
        pytest.param(LONG_S, ROUNDS, marks=pytest.mark.faults, id="for-long"),
    ],
)
async def test_p1_p10_postgres_stopped_and_back(
    away_s: float, rounds: int, away_cluster: Cluster, away_postgres: FragilePostgres
) -> None:
    """Sockets stay open, nobody is told anything false, `/readyz` says 503; afterwards everything
    acknowledged is in the log, and at every device."""
    budget_id, token = new_id(), away_cluster.token("ada")
    nodes = await away_cluster.start_some(2)
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(connect(node.url, token)) for node in nodes * 3]
        await devices[0].accepted(budget_create(budget_id))
        for device in devices:
            await device.subscribe(budget_id)
        writers = [Outbox(device, budget_id) for device in devices[:4]]
        enough = asyncio.Event()

        def acknowledged() -> int:
            return sum(len(writer.sequences) for writer in writers)

        async def more(events: int) -> None:
            due = acknowledged() + events
            await until(lambda: acknowledged() >= due, FLOW_S)

        async with asyncio.TaskGroup() as writing:
            for writer in writers:
                writing.create_task(writer.run(enough))
            for _ in range(rounds):
                await more(40)
                await away_postgres.stop()
                stopped_s = time.monotonic()
                try:
                    await ready(nodes, 503)
                    for device in devices:  # verdicts under way have come before the answers
                        await device.ping()
                    known = acknowledged()
                    with pytest.raises(Refused) as refused:
                        await devices[-1].subscribe(new_id())
                    assert (refused.value.code, refused.value.error["retryable"]) == (
                        "UNAVAILABLE",
                        True,
                    )
                    await asyncio.sleep(stopped_s + away_s - time.monotonic())
                    for device in devices:
                        await device.ping()
                    assert acknowledged() == known
                    await ready(nodes, 503)
                finally:
                    await away_postgres.start()
                await ready(nodes, 200)
                await more(40)
            enough.set()

        refusals = [refusal for writer in writers for refusal in writer.refusals]
        assert {refusal["message"] for refusal in refusals} <= {"UNAVAILABLE"}
        assert refusals or away_s < STORAGE_TIMEOUTS.settle_s  # nobody waits for ever
        head = 1 + acknowledged()
        streams = [await device.reached(budget_id, head) for device in devices]
        log = await log_of(away_cluster, budget_id)
        assert [sequence for sequence, _ in log] == list(range(1, head + 1))
        by_id = {event_id: sequence for sequence, event_id in log}
        for writer in writers:
            assert writer.sequences.items() <= by_id.items()
        for stream in streams:
            assert [e.body["eventId"] for e in stream.events] == [event_id for _, event_id in log]
        assert all(device.closed is None for device in devices)


async def test_p10_one_node_without_postgres(site: Site) -> None:
    """Its devices still hear of what the other commits, and their own events wait for it."""
    token = site.cluster.token("ada")
    budget_id = new_id()
    async with Proxy(site.cluster.database_url) as proxy:
        lonely = await site.cluster.start(DATABASE_URL=proxy.url, REDIS_URL=site.redis.url)
        async with connect(site.nodes[0].url, token) as well, connect(lonely.url, token) as cut:
            await well.accepted(budget_create(budget_id))
            await cut.subscribe(budget_id)
            await site.until_heard(budget_id, 1)
            await proxy.cut()
            await ready([lonely], 503)
            await ready(site.nodes, 200)
            waiting = await cut.post([expense_add(budget_id)])
            for sequence in range(2, 7):
                await well.accepted(expense_add(budget_id))
                await cut.reached(budget_id, sequence)
            await proxy.heal()
            [verdict] = await cut.verdicts(waiting, FLOW_S)
            assert (verdict["status"], verdict["sequence"]) == ("accepted", 7)
            await cut.reached(budget_id, 7)
            assert "duplicate" not in verdict
        await lonely.stop()


async def ready(nodes: Sequence[Node], status: int) -> None:
    """Wait until each node's `/readyz` says that; nothing else than 200 and 503."""
    for node in nodes:
        async with node.rest() as rest, asyncio.timeout(REST_S):
            while True:
                response = await rest.get("/readyz")
                assert response.status_code in (200, 503)
                assert response.json()["postgres"] is (response.status_code == 200)
                if response.status_code == status:
                    break
                await asyncio.sleep(POLL_S)


async def log_of(cluster: Cluster, budget_id: str) -> list[tuple[int, str]]:
    """Sequence and event of each row, in order."""
    connection = await asyncpg.connect(cluster.database_url)
    try:
        rows = await connection.fetch(
            "SELECT sequence, event_id::text FROM accepted_events"
            " WHERE budget_id = $1 ORDER BY sequence",
            budget_id,
        )
    finally:
        await connection.close()
    return [(row[0], row[1]) for row in rows]


# Who may not read any more


class Crowd(NamedTuple):
    """Fifty devices on both nodes, and one budget that all of them follow."""

    site: Site
    budget_id: str
    owner: str
    guest: str
    of_owner: list[Device]
    of_guest: list[Device]


@pytest.fixture
async def crowd(site: Site) -> AsyncIterator[Crowd]:
    budget_id, number = new_id(), next(_numbers)
    owner, guest = f"owner-{number}", f"guest-{number}"
    async with AsyncExitStack() as stack:

        async def devices(user_id: str, each: int) -> list[Device]:
            token = site.cluster.token(user_id)
            urls = [node.url for node in site.nodes] * each
            return [await stack.enter_async_context(connect(url, token)) for url in urls]

        of_owner, of_guest = await devices(owner, 17), await devices(guest, 8)
        await of_owner[0].accepted(budget_create(budget_id))
        async with site.nodes[1].rest(site.cluster.token(guest)) as rest:
            response = await rest.post(f"/budgets/{budget_id}/join")
            assert response.status_code == 200, response.text
        for device in (*of_owner, *of_guest):
            await device.subscribe(budget_id)
        yield Crowd(site, budget_id, owner, guest, of_owner, of_guest)


@pytest.mark.parametrize("bus", ["with-bus", "without-bus"])
async def test_p9_removed_while_fifty_devices_are_live(crowd: Crowd, bus: str) -> None:
    """Everywhere, and nothing that comes after it is told; also where the bus says nothing."""
    site, budget_id = crowd.site, crowd.budget_id
    enough = asyncio.Event()
    # Both on the first node: the other commits nothing that would tell it what it has missed.
    writers = [Outbox(device, budget_id) for device in crowd.of_owner[:4:2]]
    async with asyncio.TaskGroup() as writing:
        for writer in writers:
            writing.create_task(writer.run(enough))
        await until(lambda: all(len(w.sequences) > 10 for w in writers), FLOW_S)
        if bus == "without-bus":
            site.proxy.black_hole()  # the second node notices nothing for a while
        try:
            async with site.nodes[0].rest(site.cluster.token(crowd.owner)) as rest:
                path = f"/budgets/{budget_id}/participants/{crowd.guest}"
                response = await rest.delete(path)
            removed_s = time.monotonic()
            assert response.status_code == 200, response.text
            due = [len(writer.sequences) + 20 for writer in writers]
            for device in crowd.of_guest:
                await until_ended(device)
            for device in crowd.of_guest:
                with pytest.raises(Refused, match="NOT_PARTICIPANT"):
                    await device.subscribe(budget_id)
            await until(
                lambda: all(len(w.sequences) > n for w, n in zip(writers, due, strict=True)), FLOW_S
            )
        finally:
            await site.proxy.heal()
        enough.set()
    head = 2 + 1 + sum(len(writer.sequences) for writer in writers)
    streams = [await device.reached(budget_id, head) for device in crowd.of_owner]
    first = [event.raw for event in streams[0].events]
    assert all([event.raw for event in stream.events] == first for stream in streams)
    [removal] = [
        event.body for event in streams[0].events if event.body["eventType"] == "participant.remove"
    ]
    assert removal["recordId"] == crowd.guest
    assert removal["sequence"] < head - 20
    for device in crowd.of_guest:
        [end] = [frame for frame in device.frames if frame.body["type"] == "unsubscribed"]
        assert end.body == {
            "type": "unsubscribed",
            "budgetId": budget_id,
            "code": "NOT_PARTICIPANT",
        }
        assert end.at_s - removed_s < P7_S + BUSY_S
        assert device.streams[budget_id].cursor <= removal["sequence"]
        later = device.frames[device.frames.index(end) + 1 :]
        assert {frame.body["type"] for frame in later} <= {"error", "heads"}
        await device.ping()  # the socket itself stays


async def test_p9_p2_deleted_while_fifty_devices_are_live(crowd: Crowd) -> None:
    """Everybody has the log up to the end, and then is told that it is one."""
    budget_id = crowd.budget_id
    writer = crowd.of_owner[1]
    posted = [
        await writer.post([expense_add(budget_id) for _ in range(10)], "each") for _ in range(5)
    ]
    delete: Json = {**expense_add(budget_id), "eventType": "budget.delete", "version": 1}
    [deleted] = await crowd.of_owner[0].accepted(delete)
    deleted_s = time.monotonic()
    verdicts = [v for request_id in posted for v in await writer.verdicts(request_id)]
    for device in (*crowd.of_owner, *crowd.of_guest):
        stream = await device.reached(budget_id, deleted["sequence"])
        await until_ended(device)
        assert stream.events[-1].body["eventType"] == "budget.delete"
        assert stream.cursor == deleted["sequence"] == stream.events[-1].body["sequence"]
        [end] = [frame for frame in device.frames if frame.body["type"] == "unsubscribed"]
        assert end.body == {"type": "unsubscribed", "budgetId": budget_id, "code": "BUDGET_DELETED"}
        assert end.at_s - deleted_s < P7_S + BUSY_S
    accepted = sum(verdict["status"] == "accepted" for verdict in verdicts)
    assert deleted["sequence"] == 2 + accepted + 1
    late = [v["error"]["message"] for v in verdicts if v["status"] != "accepted"]
    assert set(late) <= {"BUDGET_NOT_EXISTS"}


async def until_ended(device: Device) -> None:
    """Wait until the hub has ended its subscription."""
    await device.wait_for(lambda: bool(device.of_type("unsubscribed")))
