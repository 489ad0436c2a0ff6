"""The scalars that answers are made of, with their meaning and unit."""

from typing import Annotated, TypeAlias, get_args

from pydantic import Field, WithJsonSchema
from typing_extensions import TypeAliasType

from hub.budget import digest
from hub.budget.events import CLIENT_EVENTS
from hub.budget.scalars import INTEGER_MAX

_LOWER_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"

Id: TypeAlias = Annotated[str, Field(pattern=_LOWER_UUID, json_schema_extra={"format": "uuid"})]
UserId: TypeAlias = Annotated[
    str,
    Field(min_length=1, max_length=128, description="The user's id: opaque text"),
]
RecordId: TypeAlias = Annotated[
    str,
    Field(min_length=1, max_length=128, description="A UUID; of a membership event, a user's id"),
]
LogId: TypeAlias = Annotated[
    Id, Field(description="Identity of the log's history; another one: take a snapshot")
]
SequenceNumber: TypeAlias = Annotated[
    int, Field(ge=1, le=INTEGER_MAX, description="Of the event within its budget: 1, 2, 3 …")
]
Head: TypeAlias = Annotated[
    int, Field(ge=1, le=INTEGER_MAX, description="The highest sequence of the budget's log")
]
Key: TypeAlias = Annotated[
    int, Field(ge=0, le=INTEGER_MAX, description="How far the client is; 0 is the start")
]
NextKey: TypeAlias = Annotated[
    int,
    Field(ge=0, le=INTEGER_MAX, description="`key` of the next page; the same as `key` at the end"),
]
Version: TypeAlias = Annotated[
    int, Field(ge=1, le=INTEGER_MAX, description="Of the record: 1 at creation, +1 a change")
]
Millis: TypeAlias = Annotated[int, Field(ge=0, le=INTEGER_MAX, description="Epoch milliseconds")]
When: TypeAlias = Annotated[
    int, Field(ge=0, le=INTEGER_MAX, description="The client's clock, in epoch milliseconds")
]
Amount: TypeAlias = Annotated[
    str,
    Field(pattern=r"^[0-9]{1,10}\.[0-9]{2}$", description="Money: exact, with two decimals"),
]
Day: TypeAlias = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", json_schema_extra={"format": "date"}),
]
Digest: TypeAlias = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{16}$",
        description="Fingerprint of the budget's live records, members and roles as of this "
        "sequence; equal digests, equal budgets",
    ),
]
EventType = TypeAliasType(
    "EventType",
    Annotated[
        str,
        Field(
            json_schema_extra={"x-extensible-enum": list(CLIENT_EVENTS)},
            description="Kind and verb. More may come.",
        ),
    ],
)
Role = TypeAliasType(
    "Role",
    Annotated[
        digest.Role,
        WithJsonSchema(
            {
                "type": "string",
                "x-extensible-enum": list(get_args(digest.Role)),
                "description": "What the participant may do. More may come.",
            }
        ),
    ],
)
