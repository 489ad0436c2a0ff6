"""Records and participants as clients see them (design 3.2). Records follow the table of kinds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypeAlias, Union

from pydantic import Field as Described
from typing_extensions import TypeAliasType, TypedDict

from hub.budget.kinds import BUDGET, KINDS, Field, Kind
from hub.budget.scalars import Currency
from hub.budget.shapes.scalars import (
    Amount,
    Day,
    Id,
    Millis,
    Role,
    UserId,
    Version,
    When,
)

# How a field stands in what the hub sends, by the name of its type.
SENT: Mapping[str, Any] = {
    "title": str,
    "text": str,
    "money": Amount,
    "date": Day,
    "currency": Currency,
    "id": Id,
}


def shape(name: str, about: str, fields: Mapping[str, Any]) -> Any:
    """A `TypedDict` of fields that mypy cannot know; `about` becomes its description."""
    functional: Any = TypedDict
    made = functional(name, fields)
    made.__doc__ = about
    return made


def sent(field: Field) -> Any:
    type_ = SENT[field.type.name]
    return type_ | None if field.nullable else type_


def fields_of(kind: Kind) -> dict[str, Any]:
    """A live record of the kind."""
    of_budget = {} if kind is BUDGET else {"budgetId": Id}
    return {
        "id": Id,
        **of_budget,
        "createdBy": UserId,
        **{field.name: sent(field) for field in kind.fields},
        "version": Version,
        "offlineLastModified": When,
    }


RECORDS: Mapping[str, Any] = {
    kind.name: shape(
        kind.name.title(),
        "`deleted` is there only where it is true.",
        {**fields_of(kind), "deleted": NotRequired[Literal[True]]},
    )
    for kind in KINDS.values()
}

# mypy cannot know types that are made from values.
if TYPE_CHECKING:
    Record: TypeAlias = dict[str, Any]
    Budget: TypeAlias = Record
    Category: TypeAlias = Record
    Expense: TypeAlias = Record
else:
    Record = TypeAliasType(
        "Record",
        Annotated[
            Union[tuple(RECORDS.values())],  # noqa: UP007
            Described(description="Of the kind that `eventType` names"),
        ],
    )
    Budget, Category, Expense = (RECORDS[name] for name in ("budget", "category", "expense"))


class Participant(TypedDict):
    """With the names of today. `userExists`: there is an account."""

    userId: UserId
    budgetId: Id
    role: Role
    userExists: bool
    firstName: str | None
    lastName: str | None
    photo: str | None
    joinedAt: Millis
