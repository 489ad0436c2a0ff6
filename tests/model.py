"""A hub in dicts and lists: what the design says about budgets, without storage, locks or speed.

Written from the design's sections 2 and 3 and not from the code, so that it and the hub cannot
share a mistake. Everything is as it stands on the wire. It keeps whole budgets and computes every
digest anew. Below it: what clients might send, as hypothesis strategies that know the model, so
that most of what they draw is acceptable and the rest is wrong in an interesting way.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import date
from hashlib import sha256
from typing import Any, Literal, TypeAlias

from hypothesis import strategies as st

from hub.budget.currencies import CURRENCIES
from hub.budget.events import Joining, Leaving

Json: TypeAlias = dict[str, Any]

# Type → the fields of its record that it must, and that it may name.
TYPES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "budget.create": (["title"], ["details", "currency"]),
    "budget.edit": ([], ["title", "details", "currency"]),
    "budget.delete": ([], []),
    "category.add": (["name", "allocate"], []),
    "category.edit": ([], ["name", "allocate"]),
    "category.delete": ([], []),
    "expense.add": (["amount", "date"], ["categoryId", "note"]),
    "expense.edit": ([], ["categoryId", "amount", "date", "note"]),
    "expense.delete": ([], []),
}
JOINS, LEAVES = "participant.add", "participant.remove"  # made by the server, never by a client
COVERED = {  # by a fingerprint
    "budget": ["title", "details", "currency"],
    "category": ["name", "allocate"],
    "expense": ["categoryId", "amount", "date", "note"],
}
STATUS = {
    "INVALID_EVENT": 400,
    "BUDGET_NOT_EXISTS": 404,
    "NOT_PARTICIPANT": 403,
    "EVENT_ID_REUSED": 409,
    "NOT_OWNER": 403,
    "BUDGET_EXISTS": 409,
    "CATEGORY_EXISTS": 409,
    "EXPENSE_EXISTS": 409,
    "CATEGORY_NOT_EXISTS": 404,
    "EXPENSE_NOT_EXISTS": 404,
    "PARTICIPANT_NOT_EXISTS": 404,
    "ALREADY_PARTICIPANT": 409,
    "ALREADY_LEFT": 409,
    "PARTICIPANT_LIMIT_REACHED": 403,
    "OWNER_CANNOT_LEAVE": 409,
}


class Book:
    """One budget: its three kinds of records, who takes part, and its log."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.members: dict[str, Json] = {}  # former ones too: joinedAt, active, removed
        self.records: dict[str, dict[str, Json]] = {"budget": {}, "category": {}, "expense": {}}
        self.log: list[Json] = []
        self.changed: dict[str, int] = {}  # id of a record → sequence of its last change
        self.accepted: dict[str, tuple[str, object, Json]] = {}  # eventId → who, content, verdict

    @property
    def digest(self) -> str:
        counted = [("participant", user, 1, {"role": self.role(user)}) for user in self.active]
        for kind, records in self.records.items():
            for record in records.values():
                if "deleted" not in record:  # of these kinds every default is null
                    fields = {
                        name: record[name] for name in COVERED[kind] if record[name] is not None
                    }
                    counted.append((kind, record["id"], record["version"], fields))
        return f"{sum(weight(*each) for each in counted) % 2**64:016x}"

    def role(self, user: str) -> str:
        return "owner" if user == self.owner else "editor"

    @property
    def deleted(self) -> bool:
        return any("deleted" in record for record in self.records["budget"].values())

    @property
    def active(self) -> list[str]:
        """Who takes part."""
        return [user for user, member in self.members.items() if member["active"]]


class Model:
    """`submit` is what a hub answers to a batch; `now_ms`, the hub's clock, dates every joining."""

    def __init__(self, now_ms: int, participants_max: int = 10) -> None:
        self.now_ms = now_ms
        self.participants_max = participants_max
        self.books: dict[str, Book] = {}

    def submit(self, user: str, events: Sequence[Json], mode: str = "stop") -> list[Json]:
        """The verdicts of a batch, as far as `comparable` leaves them."""
        verdicts: list[Json] = []
        for event in events:
            verdicts.append(self._decide(user, event))
            if mode == "stop" and verdicts[-1]["status"] != "accepted":
                break
        return verdicts

    def make(self, actor: str, event: Json) -> Json:
        """The verdict of a membership event that the server made of a request of `actor`. Its
        `recordId` is the user who joins, leaves or is removed."""
        head = {name: event[name] for name in ("eventId", "eventType", "budgetId", "recordId")}
        content = {name: value for name, value in event.items() if name != "eventId"}
        user, joins = event["recordId"], event["eventType"] == JOINS
        book = self.books.get(event["budgetId"])
        known = book.accepted.get(event["eventId"]) if book else None
        if known and known[:2] == (actor, content):
            return {**deepcopy(known[2]), "duplicate": True}
        # A link is all that who joins needs to know; else P9, as for every event.
        if book is None or book.deleted or not (joins or actor in book.members):
            return rejected(head, "BUDGET_NOT_EXISTS")
        if not joins and actor not in book.active:
            return rejected(head, "NOT_PARTICIPANT")
        if known:
            return rejected(head, "EVENT_ID_REUSED")
        refusal = self._joining(book, user) if joins else self._leaving(book, actor, user)
        if refusal:
            return rejected(head, refusal)

        passed_on: Json = {}
        if joins:
            if not book.active and user != book.owner:  # who comes to an empty budget owns it
                book.owner = user
                passed_on = {"owner": user}
            book.members.setdefault(user, {})
            book.members[user] |= {"joinedAt": self.now_ms, "active": True, "removed": False}
        else:
            book.members[user] |= {"active": False, "removed": actor != user}
        joined_at = book.members[user]["joinedAt"]
        participant = {"userId": user, "budgetId": event["budgetId"], "joinedAt": joined_at}
        participant["role"] = book.role(user)
        sequence = len(book.log) + 1
        of_event = {"sequence": sequence, "actorId": actor, "when": event["when"]}
        book.log.append(
            {**head, **of_event, "participant": participant, **passed_on, "digest": book.digest}
        )
        verdict = {**head, "status": "accepted", "sequence": sequence}
        book.accepted[event["eventId"]] = (actor, content, verdict)
        return deepcopy(verdict)

    def _joining(self, book: Book, user: str) -> str | None:
        if user in book.active:
            return "ALREADY_PARTICIPANT"
        if user in book.members and book.members[user]["removed"]:
            return "NOT_PARTICIPANT"
        return "PARTICIPANT_LIMIT_REACHED" if len(book.active) >= self.participants_max else None

    def _leaving(self, book: Book, actor: str, user: str) -> str | None:
        if user != actor != book.owner:
            return "NOT_OWNER"
        if user not in book.members:
            return "PARTICIPANT_NOT_EXISTS"
        if user not in book.active and (user == actor or book.members[user]["removed"]):
            return "ALREADY_LEFT"
        alone = book.active == [user]
        return None if alone or user != book.owner else "OWNER_CANNOT_LEAVE"

    def snapshot(self, budget_id: str) -> Json:
        """What `GET /budgets/:id` shows, without `logId`. Nobody here has a profile."""
        book = self.books[budget_id]
        lists = {
            name: [record for record in book.records[kind].values() if "deleted" not in record]
            for name, kind in (("categories", "category"), ("expenses", "expense"))
        }
        nobody = {"userExists": False, "firstName": None, "lastName": None, "photo": None}
        participants = [
            {
                "userId": user,
                "budgetId": budget_id,
                "role": book.role(user),
                "joinedAt": book.members[user]["joinedAt"],
                **nobody,
            }
            for user in book.active
        ]
        return deepcopy(
            {
                **book.records["budget"][budget_id],
                **lists,
                "participants": participants,
                "lastEventSequence": len(book.log),
                "digest": book.digest,
            }
        )

    def _decide(self, user: str, raw: Json) -> Json:
        event = normalised(raw)
        if event is None:
            return rejected({"eventId": raw["eventId"].lower()}, "INVALID_EVENT")
        event = {"recordId": event["budgetId"], **event}
        kind, verb = event["eventType"].split(".")
        budget_id, event_id, record_id = event["budgetId"], event["eventId"], event["recordId"]
        names = ("eventId", "eventType", "budgetId", "recordId")
        head = {name: event[name] for name in names}
        content = {name: value for name, value in event.items() if name != "eventId"}
        book = self.books.get(budget_id)

        # P3: its author hears the same again, whatever happened meanwhile.
        known = book.accepted.get(event_id) if book else None
        if known and known[:2] == (user, content):
            return {**deepcopy(known[2]), "duplicate": True}
        # P9: who may know that the budget exists?
        if event["eventType"] != "budget.create":
            if book is None or user not in book.members:
                return rejected(head, "BUDGET_NOT_EXISTS")
            gone = book.deleted and event["eventType"] not in ("budget.edit", "budget.delete")
            if gone or (book.deleted and not book.members[user]["active"]):
                return rejected(head, "BUDGET_NOT_EXISTS")
            if not book.members[user]["active"]:
                return rejected(head, "NOT_PARTICIPANT")
        if known:
            return rejected(head, "EVENT_ID_REUSED")
        if event["eventType"] == "budget.delete" and book and book.owner != user:
            return rejected(head, "NOT_OWNER")

        # Ids and references.
        current = book.records[kind].get(record_id) if book else None
        if verb in ("create", "add") and current:
            return rejected(head, f"{kind.upper()}_EXISTS")
        if verb in ("edit", "delete") and not current:
            return rejected(head, f"{kind.upper()}_NOT_EXISTS")
        category_id = event.get("categoryId")
        if category_id is not None:
            assert book is not None
            category = book.records["category"].get(category_id)
            if category is None or "deleted" in category:
                return rejected(head, "CATEGORY_NOT_EXISTS")
        # P5: a stale version never changes anything.
        if current and ("deleted" in current or event["version"] != current["version"]):
            return {**head, "status": "conflict", "currentRecord": deepcopy(current)}

        if book is None:
            book = self.books[budget_id] = Book(user)
            book.members[user] = {"joinedAt": self.now_ms, "active": True, "removed": False}
        return self._accept(book, user, event, head, content)

    def _accept(self, book: Book, user: str, event: Json, head: Json, content: object) -> Json:
        kind, verb = event["eventType"].split(".")
        record_id, when = event["recordId"], event["when"]
        required, optional = TYPES[event["eventType"]]
        fields = {name: event[name] for name in (*required, *optional) if name in event}
        if verb in ("create", "add"):
            fields = {name: fields.get(name) for name in COVERED[kind]}
            of_budget = {} if kind == "budget" else {"budgetId": event["budgetId"]}
            record = {"id": record_id, **of_budget, "createdBy": user, "version": 0}
            book.records[kind][record_id] = record
        record = book.records[kind][record_id]
        record |= {**fields, "version": record["version"] + 1, "offlineLastModified": when}
        if verb == "delete":
            record["deleted"] = True
        sequence, version = len(book.log) + 1, record["version"]
        book.changed[record_id] = sequence
        if event["eventType"] == "category.delete":
            for expense in book.records["expense"].values():
                if expense["categoryId"] == record_id and "deleted" not in expense:
                    expense |= {"version": expense["version"] + 1, "offlineLastModified": when}
                    expense["deleted"] = True
                    book.changed[expense["id"]] = sequence
        of_event = {"sequence": sequence, "actorId": user, "when": when, "version": version}
        book.log.append({**head, **of_event, **fields, "digest": book.digest})
        verdict = {**head, "status": "accepted", "sequence": sequence, "version": version}
        verdict["record"] = deepcopy(record)
        book.accepted[head["eventId"]] = (user, content, verdict)
        return deepcopy(verdict)


def rejected(head: Json, code: str) -> Json:
    error = {"statusCode": STATUS[code], "message": code, "retryable": False}
    return {**head, "status": "rejected", "error": error}


def comparable(verdict: Json) -> Json:
    """A hub's verdict without what the design leaves open: words for people, and what is echoed of
    an event that is none."""
    verdict = deepcopy(verdict)
    if verdict["status"] == "rejected":
        del verdict["error"]["detail"]
        if verdict["error"]["message"] == "INVALID_EVENT":
            verdict = {name: verdict[name] for name in ("eventId", "status", "error")}
    return verdict


def normalised(raw: Json) -> Json | None:
    """The known fields of an event as the server stores them, None if the shape is wrong."""
    event_type = raw.get("eventType")
    if event_type is None:
        event_type = raw.get("event")
    if not isinstance(event_type, str) or event_type not in TYPES:
        return None
    required = ["eventId", "budgetId", "when", *TYPES[event_type][0]]
    if not event_type.startswith("budget."):
        required.append("recordId")
    if not event_type.endswith((".create", ".add")):
        required.append("version")
    event: Json = {"eventType": event_type}
    for name in (*required, *TYPES[event_type][1]):
        if name not in raw:
            if name in required:
                return None
            continue
        try:
            event[name] = _NORMALISED[name](raw[name])
        except (_Wrong, ValueError):
            return None
    return event


class _Wrong(Exception):
    pass


def _match(pattern: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise _Wrong
    return value


def uuid(value: object) -> str:
    digit = "[0-9a-fA-F]"
    return _match(f"{digit}{{8}}(-{digit}{{4}}){{3}}-{digit}{{12}}", value).lower()


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Wrong
    if not 0 <= value <= 2**53 - 1 or value != int(value):
        raise _Wrong
    return int(value)


def _money(value: object) -> str:
    units, _, cents = _match(r"[0-9]{1,10}(\.[0-9]{1,2})?", value).partition(".")
    return f"{int(units)}.{cents:0<2}"


def _text(shortest: int, longest: int) -> Callable[[object], str]:
    pattern = f"[^\\x00\\ud800-\\udfff]{{{shortest},{longest}}}"
    return lambda value: _match(pattern, value)


def _date(value: object) -> str:
    year, month, day = _match("[0-9]{4}-[0-9]{2}-[0-9]{2}", value).split("-")
    return date(int(year), int(month), int(day)).isoformat()


def _currency(value: object) -> str:
    if not isinstance(value, str) or value not in CURRENCIES:
        raise _Wrong
    return value


def _or_null(check: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None else check(value)


_NORMALISED: Mapping[str, Callable[[object], object]] = {
    "eventId": uuid,
    "budgetId": uuid,
    "recordId": uuid,
    "when": _integer,
    "version": _integer,
    "title": _text(1, 200),
    "name": _text(1, 200),
    "details": _or_null(_text(0, 2000)),
    "note": _or_null(_text(0, 2000)),
    "categoryId": _or_null(uuid),
    "currency": _or_null(_currency),
    "amount": _money,
    "allocate": _money,
    "date": _date,
}


# What clients might send.

USERS = ["ann", "ben", "cyd", "dee"]
PARTICIPANTS_MAX = 3  # so that a budget is full with one of them outside
CATEGORIES = [f"00000000-0000-4000-8000-0000000000c{digit}" for digit in "0123"]
EXPENSES = [f"00000000-0000-4000-8000-0000000000e{digit}" for digit in "0123456789"]
MODES: st.SearchStrategy[Literal["stop", "each"]] = st.sampled_from(["stop", "stop", "each"])

_VALUES: Mapping[str, st.SearchStrategy[Any]] = {
    "title": st.sampled_from(["Home", "Ferien 🌴", "x" * 200, "a\x1fb", '"\\\u2028\x01']),
    "name": st.sampled_from(["Food", "Miete", "n"]),
    "details": st.sampled_from([None, "", "two\nlines"]),
    "note": st.sampled_from([None, "", "Café", "ß" * 20]),
    "currency": st.sampled_from([None, "EUR", "JPY"]),
    "allocate": st.sampled_from(["0", "1.5", "1.50", "200", "9999999999.99"]),
    "amount": st.sampled_from(["0.00", "1.5", "1.50", "07.1", "9999999999.99"]),
    "date": st.sampled_from(["2026-02-28", "2024-02-29", "0001-01-01", "9999-12-31"]),
    "categoryId": st.sampled_from([None, *CATEGORIES, CATEGORIES[0].upper()]),
}
_WRONG: Mapping[str, Sequence[object]] = {
    "title": ["", "x" * 201, None, "a\x00"],
    "name": ["", None, "\ud800"],
    "details": ["x" * 2001, 5],
    "note": ["\udfff", False],
    "currency": ["eur", "XYZ", "EURO"],
    "allocate": ["1.234", "-1", 5, None],
    "amount": ["1e3", "", ".5", "5.", "12345678901", 1.5, None],
    "date": ["2026-02-29", "26-01-01", "2026-1-1", None],
    "categoryId": ["", "food"],
    "version": [True, 1.5, "1", 2**53, -1, None],
    "when": [2**53, -1, "now", None],
    "budgetId": ["home", None],
    "recordId": [f"{{{EXPENSES[0]}}}", 7],
}


@st.composite
def json_event(draw: st.DrawFn, model: Model, budget_ids: Sequence[str], event_id: str) -> Json:
    """One event, in most cases acceptable to the model as it stands: adding what is not there and
    changing what is, with the current version, in a budget that is not deleted."""
    sensible = draw(_mostly)
    if sensible:
        deleted = [id for id, book in model.books.items() if book.deleted]
        budget_ids = [id for id in budget_ids if id not in deleted] or budget_ids
    budget_id = draw(st.sampled_from(budget_ids))
    book = model.books.get(budget_id)
    records = book.records if book else {"budget": {}, "category": {}, "expense": {}}
    live = {
        kind: [id for id, record in of_kind.items() if "deleted" not in record]
        for kind, of_kind in records.items()
    }
    unused = {"budget": [] if book else [budget_id], "category": [], "expense": []}
    for kind in ("category", "expense") if book else ():
        unused[kind] = [id for id in _POOLS[kind] if id not in records[kind]]
    event_types = [
        event_type
        for event_type in _EVENT_TYPES
        if not sensible or (unused if event_type.endswith(_ADDING) else live)[_kind(event_type)]
    ]
    event_type = draw(st.sampled_from(event_types or _EVENT_TYPES))
    kind = _kind(event_type)

    event: Json = {"eventId": event_id, "eventType": event_type, "budgetId": budget_id}
    event["when"] = draw(st.sampled_from([0, 1_700_000_000_000, 2**53 - 1]))
    record_id = budget_id
    if kind != "budget":
        ids = (unused if event_type.endswith(_ADDING) else live)[kind] if sensible else []
        tombstones = [id for id in records[kind] if id not in live[kind]]
        if tombstones and draw(st.integers(0, 11)) == 11:
            ids = tombstones
        record_id = event["recordId"] = draw(st.sampled_from(ids or _POOLS[kind]))
    if not event_type.endswith(_ADDING):
        current = records[kind][record_id]["version"] if record_id in records[kind] else 1
        event["version"] = (
            current if draw(_mostly) else draw(st.sampled_from([current - 1, current + 1]))
        )
    required, optional = TYPES[event_type]
    named = draw(st.sets(st.sampled_from(optional))) if optional else set()
    if event_type == "expense.add" and live["category"] and draw(_mostly):
        named.add("categoryId")
    for name in (*required, *sorted(named)):
        values = _VALUES[name]
        if name == "categoryId" and sensible:
            values = st.sampled_from([*live["category"] * 3, None])
        event[name] = draw(values)
    if not sensible and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(event.keys() & _WRONG.keys())))
        event[name] = draw(st.sampled_from(_WRONG[name]))
    return event


@st.composite
def author(draw: st.DrawFn, model: Model, event: Json) -> str:
    """Who sends it: mostly the owner, or somebody who takes part."""
    book = model.books.get(event["budgetId"])
    if book is None or not draw(_mostly):
        return draw(st.sampled_from(USERS))
    return draw(st.sampled_from(book.active or USERS))


@st.composite
def membership(
    draw: st.DrawFn, model: Model, budget_ids: Sequence[str], event_id: str
) -> tuple[str, Json]:
    """Who asks, and the event that the server makes of it: mostly one that changes something."""
    budget_id = draw(st.sampled_from(budget_ids))
    there = [id for id in budget_ids if id in model.books and not model.books[id].deleted]
    possible = [(user, JOINS, user) for user in USERS]
    possible += [(actor, LEAVES, user) for actor in USERS for user in USERS]
    if draw(_mostly) and there:
        budget_id = draw(st.sampled_from(there))
        owner, active = model.books[budget_id].owner, model.books[budget_id].active
        possible = [(user, JOINS, user) for user in USERS if user not in active] * 2
        possible += [(user, LEAVES, user) for user in active if user != owner or active == [user]]
        possible += [(owner, LEAVES, user) for user in active if owner in active]
    actor, event_type, user = draw(st.sampled_from(possible))
    when = draw(st.sampled_from([0, 1_700_000_000_000]))
    event = {"eventId": event_id, "eventType": event_type, "budgetId": budget_id, "when": when}
    return actor, {**event, "recordId": user}


def _kind(event_type: str) -> str:
    return event_type.split(".")[0]


# Lists repeat what should come often.
_mostly = st.sampled_from([True] * 7 + [False])
_POOLS = {"category": CATEGORIES, "expense": EXPENSES}
_ADDING = (".create", ".add")
_EVENT_TYPES = [
    *["expense.add", "expense.edit"] * 9,
    *["category.add", "category.delete"] * 4,
    *["category.edit", "expense.delete", "budget.edit"] * 3,
    "budget.create",
    "budget.delete",
]


def changed(event: Json) -> st.SearchStrategy[Json]:
    """The same event again: as it was, in other words for the same, or with other content."""
    if event["eventType"] in (JOINS, LEAVES):
        other_type = {JOINS: LEAVES, LEAVES: JOINS}[event["eventType"]]
        others = [{**event, "when": 77}, {**event, "eventType": other_type}]
        return st.sampled_from([event, event, event, *others])
    same = [{**event, "eventId": event["eventId"].upper(), "unknown": [1]}, event, event]
    if event.get("amount") == "1.5":
        same.append({**event, "amount": "1.50"})
    other = [{**event, "when": 77}]
    for name in ("details", "note", "categoryId", "currency"):
        if name in TYPES[event["eventType"]][1]:
            absent = {key: value for key, value in event.items() if key != name}
            other.append({**event, name: None} if name not in event else absent)
    if "version" in event:
        other.append({**event, "version": 99})
    return st.sampled_from([*same, *same, *other])


def made(wire: Json, participants_max: int) -> Joining | Leaving:
    """A membership event for the hub's door, where the server puts it in."""
    ids = wire["eventId"].lower(), wire["budgetId"].lower(), wire["recordId"], wire["when"]
    return Leaving(*ids) if wire["eventType"] == LEAVES else Joining(*ids, participants_max)


def weight(kind: str, id: str, version: int, fields: Mapping[str, str]) -> int:
    """What one record or participant adds to the digest."""
    covered = "".join(f"{netstring(name)}{netstring(fields[name])}" for name in sorted(fields))
    head = f"{netstring(kind)}{netstring(id)}{netstring(str(version))}"
    digest = sha256(head.encode() + sha256(covered.encode()).digest()).hexdigest()
    return int(digest[:16], 16)


def netstring(text: str) -> str:
    return f"{len(text.encode())}:{text},"
