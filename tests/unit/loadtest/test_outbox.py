"""A device's outbox: nothing is lost, doubled or overtaken, whatever becomes of the connection."""

from collections.abc import Mapping
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from loadtest.outbox import Event, Outbox, OutboxFull, Outcome, Unexpected, record_id

BUDGET = "b"


def outbox(**bounds: int) -> Outbox:
    names = count(1)
    return Outbox(lambda: f"new-{next(names)}", **bounds)


def added(event_id: str, record: str = "r") -> Event:
    return {"eventId": event_id, "eventType": "expense.add", "budgetId": BUDGET, "recordId": record}


def edit(event_id: str, version: int, record: str = "r", **fields: object) -> Event:
    return {
        "eventId": event_id,
        "eventType": "expense.edit",
        "budgetId": BUDGET,
        "recordId": record,
        "version": version,
        **fields,
    }


def accepted(event: Event) -> Mapping[str, Any]:
    return {"eventId": event["eventId"], "status": "accepted"}


def conflict(event: Event, **current: object) -> Mapping[str, Any]:
    return {"eventId": event["eventId"], "status": "conflict", "currentRecord": current}


def rejected(event: Event, code: str, *, retryable: bool = False) -> Mapping[str, Any]:
    error = {"message": code, "retryable": retryable}
    return {"eventId": event["eventId"], "status": "rejected", "error": error}


def ids(events: Any) -> list[str]:
    return [event["eventId"] for event in events]


def test_one_batch_is_in_flight_at_a_time_in_the_order_of_adding() -> None:
    box = outbox(batch_events_max=2)
    for name in ("1", "2", "3"):
        box.add(added(name, name))
    assert ids(box.next_batch()) == ["1", "2"]
    assert box.next_batch() == ()
    box.settle(accepted(added("1")))
    assert box.next_batch() == ()
    box.settle(accepted(added("2")))
    assert ids(box.next_batch()) == ["3"]
    assert len(box) == 1


def test_what_a_lost_connection_left_undecided_is_sent_again_under_its_id() -> None:
    box = outbox()
    events = [added("1", "x"), added("2", "y"), added("3", "z")]
    for event in events:
        box.add(event)
    box.next_batch()
    box.settle(accepted(events[0]))
    box.interrupted()
    assert list(box.next_batch()) == events[1:]


def test_a_rejected_event_is_quarantined_and_holds_nothing_up() -> None:
    box = outbox()
    box.add(added("1", "x"))
    box.add(added("2", "y"))
    box.next_batch()
    assert box.settle(rejected(added("1"), "NOT_OWNER")) is Outcome.QUARANTINED
    assert [(q.event["eventId"], q.code) for q in box.quarantine] == [("1", "NOT_OWNER")]
    assert ids(box.next_batch()) == ["2"]


def test_what_was_to_build_on_a_rejected_change_builds_on_what_that_was_to_build_on() -> None:
    box = outbox()
    for name, version in (("1", 4), ("2", 5), ("3", 6)):
        box.add(edit(name, version))
    first = box.next_batch()[0]
    box.settle(rejected(first, "CATEGORY_NOT_EXISTS"))
    assert [(e["eventId"], e["version"]) for e in box.waiting] == [("new-1", 4), ("new-2", 5)]
    assert box.version("r", 4) == 6


def test_an_undecided_event_keeps_its_place_and_its_id() -> None:
    box = outbox()
    box.add(added("1", "x"))
    box.add(added("2", "y"))
    box.next_batch()
    assert box.settle(rejected(added("1"), "BUSY", retryable=True)) is Outcome.UNDECIDED
    assert ids(box.next_batch()) == ["1", "2"]


def test_a_conflict_is_made_again_on_the_current_record_with_all_that_builds_on_it() -> None:
    box = outbox(batch_events_max=2)
    box.add(edit("1", 3, amount="1.00"))
    box.add(edit("2", 4, note="n"))
    box.add(edit("other", 1, record="o"))
    box.add(edit("3", 5, amount="3.00"))
    first, _ = box.next_batch()
    assert box.settle(conflict(first, version=7)) is Outcome.REBASED
    # "2" was sent, so its id may be known to the hub with the old content; "3" was not.
    assert [(e["eventId"], e["version"]) for e in box.waiting] == [
        ("new-1", 7),
        ("new-2", 8),
        ("other", 1),
        ("3", 9),
    ]
    assert [e.get("amount") for e in box.waiting] == ["1.00", None, None, "3.00"]
    assert box.version("r", 7) == 10


def test_a_conflict_with_a_deletion_leaves_nothing_to_change() -> None:
    box = outbox()
    box.add(edit("1", 3))
    box.add(edit("other", 1, record="o"))
    box.add(edit("2", 4))
    first = box.next_batch()[0]
    assert box.settle(conflict(first, version=4, deleted=True)) is Outcome.MOOT
    assert ids(box.waiting) == ["other"]


def test_a_change_builds_on_the_changes_before_it_that_have_no_verdict() -> None:
    box = outbox()
    assert box.version("r", 4) == 4
    box.add(edit("1", 4))
    assert box.version("r", 4) == 5
    box.next_batch()
    box.settle(accepted(edit("1", 4)))
    assert box.version("r", 4) == 5  # the verdict is here, the stream not yet
    box.arrived({**edit("1", 4), "version": 5})
    assert box.version("r", 5) == 5


def test_in_a_batch_that_is_refused_as_a_whole_the_guilty_one_is_found() -> None:
    box = outbox()
    for name in ("1", "2", "3"):
        box.add(added(name, name))
    box.next_batch()
    box.refused("BAD_REQUEST")
    assert ids(box.next_batch()) == ["1"]
    box.settle(accepted(added("1")))
    assert ids(box.next_batch()) == ["2"]
    box.refused("BAD_REQUEST")
    assert ids(q.event for q in box.quarantine) == ["2"]
    assert ids(box.next_batch()) == ["3"]


def test_it_is_bounded() -> None:
    box = outbox(events_max=2)
    box.add(added("1", "x"))
    box.add(added("2", "y"))
    with pytest.raises(OutboxFull):
        box.add(added("3", "z"))


def test_a_batch_fits_into_a_frame() -> None:
    box = outbox()
    for n in range(100):
        box.add({**added(f"{n}", f"r{n}"), "note": "🥞" * 2000})
    batch = box.next_batch()
    assert 1 < len(batch) < 30  # 8 KB each, 256 KiB in a frame


def test_a_verdict_that_nothing_waits_for_is_noticed() -> None:
    box = outbox()
    box.add(added("1"))
    with pytest.raises(Unexpected):
        box.settle(accepted(added("1")))
    box.next_batch()
    with pytest.raises(Unexpected):
        box.settle(accepted(added("2")))


class Hub:
    """A hub as far as an outbox can see it: versions, and an id that means one content for ever."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.known: dict[str, tuple[Event, Mapping[str, Any]]] = {}
        self.log: list[Event] = []

    def decide(self, event: Event) -> Mapping[str, Any]:
        if event["eventId"] in self.known:
            content, verdict = self.known[event["eventId"]]
            assert content == event, "an id was used for another content"
            return {**verdict, "duplicate": True}
        record = record_id(event)
        if event.get("bad"):
            return rejected(event, "CATEGORY_NOT_EXISTS")
        assert event["version"] <= self.versions.get(record, 1), "nobody has made that version"
        if event["version"] != self.versions.get(record, 1):
            return conflict(event, version=self.versions.get(record, 1))
        self.versions[record] = self.versions.get(record, 1) + ("version" in event)
        self.log.append(event)
        verdict = accepted(event)
        self.known[event["eventId"]] = event, verdict
        return verdict


STEPS = st.one_of(
    st.tuples(st.just("edit"), st.sampled_from("abc")),
    st.tuples(st.just("bad"), st.sampled_from("abc")),
    st.tuples(st.just("foreign"), st.sampled_from("abc")),  # somebody else changes the record
    st.tuples(st.just("exchange"), st.integers(0, 4)),  # the hub decides so many, then it is cut
    st.tuples(st.just("busy"), st.just(0)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_every_change_arrives_once_and_in_order_whatever_happens(
    steps: list[tuple[str, Any]],
) -> None:
    """The marks of the changes are in the log exactly once, each record's in the order of making;
    and no change ever silently won over one that its device had not seen."""
    box, hub = outbox(batch_events_max=3), Hub()
    made: list[tuple[str, int]] = []
    refused: list[tuple[str, int]] = []
    marks, foreign = count(1), count(1)

    def exchange(decided: int, told: int) -> None:
        answers = []
        for event in list(box.next_batch())[:decided]:
            answers.append(hub.decide(event))
            if answers[-1]["status"] != "accepted":
                break
        for verdict in answers[:told]:
            box.settle(verdict)
        box.interrupted()

    for step, value in steps:
        if step in ("edit", "bad"):
            mark, bad = next(marks), step == "bad"
            version = box.version(value, hub.versions.get(value, 1))
            box.add(edit(f"e{mark}", version, record=value, mark=mark, bad=bad))
            (refused if bad else made).append((value, mark))
        elif step == "foreign":
            hub.decide(edit(f"f{next(foreign)}", hub.versions.get(value, 1), record=value))
        elif step == "exchange":
            exchange(decided=value, told=max(0, value - 1))
        elif batch := box.next_batch():
            box.settle(rejected(batch[0], "BUSY", retryable=True))
    for _ in range(10 * len(steps) + 10):
        exchange(decided=3, told=3)
    assert len(box) == 0
    arrived = [(record_id(event), event["mark"]) for event in hub.log if "mark" in event]
    assert sorted(arrived) == sorted(made)
    assert len(box.quarantine) == len(refused)
    for record in "abc":
        assert [m for r, m in arrived if r == record] == [m for r, m in made if r == record]
