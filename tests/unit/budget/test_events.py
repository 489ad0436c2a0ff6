"""What a client may say: the shape of every event, its normal form (P12), and its content (P3)."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from hub.budget.currencies import CURRENCIES
from hub.budget.events import (
    CLIENT_EVENTS,
    EVENTS_PER_FRAME_MAX,
    FIELD_LIST,
    FIELD_LISTS,
    Event,
    Invalid,
    Joining,
    content_hash,
    parse_batch,
    parse_event,
)
from hub.budget.scalars import INTEGER_MAX
from hub.errors import Code, HubError
from tests.model import JOINS, LEAVES, TYPES, Json, made, normalised

EVENT = "00000000-0000-4000-8000-00000000000a"
BUDGET = "00000000-0000-4000-8000-00000000000b"
CATEGORY = "00000000-0000-4000-8000-00000000000c"
EXPENSE = "00000000-0000-4000-8000-00000000000e"

HEAD = {"eventId": EVENT, "budgetId": BUDGET, "when": 1_700_000_000_000}

# One event of each type, and its content hash, made on the command line (P3: a hash that stands in
# a log must mean the same in every later version of the code):
#   printf '%s' '["budget.delete","<budget id>",1700000000000,2,{}]' | sha256sum
EXAMPLES: list[tuple[Json, str]] = [
    (
        {"eventType": "budget.create", "title": "Home", "currency": "EUR"},
        "40bde9583943376e1375e36bbd9ae5f6bc538cf9a1bc27d06b61554c056615b6",
    ),
    (
        {"eventType": "budget.edit", "version": 1, "title": "Café", "details": None},
        "ea2ad83dc93562d97e73ca4fd994c644eb106756ed087dff1a03f9038114b925",
    ),
    (
        {"eventType": "budget.delete", "version": 2},
        "ca901e1a61318da72ec0ef3738838e3c199aa5145274d8aae5744578cc4e47a5",
    ),
    (
        {"eventType": "category.add", "recordId": CATEGORY, "name": "Food", "allocate": "200"},
        "ab601f98ff29195dba7e2a13b51b5d7c769c32c1602f78bcecf3d00134b51067",
    ),
    (
        {"eventType": "category.edit", "recordId": CATEGORY, "version": 1, "name": "Meals"},
        "1994fc9e52579eb59a3afee906b4df16b05f461d639969f1eab1f4a720df6818",
    ),
    (
        {"eventType": "category.delete", "recordId": CATEGORY, "version": 2},
        "6b0e68363356a17d445a00fea03b903dd99a3a31ecb1aa9e8a851c689655a154",
    ),
    (
        {
            "eventType": "expense.add",
            "recordId": EXPENSE,
            "categoryId": CATEGORY,
            "amount": "12.5",
            "date": "2026-03-01",
            "note": None,
        },
        "50e32e0a91a6d246f400e17b7993d956914960f348ddf5da3d538a6ea2391f69",
    ),
    (
        {"eventType": "expense.edit", "recordId": EXPENSE, "version": 1, "amount": "0.05"},
        "2232b70e58ee32cfbfac6ba85619341c1754d212bcb67d02f55cfbc47ee05469",
    ),
    (
        {"eventType": "expense.delete", "recordId": EXPENSE, "version": 2},
        "94fb6755fbada0c49e6d0391a2d2b1417a75d012675cd5df2bedb7b2dae3eee4",
    ),
]
MADE_BY_THE_SERVER: list[tuple[Json, str]] = [
    (
        {"eventType": "participant.add", "recordId": "ann"},
        "422e552ab3e6f9279f07af9e7ef05532254d424f05bb0426785e30032002ed40",
    ),
    (
        {"eventType": "participant.remove", "recordId": "ann"},
        "bc1b1c2e7a9ab94153c03dc53168610e8943887e2f12bb402e62a48782f6adfe",
    ),
]
EXAMPLE: Mapping[str, Json] = {wire["eventType"]: {**HEAD, **wire} for wire, _ in EXAMPLES}
unhurried = settings(deadline=None)  # the machine may be busy
OF_EACH_TYPE = pytest.mark.parametrize("event_type", EXAMPLE)


def valid(wire: Json) -> Event:
    event = parse_event(wire)
    assert isinstance(event, Event), event
    return event


def invalid(wire: Json) -> Invalid:
    event = parse_event(wire)
    assert isinstance(event, Invalid), event
    return event


def expense(**fields: Any) -> Json:
    return {**EXAMPLE["expense.add"], **fields}


def test_the_types_are_those_of_the_design() -> None:
    assert list(CLIENT_EVENTS) == list(TYPES) == list(EXAMPLE)


@pytest.mark.parametrize("event_type", ["participant.add", "participant.remove", "", "expense", 5])
def test_no_client_may_send_other_types(event_type: object) -> None:
    assert invalid({**EXAMPLE["expense.add"], "eventType": event_type}).event_type is None


@pytest.mark.parametrize("event_type", [JOINS, LEAVES])
@pytest.mark.parametrize("called", ["eventType", "event"])
def test_no_client_may_send_a_membership_event(called: str, event_type: str) -> None:
    """However complete it is: the server makes them."""
    record_id = {"recordId": EXPENSE, "userId": EXPENSE, "user_id": EXPENSE}
    fields = {**HEAD, **record_id, "version": 1, "participantsMax": 10}
    refused = invalid({**fields, called: event_type})
    assert refused[:4] == (EVENT, None, BUDGET, EXPENSE)
    assert "eventType" in refused.detail
    [in_a_batch] = parse_batch([{**fields, called: event_type}], EVENTS_PER_FRAME_MAX)
    assert in_a_batch == refused


@OF_EACH_TYPE
def test_every_required_field_is_required(event_type: str) -> None:
    required = {"budgetId", "when", *TYPES[event_type][0]}
    required |= {"recordId", "version"} & EXAMPLE[event_type].keys()
    for name in required:
        wire = {key: value for key, value in EXAMPLE[event_type].items() if key != name}
        assert name in invalid(wire).detail
        assert name in invalid({**wire, name: None}).detail


@OF_EACH_TYPE
def test_every_optional_field_may_be_absent(event_type: str) -> None:
    required, optional = TYPES[event_type]
    wire = {key: value for key, value in EXAMPLE[event_type].items() if key not in optional}
    assert valid(wire).named.keys() == set(required)


@OF_EACH_TYPE
def test_unknown_fields_are_ignored(event_type: str) -> None:
    """An old server must accept a new client."""
    wire = {**EXAMPLE[event_type], "colour": {"a": [1, None]}, "event_id": 5, "\ud800": "\ud800"}
    assert valid(wire) == valid(EXAMPLE[event_type])


@OF_EACH_TYPE
def test_legacy_clients_call_the_type_event(event_type: str) -> None:
    wire = {key: value for key, value in EXAMPLE[event_type].items() if key != "eventType"}
    assert valid({**wire, "event": event_type}) == valid(EXAMPLE[event_type])
    assert valid({**wire, "event": event_type, "eventType": None}) == valid(EXAMPLE[event_type])
    # The new name wins where both are there.
    assert valid({**EXAMPLE[event_type], "event": "nonsense"}) == valid(EXAMPLE[event_type])


def test_null_is_told_from_absent() -> None:
    """Absent is "unchanged", null clears."""
    edit = EXAMPLE["expense.edit"]
    assert valid(edit).named == {"amount": Decimal("0.05")}
    cleared = valid({**edit, "note": None, "categoryId": None})
    assert cleared.named == {"amount": Decimal("0.05"), "note": None, "categoryId": None}


@pytest.mark.parametrize(
    ("event_type", "field"),
    [(type_, field) for type_, fields in TYPES.items() for field in (*fields[0], *fields[1])],
)
def test_null_is_allowed_where_a_field_can_be_cleared(event_type: str, field: str) -> None:
    wire = {**EXAMPLE[event_type], field: None}
    clearable = field in {"details", "note", "categoryId", "currency"}
    assert isinstance(parse_event(wire), Event if clearable else Invalid)


# Money (P12).


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("0", "0.00"),
        ("1", "1.00"),
        ("1.5", "1.50"),
        ("1.50", "1.50"),
        ("007.05", "7.05"),
        ("0000000000", "0.00"),
        ("9999999999.99", "9999999999.99"),
    ],
)
def test_p12_money_is_kept_with_two_decimals(sent: str, kept: str) -> None:
    event = valid(expense(amount=sent))
    assert isinstance(event, Event)
    assert isinstance(event.named["amount"], Decimal)
    assert str(event.named["amount"]) == kept


@pytest.mark.parametrize(
    "sent",
    [
        *["", ".", ".5", "5.", "1.234", "-1", "+1", "1e3", "0x1", "1,50", " 1", "1 ", "1\n", "1_0"],
        *[
            "12345678901",
            "00000000001",
            "NaN",
            "Infinity",
            "\u0661",
            "\uff11",
            1,
            1.5,
            True,
            None,
            [],
            {},
        ],
    ],
)
def test_p12_money_is_a_plain_decimal_string(sent: object) -> None:
    assert invalid(expense(amount=sent)).detail.startswith("amount: ")


@unhurried
@given(units=st.integers(0, 10**10 - 1), cents=st.integers(0, 99), zeros=st.integers(0, 9))
def test_p12_every_spelling_of_an_amount_is_one_amount(units: int, cents: int, zeros: int) -> None:
    exact = f"{units}.{cents:02}"
    spellings = [exact, str(units).zfill(min(10, len(str(units)) + zeros)) + exact[-3:]]
    if cents % 10 == 0:
        spellings.append(exact[:-1])
    if cents == 0:
        spellings.append(exact[:-3])
    for spelling in spellings:
        event = valid(expense(amount=spelling))
        assert isinstance(event, Event)
        assert str(event.named["amount"]) == exact
        assert content_hash(event) == content_hash(valid(expense(amount=exact)))


@unhurried
@given(st.text() | st.from_regex(r"[0-9]{0,12}\.?[0-9]{0,3}", fullmatch=True))
def test_p12_what_is_not_money_is_refused(text: str) -> None:
    units, point, cents = text.partition(".")
    plain = units.isascii() and units.isdigit() and len(units) <= 10
    plain &= cents.isascii() and cents.isdigit() and len(cents) <= 2 if point else True
    assert isinstance(parse_event(expense(amount=text)), Event) == plain


# The other kinds of values.


@pytest.mark.parametrize("field", ["eventId", "budgetId", "recordId", "categoryId"])
def test_ids_are_kept_in_lower_case(field: str) -> None:
    capitals = "0000000A-ABCD-4000-8000-00000000000F"
    event = valid(expense(**{field: capitals}))
    named = {"eventId": event.event_id, "budgetId": event.budget_id, "recordId": event.record_id}
    assert {**named, **event.named}[field] == capitals.lower()


NO_IDS = [
    f"{{{EXPENSE}}}",
    f"urn:uuid:{EXPENSE}",
    EXPENSE.replace("-", ""),
    f"{EXPENSE}\n",
    f" {EXPENSE}",
    EXPENSE[:-1],
    EXPENSE.replace("e", "g"),
    EXPENSE.replace("0", "\uff10"),
    "",
    7,
    None,
]


@pytest.mark.parametrize("sent", NO_IDS)
def test_ids_are_hyphenated_uuids(sent: object) -> None:
    assert invalid(expense(budgetId=sent)).budget_id is None
    assert invalid(expense(recordId=sent)).record_id is None
    with pytest.raises(HubError) as refused:
        parse_event(expense(eventId=sent))
    assert refused.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize("field", ["when", "version"])
@pytest.mark.parametrize("sent", [0, 1, INTEGER_MAX, 5.0, -0.0, float(INTEGER_MAX)])
def test_integers_go_up_to_2_to_the_53(field: str, sent: float) -> None:
    event = valid({**EXAMPLE["budget.delete"], field: sent})
    value = event.when if field == "when" else event.version
    assert (value, type(value)) == (sent, int)


@pytest.mark.parametrize("field", ["when", "version"])
@pytest.mark.parametrize(
    "sent",
    [-1, INTEGER_MAX + 1, 10**400, 1.5, True, False, "5", float("inf"), float("nan"), None, [5]],
)
def test_booleans_texts_and_fractions_are_no_integers(field: str, sent: object) -> None:
    assert invalid({**EXAMPLE["budget.delete"], field: sent}).detail.startswith(f"{field}: ")


@pytest.mark.parametrize("sent", ["0001-01-01", "2024-02-29", "9999-12-31"])
def test_dates_of_the_calendar(sent: str) -> None:
    event = valid(expense(date=sent))
    assert isinstance(event, Event)
    assert event.named["date"] == sent


@pytest.mark.parametrize(
    "sent",
    [
        *["2026-02-29", "1900-02-29", "2026-04-31", "2026-13-01", "2026-00-01", "0000-01-01"],
        *["2026-1-1", "20260101", "2026-W01-1", "2026-01-01T00:00", "26-01-01", "2026-01-01\n", ""],
        *["\uff12026-01-01", 20260101, None],
    ],
)
def test_dates_are_checked_against_the_calendar(sent: object) -> None:
    assert invalid(expense(date=sent)).detail.startswith("date: ")


@unhurried
@given(st.dates())
def test_every_date_is_kept(day: Any) -> None:
    assert valid(expense(date=day.isoformat())).named["date"] == day.isoformat()


LIMITS = [
    ("budget.create", "title", 1, 200),
    ("budget.edit", "details", 0, 2000),
    ("category.add", "name", 1, 200),
    ("expense.add", "note", 0, 2000),
]


@pytest.mark.parametrize(("event_type", "field", "shortest", "longest"), LIMITS)
@pytest.mark.parametrize("character", ["x", "ß", "\n", "\x1f", "\x7f", "\U0001f600", "\u2028"])
def test_texts_are_measured_in_code_points(
    event_type: str, field: str, shortest: int, longest: int, character: str
) -> None:
    for length in (shortest, longest):
        wire = {**EXAMPLE[event_type], field: character * length}
        assert valid(wire).named[field] == character * length
    assert f"{field}: " in invalid({**EXAMPLE[event_type], field: character * (longest + 1)}).detail


@pytest.mark.parametrize(("event_type", "field", "shortest", "longest"), LIMITS)
@pytest.mark.parametrize("sent", ["a\x00", "\x00", "\ud800", "a\udfffb", 5, b"bytes", ["a"]])
def test_texts_hold_no_nul_and_no_lone_surrogate(
    event_type: str, field: str, shortest: int, longest: int, sent: object
) -> None:
    assert invalid({**EXAMPLE[event_type], field: sent}).detail.startswith(f"{field}: ")


def test_titles_and_names_are_not_empty() -> None:
    assert invalid({**EXAMPLE["budget.create"], "title": ""})
    assert invalid({**EXAMPLE["budget.edit"], "title": ""})
    assert invalid({**EXAMPLE["category.add"], "name": ""})
    assert invalid({**EXAMPLE["category.edit"], "name": ""})


@pytest.mark.parametrize("sent", ["eur", "EURO", "EU", "XYZ", "", "EUR\n", "\uff25UR", 978])
def test_currencies_are_those_of_iso_4217(sent: object) -> None:
    assert {"EUR", "USD", "INR", "JPY", "BHD"} <= CURRENCIES
    assert invalid({**EXAMPLE["budget.create"], "currency": sent}).detail.startswith("currency: ")


# Refusals.


def test_a_refused_event_echoes_what_is_certain() -> None:
    wire = expense(amount=1, recordId=EXPENSE.upper())
    assert invalid(wire)[:4] == (EVENT, "expense.add", BUDGET, EXPENSE)
    nothing = {"eventId": EVENT.upper(), "eventType": ["x"], "budgetId": "b", "recordId": 5}
    assert invalid(nothing)[:4] == (EVENT, None, None, None)
    legacy = {"eventId": EVENT, "event": "expense.edit"}
    assert invalid(legacy).event_type == "expense.edit"


@pytest.mark.parametrize(
    "sent", ["secret", "secret\x00", {"secret": "secret"}, ["secret"], "\ud800secret", 1.5]
)
@OF_EACH_TYPE
def test_p9_a_refusal_names_fields_and_repeats_no_content(event_type: str, sent: object) -> None:
    for field in EXAMPLE[event_type].keys() - {"eventId", "eventType"}:
        event = parse_event({**EXAMPLE[event_type], field: sent, "details": "secret\x00"})
        if isinstance(event, Invalid):
            assert "secret" not in event.detail


# Whatever is sent.

_TEXTS = st.text(st.characters())  # lone surrogates included
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=8,
)


@unhurried
@given(JSON)
def test_whatever_is_sent_is_parsed_or_refused(value: object) -> None:
    for count_max in (1, EVENTS_PER_FRAME_MAX):
        try:
            parse_batch(value, count_max)
        except HubError as error:
            assert error.code is Code.BAD_REQUEST
    try:
        parse_event(value)
    except HubError as error:
        assert error.code is Code.BAD_REQUEST


@settings(unhurried, max_examples=400)
@given(
    st.sampled_from(list(EXAMPLE)),
    st.dictionaries(
        st.sampled_from(["eventType", "event", "budgetId", "recordId", "when", "version", "title"])
        | st.sampled_from(["details", "currency", "name", "allocate", "amount", "date", "note"]),
        JSON
        | st.sampled_from(["EUR", "1.5", "2026-03-01", CATEGORY, CATEGORY.upper(), 7, *EXAMPLE]),
        max_size=3,
    ),
    st.sets(st.sampled_from([*HEAD, "eventType", "recordId", "version", "amount"]), max_size=1),
)
def test_shapes_are_what_the_model_says(event_type: str, changes: Json, without: set[str]) -> None:
    """Every event near a good one, against the second reading of the design in `tests.model`."""
    wire = {**EXAMPLE[event_type], **changes}
    wire = {name: value for name, value in wire.items() if name not in without}
    expected = normalised(wire)
    if "eventId" in without:
        with pytest.raises(HubError):
            parse_event(wire)
        return
    event = parse_event(wire)
    if expected is None:
        assert isinstance(event, Invalid)
        assert event.event_id == EVENT
        return
    assert isinstance(event, Event)
    said = {
        "eventId": event.event_id,
        "eventType": event.event_type,
        "budgetId": event.budget_id,
        "recordId": event.record_id,
        "when": event.when,
        **event.named,
    }
    if event.version is not None:
        said["version"] = event.version
    for name in said.keys() & {"amount", "allocate"}:
        said[name] = str(said[name])
    assert said == {"recordId": expected["budgetId"], **expected}


# Batches.


@pytest.mark.parametrize("batch", [None, {}, "x", [], [EXAMPLE["budget.create"]] * 4, [1], [None]])
def test_a_bad_envelope_refuses_the_whole_batch(batch: object) -> None:
    with pytest.raises(HubError) as refused:
        parse_batch(batch, 3)
    assert refused.value.code is Code.BAD_REQUEST


def test_one_event_without_an_id_refuses_the_whole_batch() -> None:
    for event_id in NO_IDS:
        with pytest.raises(HubError):
            parse_batch([EXAMPLE["budget.create"], expense(eventId=event_id)], 3)


def test_anything_else_wrong_is_that_events_own() -> None:
    batch = parse_batch([EXAMPLE["budget.create"], {"eventId": EVENT}, expense(amount=1)], 3)
    assert [isinstance(event, Invalid) for event in batch] == [False, True, True]


# Content (P3).


@pytest.mark.parametrize(("wire", "expected"), EXAMPLES, ids=list(EXAMPLE))
def test_p3_content_hashes_computed_by_hand(wire: Json, expected: str) -> None:
    event = valid({**HEAD, **wire})
    assert content_hash(event).hex() == content_hash(event, 1).hex() == expected


@pytest.mark.parametrize(("wire", "expected"), MADE_BY_THE_SERVER, ids=[JOINS, LEAVES])
def test_p3_content_of_what_the_server_makes_is_who_when_and_what(
    wire: Json, expected: str
) -> None:
    """Computed by hand, too. What the server adds from its settings is no content."""
    event = made({**HEAD, **wire}, participants_max=10)
    assert content_hash(event).hex() == content_hash(event, 1).hex() == expected
    assert content_hash(made({**HEAD, **wire}, participants_max=2)).hex() == expected
    assert content_hash(made({**HEAD, **wire, "eventId": CATEGORY}, 10)).hex() == expected
    for other in ({"recordId": "ben"}, {"when": 1}):
        assert content_hash(made({**HEAD, **wire, **other}, 10)).hex() != expected
    assert isinstance(event, Joining) == (wire["eventType"] == JOINS)
    assert (event.record_id, event.version, event.named) == ("ann", None, {})


def test_p3_list_1_covers_all_fields_there_were_when_it_was_written() -> None:
    covered = {event_type: {*fields[0], *fields[1]} for event_type, fields in TYPES.items()}
    covered |= {"participant.add": set(), "participant.remove": set()}
    assert {event_type: set(fields) for event_type, fields in FIELD_LISTS[1].items()} == covered


@OF_EACH_TYPE
def test_p3_the_newest_list_has_the_fields_of_the_table(event_type: str) -> None:
    """A kind that no list names would lose what its events cover when it gains a field."""
    shape = CLIENT_EVENTS[event_type]
    fields = () if shape.verb == "delete" else tuple(shape.kind.positions)
    assert FIELD_LISTS[FIELD_LIST][event_type] == fields


@OF_EACH_TYPE
def test_p3_every_field_of_an_event_is_content_but_its_own_id(event_type: str) -> None:
    event = valid(EXAMPLE[event_type])
    other_id = valid({**EXAMPLE[event_type], "eventId": CATEGORY})
    assert content_hash(other_id) == content_hash(event)
    others = {"when": 1, "version": 9, "recordId": EVENT, "title": "T", "name": "N", "note": "n"}
    others |= {"details": "d", "currency": "USD", "allocate": "7", "amount": "7"}
    others |= {"date": "2026-12-31", "categoryId": EVENT}
    fields = {"when", *TYPES[event_type][0], *TYPES[event_type][1]}
    fields |= {"recordId", "version"} & EXAMPLE[event_type].keys()
    for field in fields:
        changed = valid({**EXAMPLE[event_type], field: others[field]})
        assert content_hash(changed) != content_hash(event), field


_EDITED = st.fixed_dictionaries(
    {},
    optional={
        "note": st.sampled_from([None, "", "a", "b"]),
        "amount": st.sampled_from(["1", "1.0", "01.00", "2"]),
        "categoryId": st.sampled_from([None, CATEGORY, CATEGORY.upper()]),
    },
)


@unhurried
@given(_EDITED, _EDITED)
def test_p3_equal_content_is_equal_hash(first: Json, second: Json) -> None:
    one, other = (valid({**EXAMPLE["expense.edit"], **fields}) for fields in (first, second))
    assert isinstance(one, Event)
    assert (one.named == other.named) == (content_hash(one) == content_hash(other))
