"""JSON from clients: what orjson takes, and lone surrogates left for the field's own check."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings, strategies as st

from hub.budget.events import Event, Invalid, parse_batch
from hub.json_text import decode

_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
unhurried = settings(deadline=None)  # the machine may be busy


@unhurried
@given(_VALUES)
def test_every_json_value_comes_back(value: object) -> None:
    assert decode(orjson.dumps(value)) == decode(orjson.dumps(value).decode()) == value


@unhurried
@given(st.lists(st.text(st.characters()), max_size=4), _VALUES)
def test_a_lone_surrogate_spoils_nothing_around_it(texts: list[str], value: object) -> None:
    """Clients escape it; the same value is read, whatever stands beside it."""
    sent = [*texts, "\ud800", value]
    assert decode(json.dumps(sent)) == decode(json.dumps(sent).encode()) == sent


@unhurried
@given(st.binary() | st.text(st.characters()))
def test_whatever_is_sent_is_decoded_or_a_value_error(sent: bytes | str) -> None:
    for text in (sent, b'["\\ud800",%b]' % sent if isinstance(sent, bytes) else f'"\\ud800"{sent}'):
        try:
            decode(text)
        except ValueError:
            pass


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "01", "+1", ".5", "0x1"])
@pytest.mark.parametrize("around", ["%s", "[%s]", '["\\ud800",%s]', '{"\\uDFFF":%s}'])
def test_what_is_no_json_number_is_refused(number: str, around: str) -> None:
    with pytest.raises(ValueError):
        decode(around % number)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b'{"a":1,}',
        b"{'a':1}",
        b"\xff",
        b'"\xed\xa0\x80"',  # a surrogate in UTF-8, not escaped
        b'"\xff\\ud800"',
        b'"\\ud800',
        b'["\\ud800"] []',
        b"\xef\xbb\xbf{}",
        '"\ud800"',
    ],
)
def test_what_is_no_json_is_refused(text: bytes | str) -> None:
    with pytest.raises(ValueError):
        decode(text)


# How deep the slow way may go before it refuses differs between versions of Python.
@pytest.mark.parametrize(("depth", "inside"), [(2_000, ""), (200_000, ""), (200_000, '"\\ud800"')])
def test_nesting_is_refused_before_it_hurts(depth: int, inside: str) -> None:
    with pytest.raises(ValueError):
        decode("[" * depth + inside + "]" * depth)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert decode(rb'"\ud83d\ude00"') == "\U0001f600"
    assert decode(rb'["\uD83D\uDE00", "\uD83D"]') == ["\U0001f600", "\ud83d"]


def test_p4_a_bad_note_is_one_events_verdict_and_not_the_batchs() -> None:
    shared = '"budgetId":"00000000-0000-4000-8000-00000000000b","when":1'
    shared += ',"recordId":"00000000-0000-4000-8000-00000000000e"'
    shared += ',"eventType":"expense.add","amount":"1","date":"2026-01-01"'
    events = [
        f'{{"eventId":"00000000-0000-4000-8000-00000000000{n}",{shared},"note":{note}}}'
        for n, note in enumerate([r'"\ud800"', r'"\ud83d\ude00"'])
    ]
    batch = parse_batch(decode(f"[{','.join(events)}]"), 2)
    assert [type(event) is Invalid for event in batch] == [True, False]
    assert isinstance(batch[1], Event)
    assert batch[1].named["note"] == "\U0001f600"
