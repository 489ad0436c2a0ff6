"""Stream events: the rows of a budget's log as every subscriber gets them (design 3.2).

An add carries all fields, null included; an edit those it named. Both follow the table of kinds.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NotRequired, Union

from pydantic import Field
from typing_extensions import TypeAliasType, TypedDict

from hub.budget.kinds import BUDGET, KINDS, Kind, Verb
from hub.budget.shapes.records import sent, shape
from hub.budget.shapes.scalars import (
    Digest,
    Id,
    Millis,
    Role,
    SequenceNumber,
    UserId,
    Version,
    When,
)

_DONE = {"create": "Created", "add": "Added", "edit": "Edited", "delete": "Deleted"}


class _Streamed(TypedDict):
    sequence: SequenceNumber
    eventId: Id
    event: NotRequired[Annotated[str, Field(description="Long-poll only: the same as `eventType`")]]
    budgetId: Id
    actorId: UserId
    when: When
    digest: Digest


class Membership(TypedDict):
    """`role` is the one after the event."""

    userId: UserId
    budgetId: Id
    joinedAt: Millis
    role: Role


class _OfParticipant(_Streamed):
    recordId: UserId
    participant: Membership
    owner: NotRequired[
        Annotated[UserId, Field(description="Who owns the budget from now on, where it passes on")]
    ]


class ParticipantAdded(_OfParticipant):
    """Somebody joined. Made by the server: no version, and `when` is its clock. Somebody who
    joins a budget that its owner has left empty is its `owner` from then on."""

    eventType: Literal["participant.add"]


class ParticipantRemoved(_OfParticipant):
    """Somebody left, or was removed: their subscriptions end with it."""

    eventType: Literal["participant.remove"]


def _of_records() -> Iterator[Any]:
    for kind in KINDS.values():
        for verb in kind.verbs:
            yield shape(
                kind.name.title() + _DONE[verb],
                _about(kind, verb),
                {
                    **_Streamed.__annotations__,
                    "recordId": Id,
                    "version": Version,
                    "eventType": Literal[f"{kind.name}.{verb}"],
                    **_named(kind, verb),
                },
            )


def _about(kind: Kind, verb: Verb) -> str:
    if verb == "delete" and kind is BUDGET:
        return "The last event of its budget: subscriptions end with it."
    if verb == "delete" and kind.takes is not None:
        return (
            f"Deletes its {KINDS[kind.takes].plural} too: each version +1, this event's sequence"
            " and `when`"
        )
    if verb == "edit":
        return "What the client named has these values now."
    return f"A new {kind.name}, with all of its fields."


def _named(kind: Kind, verb: Verb) -> dict[str, Any]:
    if verb == "delete":
        return {}
    if verb == "edit":
        return {field.name: NotRequired[sent(field)] for field in kind.fields}
    return {field.name: sent(field) for field in kind.fields}


# mypy cannot know a union made of values.
_Any: Any = Union[(*_of_records(), ParticipantAdded, ParticipantRemoved)]

StreamEvent = TypeAliasType(
    "StreamEvent",
    Annotated[
        _Any,
        Field(
            discriminator="eventType",
            description="A row of the budget's log. More types may come: a client that does not"
            " know one goes on after its `sequence`, and can check no digest from then on.",
        ),
    ],
)
