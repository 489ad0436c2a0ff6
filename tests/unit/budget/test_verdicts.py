"""Verdicts: one object on every transport (design 3.2)."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings, strategies as st

from hub.budget.state import LogRow
from hub.budget.verdicts import Verdict
from hub.errors import Code

EVENT = "00000000-0000-4000-8000-00000000000a"
BUDGET = "00000000-0000-4000-8000-00000000000b"
EXPENSE = "00000000-0000-4000-8000-00000000000e"
RECORD = orjson.dumps({"id": EXPENSE, "note": 'Café "x"\n', "version": 4})

HEAD = (EVENT, "expense.edit", BUDGET, EXPENSE)
WIRE_HEAD = {"eventId": EVENT, "eventType": "expense.edit", "budgetId": BUDGET, "recordId": EXPENSE}
ACCEPTED = Verdict(*HEAD, "accepted", sequence=9, version=4, record=RECORD)


def on_the_wire(verdict: Verdict, **how: bool) -> Any:
    return orjson.loads(orjson.dumps(verdict.to_json(**how)))


def test_accepted_carries_the_updated_record() -> None:
    assert on_the_wire(ACCEPTED) == {
        **WIRE_HEAD,
        "status": "accepted",
        "sequence": 9,
        "version": 4,
        "record": orjson.loads(RECORD),
    }


def test_p3_a_replayed_verdict_is_the_first_one_marked_duplicate() -> None:
    row = LogRow(
        budget_id=BUDGET,
        sequence=9,
        event_id=EVENT,
        event_type="expense.edit",
        record_id=EXPENSE,
        actor_id="ann",
        content_hash=b"",
        content_fields=1,
        version=4,
        event=b"{}",
        record=RECORD,
    )
    assert row.verdict() == ACCEPTED
    replayed = row.verdict(duplicate=True)
    assert on_the_wire(replayed) == {**on_the_wire(ACCEPTED), "duplicate": True}
    assert b'"record":' + RECORD in replayed.encode()  # byte for byte


def test_conflict_carries_the_current_record() -> None:
    verdict = Verdict(*HEAD, "conflict", record=RECORD)
    assert on_the_wire(verdict) == {
        **WIRE_HEAD,
        "status": "conflict",
        "currentRecord": orjson.loads(RECORD),
    }


@pytest.mark.parametrize("code", Code)
def test_rejected_carries_the_error_as_the_one_table_has_it(code: Code) -> None:
    wire = on_the_wire(Verdict(*HEAD, "rejected", error=code))
    error = wire.pop("error")
    assert wire == {**WIRE_HEAD, "status": "rejected"}
    assert error == {
        "statusCode": code.status,
        "message": code.name,
        "detail": code.meaning,
        "retryable": code.retryable,
    }
    detailed = on_the_wire(Verdict(*HEAD, "rejected", error=code, detail="for people"))
    assert detailed["error"] == {**error, "detail": "for people"}


@pytest.mark.parametrize(
    ("code", "status", "retryable"),
    [
        ("INVALID_EVENT", 400, False),
        ("BUDGET_NOT_EXISTS", 404, False),
        ("NOT_PARTICIPANT", 403, False),
        ("EVENT_ID_REUSED", 409, False),
        ("NOT_OWNER", 403, False),
        ("BUDGET_EXISTS", 409, False),
        ("CATEGORY_EXISTS", 409, False),
        ("EXPENSE_EXISTS", 409, False),
        ("CATEGORY_NOT_EXISTS", 404, False),
        ("EXPENSE_NOT_EXISTS", 404, False),
        ("CURSOR_AHEAD", 409, False),
        ("BUSY", 503, True),
        ("UNAVAILABLE", 503, True),
        ("RATE_LIMITED", 429, True),
    ],
)
def test_p4_codes_say_whether_an_event_is_decided(code: str, status: int, retryable: bool) -> None:
    assert (Code[code].status, Code[code].retryable) == (status, retryable)


def test_what_is_not_known_of_an_invalid_event_is_left_out() -> None:
    wire = on_the_wire(Verdict(EVENT, None, None, None, "rejected", error=Code.INVALID_EVENT))
    assert wire.keys() == {"eventId", "status", "error"}


def test_a_membership_verdict_has_no_version_and_no_record() -> None:
    wire = on_the_wire(Verdict(EVENT, "participant.add", BUDGET, "ann", "accepted", sequence=2))
    assert wire.keys() == {"eventId", "eventType", "budgetId", "recordId", "status", "sequence"}


def test_legacy_clients_find_the_type_under_event_too() -> None:
    wire = on_the_wire(ACCEPTED, legacy_event=True)
    assert wire == {**on_the_wire(ACCEPTED), "event": "expense.edit"}
    unknown = Verdict(EVENT, None, None, None, "rejected", error=Code.INVALID_EVENT)
    assert "event" not in on_the_wire(unknown, legacy_event=True)


@pytest.mark.parametrize(
    ("verdict", "accepted"),
    [
        (ACCEPTED, True),
        (ACCEPTED._replace(duplicate=True), True),
        (Verdict(*HEAD, "conflict", record=RECORD), False),
        (Verdict(*HEAD, "rejected", error=Code.BUSY), False),
    ],
)
def test_a_stop_batch_goes_on_after_acceptances_old_and_new(
    verdict: Verdict, accepted: bool
) -> None:
    assert verdict.accepted == accepted


_IDS = st.none() | st.uuids().map(str)
_RECORDS = st.dictionaries(st.text(), st.text() | st.integers(0, 9)).map(orjson.dumps)
_ACCEPTED = st.builds(
    lambda ids, sequence, made, duplicate: Verdict(
        ids[0], "expense.edit", ids[1], ids[2], "accepted", sequence, made[0], made[1], duplicate
    ),
    st.tuples(*[st.uuids().map(str)] * 3),
    st.integers(1, 2**53),
    st.just((None, None)) | st.tuples(st.integers(1, 2**53), _RECORDS),  # none: of a membership
    st.booleans(),
)
_CONFLICT = st.builds(
    lambda event_id, budget_id, record: Verdict(
        event_id, "expense.edit", budget_id, event_id, "conflict", record=record
    ),
    st.uuids().map(str),
    st.uuids().map(str),
    _RECORDS,
)
_REJECTED = st.builds(
    lambda event_id, other_id, error, detail: Verdict(
        event_id, None, other_id, other_id, "rejected", error=error, detail=detail
    ),
    st.uuids().map(str),
    _IDS,
    st.sampled_from(Code),
    st.none() | st.text(),
)


@settings(deadline=None)
@given(_ACCEPTED | _CONFLICT | _REJECTED)
def test_a_verdict_encoded_by_hand_is_the_same_text(verdict: Verdict) -> None:
    assert verdict.encode() == orjson.dumps(verdict.to_json())
