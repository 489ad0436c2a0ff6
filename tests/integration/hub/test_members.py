"""Membership that races, on a real Postgres: two nodes, one budget, and the log decides (P2, P9).

The order is forced with `Halt` where it matters; where it does not, what raced is held against the
order in which the log has it.
"""

import asyncio
import itertools
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
import pytest

from hub.budget.events import Joining
from hub.budget.records import BudgetId, Invite, UserId
from hub.budget.verdicts import Verdict
from hub.errors import Disconnected
from storage.care.verify import verify
from storage.postgres.core.invites import Invites
from storage.postgres.database import Database
from tests.model import JOINS, LEAVES, made
from tests.racing import (
    NOW_MS,
    Elsewhere,
    Halt,
    Json,
    Node,
    Nodes,
    as_json,
    ask,
    create,
    edit,
    new_id,
    once,
    outcomes,
    within,
)

LIMIT = 10
ROUNDS = 15
SEED = int(os.environ.get("STORM_SEED", random.randrange(2**32)))  # repeats a long run


@pytest.fixture
async def other(nodes: Nodes) -> Node:
    return await nodes()


Answer = asyncio.Future[list[Verdict]]


def joins(node: Node, budget_id: BudgetId, user: UserId, *, limit: int = LIMIT) -> Answer:
    return requested(node, budget_id, user, JOINS, user, limit)


def leaves(node: Node, budget_id: BudgetId, user: UserId) -> Answer:
    return requested(node, budget_id, user, LEAVES, user)


def removes(node: Node, budget_id: BudgetId, owner: UserId, user: UserId) -> Answer:
    return requested(node, budget_id, owner, LEAVES, user)


def requested(
    node: Node, budget_id: BudgetId, actor: UserId, event_type: str, user: UserId, limit: int = 1
) -> Answer:
    wire = {"eventId": new_id(), "eventType": event_type, "budgetId": budget_id, "when": 1}
    event = made({**wire, "recordId": user}, limit)
    return ask(node.committer, actor, [event], "stop")


async def outcome(answer: Awaitable[list[Verdict]]) -> str:
    [verdict] = outcomes(as_json(await within(answer)))
    return verdict


async def a_budget(node: Node, *users: UserId) -> BudgetId:
    """ann's; these take part."""
    budget_id = await node.new_budget("ann")
    for user in users:
        assert await outcome(joins(node, budget_id, user)) == "accepted"
    return budget_id


async def log_of(elsewhere: Elsewhere, budget_id: BudgetId) -> list[Json]:
    rows = await elsewhere.connection.fetch(
        "SELECT event FROM accepted_events WHERE budget_id = $1 ORDER BY sequence", budget_id
    )
    return [orjson.loads(row["event"]) for row in rows]


async def participants(elsewhere: Elsewhere, budget_id: BudgetId) -> dict[UserId, str]:
    """How each of them stands, by the table."""
    rows = await elsewhere.connection.fetch(
        "SELECT user_id, active, removed_at FROM participants WHERE budget_id = $1", budget_id
    )
    return {
        user: "in" if active else "left" if removed_at is None else "removed"
        for user, active, removed_at in rows
    }


def told_by(log: Sequence[Json]) -> dict[UserId, str]:
    """How each of them stands, by the log."""
    standing = {log[0]["actorId"]: "in"}
    for event in log:
        if event["eventType"] == JOINS:
            standing[event["recordId"]] = "in"
        elif event["eventType"] == LEAVES:
            left = event["actorId"] == event["recordId"]
            standing[event["recordId"]] = "left" if left else "removed"
    return standing


async def agrees(elsewhere: Elsewhere, database: Database, budget_id: BudgetId) -> list[Json]:
    """The log, after it was seen to be dense and to make what stands in the tables."""
    log = await log_of(elsewhere, budget_id)
    assert [event["sequence"] for event in log] == list(range(1, len(log) + 1))
    assert await participants(elsewhere, budget_id) == told_by(log)
    assert [str(found) async for found in verify(database, budget_id, lambda _: None)] == []
    return log


@pytest.mark.parametrize("budgets", [1, 5])
async def test_p2_of_fifty_who_join_at_once_as_many_get_in_as_there_is_room_for(
    budgets: int, node: Node, other: Node, elsewhere: Elsewhere, database: Database
) -> None:
    """Within a batch, from batch to batch and between two nodes: every one of them is counted."""
    budget_ids = [await node.new_budget("ann") for _ in range(budgets)]
    answers = {
        budget_id: [
            joins(at, budget_id, f"user-{number}")
            for number, at in zip(range(50), itertools.cycle([node, other]))
        ]
        for budget_id in budget_ids
    }
    for budget_id in budget_ids:
        verdicts = [await outcome(answer) for answer in answers[budget_id]]
        assert sorted(verdicts) == ["PARTICIPANT_LIMIT_REACHED"] * 41 + ["accepted"] * 9
        log = await agrees(elsewhere, database, budget_id)
        assert len(log) == LIMIT
        assert {event["recordId"] for event in log[1:]} == {
            f"user-{number}" for number, verdict in enumerate(verdicts) if verdict == "accepted"
        }


async def test_one_user_who_joins_many_times_at_once_joins_once(
    node: Node, other: Node, elsewhere: Elsewhere, database: Database
) -> None:
    budget_id = await a_budget(node)
    answers = [joins(at, budget_id, "ben") for at in [node, other] * 10]
    verdicts = [await outcome(answer) for answer in answers]
    assert sorted(verdicts) == ["ALREADY_PARTICIPANT"] * 19 + ["accepted"]
    assert len(await agrees(elsewhere, database, budget_id)) == 2


async def test_p5_the_participants_are_counted_after_the_lock(
    node: Node, other: Node, elsewhere: Elsewhere, database: Database
) -> None:
    """Who waits for the lock must see who got in meanwhile, not who was in when he came."""
    budget_id = await a_budget(node)
    other.log.before_commit = halt = Halt()
    last_seat = joins(other, budget_id, "ben", limit=2)
    await halt.reached()  # written, locked, not committed
    too_late = joins(node, budget_id, "cyd", limit=2)
    await elsewhere.someone_waits()
    halt.release()
    assert await outcome(last_seat) == "accepted"
    assert await outcome(too_late) == "PARTICIPANT_LIMIT_REACHED"
    await agrees(elsewhere, database, budget_id)


async def test_p5_a_seat_that_is_given_up_is_seen_after_the_lock(
    node: Node, other: Node, elsewhere: Elsewhere
) -> None:
    budget_id = await a_budget(node, "ben")
    other.log.before_commit = halt = Halt()
    gives_up = leaves(other, budget_id, "ben")
    await halt.reached()
    takes_it = joins(node, budget_id, "cyd", limit=2)
    await elsewhere.someone_waits()
    halt.release()
    assert await outcome(gives_up) == await outcome(takes_it) == "accepted"


async def test_p5_the_owner_does_not_leave_who_is_just_coming(
    node: Node, other: Node, elsewhere: Elsewhere, database: Database
) -> None:
    budget_id = await a_budget(node)
    other.log.before_commit = halt = Halt()
    comes = joins(other, budget_id, "ben")
    await halt.reached()
    goes = leaves(node, budget_id, "ann")
    await elsewhere.someone_waits()
    halt.release()
    assert (await outcome(comes), await outcome(goes)) == ("accepted", "OWNER_CANNOT_LEAVE")
    await agrees(elsewhere, database, budget_id)


Act = Callable[[Node, BudgetId], Answer]

# What ben, who has left, and ann, the owner, do at once; how he stands, whichever comes first; and
# what both hear where he comes second.
AT_ONCE: list[Any] = [
    pytest.param(
        lambda node, budget_id: joins(node, budget_id, "ben"),
        lambda node, budget_id: removes(node, budget_id, "ann", "ben"),
        "removed",
        "removed",
        ["accepted", "NOT_PARTICIPANT"],
        id="he joins, she removes",
    ),
    pytest.param(
        lambda node, budget_id: joins(node, budget_id, "ben"),
        lambda node, budget_id: leaves(node, budget_id, "ben"),
        "left",
        "in",
        ["NOT_PARTICIPANT", "accepted"],
        id="he joins, he leaves",
    ),
]


@pytest.mark.parametrize(("joins_", "ends", "join_first", "end_first", "told"), AT_ONCE)
@pytest.mark.parametrize("first", ["joins", "ends"])
async def test_p2_of_joining_and_removal_at_once_the_log_has_the_last_word(
    joins_: Act,
    ends: Act,
    join_first: str,
    end_first: str,
    told: list[str],
    first: str,
    node: Node,
    other: Node,
    elsewhere: Elsewhere,
    database: Database,
) -> None:
    budget_id = await a_budget(node, "ben")
    assert await outcome(leaves(node, budget_id, "ben")) == "accepted"
    acts = (joins_, ends) if first == "joins" else (ends, joins_)
    other.log.before_commit = halt = Halt()
    answers = [acts[0](other, budget_id)]
    await halt.reached()
    answers.append(acts[1](node, budget_id))
    await elsewhere.someone_waits()
    halt.release()
    verdicts = [await outcome(answer) for answer in answers]
    assert verdicts == (["accepted"] * 2 if first == "joins" else told)
    await agrees(elsewhere, database, budget_id)
    standing = (await participants(elsewhere, budget_id))["ben"]
    assert standing == (join_first if first == "joins" else end_first)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("seed", "rounds"), [(1, ROUNDS), pytest.param(SEED, 1000, marks=pytest.mark.faults)]
)
async def test_p2_whoever_comes_and_goes_at_random_stands_as_the_log_says(
    seed: int, rounds: int, node: Node, other: Node, elsewhere: Elsewhere, database: Database
) -> None:
    """Nothing is forced: in each round six requests, of and about anybody, on both nodes."""
    chance = random.Random(seed)
    users, limit = ["ann", "ben", "cyd", "dee", "eve"], 3
    budget_id = await a_budget(node)
    length = 1
    for _ in range(rounds):
        answers = []
        for _ in range(6):
            at, user = chance.choice([node, other]), chance.choice(users)
            if chance.random() < 0.6:
                answers.append(joins(at, budget_id, user, limit=limit))
            elif chance.random() < 0.9:
                answers.append(leaves(at, budget_id, user))
            else:
                answers.append(removes(at, budget_id, "ann", user))
        verdicts = [await outcome(answer) for answer in answers]
        log = await agrees(elsewhere, database, budget_id)
        assert list((await participants(elsewhere, budget_id)).values()).count("in") <= limit
        assert len(log) == length + verdicts.count("accepted")
        length = len(log)
        if {told_by(log).get(user) for user in users[1:]} == {"removed"}:
            budget_id = await a_budget(node)  # nobody can come any more
            length = 1
    delivered = [*node.delivered, *other.delivered]
    assert len(delivered) == len(set(delivered))
    assert sorted(sequence for id, sequence in delivered if id == budget_id) == (
        list(range(1, length + 1))
    )


@pytest.mark.parametrize("first", ["edit", "removal"])
@pytest.mark.parametrize("where", ["two nodes", "one batch"])
async def test_p9_of_an_edit_and_the_removal_of_its_author_the_log_decides(
    first: str, where: str, node: Node, other: Node, elsewhere: Elsewhere, database: Database
) -> None:
    budget_id = await a_budget(node, "ben")

    def act(at: Node, what: str) -> Answer:
        if what == "edit":
            return at.send("ben", edit(budget_id, 1, title="Ben's"))
        return removes(at, budget_id, "ann", "ben")

    second = "removal" if first == "edit" else "edit"
    if where == "one batch":
        transactions = node.log.transactions
        answers = {what: act(node, what) for what in (first, second)}
        await within(asyncio.gather(*answers.values()))
        assert node.log.transactions == transactions + 1
    else:
        other.log.before_commit = halt = Halt()
        answers = {first: act(other, first)}
        await halt.reached()
        answers[second] = act(node, second)
        await elsewhere.someone_waits()
        halt.release()
    assert await outcome(answers["removal"]) == "accepted"
    expected = "accepted" if first == "edit" else "NOT_PARTICIPANT"
    assert await outcome(answers["edit"]) == expected
    log = await agrees(elsewhere, database, budget_id)
    types = [event["eventType"] for event in log[2:]]
    assert types == (["budget.edit", LEAVES] if first == "edit" else [LEAVES])


async def test_p9_nothing_of_the_removed_comes_after_his_removal(
    node: Node, other: Node, elsewhere: Elsewhere, database: Database
) -> None:
    """Nothing is forced: he edits on both nodes while she removes him."""
    for number in range(ROUNDS):
        budget_id = await a_budget(node, "ben")
        answers = [
            at.send("ben", edit(budget_id, 1, title="Ben's"), mode="each")
            for at in [node, other] * 3
        ]
        removal = removes(other if number % 2 else node, budget_id, "ann", "ben")
        answers += [
            at.send("ben", edit(budget_id, 2, title="Ben's again"), mode="each")
            for at in [node, other] * 3
        ]
        assert await outcome(removal) == "accepted"
        await within(asyncio.gather(*answers))
        log = await agrees(elsewhere, database, budget_id)
        [removed_at] = [event["sequence"] for event in log if event["eventType"] == LEAVES]
        assert removed_at == len(log)


@pytest.mark.parametrize("ahead_ms", [-60_000, 60_000])
async def test_p9_who_was_removed_needs_an_invite_made_later_by_whatever_clock(
    node: Node, database: Database, ahead_ms: int
) -> None:
    """The node that makes the invites has another one than the node that removes."""
    budget_id = await a_budget(node, "ben")
    invites = Invites(database)
    at_ms, end_ms = NOW_MS + ahead_ms, NOW_MS + 3_600_000

    async def join(token: bytes) -> str:
        event = Joining(new_id(), budget_id, "ben", 1, participants_max=LIMIT, invite=token)
        return await outcome(ask(node.committer, "ben", [event], "stop"))

    for token in (b"before", b"after"):
        invite = Invite(budget_id, new_id(), token, at_ms, end_ms, 1, uses=0, revoked=False)
        await invites.create("ann", invite)
        if token == b"before":
            assert await outcome(removes(node, budget_id, "ann", "ben")) == "accepted"
    assert await join(b"before") == "NOT_PARTICIPANT"
    assert await join(b"after") == "accepted"


async def test_who_joins_in_the_batch_that_creates_the_budget_is_counted_with_its_owner(
    node: Node, elsewhere: Elsewhere, database: Database
) -> None:
    """There was no row to lock and nobody to count when the batch was loaded."""
    budget_id = new_id()
    answers = [
        node.send("ann", create(budget_id)),
        joins(node, budget_id, "ben", limit=2),
        joins(node, budget_id, "cyd", limit=2),
        leaves(node, budget_id, "ann"),
    ]
    verdicts = [await outcome(answer) for answer in answers]
    assert verdicts == ["accepted", "accepted", "PARTICIPANT_LIMIT_REACHED", "OWNER_CANNOT_LEAVE"]
    assert node.log.transactions == 1
    await agrees(elsewhere, database, budget_id)


async def test_p2_who_joins_in_one_batch_is_numbered_in_the_order_of_the_log(
    node: Node, elsewhere: Elsewhere, database: Database
) -> None:
    """They join in the same millisecond, and one of them is to be the next owner."""
    budget_id = await a_budget(node)
    answers = [joins(node, budget_id, f"user-{number}") for number in range(9)]
    assert [await outcome(answer) for answer in answers] == ["accepted"] * 9
    log = await agrees(elsewhere, database, budget_id)
    rows = await elsewhere.connection.fetch(
        "SELECT user_id FROM participants WHERE budget_id = $1 ORDER BY number", budget_id
    )
    assert [row[0] for row in rows] == [log[0]["actorId"], *(e["recordId"] for e in log[1:])]


@pytest.mark.parametrize("act", ["joins", "leaves"])
async def test_p4_membership_whose_commit_was_not_heard_of_is_settled_once(
    act: str, node: Node, elsewhere: Elsewhere, database: Database
) -> None:
    """The retry finds its own event: no `ALREADY_PARTICIPANT`, no `duplicate`, one delivery."""
    budget_id = await a_budget(node, *(["ben"] if act == "leaves" else []))
    before = len(await log_of(elsewhere, budget_id))
    node.log.after_commit = once(Disconnected("the answer was lost"))
    answer = (joins if act == "joins" else leaves)(node, budget_id, "ben")
    assert await outcome(answer) == "accepted"
    assert len(await agrees(elsewhere, database, budget_id)) == before + 1
    assert node.delivered.count((budget_id, before + 1)) == 1
