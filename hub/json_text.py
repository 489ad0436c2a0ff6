"""JSON text: from clients, and written already."""

import json
from typing import Any, NoReturn

import orjson


def decode(text: bytes | str) -> Any:
    """The value of a JSON text. Raises `ValueError` where it is not JSON, or not UTF-8.

    orjson refuses a lone surrogate (`"\\ud800"`) together with everything around it; here it must
    reach the field's own check, so that one bad note is one event's verdict and not the batch's.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if isinstance(text, bytes):
            text = text.decode()
        if "\\ud" not in text.lower():
            raise
        try:
            return json.loads(text, parse_constant=_refuse)
        except RecursionError:
            raise error from None


def written(text: bytes) -> Any:
    """JSON text as it stands, for its place in something that `orjson.dumps` writes. mypy takes it
    for any shape; that it is of its shape the tests of the documents show."""
    return orjson.Fragment(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
