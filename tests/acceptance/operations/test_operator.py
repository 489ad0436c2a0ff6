"""A day of an operator: one cluster as the compose file makes it, and all that goes wrong with it.

Two hubs, Postgres and Redis, and in front the balancer that devices know. They write and read
through it all the time, while the version is replaced, Redis is killed, a hub goes deaf, Postgres'
disk is full, and in the end the database is lost and restored from a dump. Each time the alerts
say so, those and no other; the runbook has an entry for each that names this cause; when it is
over they are silent again. The checker judges everything that devices were ever told: what was
acknowledged is there, once and in order.

The alerts look at minutes, and the story is told in one. So Prometheus scrapes as fast as `Pace`
says and believes that a quarter of a minute has passed each time, as much as in the setup that is
recommended; while a hub is replaced, which takes as long as ever, it looks once. Rates are smaller
told this way: what fires here does so in earnest. Shares are larger: a tenth of a second in which
this machine did something else, or a hub was just started, is some seconds of the story. So the two
alerts that look at shares, `BudgetHubDeliverySlow` and `BudgetHubSweeperBeatsBus`, may fire at any
time here, and end when the machine is quiet; they are held against the hubs where nothing is wrong
with the bus in the long form only, which is in real time (`make faults`).
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence, Set as AbstractSet
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from loadtest.cluster import FragileRedis, Port
from loadtest.history import History
from loadtest.proxy import Proxy
from storage.embedded.postgres import EmbeddedPostgres
from tests import ROOT
from tests.acceptance.operations.test_restore import Phone, command, postgres_program
from tests.acceptance.operations.test_upgrade import ran
from tests.alerting import EVERY_S, Prometheus, runbook
from tests.balancer import Balancer
from tests.cluster import Cluster, Node, all_say, checked, token, until
from tests.conftest import with_database
from tests.device import Device, Json, budget_create, connect, expense_add, new_id
from tests.full_disk import full_disk
from tests.postgres import start as start_postgres
from tests.predecessor import Unknown, check_out
from tests.storm import (
    CONNECTION_LOST,
    LOST,
    NO_RATE_LIMITS,
    PROGRESS_S,
    READ_HEADS,
    SILENCE_S,
    Observer,
    Writer,
    check,
    take,
)
from tests.troubles import scraped

USER = "ada"
BUDGETS, WRITERS, OBSERVERS = 4, 6, 4
SOME = 40  # events
STOP_S = 25.0  # the longest for a hub that drains, on a busy machine
LONGEST_S = 300  # the longest range of an alert
LOOKS_MAX = 120  # half an hour of the story, within which an alert has to come, or to go
RESTART = 1012

DEAF, SLOW, SWEPT = "BudgetHubNodeDeaf", "BudgetHubDeliverySlow", "BudgetHubSweeperBeatsBus"
FIRST, SECOND = "hub-1:8000", "hub-2:8000"
BOTH = {FIRST, SECOND}
COMMITS, UNREADABLE, DOWN = "BudgetHubCommitErrors", "BudgetHubLogUnreadable", "BudgetHubDown"


class Pace(NamedTuple):
    """Seconds between two looks of Prometheus: while nothing is wrong; where something is; where
    that shows in failures once a second, of which the alert wants some; and when it is over. And
    between two rounds of a writer."""

    well_s: float
    wrong_s: float
    failing_s: float
    over_s: float
    writer_s: float
    real: bool


IN_A_MINUTE = Pace(0.1, 0.4, 1.2, 0.05, 0.3, real=False)
IN_REAL_TIME = Pace(EVERY_S, EVERY_S, EVERY_S, EVERY_S, 4.0, real=True)


@pytest.mark.parametrize(
    "pace",
    [
        pytest.param(IN_A_MINUTE, id="in-a-minute", marks=pytest.mark.timeout(600)),
        pytest.param(
            IN_REAL_TIME, id="in-real-time", marks=[pytest.mark.faults, pytest.mark.timeout(7200)]
        ),
    ],
)
async def test_an_operator_is_told_what_happens_and_nothing_acknowledged_is_lost(
    pace: Pace, tmp_path: Path
) -> None:
    """P1 to P7, P10, P11."""
    async with site(pace, tmp_path, predecessor(tmp_path)) as here:
        await here.well()
        await a_new_version_is_deployed(here)
        await redis_is_killed(here)
        await a_hub_goes_deaf(here)
        await the_disk_is_full(here)
        await the_database_is_lost(here)


async def a_new_version_is_deployed(here: "Site") -> None:
    """As `infra/containers/deploy` does: migrations, then hub after hub. Nobody is told anything,
    for nothing is wrong."""
    await ran(here.cluster, "migrate", ["migrate"], {})
    for number in range(2):
        assert await stopped(here.nodes[number]) == 0
        await until(lambda n=number: n not in here.balancer.ready, STOP_S)  # type: ignore[misc]
        await here.look(0, ())
        await here.start(number)
        await here.devices.progress(SOME)
    await here.deal_out()
    await here.well()


async def redis_is_killed(here: "Site") -> None:
    """Both hubs are deaf, and devices get everything from the log. That may be slow or not: where
    somebody writes to a budget through both, each commit shows a hub what it has missed."""
    await asyncio.to_thread(here.redis.kill)
    await here.told(here.pace.wrong_s, {DEAF: BOTH}, among=[SLOW])
    explained(DEAF, "If all workers are deaf, it is Redis", "Redis is down", "Bring Redis back")
    explained(SLOW, "If [BudgetHubNodeDeaf](#budgethubnodedeaf)")
    await here.redis.restart()
    await all_say(here.nodes, token(USER), "ok")
    until_s = here.prometheus.at_s + LONGEST_S
    while here.prometheus.at_s < until_s:
        # What the log had to bring meanwhile is held against nobody.
        assert SWEPT not in await here.look(here.pace.over_s, (DEAF, SLOW))
    await here.over(DEAF, SLOW)


async def a_hub_goes_deaf(here: "Site") -> None:
    """The second one's connections to Redis stay, and nothing passes."""
    here.buses[1].black_hole()
    told = await here.told(here.pace.wrong_s, {DEAF: {SECOND}, SWEPT: {FIRST}}, among=[SLOW])
    assert told[DEAF] == {SECOND}
    explained(DEAF, "if one is, it is that machine's way to it", "a firewall drops packets")
    explained(SWEPT, "that one could not send its events")
    await here.buses[1].heal()
    await here.over(DEAF, SLOW, SWEPT)


async def the_disk_is_full(here: "Site") -> None:
    """Whoever writes is told to try again, whoever reads notices nothing, and when there is room
    again the hubs go on as they are."""
    async with connect(here.balancer.url, token(USER)) as phone:
        budget_id = new_id()  # in which nobody else's events wait before its own
        here.budgets.append(budget_id)
        assert (await here.submitted(phone, budget_create(budget_id)))["status"] == "accepted"
        async with full_disk(here.cluster.database_url):
            event, _ = await asyncio.gather(
                here.refused(phone, budget_id), here.told(here.pace.failing_s, {COMMITS: BOTH})
            )
            for node in here.nodes:
                await reads(node, budget_id)
        explained(COMMITS, "`/readyz` 200", "could not extend file", "Disk full: free or add space")
        given_up = [line for node in here.nodes for line in node.log() if is_given_up(line)]
        assert any("could not extend file" in line["error"] for line in given_up)
        while (await here.submitted(phone, event))["status"] != "accepted":
            pass  # it takes its time, and says to try again
        await here.devices.progress(SOME)
        take(here.devices.history, "phone", phone, USER)
    await here.over(COMMITS)
    for cause in ("bad data", "defect"):  # no event was blamed for it
        assert await here.counted("budget_hub_commit_failures_total", cause=cause) == [0, 0]


async def the_database_is_lost(here: "Site") -> None:
    """A dump was taken while devices wrote, and they wrote on. The operator does what
    infra/README.md says; what came after the dump is gone, by design, on the devices too."""
    url, devices, dump = here.cluster.database_url, here.devices, here.cluster.folder / "hub.dump"
    dumped_s = time.monotonic()
    await postgres_program("pg_dump", "--format=custom", f"--file={dump}", url)
    await devices.progress(SOME)
    await devices.finish(url)
    await check(devices.history, here.cluster, here.nodes, {USER: here.budgets})
    assert list(devices.history.refusals()) == []
    phones = [Phone(token(USER), budget_id) for budget_id in devices.budgets]
    for phone in phones:
        await phone.sync(here.nodes[0])
    known = {phone.replica.budget_id: phone.replica.sequence for phone in phones}

    history = until_then(devices.history, dumped_s)
    with_something_unsent = [
        Stubborn(here.balancer.url, budget_id, history) for budget_id in devices.budgets
    ]
    async with asyncio.TaskGroup() as tasks:
        for stubborn in with_something_unsent:
            tasks.create_task(stubborn.run())
        for stubborn in with_something_unsent:
            await stubborn.connected.wait()
        admin = await asyncpg.connect(with_database(url, "postgres"))
        await admin.execute("DROP DATABASE budget_hub WITH (FORCE)")
        for stubborn in with_something_unsent:
            stubborn.begin.set()
        await here.told(here.pace.failing_s, {COMMITS: BOTH, UNREADABLE: BOTH})
        explained(COMMITS, 'database "…" does not exist', "README.md#backup-and-restore")
        explained(UNREADABLE, "BudgetHubCommitErrors")

        assert await asyncio.gather(*map(stopped, here.nodes)) == [0, 0]
        await admin.execute("CREATE DATABASE budget_hub")
        await admin.close()
        await postgres_program("pg_restore", "--exit-on-error", f"--dbname={url}", str(dump))
        restored = await heads(url)
        assert any(restored[budget_id] < head for budget_id, head in known.items())  # it is tried
        for step in ("verify", "new-log-id"):
            code, said = await command(url, step)
            assert code == 0, said
        await here.told(here.pace.well_s, {DOWN: BOTH}, among=(COMMITS, UNREADABLE))
        explained(DOWN, "stopped it on purpose", "a restore")
        await asyncio.gather(here.start(0), here.start(1))

    here.devices = again = Devices(
        here.balancer.url, devices.budgets, "after the restore", history, here.pace.writer_s
    )
    try:
        await again.begin()
        await again.progress(SOME)
        await here.over(COMMITS, UNREADABLE, DOWN)
        await again.finish(url)
    finally:
        await again.close()
    for phone in phones:
        await phone.sync(here.nodes[1])
        assert phone.snapshots == 1
        replica = phone.replica
        history.replica("phone", replica.budget_id, replica.sequence, replica.digest_text)
    await check(history, here.cluster, here.nodes, {USER: here.budgets})
    assert list(history.refusals()) == []
    code, said = await command(url, "verify")
    assert (code, f"{len(here.budgets)} budgets" in said, "0 differences" in said) == (
        0,
        True,
        True,
    ), said


# The cluster


class Devices:
    """All the user's devices that write and watch, at one address."""

    def __init__(
        self, url: str, budgets: Sequence[str], life: str, history: History, pause_s: float
    ) -> None:
        rng = random.Random(f"{budgets} {life}")
        self._url = url
        self.budgets = budgets
        self.history = history
        self._writers = [
            Writer(
                USER,
                budgets,
                self,
                0,
                history,
                random.Random(rng.random()),
                pause_s=pause_s,
                ends=(CONNECTION_LOST, RESTART),
            )
            for _ in range(WRITERS)
        ]
        self._observers = [
            Observer(
                f"observer {number} {life}",
                USER,
                budgets,
                self,
                0,
                history,
                random.Random(rng.random()),
                restless=50 if number % 2 else None,
            )
            for number in range(OBSERVERS)
        ]
        self._enough = asyncio.Event()
        self._writing: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []

    def url(self, slot: int) -> str:
        return self._url

    async def make_budgets(self) -> None:
        await self._writers[0].begin()

    async def begin(self) -> None:
        self._watching = [asyncio.create_task(each.run()) for each in self._observers]
        self._writing = [asyncio.create_task(each.run(self._enough)) for each in self._writers]

    def check(self) -> None:
        """Raise what ended one of them."""
        for task in (*self._writing, *self._watching):
            if task.done():
                task.result()

    async def progress(self, events: int) -> None:
        """Until so many more have their final verdict."""

        def settled() -> int:
            self.check()
            return sum(writer.settled for writer in self._writers)

        due = settled() + events
        await until(lambda: settled() >= due, PROGRESS_S)

    async def finish(self, database_url: str) -> None:
        """Until everything is settled, and everybody has seen it."""
        self._enough.set()
        await until(lambda: all(task.done() for task in self._writing), PROGRESS_S)
        last = await heads(database_url)
        await until(lambda: all(each.has(last) for each in self._observers), PROGRESS_S)
        self.check()
        await self.close()

    async def close(self) -> None:
        tasks = [*self._writing, *self._watching]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writing, self._watching = [], []


class Stubborn:
    """A device that has something to say when nobody can take it, keeps it, and says it again to
    every hub it comes to, until one does."""

    def __init__(self, url: str, budget_id: str, history: History) -> None:
        self._url = url
        self._event = expense_add(budget_id, note="kept")
        self._history = history
        self.connected = asyncio.Event()
        self.begin = asyncio.Event()

    async def run(self) -> None:
        while True:
            try:
                async with connect(self._url, token(USER)) as device:
                    try:
                        if await self._said(device):
                            return
                    finally:
                        for frame in device.frames:
                            for verdict in frame.body.get("results", ()):
                                self._history.answered(verdict, frame.at_s)
            except LOST:
                await asyncio.sleep(0.1)

    async def _said(self, device: Device) -> bool:
        if not self.connected.is_set():
            await device.subscribe(self._event["budgetId"])
            self.connected.set()
            await self.begin.wait()
        self._history.submitted(USER, self._event, time.monotonic())
        [verdict] = await device.submit([self._event], timeout_s=SILENCE_S)
        if verdict["status"] == "accepted":
            return True
        assert verdict["error"]["message"] == "UNAVAILABLE", verdict
        await device.until_closed(PROGRESS_S)
        return False


class Site:
    """What the operator has to look after."""

    def __init__(
        self,
        pace: Pace,
        cluster: Cluster,
        postgres: EmbeddedPostgres,
        redis: FragileRedis,
        buses: Sequence[Proxy],
        ports: Sequence[Port],
    ) -> None:
        self.pace = pace
        self.cluster = cluster
        self.postgres = postgres
        self.redis = redis
        self.buses = buses
        self._ports = ports
        self.balancer = Balancer([f"http://127.0.0.1:{port.number}" for port in ports])
        self._excused = frozenset(() if pace.real else (SLOW, SWEPT))
        self._places: dict[int, Node] = {}
        self.prometheus = Prometheus(lambda: self.nodes)
        self.budgets = [new_id() for _ in range(BUDGETS)]
        self.devices = Devices(
            self.balancer.url, [*self.budgets], "before", History(), pace.writer_s
        )

    @property
    def nodes(self) -> list[Node]:
        return [node for _, node in sorted(self._places.items())]

    async def start(self, number: int, **environ: str) -> None:
        """A hub in this place, until it gets connections."""
        node = await self.cluster.start(
            PORT=str(self._ports[number].number),
            REDIS_URL=self.buses[number].url,
            **NO_RATE_LIMITS,
            **environ,
        )
        self._places[number] = node
        await all_say([node], token(USER), "ok")
        await until(lambda: number in self.balancer.ready, STOP_S)

    async def deal_out(self) -> None:
        """The devices over the hubs, until some write on each: after a deploy all are where there
        was a hub first."""
        async with asyncio.timeout(PROGRESS_S):
            while True:
                await self.balancer.cut()
                await self.balancer.heal()
                await self.devices.progress(SOME)
                before = await self.counted("budget_hub_fed_events_total", source="commit")
                await self.devices.progress(SOME)
                after = await self.counted("budget_hub_fed_events_total", source="commit")
                if all(now > then for then, now in zip(before, after, strict=True)):
                    return

    async def counted(self, name: str, **labels: str) -> list[float]:
        """A counter of each hub."""
        wanted = {"__name__": name, **labels}.items()
        counts = []
        for node in self.nodes:
            async with node.rest() as rest:
                samples = scraped((await rest.get("/metrics")).text, "")
            counts.append(sum(n for key, n in samples.items() if wanted <= dict(key).items()))
        return counts

    # What Prometheus says

    async def look(self, pause_s: float, among: Sequence[str]) -> dict[str, set[str]]:
        """The alerts that fire now, with whose they are; these may."""
        due_s = time.monotonic() + pause_s
        firing = await self.prometheus.look()
        self.devices.check()
        assert firing.keys() <= self._excused | set(among), (firing, among)
        await asyncio.sleep(max(due_s - time.monotonic(), 0))
        return firing

    async def well(self) -> None:
        """For three minutes no alert fires."""
        for _ in range(12):
            await self.look(self.pace.well_s, ())

    async def told(
        self, pause_s: float, wanted: Mapping[str, AbstractSet[str]], among: Sequence[str] = ()
    ) -> dict[str, set[str]]:
        """Until each of these alerts has fired for these hubs, and meanwhile no other, but for
        those `among` them: what has fired."""
        fired: dict[str, set[str]] = {}
        for _ in range(LOOKS_MAX):
            for name, hubs in (await self.look(pause_s, (*wanted, *among))).items():
                fired.setdefault(name, set()).update(hubs)
            if all(hubs <= fired.get(name, set()) for name, hubs in wanted.items()):
                return fired
        raise AssertionError(f"only {fired} of {wanted}")

    async def over(self, *names: str) -> None:
        """Until none fires any more; meanwhile these may."""
        await all_say(self.nodes, token(USER), "ok")
        for _ in range(LOOKS_MAX):
            firing = await self.look(self.pace.over_s, names)
            if firing.keys() <= self._excused:
                return
        raise AssertionError(f"{firing} does not end")

    # What one device says

    async def submitted(self, phone: Device, event: Json) -> Json:
        self.devices.history.submitted(USER, event, time.monotonic())
        [verdict] = await phone.submit([event], timeout_s=SILENCE_S)
        return verdict

    async def refused(self, phone: Device, budget_id: str) -> Json:
        """The first of its events that is not accepted, for lack of room."""
        while True:
            event = expense_add(budget_id)
            verdict = await self.submitted(phone, event)
            if verdict["status"] != "accepted":
                error = verdict["error"]
                assert (error["message"], error["retryable"]) == ("UNAVAILABLE", True)
                return event


@asynccontextmanager
async def site(pace: Pace, folder: Path, old: dict[str, str]) -> AsyncIterator[Site]:
    """Two hubs of the version before this one, at work."""
    async with AsyncExitStack() as stack:
        postgres = await asyncio.to_thread(start_postgres, folder, settings={"autovacuum": "off"})
        stack.callback(postgres.stop)
        redis = FragileRedis(folder)
        stack.callback(redis.close)
        buses = [await stack.enter_async_context(Proxy(redis.url)) for _ in range(2)]
        ports = [Port() for _ in range(2)]
        for port in ports:
            stack.callback(port.close)
        cluster = await stack.enter_async_context(checked(Cluster(folder, postgres.url, redis.url)))
        await ran(cluster, "old-migrate", ["migrate"], old)
        here = Site(pace, cluster, postgres, redis, buses, ports)
        await stack.enter_async_context(here.balancer)
        await asyncio.gather(*(here.start(number, **old) for number in range(2)))
        await here.devices.make_budgets()
        stack.push_async_callback(here.devices.close)
        await here.devices.begin()
        yield here


def predecessor(folder: Path) -> dict[str, str]:
    """What makes a hub one of the version before this one; where that is not known, or cannot run
    beside this one, the deploy is of this version over itself."""
    try:
        found = check_out(ROOT, folder / "predecessor")
    except Unknown:
        return {}
    return found.environ() if found.rolls else {}


async def heads(database_url: str) -> dict[str, int]:
    """How long each budget's log is."""
    connection = await asyncpg.connect(database_url)
    try:
        return {row[0]: row[1] for row in await connection.fetch(READ_HEADS)}
    finally:
        await connection.close()


async def stopped(node: Node) -> int:
    node.signal(signal.SIGTERM)
    return await node.ended(STOP_S)


async def reads(node: Node, budget_id: str) -> None:
    """A snapshot, the log, a subscription: all as ever."""
    async with node.rest(token(USER)) as rest:
        for path in ("/readyz", f"/budgets/{budget_id}", f"/events?budgetId={budget_id}&wait=0"):
            answer = await rest.get(path)
            assert answer.status_code == 200, answer.text
    async with connect(node.url, token(USER)) as device:
        stream = await device.subscribe(budget_id)
        await device.reached(budget_id, stream.head)


def is_given_up(line: Json) -> bool:
    """The line of the log that the runbook names."""
    event: str = line["event"]
    return event == "commit given up"


def explained(alert: str, *causes: str) -> None:
    """The runbook's entry has these words."""
    entry = " ".join(runbook()[alert].split())
    for cause in causes:
        assert cause in entry, (alert, cause)


def until_then(history: History, at_s: float) -> History:
    """What devices had sent, and what they had been told by then."""
    past = History()
    for sent in history.sent.values():
        for sent_s in sent.at_s:
            past.submitted(sent.user_id, sent.event, sent_s)
        for told_s, verdict in sent.verdicts:
            if told_s < at_s:
                past.answered(verdict, told_s)
    return past
