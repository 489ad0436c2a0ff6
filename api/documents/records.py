"""Records and participants as clients see them (design 3.2)."""

from typing import Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

from api.documents.scalars import (
    Amount,
    CurrencyCode,
    Day,
    Id,
    Millis,
    UserId,
    Version,
    When,
)


class _Record(TypedDict):
    id: Id
    createdBy: UserId
    version: Version
    offlineLastModified: When


class _Mortal(TypedDict):
    deleted: NotRequired[Literal[True]]


class BudgetFields(_Record):
    title: str
    details: str | None
    currency: CurrencyCode | None


class Budget(BudgetFields, _Mortal):
    """The budget's own record. `deleted` is there only where it is true."""


class Category(_Record, _Mortal):
    """`deleted` is there only where it is true."""

    budgetId: Id
    name: str
    allocate: Amount


class Expense(_Record, _Mortal):
    """`deleted` is there only where it is true."""

    budgetId: Id
    categoryId: Id | None
    date: Day
    amount: Amount
    note: str | None


Record: TypeAlias = Budget | Category | Expense


class Participant(TypedDict):
    """With the names of today. `userExists`: there is an account."""

    userId: UserId
    budgetId: Id
    userExists: bool
    firstName: str | None
    lastName: str | None
    photo: str | None
    joinedAt: Millis
