"""Events: what a client may say, how it is checked, and which of its fields are its content.

The shapes follow the table of kinds (`hub.budget.kinds`); they also describe the wire in the served
API documents. An `Event` is *normalised*: ids in lower case, money as `Decimal` with two places,
absent fields distinguishable from `null` ones.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NotRequired,
    TypeAlias,
    Union,
    final,
)

import orjson
from pydantic import ConfigDict, Field as Described, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType, TypedDict

from hub.budget.kinds import BUDGET, KINDS, Field, Kind, Verb
from hub.budget.records import BudgetId, UserId
from hub.budget.scalars import Uuid, Whole
from hub.errors import Code, HubError

EVENTS_PER_REQUEST_MAX = 25  # REST
EVENTS_PER_FRAME_MAX = 100  # socket


class Event(NamedTuple):
    """What a client says about one record. `when` is the client's clock: stored, never trusted.

    `version` is the one the client last saw, None where the event makes its record. `named` has the
    fields that the client wrote, null included, by their names in JSON."""

    event_type: str
    kind: Kind
    verb: Verb
    event_id: str
    budget_id: BudgetId
    record_id: str
    when: int
    version: int | None
    named: Mapping[str, Any]


class Joining(NamedTuple):
    """The sender joins, by an invite (the hash of its token) or by the budget's bare id.

    Made by the server from a request, not accepted from clients: `when` is the server's clock.
    `record_id` is the user's id; `participants_max` is how many a budget may have."""

    event_id: str
    budget_id: BudgetId
    record_id: UserId
    when: int
    participants_max: int
    invite: bytes | None = None
    event_type: str = "participant.add"
    version: None = None
    named: Mapping[str, Any] = {}


class Leaving(NamedTuple):
    """The sender leaves, or as the owner removes another user. With `closes_account` they go for
    good, and a budget they own passes on. Made by the server, like `Joining`."""

    event_id: str
    budget_id: BudgetId
    record_id: UserId
    when: int
    closes_account: bool = False
    event_type: str = "participant.remove"
    version: None = None
    named: Mapping[str, Any] = {}


@final
class Invalid(NamedTuple):
    """A submitted event that is not of its documented shape; its verdict is `INVALID_EVENT`.

    What can be echoed safely is kept, so that the client can match the verdict."""

    event_id: str
    event_type: str | None
    budget_id: BudgetId | None
    record_id: str | None
    detail: str


Decidable: TypeAlias = Event | Joining | Leaving
Submitted: TypeAlias = Decidable | Invalid


def parse_batch(raw: object, count_max: int) -> list[Submitted]:
    """The events of a request or frame, each checked on its own.

    Raises `HubError(BAD_REQUEST)` where the envelope itself is bad: not a list of 1 to `count_max`
    objects, or one of them without an `eventId` that is a UUID. Anything else wrong is that
    event's verdict.
    """
    if not isinstance(raw, list) or not 1 <= len(raw) <= count_max:
        raise HubError(Code.BAD_REQUEST, f"events: a list of 1 to {count_max} objects")
    return [parse_event(item) for item in raw]


def parse_event(raw: object) -> Event | Invalid:
    if not isinstance(raw, dict):
        raise HubError(Code.BAD_REQUEST, "events: each is an object")
    event_type = raw.get("eventType")
    if event_type is None and "event" in raw:  # what legacy clients call it
        event_type = raw["event"]
        raw = {**raw, "eventType": event_type}
    shape = CLIENT_EVENTS.get(event_type) if isinstance(event_type, str) else None
    if shape is None:
        return _invalid(raw, "eventType: not one of the documented types")
    try:
        said = shape.adapter.validate_python(raw)
    except ValidationError as error:
        return _invalid(raw, describe(error))
    budget_id = said.pop("budgetId")
    return Event(
        said.pop("eventType"),
        shape.kind,
        shape.verb,
        said.pop("eventId"),
        budget_id,
        budget_id if shape.kind is BUDGET else said.pop("recordId"),
        said.pop("when"),
        said.pop("version", None),
        said,  # what is left are the record's fields
    )


def describe(error: ValidationError) -> str:
    """Field names and reasons for people; never what was sent (P9: it ends in logs)."""
    return "; ".join(
        f"{'.'.join(map(str, line['loc'])) or 'body'}: {line['msg'].removeprefix('Value error, ')}"
        for line in error.errors()[:5]
    )


EventId = Annotated[
    Uuid, Described(description="Made by the client, once; sent again it gives the same verdict")
]
When = Annotated[Whole, Described(description="The client's clock, in epoch milliseconds")]
SeenVersion = Annotated[Whole, Described(description="Of the record, as the client last saw it")]


class Shape:
    """What a client may send as one type of event. `schema` is a `TypedDict` for pydantic."""

    __slots__ = ("adapter", "kind", "schema", "verb")
    config: ClassVar = ConfigDict(extra="ignore", hide_input_in_errors=True)

    def __init__(self, kind: Kind, verb: Verb) -> None:
        self.kind = kind
        self.verb = verb
        fields: dict[str, Any] = {
            "eventType": Literal[f"{kind.name}.{verb}"],
            "eventId": EventId,
            "budgetId": Uuid,
            "when": When,
        }
        if kind is not BUDGET:
            fields["recordId"] = Uuid
        if verb in ("edit", "delete"):
            fields["version"] = SeenVersion
        if verb != "delete":
            for field in kind.fields:
                fields[field.name] = _sent(field, required=field.required and verb != "edit")
        functional: Any = TypedDict  # made from the table, so mypy cannot know its fields
        self.schema = functional(f"{kind.name.title()}{verb.title()}", fields)
        self.schema.__pydantic_config__ = self.config
        self.adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(self.schema)


def _sent(field: Field, *, required: bool) -> Any:
    shape = field.type.shape | None if field.nullable else field.type.shape
    return shape if required else NotRequired[shape]


CLIENT_EVENTS: Mapping[str, Shape] = {
    f"{kind.name}.{verb}": Shape(kind, verb) for kind in KINDS.values() for verb in kind.verbs
}

# mypy cannot know a union made of values.
_Any: Any = Union[tuple(shape.schema for shape in CLIENT_EVENTS.values())]  # noqa: UP007

ClientEvent = TypeAliasType(
    "ClientEvent",
    Annotated[
        _Any,
        Described(discriminator="eventType", description="What a client says about one record."),
    ],
)

_ID: TypeAdapter[str] = TypeAdapter(Uuid)


def _echo(value: object) -> str | None:
    """The value as an id in lower case, or None where it is not one."""
    try:
        return _ID.validate_python(value)
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


def content_hash(event: Decidable, field_list: int = FIELD_LIST) -> bytes:
    """SHA-256 of what the client said, never of what the server filled in.

    All fields count of a kind that is younger than the list."""
    named = event.named
    names = FIELD_LISTS[field_list].get(event.event_type, named)
    fields = {name: named[name] for name in names if name in named}
    content = [event.event_type, event.record_id, event.when, event.version, fields]
    return sha256(orjson.dumps(content, default=str)).digest()
