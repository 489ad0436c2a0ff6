"""Devices that work on while hubs are stopped and replaced, and what must be true of them after.

A `Traveller` writes and follows one budget; when its hub sends it away, or is gone, it comes back
as a good client does, to whichever hub is there. `Travel` is some of them, and their reckoning.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Self

import asyncpg

from tests.cluster import token, until
from tests.crowd import Spectator, open_spectator
from tests.device import Json, budget_create, connect, expense_add, new_id

READ_LOG = """
SELECT event_id::text FROM accepted_events WHERE budget_id = $1 ORDER BY sequence
"""


class Traveller:
    """A device as a good client is: it keeps what has no verdict yet and sends it again, keeps its
    cursor, and comes back after `reconnectAfterMs`; to the other address where it is refused."""

    def __init__(
        self, user_id: str, budget_id: str, urls: Sequence[str], rng: random.Random, pause_s: float
    ) -> None:
        self.user_id = user_id
        self.budget_id = budget_id
        self.sent: list[str] = []
        self.accepted: Counter[str] = Counter()  # verdicts that were not of duplicates, by event
        self.seen: list[str] = []  # what the stream gave, in its order
        self.away_s: list[float] = []  # each from its goaway, or its cut, until it was live again
        self.ends: list[int] = []  # close codes
        self.live = False
        self.outbox: dict[str, Json] = {}
        self._urls = list(urls)
        self._rng = rng
        self._pause_s = pause_s
        self._posted: set[str] = set()  # on this connection
        self._left_s: float | None = None
        self._wait_ms = 0.0
        self._head: int | None = None  # None: not subscribed, or told to go away

    async def run(self, enough: asyncio.Event) -> None:
        """Work until cancelled; after `enough` nothing new is begun."""
        while True:
            spectator = await self._open()
            try:
                await self._work(spectator, enough)
                assert spectator.broken is None, spectator.broken
                assert spectator.close_code is not None
                self.ends.append(spectator.close_code)
                if self._left_s is None:  # cut off without a goaway
                    self._leave(self._rng.uniform(0, 200))
            finally:
                spectator.transport.abort()
            assert self._left_s is not None
            due_s = self._left_s + self._wait_ms / 1000
            await asyncio.sleep(max(due_s - time.monotonic(), 0))

    async def _open(self) -> Spectator:
        while True:
            try:
                spectator = await open_spectator(
                    self._urls[0], token(self.user_id), took=self._took
                )
            except OSError:
                self._urls.append(self._urls.pop(0))
                await asyncio.sleep(self._rng.uniform(0.02, 0.1))
                continue
            self._posted.clear()
            if not spectator.transport.is_closing():
                spectator.subscribe(self.budget_id, len(self.seen))
            return spectator

    async def _work(self, spectator: Spectator, enough: asyncio.Event) -> None:
        while not spectator.lost.done():
            if not enough.is_set():
                event = expense_add(self.budget_id)
                self.outbox[event["eventId"]] = event
                self.sent.append(event["eventId"])
            unsent = [event for id, event in self.outbox.items() if id not in self._posted][:100]
            if unsent and not spectator.transport.is_closing():
                self._posted.update(event["eventId"] for event in unsent)
                spectator.post(unsent)
            pause_s = self._rng.uniform(0.5, 1.5) * self._pause_s
            await asyncio.wait([spectator.lost], timeout=pause_s)

    def _took(self, frame: Json) -> None:
        match frame["type"]:
            case "subscribed":
                self._head = frame["head"]
            case "events":
                assert frame["fromSequence"] == len(self.seen) + 1
                self.seen += [event["eventId"] for event in frame["events"]]
            case "results":
                for verdict in frame["results"]:
                    self._settle(verdict)
            case "goaway":
                self._leave(frame["reconnectAfterMs"])
        if not self.live and self._head is not None and len(self.seen) >= self._head:
            self.live = True
            if self._left_s is not None:
                self.away_s.append(time.monotonic() - self._left_s)
                self._left_s = None

    def _leave(self, wait_ms: float) -> None:
        self._left_s, self._wait_ms = time.monotonic(), wait_ms
        self._head, self.live = None, False

    def _settle(self, verdict: Json) -> None:
        event_id = verdict["eventId"]
        if verdict["status"] == "accepted":
            self.accepted[event_id] += "duplicate" not in verdict
            self.outbox.pop(event_id, None)
        else:
            assert verdict["error"]["retryable"], verdict
            self._posted.discard(event_id)


class Travel:
    """Travellers at work, some on each budget, beginning at the addresses in turn."""

    def __init__(
        self, urls: Sequence[str], budgets: int, on_each: int, pause_s: float, *, seed: int
    ) -> None:
        rng = random.Random(seed)
        self._urls = list(urls)
        self._budgets = {f"traveller-{n}": new_id() for n in range(budgets)}
        self.travellers = [
            Traveller(
                user_id,
                budget_id,
                self._urls[number % len(urls) :] + self._urls[: number % len(urls)],
                random.Random(rng.random()),
                pause_s,
            )
            for user_id, budget_id in self._budgets.items()
            for number in range(on_each)
        ]
        self._enough = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for user_id, budget_id in self._budgets.items():
            async with connect(self._urls[0], token(user_id)) as device:
                await device.accepted(budget_create(budget_id))
        self._tasks = [asyncio.create_task(each.run(self._enough)) for each in self.travellers]
        await self.all_live(60)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Raise what ended a traveller."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def all_live(self, timeout_s: float) -> None:
        def all_live() -> bool:
            self.check()
            return all(each.live for each in self.travellers)

        await until(all_live, timeout_s)

    async def finish(self) -> None:
        """Begin nothing new; until everything has its verdict and everybody has seen all."""
        self._enough.set()

        def finished() -> bool:
            self.check()
            most = Counter[str]()
            for each in self.travellers:
                most[each.budget_id] = max(most[each.budget_id], len(each.seen))
            return not any(
                each.outbox or len(each.seen) < most[each.budget_id] for each in self.travellers
            )

        await until(finished, 60)

    async def nothing_lost_or_doubled(self, database_url: str) -> None:
        """P2, P3, P11: the log has what was sent, each once, and all saw it in its order."""
        connection = await asyncpg.connect(database_url)
        try:
            for budget_id in self._budgets.values():
                log = [row[0] for row in await connection.fetch(READ_LOG, budget_id)]
                here = [each for each in self.travellers if each.budget_id == budget_id]
                sent = [event_id for each in here for event_id in each.sent]
                assert Counter(log[1:]) == Counter(sent)
                for each in here:
                    assert each.seen == log
                    assert max(each.accepted.values(), default=0) <= 1
        finally:
            await connection.close()
