"""A storm: devices write and watch while hubs and Postgres are killed; then the history is checked.

Two hub processes, in two *slots*; a slot's process that was killed is replaced by another on a port
of its own. `Writer`s keep an outbox, as a phone does: after every lost connection they send it
again, in order, to whichever hub is there, until each event has its final verdict. `Observer`s
follow the budgets from both slots and resume at their cursors. The plan's seed decides which faults
come, in which order and after how much was written, and what each writer does next; only how the
processes interleave is left to the machine.
"""

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from typing import Literal, NamedTuple, Protocol, Self
from uuid import UUID

import asyncpg
import orjson
from websockets.exceptions import InvalidHandshake

from loadtest.checker import Figures, Violation, check as check_history
from loadtest.cluster import FragilePostgres
from loadtest.history import History
from tests.cluster import Cluster, Node, Process, token, until
from tests.device import (
    Broken,
    Device,
    Ended,
    Json,
    Refused,
    budget_create,
    category_add,
    connect,
    expense_add,
    expense_edit,
)

FRAME_EVENTS_MAX = 50
SHARED = 2  # expenses of each budget that everybody edits
OUTBOX_MAX = 8
TRIES_MAX = 4  # how often a writer takes up an edit that met a conflict
NO_RATE_LIMITS = {"EVENTS_PER_S_CONNECTION": "1000000", "EVENTS_PER_S_USER": "1000000"}
FREEZE_S_MAX = 6.0  # longer than Postgres lets a transaction idle
AWAY_S = 0.15  # how long a restless observer stays away, about
# From submitting to the verdict, a restart of Postgres and a busy machine included. A hub that says
# nothing for as long, on a connection that stands, breaks P4.
SILENCE_S = 40.0
PROGRESS_S = 60.0  # within which the next part of the load must be settled

CONNECTION_LOST = 1006  # without a close frame: a storm ends no session in order
# How a connection to a hub may fail, or end.
LOST = (Ended, InvalidHandshake, OSError, TimeoutError)

# What is left to chance is so by the same chance in every run, but in `make faults`, which has
# another one each time and shows it.
SEED = int(os.environ.get("STORM_SEED", "1"))

READ_LOG = """
SELECT budget_id::text, sequence, event_id::text, version, event FROM accepted_events
WHERE budget_id = ANY($1::uuid[]) ORDER BY budget_id, sequence
"""
READ_HEADS = "SELECT id::text, last_sequence FROM budgets"

_log = logging.getLogger(__name__)
_numbers = count(1)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request


class Fault(NamedTuple):
    """What happens to a hub, or to Postgres, after so many settled events more."""

    kind: Literal["kill", "freeze", "crash"]
    slot: int
    after: int
    freeze_s: float


class Plan(NamedTuple):
    """`budgets` and `writers` are numbers for each user. About `calm` events are settled before,
    between and after the faults."""

    seed: int
    users: int = 1
    budgets: int = 1
    writers: int = 10
    calm: int = 100
    kills: int = 0  # of hubs
    freezes: int = 0  # of hubs
    crashes: int = 0  # of Postgres
    # Within which observers must have everything: P7, reconnecting, a busy machine.
    delivery_s: float = 60.0

    def faults(self) -> Iterator[Fault]:
        rng = random.Random(self.seed)
        kinds: list[Literal["kill", "freeze", "crash"]] = ["kill"] * self.kills
        kinds += ["freeze"] * self.freezes
        kinds += ["crash"] * self.crashes
        rng.shuffle(kinds)
        for kind in kinds:
            after = rng.randint(self.calm // 2, self.calm * 3 // 2)
            yield Fault(kind, rng.randrange(2), after, rng.uniform(0.1, FREEZE_S_MAX))


class Hubs(Protocol):
    """Where devices find a hub: what one slot's address is now."""

    def url(self, slot: int) -> str: ...


class Fleet:
    """Two slots for hubs; None while a slot's hub is being replaced."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.slots: list[Node | None] = [None, None]

    async def start(self) -> Self:
        self.slots = list(await asyncio.gather(*(self._start() for _ in self.slots)))
        return self

    async def kill(self, slot: int) -> None:
        """`kill -9`, then another in its place."""
        node, self.slots[slot] = self.slots[slot], None
        assert node is not None
        await node.kill()
        self.slots[slot] = await self._start()

    async def freeze(self, slot: int, freeze_s: float) -> None:
        node = self.slots[slot]
        assert node is not None
        node.pause()
        try:
            await asyncio.sleep(freeze_s)
        finally:
            node.resume()

    async def _start(self) -> Node:
        return await self._cluster.start(**NO_RATE_LIMITS)

    def nodes(self) -> list[Node]:
        return [node for node in self.slots if node is not None]

    def url(self, slot: int) -> str:
        """That of the slot's hub, or of the other while there is none."""
        node = self.slots[slot] or self.slots[1 - slot]
        if node is None:
            raise ConnectionRefusedError("there is no hub")
        return node.url


class Writer:
    """A device that writes to its user's budgets. `settled` counts final verdicts. Its connections
    may end with the codes `ends` and no other."""

    def __init__(
        self,
        user_id: str,
        budgets: Sequence[str],
        fleet: Hubs,
        slot: int,
        history: History,
        rng: random.Random,
        *,
        pause_s: float = 0.1,
        ends: Collection[int] = (CONNECTION_LOST,),
    ) -> None:
        self.settled = 0
        self.reconnected = 0
        self._user_id = user_id
        self._budgets = budgets
        self._fleet = fleet
        self._slot = slot
        self._history = history
        self._rng = rng
        self._pause_s = pause_s
        self._ends = ends
        self._outbox: list[Json] = []
        self._past: list[Json] = []  # some that were accepted, to be sent once more
        self._known: dict[str, tuple[str, int]] = {}  # budget and version, by expense
        self._own: list[str] = []  # expenses that nobody else edits
        self._tries: dict[str, int] = {}  # left, by the eventId of an edit

    async def begin(self) -> None:
        """Make the budgets and their shared expenses."""
        for budget_id in self._budgets:
            shared = (expense_add(budget_id, recordId=_shared(budget_id, n)) for n in range(SHARED))
            self._outbox += [budget_create(budget_id), *shared]
        await self._finish()

    async def end(self) -> None:
        """One more event in each budget, from the writer's own slot, in one frame."""
        self._outbox += [expense_add(budget_id, eventId=self._id()) for budget_id in self._budgets]
        await self._finish()

    async def _finish(self) -> None:
        enough = asyncio.Event()
        enough.set()
        await self.run(enough)

    async def run(self, enough: asyncio.Event) -> None:
        """Write until it is enough, and everything has its verdict."""
        while self._outbox or not enough.is_set():
            try:
                async with connect(self._fleet.url(self._slot), token(self._user_id)) as device:
                    try:
                        await self._write(device, enough)
                    finally:
                        take(self._history, f"writer of {self._user_id}", device, self._user_id)
            except LOST as lost:
                assert not isinstance(lost, Ended) or lost.code in self._ends, lost
                self.reconnected += 1
                self._slot = self._rng.randrange(2)
                await asyncio.sleep(self._rng.uniform(0.01, 0.1))

    async def _write(self, device: Device, enough: asyncio.Event) -> None:
        while self._outbox or not enough.is_set():
            while len(self._outbox) < OUTBOX_MAX and not enough.is_set():
                self._outbox.append(self._next())
            mode = self._rng.choice(("stop", "each"))
            posted = []
            for frame in self._frames():
                now_s = time.monotonic()
                for event in frame:
                    self._history.submitted(self._user_id, event, now_s)
                posted.append((frame, await device.post(frame, mode)))
            for frame, request_id in posted:
                verdicts = await self._verdicts(device, request_id)
                for event, verdict in zip(frame, verdicts, strict=False):  # `stop` leaves some out
                    self._settle(event, verdict)
            await asyncio.sleep(self._rng.uniform(0, 2 * self._pause_s))

    async def _verdicts(self, device: Device, request_id: int) -> list[Json]:
        try:
            return await device.verdicts(request_id, SILENCE_S)
        except TimeoutError:
            raise AssertionError(f"P4: no verdict and no end within {SILENCE_S} s") from None

    def _frames(self) -> Iterator[list[Json]]:
        """The outbox, in order, in frames of many sizes; now and then with what is settled."""
        start = 0
        while start < len(self._outbox):
            size = self._rng.choice((1, 1, 2, 5, FRAME_EVENTS_MAX))
            again = (
                [self._rng.choice(self._past)] if self._past and self._rng.random() < 0.1 else []
            )
            yield again + self._outbox[start : start + size]
            start += size

    def _next(self) -> Json:
        rng = self._rng
        budget_id = rng.choice(self._budgets)
        shared = _shared(budget_id, rng.randrange(SHARED))
        match rng.choice(("shared", "shared", "own", "own", "own", "add", "category")):
            case "category":
                return category_add(budget_id, eventId=self._id(), recordId=self._id())
            case "own" if self._own:
                return self._edit(rng.choice(self._own))
            case "shared":
                self._known.setdefault(shared, (budget_id, 1))
                event = self._edit(shared)
                self._tries[event["eventId"]] = TRIES_MAX
                return event
        amount = f"{rng.randrange(10**6)}.{rng.randrange(100):02}"
        return expense_add(budget_id, eventId=self._id(), recordId=self._id(), amount=amount)

    def _edit(self, expense_id: str) -> Json:
        budget_id, version = self._known[expense_id]
        note = f"{self._rng.getrandbits(32):08x} 🥞"
        return expense_edit(budget_id, expense_id, version, eventId=self._id(), note=note)

    def _settle(self, event: Json, verdict: Json) -> None:
        match verdict["status"]:
            case "accepted":
                if event["eventType"].startswith("expense."):
                    self._learn(verdict["record"])
                if event["eventType"] == "expense.add" and "duplicate" not in verdict:
                    self._own.append(event["recordId"])
                if self._rng.random() < 0.2:
                    self._past = [*self._past[-20:], event]
            case "conflict":
                self._learn(verdict["currentRecord"])
            case "rejected" if verdict["error"]["retryable"]:
                return
        if event not in self._outbox:  # it was sent once more
            return
        at = self._outbox.index(event)
        del self._outbox[at]
        self.settled += 1
        tries = self._tries.pop(event["eventId"], 0)
        if verdict["status"] == "conflict" and tries > 0:
            again = self._edit(event["recordId"])
            self._tries[again["eventId"]] = tries - 1
            self._outbox.insert(at, again)

    def _learn(self, record: Json) -> None:
        _, version = self._known.get(record["id"], ("", 0))
        self._known[record["id"]] = record["budgetId"], max(version, record["version"])

    def _id(self) -> str:
        return _uuid(self._rng)


class Observer:
    """A device that follows its user's budgets from its slot. If it is `restless` it goes away
    after about so many events, misses some, and resumes at its cursors."""

    def __init__(
        self,
        name: str,
        user_id: str,
        budgets: Sequence[str],
        fleet: Hubs,
        slot: int,
        history: History,
        rng: random.Random,
        *,
        restless: int | None = None,
    ) -> None:
        self._name = name
        self._user_id = user_id
        self._cursors = dict.fromkeys(budgets, 0)
        self._fleet = fleet
        self._slot = slot
        self._history = history
        self._rng = rng
        self._restless = restless
        self._device: Device | None = None
        self._gone = False

    def has(self, heads: Mapping[str, int]) -> bool:
        """Whether it has been given everything up to the heads, or will not be given more."""
        streams = {} if self._device is None else self._device.streams
        return self._gone or all(
            (streams[budget_id].cursor if budget_id in streams else cursor) >= heads[budget_id]
            for budget_id, cursor in self._cursors.items()
        )

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                async with connect(self._fleet.url(self._slot), token(self._user_id)) as device:
                    self._device = device
                    try:
                        await self._follow(device)
                    finally:
                        take(self._history, self._name, device, self._user_id)
                        for budget_id, stream in device.streams.items():
                            self._cursors[budget_id] = stream.cursor
                        self._device = None
                await asyncio.sleep(self._rng.uniform(0, 2 * AWAY_S))
            except LOST:
                await asyncio.sleep(self._rng.uniform(0.01, 0.1))
            except Refused as refused:
                assert refused.error["retryable"], refused
                await asyncio.sleep(self._rng.uniform(0.1, 0.2))
            except Broken as broken:
                self._history.broke(self._name, str(broken))
                self._history.left(self._name)
                self._gone = True
                return

    async def _follow(self, device: Device) -> None:
        for budget_id, cursor in self._cursors.items():
            await device.subscribe(budget_id, cursor)
        if self._restless is None:
            await device.wait_for(lambda: False, timeout_s=3600)
        number = self._rng.randint(1, 2 * (self._restless or 0))
        await device.wait_for(
            lambda: sum(len(s.events) for s in device.streams.values()) >= number, timeout_s=3600
        )


async def storm(plan: Plan, cluster: Cluster, postgres: FragilePostgres | None = None) -> Figures:
    """Raises `Violation`, and `AssertionError` for what else a hub must not do."""
    try:
        return await _Storm(plan, cluster, postgres).run()
    except BaseException as error:
        error.add_note(f"the storm was {plan}")
        raise


class _Storm:
    def __init__(self, plan: Plan, cluster: Cluster, postgres: FragilePostgres | None) -> None:
        self._plan = plan
        self._cluster = cluster
        self._postgres = postgres
        self._history = History()
        self._fleet = Fleet(cluster)
        self._budgets: dict[str, list[str]] = {}  # by user
        self._first: list[Writer] = []  # of each user
        self._writers: list[Writer] = []
        self._observers: list[Observer] = []
        rng = random.Random(plan.seed)
        for user in range(plan.users):
            self._add_user(user, random.Random(rng.random()))

    def _add_user(self, number: int, rng: random.Random) -> None:
        user_id = f"user-{number}"
        budgets = [_uuid(rng) for _ in range(self._plan.budgets)]
        self._budgets[user_id] = budgets
        for device in range(1 + self._plan.writers):
            own = random.Random(rng.random())
            writer = Writer(user_id, budgets, self._fleet, device % 2, self._history, own)
            (self._writers if device else self._first).append(writer)
        for slot in range(2):
            for restless in (None, self._plan.calm // 4):
                # A single user has all four; of many each has two, on both slots in turn.
                if self._plan.users == 1 or (restless is None) == (slot == number % 2):
                    self._observers.append(self._observer(user_id, slot, rng, restless))

    def _observer(
        self, user_id: str, slot: int, rng: random.Random, restless: int | None
    ) -> Observer:
        budgets = self._budgets[user_id]
        name = f"observer {len(self._observers)} of {user_id}"
        own = random.Random(rng.random())
        return Observer(
            name, user_id, budgets, self._fleet, slot, self._history, own, restless=restless
        )

    async def run(self) -> Figures:
        began_s = time.monotonic()
        await self._fleet.start()
        async with asyncio.TaskGroup() as first:
            for writer in self._first:
                first.create_task(writer.begin())
        async with asyncio.TaskGroup() as tasks:
            watching = [tasks.create_task(observer.run()) for observer in self._observers]
            await self._write()
            # Followed by nothing that could betray a gap, and from one slot for all.
            async with asyncio.TaskGroup() as last:
                for writer in self._first:
                    last.create_task(writer.end())
            with contextlib.suppress(TimeoutError):  # the checker says what is missing
                heads = await self._heads()
                await until(
                    lambda: all(o.has(heads) for o in self._observers), self._plan.delivery_s
                )
            for task in watching:
                task.cancel()
        figures = await check(self._history, self._cluster, self._fleet.nodes(), self._budgets)
        assert list(self._history.refusals()) == []
        await self._verify()
        took_s = time.monotonic() - began_s
        reconnected = sum(writer.reconnected for writer in self._writers)
        # What was to be survived did happen.
        assert figures.contested > 0
        assert reconnected >= self._plan.kills
        _log.info("%s: %s, %d reconnects, %.1f s", self._plan, figures, reconnected, took_s)
        return figures

    async def _write(self) -> None:
        """The load, and in it the faults."""
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as writing, asyncio.timeout(None) as deadline:
            for writer in self._writers:
                writing.create_task(writer.run(enough))
            for fault in self._plan.faults():
                await self._progress(fault.after)
                await self._strike(fault)
            await self._progress(self._plan.calm)
            enough.set()
            deadline.reschedule(asyncio.get_running_loop().time() + PROGRESS_S)

    async def _strike(self, fault: Fault) -> None:
        match fault.kind:
            case "kill":
                await self._fleet.kill(fault.slot)
            case "freeze":
                await self._fleet.freeze(fault.slot, fault.freeze_s)
            case "crash":
                assert self._postgres is not None
                await self._postgres.crash()

    async def _progress(self, events: int) -> None:
        """Wait until so many more are settled."""

        def settled() -> int:
            return sum(writer.settled for writer in self._writers)

        due = settled() + events
        await until(lambda: settled() >= due, PROGRESS_S)

    async def _heads(self) -> dict[str, int]:
        connection = await asyncpg.connect(self._cluster.database_url)
        try:
            return {row[0]: row[1] for row in await connection.fetch(READ_HEADS)}
        finally:
            await connection.close()

    async def _verify(self) -> None:
        url = self._cluster.database_url
        name = f"verify-{next(_numbers)}"
        verify = Process(self._cluster.folder, name, ["verify"], {"DATABASE_URL": url})
        try:
            assert await verify.ended(60) == 0, verify.out + verify.err
        finally:
            await verify.close()


async def check(
    history: History,
    cluster: Cluster,
    nodes: Sequence[Node],
    budgets: Mapping[str, Sequence[str]],
) -> Figures:
    """Hold the history against the log and each node's snapshots of the users' budgets."""
    connection = await asyncpg.connect(cluster.database_url)
    try:
        ids = [budget_id for of_user in budgets.values() for budget_id in of_user]
        rows = await connection.fetch(READ_LOG, ids)
    finally:
        await connection.close()
    logs: dict[str, list[Json]] = {}
    for budget_id, *place, text in rows:
        event = orjson.loads(text)
        stored = [budget_id, *place]
        named = [event.get(n) for n in ("budgetId", "sequence", "eventId", "version")]
        if stored != named:
            raise Violation("dense", f"the row {stored} holds another event: {event}")
        logs.setdefault(budget_id, []).append(event)
    snapshots: dict[str, list[Json]] = {}
    for node in nodes:
        for user_id, budget_ids in budgets.items():
            async with node.rest(token(user_id)) as rest:
                for budget_id in budget_ids:
                    response = await rest.get(f"/budgets/{budget_id}")
                    assert response.status_code == 200, response.text
                    snapshots.setdefault(budget_id, []).append(response.json())
    return check_history(history, logs, snapshots)


def take(history: History, name: str, device: Device, user_id: str) -> None:
    """Note everything that arrived on one connection of a device, which is closed."""
    for frame in device.frames:
        body = frame.body
        match body["type"]:
            case "results":
                for verdict in body["results"]:
                    history.answered(verdict, frame.at_s)
            case "subscribed":
                history.subscribed(name, body["budgetId"], body["key"], frame.at_s, user_id)
            case "events":
                history.saw(name, body["budgetId"], body["events"], frame.at_s)


def _shared(budget_id: str, number: int) -> str:
    return str(UUID(int=UUID(budget_id).int ^ (number + 1)))


def _uuid(rng: random.Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))
