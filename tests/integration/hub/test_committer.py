"""The commit and its traps (design 4), on a real Postgres: each test here fails without the remedy
it is about. Promises P1 to P5.

Two nodes are two committers with connections of their own (`tests/racing.py`).
"""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Self

import orjson
import pytest
from structlog.testing import capture_logs

from hub import committer as committer_module
from hub.budget.records import BudgetId, UserId
from hub.budget.scalars import INTEGER_MAX
from hub.budget.state import BudgetState, Want
from hub.budget.verdicts import Verdict
from hub.committer import Mode
from hub.errors import Disconnected, LostRace
from loadtest.proxy import Proxy
from loadtest.replica import Replica
from storage.postgres.core.event_log import PostgresLog, PostgresTransaction
from storage.postgres.database import SHARES, Database
from tests.full_disk import FILL, MAKE_ROOM
from tests.patience import PATIENT
from tests.racing import (
    AS_IN_SERVICE,
    Elsewhere,
    Halt,
    Halting,
    Json,
    Node,
    Nodes,
    as_json,
    create,
    edit,
    event,
    eventually,
    expense,
    new_id,
    nothing,
    once,
    outcomes,
    set_session,
    within,
)

HASTY = replace(PATIENT, settle_s=0.1)

# Lock, then load: in two statements.


async def test_p5_a_stale_edit_does_not_win_by_waiting_for_the_lock(
    node: Node, nodes: Nodes, elsewhere: Elsewhere
) -> None:
    """It must see the record as the other hub left it, not as it was when it began to wait."""
    budget_id = await node.new_budget()
    lunch = new_id()
    await node.made("ann", expense(budget_id, recordId=lunch))
    other = await nodes()
    other.log.before_commit = halt = Halt()
    change = {"recordId": lunch, "version": 1}
    first = other.send("ann", event("expense.edit", budget_id, **change, amount="2"))
    await halt.reached()  # written, locked, not committed
    second = node.send("ann", event("expense.edit", budget_id, **change, amount="3"))
    await elsewhere.someone_waits()
    halt.release()
    assert outcomes(as_json(await within(first))) == ["accepted"]
    (conflict,) = as_json(await within(second))
    assert outcomes([conflict]) == ["conflict"]
    assert (conflict["currentRecord"]["version"], conflict["currentRecord"]["amount"]) == (
        2,
        "2.00",
    )
    assert [sequence for _, sequence, _ in await elsewhere.log(budget_id)] == [1, 2, 3]


async def test_p3_an_event_committed_while_its_twin_waits_for_the_lock_is_a_duplicate(
    node: Node, nodes: Nodes, elsewhere: Elsewhere
) -> None:
    budget_id = await node.new_budget()
    other = await nodes()
    other.log.before_commit = halt = Halt()
    lunch = expense(budget_id)
    first = other.send("ann", lunch)
    await halt.reached()
    second = node.send("ann", lunch)
    await elsewhere.someone_waits()
    halt.release()
    (original,), (again,) = as_json(await within(first)), as_json(await within(second))
    assert again == {**original, "duplicate": True}
    assert (budget_id, 2) in other.delivered
    assert (budget_id, 2) not in node.delivered


# Two nodes create one budget: there is no row to lock yet.


@pytest.mark.parametrize("who", ["the same user with the same event", "somebody else"])
@pytest.mark.parametrize("end", ["commits", "fails"])
async def test_p2_of_two_nodes_that_create_one_budget_one_wins(
    who: str, end: str, node: Node, nodes: Nodes, elsewhere: Elsewhere
) -> None:
    budget_id = new_id()
    mine = create(budget_id)
    other = await nodes()
    other.log.before_commit = halt = Halt()
    theirs = mine if who.startswith("the same") else create(budget_id, "Theirs")
    first = other.send("ann" if theirs is mine else "ben", theirs)
    await halt.reached()
    second = node.send("ann", mine, expense(budget_id))
    await elsewhere.someone_waits()  # in the insert
    halt.release(None if end == "commits" else OverflowError("a defect"))
    answer = outcomes(as_json(await within(second)))
    if end == "fails":
        with pytest.raises(OverflowError):
            await first
        assert answer == ["accepted", "accepted"]
    else:
        assert outcomes(as_json(await within(first))) == ["accepted"]
        assert answer == (["duplicate", "accepted"] if theirs is mine else ["BUDGET_EXISTS"])
    log = await elsewhere.log(budget_id)
    assert [sequence for _, sequence, _ in log] == list(range(1, len(log) + 1))
    assert len(log) == (1 if answer == ["BUDGET_EXISTS"] else 2)
    assert len({*node.delivered, *other.delivered}) == len([*node.delivered, *other.delivered])


async def test_new_budgets_are_inserted_in_id_order(node: Node, elsewhere: Elsewhere) -> None:
    """So that two hubs that create the same budgets cannot wait for each other in a circle."""
    budget_ids = [new_id() for _ in range(12)]
    insert = """
        INSERT INTO budgets (id, created_by, owner_id, title, version, offline_last_modified,
                             fingerprint, record_sequence, last_sequence, digest, fields_hash)
        VALUES ($1, 'ben', 'ben', 'Theirs', 1, 1, 0, 1, 1, 0, 'c')
    """
    transaction = elsewhere.connection.transaction()
    await transaction.start()
    await elsewhere.execute(insert, budget_ids[0])
    answer = node.send("ann", *map(create, reversed(budget_ids)))
    await elsewhere.someone_waits()
    await elsewhere.execute("SET LOCAL lock_timeout = '100ms'")  # before a deadlock is found
    for budget_id in budget_ids[1:]:
        await elsewhere.execute(insert, budget_id)  # nothing is in its way
    await transaction.rollback()
    assert outcomes(as_json(await within(answer))) == ["accepted"] * 12


async def test_budgets_are_locked_in_id_order(node: Node, elsewhere: Elsewhere) -> None:
    budget_ids = [new_id() for _ in range(12)]
    await node.made("ann", *map(create, reversed(budget_ids)))
    async with elsewhere.holding(budget_ids[0]):
        answer = node.send("ann", *[edit(budget_id, 1) for budget_id in reversed(budget_ids)])
        await elsewhere.someone_waits()
        free = """
            SELECT count(*) FROM (
                SELECT FROM budgets WHERE id = ANY($1::uuid[]) FOR NO KEY UPDATE SKIP LOCKED
            ) free
        """
        assert await elsewhere.fetchval(free, budget_ids[1:]) == 11
    assert outcomes(as_json(await within(answer))) == ["accepted"] * 12


# A budget locked elsewhere.


async def test_a_budget_locked_elsewhere_holds_up_nobody_else(
    node: Node, elsewhere: Elsewhere
) -> None:
    held, *others = [await node.new_budget() for _ in range(4)]
    async with elsewhere.holding(held):
        waiting = node.send("ann", edit(held, 1, title="Held"))
        free = [node.send("ann", edit(budget_id, 1, title="Free")) for budget_id in others]
        for answer in free:  # of the same batch
            assert outcomes(as_json(await within(answer))) == ["accepted"]
        for budget_id in others:  # and later ones
            assert outcomes(await node.told("ann", edit(budget_id, 2))) == ["accepted"]
        await elsewhere.someone_waits()
        assert not waiting.done()
    assert outcomes(as_json(await within(waiting))) == ["accepted"]


async def test_p4_a_budget_locked_for_too_long_is_busy(
    nodes: Nodes, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_session(monkeypatch, lock_timeout="100ms")
    node = await nodes()
    budget_id = await node.new_budget()
    change = edit(budget_id, 1)
    async with elsewhere.holding(budget_id):
        (verdict,) = await node.told("ann", change)
        assert verdict["error"]["message"] == "BUSY"
        assert verdict["error"]["retryable"] is True
        each = await node.told("ann", change, expense(budget_id), mode="each")
        assert outcomes(each) == ["BUSY", "BUSY"]
        stop = await node.told("ann", change, expense(budget_id))
        assert outcomes(stop) == ["BUSY"]
    assert outcomes(await node.told("ann", change)) == ["accepted"]
    assert len(await elsewhere.log(budget_id)) == 2


async def test_p4_p8_many_budgets_locked_elsewhere_are_busy_in_bounded_time(
    nodes: Nodes, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that may wait for a lock are few; the others do not wait for these for ever, and count
    as waiting as long as they do."""
    monkeypatch.setattr(committer_module, "APART_PER_USER", 2)
    node = await nodes(timeouts=replace(PATIENT, turn_s=0.5))
    monkeypatch.setattr(committer_module, "WAITING_EVENTS_MAX", 5)
    monkeypatch.setattr(committer_module, "WAITING_FEW", 0)
    held, free = [await node.new_budget() for _ in range(5)], await node.new_budget()
    transactions, refused = node.log.transactions, list[asyncio.Future[list[Verdict]]]()

    async def crowded() -> None:
        if node.log.transactions > transactions + 1:  # they are set apart, no time has passed since
            refused.append(node.send("ann", edit(free, 1)))

    node.log.before_lock = crowded
    async with elsewhere.holding(*held):
        answers = [node.send("ann", edit(budget_id, 1)) for budget_id in held]
        await elsewhere.someone_waits()
        node.log.before_lock = nothing
        assert {tuple(outcomes(as_json(answer.result()))) for answer in refused} == {("BUSY",)}
        done, waiting = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 3:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        for answer in done:
            assert outcomes(as_json(answer.result())) == ["BUSY"]
        assert outcomes(await node.told("ann", edit(free, 1))) == ["accepted"]
        assert len(waiting) == 2 and not any(answer.done() for answer in waiting)
    for answer in waiting:
        assert outcomes(as_json(await within(answer))) == ["accepted"]


async def test_a_budget_being_created_elsewhere_holds_up_nobody_else(
    nodes: Nodes, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub frozen between its insert and its commit: only that budget is `BUSY`."""
    set_session(monkeypatch, lock_timeout="100ms")
    node, other = await nodes(), await nodes()
    budget_id, others = new_id(), [await node.new_budget() for _ in range(3)]
    other.log.before_commit = halt = Halt()
    first = other.send("ben", create(budget_id))
    await halt.reached()
    second = node.send("ann", create(budget_id))
    free = [node.send("ann", edit(each, 1)) for each in others]
    for answer in free:
        assert outcomes(as_json(await within(answer))) == ["accepted"]
    assert outcomes(as_json(await within(second))) == ["BUSY"]
    halt.release()
    assert outcomes(as_json(await within(first))) == ["accepted"]


async def test_p2_order_within_a_budget_is_kept_when_its_first_submission_had_to_wait(
    node: Node, elsewhere: Elsewhere
) -> None:
    budget_id = await node.new_budget()
    async with elsewhere.holding(budget_id):
        answers = [node.send("ann", edit(budget_id, version)) for version in (1, 2)]
        await elsewhere.someone_waits()
        answers += [node.send("ann", edit(budget_id, version)) for version in (3, 4)]
        bystander = await node.new_budget()  # a batch later
        answers += [node.send("ann", edit(budget_id, version)) for version in (5, 6)]
    verdicts = [as_json(await within(answer))[0] for answer in answers]
    assert outcomes(verdicts) == ["accepted"] * 6
    assert [verdict["sequence"] for verdict in verdicts] == [2, 3, 4, 5, 6, 7]
    assert [at for at in node.delivered if at[0] != bystander] == [
        (budget_id, sequence) for sequence in range(1, 8)
    ]


async def test_p2_nothing_overtakes_a_submission_that_is_set_apart(
    node: Node, elsewhere: Elsewhere
) -> None:
    """… not even when the budget has become free before it asks for the lock again."""
    budget_id, bystander = await node.new_budget(), await node.new_budget()
    node.log.before_lock = halt = Halt(time=2)
    async with elsewhere.holding(budget_id):
        first = node.send("ann", edit(budget_id, 1))
        await halt.reached()  # found held, and now on its own
    second = node.send("ann", edit(budget_id, 2))
    await node.made("ann", edit(bystander, 1))  # all that could run has run
    assert not second.done()
    halt.release()
    for answer in (first, second):
        assert outcomes(as_json(await within(answer))) == ["accepted"]


async def test_p2_nothing_overtakes_a_submission_that_is_still_queued(node: Node) -> None:
    busy, shared, bystander = [await node.new_budget() for _ in range(3)]
    node.log.before_commit = halt = Halt()
    answers = [node.send("ann", edit(busy, 1))]
    await halt.reached()
    answers.append(node.send("ann", edit(busy, 2), edit(shared, 1)))
    answers.append(node.send("ann", edit(shared, 2)))
    await node.made("ann", edit(bystander, 1))  # all that could run has run
    assert not any(answer.done() for answer in answers)
    halt.release()
    for answer in answers:
        assert set(outcomes(as_json(await within(answer)))) == {"accepted"}


async def test_p2_a_waiting_submission_keeps_its_other_budgets_in_order_too(
    node: Node, elsewhere: Elsewhere
) -> None:
    held, shared = await node.new_budget(), await node.new_budget()
    async with elsewhere.holding(held):
        both = node.send("ann", edit(held, 1), edit(shared, 1, title="First"))
        after = node.send("ann", edit(shared, 2, title="Second"))
        await elsewhere.someone_waits()
        later = node.send("ann", edit(shared, 3, title="Third"))
        # Not even the free budget goes ahead: under `stop` the held one's verdict comes first.
        assert [at for at in await elsewhere.log(shared) if at[1] > 1] == []
    for answer in (both, after, later):
        assert set(outcomes(as_json(await within(answer)))) == {"accepted"}


async def test_stop_waits_for_a_held_budget_before_it_touches_the_next(
    node: Node, nodes: Nodes, elsewhere: Elsewhere
) -> None:
    held, free = await node.new_budget(), await node.new_budget()
    other = await nodes()
    other.log.before_commit = halt = Halt()
    winner = other.send("ann", edit(held, 1, title="Theirs"))
    await halt.reached()
    answer = node.send("ann", edit(free, 1), edit(held, 1, title="Ours"), edit(free, 2))
    await elsewhere.someone_waits()
    halt.release()
    await within(winner)
    assert outcomes(as_json(await within(answer))) == ["accepted", "conflict"]
    assert len(await elsewhere.log(free)) == 2


# A batch that fails on data.


@pytest.fixture
async def poison(elsewhere: Elsewhere) -> None:
    """A title that passes every check of ours, and not the database's."""
    await elsewhere.execute("ALTER TABLE budgets ADD CHECK (title <> 'poison')")


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("place", [0, 3, 6])
async def test_a_poison_event_is_isolated_and_the_rest_of_its_batch_accepted(
    place: int, node: Node, elsewhere: Elsewhere
) -> None:
    budget_id = await node.new_budget()
    lines = [("ann", expense(budget_id)) for _ in range(4)]
    lines += [("ben", create(new_id())) for _ in range(2)]
    lines.insert(place, ("ann", edit(budget_id, 1, title="poison")))
    with capture_logs() as logs:
        answers = [node.send(user, line) for user, line in lines]
        verdicts = [as_json(await within(answer))[0] for answer in answers]
    expected = ["accepted"] * 7
    expected[place] = "INTERNAL_SERVER_ERROR"
    assert outcomes(verdicts) == expected
    assert verdicts[place]["error"]["retryable"] is False
    assert [entry["log_level"] for entry in logs] == ["error"]
    log = await elsewhere.log(budget_id)
    assert [sequence for _, sequence, _ in log] == [1, 2, 3, 4, 5]
    assert [at[1] for at in node.delivered if at[0] == budget_id] == [1, 2, 3, 4, 5]
    # Nothing is stuck afterwards.
    await node.made("ann", edit(budget_id, 1, title="fine"))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("place", [0, 2, 3, 5])
@pytest.mark.parametrize("mode", ["stop", "each"])
async def test_stop_holds_across_a_split(
    mode: Mode, place: int, node: Node, elsewhere: Elsewhere
) -> None:
    """After the poison nothing of its submission runs, in whichever half or budget it is."""
    budget_ids = [await node.new_budget(), await node.new_budget()]
    batch = [expense(budget_ids[number % 2]) for number in range(6)]
    batch[place] = edit(batch[place]["budgetId"], 1, title="poison")
    with capture_logs():
        beside = node.send("ann", expense(budget_ids[0]))
        verdicts = await node.told("ann", *batch, mode=mode)
        assert outcomes(as_json(await within(beside))) == ["accepted"]
    expected = ["accepted"] * 6
    expected[place] = "INTERNAL_SERVER_ERROR"
    if mode == "stop":
        expected = expected[: place + 1]
    assert outcomes(verdicts) == expected
    sent = {line["eventId"] for line in batch}
    accepted = {event_id for _, _, event_id in await elsewhere.log(*budget_ids)} & sent
    assert accepted == {
        verdict["eventId"] for verdict in verdicts if verdict["status"] == "accepted"
    }


@pytest.mark.usefixtures("poison")
async def test_stop_holds_across_a_split_and_a_held_budget(
    node: Node, elsewhere: Elsewhere
) -> None:
    """Poison splits the batch; before the halves are tried, another hub takes a budget of the
    first: the rest of that submission waits behind it."""
    held, free = await node.new_budget(), await node.new_budget()
    node.log.before_lock = halt = Halt(time=2)
    with capture_logs():
        answer = node.send(
            "ann", edit(held, 1), edit(held, 2), edit(free, 1), edit(free, 2, title="poison")
        )
        await halt.reached()
        async with elsewhere.holding(held):
            halt.release()
            await elsewhere.someone_waits()
            assert len(await elsewhere.log(free)) == 1  # not ahead of the first half
        verdicts = as_json(await within(answer))
    assert outcomes(verdicts) == ["accepted"] * 3 + ["INTERNAL_SERVER_ERROR"]


@pytest.mark.usefixtures("poison")
async def test_p2_order_within_a_budget_is_kept_across_a_split_and_two_held_budgets(
    node: Node, elsewhere: Elsewhere
) -> None:
    """Of the second half, one submission waits behind the first half and another is found held:
    they share a budget."""
    one, two, spoilt = [await node.new_budget() for _ in range(3)]
    node.log.before_lock = halt = Halt(time=2)
    with capture_logs():
        answers = [
            node.send("ann", edit(one, 1)),
            node.send("ann", edit(spoilt, 1, title="poison")),
            node.send("ann", edit(two, 1)),
            node.send("ann", edit(one, 2), edit(two, 2)),
        ]
        await halt.reached()
        async with elsewhere.holding(one, two):
            halt.release()
            await elsewhere.someone_waits()
        verdicts = [outcomes(as_json(await within(answer))) for answer in answers]
    assert verdicts == [["accepted"], ["INTERNAL_SERVER_ERROR"], ["accepted"], ["accepted"] * 2]


# A connection that is lost.


async def test_p4_a_connection_killed_before_commit_is_retried(
    node: Node, elsewhere: Elsewhere
) -> None:
    budget_id = await node.new_budget()
    node.log.before_commit = halt = Halt()
    answer = node.send("ann", expense(budget_id))
    await halt.reached()
    await elsewhere.kill_who_is("idle in transaction")
    halt.release()
    assert outcomes(as_json(await within(answer))) == ["accepted"]
    assert len(await elsewhere.log(budget_id)) == 2
    assert node.delivered == [(budget_id, 1), (budget_id, 2)]


@pytest.fixture
async def slow_commit(elsewhere: Elsewhere) -> None:
    """COMMIT waits for whoever holds this advisory lock."""
    await elsewhere.execute(
        """
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(7);
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON accepted_events
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow();
        """
    )


@pytest.mark.usefixtures("slow_commit")
async def test_p4_a_connection_killed_in_commit_is_retried(
    node: Node, elsewhere: Elsewhere
) -> None:
    budget_id = await node.new_budget()
    await elsewhere.execute("SELECT pg_advisory_lock(7)")
    answer = node.send("ann", expense(budget_id))
    await elsewhere.someone_waits()
    await elsewhere.kill_who_is("active")
    await elsewhere.execute("SELECT pg_advisory_unlock(7)")
    assert outcomes(as_json(await within(answer))) == ["accepted"]
    assert len(await elsewhere.log(budget_id)) == 2
    assert node.delivered == [(budget_id, 1), (budget_id, 2)]


ANSWER_LOST = Disconnected("the answer to COMMIT was lost")


async def test_p4_a_commit_whose_answer_was_lost_is_our_own_and_no_duplicate(
    node: Node, elsewhere: Elsewhere
) -> None:
    """Found in the log by the retry: answered as if nothing had happened, delivered once."""
    budget_id = await node.new_budget()
    known = expense(budget_id)
    await node.made("ann", known)
    node.log.after_commit = once(ANSWER_LOST)
    first, twin = expense(budget_id), expense(budget_id)
    answers = [
        node.send("ann", known),  # settled long ago: this stays a duplicate
        node.send("ann", first, edit(budget_id, 9), mode="each"),
        node.send("ann", twin),
        node.send("ann", twin),  # in the same batch, once more
    ]
    verdicts = [outcomes(as_json(await within(answer))) for answer in answers]
    assert verdicts == [["duplicate"], ["accepted", "conflict"], ["accepted"], ["duplicate"]]
    assert [at[1:] for at in await elsewhere.log(budget_id)][2:] == [
        (3, first["eventId"]),
        (4, twin["eventId"]),
    ]
    assert node.delivered == [(budget_id, sequence) for sequence in (1, 2, 3, 4)]


async def test_p4_what_our_lost_commit_left_is_ours_also_after_waiting_for_another_hub(
    node: Node, elsewhere: Elsewhere
) -> None:
    """The retry finds the budget locked and is set apart; it must still know what was its own."""
    budget_id = await node.new_budget()
    halt = Halt()
    node.log.after_commit = halt
    line = expense(budget_id)
    answer = node.send("ann", line)
    await halt.reached()
    async with elsewhere.holding(budget_id):
        halt.release(ANSWER_LOST)
        await elsewhere.someone_waits()
    assert outcomes(as_json(await within(answer))) == ["accepted"]
    assert node.delivered == [(budget_id, 1), (budget_id, 2)]
    assert outcomes(await node.told("ann", line)) == ["duplicate"]


@pytest.mark.usefixtures("poison")
async def test_p4_what_our_lost_commit_left_is_ours_also_after_a_split(
    node: Node, nodes: Nodes, elsewhere: Elsewhere
) -> None:
    """The lost commit held one event and a conflict; by the retry the conflict is none any more,
    but poison."""
    budget_id = await node.new_budget()
    node.log.after_commit = halt = Halt()
    with capture_logs():
        answers = [
            node.send("ann", expense(budget_id)),
            node.send("ann", edit(budget_id, 2, title="poison")),
        ]
        await halt.reached()
        other = await nodes()
        await other.made("ann", edit(budget_id, 1))
        halt.release(ANSWER_LOST)
        verdicts = [outcomes(as_json(await within(answer)))[0] for answer in answers]
    assert verdicts == ["accepted", "INTERNAL_SERVER_ERROR"]
    assert node.delivered == [(budget_id, 1), (budget_id, 2)]
    assert len(await elsewhere.log(budget_id)) == 3


async def test_p4_a_commit_that_failed_for_certain_is_no_one_elses_duplicate(
    node: Node, nodes: Nodes, elsewhere: Elsewhere
) -> None:
    """Our transaction was lost, and another node committed the same event of the same user: one
    event, one sequence."""
    budget_id = await node.new_budget()
    other = await nodes()
    line = expense(budget_id)
    halt = Halt()
    node.log.before_commit = halt
    answer = node.send("ann", line)
    await halt.reached()
    await elsewhere.kill_who_is("idle in transaction")
    (original,) = await other.made("ann", line)
    halt.release()
    (verdict,) = as_json(await within(answer))
    verdict.pop("duplicate", None)
    assert verdict == original
    assert len(await elsewhere.log(budget_id)) == 2


async def test_p10_while_postgres_is_away_events_are_unavailable_and_nothing_is_lost(
    nodes: Nodes, database_url: str, elsewhere: Elsewhere
) -> None:
    async with Proxy(database_url) as proxy:
        node = await nodes(proxy.url, timeouts=HASTY)
        budget_id = await node.new_budget()
        line = expense(budget_id)
        await proxy.cut()
        with capture_logs() as logs:
            (verdict,) = await node.told("ann", line)
        assert [entry["event"] for entry in logs] == ["commit given up"]
        assert verdict["error"]["message"] == "UNAVAILABLE"
        assert verdict["error"]["retryable"] is True
        with capture_logs():
            each = await node.told("ann", line, expense(budget_id), mode="each")
        assert outcomes(each) == ["UNAVAILABLE", "UNAVAILABLE"]
        assert len(await elsewhere.log(budget_id)) == 1
        await proxy.heal()
        node.committer._timeouts = PATIENT
        assert outcomes(await node.told("ann", line)) == ["accepted"]
        assert node.delivered == [(budget_id, 1), (budget_id, 2)]


async def test_p10_a_short_absence_of_postgres_is_not_noticed(
    nodes: Nodes, database_url: str
) -> None:
    async with Proxy(database_url) as proxy:
        node = await nodes(proxy.url)
        budget_id = await node.new_budget()
        await proxy.cut()
        node.log.before_lock = halt = Halt()
        answer = node.send("ann", expense(budget_id))
        await halt.reached()
        halt.release()
        attempts = node.log.transactions

        async def tried_in_vain() -> bool:
            return node.log.transactions > attempts

        await eventually(tried_in_vain)
        await proxy.heal()
        assert outcomes(as_json(await within(answer))) == ["accepted"]


async def test_p10_while_postgres_has_no_room_events_are_unavailable_and_none_is_blamed(
    nodes: Nodes, elsewhere: Elsewhere
) -> None:
    """A batch is not taken apart in search of the one that cannot be stored; and all of it is
    accepted as soon as there is room."""
    node = await nodes(timeouts=HASTY)
    budget_id = await node.new_budget()
    lines = [expense(budget_id) for _ in range(5)]
    await elsewhere.execute(FILL)
    with capture_logs() as logs:
        refused = await node.told("ann", *lines, mode="each")
    assert outcomes(refused) == ["UNAVAILABLE"] * 5
    assert {verdict["error"]["retryable"] for verdict in refused} == {True}
    [given_up] = logs
    assert (given_up["event"], given_up["log_level"]) == ("commit given up", "warning")
    assert "No space left on device" in given_up["error"]
    assert len(await elsewhere.log(budget_id)) == 1
    await elsewhere.execute(MAKE_ROOM)
    node.committer._timeouts = PATIENT
    assert outcomes(await node.told("ann", *lines)) == ["accepted"] * 5
    assert len(await elsewhere.log(budget_id)) == 6


# What the server says, and what it means.


@pytest.mark.parametrize("errcode", ["40001", "40P01", "23505", "57014"])
async def test_p4_a_commit_that_the_server_turns_down_once_is_decided_afresh(
    errcode: str, node: Node, elsewhere: Elsewhere
) -> None:
    """Serialization failure, deadlock, unique violation, cancelled statement: never a verdict."""
    budget_id = await node.new_budget()
    await elsewhere.execute(
        f"""
        CREATE SEQUENCE commits;
        CREATE FUNCTION turn_down() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('commits') = 1 THEN
                RAISE EXCEPTION 'not this time' USING ERRCODE = '{errcode}';
            END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER turn_down AFTER INSERT ON accepted_events
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION turn_down();
        """
    )
    await node.made("ann", expense(budget_id))
    assert await elsewhere.fetchval("SELECT last_value FROM commits") == 2
    assert node.delivered == [(budget_id, 1), (budget_id, 2)]
    assert len(await elsewhere.log(budget_id)) == 2


async def test_p4_races_that_never_end_are_busy(node: Node, elsewhere: Elsewhere) -> None:
    async def lose() -> None:
        raise LostRace("again")

    budget_id = await node.new_budget()
    line = expense(budget_id)
    node.log.before_commit = lose
    with capture_logs() as logs:
        assert outcomes(await node.told("ann", line)) == ["BUSY"]
    assert [entry["log_level"] for entry in logs] == ["error"]
    node.log.before_commit = nothing
    await node.made("ann", line)
    assert len(await elsewhere.log(budget_id)) == 2


# Bounds.


async def test_p8_a_full_queue_is_busy_at_once(
    node: Node, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "WAITING_EVENTS_MAX", 5)
    monkeypatch.setattr(committer_module, "WAITING_FEW", 0)
    budget_id = await node.new_budget()
    queued = [node.send("ann", expense(budget_id), expense(budget_id)) for _ in range(2)]
    full = node.send("ann", expense(budget_id), expense(budget_id))
    each = node.send("ann", expense(budget_id), expense(budget_id), mode="each")
    assert (full.done(), each.done()) == (True, True)
    (verdict,) = as_json(await full)
    assert (verdict["error"]["message"], verdict["error"]["retryable"]) == ("BUSY", True)
    assert outcomes(as_json(await each)) == ["BUSY", "BUSY"]
    queued.append(node.send("ann", expense(budget_id)))  # there is room for one
    for answer in queued:
        assert set(outcomes(as_json(await within(answer)))) == {"accepted"}
    await node.made("ann", *[expense(budget_id) for _ in range(5)])  # and again for five
    assert len(await elsewhere.log(budget_id)) == 11


async def test_p20_a_few_events_have_room_where_others_fill_the_queue(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "WAITING_EVENTS_MAX", 4)
    monkeypatch.setattr(committer_module, "WAITING_FEW", 2)
    budgets = {user: await node.new_budget(user) for user in ("ann", "ben", "cyd", "dee")}
    queued = [
        node.send(user, expense(budgets[user]), expense(budgets[user])) for user in ("ann", "ben")
    ]
    assert node.send("ann", expense(budgets["ann"])).done()  # has more than a few already
    queued += [
        node.send(user, expense(budgets[user]), expense(budgets[user])) for user in ("cyd", "dee")
    ]
    assert node.send("eve", expense(budgets["ann"])).done()  # twice as many, and no more
    for answer in queued:
        assert set(outcomes(as_json(await within(answer)))) == {"accepted"}


async def test_a_frozen_hub_holds_a_row_for_a_moment_only(
    nodes: Nodes, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await nodes()
    set_session(monkeypatch, idle_in_transaction_session_timeout="50ms")
    frozen = await nodes()
    budget_id = await node.new_budget()
    frozen.log.before_commit = halt = Halt()
    stuck = frozen.send("ann", edit(budget_id, 1, title="Frozen"))
    await halt.reached()
    assert outcomes(await node.told("ann", edit(budget_id, 1, title="Quick"))) == ["accepted"]
    halt.release()  # it wakes up, finds its connection gone, and decides afresh
    assert outcomes(as_json(await within(stuck))) == ["conflict"]
    assert len(await elsewhere.log(budget_id)) == 2


async def test_hubs_ask_the_server_to_notice_within_seconds_that_they_are_gone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_session(monkeypatch, **AS_IN_SERVICE)
    database = await Database.connect(database_url)
    try:
        async with database.committing() as connection:
            shown = {
                name: await connection.fetchval("SELECT current_setting($1)", name)
                for name in (
                    "synchronous_commit",
                    "transaction_isolation",
                    "idle_in_transaction_session_timeout",
                    "lock_timeout",
                    "tcp_keepalives_idle",
                    "tcp_keepalives_interval",
                    "tcp_keepalives_count",
                )
            }
    finally:
        await database.close()
    assert shown == {
        "synchronous_commit": "on",  # P1
        "transaction_isolation": "read committed",
        "idle_in_transaction_session_timeout": "3s",
        "lock_timeout": "5s",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
    }


async def test_readers_do_not_starve_commits(database: Database) -> None:
    node = Node(database)
    async with AsyncExitStack() as readers:
        for purpose, share in SHARES.items():
            for number in range(share.connections if purpose != "commits" else 0):
                await readers.enter_async_context(database.connection(purpose, f"user {number}"))
        await node.new_budget()


async def test_events_that_arrive_during_a_commit_are_the_next_batch(nodes: Nodes) -> None:
    """Group commit, without a timer."""
    node = await nodes(lanes=1)
    log = node.log
    budget_ids = [await node.new_budget() for _ in range(30)]
    log.before_commit = halt = Halt()
    before = log.transactions
    first = node.send("ann", expense(budget_ids[0]))
    await halt.reached()
    rest = [node.send("ann", expense(budget_id)) for budget_id in budget_ids for _ in range(3)]
    await asyncio.sleep(0)
    assert log.transactions == before + 1
    halt.release()
    for answer in (first, *rest):
        assert outcomes(as_json(await within(answer))) == ["accepted"]
    assert log.transactions == before + 2


async def test_p11_a_closing_socket_cancels_no_commit(node: Node, elsewhere: Elsewhere) -> None:
    budget_id = await node.new_budget()
    node.log.before_commit = halt = Halt()
    abandoned = node.send("ann", expense(budget_id))
    await halt.reached()
    abandoned.cancel()
    queued = node.send("ann", expense(budget_id))
    queued.cancel()
    halt.release()
    await within(node.committer.drain())
    assert len(await elsewhere.log(budget_id)) == 3
    assert node.delivered == [(budget_id, 1), (budget_id, 2), (budget_id, 3)]


async def test_a_large_category_is_cascaded_in_sql_and_not_loaded(
    node: Node, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget_id, category_id = await node.new_budget(), new_id()
    add = event("category.add", budget_id, recordId=category_id, name="Food", allocate="1")
    await node.made("ann", add)
    loaded: list[int] = []
    load = PostgresTransaction.load

    async def watched(self: PostgresTransaction, want: Want) -> dict[BudgetId, BudgetState]:
        states = await load(self, want)
        loaded.append(
            sum(kind == "expense" for state in states.values() for kind, _ in state.records)
        )
        return states

    for _ in range(5):
        await node.made("ann", *[expense(budget_id, categoryId=category_id) for _ in range(100)])
    keep = expense(budget_id)
    await node.made("ann", keep)
    monkeypatch.setattr(PostgresTransaction, "load", watched)
    gone = event("category.delete", budget_id, recordId=category_id, version=1, when=9)
    (verdict,) = await node.made("ann", gone)
    assert loaded == [0]
    rows = await elsewhere.connection.fetch(
        """
        SELECT deleted, version, last_sequence, offline_last_modified, count(*) FROM expenses
        WHERE budget_id = $1 GROUP BY 1, 2, 3, 4 ORDER BY deleted
        """,
        budget_id,
    )
    assert [tuple(row) for row in rows] == [
        (False, 1, verdict["sequence"] - 1, 1, 1),
        (True, 2, verdict["sequence"], 9, 500),
    ]
    await check_budget(node, budget_id)


async def test_p20_a_deletion_that_is_refused_reads_no_expense(
    node: Node, elsewhere: Elsewhere
) -> None:
    """Whoever sends it: a stranger, or who names no category that lives, or an old version."""
    budget_id, category_id = await node.new_budget(), new_id()
    add = event("category.add", budget_id, recordId=category_id, name="Food", allocate="1")
    await node.made("ann", add, expense(budget_id, categoryId=category_id))
    gone = event("category.delete", budget_id, recordId=category_id, version=1)
    stale = {**gone, "eventId": new_id(), "version": 2}
    unknown = {**gone, "eventId": new_id(), "recordId": new_id()}
    async with elsewhere.connection.transaction():
        # Reading it would wait, until the lock timeout makes the verdict BUSY.
        await elsewhere.execute("LOCK TABLE expenses IN ACCESS EXCLUSIVE MODE")
        told = await node.told("ann", stale, unknown, mode="each")
        assert outcomes(told) == ["conflict", "CATEGORY_NOT_EXISTS"]
        assert outcomes(await node.told("eve", gone)) == ["BUDGET_NOT_EXISTS"]
    assert outcomes(await node.told("ann", gone)) == ["accepted"]
    await check_budget(node, budget_id)


async def test_p6_a_servers_own_way_of_writing_dates_changes_nothing(
    nodes: Nodes, elsewhere: Elsewhere
) -> None:
    name = await elsewhere.fetchval("SELECT quote_ident(current_database())")
    await elsewhere.execute(f"ALTER DATABASE {name} SET datestyle = 'German'")
    node = await nodes()
    budget_id = await node.new_budget()
    lunch = expense(budget_id, date="2026-03-01")
    await node.made("ann", lunch)
    change = {"recordId": lunch["recordId"], "note": "Café"}
    (verdict,) = await node.made("ann", event("expense.edit", budget_id, version=1, **change))
    assert verdict["record"]["date"] == "2026-03-01"
    await check_budget(node, budget_id)


# A defect of ours.


@pytest.mark.parametrize("where", ["decide", "publish", "write"])
async def test_p4_a_defect_fails_the_answers_and_nothing_hangs(
    where: str, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise OverflowError("a defect")

    complaints: list[Any] = []
    gc.collect()  # what others left is not complained of here
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    budget_id, other_id = await node.new_budget(), await node.new_budget()
    line = expense(budget_id)
    with monkeypatch.context() as patch:
        if where == "decide":
            patch.setattr(committer_module, "decide", broken)
        elif where == "publish":
            patch.setattr(node.committer, "_publish", broken)
        else:
            patch.setattr(PostgresTransaction, "write", broken)
        answers = [
            node.send("ann", line),
            node.send("ann", expense(budget_id), expense(other_id), mode="each"),
        ]
        for answer in answers:
            with pytest.raises(OverflowError):
                await within(answer)
        await within(node.committer.drain())
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert complaints == []  # each edge logs its own
    # The connections end; a resend settles it, and no budget or lane is stuck.
    expected = ["duplicate"] if where == "publish" else ["accepted"]
    assert outcomes(await node.told("ann", line)) == expected
    assert outcomes(await node.told("ann", expense(other_id))) == ["accepted"]


async def test_a_defect_that_nobody_waits_for_is_logged(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise OverflowError("a defect")

    budget_id = await node.new_budget()
    monkeypatch.setattr(committer_module, "decide", broken)
    with capture_logs() as lines:
        node.send("ann", expense(budget_id)).cancel()
        await within(node.committer.drain())
        await asyncio.sleep(0)
    assert [(line["event"], line["log_level"]) for line in lines] == [("commit failed", "error")]
    assert isinstance(lines[0]["exc_info"], OverflowError)


async def test_p4_a_defect_while_apart_fails_the_answer_too(
    node: Node, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise OverflowError("a defect")

    budget_id = await node.new_budget()
    with monkeypatch.context() as patch:
        async with elsewhere.holding(budget_id):
            answer = node.send("ann", expense(budget_id))
            await elsewhere.someone_waits()
            patch.setattr(committer_module, "decide", broken)
        with pytest.raises(OverflowError):
            await within(answer)
    await node.made("ann", expense(budget_id))


# P1: acknowledgements come only after the commit is visible to everybody.


async def acknowledged_in_time(
    node: Node, elsewhere: Elsewhere, budget_ids: Sequence[BudgetId]
) -> bool:
    """Whether no acknowledgement is ahead of what another connection can see."""
    in_time = True
    answers = [node.send("ann", expense(budget_id)) for budget_id in budget_ids]
    for answer in asyncio.as_completed(answers):
        (verdict,) = as_json(await within(answer))
        said = verdict["budgetId"], verdict["sequence"], verdict["eventId"]
        in_time &= said in await elsewhere.log(verdict["budgetId"])
    return in_time


async def test_p1_a_verdict_comes_after_its_commit(node: Node, elsewhere: Elsewhere) -> None:
    budget_ids = [await node.new_budget() for _ in range(3)]
    for _ in range(4):
        assert await acknowledged_in_time(node, elsewhere, budget_ids * 4)


@pytest.mark.usefixtures("slow_commit")
async def test_p1_nothing_is_said_while_commit_has_not_returned(
    node: Node, elsewhere: Elsewhere
) -> None:
    budget_id = await node.new_budget()
    await elsewhere.execute("SELECT pg_advisory_lock(7)")
    answer = node.send("ann", expense(budget_id))
    await elsewhere.someone_waits()  # in COMMIT
    assert not answer.done()
    assert node.delivered == [(budget_id, 1)]
    await elsewhere.execute("SELECT pg_advisory_unlock(7)")
    assert outcomes(as_json(await within(answer))) == ["accepted"]


# Two nodes under contention.


class Writer:
    """Changes budgets as fast as it can, each time the version it last heard of."""

    def __init__(self, name: UserId, node: Node, budget_ids: Sequence[BudgetId]) -> None:
        self.name = name
        self._node = node
        self._budget_ids = budget_ids
        self.verdicts: list[Json] = []

    async def write(self, times: int) -> Self:
        versions = dict.fromkeys(self._budget_ids, 1)
        for number in range(times):
            budget_id = self._budget_ids[number % len(self._budget_ids)]
            change = edit(budget_id, versions[budget_id], title=f"{self.name} {number}")
            (verdict,) = await self._node.told("ann", change)
            self.verdicts.append(verdict)
            record = verdict.get("record") or verdict["currentRecord"]
            versions[budget_id] = record["version"]
        return self


def faults_of(log: Sequence[Json], verdicts: Sequence[Json]) -> list[str]:
    """What is wrong with one budget's log and with what its writers heard. Each contested version
    is won exactly once; accepted is in the log, once, and nothing else is."""
    faults = []
    if [event["sequence"] for event in log] != list(range(1, len(log) + 1)):
        faults.append("sequences are not dense")
    if [event["version"] for event in log] != list(range(1, len(log) + 1)):
        faults.append("versions fork")
    if len({event["eventId"] for event in log}) < len(log):
        faults.append("an event stands twice")
    accepted = [verdict for verdict in verdicts if verdict["status"] == "accepted"]
    if any(count > 1 for count in Counter(v["version"] for v in accepted).values()):
        faults.append("a version was won twice")
    heard = {(v["eventId"], v["sequence"], v["version"]) for v in accepted}
    if heard != {(e["eventId"], e["sequence"], e["version"]) for e in log[1:]}:
        faults.append("what was said is not what stands in the log")
    return faults


async def stream_of(node: Node, budget_id: BudgetId) -> list[Json]:
    page = await node.log.page(budget_id, None, 0, INTEGER_MAX, 10_000)
    assert page is not None
    return [orjson.loads(each.event) for each in page.events]


async def check_budget(node: Node, budget_id: BudgetId) -> None:
    """P6: the log replayed is the snapshot, with the same digest at every event."""
    stream = await stream_of(node, budget_id)
    replica = Replica(budget_id)
    for each in stream:
        replica.apply(each)
    snapshot = orjson.loads((await node.snapshots.read(budget_id, "ann")).text)
    assert replica.difference(Replica.from_snapshot(snapshot)) is None


@pytest.mark.parametrize(("budgets", "writers", "times"), [(1, 20, 30), (20, 20, 60)])
async def test_p2_two_nodes_with_twenty_writers_each_keep_every_log_dense(
    budgets: int, writers: int, times: int, nodes: Nodes
) -> None:
    pair = [await nodes(), await nodes()]
    budget_ids = [await pair[0].new_budget() for _ in range(budgets)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(
                Writer(f"{place}-{number}", node, rotated(budget_ids, number)).write(times)
            )
            for place, node in enumerate(pair)
            for number in range(writers)
        ]
    verdicts = [verdict for task in tasks for verdict in task.result().verdicts]
    assert {verdict["status"] for verdict in verdicts} == {"accepted", "conflict"}
    for budget_id in budget_ids:
        log = await stream_of(pair[0], budget_id)
        of_budget = [verdict for verdict in verdicts if verdict["budgetId"] == budget_id]
        assert faults_of(log, of_budget) == []
        await check_budget(pair[0], budget_id)
        delivered = [at for node in pair for at in node.delivered if at[0] == budget_id]
        assert sorted(delivered) == [(budget_id, event["sequence"]) for event in log]
        for node in pair:
            mine = [sequence for id, sequence in node.delivered if id == budget_id]
            assert mine == sorted(mine)


def rotated(budget_ids: Sequence[BudgetId], by: int) -> list[BudgetId]:
    by %= len(budget_ids)
    return [*budget_ids[by:], *budget_ids[:by]]


# The checks checked.


GOOD_LOG = [{"eventId": f"e{n}", "sequence": n, "version": n} for n in range(1, 6)]
GOOD_VERDICTS = [{**event, "status": "accepted"} for event in GOOD_LOG[1:]] + [
    {"eventId": "late", "status": "conflict"}
]


def test_a_good_history_has_no_faults() -> None:
    assert faults_of(GOOD_LOG, GOOD_VERDICTS) == []


@pytest.mark.parametrize(
    ("log", "verdicts", "fault"),
    [
        (GOOD_LOG[:-1], GOOD_VERDICTS, "what was said is not what stands in the log"),
        (GOOD_LOG, GOOD_VERDICTS[1:], "what was said is not what stands in the log"),
        ([*GOOD_LOG[:2], *GOOD_LOG[3:]], GOOD_VERDICTS, "sequences are not dense"),
        ([*GOOD_LOG, GOOD_LOG[-1]], GOOD_VERDICTS, "an event stands twice"),
        ([*GOOD_LOG, GOOD_LOG[-1]], GOOD_VERDICTS, "sequences are not dense"),
        ([*GOOD_LOG, {**GOOD_LOG[-1], "sequence": 6}], GOOD_VERDICTS, "versions fork"),
        (
            GOOD_LOG,
            [*GOOD_VERDICTS, {**GOOD_VERDICTS[0], "eventId": "e9"}],
            "a version was won twice",
        ),
    ],
)
def test_a_planted_fault_is_found(log: list[Json], verdicts: list[Json], fault: str) -> None:
    assert fault in faults_of(log, verdicts)


class Hasty(Halting):
    """Says that it has committed when it is only about to."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.commits: list[asyncio.Task[None]] = []
        self.go_on = asyncio.Event()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        begun: asyncio.Future[PostgresTransaction] = asyncio.get_running_loop().create_future()

        async def commit_later() -> None:
            async with PostgresLog.transaction(self) as transaction:
                begun.set_result(transaction)
                await self.go_on.wait()

        self.commits.append(asyncio.create_task(commit_later()))
        yield await begun


async def test_an_acknowledgement_before_the_commit_is_noticed(
    node: Node, elsewhere: Elsewhere, database: Database
) -> None:
    budget_ids = [await node.new_budget() for _ in range(3)]
    log = Hasty(database)
    assert not await acknowledged_in_time(Node(database, log), elsewhere, budget_ids)
    log.go_on.set()
    await asyncio.gather(*log.commits)
    assert len(await elsewhere.log(*budget_ids)) == 6  # which is why only a second look tells
