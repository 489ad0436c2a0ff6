"""Verdicts: what became of a submitted event, the same object on every transport (design 3.2)."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypeAliasType, TypedDict

from hub.budget.shapes.records import Record
from hub.budget.shapes.scalars import EventType, Id, RecordId, SequenceNumber, Version
from hub.errors import Error


class Answered(TypedDict):
    """The event that a verdict is about."""

    eventId: Id
    eventType: EventType
    event: NotRequired[
        Annotated[EventType, Field(description="REST only: the same as `eventType`")]
    ]
    budgetId: Id
    recordId: RecordId


class Accepted(Answered):
    """Committed. `record` is what it made of the record; `duplicate` says that it was accepted
    before, and that this is the verdict of then."""

    status: Literal["accepted"]
    sequence: SequenceNumber
    version: Version
    record: Record
    duplicate: NotRequired[Literal[True]]


class Conflict(Answered):
    """The version was not the current one, and nothing changed; `currentRecord` is how it is."""

    status: Literal["conflict"]
    currentRecord: Record


class Named(TypedDict, total=False):
    """What could be read of an event."""

    eventType: EventType
    event: Annotated[EventType, Field(description="REST only: the same as `eventType`")]
    budgetId: Id
    recordId: RecordId


class Rejected(Named):
    """Nothing changed. Of an event that is not of its shape only what could be read is repeated."""

    eventId: Id
    status: Literal["rejected"]
    error: Error


Verdict = TypeAliasType(
    "Verdict",
    Annotated[
        Accepted | Conflict | Rejected,
        Field(discriminator="status", description="What became of a submitted event."),
    ],
)
