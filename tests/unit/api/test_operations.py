"""Operations: what the documents read off a handler, and what the documents leave open."""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import pytest
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from api.documents.asyncapi import asyncapi
from api.documents.openapi import openapi
from api.documents.operation import Operation
from api.documents.operations import OPERATIONS
from api.http.answers import JsonResponse, respond
from hub.errors import Code
from storage.objects.media_types import PhotoType


class Good(TypedDict):
    good: bool


class Bad(TypedDict):
    bad: bool


async def ask(request: Request) -> JsonResponse[Good]:
    raise NotImplementedError


async def make(request: Request) -> JsonResponse[Good, Literal[200, 201]]:
    raise NotImplementedError


async def look(request: Request) -> JsonResponse[Good] | JsonResponse[Bad, Literal[503]]:
    raise NotImplementedError


async def differ(request: Request) -> JsonResponse[Good] | Response:
    raise NotImplementedError


# mypy has to refuse these: an ignore that ignores nothing is an error of `make types`.
async def of_another_shape(request: Request) -> JsonResponse[Good]:
    return respond({"bad": True})  # type: ignore[typeddict-item]


async def of_another_status(request: Request) -> JsonResponse[Good]:
    return respond({"good": True}, 201)  # type: ignore[arg-type]


def operation(handler: Any, *statuses: int, **fields: Any) -> Operation:
    answers = dict.fromkeys(statuses, "an answer")
    return Operation("GET /budgets/{budget_id}", handler, "ask", "Ask", answers, **fields)


def test_shapes_are_those_of_the_annotation() -> None:
    assert operation(ask, 200).shapes() == {200: Good}
    assert operation(make, 200, 201).shapes() == {200: Good, 201: Good}
    either: dict[int, Any] = {200: Good, 503: Bad}
    assert operation(look, 200, 503).shapes() == either


def test_an_answer_without_body_has_no_shape() -> None:
    assert operation(differ, 200, 304).shapes() == {200: Good}


@pytest.mark.parametrize(
    ("handler", "statuses"),
    [(ask, [201]), (ask, [200, 201]), (make, [200]), (look, [200]), (differ, [200, 202])],
)
def test_a_status_that_only_one_of_them_knows_is_an_error(
    handler: Any, statuses: list[int]
) -> None:
    with pytest.raises(TypeError, match="ask: answers"):
        operation(handler, *statuses).shapes()


def test_errors_follow_from_the_path_and_from_what_is_needed() -> None:
    of_path = operation(ask, 200).all_errors()
    assert {Code.BUDGET_NOT_EXISTS, Code.NOT_PARTICIPANT, Code.NOT_LOGGED_IN} <= set(of_path)
    assert of_path == [code for code in Code if code in of_path]
    without = operation(ask, 200, needs="nothing", never=[Code.NOT_PARTICIPANT]).all_errors()
    assert not {Code.NOT_PARTICIPANT, Code.NOT_LOGGED_IN, Code.BUSY} & set(without)
    [budget_id] = operation(ask, 200).all_parameters
    assert (budget_id.name, budget_id.where) == ("budgetId", "path")


def test_operation_ids_name_one_operation_each() -> None:
    names = [op.name for op in OPERATIONS]
    assert len(set(names)) == len(names)


@cache
def documents() -> tuple[Any, Any]:
    return openapi("1", []), asyncapi("1", [])


def parts(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        yield document
    for each in document.values() if isinstance(document, dict) else document:
        if isinstance(each, dict | list):
            yield from parts(each)


def test_every_integer_says_how_large_it_may_be() -> None:
    for document in documents():
        integers = [part for part in parts(document) if part.get("type") == "integer"]
        assert len(integers) > 20
        for part in integers:
            if "maximum" in part:
                assert part["format"] == ("int32" if part["maximum"] < 2**31 else "int64")
            assert part["format"] in ("int32", "int64")


def test_what_may_become_more_is_open() -> None:
    """A client that was generated today reads the codes, currencies, roles and events of then."""
    for document in documents():
        schemas = document["components"]["schemas"]
        opened = {name for name, schema in schemas.items() if "x-extensible-enum" in schema}
        assert {"ErrorCode", "Currency", "Role", "EventType"} <= opened
        closed = {tuple(part["enum"]) for part in parts(document) if "enum" in part}
        assert closed <= {("ok", "degraded"), ("stop", "each"), tuple(PhotoType)}


def test_unions_say_which_field_tells_them_apart() -> None:
    """But for a record, which has no such field: the `eventType` beside it says what it is."""
    for document in documents():
        for name, schema in document["components"]["schemas"].items():
            if "oneOf" in schema or "anyOf" in schema:
                assert ("discriminator" in schema) == (name != "Record"), name


def test_descriptions_are_for_those_who_have_no_other_document() -> None:
    for document in documents():
        described = [part["description"] for part in parts(document) if "description" in part]
        assert len(described) > 100
        assert [text for text in described if isinstance(text, str) and "(design" in text] == []
        for name, schema in document["components"]["schemas"].items():
            assert "\n" not in schema.get("description", ""), name


def test_all_errors_have_one_schema_and_named_answers() -> None:
    document = documents()[0]
    for item in document["paths"].values():
        for described in item.values():
            for status, answer in described["responses"].items():
                if status >= "400" and described["operationId"] != "isReady":
                    assert answer.keys() == {"$ref", "description"}
    for named in document["components"]["responses"].values():
        [content] = named["content"].values()
        assert content["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}
        assert len({Code[code].status for code in named["x-codes"]}) == 1
