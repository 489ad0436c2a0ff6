"""A storm: devices write and watch while hubs and Postgres are killed; then the history is checked.

Two hub processes, in two *slots*; a slot's process that was killed is replaced by another on a port
of its own. `Writer`s keep an outbox, as a phone does: after every lost connection they send it again,
in order, to whichever hub is there, until each event has its final verdict. `Observer`s follow the
budgets from both slots and resume at their cursor. The plan's seed decides which faults come, in
which order and after how much was written, and what each writer does next; only how the processes
interleave is left to the machine.
"""

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Self
from uuid import UUID

import asyncpg
from websockets.exceptions import InvalidHandshake

from storage.embedded import EmbeddedPostgres
from tests.checker import Figures, History, LogRow
from tests.cluster import Cluster, Node, Process, token, until
from tests.device import (
    Broken,
    Device,
    Ended,
    Json,
    budget_create,
    category_add,
    connect,
    expense_add,
    expense_edit,
)

SHARED = 2  # expenses of each budget that everybody edits
OUTBOX_MAX = 8
TRIES_MAX = 4  # how often a writer takes up an edit that met a conflict
# From submitting to the verdict, a restart of Postgres and a busy machine included. A hub that says
# nothing for as long, on a connection that stands, breaks P4.
SILENCE_S = 40.0
PROGRESS_S = 60.0  # within which the next part of the load must be settled
DELIVERY_S = 15.0  # within which observers must have everything: P7, reconnecting, a busy machine

# How a connection to a hub may fail, or end.
LOST = (Ended, InvalidHandshake, OSError, TimeoutError)

READ_LOG = """
SELECT budget_id::text, sequence, event_id::text, version, event FROM accepted_events
ORDER BY budget_id, sequence
"""
READ_HEADS = "SELECT id::text, last_sequence FROM budgets"

_log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """`budgets` and `writers` are numbers for each user. `calm` is about how many events are settled
    before, between and after the faults."""

    seed: int
    users: int = 1
    budgets: int = 1
    writers: int = 10
    calm: int = 100
    kills: int = 0  # of a hub
    restarts: int = 0  # of Postgres

    def faults(self) -> Iterator[tuple[Literal["kill", "restart"], int, int]]:
        """What happens, to which slot, and after how many settled events more."""
        rng = random.Random(self.seed)
        kinds: list[Literal["kill", "restart"]] = ["kill"] * self.kills
        kinds += ["restart"] * self.restarts
        rng.shuffle(kinds)
        for kind in kinds:
            yield kind, rng.randrange(2), rng.randint(self.calm // 2, self.calm * 3 // 2)


class FragilePostgres:
    """A Postgres that crashes and comes back at the same URL with everything it acknowledged.

    It is durable: a process that is killed loses nothing without that too, but commits that wait
    for the disk are what hubs meet in earnest, and what a crash most often interrupts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Bound for good and never listening, so that nobody takes the port while the server is away.
        self._keeper = socket.socket()
        self._keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._keeper.bind(("127.0.0.1", 0))
        self._server = self._start()
        self.url = self._server.url

    async def crash(self) -> None:
        """End it at once, without a checkpoint, and start it again."""
        await asyncio.to_thread(self._server.stop, "immediate")
        self._server = await asyncio.to_thread(self._start)
        assert self._server.url == self.url

    def close(self) -> None:
        self._server.stop()
        self._keeper.close()

    def _start(self) -> EmbeddedPostgres:
        return EmbeddedPostgres.start(self._folder, port=self._keeper.getsockname()[1])


class Fleet:
    """Two slots for hubs; None while a slot's hub is being replaced."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.slots: list[Node | None] = [None, None]

    async def start(self) -> Self:
        self.slots = [*await self._cluster.start_some(2)]
        return self

    async def kill(self, slot: int) -> None:
        """`kill -9`, then another in its place."""
        node, self.slots[slot] = self.slots[slot], None
        assert node is not None
        await node.kill()
        self.slots[slot] = await self._cluster.start()

    def url(self, slot: int) -> str:
        """That of the slot's hub, or of the other while there is none."""
        node = self.slots[slot] or self.slots[1 - slot]
        if node is None:
            raise ConnectionRefusedError("there is no hub")
        return node.url


class Writer:
    """A device that writes to its user's budgets. `settled` counts final verdicts."""

    def __init__(
        self,
        user_id: str,
        budgets: Sequence[str],
        fleet: Fleet,
        slot: int,
        history: History,
        rng: random.Random,
        *,
        pause_s: float = 0.01,
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
        self._outbox: list[Json] = []
        self._past: list[Json] = []  # some that were accepted, to be sent once more
        self._known: dict[str, tuple[str, int]] = {}  # budget and version, by expense
        self._tries: dict[str, int] = {}  # left, by the eventId of an edit

    async def begin(self) -> None:
        """Make the budgets and their shared expenses."""
        for budget_id in self._budgets:
            shared = (expense_add(budget_id, recordId=_shared(budget_id, n)) for n in range(SHARED))
            self._outbox += [budget_create(budget_id), *shared]
        done = asyncio.Event()
        done.set()
        await self.run(done)

    async def run(self, enough: asyncio.Event) -> None:
        """Write until it is enough, and everything has its verdict."""
        while self._outbox or not enough.is_set():
            try:
                async with connect(self._fleet.url(self._slot), token(self._user_id)) as device:
                    try:
                        await self._write(device, enough)
                    finally:
                        self._history.received(f"writer of {self._user_id}", device.frames)
            except LOST as lost:
                assert not (isinstance(lost, Ended) and lost.code not in (1006, 1012)), lost
                self.reconnected += 1
                self._slot = self._rng.randrange(2)
                await asyncio.sleep(self._rng.uniform(0.01, 0.1))

    async def last_words(self) -> None:
        """One more event in each budget, from the writer's slot."""
        self._outbox += [expense_add(budget_id, eventId=self._id()) for budget_id in self._budgets]
        await self.begin_nothing()

    async def _write(self, device: Device, enough: asyncio.Event) -> None:
        while self._outbox or not enough.is_set():
            while len(self._outbox) < OUTBOX_MAX and not enough.is_set():
                self._outbox.append(self._next())
            mode = self._rng.choice(("stop", "each"))
            posted = []
            for frame in self._frames():
                now_s = time.monotonic()
                for event in frame:
                    self._history.invoked(self._user_id, event, now_s)
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
        """The outbox, in order, in frames of many sizes; now and then what is settled long since."""
        start = 0
        while start < len(self._outbox):
            size = self._rng.choice((1, 1, 2, 5, 50))
            again = (
                [self._rng.choice(self._past)] if self._past and self._rng.random() < 0.1 else []
            )
            yield again + self._outbox[start : start + size]
            start += size

    def _next(self) -> Json:
        rng = self._rng
        budget_id = rng.choice(self._budgets)
        shared = _shared(budget_id, rng.randrange(SHARED))
        match rng.choice(("shared", "shared", "own", "own", "add", "category")):
            case "category":
                return category_add(budget_id, eventId=self._id(), recordId=self._id())
            case "own" if own := [e for e in self._known if not e.endswith(_SHARED_END)]:
                return self._edit(rng.choice(own))
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
