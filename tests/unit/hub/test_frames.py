"""Frames of `budget.sync.v2`: what clients may send, what the server says, and how events are cut
into frames (P8: at most 256 KiB)."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings, strategies as st

from hub.budget.verdicts import Verdict
from hub.errors import Code
from hub.frames import server
from hub.frames.client import (
    Auth,
    BadFrame,
    ClientFrame,
    Events,
    Ping,
    Subscribe,
    Unsubscribe,
    parse,
)
from hub.frames.events import Frame, event_frames
from hub.frames.websocket import FRAME_BYTES_MAX, framed, texts
from hub.ports import LogEvent
from hub.session import LIMITS

BUDGET = "00000000-0000-4000-8000-00000000000b"
EVENT = "00000000-0000-4000-8000-00000000000a"
BOUNDARIES = [0, 1, 125, 126, 127, 65535, 65536, 65537]

unhurried = settings(deadline=None)  # the machine may be busy


# From the client.


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"type": "auth", "token": "t"}, Auth(type="auth", token="t")),
        (
            {"type": "subscribe", "id": 1, "budgetId": BUDGET.upper(), "key": 7},
            Subscribe(type="subscribe", id=1, budgetId=BUDGET, key=7),
        ),
        (
            {"type": "subscribe", "budgetId": BUDGET},
            Subscribe(type="subscribe", budgetId=BUDGET, key=0),
        ),
        (
            {"type": "unsubscribe", "id": "u", "budgetId": BUDGET},
            Unsubscribe(type="unsubscribe", id="u", budgetId=BUDGET),
        ),
        (
            {"type": "events", "id": 3, "events": [{"any": "thing"}]},
            Events(type="events", id=3, events=[{"any": "thing"}], mode="stop"),
        ),
        (
            {"type": "events", "events": [], "mode": "each"},
            Events(type="events", events=[], mode="each"),
        ),
        ({"type": "ping", "id": 2**53 - 1}, Ping(type="ping", id=2**53 - 1)),
    ],
)
def test_every_client_frame(sent: dict[str, Any], expected: ClientFrame) -> None:
    for wire in (sent, {**sent, "unknown": [None]}):
        assert parse(orjson.dumps(wire)) == parse(orjson.dumps(wire).decode()) == expected


def refusal(sent: bytes | str) -> BadFrame:
    with pytest.raises(BadFrame) as refused:
        parse(sent)
    return refused.value


@pytest.mark.parametrize(
    "sent",
    [
        *[b"", b"{", b"\xff", b"[]", b"5", b'"ping"', b"null", b"{}", b'{"type":"pings"}'],
        *[b'{"type":null}', b'{"type":["ping"]}', b'{"type":"\\ud800"}', b'{"type":"welcome"}'],
    ],
)
def test_what_is_no_frame_ends_the_connection(sent: bytes) -> None:
    assert refusal(sent).fatal


@pytest.mark.parametrize(
    "sent",
    [
        {"type": "auth"},
        {"type": "auth", "token": ""},
        {"type": "auth", "token": 5},
        {"type": "auth", "token": "x" * 8193},
        {"type": "subscribe"},
        {"type": "subscribe", "budgetId": "home"},
        {"type": "subscribe", "budgetId": BUDGET, "key": -1},
        {"type": "subscribe", "budgetId": BUDGET, "key": "1"},
        {"type": "subscribe", "budgetId": BUDGET, "key": True},
        {"type": "subscribe", "budgetId": BUDGET, "key": None},
        {"type": "unsubscribe", "budgetId": None},
        {"type": "events"},
        {"type": "events", "events": {}},
        {"type": "events", "events": [], "mode": "all"},
        {"type": "ping", "id": -1},
        {"type": "ping", "id": "x" * 65},
        {"type": "ping", "id": [1]},
        {"type": "ping", "id": 2**53},
    ],
)
def test_wrong_fields_of_a_known_frame_are_answered(sent: dict[str, Any]) -> None:
    assert not refusal(orjson.dumps(sent)).fatal


@pytest.mark.parametrize(
    ("request_id", "echoed"),
    [
        (7, 7),
        (2**53 - 1, 2**53 - 1),
        ("seven", "seven"),
        *((odd, None) for odd in (-1, 2**53, 1.5, True, None, [1], "x" * 65, "a\nb", {"a": 1})),
    ],
)
def test_a_refusal_names_the_request_where_it_can(request_id: object, echoed: object) -> None:
    sent = orjson.dumps({"type": "subscribe", "id": request_id})
    assert refusal(sent).request_id == echoed


def test_a_lone_surrogate_in_an_id_is_not_echoed() -> None:
    assert refusal(b'{"type":"ping","id":"\\ud800"}').request_id is None


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3)
    ),
    max_leaves=6,
)


@unhurried
@given(
    st.sampled_from(["auth", "subscribe", "unsubscribe", "events", "ping", "x"]),
    st.dictionaries(
        st.sampled_from(["id", "budgetId", "key", "events", "mode", "token"]), _JSON, max_size=4
    ),
)
def test_whatever_is_sent_is_a_frame_or_a_bad_frame(kind: str, fields: dict[str, Any]) -> None:
    try:
        parse(json.dumps({"type": kind, **fields}))
    except BadFrame as refused:
        # What the answer repeats can be written.
        assert list(texts(server.error(refused.request_id, Code.BAD_FRAME, refused.detail)))


@unhurried
@given(st.binary())
def test_whatever_bytes_arrive_are_a_frame_or_a_bad_frame(sent: bytes) -> None:
    try:
        parse(sent)
    except BadFrame:
        pass


# WebSocket framing, RFC 6455 section 5.2.


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f" + struct.pack("!Q", 65536)),
    ],
)
def test_the_length_takes_7_16_or_64_bits(size: int, head: bytes) -> None:
    assert framed(b"x" * size) == head + b"x" * size


@unhurried
@given(st.lists(st.binary(max_size=200) | st.sampled_from(BOUNDARIES).map(bytes), max_size=8))
@example([bytes(size) for size in BOUNDARIES])
def test_texts_are_what_was_framed(sent: list[bytes]) -> None:
    assert list(texts(b"".join(map(framed, sent)))) == sent


# Events in frames.


def row(sequence: int, size: int, event_type: str = "expense.add") -> LogEvent:
    return LogEvent(sequence, event_type, f"record-{sequence}", orjson.dumps("x" * (size - 2)))


def content(frame: Frame) -> Any:
    (text,) = texts(frame.data)
    return orjson.loads(text)


def test_an_events_frame() -> None:
    rows = [LogEvent(8, "expense.add", "e", b'{"n":8}'), LogEvent(9, "expense.add", "e", b"{}")]
    (frame,) = event_frames(BUDGET, rows)
    assert content(frame) == {
        "type": "events",
        "budgetId": BUDGET,
        "fromSequence": 8,
        "toSequence": 9,
        "events": [{"n": 8}, {}],
    }
    assert frame[:3] == (BUDGET, 8, 9)
    assert frame[4:] == (None, False, None, None)


def test_no_events_no_frame() -> None:
    assert list(event_frames(BUDGET, [])) == []


_ROWS = st.lists(
    st.tuples(
        st.sampled_from([2, 100, 20_000, 65_536, 130_000, 250_000, 261_000])
        | st.integers(2, 5_000),
        st.sampled_from(["expense.add"] * 6 + ["participant.remove", "budget.delete"]),
    ),
    max_size=12,
)


@unhurried
@given(st.integers(0, 2**53 - 20), _ROWS)
def test_p8_frames_hold_every_event_once_in_order_and_at_most_256_kib(
    before: int, sizes: list[tuple[int, str]]
) -> None:
    rows = [row(before + n, size, kind) for n, (size, kind) in enumerate(sizes, 1)]
    position = before
    given: list[object] = []
    for frame in event_frames(BUDGET, rows):
        assert len(frame.data) <= FRAME_BYTES_MAX
        assert frame.from_sequence == position + 1
        position = frame.to_sequence
        text = content(frame)
        assert (text["fromSequence"], text["toSequence"]) == frame[1:3]
        assert len(text["events"]) == frame.to_sequence - frame.from_sequence + 1
        given += text["events"]
        check_ends(frame, rows[frame.from_sequence - before - 1 : frame.to_sequence - before])
    assert given == [orjson.loads(each.event) for each in rows]


def check_ends(frame: Frame, rows: Sequence[LogEvent]) -> None:
    """A frame ends at a removal and at the budget's deletion, and says so."""
    assert all(each.event_type == "expense.add" for each in rows[:-1])
    last = rows[-1]
    assert frame.removes == (last.record_id if last.event_type == "participant.remove" else None)
    assert frame.deletes == (last.event_type == "budget.delete")


def test_p8_frames_are_not_cut_before_they_are_nearly_full() -> None:
    """Several events in one write beat one write each."""
    assert len(list(event_frames(BUDGET, [row(n, 2_000) for n in range(1, 131)]))) == 1
    assert len(list(event_frames(BUDGET, [row(n, 2_000) for n in range(1, 261)]))) == 2


# The other server frames.


def said(data: bytes) -> Any:
    (text,) = texts(data)
    return orjson.loads(text)


def test_server_frames_are_those_of_the_design() -> None:
    assert said(server.welcome("ann", "c1", 5, LIMITS, 15)) == {
        "type": "welcome",
        "userId": "ann",
        "connectionId": "c1",
        "serverTime": 5,
        "limits": {
            "frameBytesMax": 262144,
            "eventsPerFrameMax": 100,
            "inFlightEventsMax": 400,
            "subscriptionsMax": 200,
        },
        "heartbeatS": 15,
    }
    assert said(server.auth(9)) == {"type": "auth", "expiresAt": 9}
    assert said(server.auth_expiring(9)) == {"type": "auth.expiring", "expiresAt": 9}
    assert said(server.subscribed(1, BUDGET, 7, 12, "log")) == {
        "type": "subscribed",
        "id": 1,
        "budgetId": BUDGET,
        "key": 7,
        "head": 12,
        "logId": "log",
    }
    assert said(server.unsubscribed(2, BUDGET)) == {
        "type": "unsubscribed",
        "id": 2,
        "budgetId": BUDGET,
    }
    assert said(server.unsubscribed(None, BUDGET, Code.NOT_PARTICIPANT)) == {
        "type": "unsubscribed",
        "budgetId": BUDGET,
        "code": "NOT_PARTICIPANT",
    }
    assert said(server.heads({BUDGET: 12})) == {"type": "heads", "heads": {BUDGET: 12}}
    assert said(server.pong("x", 5)) == {"type": "pong", "id": "x", "serverTime": 5}
    assert said(server.error(3, Code.BAD_FRAME, "why")) == {
        "type": "error",
        "id": 3,
        "error": {"statusCode": 400, "message": "BAD_FRAME", "detail": "why", "retryable": False},
    }
    assert "id" not in said(server.error(None, Code.BAD_FRAME))


@pytest.mark.parametrize("request_id", [None, 0, 7, 2**53 - 1, "seven", 'a"b\\'])
def test_results_answer_their_frame(request_id: int | str | None) -> None:
    verdicts = [
        Verdict(EVENT, "expense.edit", BUDGET, EVENT, "accepted", 9, 4, b'{"id":1}'),
        Verdict(EVENT, "expense.edit", BUDGET, EVENT, "conflict", record=b'{"id":2}'),
        Verdict(EVENT, None, None, None, "rejected", error=Code.BUSY),
    ]
    answer = said(server.results(request_id, verdicts))
    assert answer.pop("results") == [
        orjson.loads(orjson.dumps(verdict.to_json())) for verdict in verdicts
    ]
    assert answer == {"type": "results"} | ({} if request_id is None else {"id": request_id})
    assert said(server.results(1, []))["results"] == []


@unhurried
@given(st.lists(st.sampled_from([10, 3_000, 12_000, 100_000, 250_000]), max_size=12))
def test_p8_long_results_are_several_frames_with_every_verdict_once(sizes: list[int]) -> None:
    verdicts = [
        Verdict(EVENT, "expense.edit", BUDGET, EVENT, "accepted", n, 1, orjson.dumps("x" * size))
        for n, size in enumerate(sizes)
    ]
    sequences = []
    for text in texts(server.results(5, verdicts)):
        assert len(framed(text)) <= FRAME_BYTES_MAX
        answer = orjson.loads(text)
        assert (answer["type"], answer["id"]) == ("results", 5)
        sequences += [verdict["sequence"] for verdict in answer["results"]]
    assert sequences == list(range(len(sizes)))


def test_events_that_a_client_named_say_so_in_their_own_frame() -> None:
    rows = [
        LogEvent(8, "expense.add", "e", b"{}"),
        LogEvent(9, "budget.delete", BUDGET, b"{}"),
        LogEvent(10, "expense.add", "e", b"{}"),
    ]
    named, plain = event_frames(BUDGET, rows, correlation_ids={8: "tap-8", 9: "tap-9"})
    assert content(named)["correlationIds"] == {"8": "tap-8", "9": "tap-9"}
    assert "correlationIds" not in content(plain)
    assert plain.data == next(event_frames(BUDGET, rows[2:])).data


def test_p8_named_events_fit_their_frames_too() -> None:
    rows = [LogEvent(n, "expense.add", "e", b'{"n":1}') for n in range(10**15, 10**15 + 9_000)]
    names = {row.sequence: "x" * 64 for row in rows}
    frames = list(event_frames(BUDGET, rows, correlation_ids=names))
    assert len(frames) > 1
    assert max(len(frame.data) for frame in frames) <= FRAME_BYTES_MAX
    assert sum(len(content(frame)["correlationIds"]) for frame in frames) == 9_000


@pytest.mark.parametrize("named", ["tap-17", "A.b_c-9", "x" * 64, None])
def test_what_a_client_may_call_its_frame(named: str | None) -> None:
    frame = parse(orjson.dumps({"type": "events", "events": [{}], "correlationId": named}))
    assert isinstance(frame, Events)
    assert frame.correlation_id == named


@pytest.mark.parametrize("named", ["", "x" * 65, "a b", "ann@example.org", "ä", "a\n", 7, ["a"]])
def test_what_it_may_not(named: object) -> None:
    with pytest.raises(BadFrame, match="correlationId") as raised:
        parse(orjson.dumps({"type": "events", "events": [{}], "correlationId": named}))
    assert not raised.value.fatal
    assert "ann" not in raised.value.detail
