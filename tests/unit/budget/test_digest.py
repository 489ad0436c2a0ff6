"""P6: the digest, against vectors made without the hub's code (hub/digest-vectors.json)."""

from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given, settings, strategies as st

from hub.budget.digest import (
    DIGEST_MODULUS,
    digest_text,
    fields_hash,
    fingerprint,
    participant_fingerprint,
    value_text,
)
from hub.budget.kinds import KINDS, REQUIRED, TEXT, Field, Kind
from hub.errors import Code
from loadtest import replica
from tests import ROOT
from tests.model import weight

VECTORS = orjson.loads((ROOT / "hub/digest-vectors.json").read_bytes())
OF_EACH = pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda vector: vector["about"])


def kind_of(vector: dict[str, Any]) -> Kind:
    """A kind with the vector's fields and defaults, in an order that is not that of the digest."""
    fields = [
        Field(name, TEXT, "last", vector["defaults"].get(name, REQUIRED))
        for name in reversed(vector["fields"])
    ]
    return Kind(vector["kind"], "", fields, Code.NOT_FOUND, Code.NOT_FOUND)


@OF_EACH
def test_p6_vectors(vector: dict[str, Any]) -> None:
    kind = kind_of(vector)
    hashed = fields_hash(kind, [vector["fields"][field.name] for field in kind.fields])
    assert hashed.hex() == vector["c"]
    found = fingerprint(vector["kind"], vector["id"], vector["version"], hashed)
    assert digest_text(found) == vector["fingerprint"]


@OF_EACH
def test_p13_the_table_says_what_the_vectors_say(vector: dict[str, Any]) -> None:
    kind = KINDS.get(vector["kind"])
    if kind is not None:
        assert kind.positions.keys() == vector["fields"].keys()
        defaults = {field.name: field.default for field in kind.fields if not field.required}
        assert defaults == vector["defaults"]
    elif vector["kind"] == "participant":
        found = participant_fingerprint(vector["id"], vector["fields"]["role"])
        assert digest_text(found) == vector["fingerprint"]


@OF_EACH
def test_the_load_script_agrees(vector: dict[str, Any]) -> None:
    if vector["kind"] == "participant":
        found = replica.member_fingerprint(vector["id"], vector["fields"]["role"])
    elif vector["kind"] in replica.FIELDS:
        record = {"id": vector["id"], "version": vector["version"], **vector["fields"]}
        found = replica.fingerprint(vector["kind"], record)
    else:
        return
    assert digest_text(found) == vector["fingerprint"]


@pytest.mark.parametrize("budget", VECTORS["budgets"])
def test_p6_digests_of_whole_budgets(budget: dict[str, Any]) -> None:
    prints = [int(VECTORS["records"][place]["fingerprint"], 16) for place in budget["records"]]
    assert digest_text(sum(prints) % DIGEST_MODULUS) == budget["digest"]


@pytest.mark.parametrize(
    ("digest", "text"),
    [(0, "0" * 16), (10, "000000000000000a"), (2**64 - 1, "f" * 16), (2**63, "8" + "0" * 15)],
)
def test_a_digest_is_shown_as_16_lower_case_hex_digits(digest: int, text: str) -> None:
    assert digest_text(digest) == text


def test_what_no_field_can_hold_has_no_value() -> None:
    with pytest.raises(TypeError):
        value_text(1.5)


_texts = st.none() | st.text()


@settings(deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_p6_two_records_with_one_fingerprint_are_equal(name: str, data: st.DataObject) -> None:
    """Null differs from an empty text, and no text can pass for another field."""
    kind = KINDS[name]
    one, other = (
        tuple(
            data.draw(st.sampled_from([Decimal("1.00"), Decimal("10.00")]))
            if field.type.name == "money"
            else data.draw(_texts if field.nullable else st.text())
            for field in kind.fields
        )
        for _ in range(2)
    )
    assert (fields_hash(kind, one) == fields_hash(kind, other)) == (one == other)


@settings(deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_p6_a_field_that_is_added_later_changes_no_fingerprint(
    name: str, data: st.DataObject
) -> None:
    kind = KINDS[name]
    values = [data.draw(st.text()) for _ in kind.fields]
    place = data.draw(st.integers(0, len(values)))
    default: object = data.draw(st.none() | st.text() | st.booleans() | st.just([]))
    younger = Field(data.draw(st.text(min_size=1)), TEXT, "last", default)
    fields = [*kind.fields[:place], younger, *kind.fields[place:]]
    grown = Kind(kind.name, kind.plural, fields, kind.exists, kind.missing)
    assert fields_hash(grown, [*values[:place], default, *values[place:]]) == (
        fields_hash(kind, values)
    )


@settings(deadline=None)
@given(st.text(), st.text(), st.integers(1, 2**53), st.dictionaries(st.text(), st.text()))
def test_p6_three_ways_to_one_fingerprint(
    kind: str, id: str, version: int, fields: dict[str, str]
) -> None:
    """The hub's, that of the tests' model, and that of the load script."""
    row = Kind(kind, "", [Field(n, TEXT, "last") for n in fields], Code.NOT_FOUND, Code.NOT_FOUND)
    found = fingerprint(kind, id, version, fields_hash(row, list(fields.values())))
    assert found == weight(kind, id, version, fields)
    assert found == replica._fingerprint(kind, id, version, fields)
    assert 0 <= found < DIGEST_MODULUS


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, DIGEST_MODULUS - 1), st.booleans()), max_size=40))
def test_p6_a_digest_kept_is_a_digest_recomputed(steps: list[tuple[int, bool]]) -> None:
    """One addition per record that comes, one subtraction per record that goes, in any order."""
    kept, live = 0, list[int]()
    for value, goes in steps:
        if goes and live:
            kept = (kept - live.pop(value % len(live))) % DIGEST_MODULUS
        else:
            live.append(value)
            kept = (kept + value) % DIGEST_MODULUS
        assert digest_text(kept) == digest_text(sum(live) % DIGEST_MODULUS)
