"""Replay against the rules: what `decide` made of a budget, the replica makes of its events."""

import random
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given, settings, strategies as st

from hub.budget.events import Decidable, Event, parse_event
from hub.budget.records import UserId
from hub.budget.replay import Member, ReplayError, Replica
from hub.budget.rules import decide
from hub.budget.state import BudgetState, Change, owners
from tests.history import Author
from tests.model import JOINS, LEAVES, Json, made, weight

BUDGET = "00000000-0000-4000-8000-00000000000b"
FOREIGN_BUDGET = "00000000-0000-4000-8000-0000000000bb"
CATEGORY = "00000000-0000-4000-8000-00000000000c"
EXPENSE = "00000000-0000-4000-8000-00000000000e"
OTHER = "00000000-0000-4000-8000-00000000000f"
EVENT = "00000000-0000-4000-8000-0000000000e"
NOW_MS = 1_700_000_000_000
USERS = ["ann", "ben", "cyd", "dee"]


class Story:
    """A budget that the rules make, and the stream events that come of it."""

    def __init__(self) -> None:
        self.state = BudgetState()
        self.events: list[dict[str, Any]] = []

    def submit(self, raw: Mapping[str, Any]) -> int | None:
        """The version that an accepted event makes."""
        event = parse_event(dict(raw))
        assert isinstance(event, Event)
        change = self.decide("ann", event)
        return None if change is None else change.row.version

    def decide(self, actor: UserId, event: Decidable) -> Change | None:
        """What an accepted event does. The clock moves on with every one of them."""
        for kind, id in self.state.records:  # what the storage sums up
            if kind == "category":
                self.state.sums[id] = sum(
                    record.fingerprint
                    for record in self.state.records.values()
                    if id in owners(record) and not record.deleted
                )
        change = decide(self.state, actor, event, NOW_MS + len(self.events))
        if not isinstance(change, Change):
            return None
        self.state.apply(change)
        self.events.append(orjson.loads(change.row.event))
        return change

    def say(self, event_type: str, record_id: str = BUDGET, **fields: Any) -> None:
        number = len(self.events) + 1
        raw = {"eventId": f"{EVENT}{number:x}", "eventType": event_type, "budgetId": BUDGET}
        assert self.submit({**raw, "recordId": record_id, "when": 1_000 + number, **fields})

    def membership(self, event_type: str, user_id: str, joined_at: int, **fields: Any) -> None:
        """An event that the server of 0.1.0 made by itself: without roles."""
        number = len(self.events) + 1
        event = {
            "sequence": number,
            "eventId": f"{EVENT}{number:x}",
            "eventType": event_type,
            "budgetId": BUDGET,
            "recordId": user_id,
            "actorId": user_id,
            "when": joined_at,
            "participant": {"userId": user_id, "budgetId": BUDGET, "joinedAt": joined_at},
        }
        self.events.append({**event, **fields})
        self.events[-1]["digest"] = self.digest_by_hand()

    def digest_by_hand(self) -> str:
        """Of the records that the rules made, and the members that the events tell."""
        assert self.state.budget is not None
        total = self.state.budget.digest - weight("participant", "ann", 1, {"role": "owner"})
        active, owner = {"ann"}, "ann"
        for event in self.events:
            if event["eventType"] in (JOINS, LEAVES):
                change = active.add if event["eventType"] == JOINS else active.discard
                change(event["recordId"])
                owner = event.get("owner", owner)
        for user in active:
            role = "owner" if user == owner else "editor"
            total += weight("participant", user, 1, {"role": role})
        return f"{total % 2**64:016x}"


def a_story() -> Story:
    """A budget with a category, an expense in it, and one in none."""
    story = Story()
    story.say("budget.create", title="Home", currency="EUR")
    story.say("category.add", CATEGORY, name="Food", allocate="200")
    story.say(
        "expense.add", EXPENSE, categoryId=CATEGORY, amount="12.5", date="2026-03-01", note="Café"
    )
    story.say("expense.add", OTHER, amount="0.99", date="2026-03-02")
    return story


def replay(story: Story) -> Replica:
    replica = Replica(BUDGET)
    for event in story.events:
        replica.apply(event)
    return replica


def assert_same(replica: Replica, state: BudgetState) -> None:
    assert state.budget is not None
    # What is used of the quotas is no event's.
    assert replica.budget == state.budget._replace(record_count=0, log_bytes=0)
    assert (replica.head, replica.digest) == (state.budget.last_sequence, state.budget.digest)
    assert replica.records == {("budget", BUDGET): state.budget.record, **state.records}
    stored = {user: Member(each.active, each.joined_at) for user, each in state.members.items()}
    for user, member in replica.members.items():
        if member.joined_at is None:  # no event says when the maker of the budget joined
            assert user == replica.budget.record.created_by
            stored[user] = stored[user]._replace(joined_at=None)
    assert replica.members == stored


@settings(max_examples=50, deadline=None)
@given(st.integers(min_value=0, max_value=2**32))
def test_whatever_the_rules_allow_is_rebuilt_at_every_event(seed: int) -> None:
    author = Author(BUDGET, random.Random(seed))
    story = Story()
    replica = Replica(BUDGET)
    for number in range(60):
        raw = author.change() if number else author.create()
        version = story.submit(raw)
        if version is not None:
            author.accepted(raw, version)
            event = story.events[-1]
            replica.apply(event)
            assert_same(replica, story.state)
            record = replica.record_of(event)
            assert record is not None
            assert record.version == version
    assert story.submit(author.delete())
    replica.apply(story.events[-1])
    assert_same(replica, story.state)


@settings(max_examples=50, deadline=None)
@given(st.integers(min_value=0, max_value=2**32))
def test_whatever_the_rules_allow_of_membership_is_rebuilt_too(seed: int) -> None:
    """Everybody joins, leaves and is removed at random, while the owner changes records."""
    chance = random.Random(seed)
    author = Author(BUDGET, chance)
    story = Story()
    replica = Replica(BUDGET)
    raw = author.create()
    version = story.submit(raw)
    assert version is not None
    author.accepted(raw, version)
    replica.apply(story.events[0])
    for number in range(100):
        if chance.random() < 0.25:
            raw = author.change()
            version = story.submit(raw)
            if version is not None:
                author.accepted(raw, version)
        else:
            actor, event_type = chance.choice(USERS), chance.choice([JOINS, LEAVES])
            user = actor if event_type == JOINS else chance.choice([actor, *USERS])
            wire: Json = {"eventId": f"{EVENT[:-3]}{number:04x}", "eventType": event_type}
            wire |= {"budgetId": BUDGET, "recordId": user, "when": number}
            change = story.decide(actor, made(wire, participants_max=3))
            assert change is None or change.row.version is None
        for event in story.events[replica.head :]:
            replica.apply(event)
            if event["eventType"] in (JOINS, LEAVES):
                assert replica.record_of(event) is None
            assert_same(replica, story.state)


def test_the_maker_of_an_event_made_its_record() -> None:
    story = a_story()
    story.events[2]["actorId"] = "bob"
    replica = replay(story)
    assert replica.records["expense", EXPENSE].created_by == "bob"
    assert replica.records["expense", OTHER].created_by == "ann"


def test_a_category_takes_its_live_expenses_along() -> None:
    story = a_story()
    story.say("expense.edit", OTHER, version=1, categoryId=CATEGORY)
    story.say("expense.edit", EXPENSE, version=1, categoryId=None)
    story.say("category.delete", CATEGORY, version=1)
    replica = replay(story)
    kept, gone = replica.records["expense", EXPENSE], replica.records["expense", OTHER]
    assert not kept.deleted
    assert (gone.deleted, gone.version, gone.last_sequence, gone.when) == (True, 3, 7, 1_007)
    assert_same(replica, story.state)


def test_members_come_and_go_and_the_budget_passes_to_a_new_owner() -> None:
    story = a_story()
    story.membership("participant.add", "bob", joined_at=50)
    story.membership("participant.add", "eve", joined_at=60)
    story.membership("participant.remove", "eve", joined_at=60)
    before = replay(story)
    assert before.budget is not None
    assert before.members == {
        "ann": Member(active=True, joined_at=None),  # no event says when
        "bob": Member(active=True, joined_at=50),
        "eve": Member(active=False, joined_at=60),
    }
    story.membership("participant.remove", "ann", joined_at=40, owner="bob")
    story.membership("participant.add", "eve", joined_at=70)
    after = replay(story)
    assert after.budget is not None
    assert after.members == {
        "ann": Member(active=False, joined_at=40),
        "bob": Member(active=True, joined_at=50),
        "eve": Member(active=True, joined_at=70),
    }
    assert (before.budget.owner_id, after.budget.owner_id) == ("ann", "bob")
    assert after.budget.record.version == 1
    assert (after.head, after.budget.last_sequence) == (9, 9)
    for user_id in ("eve", "bob"):
        story.membership("participant.remove", user_id, joined_at=50)
    story.membership("participant.add", "zoe", joined_at=80, owner="zoe")
    last = replay(story)
    assert last.budget is not None
    assert last.budget.owner_id == "zoe"


def test_who_had_left_is_removed_all_the_same() -> None:
    story = a_story()
    story.membership("participant.add", "bob", joined_at=50)
    story.membership("participant.remove", "bob", joined_at=50)
    left = replay(story)
    story.membership("participant.remove", "bob", joined_at=50, actorId="ann")
    removed = replay(story)
    assert (removed.members, removed.digest) == (left.members, left.digest)
    story.membership("participant.remove", "zoe", joined_at=50, actorId="ann")  # was never there
    with pytest.raises(ReplayError, match="takes part before"):
        replay(story)


@pytest.mark.parametrize(
    ("position", "damage", "what"),
    [
        (1, {"sequence": 3}, "sequence"),
        (1, {"sequence": 1}, "sequence"),
        (1, {"sequence": None}, "sequence"),
        (0, {"eventType": "budget.edit"}, "budget exists"),
        (1, {"eventType": "budget.create"}, "budget exists"),
        (1, {"eventType": "category.rename"}, "eventType"),
        (1, {"budgetId": FOREIGN_BUDGET}, "budgetId"),
        (0, {"recordId": CATEGORY}, "recordId"),
        (1, {"version": 2}, "version"),
        (3, {"recordId": EXPENSE}, "expense exists"),
        (4, {"version": 3}, "version"),
        (4, {"recordId": EVENT}, "record"),
        (4, {"recordId": [EXPENSE]}, "fields"),
        (2, {"amount": "12.51"}, "digest"),
        (2, {"amount": "12.5"}, "digest"),
        (2, {"amount": "much"}, "fields"),
        (2, {"amount": None}, "fields"),
        (2, {"note": 5}, "fields"),
        (2, {"digest": "0" * 16}, "digest"),
        (6, {"recordId": "eve"}, "participant.userId"),
        (6, {"participant": {"userId": "bob"}}, "fields"),
        (6, {"eventType": "participant.remove"}, "takes part before"),
        (7, {"eventType": "participant.add"}, "takes part before"),
        (7, {"owner": "bob"}, "new owner takes part"),
    ],
)
def test_an_event_that_cannot_follow_is_named(
    position: int, damage: Mapping[str, Any], what: str
) -> None:
    story = a_story()
    story.say("expense.edit", EXPENSE, version=1, note=None)
    story.say("category.delete", CATEGORY, version=1)
    story.membership("participant.add", "bob", joined_at=50)
    story.membership("participant.remove", "bob", joined_at=50)
    replay(story)
    story.events[position] |= damage
    with pytest.raises(ReplayError) as caught:
        replay(story)
    assert caught.value.what == what
    assert caught.value.sequence == story.events[position]["sequence"]


def test_a_tombstone_never_changes_again() -> None:
    story = a_story()
    story.say("category.delete", CATEGORY, version=1)
    replica = replay(story)
    with pytest.raises(
        ReplayError, match="event 6: record: expected a live one, found a tombstone"
    ):
        replica.apply({**story.events[4], "sequence": 6, "version": 3})


@pytest.mark.parametrize("name", ["eventType", "version", "actorId", "when", "amount", "digest"])
def test_a_field_that_is_missing_is_an_error_of_its_own(name: str) -> None:
    story = a_story()
    del story.events[2][name]
    with pytest.raises(ReplayError, match="event 3: fields"):
        replay(story)


def test_no_error_quotes_what_people_wrote() -> None:
    story = a_story()
    story.events[2]["note"] = "secret"
    with pytest.raises(ReplayError) as caught:
        replay(story)
    assert "secret" not in str(caught.value)
