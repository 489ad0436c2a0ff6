"""Verdicts: what became of a submitted event, the same object on every transport (design 3.2)."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypeAliasType, TypedDict

from api.documents.errors import Error
from api.documents.records import Record
from api.documents.scalars import EventType, Id, RecordId, SequenceNumber, Version


class _Verdict(TypedDict):
    eventId: Id
    event: NotRequired[
        Annotated[EventType, Field(description="REST only: the same as `eventType`")]
    ]


class _OfKnownEvent(_Verdict):
    eventType: EventType
    budgetId: Id
    recordId: RecordId


class Accepted(_OfKnownEvent):
    """Committed. `record` is what it made of the record; `duplicate` says that it was accepted
    before, and that this is the verdict of then."""

    status: Literal["accepted"]
    sequence: SequenceNumber
    version: Version
    record: Record
    duplicate: NotRequired[Literal[True]]


class Conflict(_OfKnownEvent):
    """The version was not the current one, and nothing changed; `currentRecord` is how it is."""

    status: Literal["conflict"]
    currentRecord: Record


class Rejected(_Verdict):
    """Nothing changed. Of an event that is not of its shape only what could be read is repeated."""

    eventType: NotRequired[EventType]
    budgetId: NotRequired[Id]
    recordId: NotRequired[RecordId]
    status: Literal["rejected"]
    error: Error


Verdict = TypeAliasType(
    "Verdict", Annotated[Accepted | Conflict | Rejected, Field(discriminator="status")]
)
