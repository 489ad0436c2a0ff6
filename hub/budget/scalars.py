"""Scalars: what one value in a client's JSON may be, and its normal form.

Each is an annotation for pydantic. Ids come out in lower case, money as `Decimal` with two places.
"""

import re
from datetime import date
from decimal import Decimal
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from typing_extensions import TypeAliasType

from hub.budget.currencies import CURRENCIES

INTEGER_MAX = 2**53 - 1

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
Currency = TypeAliasType(
    "Currency",
    Annotated[
        str,
        StringConstraints(strict=True, pattern=r"^[A-Z]{3}$"),
        AfterValidator(_currency),
        Field(json_schema_extra={"x-extensible-enum": sorted(CURRENCIES)}, description="ISO 4217"),
    ],
)
