"""The engine on a real Postgres against the model of `tests.model`: hypothesis submits, resubmits,
joins, leaves and removes, mixes users, budgets, modes and nodes, and after every step all that can
be read agrees (P1 to P6, P9). And the checker checked: with a fault planted in the engine, it
fails."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from hub.budget import events, rules
from hub.budget.events import EVENTS_PER_FRAME_MAX, Event, Invalid, parse_batch
from hub.budget.records import BudgetId, UserId
from hub.budget.scalars import INTEGER_MAX
from hub.budget.state import ANY_NUMBER, BudgetState, Change, LogRow, Quotas, Want
from hub.committer import Committer, Mode
from hub.errors import HubError
from hub.json_text import decode
from hub.ports import Page
from hub.tracing import Origins
from loadtest.replica import Replica
from storage.care.verify import verify
from storage.postgres.core import event_log
from storage.postgres.core.event_log import PostgresLog, PostgresTransaction
from storage.postgres.core.record_sql import RECORD_SQL
from storage.postgres.core.snapshots import Snapshots
from storage.postgres.database import Database
from tests.model import (
    CATEGORIES,
    EXPENSES,
    JOINS,
    LEAVES,
    MODES,
    PARTICIPANTS_MAX,
    TYPES,
    USERS,
    Json,
    Model,
    author,
    changed,
    comparable,
    json_event,
    made,
    membership,
)
from tests.patience import PATIENT
from tests.racing import ask

NOW_MS = 1_800_000_000_000

T = TypeVar("T")


class Batch(NamedTuple):
    """A submission. `requested`: its only event is one that the server makes, of membership."""

    user: UserId
    events: list[Json]
    mode: Mode = "stop"
    requested: bool = False

    def put_to(self, model: Model) -> list[Json]:
        if self.requested:
            return [model.make(self.user, self.events[0])]
        return model.submit(self.user, self.events, self.mode)


class Bench:
    """Two nodes on one database, driven from outside a loop: hypothesis is not asynchronous."""

    def __init__(self, runner: asyncio.Runner, database: Database) -> None:
        self._runner = runner
        self._database = database
        self._numbers = itertools.count(1)
        self.now_ms = NOW_MS
        self.log = PostgresLog(database)
        self.delivered: dict[BudgetId, list[Json]] = {}
        self._nodes = [
            Committer(
                self.log,
                self._deliver,
                now_ms=lambda: self.now_ms,
                jitter=lambda: 0.0,
                quotas=Quotas(budgets=ANY_NUMBER),  # all stories have the same few users
                timeouts=PATIENT,
            )
            for _ in range(2)
        ]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def new_id(self) -> str:
        return f"00000000-0000-4000-a000-{next(self._numbers):012x}"

    def _deliver(
        self, budget_id: BudgetId, rows: Sequence[LogRow], at_ms: int | None, origins: Origins
    ) -> None:
        self.delivered.setdefault(budget_id, []).extend(orjson.loads(row.event) for row in rows)

    async def submit(self, batches: Sequence[Batch], node: int = 0) -> list[list[Json]]:
        """The verdicts of batches that arrive at a node in one turn of its loop."""
        answers = [
            ask(
                self._nodes[node],
                user,
                [made(events[0], PARTICIPANTS_MAX)]
                if requested
                else parse_batch(decode(json.dumps(events)), EVENTS_PER_FRAME_MAX),
                mode,
            )
            for user, events, mode, requested in batches
        ]
        verdicts = await asyncio.gather(*answers)
        return [[orjson.loads(orjson.dumps(v.to_json())) for v in each] for each in verdicts]

    async def execute(self, statement: str) -> None:
        async with self._database.committing() as connection:
            await connection.execute(statement)

    async def page(
        self, budget_id: BudgetId, user: UserId | None, after: int, limit: int
    ) -> Page | None:
        return await self.log.page(budget_id, user, after, INTEGER_MAX, limit)

    async def stream(self, budget_id: BudgetId) -> list[Json]:
        page = await self.page(budget_id, None, 0, 10_000)
        return [orjson.loads(event.event) for event in page.events] if page else []

    async def snapshot(self, budget_id: BudgetId, user: UserId) -> Json | str:
        """Without `logId`; the code where the user may not have it."""
        try:
            snapshot: Json = orjson.loads(
                (await Snapshots(self._database).read(budget_id, user)).text
            )
        except HubError as error:
            return error.code.name
        del snapshot["logId"]
        return snapshot

    async def members(self, budget_id: BudgetId) -> dict[UserId, Json]:
        """Who takes part and who did, as the model has them."""
        async with self._database.connection("rest") as connection:
            rows = await connection.fetch(
                """
                SELECT user_id, joined_at, active, removed_at IS NOT NULL
                FROM participants WHERE budget_id = $1
                """,
                budget_id,
            )
        return {
            user: {"joinedAt": joined_at, "active": active, "removed": removed}
            for user, joined_at, active, removed in rows
        }

    async def differences(self) -> list[str]:
        """What `budget-hub verify` says of everything that was done here."""
        return [str(found) async for found in verify(self._database, None, lambda _: None)]

    async def tables(self, budget_id: BudgetId) -> dict[str, tuple[Json, int]]:
        """Id → record and the sequence of its last change, tombstones included."""
        async with self._database.connection("rest") as connection:
            rows = await connection.fetch(
                """
                SELECT id::text, last_sequence, deleted, json_build_object(
                    'id', id, 'budgetId', budget_id, 'createdBy', created_by, 'name', name,
                    'allocate', allocate::text, 'version', version,
                    'offlineLastModified', offline_last_modified)::text
                FROM categories WHERE budget_id = $1
                UNION ALL
                SELECT id::text, last_sequence, deleted, json_build_object(
                    'id', id, 'budgetId', budget_id, 'createdBy', created_by,
                    'categoryId', category_id, 'amount', amount::text, 'date', date, 'note', note,
                    'version', version, 'offlineLastModified', offline_last_modified)::text
                FROM expenses WHERE budget_id = $1
                UNION ALL
                SELECT id::text, record_sequence, deleted, json_build_object(
                    'id', id, 'createdBy', created_by, 'title', title, 'details', details,
                    'currency', currency, 'version', version,
                    'offlineLastModified', offline_last_modified)::text
                FROM budgets WHERE id = $1
                """,
                budget_id,
            )
        return {
            id: (orjson.loads(text) | ({"deleted": True} if deleted else {}), sequence)
            for id, sequence, deleted, text in rows
        }


@contextmanager
def bench_on(database_url: str) -> Iterator[Bench]:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        database = runner.run(Database.connect(database_url))
        try:
            yield Bench(runner, database)
        finally:
            runner.run(database.close())


class EngineMachine(RuleBasedStateMachine):
    """Every step changes engine and model alike, and then compares them."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.model = Model(NOW_MS, PARTICIPANTS_MAX)
        bench.now_ms = NOW_MS
        self.budget_ids = [bench.new_id() for _ in range(3)]
        self.sent: list[tuple[UserId, Json]] = []
        self.requested: list[tuple[UserId, Json]] = []

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Without a budget there is little to do."""
        for budget_id in self.budget_ids[: data.draw(st.integers(1, 2), label="budgets")]:
            create = {"eventId": self.bench.new_id(), "budgetId": budget_id, "when": 1}
            create |= {"eventType": "budget.create", "title": "Home"}
            self.sent.append((USERS[0], create))
            self.compare([Batch(USERS[0], [create])], 0)

    @rule(data=st.data(), step=st.sampled_from(["submit"] * 7 + ["read"]))
    def step(self, data: st.DataObject, step: str) -> None:
        """One rule for all, because hypothesis leaves whole rules out of its examples."""
        if step == "submit" or not self.model.books:
            self.submit(data)
        else:
            self.read(data)

    def submit(self, data: st.DataObject) -> None:
        """One to three submissions at once, of one to six events or one request of membership."""
        self.bench.now_ms = self.model.now_ms = self.model.now_ms + 1
        batches = []
        scratch = Scratch(self.model)
        of = data.draw(st.sampled_from(["events", "events", "requests", "both"]), label="of")
        number = data.draw(st.sampled_from([1, 1, 2, 3] if of == "events" else [1, 2, 3, 4]))
        for _ in range(number):
            requested = of == "requests" or (of == "both" and data.draw(st.booleans()))
            batches.append(self.request(data) if requested else self.drawn(data))
        scratch.undo()
        self.compare(in_rounds(batches), data.draw(st.integers(0, 1), label="node"))

    def request(self, data: st.DataObject) -> Batch:
        """To join, leave or remove; sometimes again, as the hub itself does after a lost commit."""
        if self.requested and data.draw(st.integers(0, 4), label="again?") == 4:
            user, event = data.draw(st.sampled_from(self.requested), label="requested")
            event = data.draw(changed(event), label="again")
            if data.draw(st.integers(0, 4), label="from another?") == 4:
                user = data.draw(st.sampled_from(USERS), label="user")
        else:
            event_id = self.new_id(data)
            user, event = data.draw(membership(self.model, self.budget_ids, event_id), label="who")
        self.requested.append((user, event))
        batch = Batch(user, [event], requested=True)
        batch.put_to(self.model)
        return batch

    def new_id(self, data: st.DataObject) -> str:
        """Of an event; sometimes an old one."""
        sent = self.sent + self.requested
        if sent and data.draw(st.integers(0, 20), label="old id?") == 20:
            event_id: str = data.draw(st.sampled_from(sent), label="id of")[1]["eventId"]
            return event_id
        return self.bench.new_id()

    def drawn(self, data: st.DataObject) -> Batch:
        mode: Mode = data.draw(MODES, label="mode")
        batch: list[Json] = []
        user = None
        for _ in range(data.draw(st.integers(1, 6), label="events")):
            if self.sent and data.draw(st.integers(0, 6), label="again?") == 6:
                user_then, event = data.draw(st.sampled_from(self.sent), label="sent")
                event = data.draw(changed(event), label="again")
                user = user or user_then
            else:
                event_id = self.new_id(data)
                event = data.draw(json_event(self.model, self.budget_ids, event_id), label="event")
                user = user or data.draw(author(self.model, event), label="user")
            batch.append(event)
            self.sent.append((user, event))
            self.model.submit(user, [event])
        assert user is not None
        return Batch(user, batch, mode)

    def read(self, data: st.DataObject) -> None:
        """P9: a page of the log for whoever takes part, nothing of it for anybody else."""
        budget_id = data.draw(st.sampled_from(sorted(self.model.books)), label="budget")
        book = self.model.books[budget_id]
        user = data.draw(st.sampled_from(USERS), label="user")
        after = data.draw(st.integers(0, len(book.log) + 1), label="after")
        limit = data.draw(st.integers(1, 5), label="limit")
        page = self.bench.run(self.bench.page(budget_id, user, after, limit))
        assert page is not None
        member = book.members.get(user)
        active = member is not None and member["active"]
        assert (page.head, page.deleted) == (len(book.log), book.deleted)
        assert page.member == (None if member is None else active)
        expected = book.log[after : after + limit] if active else []
        assert [orjson.loads(event.event) for event in page.events] == expected
        snapshot = self.bench.run(self.bench.snapshot(budget_id, user))
        if book.deleted or member is None:
            assert snapshot == "BUDGET_NOT_EXISTS"
        else:
            assert snapshot == (self.model.snapshot(budget_id) if active else "NOT_PARTICIPANT")

    def compare(self, batches: Sequence[Batch], node: int) -> None:
        verdicts = self.bench.run(self.bench.submit(batches, node))
        for batch, answer in zip(batches, verdicts, strict=True):
            assert list(map(comparable, answer)) == batch.put_to(self.model)
        touched = {event["budgetId"] for batch in batches for event in batch.events}
        for budget_id in touched & set(self.budget_ids):
            self.bench.run(self.agrees(budget_id))

    async def agrees(self, budget_id: BudgetId) -> None:
        """P2, P6: the log, what was delivered of it, the tables, heads, digests, participants."""
        book = self.model.books.get(budget_id)
        log = await self.bench.stream(budget_id)
        assert log == (book.log if book else [])
        assert [event["sequence"] for event in log] == list(range(1, len(log) + 1))
        assert self.bench.delivered.get(budget_id, []) == log
        tables = await self.bench.tables(budget_id)
        assert tables == (
            {
                id: (record, book.changed[id])
                for records in book.records.values()
                for id, record in records.items()
            }
            if book
            else {}
        )
        assert await self.bench.members(budget_id) == (book.members if book else {})


def in_rounds(batches: Sequence[Batch]) -> list[Batch]:
    """As a hub takes what waits: the first batch of each user, then the second of each."""
    before: Counter[UserId] = Counter()
    rounds: list[int] = []
    for batch in batches:
        rounds.append(before[batch.user])
        before[batch.user] += 1
    return [batch for _, batch in sorted(zip(rounds, batches, strict=True), key=itemgetter(0))]


class Scratch:
    """Lets a batch be drawn against the model as its earlier events will leave it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._books = deepcopy(model.books)

    def undo(self) -> None:
        self._model.books = self._books


def walk(bench: Bench, **how: Any) -> None:
    class OnThisBench(EngineMachine):
        def __init__(self) -> None:
            super().__init__(bench)

    run_state_machine_as_test(
        OnThisBench,
        settings=settings(
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **how,
        ),
    )


def test_the_engine_does_what_the_model_says(database_url: str) -> None:
    with bench_on(database_url) as bench:
        walk(bench, max_examples=25, stateful_step_count=25)
        assert bench.run(bench.differences()) == []


@settings(
    max_examples=3,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def a_history_and_its_snapshots(bench: Bench, data: st.DataObject) -> None:
    """One budget through about 60 events, one at a time, and its snapshot after each."""
    model = Model(NOW_MS, PARTICIPANTS_MAX)
    budget_id = bench.new_id()
    snapshots: list[Json] = []

    def take(event: Json, user: UserId = "ann") -> None:
        event = {**event, "eventId": bench.new_id(), "budgetId": budget_id}
        batch = Batch(user, [event], requested=event["eventType"] in (JOINS, LEAVES))
        bench.now_ms = model.now_ms = model.now_ms + 1
        batch.put_to(model)
        bench.run(bench.submit([batch]))
        snapshot = bench.run(bench.snapshot(budget_id, "ann"))
        assert snapshot == model.snapshot(budget_id)
        snapshots.append(model.snapshot(budget_id))

    for event in EVERY_TYPE:
        take(event)
    for user, event_type in (("ben", JOINS), ("cyd", JOINS), ("cyd", LEAVES), ("cyd", JOINS)):
        take({"eventType": event_type, "recordId": user, "when": 9}, user)
    take({"eventType": LEAVES, "recordId": "ben", "when": 10})  # ann removes him
    assert model.books[budget_id].active == ["ann", "cyd"]
    while len(snapshots) < 60:
        event = data.draw(json_event(model, [budget_id], ""))
        if event["eventType"] != "budget.delete":
            take(event)
    end = {"eventType": "budget.delete", "version": snapshots[-1]["version"], "when": 1}
    end |= {"eventId": bench.new_id(), "budgetId": budget_id}
    bench.run(bench.submit([Batch("ann", [end])]))

    stream = bench.run(bench.stream(budget_id))
    assert {event["eventType"] for event in stream} == {*TYPES, JOINS, LEAVES}
    last = Replica.from_snapshot(snapshots[-1])
    for snapshot in snapshots:
        replica = Replica.from_snapshot(snapshot)
        for event in stream[replica.sequence : last.sequence]:
            replica.apply(event)  # checks the digest at every event
        assert replica.difference(last) is None
        replica.apply(stream[-1])  # the budget's own record goes, and nothing else
    from_the_start = Replica(budget_id)
    for event in stream:
        from_the_start.apply(event)
    assert from_the_start.difference(replica) is None


EVERY_TYPE: list[Json] = [
    {"eventType": "budget.create", "title": "Home", "when": 1},
    {"eventType": "budget.edit", "version": 1, "details": "Flat 3", "when": 2},
    {"eventType": "category.add", "name": "Food", "allocate": "200", "when": 3},
    {"eventType": "category.edit", "version": 1, "allocate": "250.5", "when": 4},
    {"eventType": "expense.add", "amount": "1.5", "date": "2026-03-01", "when": 5},
    {"eventType": "expense.edit", "version": 1, "note": "Café", "when": 6},
    {"eventType": "expense.delete", "version": 2, "when": 7},
    {"eventType": "category.delete", "version": 2, "when": 8},
]
for _event in EVERY_TYPE:
    _event["recordId"] = {"category": CATEGORIES[0], "expense": EXPENSES[0]}.get(
        _event["eventType"].split(".")[0]
    )


def test_p6_a_snapshot_and_the_events_after_it_are_the_snapshot_at_the_end(
    database_url: str,
) -> None:
    with bench_on(database_url) as bench:
        a_history_and_its_snapshots(bench)


# The checker checked: faults planted in the engine, each of which it must notice. Where a
# constraint of the tables would be in the way, it is taken out of this test's own database first.


def dedup_is_removed(patch: pytest.MonkeyPatch) -> None:
    load = PostgresTransaction.load

    async def load_nothing_known(self: PostgresTransaction, want: Want) -> Any:
        want.events.clear()
        return await load(self, want)

    patch.setattr(PostgresTransaction, "load", load_nothing_known)


def any_content_is_the_same(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "_says_the_same", lambda known, actor, event: known.actor_id == actor)


def anybody_is_the_author(patch: pytest.MonkeyPatch) -> None:
    says_the_same = rules._says_the_same
    patch.setattr(
        rules,
        "_says_the_same",
        lambda known, actor, event: says_the_same(known, known.actor_id, event),
    )


def heads(patch: pytest.MonkeyPatch, off: int) -> None:
    """The head is wrong after every change of an expense."""
    apply = BudgetState.apply

    def apply_wrongly(self: BudgetState, change: Change) -> None:
        if change.row.event_type == "expense.add":
            head = change.budget.last_sequence + off
            change = change._replace(budget=change.budget._replace(last_sequence=head))
        apply(self, change)

    patch.setattr(BudgetState, "apply", apply_wrongly)


def a_sequence_is_used_twice(patch: pytest.MonkeyPatch) -> None:
    heads(patch, -1)


def a_sequence_is_left_out(patch: pytest.MonkeyPatch) -> None:
    heads(patch, 1)


def verdicts_come_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """… and the commit does not come."""

    async def write(self: PostgresTransaction, states: Sequence[BudgetState]) -> None:
        pass

    patch.setattr(PostgresTransaction, "write", write)


def a_stale_version_wins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "_stale", lambda record, event: record.deleted)


def a_tombstone_lives(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "_stale", lambda record, event: record.version != event.version)


def null_is_absent(patch: pytest.MonkeyPatch) -> None:
    parse: Callable[..., Event | Invalid] = events.parse_event

    def forgetful(raw: object) -> Event | Invalid:
        event = parse(raw)
        if isinstance(event, Invalid):
            return event
        return event._replace(named={n: v for n, v in event.named.items() if v is not None})

    patch.setattr(events, "parse_event", forgetful)


def membership_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    access = rules._access

    def accepts(state: BudgetState, actor: UserId, event: Event) -> Any:
        return access(state, state.budget.owner_id if state.budget else actor, event)

    patch.setattr(rules, "_access", accepts)


def replay_is_off_by_one(patch: pytest.MonkeyPatch) -> None:
    in_sql(patch, "READ_PAGE", "sequence > $3", "sequence > $3 + 1")


def replay_repeats_the_last_one(patch: pytest.MonkeyPatch) -> None:
    in_sql(patch, "READ_PAGE", "sequence > $3", "sequence >= $3")


def replay_is_for_everybody(patch: pytest.MonkeyPatch) -> None:
    in_sql(patch, "READ_PAGE", "p.active OR $2 IS NULL", "p.active OR $2 IS NULL OR true")


def a_cascade_forgets_expenses(patch: pytest.MonkeyPatch) -> None:
    in_sql(patch, "CASCADE", "NOT e.deleted", "NOT e.deleted AND e.version > 1")


def a_cascade_forgets_the_digest(patch: pytest.MonkeyPatch) -> None:
    in_sql(patch, "LOAD_CASCADES", "NOT e.deleted", "NOT e.deleted AND e.version > 1")


def an_edit_forgets_its_sequence(patch: pytest.MonkeyPatch) -> None:
    in_sql_of(patch, "expense", "last_sequence = excluded", "last_sequence = expenses")


def stop_goes_on(patch: pytest.MonkeyPatch) -> None:
    submit = Committer.submit
    patch.setattr(
        Committer,
        "submit",
        lambda self, user, events, mode, answer: submit(self, user, events, "each", answer),
    )


def one_delivery_is_lost(patch: pytest.MonkeyPatch) -> None:
    deliver = Bench._deliver
    patch.setattr(
        Bench,
        "_deliver",
        lambda self, budget_id, rows, at, origins: deliver(self, budget_id, rows[:3], at, origins),
    )


def anybody_may_remove(patch: pytest.MonkeyPatch) -> None:
    remove: Callable[..., Any] = rules._leave

    def remove_for_all(state: BudgetState, actor: UserId, *rest: Any) -> Any:
        budget = state.budget
        assert budget is not None
        state.budget = budget._replace(owner_id=actor)
        try:
            return remove(state, actor, *rest)
        finally:
            state.budget = budget

    patch.setattr(rules, "_leave", remove_for_all)


def a_removal_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    in_sql(patch, "UPSERT_MEMBERS", "removed_at = excluded", "removed_at = participants")


def who_joins_again_keeps_the_old_date(patch: pytest.MonkeyPatch) -> None:
    in_sql(patch, "UPSERT_MEMBERS", "joined_at = excluded", "joined_at = participants")


def one_too_many_may_join(patch: pytest.MonkeyPatch) -> None:
    in_sql(patch, "LOAD_DOORS", "p.number", "p.number OFFSET 1")


def former_participants_are_counted(patch: pytest.MonkeyPatch) -> None:
    in_sql(patch, "LOAD_DOORS", "AND p.active", "")


def nobody_is_counted(patch: pytest.MonkeyPatch) -> None:
    """… within a batch: the next join does not see the one before."""
    apply = BudgetState.apply

    def apply_uncounted(self: BudgetState, change: Change) -> None:
        before = list(self.participants)
        apply(self, change)
        if change.row.event_type in (JOINS, LEAVES):
            self.participants = before

    patch.setattr(BudgetState, "apply", apply_uncounted)


def in_sql_of(patch: pytest.MonkeyPatch, kind: str, before: str, after: str) -> None:
    statements = RECORD_SQL[kind]
    assert before in statements.upsert
    changed = statements._replace(upsert=statements.upsert.replace(before, after))
    patch.setattr(event_log, "RECORD_SQL", {**RECORD_SQL, kind: changed})


def in_sql(patch: pytest.MonkeyPatch, name: str, before: str, after: str) -> None:
    statement: str = getattr(event_log, name)
    assert before in statement
    patch.setattr(event_log, name, statement.replace(before, after))


@pytest.mark.parametrize(
    ("fault", "in_the_way"),
    [
        (dedup_is_removed, "ALTER TABLE accepted_events DROP CONSTRAINT accepted_events_pkey"),
        (any_content_is_the_same, None),
        (anybody_is_the_author, None),
        (a_sequence_is_used_twice, "DROP INDEX accepted_events_by_sequence"),
        (a_sequence_is_left_out, None),
        (verdicts_come_before_the_commit, None),
        (a_stale_version_wins, None),
        (a_tombstone_lives, None),
        (null_is_absent, None),
        (membership_is_not_looked_at, None),
        (replay_is_off_by_one, None),
        (replay_repeats_the_last_one, None),
        (replay_is_for_everybody, None),
        (a_cascade_forgets_expenses, None),
        (a_cascade_forgets_the_digest, None),
        (an_edit_forgets_its_sequence, None),
        (stop_goes_on, None),
        (one_delivery_is_lost, None),
        (anybody_may_remove, None),
        (a_removal_is_forgotten, None),
        (who_joins_again_keeps_the_old_date, None),
        (one_too_many_may_join, None),
        (former_participants_are_counted, None),
        (nobody_is_counted, None),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_model_notices_when(
    fault: Callable[[pytest.MonkeyPatch], None],
    in_the_way: str | None,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    with bench_on(database_url) as bench:
        if in_the_way is not None:
            bench.run(bench.execute(in_the_way))
        with pytest.raises(AssertionError):
            walk(
                bench,
                max_examples=1000,  # some faults strike in one of ten
                stateful_step_count=25,
                phases=[Phase.generate],
                report_multiple_bugs=False,
            )
