"""A device's inbox: it notices whatever is missing, and comes to what the server has."""

from contextlib import suppress
from typing import Any

from hypothesis import given, settings, strategies as st

from loadtest.inbox import Inbox, Step
from loadtest.replica import Diverged, Replica

BUDGET = "00000000-0000-4000-8000-00000000000b"


def log(length: int) -> list[dict[str, Any]]:
    """A budget with one expense after another."""
    events: list[dict[str, Any]] = []
    replica = Replica(BUDGET)
    for sequence in range(1, length + 1):
        common = {
            "sequence": sequence,
            "eventId": f"e{sequence}",
            "budgetId": BUDGET,
            "actorId": "ann",
            "when": sequence,
            "version": 1,
        }
        fields: dict[str, Any] = (
            {"eventType": "budget.create", "recordId": BUDGET, "title": "T", "details": None}
            | {"currency": None}
            if sequence == 1
            else {"eventType": "expense.add", "recordId": f"r{sequence}", "categoryId": None}
            | {"amount": "1.00", "date": "2026-01-01", "note": None}
        )
        event = {**common, **fields, "digest": ""}
        copy = Replica(BUDGET)
        copy.sequence, copy.digest = replica.sequence, replica.digest
        with suppress(Diverged):  # its digest is what we want to know
            copy.apply(event)
        event["digest"] = copy.digest_text
        replica.apply(event)
        events.append(event)
    return events


LOG = log(12)


def live(key: int = 0) -> Inbox:
    inbox = Inbox(BUDGET)
    inbox.subscribed(0, "log")
    inbox.take(LOG[:key])
    return inbox


def test_events_in_order_are_applied() -> None:
    inbox = live()
    fresh, step = inbox.take(LOG[:5])
    assert (list(fresh), step, inbox.cursor) == (LOG[:5], Step.NOTHING, 5)


def test_a_gap_is_noticed_and_asked_for_from_the_cursor() -> None:
    inbox = live(3)
    fresh, step = inbox.take(LOG[4:6])
    assert (list(fresh), step, inbox.cursor) == ([], Step.SUBSCRIBE, 3)
    assert "sequence 5 came after 3" in inbox.trouble


def test_what_still_comes_of_the_old_subscription_is_left_to_the_new_one() -> None:
    inbox = live(3)
    inbox.take(LOG[4:6])
    assert inbox.take(LOG[6:8]) == ((), Step.NOTHING)
    assert inbox.subscribed(8, "log") is Step.NOTHING
    assert inbox.take(LOG[3:8])[1] is Step.NOTHING
    assert inbox.cursor == 8


def test_what_it_has_is_skipped() -> None:
    inbox = live(5)
    fresh, step = inbox.take(LOG[3:7])
    assert (list(fresh), step) == (LOG[5:7], Step.NOTHING)


def test_another_digest_needs_a_snapshot() -> None:
    inbox = live(3)
    _, step = inbox.take([{**LOG[3], "digest": "0" * 16}])
    assert step is Step.SNAPSHOT
    assert "digest" in inbox.trouble


def test_another_history_needs_a_snapshot() -> None:
    inbox = live(3)
    assert inbox.subscribed(3, "restored") is Step.SNAPSHOT
    assert not inbox.live


def test_a_head_that_is_ahead_twice_with_nothing_between_needs_a_new_subscription() -> None:
    inbox = live(3)
    assert inbox.heard(4) is Step.NOTHING
    assert inbox.heard(4) is Step.SUBSCRIBE


def test_a_head_that_is_ahead_once_is_on_its_way() -> None:
    inbox = live(3)
    assert inbox.heard(4) is Step.NOTHING
    inbox.take(LOG[3:4])
    assert inbox.heard(5) is Step.NOTHING
    assert inbox.heard(4) is Step.NOTHING
    assert inbox.heard(5) is Step.NOTHING


def test_a_snapshot_replaces_everything() -> None:
    inbox = live(3)
    inbox.take([{**LOG[3], "digest": "0" * 16}])
    inbox.snapshot(snapshot(8))
    assert (inbox.cursor, inbox.log_id, inbox.renewed) == (8, "log-2", True)
    assert inbox.subscribed(8, "log-2") is Step.NOTHING
    assert inbox.take(LOG[8:])[1] is Step.NOTHING


def snapshot(sequence: int) -> dict[str, Any]:
    replica = Replica(BUDGET)
    for event in LOG[:sequence]:
        replica.apply(event)
    kinds: dict[str, list[Any]] = {"category": [], "expense": [], "budget": []}
    for (kind, _), record in replica.records.items():
        kinds[kind].append(record)
    return {
        **kinds["budget"][0],
        "categories": [],
        "expenses": kinds["expense"],
        "participants": [{"userId": user, "role": role} for user, role in replica.members.items()],
        "lastEventSequence": sequence,
        "digest": replica.digest_text,
        "logId": "log-2",
    }


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_p6_it_ends_at_the_head_whatever_the_hub_leaves_out_or_repeats(data: st.DataObject) -> None:
    """A hub that loses, repeats and reorders frames, but tells the truth when asked: after each
    subscription it gives all from the cursor, and its heartbeats tell the head."""
    inbox = live()
    for _ in range(data.draw(st.integers(0, 12))):
        first = data.draw(st.integers(0, len(LOG) - 1))
        last = data.draw(st.integers(first + 1, len(LOG)))
        _, step = inbox.take(LOG[first:last])
        if step is Step.SUBSCRIBE:
            inbox.subscribed(len(LOG), "log")
            if data.draw(st.booleans()):
                inbox.take(LOG[inbox.cursor :])
        assert step is not Step.SNAPSHOT
        assert inbox.replica.sequence <= len(LOG)
    steps = [inbox.heard(len(LOG)) for _ in range(2)]
    if inbox.cursor < len(LOG):
        assert steps[-1] is Step.SUBSCRIBE
        inbox.subscribed(len(LOG), "log")
        inbox.take(LOG[inbox.cursor :])
    assert inbox.cursor == len(LOG)
    assert inbox.replica.digest_text == LOG[-1]["digest"]
