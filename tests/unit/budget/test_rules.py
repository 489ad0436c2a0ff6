"""The decision table, in one sitting: who hears what, in which order the checks come, and what an
accepted event does. Promises P3, P5, P6, P9 and P12."""

import itertools
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, cast

import orjson
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from hub.budget import events, rules
from hub.budget.digest import digest_text
from hub.budget.events import (
    Event,
    Invalid,
    Joining,
    Submitted,
    content_hash,
    parse_event,
)
from hub.budget.records import Invite, Membership, Record
from hub.budget.rules import decide, rejected
from hub.budget.state import BudgetState, Change
from hub.budget.verdicts import Verdict
from hub.errors import Code
from tests.model import (
    JOINS,
    LEAVES,
    PARTICIPANTS_MAX,
    USERS,
    Json,
    Model,
    author,
    changed,
    comparable,
    json_event,
    made,
    membership,
    weight,
)

NOW_MS = 1_800_000_000_000
WHEN = 1_700_000_000_000

BUDGET = "00000000-0000-4000-8000-00000000000b"
FOOD = "00000000-0000-4000-8000-0000000000c1"  # a category
GONE = "00000000-0000-4000-8000-0000000000c2"  # a deleted one
LUNCH = "00000000-0000-4000-8000-0000000000e1"  # an expense in FOOD, edited once
EATEN = "00000000-0000-4000-8000-0000000000e2"  # a deleted one
UNKNOWN = "00000000-0000-4000-8000-0000000000ff"

KNOWN = "00000000-0000-4000-8000-0000000000a1"  # an eventId of ann's that the log holds
NEWER = "00000000-0000-4000-8000-0000000000a2"  # … written by a newer server
FRESH = "00000000-0000-4000-8000-0000000000aa"

_numbers = itertools.count(1)


def ask(state: BudgetState, actor: str, event_type: str, **fields: Any) -> Verdict | Change:
    """Decide an event with a fresh eventId, unless `fields` say otherwise."""
    wire = {
        "eventId": f"00000000-0000-4000-9000-{next(_numbers):012x}",
        "eventType": event_type,
        "budgetId": BUDGET,
        "when": WHEN,
        **fields,
    }
    return decide(state, actor, parse_event(wire), NOW_MS)


def told(state: BudgetState, actor: str, event_type: str, **fields: Any) -> Verdict:
    """The verdict of an event that is not accepted anew."""
    outcome = ask(state, actor, event_type, **fields)
    assert isinstance(outcome, Verdict)
    return outcome


def done(state: BudgetState, actor: str, event_type: str, **fields: Any) -> Change:
    """The change an accepted event makes, put into the state."""
    outcome = ask(state, actor, event_type, **fields)
    assert isinstance(outcome, Change), outcome
    state.apply(outcome)
    return outcome


def world() -> BudgetState:
    """ann's budget: ben takes part, eve did once, zoe never. Sequence 7."""
    state = BudgetState()
    done(state, "ann", "budget.create", title="Home", eventId=KNOWN)
    state.members["ben"] = Membership(BUDGET, "ben", joined_at=1, active=True)
    state.members["eve"] = Membership(BUDGET, "eve", joined_at=2, active=False)
    assert state.budget is not None
    state.budget = state.budget._replace(digest=digest_of(state))
    state.sums = {FOOD: 0, GONE: 0}
    done(state, "ann", "category.add", recordId=FOOD, name="Food", allocate="200")
    done(state, "ben", "category.add", recordId=GONE, name="Rent", allocate="0")
    lunch = {"recordId": LUNCH, "amount": "12.5", "date": "2026-03-01"}
    done(state, "ben", "expense.add", **lunch, categoryId=FOOD, note="Café")
    done(state, "ann", "expense.edit", recordId=LUNCH, version=1, amount="13")
    done(state, "ann", "category.delete", recordId=GONE, version=1)
    done(state, "ben", "expense.add", recordId=EATEN, amount="1", date="2026-03-02")
    done(state, "ben", "expense.delete", recordId=EATEN, version=1)
    state.known[NEWER] = state.known[KNOWN]._replace(content_fields=99)
    return state


def head(state: BudgetState) -> int:
    assert state.budget is not None
    return state.budget.last_sequence


def of_kind(state: BudgetState, kind: str) -> dict[str, Record]:
    """The records of one kind, by their ids."""
    return {id: record for (name, id), record in state.records.items() if name == kind}


def live(state: BudgetState) -> list[Record]:
    assert state.budget is not None
    records = [state.budget.record, *state.records.values()]
    return [record for record in records if not record.deleted]


def digest_of(state: BudgetState) -> int:
    """Computed anew, record by record and member by member."""
    assert state.budget is not None
    total = 0
    for record in live(state):
        fields = {name: str(v) for name, v in record.fields().items() if v is not None}
        total += weight(record.kind.name, record.id, record.version, fields)
    for user, member in state.members.items():
        if member.active:
            role = "owner" if user == state.budget.owner_id else "editor"
            total += weight("participant", user, 1, {"role": role})
    return total % 2**64


def streamed(change: Change) -> Json:
    event: Json = orjson.loads(change.row.event)
    return event


# The order of the checks. For each type of event one that is accepted in `world()`; then every way
# to spoil it, and every two of them at once: the one that is checked first decides.

ACCEPTED: Mapping[str, Json] = {
    "budget.edit": {"version": 1, "title": "Casa"},
    "budget.delete": {"version": 1},
    "category.add": {"recordId": UNKNOWN, "name": "Fun", "allocate": "5"},
    "category.edit": {"recordId": FOOD, "version": 1, "name": "Meals"},
    "category.delete": {"recordId": FOOD, "version": 1},
    "expense.add": {"recordId": UNKNOWN, "amount": "1", "date": "2026-01-01"},
    "expense.edit": {"recordId": LUNCH, "version": 2, "amount": "2"},
    "expense.delete": {"recordId": LUNCH, "version": 2},
}
OF_RECORDS = [name for name in ACCEPTED if not name.startswith("budget.")]
CHANGES = [name for name in ACCEPTED if not name.endswith(".add")]


class Flaw(NamedTuple):
    """A way to spoil an event, and the verdict it then gets at check `rank`.

    Two flaws cannot meet where both need the same `spot`."""

    name: str
    rank: float
    expected: str
    spot: str
    fields: Json = {}
    actor: str = "ann"
    types: list[str] = list(ACCEPTED)


FLAWS = [
    Flaw("shape", 1, "INVALID_EVENT", "when", {"when": "soon"}),
    Flaw("newer server's row", 2, "UNAVAILABLE", "event", {"eventId": NEWER}),
    Flaw("unknown budget", 3.1, "BUDGET_NOT_EXISTS", "world"),
    Flaw("deleted budget", 3.1, "BUDGET_NOT_EXISTS", "world", types=OF_RECORDS),
    Flaw("stranger", 3.2, "BUDGET_NOT_EXISTS", "actor", actor="zoe"),
    Flaw("former participant", 3.2, "NOT_PARTICIPANT", "actor", actor="eve"),
    Flaw("eventId reused", 4, "EVENT_ID_REUSED", "event", {"eventId": KNOWN}),
    Flaw("not the owner", 5, "NOT_OWNER", "actor", actor="ben", types=["budget.delete"]),
    *(
        Flaw(f"{which} id", 6.1, code, "record", {"recordId": record_id}, types=[f"{kind}.add"])
        for kind, code, ids in (
            ("category", "CATEGORY_EXISTS", (FOOD, GONE)),
            ("expense", "EXPENSE_EXISTS", (LUNCH, EATEN)),
        )
        for which, record_id in zip(("taken", "deleted record's"), ids, strict=True)
    ),
    *(
        Flaw(
            "unknown record", 6.1, f"{kind.upper()}_NOT_EXISTS", "record", {"recordId": other},
            types=[f"{kind}.edit", f"{kind}.delete"],
        )
        # An id of the other kind, too, is no id of this one.
        for kind, other in (("category", LUNCH), ("expense", FOOD))
    ),
    *(
        Flaw(
            f"{which} category", 6.2, "CATEGORY_NOT_EXISTS", "reference", {"categoryId": id},
            types=["expense.add", "expense.edit"],
        )
        for which, id in (("unknown", UNKNOWN), ("deleted", GONE))
    ),
    Flaw("version behind", 7, "conflict", "version", {"version": 0}, types=CHANGES),
    Flaw("version ahead", 7, "conflict", "version", {"version": 3}, types=CHANGES),
    Flaw(
        "tombstone", 7, "conflict", "record", {"recordId": GONE, "version": 2},
        types=["category.edit", "category.delete"],
    ),
    Flaw(
        "tombstone", 7, "conflict", "record", {"recordId": EATEN, "version": 2},
        types=["expense.edit", "expense.delete"],
    ),
    Flaw(
        "deleted budget", 7, "conflict", "world", {"version": 2},
        types=["budget.edit", "budget.delete"],
    ),
]  # fmt: skip


def spoiled() -> list[Any]:
    cases = []
    for event_type in ACCEPTED:
        flaws = [flaw for flaw in FLAWS if event_type in flaw.types]
        for first, second in itertools.combinations_with_replacement(flaws, 2):
            spots = {first.spot, second.spot}
            if (first is second or len(spots) == 2) and not (
                # A budget that is not there has no log; and who took part in one that was deleted
                # is told so below.
                spots == {"world", "event"} or {first.name, second.name} == _FORMER_OF_DELETED
            ):
                name = first.name if first is second else f"{first.name} + {second.name}"
                cases.append(pytest.param(event_type, first, second, id=f"{event_type}: {name}"))
    return cases


_FORMER_OF_DELETED = {"deleted budget", "former participant"}


@pytest.mark.parametrize(("event_type", "one", "other"), spoiled())
def test_the_first_check_that_fails_decides(event_type: str, one: Flaw, other: Flaw) -> None:
    state = world()
    if "unknown budget" in (one.name, other.name):
        state = BudgetState()
    elif "deleted budget" in (one.name, other.name):
        done(state, "ann", "budget.delete", version=1)
    actors = {flaw.actor for flaw in (one, other)} - {"ann"} or {"ann"}
    fields = {**ACCEPTED[event_type], **other.fields, **one.fields}
    verdict = told(state, actors.pop(), event_type, **fields)
    expected = min(one, other, key=lambda flaw: flaw.rank).expected
    assert (verdict.error.name if verdict.error else verdict.status) == expected
    assert verdict.status == ("conflict" if expected == "conflict" else "rejected")
    assert verdict.event_type == event_type
    assert verdict.sequence is None


@pytest.mark.parametrize("event_type", ACCEPTED)
@pytest.mark.parametrize("actor", ["ann", "ben"])
def test_without_a_flaw_every_participant_may(event_type: str, actor: str) -> None:
    state = world()
    if event_type == "budget.delete" and actor == "ben":
        return  # the owner's, see the table
    change = done(state, actor, event_type, **ACCEPTED[event_type])
    assert change.row.sequence == head(world()) + 1
    assert change.row.actor_id == actor
    assert digest_of(state) == change.budget.digest


@pytest.mark.parametrize("event_type", ["budget.edit", "budget.delete"])
def test_a_former_participant_of_a_deleted_budget_is_told_that_there_is_none(
    event_type: str,
) -> None:
    state = world()
    done(state, "ann", "budget.delete", version=1)
    assert told(state, "eve", event_type, version=2).error is Code.BUDGET_NOT_EXISTS


def test_a_deleted_budget_is_still_its_owners_to_delete() -> None:
    state = world()
    done(state, "ann", "budget.delete", version=1)
    assert told(state, "ben", "budget.delete", version=2).error is Code.NOT_OWNER


def test_ownership_is_the_owners_not_the_creators() -> None:
    state = world()
    assert state.budget is not None
    state.budget = state.budget._replace(owner_id="ben")  # ann's account is gone
    assert told(state, "ann", "budget.delete", version=1).error is Code.NOT_OWNER
    done(state, "ben", "budget.delete", version=1)


@pytest.mark.parametrize("actor", ["ann", "ben", "eve", "zoe"])
def test_a_budget_id_is_taken_once_for_everybody(actor: str) -> None:
    state = world()
    assert told(state, actor, "budget.create", title="Mine").error is Code.BUDGET_EXISTS
    done(state, "ann", "budget.delete", version=1)
    assert told(state, actor, "budget.create", title="Mine").error is Code.BUDGET_EXISTS


def test_an_event_id_is_reused_before_a_budget_id_is() -> None:
    verdict = told(world(), "ann", "budget.create", title="Mine", eventId=KNOWN)
    assert verdict.error is Code.EVENT_ID_REUSED


# P3: idempotent for ever.

EDIT = {"eventId": FRESH, "recordId": LUNCH, "version": 2, "amount": "1.5", "note": None}


def original_of(state: BudgetState) -> Verdict:
    return done(state, "ben", "expense.edit", **EDIT).verdict()


def test_p3_sent_again_gives_the_original_verdict_and_changes_nothing() -> None:
    state = world()
    original = original_of(state)
    done(state, "ann", "expense.edit", recordId=LUNCH, version=3, amount="99")
    again = told(state, "ben", "expense.edit", **EDIT)
    assert again == original._replace(duplicate=True)
    assert orjson.loads(again.record or b"")["amount"] == "1.50"


@pytest.mark.parametrize("later", ["left", "budget deleted", "expense deleted", "left, deleted"])
def test_p3_the_original_verdict_stands_whatever_happened_since(later: str) -> None:
    state = world()
    original = original_of(state)
    if "expense" in later:
        done(state, "ann", "expense.delete", recordId=LUNCH, version=3)
    if "left" in later:
        state.members["ben"] = state.members["ben"]._replace(active=False)
    if "deleted" in later:
        done(state, "ann", "budget.delete", version=1)
    assert told(state, "ben", "expense.edit", **EDIT) == original._replace(duplicate=True)


@pytest.mark.parametrize(
    "same",
    [
        pytest.param({"amount": "1.50"}, id="the amount with two decimals"),
        pytest.param({"amount": "01.5"}, id="the amount with a leading zero"),
        pytest.param({"recordId": LUNCH.upper(), "eventId": FRESH.upper()}, id="ids in capitals"),
        pytest.param({"when": float(WHEN), "version": 2.0}, id="5.0 for 5"),
        pytest.param({"colour": "red", "event": "x"}, id="fields nobody knows"),
    ],
)
def test_p3_content_is_compared_after_normalisation(same: Json) -> None:
    state = world()
    original = original_of(state)
    assert told(state, "ben", "expense.edit", **EDIT | same) == original._replace(duplicate=True)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"amount": "1.51"}, id="another amount"),
        pytest.param({"note": ""}, id="empty is not null"),
        pytest.param({"categoryId": None}, id="null is not absent"),
        pytest.param({"when": WHEN + 1}, id="another time"),
        pytest.param({"version": 3}, id="another version"),
        pytest.param({"recordId": EATEN}, id="another record"),
    ],
)
def test_p3_other_content_under_the_same_id_is_refused(other: Json) -> None:
    state = world()
    original_of(state)
    verdict = told(state, "ben", "expense.edit", **EDIT | other)
    assert verdict.error is Code.EVENT_ID_REUSED


def test_p3_absent_is_not_null_either_way() -> None:
    state = world()
    original_of(state)
    without_note = {name: value for name, value in EDIT.items() if name != "note"}
    assert told(state, "ben", "expense.edit", **without_note).error is Code.EVENT_ID_REUSED


def test_p3_another_type_under_the_same_id_is_refused() -> None:
    state = world()
    original_of(state)
    verdict = told(state, "ben", "expense.delete", eventId=FRESH, recordId=LUNCH, version=2)
    assert verdict.error is Code.EVENT_ID_REUSED


@pytest.mark.parametrize(
    ("actor", "expected"),
    [
        ("ann", Code.EVENT_ID_REUSED),
        ("eve", Code.NOT_PARTICIPANT),
        ("zoe", Code.BUDGET_NOT_EXISTS),
    ],
)
def test_p3_another_user_with_the_same_event_learns_nothing(actor: str, expected: Code) -> None:
    state = world()
    original_of(state)
    verdict = told(state, actor, "expense.edit", **EDIT)
    assert verdict.error is expected
    assert (verdict.record, verdict.sequence, verdict.detail) == (None, None, None)


def test_p3_only_accepted_events_are_remembered() -> None:
    state = world()
    early = {"eventId": FRESH, "recordId": UNKNOWN, "version": 1, "amount": "5"}
    assert told(state, "ann", "expense.edit", **early).error is Code.EXPENSE_NOT_EXISTS
    done(state, "ann", "expense.add", recordId=UNKNOWN, amount="1", date="2026-01-01")
    done(state, "ann", "expense.edit", **early)


def test_p3_a_membership_events_id_is_nobodys_to_reuse() -> None:
    state = world()
    state.known[FRESH] = state.known[KNOWN]._replace(
        event_id=FRESH, event_type="participant.add", record_id="ben", actor_id="ben"
    )
    assert told(state, "ben", "expense.edit", **EDIT).error is Code.EVENT_ID_REUSED


def test_p3_an_event_accepted_under_another_field_list_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row notes which list its hash covers; fields outside that list are not its content."""
    lists = cast(dict[int, Mapping[str, Any]], events.FIELD_LISTS)
    monkeypatch.setitem(lists, 2, {**lists[1], "expense.edit": ("amount",)})
    state = world()
    original_of(state)
    edit = parse_event({"eventType": "expense.edit", "budgetId": BUDGET, "when": WHEN, **EDIT})
    assert isinstance(edit, Event)
    row = state.known[FRESH]
    state.known[FRESH] = row._replace(content_fields=2, content_hash=content_hash(edit, 2))
    assert told(state, "ben", "expense.edit", **EDIT).duplicate
    assert told(state, "ben", "expense.edit", **EDIT | {"note": "new"}).duplicate
    assert told(state, "ben", "expense.edit", **EDIT | {"amount": "2"}).error is (
        Code.EVENT_ID_REUSED
    )


def test_p3_a_row_of_a_newer_server_is_left_undecided() -> None:
    """In the middle of a deploy: its hash covers fields this server does not know."""
    verdict = told(world(), "ann", "budget.create", title="Home", eventId=NEWER)
    assert verdict.error is Code.UNAVAILABLE
    said = verdict.to_json()
    assert said["status"] == "rejected" and said["error"]["retryable"]


# P5: a stale version never changes anything.


@pytest.mark.parametrize("event_type", CHANGES)
@pytest.mark.parametrize("off", [-1, 1, 2**53 - 10])
def test_p5_a_conflict_shows_the_current_record(event_type: str, off: int) -> None:
    state = world()
    fields = ACCEPTED[event_type]
    version = fields["version"] + off
    verdict = told(state, "ann", event_type, **fields | {"version": version})
    assert verdict.status == "conflict"
    record = orjson.loads(verdict.record or b"")
    assert (record["id"], record["version"]) == (verdict.record_id, fields["version"])
    assert "deleted" not in record


@pytest.mark.parametrize(
    ("event_type", "record_id"),
    [
        ("category.edit", GONE),
        ("category.delete", GONE),
        ("expense.edit", EATEN),
        ("expense.delete", EATEN),
        ("budget.edit", BUDGET),
        ("budget.delete", BUDGET),
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_p5_a_tombstone_is_a_conflict_at_every_version(
    event_type: str, record_id: str, version: int
) -> None:
    state = world()
    if record_id == BUDGET:
        done(state, "ann", "budget.delete", version=1)
    verdict = told(state, "ann", event_type, recordId=record_id, version=version)
    assert verdict.status == "conflict"
    assert orjson.loads(verdict.record or b"")["deleted"] is True


def test_p5_of_two_edits_of_one_version_the_first_wins() -> None:
    state = world()
    done(state, "ann", "budget.edit", version=1, title="Ann's")
    verdict = told(state, "ben", "budget.edit", version=1, title="Ben's")
    assert orjson.loads(verdict.record or b"")["title"] == "Ann's"


# What an accepted event does.


def test_creating_a_budget_makes_its_owner_the_first_participant() -> None:
    state = BudgetState()
    change = done(state, "zoe", "budget.create", title="Trip", currency="EUR")
    assert change.member == Membership(BUDGET, "zoe", joined_at=NOW_MS, active=True)
    assert (change.budget.owner_id, change.budget.record.created_by) == ("zoe", "zoe")
    assert (change.row.sequence, change.row.version) == (1, 1)
    assert change.budget.last_sequence == change.budget.record.last_sequence == 1
    done(state, "zoe", "budget.edit", version=1)


def test_an_add_is_streamed_with_all_its_fields_and_the_digest_after_it() -> None:
    """P12: the amount as text with two decimals."""
    state = world()
    change = done(
        state, "ben", "expense.add", eventId=FRESH, recordId=UNKNOWN, amount="0.5",
        date="2026-01-01",
    )  # fmt: skip
    assert streamed(change) == {
        "sequence": head(world()) + 1,
        "eventId": FRESH,
        "eventType": "expense.add",
        "budgetId": BUDGET,
        "recordId": UNKNOWN,
        "actorId": "ben",
        "when": WHEN,
        "version": 1,
        "categoryId": None,
        "amount": "0.50",
        "date": "2026-01-01",
        "note": None,
        "digest": digest_text(digest_of(state)),
    }
    assert orjson.loads(change.row.record or b"") == {
        "id": UNKNOWN,
        "budgetId": BUDGET,
        "categoryId": None,
        "createdBy": "ben",
        "date": "2026-01-01",
        "amount": "0.50",
        "note": None,
        "version": 1,
        "offlineLastModified": WHEN,
    }


def test_an_edit_is_streamed_with_what_it_named_and_changes_nothing_else() -> None:
    state = world()
    before = state.records["expense", LUNCH]
    change = done(state, "ann", "expense.edit", recordId=LUNCH, version=2, note=None, when=5)
    event = streamed(change)
    assert event["note"] is None
    assert event.keys().isdisjoint({"amount", "date", "categoryId"})
    after = state.records["expense", LUNCH]
    assert after == before._replace(
        values=(*before.values[:3], None),
        version=3,
        when=5,
        last_sequence=head(state),
        fields_hash=after.fields_hash,
        fingerprint=after.fingerprint,
    )
    assert after.fields_hash != before.fields_hash


@pytest.mark.parametrize(
    ("event_type", "field"),
    [
        ("budget.edit", "details"),
        ("budget.edit", "currency"),
        ("expense.edit", "note"),
        ("expense.edit", "categoryId"),
    ],
)
def test_null_clears_a_field_and_absence_leaves_it(event_type: str, field: str) -> None:
    state = world()
    done(state, "ann", "budget.edit", version=1, details="Flat 3", currency="EUR")
    fields = {"version": 2} | ({"recordId": LUNCH} if event_type == "expense.edit" else {})
    left = done(state, "ann", event_type, **fields)
    assert orjson.loads(left.row.record or b"")[field] is not None
    cleared = done(state, "ann", event_type, **fields | {"version": 3, field: None})
    assert orjson.loads(cleared.row.record or b"")[field] is None


@pytest.mark.parametrize("event_type", ["budget.edit", "category.edit", "expense.edit"])
def test_an_edit_that_names_nothing_still_counts_a_version(event_type: str) -> None:
    state = world()
    ids = {name: ACCEPTED[event_type][name] for name in ("recordId",) if "budget" not in event_type}
    version = ACCEPTED[event_type]["version"]
    change = done(state, "ann", event_type, **ids, version=version)
    assert change.row.version == version + 1
    assert change.budget.digest == digest_of(state)


def test_deleting_a_budget_changes_only_its_own_record() -> None:
    state = world()
    others = dict(state.records)
    done(state, "ann", "budget.delete", version=1)
    assert others == state.records
    assert state.budget is not None
    assert state.budget.digest == digest_of(state) != 0


# `category.delete` takes its expenses along.


def cascaded(state: BudgetState, **fields: Any) -> Change:
    before = {id: each for id, each in of_kind(state, "expense").items() if not each.deleted}
    change = done(state, "ann", "category.delete", recordId=FOOD, when=6, **fields)
    assert change.cascade
    assert change.budget.digest == digest_of(state)
    for id, expense in of_kind(state, "expense").items():
        if id in before and expense.deleted:
            assert expense.version == before[id].version + 1
            assert (expense.when, expense.last_sequence) == (6, change.row.sequence)
    return change


def loaded(state: BudgetState) -> None:
    """What the storage says when the batch wants to delete FOOD."""
    state.sums[FOOD] = sum(
        expense.fingerprint
        for expense in of_kind(state, "expense").values()
        if expense.value("categoryId") == FOOD and not expense.deleted
    )


def test_p6_deleting_a_category_deletes_its_live_expenses() -> None:
    state = world()
    loaded(state)
    eaten = state.records["expense", EATEN]
    done(state, "ann", "expense.add", recordId=UNKNOWN, amount="1", date="2026-01-01")
    cascaded(state, version=1)
    assert state.records["expense", LUNCH].deleted
    assert state.records["expense", EATEN] == eaten
    assert not state.records["expense", UNKNOWN].deleted
    assert told(state, "ann", "expense.edit", recordId=LUNCH, version=3).status == "conflict"


def test_p6_expenses_that_are_not_loaded_leave_the_digest_too() -> None:
    """A category with 100,000 expenses: only the sum of their fingerprints is known."""
    state = world()
    loaded(state)
    del state.records["expense", LUNCH]
    cascaded(state, version=1)


def test_p6_an_expense_moved_out_in_the_same_batch_stays() -> None:
    state = world()
    loaded(state)
    done(state, "ann", "expense.edit", recordId=LUNCH, version=2, categoryId=None)
    cascaded(state, version=1)
    assert not state.records["expense", LUNCH].deleted


def test_p6_an_expense_moved_in_in_the_same_batch_goes() -> None:
    state = world()
    done(state, "ann", "expense.edit", recordId=LUNCH, version=2, categoryId=None)
    loaded(state)
    assert state.sums[FOOD] == 0
    done(state, "ann", "expense.edit", recordId=LUNCH, version=3, categoryId=FOOD)
    cascaded(state, version=1)
    assert state.records["expense", LUNCH].deleted


def test_p6_an_expense_added_in_the_same_batch_goes() -> None:
    state = world()
    loaded(state)
    lunch = {"recordId": UNKNOWN, "amount": "1", "date": "2026-01-01", "categoryId": FOOD}
    done(state, "ann", "expense.add", **lunch)
    cascaded(state, version=1)
    assert state.records["expense", UNKNOWN].deleted
    assert state.records["expense", UNKNOWN].version == 2


def test_p6_an_expense_edited_and_one_deleted_in_the_same_batch() -> None:
    state = world()
    more = {"recordId": UNKNOWN, "amount": "1", "date": "2026-01-01", "categoryId": FOOD}
    done(state, "ann", "expense.add", **more)
    loaded(state)
    done(state, "ann", "expense.edit", recordId=LUNCH, version=2, amount="7")
    done(state, "ann", "expense.delete", recordId=UNKNOWN, version=1)
    cascaded(state, version=1)
    assert [state.records["expense", id].version for id in (LUNCH, UNKNOWN)] == [4, 2]


def test_p6_an_expense_moved_from_one_deleted_category_to_the_next() -> None:
    state = world()
    other = "00000000-0000-4000-8000-0000000000c3"
    done(state, "ann", "category.add", recordId=other, name="Other", allocate="0")
    loaded(state)
    state.sums[other] = 0
    done(state, "ann", "expense.edit", recordId=LUNCH, version=2, categoryId=other)
    cascaded(state, version=1)
    assert not state.records["expense", LUNCH].deleted
    done(state, "ann", "category.delete", recordId=other, version=1)
    assert state.records["expense", LUNCH].deleted
    assert state.budget is not None
    assert live(state) == [state.budget.record]
    assert state.budget.digest == digest_of(state)


# Membership: events that the server makes of requests to join, leave and remove.


def asked(
    state: BudgetState,
    actor: str,
    event_type: str,
    user: str,
    *,
    limit: int = 10,
    now_ms: int = NOW_MS,
    **fields: Any,
) -> Verdict | Change:
    """Decide a membership event with a fresh eventId, unless `fields` say otherwise."""
    wire = {
        "eventId": f"00000000-0000-4000-9000-{next(_numbers):012x}",
        "eventType": event_type,
        "budgetId": BUDGET,
        "recordId": user,
        "when": WHEN,
        **fields,
    }
    return decide(state, actor, made(wire, limit), now_ms)


def refused(state: BudgetState, actor: str, event_type: str, user: str, **how: Any) -> Code | None:
    """Why not; the verdict tells of nothing else."""
    before = state.budget, dict(state.members), list(state.participants)
    verdict = asked(state, actor, event_type, user, **how)
    assert isinstance(verdict, Verdict), verdict
    assert (verdict.status, verdict.event_type, verdict.record_id) == ("rejected", event_type, user)
    assert (verdict.sequence, verdict.version, verdict.record) == (None, None, None)
    assert before == (state.budget, state.members, state.participants)
    return verdict.error


def joins(state: BudgetState, user: str, **how: Any) -> Change:
    return moved(state, user, JOINS, user, **how)


def leaves(state: BudgetState, user: str, **how: Any) -> Change:
    return moved(state, user, LEAVES, user, **how)


def removes(state: BudgetState, actor: str, user: str, **how: Any) -> Change:
    return moved(state, actor, LEAVES, user, **how)


def moved(state: BudgetState, actor: str, event_type: str, user: str, **how: Any) -> Change:
    """The change an accepted membership event makes, put into the state."""
    outcome = asked(state, actor, event_type, user, **how)
    assert isinstance(outcome, Change), outcome
    state.apply(outcome)
    return outcome


def house() -> BudgetState:
    """ann's budget: ben and cyd take part, eve has left, max was removed, zoe never was in it."""
    state = BudgetState()
    done(state, "ann", "budget.create", title="Home", eventId=KNOWN)
    done(state, "ann", "category.add", recordId=FOOD, name="Food", allocate="200")
    for user in ("ben", "cyd", "eve", "max"):
        joins(state, user, now_ms=7)
    leaves(state, "eve")
    removes(state, "ann", "max", now_ms=9)
    assert len(state.participants) == 3
    return state


# How an invite and link sharing let in who is not there. `later` was made after max was removed.
LATER = Invite(BUDGET, UNKNOWN, b"later", 1, NOW_MS + 1, 2, 1, False, 8)
INVITES = {
    "later": LATER,
    "earlier": LATER._replace(token_hash=b"earlier", created_sequence=7),
    "revoked": LATER._replace(token_hash=b"revoked", revoked=True),
    "expired": LATER._replace(token_hash=b"expired", expires_at=NOW_MS),
    "used up": LATER._replace(token_hash=b"used up", uses=2),
}
GOOD = {"later", "earlier"}


@pytest.mark.parametrize("invite", [None, "unknown", *INVITES])
@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("user", ["zoe", "eve", "max", "ben"])
def test_p9_who_is_let_in_by_what(user: str, sharing: bool, invite: str | None) -> None:
    state = house()
    state.link_sharing = sharing
    state.invites = {each.token_hash: each for each in INVITES.values()}
    if user == "ben":  # takes part
        why: Code | None = Code.ALREADY_PARTICIPANT
    elif user == "max":  # was removed
        why = None if invite == "later" else Code.NOT_PARTICIPANT
    elif sharing or invite in GOOD:
        why = None
    elif user == "eve":  # left
        why = Code.NOT_PARTICIPANT
    else:
        why = Code.INVITE_NOT_VALID if invite in INVITES else Code.BUDGET_NOT_EXISTS
    token = None if invite is None else invite.encode()
    event = Joining(FRESH, BUDGET, user, WHEN, participants_max=10, invite=token)
    outcome = decide(state, user, event, NOW_MS)
    if why is not None:
        assert isinstance(outcome, Verdict)
        assert outcome.error is why
    else:
        assert isinstance(outcome, Change)
        uses = INVITES[invite].uses + 1 if invite in GOOD else None  # a bad one is not needed
        assert (None if outcome.invite is None else outcome.invite.uses) == uses


def test_joining_makes_a_participant() -> None:
    state = house()
    change = joins(state, "zoe", now_ms=NOW_MS + 5)
    assert state.members["zoe"] == Membership(BUDGET, "zoe", NOW_MS + 5, True, None, 9)
    assert change.member == state.members["zoe"]
    assert len(state.participants) == 4
    done(state, "zoe", "category.edit", recordId=FOOD, version=1, name="Meals")


def test_leaving_keeps_the_row_and_the_day_of_joining() -> None:
    """P9: who once took part is told so."""
    state = house()
    leaves(state, "ben")
    assert state.members["ben"] == Membership(BUDGET, "ben", 7, False, None, 9)
    assert len(state.participants) == 2
    assert told(state, "ben", "budget.edit", version=1).error is Code.NOT_PARTICIPANT


def test_removal_by_the_owner_is_remembered_as_one() -> None:
    state = house()
    removes(state, "ann", "ben", now_ms=NOW_MS + 6)
    ben = Membership(BUDGET, "ben", 7, False, NOW_MS + 6, 9)
    assert state.members["ben"] == ben
    assert len(state.participants) == 2
    assert told(state, "ben", "budget.edit", version=1).error is Code.NOT_PARTICIPANT


def test_who_left_joins_again_with_a_new_day_of_joining() -> None:
    state = house()
    joins(state, "eve", now_ms=NOW_MS + 1)
    assert state.members["eve"] == Membership(BUDGET, "eve", NOW_MS + 1, True, None, 9)
    leaves(state, "eve")
    joins(state, "eve", now_ms=NOW_MS + 2)
    assert state.members["eve"].joined_at == NOW_MS + 2
    assert len(state.participants) == 4


def test_the_owner_leaves_last_and_may_come_back_as_the_owner() -> None:
    state = house()
    assert refused(state, "ann", LEAVES, "ann") is Code.OWNER_CANNOT_LEAVE
    leaves(state, "ben")
    assert refused(state, "ann", LEAVES, "ann") is Code.OWNER_CANNOT_LEAVE
    removes(state, "ann", "cyd")
    leaves(state, "ann")
    assert len(state.participants) == 0
    assert refused(state, "ann", LEAVES, "ann") is Code.NOT_PARTICIPANT
    assert joins(state, "ann").passes_on is False
    joins(state, "zoe")
    removes(state, "ann", "zoe")


def test_who_comes_to_a_budget_that_its_owner_left_empty_owns_it() -> None:
    """There is nobody else who could; the owner of before is a participant like all others."""
    state = house()
    leaves(state, "ben")
    removes(state, "ann", "cyd")
    leaves(state, "ann")
    change = joins(state, "zoe")
    assert change.passes_on
    assert orjson.loads(change.row.event)["owner"] == "zoe"
    again = joins(state, "ann")
    assert not again.passes_on
    assert "owner" not in orjson.loads(again.row.event)
    assert refused(state, "ann", LEAVES, "zoe") is Code.NOT_OWNER
    assert refused(state, "zoe", LEAVES, "zoe") is Code.OWNER_CANNOT_LEAVE
    removes(state, "zoe", "ann")


@pytest.mark.parametrize(
    ("actor", "event_type", "user", "expected"),
    [
        pytest.param("ben", JOINS, "ben", Code.ALREADY_PARTICIPANT, id="joins again"),
        pytest.param("ann", JOINS, "ann", Code.ALREADY_PARTICIPANT, id="the owner joins"),
        pytest.param("max", JOINS, "max", Code.NOT_PARTICIPANT, id="comes back after removal"),
        pytest.param("eve", LEAVES, "eve", Code.NOT_PARTICIPANT, id="leaves twice"),
        pytest.param("max", LEAVES, "max", Code.NOT_PARTICIPANT, id="leaves after removal"),
        pytest.param("zoe", LEAVES, "zoe", Code.BUDGET_NOT_EXISTS, id="a stranger leaves"),
        pytest.param("ann", LEAVES, "ann", Code.OWNER_CANNOT_LEAVE, id="the owner leaves others"),
        pytest.param("ann", LEAVES, "zoe", Code.PARTICIPANT_NOT_EXISTS, id="removes a stranger"),
        pytest.param("ann", LEAVES, "max", Code.ALREADY_LEFT, id="removes twice"),
        *(
            pytest.param("ben", LEAVES, user, Code.NOT_OWNER, id=f"ben removes {user}")
            for user in ("ann", "cyd", "eve", "max", "zoe")
        ),
        *(
            pytest.param("eve", LEAVES, user, Code.NOT_PARTICIPANT, id=f"eve removes {user}")
            for user in ("ann", "ben", "zoe")
        ),
        *(
            pytest.param("zoe", LEAVES, user, Code.BUDGET_NOT_EXISTS, id=f"zoe removes {user}")
            for user in ("ann", "ben", "eve", "kim")
        ),
    ],
)
def test_membership_that_is_refused(actor: str, event_type: str, user: str, expected: Code) -> None:
    assert refused(house(), actor, event_type, user) is expected


@pytest.mark.parametrize("event_type", [JOINS, LEAVES])
@pytest.mark.parametrize("user", ["ann", "ben", "eve", "max", "zoe"])
def test_p9_a_deleted_budget_is_an_unknown_one_to_all(user: str, event_type: str) -> None:
    state = house()
    done(state, "ann", "budget.delete", version=1)
    assert refused(state, user, event_type, user) is Code.BUDGET_NOT_EXISTS
    assert refused(state, "ann", LEAVES, user) is Code.BUDGET_NOT_EXISTS
    assert refused(BudgetState(), user, event_type, user) is Code.BUDGET_NOT_EXISTS


@pytest.mark.parametrize(
    ("user", "limit", "expected"),
    [
        ("zoe", 4, None),
        ("zoe", 3, Code.PARTICIPANT_LIMIT_REACHED),
        ("zoe", 1, Code.PARTICIPANT_LIMIT_REACHED),  # the limit was lowered
        ("eve", 4, None),
        ("eve", 3, Code.PARTICIPANT_LIMIT_REACHED),
        ("ben", 3, Code.ALREADY_PARTICIPANT),
        ("max", 3, Code.NOT_PARTICIPANT),
    ],
)
def test_a_full_budget_takes_nobody_more(user: str, limit: int, expected: Code | None) -> None:
    state = house()
    if expected is None:
        joins(state, user, limit=limit)
    else:
        assert refused(state, user, JOINS, user, limit=limit) is expected
        leaves(state, "ben")
        removes(state, "ann", "cyd")
        state.members.pop("max")
        if limit > 1:
            joins(state, user, limit=limit)  # there is room again


def test_ownership_and_not_authorship_lets_remove() -> None:
    state = house()
    assert state.budget is not None
    state.budget = state.budget._replace(owner_id="ben")  # ann's account is gone
    assert refused(state, "ann", LEAVES, "cyd") is Code.NOT_OWNER
    assert refused(state, "ben", LEAVES, "ben") is Code.OWNER_CANNOT_LEAVE
    removes(state, "ben", "cyd")
    leaves(state, "ann")


def test_p9_the_owner_keeps_out_also_who_had_just_left() -> None:
    state = house()
    before = state.budget
    assert before is not None
    removed = moved(state, "ann", LEAVES, "eve")
    assert state.budget == before._replace(
        last_sequence=before.last_sequence + 1,
        log_bytes=before.log_bytes + len(removed.row.event),
    )
    assert refused(state, "eve", JOINS, "eve") is Code.NOT_PARTICIPANT
    assert refused(state, "ann", LEAVES, "eve") is Code.ALREADY_LEFT  # once is enough
    leaves(state, "ben")
    joins(state, "ben")  # by themselves they come back as they went


@pytest.mark.parametrize("event_type", [JOINS, LEAVES])
def test_p6_membership_changes_no_record(event_type: str) -> None:
    """No version; only the head moves on, and the digest, which counts who takes part."""
    state = house()
    before, records = state.budget, dict(state.records)
    assert before is not None
    user = "zoe" if event_type == JOINS else "ben"
    change = moved(state, user, event_type, user)
    assert state.budget == before._replace(
        last_sequence=before.last_sequence + 1,
        digest=digest_of(state),
        log_bytes=before.log_bytes + len(change.row.event),
    )
    assert state.records == records
    assert (change.record, change.cascade) == (None, False)
    assert state.budget.digest == digest_of(state) != 0


@pytest.mark.parametrize(
    ("actor", "event_type", "user", "joined_at"),
    [("zoe", JOINS, "zoe", NOW_MS), ("ben", LEAVES, "ben", 7), ("ann", LEAVES, "ben", 7)],
    ids=["joins", "leaves", "is removed"],
)
def test_a_membership_event_is_streamed_without_version_and_with_no_name(
    actor: str, event_type: str, user: str, joined_at: int
) -> None:
    """P9: nothing of a person but his id. The row of the log has neither version nor record."""
    state = house()
    change = moved(state, actor, event_type, user, eventId=FRESH)
    sequence, digest = head(house()) + 1, digest_text(digest_of(state))
    assert change.row.event.decode() == (
        f'{{"sequence":{sequence},"eventId":"{FRESH}","eventType":"{event_type}",'
        f'"budgetId":"{BUDGET}","recordId":"{user}","actorId":"{actor}","when":{WHEN},'
        f'"participant":{{"userId":"{user}","budgetId":"{BUDGET}","joinedAt":{joined_at},'
        f'"role":"editor"}},'
        f'"digest":"{digest}"}}'
    )
    assert change.row[:6] == (BUDGET, sequence, FRESH, event_type, user, actor)
    assert (change.row.version, change.row.record) == (None, None)
    assert change.verdict().to_json() == {
        "eventId": FRESH,
        "eventType": event_type,
        "budgetId": BUDGET,
        "recordId": user,
        "status": "accepted",
        "sequence": sequence,
    }
    assert orjson.loads(change.verdict().encode()) == change.verdict().to_json()


@pytest.mark.parametrize("event_type", [JOINS, LEAVES])
@pytest.mark.parametrize("later", ["", "moved on", "budget deleted", "full"])
def test_p3_a_membership_event_is_known_by_its_id_for_ever(event_type: str, later: str) -> None:
    state = house()
    user = "zoe" if event_type == JOINS else "ben"
    original = moved(state, user, event_type, user, eventId=FRESH).verdict()
    if later == "moved on":
        moved(state, user, LEAVES if event_type == JOINS else JOINS, user)
    if later == "budget deleted":
        done(state, "ann", "budget.delete", version=1)
    limit = 1 if later == "full" else 10  # what the setting is does not belong to the content
    before = state.budget, dict(state.members)
    again = asked(state, user, event_type, user, eventId=FRESH, limit=limit, now_ms=NOW_MS + 9)
    assert again == original._replace(duplicate=True)
    assert before == (state.budget, state.members)


@pytest.mark.parametrize(
    ("actor", "event_type", "user", "fields", "expected"),
    [
        ("zoe", JOINS, "zoe", {"when": 1}, Code.EVENT_ID_REUSED),
        ("zoe", LEAVES, "zoe", {}, Code.EVENT_ID_REUSED),
        ("ann", LEAVES, "zoe", {}, Code.EVENT_ID_REUSED),
        ("kim", JOINS, "kim", {}, Code.EVENT_ID_REUSED),
        ("kim", JOINS, "zoe", {}, Code.EVENT_ID_REUSED),
        ("kim", LEAVES, "zoe", {}, Code.BUDGET_NOT_EXISTS),
        ("eve", LEAVES, "zoe", {}, Code.NOT_PARTICIPANT),
    ],
)
def test_p3_another_membership_event_under_the_same_id_is_refused(
    actor: str, event_type: str, user: str, fields: Json, expected: Code
) -> None:
    state = house()
    joins(state, "zoe", eventId=FRESH)
    assert refused(state, actor, event_type, user, eventId=FRESH, **fields) is expected


@pytest.mark.parametrize(
    ("actor", "expected"),
    [
        ("ann", Code.EVENT_ID_REUSED),
        ("zoe", Code.EVENT_ID_REUSED),
        ("eve", Code.NOT_PARTICIPANT),
        ("kim", Code.BUDGET_NOT_EXISTS),
    ],
)
@pytest.mark.parametrize("event_type", ACCEPTED)
def test_p3_a_client_cannot_reuse_the_id_of_a_membership_event(
    event_type: str, actor: str, expected: Code
) -> None:
    state = house()
    joins(state, "zoe", eventId=FRESH)
    verdict = told(state, actor, event_type, **ACCEPTED[event_type], eventId=FRESH)
    assert verdict.error is expected
    assert (verdict.record, verdict.sequence) == (None, None)


@pytest.mark.parametrize("event_type", [JOINS, LEAVES])
def test_p3_a_membership_event_cannot_take_the_id_of_a_clients(event_type: str) -> None:
    state = house()
    for actor, user in (("ann", "zoe"), ("ann", "ann"), ("ben", "ben")):
        code = refused(state, actor, event_type, user, eventId=KNOWN)
        assert code is Code.EVENT_ID_REUSED


def test_membership_events_of_one_batch_see_each_other() -> None:
    """They are decided on one state: each counts, and is counted by the next."""
    state = BudgetState()
    done(state, "ann", "budget.create", title="Home")
    assert refused(state, "zoe", JOINS, "zoe", limit=1) is Code.PARTICIPANT_LIMIT_REACHED
    joins(state, "ben", limit=2)
    assert refused(state, "ben", JOINS, "ben", limit=2) is Code.ALREADY_PARTICIPANT
    assert refused(state, "zoe", JOINS, "zoe", limit=2) is Code.PARTICIPANT_LIMIT_REACHED
    assert refused(state, "ann", LEAVES, "ann") is Code.OWNER_CANNOT_LEAVE
    done(state, "ben", "budget.edit", version=1, title="Ours")
    leaves(state, "ben")
    assert told(state, "ben", "budget.edit", version=2).error is Code.NOT_PARTICIPANT
    joins(state, "zoe", limit=2)
    assert refused(state, "ben", JOINS, "ben", limit=2) is Code.PARTICIPANT_LIMIT_REACHED
    removes(state, "ann", "zoe")
    joins(state, "ben", limit=2)
    leaves(state, "ben")
    leaves(state, "ann")
    sequences = [change.row.sequence for change in state.changes]
    assert sequences == list(range(1, 10))
    assert len(state.participants) == sum(member.active for member in state.members.values()) == 0


@pytest.mark.parametrize(
    "code", [Code.BUSY, Code.UNAVAILABLE, Code.INTERNAL_SERVER_ERROR, Code.EVENT_ID_REUSED]
)
def test_a_membership_event_nobody_decided_gets_the_hubs_code(code: Code) -> None:
    wire = {"eventId": FRESH, "eventType": LEAVES, "budgetId": BUDGET, "recordId": "ben", "when": 1}
    verdict = rejected(made(wire, 10), code)
    assert (verdict.event_id, verdict.event_type, verdict.record_id) == (FRESH, LEAVES, "ben")
    assert verdict.error is code


# Verdicts that the rules do not give.


@pytest.mark.parametrize("code", [Code.BUSY, Code.UNAVAILABLE, Code.INTERNAL_SERVER_ERROR])
def test_an_event_nobody_decided_gets_the_hubs_code(code: Code) -> None:
    event = parse_event(
        {"eventId": FRESH, "eventType": "category.delete", "budgetId": BUDGET, "when": 1}
        | {"recordId": FOOD, "version": 1}
    )
    verdict = rejected(event, code, "later")
    assert (verdict.event_id, verdict.record_id, verdict.error) == (FRESH, FOOD, code)
    assert verdict.detail == "later"
    invalid = parse_event({"eventId": FRESH})
    assert rejected(invalid, code).error is Code.INVALID_EVENT


# Whole histories, against a model that shares nothing with the rules.


class Engine:
    """The rules over states that hold whole budgets, as a storage would load them."""

    def __init__(self) -> None:
        self.states: dict[str, BudgetState] = {}
        self.now_ms = NOW_MS

    def submit(self, user: str, wires: list[Json], mode: str) -> list[Json]:
        return self._decide(user, map(parse_event, wires), mode)

    def make(self, actor: str, wire: Json) -> Json:
        [verdict] = self._decide(actor, [made(wire, PARTICIPANTS_MAX)], "stop")
        return verdict

    def _decide(self, user: str, events: Iterable[Submitted], mode: str) -> list[Json]:
        verdicts: list[Json] = []
        for event in events:
            budget_id = "" if isinstance(event, Invalid) else event.budget_id
            state = self.states.get(budget_id or "") or BudgetState()
            for category_id in of_kind(state, "category"):
                state.sums[category_id] = sum(
                    expense.fingerprint
                    for expense in of_kind(state, "expense").values()
                    if expense.value("categoryId") == category_id and not expense.deleted
                )
            outcome = decide(state, user, event, self.now_ms)
            if isinstance(outcome, Change):
                creates = isinstance(event, Event) and event.verb == "create"
                assert creates or budget_id in self.states
                check_membership(outcome)
                self.states[budget_id or ""] = state
                state.apply(outcome)
                outcome = outcome.verdict()
            verdicts.append(orjson.loads(orjson.dumps(outcome.to_json())))
            if mode == "stop" and not outcome.accepted:
                break
        return verdicts


def check_membership(change: Change) -> None:
    """What every change of membership has in common, and no other has."""
    of_budget = change.row.event_type in (JOINS, LEAVES, "budget.create")
    assert (change.member is not None) == of_budget
    if change.row.event_type in (JOINS, LEAVES):
        assert (change.record, change.row.record, change.row.version) == (None, None, None)


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_every_history_is_decided_as_the_model_says(data: st.DataObject) -> None:
    """P3, P5, P6: each verdict, the log with its digests, and every record, tombstones included;
    and who takes part."""
    budget_ids = [f"00000000-0000-4000-8000-0000000000b{n}" for n in range(3)]
    model, engine = Model(NOW_MS, PARTICIPANTS_MAX), Engine()
    sent: list[tuple[str, Json]] = []
    for number in range(data.draw(st.integers(1, 60), label="steps")):
        engine.now_ms = model.now_ms = NOW_MS + number
        event_id = f"00000000-0000-4000-9000-{number:012x}"
        if sent and data.draw(st.integers(0, 5), label="again?") == 5:
            user, event = data.draw(st.sampled_from(sent), label="sent")
            event = data.draw(changed(event), label="again")
            if data.draw(st.booleans(), label="from another?"):
                user = data.draw(st.sampled_from(USERS), label="user")
        elif model.books and data.draw(st.integers(0, 4), label="membership?") == 4:
            user, event = data.draw(membership(model, budget_ids, event_id), label="membership")
        else:
            event = data.draw(json_event(model, budget_ids, event_id), label="event")
            user = data.draw(author(model, event), label="user")
        sent.append((user, event))
        if event.get("eventType") in (JOINS, LEAVES):
            assert comparable(engine.make(user, event)) == model.make(user, event)
        else:
            assert list(map(comparable, engine.submit(user, [event], "each"))) == (
                model.submit(user, [event], "each")
            )
    assert engine.states.keys() == model.books.keys()
    for budget_id, state in engine.states.items():
        book = model.books[budget_id]
        assert [streamed(change) for change in state.changes] == book.log
        assert [change.budget.last_sequence for change in state.changes] == (
            list(range(1, len(book.log) + 1))
        )
        assert state.budget is not None
        assert digest_text(state.budget.digest) == book.digest
        kinds: Mapping[str, Mapping[str, Record]] = {
            "budget": {budget_id: state.budget.record},
            "category": of_kind(state, "category"),
            "expense": of_kind(state, "expense"),
        }
        for kind, records in kinds.items():
            said = {id: orjson.loads(rules._text(record)) for id, record in records.items()}
            assert said == book.records[kind]
        assert len(state.participants) == len(book.active)
        assert {user: joined(member) for user, member in state.members.items()} == book.members


def joined(member: Membership) -> Json:
    """As the model has it."""
    removed = member.removed_at is not None
    return {"joinedAt": member.joined_at, "active": member.active, "removed": removed}


def test_rules_exist_for_every_event() -> None:
    assert set(rules._RULES) == {shape.verb for shape in events.CLIENT_EVENTS.values()}


def test_states_hold_money_as_decimals() -> None:
    """P12."""
    state = world()
    amounts = [category.value("allocate") for category in of_kind(state, "category").values()]
    amounts += [expense.value("amount") for expense in of_kind(state, "expense").values()]
    for amount in amounts:
        assert isinstance(amount, Decimal)
        assert amount.as_tuple().exponent == -2
