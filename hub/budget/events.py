"""Events: what a client may say, how it is checked, and which of its fields are its content.

One pydantic model per row of the table in design 3.1; the same models describe the wire in the
served API documents. A model holds the *normalised* event: ids in lower case, money as `Decimal`
with two places, absent fields distinguishable from `null` ones (`model_fields_set`).
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias, final

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

from hub.budget.currencies import CURRENCIES
from hub.errors import Code, HubError

INTEGER_MAX = 2**53 - 1
EVENTS_PER_REQUEST_MAX = 25  # REST
EVENTS_PER_FRAME_MAX = 100  # socket

_UUID = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
_NO_NUL = r"^[^\x00]*$"
_MONEY = re.compile(r"[0-9]{1,10}(\.[0-9]{1,2})?")
_CENT = Decimal("0.01")


def whole(value: object) -> object:
    """JSON has one kind of number: 5.0 is the integer 5 (strict mode below refuses the rest)."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value


def _cents(value: object) -> Decimal:
    if not isinstance(value, str) or _MONEY.fullmatch(value) is None:
        raise ValueError("a string such as 12.50, with at most ten digits before the point")
    return Decimal(value).quantize(_CENT)


def _calendar(text: str) -> str:
    date.fromisoformat(text)
    return text


def _currency(text: str) -> str:
    if text not in CURRENCIES:
        raise ValueError("not an ISO 4217 code")
    return text


Uuid = Annotated[
    str,
    StringConstraints(strict=True, pattern=_UUID, to_lower=True),
    Field(json_schema_extra={"format": "uuid"}),
]
Whole = Annotated[
    int,
    Field(strict=True, ge=0, le=INTEGER_MAX),
    BeforeValidator(whole, json_schema_input_type=Annotated[int, Field(ge=0, le=INTEGER_MAX)]),
]
Money = Annotated[
    Decimal,
    PlainValidator(_cents),
    WithJsonSchema({"type": "string", "pattern": f"^{_MONEY.pattern}$"}),
]
Title = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=200, pattern=_NO_NUL)
]
Text = Annotated[str, StringConstraints(strict=True, max_length=2000, pattern=_NO_NUL)]
Date = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"),
    AfterValidator(_calendar),
    Field(json_schema_extra={"format": "date"}),
]
Currency = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[A-Z]{3}$"),
    AfterValidator(_currency),
    Field(json_schema_extra={"enum": sorted(CURRENCIES)}),
]

# The default of an optional field that may be absent but not null. It is never read: only named
# fields count (`Event.named`).
_ABSENT_TEXT = ""
_ABSENT_MONEY = Decimal("0.00")


class Event(BaseModel):
    """What all events have in common. `when` is the client's clock: stored, never trusted."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, hide_input_in_errors=True
    )
    type: ClassVar[str]
    # The kind of record it is about.
    of: ClassVar[Literal["budget", "category", "expense", "participant"]]
    fields: ClassVar[Mapping[str, str]]  # name in JSON → attribute, of what the event may name

    event_id: Uuid
    budget_id: Uuid
    when: Whole

    @property
    def subject_id(self) -> str:
        """The id of the record the event is about: `recordId` in everything the server sends."""
        return self.budget_id

    @property
    def stated_version(self) -> int | None:
        """The version the client last saw; None where the event creates its record."""
        return None

    @property
    def names_category(self) -> str | None:
        """The category an expense shall belong to, where the event says so."""
        return None

    def named(self) -> dict[str, Any]:
        """Name in JSON → value of the record's fields that the client wrote, null included."""
        present = self.model_fields_set
        return {
            name: getattr(self, attribute)
            for name, attribute in self.fields.items()
            if attribute in present
        }


class _Change(Event):
    version: Whole

    @property
    def stated_version(self) -> int | None:
        return self.version


class BudgetCreate(Event):
    type = "budget.create"
    of = "budget"
    fields = {"title": "title", "details": "details", "currency": "currency"}
    event_type: Literal["budget.create"]
    title: Title
    details: Text | None = None
    currency: Currency | None = None


class BudgetEdit(_Change):
    type = "budget.edit"
    of = "budget"
    fields = {"title": "title", "details": "details", "currency": "currency"}
    event_type: Literal["budget.edit"]
    title: Title = _ABSENT_TEXT
    details: Text | None = None
    currency: Currency | None = None


class BudgetDelete(_Change):
    type = "budget.delete"
    of = "budget"
    fields = {}
    event_type: Literal["budget.delete"]


class _OfRecord(Event):
    record_id: Uuid

    @property
    def subject_id(self) -> str:
        return self.record_id


class _ChangeOfRecord(_OfRecord):
    version: Whole

    @property
    def stated_version(self) -> int | None:
        return self.version


class CategoryAdd(_OfRecord):
    type = "category.add"
    of = "category"
    fields = {"name": "name", "allocate": "allocate"}
    event_type: Literal["category.add"]
    name: Title
    allocate: Money


class CategoryEdit(_ChangeOfRecord):
    type = "category.edit"
    of = "category"
    fields = {"name": "name", "allocate": "allocate"}
    event_type: Literal["category.edit"]
    name: Title = _ABSENT_TEXT
    allocate: Money = _ABSENT_MONEY


class CategoryDelete(_ChangeOfRecord):
    type = "category.delete"
    of = "category"
    fields = {}
    event_type: Literal["category.delete"]


class ExpenseAdd(_OfRecord):
    type = "expense.add"
    of = "expense"
    fields = {"categoryId": "category_id", "amount": "amount", "date": "date", "note": "note"}
    event_type: Literal["expense.add"]
    category_id: Uuid | None = None
    amount: Money
    date: Date
    note: Text | None = None

    @property
    def names_category(self) -> str | None:
        return self.category_id


class ExpenseEdit(_ChangeOfRecord):
    type = "expense.edit"
    of = "expense"
    fields = {"categoryId": "category_id", "amount": "amount", "date": "date", "note": "note"}
    event_type: Literal["expense.edit"]
    category_id: Uuid | None = None
    amount: Money = _ABSENT_MONEY
    date: Date = _ABSENT_TEXT
    note: Text | None = None

    @property
    def names_category(self) -> str | None:
        return self.category_id


class ExpenseDelete(_ChangeOfRecord):
    type = "expense.delete"
    of = "expense"
    fields = {}
    event_type: Literal["expense.delete"]


class _OfParticipant(Event):
    """Made by the server from a request to join, leave or remove; not accepted from clients.
    `when` is the server's clock."""

    of = "participant"
    fields = {}
    user_id: str

    @property
    def subject_id(self) -> str:
        return self.user_id


class ParticipantAdd(_OfParticipant):
    """The sender joins, by an invite (the hash of its token) or by the budget's bare id.
    `participants_max` is how many a budget may have."""

    type = "participant.add"
    participants_max: int
    invite: bytes | None = None


class ParticipantRemove(_OfParticipant):
    """The sender leaves, or as the owner removes another user. With `closes_account` they go for
    good, and a budget they own passes on."""

    type = "participant.remove"
    closes_account: bool = False


CLIENT_EVENTS: Mapping[str, type[Event]] = {
    model.type: model
    for model in (
        BudgetCreate,
        BudgetEdit,
        BudgetDelete,
        CategoryAdd,
        CategoryEdit,
        CategoryDelete,
        ExpenseAdd,
        ExpenseEdit,
        ExpenseDelete,
    )
}


@final
class Invalid(NamedTuple):
    """A submitted event that is not of its documented shape; its verdict is `INVALID_EVENT`.

    What can be echoed safely is kept, so that the client can match the verdict."""

    event_id: str
    event_type: str | None
    budget_id: str | None
    record_id: str | None
    detail: str


Submitted: TypeAlias = Event | Invalid


def parse_batch(raw: object, count_max: int) -> list[Submitted]:
    """The events of a request or frame, each checked on its own.

    Raises `HubError(BAD_REQUEST)` where the envelope itself is bad: not a list of 1 to `count_max`
    objects, or one of them without an `eventId` that is a UUID. Anything else wrong is that
    event's verdict.
    """
    if not isinstance(raw, list) or not 1 <= len(raw) <= count_max:
        raise HubError(Code.BAD_REQUEST, f"events: a list of 1 to {count_max} objects")
    return [parse_event(item) for item in raw]


def parse_event(raw: object) -> Submitted:
    if not isinstance(raw, dict):
        raise HubError(Code.BAD_REQUEST, "events: each is an object")
    event_type = raw.get("eventType")
    if event_type is None and "event" in raw:  # what legacy clients call it
        event_type = raw["event"]
        raw = {**raw, "eventType": event_type}
    model = CLIENT_EVENTS.get(event_type) if isinstance(event_type, str) else None
    if model is None:
        return _invalid(raw, "eventType: not one of the documented types")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        return _invalid(raw, describe(error))


def describe(error: ValidationError) -> str:
    """Field names and reasons for people; never what was sent (P9: it ends in logs)."""
    return "; ".join(
        f"{'.'.join(map(str, line['loc'])) or 'body'}: {line['msg'].removeprefix('Value error, ')}"
        for line in error.errors()[:5]
    )


class _Echo(BaseModel):
    uuid: Uuid


def _echo(value: object) -> str | None:
    """The value as an id in lower case, or None where it is not one."""
    try:
        return _Echo(uuid=value).uuid
    except ValidationError:
        return None


def _invalid(raw: Mapping[str, object], detail: str) -> Invalid:
    event_id = _echo(raw.get("eventId"))
    if event_id is None:
        raise HubError(Code.BAD_REQUEST, "eventId: not a UUID")
    event_type = raw.get("eventType")
    known = isinstance(event_type, str) and event_type in CLIENT_EVENTS
    return Invalid(
        event_id,
        str(event_type) if known else None,
        _echo(raw.get("budgetId")),
        _echo(raw.get("recordId")),
        detail,
    )


# The content of an event (P3): two events with one eventId are the same if these fields agree after
# normalisation. Each log row notes the list its hash covers. When a type gains a field, add a list
# and leave the old ones as they are: an event accepted under list 1 must be recognised for ever.
FIELD_LISTS: Mapping[int, Mapping[str, Sequence[str]]] = {
    1: {
        "budget.create": ("title", "details", "currency"),
        "budget.edit": ("title", "details", "currency"),
        "budget.delete": (),
        "category.add": ("name", "allocate"),
        "category.edit": ("name", "allocate"),
        "category.delete": (),
        "expense.add": ("categoryId", "amount", "date", "note"),
        "expense.edit": ("categoryId", "amount", "date", "note"),
        "expense.delete": (),
        "participant.add": (),
        "participant.remove": (),
    }
}
FIELD_LIST = max(FIELD_LISTS)


def content_hash(event: Event, field_list: int = FIELD_LIST) -> bytes:
    """SHA-256 of what the client said, never of what the server filled in."""
    named = event.named()
    fields = {name: named[name] for name in FIELD_LISTS[field_list][event.type] if name in named}
    content = [event.type, event.subject_id, event.when, event.stated_version, fields]
    return sha256(orjson.dumps(content, default=str)).digest()
