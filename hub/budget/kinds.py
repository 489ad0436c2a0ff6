"""Kinds of records: the one table of what fields each has (P13, design-2 section 3).

Events, rules, replay, digest and documents follow this table. A new kind is a row here and its SQL
(`storage/postgres/core/record_sql.py`). Kinds stand in the order in which their rows are written: a
record comes after those that it refers to.

| column    | meaning                                                                            |
|-----------|------------------------------------------------------------------------------------|
| name      | in JSON, in events and records alike                                               |
| type      | what a client may send, and how it reads in a stream event                         |
| policy    | what becomes of the field in a stale edit that merges; nothing merges yet          |
| default   | of an add that does not name it; without one the field is required. Where it is    |
|           | null an edit may say null, which clears the field                                  |
| refers    | the kind of the live record whose id it holds                                      |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from hub.budget.scalars import Currency, Date, Money, Text, Title, Uuid
from hub.errors import Code

Policy: TypeAlias = Literal["last", "forward", "set", "never"]
Verb: TypeAlias = Literal["create", "add", "edit", "delete"]

# The default of a field that has none. It equals no value, so such a field always counts in the
# digest.
REQUIRED: Final = object()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


class Type(NamedTuple):
    """`shape` checks and normalises what a client sends. `read` takes a value out of a stream
    event, where it was checked before; never null."""

    name: str
    shape: Any
    read: Callable[[Any], Any] = _text


TITLE = Type("title", Title)
TEXT = Type("text", Text)
MONEY = Type("money", Money, Decimal)
DATE = Type("date", Date)
CURRENCY = Type("currency", Currency)
ID = Type("id", Uuid)


class Field(NamedTuple):
    name: str
    type: Type
    policy: Policy
    default: Any = REQUIRED
    refers: "Kind | None" = None

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def nullable(self) -> bool:
        return self.default is None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Kind:
    """`exists` and `missing` are the codes for an id that is taken, and for one that is not there.
    `takes` is the kind of the live records that a deletion takes along: those that refer to it."""

    name: str
    plural: str
    fields: Sequence[Field]
    exists: Code
    missing: Code
    takes: str | None = None
    references: Sequence[tuple[str, "Kind"]] = field(init=False)  # the fields that refer
    positions: Mapping[str, int] = field(init=False)
    defaults: Sequence[tuple[str, Any]] = field(init=False)
    # In the order of the digest: position, netstring of the name, default.
    canonical: Sequence[tuple[int, str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        canonical = []
        for position, each in enumerate(self.fields):
            name = each.name.encode()
            canonical.append((name, position, f"{len(name)}:{each.name},", each.default))
        positions = {each.name: position for position, each in enumerate(self.fields)}
        references = [(each.name, each.refers) for each in self.fields if each.refers is not None]
        object.__setattr__(self, "references", references)
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "defaults", [(each.name, each.default) for each in self.fields])
        object.__setattr__(self, "canonical", [row[1:] for row in sorted(canonical)])

    def __repr__(self) -> str:
        return f"Kind({self.name})"

    @property
    def verbs(self) -> Sequence[Verb]:
        """What events of clients there are, the one that makes a record first."""
        return ("create" if self.name == "budget" else "add", "edit", "delete")


BUDGET = Kind(
    "budget",
    "budgets",
    (
        Field("title", TITLE, "last"),
        Field("details", TEXT, "last", None),
        Field("currency", CURRENCY, "never", None),
    ),
    Code.BUDGET_EXISTS,
    Code.BUDGET_NOT_EXISTS,
)
CATEGORY = Kind(
    "category",
    "categories",
    (
        Field("name", TITLE, "last"),
        Field("allocate", MONEY, "never"),
    ),
    Code.CATEGORY_EXISTS,
    Code.CATEGORY_NOT_EXISTS,
    takes="expense",
)
EXPENSE = Kind(
    "expense",
    "expenses",
    (
        Field("categoryId", ID, "last", None, refers=CATEGORY),
        Field("amount", MONEY, "never"),
        Field("date", DATE, "last"),
        Field("note", TEXT, "last", None),
    ),
    Code.EXPENSE_EXISTS,
    Code.EXPENSE_NOT_EXISTS,
)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (BUDGET, CATEGORY, EXPENSE)}
