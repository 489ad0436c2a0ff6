"""Stream events: the rows of a budget's log as every subscriber gets them (design 3.2).

An add carries all fields, null included; an edit those it named.
"""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypeAliasType, TypedDict

from api.documents.scalars import (
    Amount,
    CurrencyCode,
    Day,
    Digest,
    Id,
    Millis,
    SequenceNumber,
    UserId,
    Version,
    When,
)


class _Streamed(TypedDict):
    sequence: SequenceNumber
    eventId: Id
    event: NotRequired[Annotated[str, Field(description="Long-poll only: the same as `eventType`")]]
    budgetId: Id
    actorId: UserId
    when: When
    digest: Digest


class _OfRecord(_Streamed):
    recordId: Id
    version: Version


class BudgetCreated(_OfRecord):
    eventType: Literal["budget.create"]
    title: str
    details: str | None
    currency: CurrencyCode | None


class BudgetEdited(_OfRecord):
    eventType: Literal["budget.edit"]
    title: NotRequired[str]
    details: NotRequired[str | None]
    currency: NotRequired[CurrencyCode | None]


class BudgetDeleted(_OfRecord):
    """The last event of its budget: subscriptions end with it."""

    eventType: Literal["budget.delete"]


class CategoryAdded(_OfRecord):
    eventType: Literal["category.add"]
    name: str
    allocate: Amount


class CategoryEdited(_OfRecord):
    eventType: Literal["category.edit"]
    name: NotRequired[str]
    allocate: NotRequired[Amount]


class CategoryDeleted(_OfRecord):
    """Deletes the category's expenses too: each version +1, this event's sequence and `when`."""

    eventType: Literal["category.delete"]


class ExpenseAdded(_OfRecord):
    eventType: Literal["expense.add"]
    categoryId: Id | None
    amount: Amount
    date: Day
    note: str | None


class ExpenseEdited(_OfRecord):
    eventType: Literal["expense.edit"]
    categoryId: NotRequired[Id | None]
    amount: NotRequired[Amount]
    date: NotRequired[Day]
    note: NotRequired[str | None]


class ExpenseDeleted(_OfRecord):
    eventType: Literal["expense.delete"]


class Membership(TypedDict):
    userId: UserId
    budgetId: Id
    joinedAt: Millis


class _OfParticipant(_Streamed):
    recordId: UserId
    participant: Membership
    owner: NotRequired[
        Annotated[UserId, Field(description="Who owns the budget from now on, where it passes on")]
    ]


class ParticipantAdded(_OfParticipant):
    """Somebody joined. Made by the server: no version, and `when` is its clock. Whoever joins a
    budget that its owner has left empty is its `owner` from then on."""

    eventType: Literal["participant.add"]


class ParticipantRemoved(_OfParticipant):
    """Somebody left, or was removed: their subscriptions end with it."""

    eventType: Literal["participant.remove"]


StreamEvent = TypeAliasType(
    "StreamEvent",
    Annotated[
        BudgetCreated
        | BudgetEdited
        | BudgetDeleted
        | CategoryAdded
        | CategoryEdited
        | CategoryDeleted
        | ExpenseAdded
        | ExpenseEdited
        | ExpenseDeleted
        | ParticipantAdded
        | ParticipantRemoved,
        Field(discriminator="eventType"),
    ],
)
