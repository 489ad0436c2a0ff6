"""Feeds on a real log: from history to live without a gap (P2), lagging in bounded memory (P8),
who may follow and until when (P9), who else is there.

The bus is a fake or absent, followers record what they get, and a read of the log can be halted, so
that what races can be put in either order.
"""

import asyncio
import gc
import os
import random
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import orjson
import pytest

from api.http.verdicts import submitted
from hub.budget.events import EVENTS_PER_FRAME_MAX, Joining, Leaving, parse_batch
from hub.budget.records import BudgetId, UserId
from hub.errors import Code, Disconnected, StatementFailed
from hub.feed import feed as feed_module, tail as tail_module
from hub.feed.cursors import SubscriptionState
from hub.feed.feed import Subscription
from hub.feed.feeds import Feeds
from hub.feed.tail import TAIL_BYTES_MAX
from hub.frames.events import Frame, event_frames
from hub.frames.websocket import texts
from hub.hub import Hub
from hub.limits import Rates
from hub.ports import LogEvent, Page
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.database import Database
from tests.cluster import until
from tests.device import Json, budget_create, expense_add, new_id
from tests.patience import PATIENT

DEADLINE_S = 30.0
PRESENCE_S = 0.1
LOG_ID = "the log"
OTHER_NODE = b"n" * 16

# Another one each night. A failure names its own: STORM_SEED repeats it.
SEED = int(os.environ.get("STORM_SEED", random.randrange(2**32)))

AWAY = Disconnected("no database")
DEFECT = StatementFailed("42P01", "no table")

Happening: TypeAlias = tuple[Any, ...]


class WatchedLog(PostgresLog):
    """The log, which counts its reads and lets them be halted or fail."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.reads: list[UserId | None] = []  # on whose behalf; None is the feed
        self.at_once_max = 0  # of the feeds
        self._at_once = 0
        self._halts: dict[UserId | None, Halt] = {}
        self._losses: dict[UserId | None, list[Exception]] = {}

    def halt(self, user_id: UserId | None) -> "Halt":
        """The next read on his behalf has its answer, and waits with it."""
        halt = self._halts[user_id] = Halt()
        return halt

    def lose(self, user_id: UserId | None, times: int = 1, error: Exception = AWAY) -> None:
        """So many reads on his behalf fail."""
        self._losses[user_id] = [error] * times

    async def page(
        self, budget_id: BudgetId, user_id: UserId | None, after: int, up_to: int, limit: int
    ) -> Page | None:
        self.reads.append(user_id)
        if losses := self._losses.get(user_id):
            raise losses.pop()
        self._at_once += user_id is None
        self.at_once_max = max(self.at_once_max, self._at_once)
        try:
            page = await super().page(budget_id, user_id, after, up_to, limit)
            if (halt := self._halts.pop(user_id, None)) is not None:
                halt.reached.set()
                await halt.released.wait()
            return page
        finally:
            self._at_once -= user_id is None


class Halt:
    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.released = asyncio.Event()

    async def __aenter__(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.reached.wait()

    async def __aexit__(self, *_: object) -> None:
        self.released.set()


class FakeBus:
    """A bus that confirms at once and carries what `carry` says: nothing."""

    def __init__(self) -> None:
        self.connected = True
        self.channels: set[BudgetId] = set()
        self.announced: list[tuple[BudgetId, dict[UserId, int], bool]] = []
        self.carry: Callable[[Frame], None] = lambda frame: None

    def publish(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self.carry(frame)

    def announce(self, budget_id: BudgetId, here: Mapping[UserId, int], *, asks: bool) -> None:
        self.announced.append((budget_id, dict(here), asks))

    async def subscribe(self, budget_id: BudgetId) -> None:
        self.channels.add(budget_id)

    def unsubscribe(self, budget_id: BudgetId) -> None:
        self.channels.discard(budget_id)


class Recorder:
    """A follower like a socket: it says once that it is full, after `room` frames, and is told of
    nothing more until it has drained."""

    subscription: Subscription

    def __init__(self, key: int, room: int | None, attends: bool) -> None:
        self.key = key
        self.attends = attends
        self.full = False
        self.happened: list[Happening] = []
        self._room = room

    def write(self, data: bytes) -> None:
        for text in texts(data):
            frame = orjson.loads(text)
            if frame["type"] == "events":
                sequences = [event["sequence"] for event in frame["events"]]
                assert sequences == list(range(frame["fromSequence"], frame["toSequence"] + 1))
                self.happened.append(("events", sequences))
            else:
                users = {user["userId"]: user["devices"] for user in frame["users"]}
                self.happened.append((frame["type"], users))
        if self._room is not None:
            self._room -= 1
            if self._room <= 0 and not self.full:
                self.fill()

    def fill(self) -> None:
        self.full = True
        self.subscription.lag()

    def drain(self, room: int | None = None) -> None:
        self.full, self._room = False, room
        self.subscription.drained()

    def joined(self, key: int, head: int) -> None:
        self.happened.append(("joined", key, head))

    def refused(self, code: Code) -> None:
        self.happened.append(("refused", code))

    def ended(self, code: Code) -> None:
        self.happened.append(("ended", code))

    def of(self, kind: str) -> list[Any]:
        return [happening[1] for happening in self.happened if happening[0] == kind]

    @property
    def sequences(self) -> list[int]:
        return [sequence for sequences in self.of("events") for sequence in sequences]

    @property
    def over(self) -> Code | None:
        """Why the hub ended it."""
        codes = self.of("refused") + self.of("ended")
        return codes[0] if codes else None

    async def reaches(self, head: int) -> None:
        """Return when it has the log up to there, from its key on, each event once."""
        await until(lambda: bool(self.sequences) and self.sequences[-1] >= head, DEADLINE_S)
        assert self.sequences == list(range(self.key + 1, head + 1))

    async def ends(self) -> Code:
        await until(lambda: self.over is not None, DEADLINE_S)
        assert self.over is not None
        return self.over

    async def joins(self) -> None:
        await until(lambda: bool(self.of("joined")), DEADLINE_S)

    def check(self) -> None:
        """Joined or refused first, then the events in order, each once; nothing after the end."""
        kinds = [happening[0] for happening in self.happened]
        assert kinds.count("joined") + kinds.count("refused") <= 1
        assert kinds[:1] in ([], ["joined"], ["refused"])
        for end in ("refused", "ended"):
            assert end not in kinds[:-1]
        assert self.sequences == list(range(self.key + 1, self.key + 1 + len(self.sequences)))


class Node:
    """One hub, and its followers."""

    def __init__(self, database: Database, bus: FakeBus | None = None) -> None:
        self.log = WatchedLog(database)
        self.bus = bus
        self.followers: list[Recorder] = []
        self.hub = Hub(
            self.log,
            LOG_ID,
            bus,
            now_ms=lambda: 1_800_000_000_000,
            jitter=lambda: 0.5,
            rates=Rates(1e9, 1e9),
            timeouts=replace(PATIENT, presence_s=PRESENCE_S),
        )

    def follow(
        self,
        user_id: UserId,
        budget_id: BudgetId,
        key: int = 0,
        *,
        room: int | None = None,
        attends: bool = True,
    ) -> Recorder:
        follower = Recorder(key, room, attends)
        self.followers.append(follower)
        follower.subscription = self.hub.feeds.subscribe(user_id, budget_id, key, follower)
        return follower

    async def live(self, user_id: UserId, budget_id: BudgetId, key: int = 0) -> Recorder:
        """A follower that has joined and is live."""
        count = self.hub.feeds.followers(budget_id)
        follower = self.follow(user_id, budget_id, key)
        await until(lambda: self.hub.feeds.followers(budget_id) > count, DEADLINE_S)
        return follower

    async def made(self, user_id: UserId, *events: Json) -> int:
        """Commit them; the sequence of the last."""
        return await self._made(user_id, parse_batch(list(events), EVENTS_PER_FRAME_MAX))

    async def add(self, budget_id: BudgetId, *user_ids: UserId) -> int:
        for user_id in user_ids:
            event = Joining(new_id(), budget_id, user_id, 1, participants_max=99)
            last = await self._made(user_id, [event])
        return last

    async def remove(self, actor: UserId, budget_id: BudgetId, user_id: UserId) -> int:
        event = Leaving(new_id(), budget_id, user_id, 1)
        return await self._made(actor, [event])

    async def spend(self, budget_id: BudgetId, events: int = 1) -> int:
        """Ann, whose budget it is, spends so many times, a commit each."""
        for _ in range(events):
            last = await self.made("ann", expense_add(budget_id))
        return last

    async def delete(self, budget_id: BudgetId) -> int:
        gone = {"eventType": "budget.delete", "budgetId": budget_id, "version": 1, "when": 1}
        return await self.made("ann", {"eventId": new_id(), **gone})

    async def budget(self, *participants: UserId, expenses: int = 0) -> BudgetId:
        """A budget of Ann's."""
        budget_id = new_id()
        await self.made("ann", budget_create(budget_id))
        if participants:
            await self.add(budget_id, *participants)
        if expenses:
            await self.made("ann", *(expense_add(budget_id) for _ in range(expenses)))
        return budget_id

    async def _made(self, user_id: UserId, events: Any) -> int:
        async with asyncio.timeout(DEADLINE_S):
            verdicts = await submitted(self.hub, user_id, events, "stop")
        assert [verdict.status for verdict in verdicts] == ["accepted"] * len(events)
        assert verdicts[-1].sequence is not None
        return verdicts[-1].sequence


@pytest.fixture(scope="module", autouse=True)
def only_ours() -> None:
    """What other modules left is not complained of here."""
    gc.collect()


@pytest.fixture(autouse=True)
async def nothing_fails_unseen() -> AsyncIterator[None]:
    """What runs in the background has no one to tell but the loop."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    yield
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert complaints == []


@pytest.fixture
async def nodes(database: Database) -> AsyncIterator[list[Node]]:
    """A node without a bus, and two on buses that carry nothing."""
    nodes = [Node(database, bus) for bus in (None, FakeBus(), FakeBus())]
    yield nodes
    for node in nodes:
        await node.hub.close()
        for follower in node.followers:
            follower.check()


@pytest.fixture
def node(nodes: list[Node]) -> Node:
    return nodes[0]


@pytest.fixture
def pair(nodes: list[Node]) -> tuple[Node, Node]:
    """The first hears nothing of what the second commits, unless a test says so."""
    return nodes[1], nodes[2]


def bus_of(node: Node) -> FakeBus:
    assert node.bus is not None
    return node.bus


class Gathering:
    """The time in which changes of presence are gathered: over when a test says so."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._over.set()

    def begin(self) -> None:
        """Nothing is told for now."""
        self._over.clear()

    def end(self) -> None:
        self._over.set()

    async def wait(self) -> None:
        await self._over.wait()


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gathering]:
    gathering = Gathering()
    tell = Feeds._tell_presence

    async def tell_afterwards(feeds: Feeds) -> None:
        await gathering.wait()
        await tell(feeds)

    monkeypatch.setattr(Feeds, "_tell_presence", tell_afterwards)
    yield gathering
    gathering.end()


# From history to live


async def test_p2_history_first_then_what_is_committed(node: Node) -> None:
    budget_id = await node.budget(expenses=3)
    followers = [await node.live("ann", budget_id, key) for key in (0, 2, 4)]
    assert [follower.happened[0] for follower in followers] == [
        ("joined", 0, 4),
        ("joined", 2, 4),
        ("joined", 4, 4),
    ]
    head = await node.spend(budget_id, 3)
    for follower in followers:
        await follower.reaches(head)
    one, other, _ = followers
    assert one.of("events")[-3:] == other.of("events")[-3:] == [[5], [6], [7]]


async def test_p2_a_long_history_comes_in_pages(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "PAGE_EVENTS_MAX", 4)
    budget_id = await node.budget(expenses=20)
    follower = await node.live("ann", budget_id, 1)
    await follower.reaches(21)
    assert [len(events) for events in follower.of("events")] == [4] * 5


async def test_p2_what_is_committed_between_the_read_and_its_answer_is_not_lost(node: Node) -> None:
    """The first follower of a budget, and one who comes to others."""
    budget_id = await node.budget(expenses=2)
    for _ in range(2):
        halt = node.log.halt("ann")
        follower = node.follow("ann", budget_id)
        async with halt:
            head = await node.spend(budget_id, 2)
        await follower.reaches(head)
        assert follower.happened[0][0] == "joined"
    head = await node.spend(budget_id)
    for follower in node.followers:
        await follower.reaches(head)


async def test_p2_a_client_that_is_ahead_of_its_node_joins_when_the_node_is_there(
    pair: tuple[Node, Node],
) -> None:
    """It was on another node before, whose last frames are not here yet."""
    node, other = pair
    budget_id = await other.budget(expenses=2)
    first = await node.live("ann", budget_id)
    head = await other.spend(budget_id, 3)
    halt = node.log.halt(None)
    ahead = node.follow("ann", budget_id, head)
    async with halt:
        assert ahead.happened == []
    await first.reaches(head)
    await ahead.joins()
    head = await node.spend(budget_id)
    await first.reaches(head)
    await ahead.reaches(head)


@pytest.mark.parametrize(
    ("submits", "seed"),
    [
        pytest.param(150, 1, id="some"),
        pytest.param(2000, SEED, id="many", marks=pytest.mark.faults),
    ],
)
async def test_p2_p7_many_follow_while_two_nodes_commit_and_their_bus_does_what_it_likes(
    pair: tuple[Node, Node], submits: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames between the nodes are lost, late, doubled and out of order; followers come and go with
    any key, and some read slowly."""
    rng = random.Random(seed)
    monkeypatch.setattr(feed_module, "PAGE_EVENTS_MAX", 7)
    monkeypatch.setattr(tail_module, "TAIL_BYTES_MAX", 3000)
    loop = asyncio.get_running_loop()
    for here, there in (pair, pair[::-1]):

        def carry(frame: Frame, there: Node = there) -> None:
            for _ in range(rng.choice((0, 1, 1, 2))):
                loop.call_later(rng.random() * 0.03, there.hub.feeds.received, frame)

        bus_of(here).carry = carry
    budget_id = await pair[0].budget(expenses=10)
    head = 11
    writing = True

    async def write() -> None:
        nonlocal head, writing
        for _ in range(submits):
            node = rng.choice(pair)
            events = [expense_add(budget_id) for _ in range(rng.randrange(1, 6))]
            head = max(head, await node.made("ann", *events))
        writing = False

    async def come() -> None:
        for _ in range(100):
            node = rng.choice(pair)
            key = rng.randrange(max(head - 300, 0), head + 1)
            node.follow("ann", budget_id, key, room=rng.choice((None, 1, 2, 5)))
            if rng.random() < 0.3:
                rng.choice(node.followers).subscription.end()
            await asyncio.sleep(rng.random() * 0.02)

    async def read() -> None:
        while writing:
            for node in pair:
                for follower in node.followers:
                    if follower.full and rng.random() < 0.5:
                        follower.drain(room=rng.choice((1, 2, 5)))
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as tasks:
        for work in (write(), come(), read()):
            tasks.create_task(work)
    for node in pair:
        await node.hub.feeds.sweeper.sweep()
        for follower in node.followers:
            follower.drain()
    staying = [
        follower
        for node in pair
        for follower in node.followers
        if follower.subscription.state is not SubscriptionState.ENDED and follower.key < head
    ]
    assert len(staying) > 3
    for follower in staying:
        await follower.reaches(head)


# Gaps


async def test_p7_p8_a_gap_has_a_single_reader_however_much_is_offered(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = pair
    monkeypatch.setattr(feed_module, "PAGE_EVENTS_MAX", 10)
    budget_id = await other.budget()
    follower = await node.live("ann", budget_id)
    frames: list[Frame] = []
    bus_of(other).carry = frames.append
    await other.spend(budget_id, 30)
    halt = node.log.halt(None)
    for frame in frames[1:]:
        node.hub.feeds.received(frame)
    async with halt:
        for frame in frames:
            node.hub.feeds.received(frame)
        head = await other.spend(budget_id, 5)
        node.hub.feeds.received(frames[-1])
        assert follower.sequences == [1]
    await follower.reaches(head)
    assert node.log.at_once_max == 1
    assert node.log.reads.count(None) <= 5  # as many pages


@pytest.mark.parametrize("error", [AWAY, DEFECT], ids=["away", "a defect"])
async def test_p7_a_gap_is_filled_though_the_log_could_not_be_read(
    pair: tuple[Node, Node], error: Exception
) -> None:
    node, other = pair
    budget_id = await other.budget()
    follower = await node.live("ann", budget_id)
    frames: list[Frame] = []
    bus_of(other).carry = frames.append
    head = await other.spend(budget_id, 3)
    node.log.lose(None, times=2, error=error)
    node.hub.feeds.received(frames[-1])
    await follower.reaches(head)


async def test_p10_a_frame_from_beyond_the_log_harms_nobody(pair: tuple[Node, Node]) -> None:
    """Of a database that was restored to an earlier time, say."""
    node, _ = pair
    budget_id = await node.budget()
    follower = await node.live("ann", budget_id)
    node.hub.feeds.received(Frame(budget_id, 50, 60, b""))
    missing = follower.subscription.feed.track
    await until(lambda: missing.missing_to is None and not missing.filling, DEADLINE_S)
    assert node.log.reads.count(None) == 1
    head = await node.spend(budget_id)
    await follower.reaches(head)
    await node.live("ann", budget_id)
    assert node.log.reads.count(None) == 1  # it is not looked for again and again


# Lagging


async def test_p8_who_lags_for_a_moment_catches_up_without_a_read_of_the_log(node: Node) -> None:
    budget_id = await node.budget()
    follower, other = [await node.live("ann", budget_id) for _ in range(2)]
    await node.spend(budget_id)
    follower.fill()
    head = await node.spend(budget_id, 5)
    assert other.sequences[-1] == head  # not held up by who lags
    assert follower.sequences == [1, 2]
    node.log.reads.clear()
    follower.drain()
    await follower.reaches(head)
    head = await node.spend(budget_id)
    await follower.reaches(head)
    assert node.log.reads == []


async def test_p8_who_fills_up_again_in_the_middle_of_the_tail_lags_again(node: Node) -> None:
    budget_id = await node.budget()
    follower, other = [await node.live("ann", budget_id) for _ in range(2)]
    follower.fill()
    await node.spend(budget_id, 5)
    follower.drain(room=2)
    await until(lambda: follower.full, DEADLINE_S)
    head = await node.spend(budget_id)
    await other.reaches(head)
    assert follower.sequences == [1, 2, 3]
    follower.drain()
    await follower.reaches(head)


async def test_p8_who_lags_for_longer_catches_up_from_the_log(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "TAIL_BYTES_MAX", 1000)
    budget_id = await node.budget("bob")
    follower = await node.live("bob", budget_id)
    follower.fill()
    head = await node.spend(budget_id, 8)
    node.log.reads.clear()
    follower.drain()
    await follower.reaches(head)
    assert "bob" in node.log.reads
    head = await node.spend(budget_id)
    await follower.reaches(head)


@pytest.mark.parametrize("error", [AWAY, DEFECT], ids=["away", "a defect"])
async def test_p8_catching_up_goes_on_after_the_log_could_not_be_read(
    node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(tail_module, "TAIL_BYTES_MAX", 0)
    budget_id = await node.budget("bob")
    follower = await node.live("bob", budget_id)
    follower.fill()
    head = await node.spend(budget_id, 2)
    node.log.lose("bob", times=2, error=error)
    follower.drain()
    await follower.reaches(head)


async def test_p8_who_is_slow_to_read_history_gets_it_as_he_reads(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "PAGE_EVENTS_MAX", 2)
    budget_id = await node.budget(expenses=9)
    follower = node.follow("ann", budget_id, room=1)
    for read in range(1, 5):
        await until(lambda: follower.full, DEADLINE_S)
        assert follower.sequences == list(range(1, 2 * read + 1))
        follower.drain(room=1)
    await follower.reaches(10)


async def test_p8_who_subscribes_again_and_again_reads_the_log_once(node: Node) -> None:
    """A subscription that was replaced, or whose socket is gone, costs no page."""
    budget_id = await node.budget()
    node.log.reads.clear()
    for _ in range(100):
        node.follow("ann", budget_id).subscription.end()
    await node.follow("ann", budget_id).joins()
    assert node.log.reads.count("ann") == 1


async def test_p8_nothing_live_is_written_to_who_was_full_when_he_had_caught_up(node: Node) -> None:
    """The end of history filled his wire, which says so only once."""
    budget_id = await node.budget(expenses=3)
    other = await node.live("ann", budget_id)
    follower = node.follow("ann", budget_id, room=1)
    await follower.reaches(4)
    assert follower.full
    head = await node.spend(budget_id, 5)
    await other.reaches(head)
    assert follower.sequences[-1] == 4
    follower.drain()
    await follower.reaches(head)


async def test_p8_who_was_full_when_he_joined_gets_nothing_live_before_he_reads(node: Node) -> None:
    budget_id = await node.budget()
    other = await node.live("ann", budget_id)
    follower = Recorder(1, None, attends=True)
    node.followers.append(follower)
    follower.full = True  # of what another budget wrote
    follower.subscription = node.hub.feeds.subscribe("ann", budget_id, 1, follower)
    await follower.joins()
    head = await node.spend(budget_id, 5)
    await other.reaches(head)
    assert follower.sequences == []
    follower.drain()
    await follower.reaches(head)


async def test_p8_who_lags_costs_no_more_than_the_tail(node: Node) -> None:
    """Counted is what somebody but this test still holds of the bytes that were delivered."""
    budget_id = await node.budget()
    follower, _ = [await node.live("ann", budget_id) for _ in range(2)]
    delivered = [orjson.dumps("nobody but this list holds it")]

    def deliver(first: int, last: int) -> int:
        for sequence in range(first, last + 1):
            event = orjson.dumps({"sequence": sequence, "note": "n" * 10_000})
            row = LogEvent(sequence, "expense.add", "", event)
            [frame] = event_frames(budget_id, [row])
            node.hub.feeds.received(frame)
            delivered.append(frame.data)
        del frame
        holders = [sys.getrefcount(data) for data in delivered]
        return sum(
            len(data) for data, count in zip(delivered, holders, strict=True) if count > holders[0]
        )

    follower.fill()
    kept = [deliver(2, 3), deliver(4, 100)]
    assert 2 * 10_000 < kept[0] < 3 * 10_000  # counted right: the tail has both
    assert kept[1] <= TAIL_BYTES_MAX
    follower.subscription.end()
    assert deliver(101, 101) == 0  # nobody is behind


# Removal (P9)


async def test_p9_a_removal_ends_all_subscriptions_of_the_user_on_every_node(
    pair: tuple[Node, Node],
) -> None:
    """The lagging ones at once and without backlog; nobody else's."""
    node, other = pair
    bus_of(node).carry = other.hub.feeds.received
    budget_id, another = await node.budget("bob", "cid"), await node.budget("bob")
    staying, going, lagging = [], [], []
    for place in pair:
        staying += [await place.live(user_id, budget_id) for user_id in ("ann", "cid")]
        elsewhere = await place.live("bob", another)
        going += [await place.live("bob", budget_id) for _ in range(2)]
        lagging.append(await place.live("bob", budget_id))
        lagging[-1].fill()
    await node.spend(budget_id, 2)
    head = await node.remove("ann", budget_id, "bob")
    for follower in going + lagging:
        assert await follower.ends() is Code.NOT_PARTICIPANT
    assert [follower.sequences[-1] for follower in lagging] == [3, 3]
    for follower in lagging:
        follower.drain()
    after = await node.spend(budget_id, 2)
    for follower in staying:
        await follower.reaches(after)
    for follower in going:
        await follower.reaches(head)
    assert [follower.sequences[-1] for follower in lagging] == [3, 3]
    head = await other.spend(another)
    await elsewhere.reaches(head)


async def test_p9_who_leaves_is_gone_too(node: Node) -> None:
    budget_id = await node.budget("bob")
    ann, bob = await node.live("ann", budget_id), await node.live("bob", budget_id)
    head = await node.remove("bob", budget_id, "bob")
    assert await bob.ends() is Code.NOT_PARTICIPANT
    await node.spend(budget_id)
    await ann.reaches(head + 1)
    assert bob.sequences[-1] <= head


async def test_p9_what_is_committed_with_a_removal_and_after_it_does_not_reach_him(
    pair: tuple[Node, Node],
) -> None:
    """Also where it is one gap that is read from the log in one page."""
    node, other = pair
    budget_id = await other.budget("bob")
    ann, bob = await node.live("ann", budget_id), await node.live("bob", budget_id)
    removal = await other.remove("ann", budget_id, "bob")
    head = await other.spend(budget_id, 3)
    await node.hub.feeds.sweeper.sweep()
    await ann.reaches(head)
    assert await bob.ends() is Code.NOT_PARTICIPANT
    await bob.reaches(removal)


async def test_p9_a_removal_while_his_history_is_read(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before the removal is not given after it."""
    monkeypatch.setattr(feed_module, "PAGE_EVENTS_MAX", 2)
    budget_id = await node.budget("bob", expenses=9)
    ann, bob = await node.live("ann", budget_id), node.follow("bob", budget_id, room=1)
    await until(lambda: bob.full, DEADLINE_S)
    halt = node.log.halt("bob")
    bob.drain()
    async with halt:
        head = await node.remove("ann", budget_id, "bob")
    await ann.reaches(head)
    assert await bob.ends() is Code.NOT_PARTICIPANT
    assert bob.sequences == [1, 2]


async def test_p9_a_removal_while_he_joins_is_the_answer(node: Node) -> None:
    budget_id = await node.budget("bob")
    ann = await node.live("ann", budget_id)
    halt = node.log.halt("bob")
    bob = node.follow("bob", budget_id)
    async with halt:
        head = await node.remove("ann", budget_id, "bob")
        await ann.reaches(head)
    await bob.ends()
    assert bob.happened == [("refused", Code.NOT_PARTICIPANT)]


async def test_p9_the_first_follower_removed_while_he_joins(node: Node) -> None:
    """Nobody follows the budget yet, so the feed does not know where it stands."""
    budget_id = await node.budget("bob", expenses=2)
    halt = node.log.halt("bob")
    bob = node.follow("bob", budget_id)
    async with halt:
        removal = await node.remove("ann", budget_id, "bob")
        await node.spend(budget_id, 2)
    assert await bob.ends() is Code.NOT_PARTICIPANT
    assert max(bob.sequences, default=0) <= removal


async def test_who_has_come_back_keeps_his_new_subscription_when_his_removal_comes_late(
    pair: tuple[Node, Node],
) -> None:
    node, other = pair
    budget_id = await other.budget("bob")
    ann, before = await node.live("ann", budget_id), await node.live("bob", budget_id)
    removal = await other.remove("bob", budget_id, "bob")
    head = await other.add(budget_id, "bob")
    halt = node.log.halt(None)
    back = node.follow("bob", budget_id)
    async with halt:
        await back.joins()
    await ann.reaches(head)
    assert await before.ends() is Code.NOT_PARTICIPANT
    await before.reaches(removal)
    head = await other.spend(budget_id)
    await node.hub.feeds.sweeper.sweep()
    await back.reaches(head)
    assert back.over is None


async def test_who_has_come_back_joins_though_his_removal_comes_while_he_does(
    pair: tuple[Node, Node],
) -> None:
    """What was read says that he takes part, and is newer than the removal."""
    node, other = pair
    budget_id = await other.budget("bob")
    ann = await node.live("ann", budget_id)
    await other.remove("bob", budget_id, "bob")
    head = await other.add(budget_id, "bob")
    halt = node.log.halt("bob")
    back = node.follow("bob", budget_id)
    async with halt:
        await node.hub.feeds.sweeper.sweep()
        await ann.reaches(head)
    await until(lambda: back.over is not None or bool(back.of("joined")), DEADLINE_S)
    assert back.over is None
    await back.reaches(head)


# Deletion


async def test_budget_delete_gives_everyone_the_log_up_to_it(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = pair
    monkeypatch.setattr(tail_module, "TAIL_BYTES_MAX", 0)
    budget_id = await node.budget("bob")
    live, lagging = await node.live("ann", budget_id), await node.live("bob", budget_id)
    elsewhere = await other.live("bob", budget_id)
    lagging.fill()
    await node.spend(budget_id, 3)
    head = await node.delete(budget_id)
    assert await live.ends() is Code.BUDGET_DELETED
    assert lagging.over is None  # he has not got it yet
    lagging.drain()
    await other.hub.feeds.sweeper.sweep()
    for follower in (live, lagging, elsewhere):
        assert await follower.ends() is Code.BUDGET_DELETED
        await follower.reaches(head)
        assert follower.happened[-1][0] == "ended"


@pytest.mark.parametrize("behind", [0, 1, 3, 6])
async def test_the_log_of_a_deleted_budget_can_still_be_followed_to_its_end(
    node: Node, behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "PAGE_EVENTS_MAX", 2)
    budget_id = await node.budget("bob", expenses=3)
    head = await node.delete(budget_id)
    follower = node.follow("bob", budget_id, head - behind)
    assert await follower.ends() is Code.BUDGET_DELETED
    assert follower.happened[0] == ("joined", head - behind, head)
    assert follower.sequences == list(range(head - behind + 1, head + 1))


async def test_a_deletion_that_fills_a_wire_ends_its_subscription_too(node: Node) -> None:
    """It lags, but it has been given everything."""
    budget_id = await node.budget("bob")
    live = await node.live("ann", budget_id)
    filled = node.follow("bob", budget_id, key=2, room=1)
    await until(lambda: node.hub.feeds.followers(budget_id) == 2, DEADLINE_S)
    head = await node.delete(budget_id)
    assert await live.ends() is Code.BUDGET_DELETED
    assert filled.full
    assert await filled.ends() is Code.BUDGET_DELETED
    await filled.reaches(head)


async def test_a_deletion_while_somebody_joins(node: Node) -> None:
    budget_id = await node.budget("bob")
    live = await node.live("ann", budget_id)
    halt = node.log.halt("bob")
    follower = node.follow("bob", budget_id)
    async with halt:
        head = await node.delete(budget_id)
        assert await live.ends() is Code.BUDGET_DELETED
    assert await follower.ends() is Code.BUDGET_DELETED
    await follower.reaches(head)


# Who may follow


@pytest.mark.parametrize("known", [False, True], ids=["first", "others-follow"])
async def test_p9_who_may_not_follow_is_told_why_and_nothing_else(node: Node, known: bool) -> None:
    budget_id, deleted = await node.budget("bob", "cid"), await node.budget("bob")
    for each in (budget_id, deleted):
        await node.remove("ann", each, "bob")
    await node.delete(deleted)
    if known:
        await node.live("cid", budget_id)
    head = 4
    for user_id, wanted, key, code in (
        ("ann", budget_id, head + 1, Code.CURSOR_AHEAD),
        ("ann", budget_id, 2**53 - 1, Code.CURSOR_AHEAD),
        ("eve", budget_id, 0, Code.BUDGET_NOT_EXISTS),
        ("eve", budget_id, head + 1, Code.BUDGET_NOT_EXISTS),
        ("eve", new_id(), 0, Code.BUDGET_NOT_EXISTS),
        ("bob", budget_id, 0, Code.NOT_PARTICIPANT),
        ("bob", deleted, 0, Code.BUDGET_NOT_EXISTS),
        ("eve", deleted, 0, Code.BUDGET_NOT_EXISTS),
    ):
        refused = node.follow(user_id, wanted, key)
        await refused.ends()
        assert refused.happened == [("refused", code)]
    assert node.hub.feeds.followers(budget_id) == known


@pytest.mark.parametrize(
    ("error", "code"),
    [(AWAY, Code.UNAVAILABLE), (DEFECT, Code.INTERNAL_SERVER_ERROR)],
    ids=["away", "a defect"],
)
async def test_p10_a_log_that_cannot_be_read_is_told_as_such(
    node: Node, error: Exception, code: Code
) -> None:
    budget_id = await node.budget()
    node.log.lose("ann", error=error)
    refused = node.follow("ann", budget_id)
    assert await refused.ends() is code
    follower = node.follow("ann", budget_id)
    await follower.reaches(1)


# Presence


async def test_presence_is_told_after_joining_and_when_it_changes(node: Node) -> None:
    budget_id = await node.budget("bob")
    ann = await node.live("ann", budget_id)
    await until(lambda: ann.of("presence") == [{"ann": 1}], DEADLINE_S)
    assert [happening[0] for happening in ann.happened] == ["joined", "events", "presence"]
    bob = await node.live("bob", budget_id)
    await until(lambda: len(ann.of("presence")) == 2, DEADLINE_S)
    bob.subscription.end()
    await until(lambda: len(ann.of("presence")) == 3, DEADLINE_S)
    assert ann.of("presence") == [{"ann": 1}, {"ann": 1, "bob": 1}, {"ann": 1}]
    assert bob.of("presence") == [{"ann": 1, "bob": 1}]


async def test_presence_is_gathered_before_it_is_told(node: Node, gathering: Gathering) -> None:
    """Who comes and goes at once is told of, once, as it is then."""
    budget_id = await node.budget("bob")
    gathering.begin()
    followers = [node.follow("ann", budget_id) for _ in range(3)]
    followers += [node.follow("bob", budget_id) for _ in range(4)]
    for follower in followers:
        await follower.joins()
    followers.pop().subscription.end()
    gathering.end()
    await until(lambda: all(follower.of("presence") for follower in followers), DEADLINE_S)
    assert {str(follower.of("presence")) for follower in followers} == {str([{"ann": 3, "bob": 3}])}


async def test_presence_that_has_not_changed_is_told_only_to_who_is_new(
    node: Node, gathering: Gathering
) -> None:
    """He takes the place of somebody who goes."""
    budget_id = await node.budget("bob")
    gathering.begin()
    ann, bob = await node.live("ann", budget_id), await node.live("bob", budget_id)
    gathering.end()
    await until(lambda: bool(ann.of("presence") and bob.of("presence")), DEADLINE_S)
    gathering.begin()
    bob.subscription.end()
    again = await node.live("bob", budget_id)
    gathering.end()
    await until(lambda: bool(again.of("presence")), DEADLINE_S)
    assert again.of("presence") == [{"ann": 1, "bob": 1}]
    assert ann.of("presence") == [{"ann": 1, "bob": 1}]


async def test_p8_presence_reaches_who_lags_when_he_reads_again(node: Node) -> None:
    budget_id = await node.budget("bob")
    ann, lagging = await node.live("ann", budget_id), await node.live("ann", budget_id)
    await until(lambda: bool(lagging.of("presence")), DEADLINE_S)
    lagging.fill()
    await node.live("bob", budget_id)
    await until(lambda: ann.of("presence")[-1:] == [{"ann": 2, "bob": 1}], DEADLINE_S)
    assert lagging.of("presence") == [{"ann": 2}]
    lagging.drain()
    await until(lambda: lagging.of("presence") == [{"ann": 2}, {"ann": 2, "bob": 1}], DEADLINE_S)


async def test_who_is_slow_to_read_the_history_is_present_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "PAGE_EVENTS_MAX", 2)
    budget_id = await node.budget("bob", expenses=5)
    ann = await node.live("ann", budget_id)
    await until(lambda: ann.of("presence") == [{"ann": 1}], DEADLINE_S)
    slow = node.follow("bob", budget_id, room=1)
    await until(lambda: ann.of("presence")[-1] == {"ann": 1, "bob": 1}, DEADLINE_S)
    assert slow.sequences == [1, 2]


async def test_who_does_not_attend_is_neither_present_nor_told(node: Node) -> None:
    budget_id = await node.budget("bob")
    poll = node.follow("bob", budget_id, attends=False)
    await poll.joins()
    ann = await node.live("ann", budget_id)
    await until(lambda: bool(ann.of("presence")), DEADLINE_S)
    assert ann.of("presence") == [{"ann": 1}]
    assert poll.of("presence") == []


async def test_p9_who_was_removed_is_not_present(node: Node) -> None:
    budget_id = await node.budget("bob")
    ann, bob = await node.live("ann", budget_id), await node.live("bob", budget_id)
    await until(lambda: ann.of("presence")[-1:] == [{"ann": 1, "bob": 1}], DEADLINE_S)
    told = len(bob.of("presence"))
    await node.remove("ann", budget_id, "bob")
    await until(lambda: ann.of("presence")[-1:] == [{"ann": 1}], DEADLINE_S)
    assert len(bob.of("presence")) == told


async def test_presence_counts_other_nodes_until_they_are_silent(pair: tuple[Node, Node]) -> None:
    node, _ = pair
    budget_id = await node.budget("bob")
    node.hub.feeds.attending(budget_id, OTHER_NODE, {"bob": 1}, asks=True)  # nobody here cares
    assert bus_of(node).announced == []
    ann = await node.live("ann", budget_id)
    await until(lambda: ann.of("presence") == [{"ann": 1}], DEADLINE_S)
    node.hub.feeds.attending(budget_id, OTHER_NODE, {"bob": 2}, asks=False)
    await until(lambda: ann.of("presence")[-1] == {"ann": 1, "bob": 2}, DEADLINE_S)
    node.hub.feeds.silent(OTHER_NODE)
    await until(lambda: ann.of("presence")[-1] == {"ann": 1}, DEADLINE_S)


async def test_a_node_announces_whom_it_has_and_asks_the_others(pair: tuple[Node, Node]) -> None:
    node, _ = pair
    budget_id = await node.budget()
    announced = bus_of(node).announced
    ann = await node.live("ann", budget_id)
    await until(lambda: len(announced) == 2, DEADLINE_S)
    assert announced == [(budget_id, {}, True), (budget_id, {"ann": 1}, False)]
    node.hub.feeds.attending(budget_id, OTHER_NODE, {}, asks=True)
    assert announced[2:] == [(budget_id, {"ann": 1}, False)]
    ann.subscription.end()
    await until(lambda: len(announced) == 4, DEADLINE_S)
    assert announced[3:] == [(budget_id, {}, False)]


async def test_p10_without_the_bus_no_presence_is_told_and_afterwards_it_is(
    pair: tuple[Node, Node],
) -> None:
    node, _ = pair
    bus = bus_of(node)
    bus.connected = False
    budget_id, single = await node.budget("bob"), await node.budget()
    ann, bob = await node.live("ann", budget_id), await node.live("bob", budget_id)
    await asyncio.sleep(3 * PRESENCE_S)  # that nothing comes can only be waited for
    assert ann.of("presence") == bob.of("presence") == []
    bus.connected = True
    bus.announced.clear()
    await node.hub.feeds.restored()
    await until(lambda: bool(ann.of("presence") and bob.of("presence")), DEADLINE_S)
    assert ann.of("presence") == bob.of("presence") == [{"ann": 1, "bob": 1}]
    assert (budget_id, {"ann": 1, "bob": 1}, True) in bus.announced
    assert single not in {budget_id for budget_id, _, _ in bus.announced}


# The end of a feed


async def assert_forgotten(node: Node, budget_id: BudgetId) -> None:
    """The hub has no entry of the budget, and its bus no channel."""
    bus = bus_of(node)
    await until(lambda: budget_id not in bus.channels, DEADLINE_S)
    bus.announced.clear()
    await node.hub.feeds.restored()
    assert budget_id not in {announced[0] for announced in bus.announced}


async def test_p8_a_feed_that_nobody_follows_any_more_is_forgotten(pair: tuple[Node, Node]) -> None:
    node, _ = pair
    budget_id, staying = await node.budget("bob"), await node.budget()
    await node.live("ann", staying)
    ann, bob = await node.live("ann", budget_id), await node.live("bob", budget_id)
    bob.fill()
    feed = weakref.ref(ann.subscription.feed)
    ann.subscription.end()
    assert budget_id in bus_of(node).channels
    bob.subscription.end()
    await assert_forgotten(node, budget_id)
    assert staying in bus_of(node).channels
    del ann.subscription, bob.subscription

    def collected() -> bool:
        gc.collect()
        return feed() is None

    await until(collected, DEADLINE_S)
    head = await node.spend(budget_id)
    again = node.follow("ann", budget_id)
    await again.reaches(head)


async def test_p8_a_feed_is_forgotten_when_its_only_follower_is_refused_or_ended(
    pair: tuple[Node, Node],
) -> None:
    node, _ = pair
    budget_id, left = await node.budget("bob"), await node.budget("bob")
    for code in (Code.BUDGET_NOT_EXISTS, Code.CURSOR_AHEAD):
        user_id = "eve" if code is Code.BUDGET_NOT_EXISTS else "ann"
        assert await node.follow(user_id, budget_id, 50).ends() is code
    await assert_forgotten(node, budget_id)
    bob = await node.live("bob", left)
    await node.remove("bob", left, "bob")
    await bob.ends()
    await assert_forgotten(node, left)


async def test_p8_a_subscription_that_ends_before_it_began_leaves_no_channel(
    pair: tuple[Node, Node],
) -> None:
    """Both frames were in one read; the budget need not even exist."""
    node, _ = pair
    budget_id = new_id()
    node.follow("eve", budget_id).subscription.end()
    refused = node.follow("eve", new_id())
    await refused.ends()  # everything begun before it has come as far
    await assert_forgotten(node, budget_id)


async def test_following_again_at_once_is_a_new_beginning(pair: tuple[Node, Node]) -> None:
    """As a client does that subscribes again: the first subscription is ended by the second."""
    node, _ = pair
    budget_id = await node.budget(expenses=2)
    first = node.follow("ann", budget_id)
    first.subscription.end()
    second = node.follow("ann", budget_id, 1)
    await second.reaches(3)
    second.subscription.end()
    third = node.follow("ann", budget_id, 2)
    await third.reaches(3)
    head = await node.spend(budget_id)
    await third.reaches(head)
    assert first.happened == []
    assert budget_id in bus_of(node).channels
