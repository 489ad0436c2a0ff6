"""The Postman collection: every operation is in it, and it can be sent as it is."""

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeAlias

import orjson
import pytest

from api.documents.examples import examples
from api.documents.openapi import openapi
from api.documents.operations import OPERATIONS
from api.documents.postman import postman

Json: TypeAlias = dict[str, Any]

BOOK = "6414b6a3-9e0c-4a0e-8a3c-000000000000"
SIGNED_IN = {"token": "t", "refreshToken": "r", "readerId": "ann"}


def answer(value: Any, schema: str = "Book", media: str = "application/json") -> Json:
    examples = {"an example": {"value": value}}
    described = {"schema": {"$ref": f"#/components/schemas/{schema}"}, "examples": examples}
    return {"description": "Done", "content": {media: described}}


def body(value: Any) -> Json:
    return {"content": {"application/json": {"examples": {"an example": {"value": value}}}}}


def operation(name: str, tag: str, responses: Json, **more: Any) -> Json:
    return {
        "operationId": name,
        "summary": f"Does `{name}`",
        "description": f"At length: {name}",
        "tags": [tag],
        "responses": responses,
        "security": [{"bearer": []}, {"bearer": [], "key": []}],
        **more,
    }


BOOK_ID = {"name": "bookId", "in": "path", "required": True, "schema": {"type": "string"}}
QUERIES = [
    {"name": "size", "in": "query", "required": True, "schema": {"type": "integer", "minimum": 1}},
    {"name": "order", "in": "query", "schema": {"enum": ["up", "down"], "default": "down"}},
    {"name": "bookId", "in": "query", "required": True, "schema": {"type": "string"}},
]
MISSING = {"$ref": "#/components/responses/Missing"}
DOCUMENT: Json = {
    "info": {"title": "Books", "version": "1", "description": "All of them."},
    "tags": [{"name": "readers"}, {"name": "books"}],
    "paths": {
        "/readers": {
            "post": operation(
                "register",
                "readers",
                {"201": answer(SIGNED_IN, "SignedIn")},
                requestBody=body({"email": "a@b.c"}),
                security=[{}, {"key": []}],
            )
        },
        "/readers/refresh": {
            "post": operation(
                "refresh",
                "readers",
                {"200": answer(SIGNED_IN, "SignedIn")},
                requestBody=body({"refreshToken": "old"}),
                security=[],
            )
        },
        "/readers/{readerId}": {"delete": operation("remove", "readers", {"204": {}})},
        "/books": {
            "post": operation(
                "add",
                "books",
                {"201": answer({"bookId": BOOK, "token": "of the book"})},
                requestBody=body({"eventId": "known", "id": BOOK, "title": "A"}),
            ),
            "get": operation("list", "books", {"200": answer("é")}, parameters=QUERIES),
        },
        "/books/{bookId}": {
            "get": operation(
                "read",
                "books",
                {"200": answer({"id": BOOK}), "404": MISSING},
                parameters=[BOOK_ID, {"$ref": "#/components/parameters/Trace"}],
            )
        },
        "/books/{bookId}/pages": {
            "get": operation("follow", "books", {"200": answer("id: 1", media="text/event-stream")})
        },
    },
    "components": {
        "schemas": {
            "Book": {"type": "object", "properties": {"bookId": {}, "token": {}}},
            "SignedIn": {"type": "object", "properties": {"token": {}, "refreshToken": {}}},
        },
        "responses": {"Missing": answer({"error": {"message": "MISSING"}})},
        "parameters": {"Trace": {"name": "X-Trace", "in": "header", "schema": {"type": "string"}}},
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "If set"},
        },
    },
}


def items(collection: Json) -> Iterator[Json]:
    for folder in collection["item"]:
        yield from folder["item"]


@pytest.fixture(scope="module")
def requests() -> dict[str, Json]:
    return {item["id"]: item for item in items(postman(DOCUMENT))}


def test_a_tag_is_a_folder_and_an_operation_a_request() -> None:
    collection = postman(DOCUMENT)
    assert collection["info"]["name"] == "Books"
    folders = {
        folder["name"]: [item["id"] for item in folder["item"]] for folder in collection["item"]
    }
    assert folders == {
        "readers": ["register", "refresh", "remove"],
        "books": ["add", "list", "read", "follow"],
    }
    assert {item["name"] for item in items(collection)} >= {"Does register", "Does add"}


def test_the_document_is_left_as_it_is() -> None:
    given = deepcopy(DOCUMENT)
    assert postman(given) == postman(given)
    assert given == DOCUMENT


def test_variables_are_shared_and_ids_are_those_of_the_examples() -> None:
    assert {each["key"]: each["value"] for each in postman(DOCUMENT)["variable"]} == {
        "baseUrl": "http://127.0.0.1:8000",
        "token": "",
        "refreshToken": "",
        "apiKey": "",
        "readerId": "",
        "bookId": BOOK,
    }


def test_an_url_has_its_variables_and_leaves_out_what_may_be_absent(
    requests: dict[str, Json],
) -> None:
    url = requests["list"]["request"]["url"]
    assert url["raw"] == "{{baseUrl}}/books?size=1&bookId={{bookId}}"
    assert [(each["value"], each.get("disabled", False)) for each in url["query"]] == [
        ("1", False),
        ("down", True),
        ("{{bookId}}", False),
    ]
    url = requests["read"]["request"]["url"]
    assert (url["raw"], url["path"]) == ("{{baseUrl}}/books/:bookId", ["books", ":bookId"])
    assert url["variable"] == [{"key": "bookId", "value": "{{bookId}}", "description": ""}]


def test_a_token_is_sent_where_one_is_needed(requests: dict[str, Json]) -> None:
    collection = postman(DOCUMENT)
    assert collection["auth"]["bearer"][0]["value"] == "{{token}}"
    open_ones = {name for name, item in requests.items() if "auth" in item["request"]}
    assert open_ones == {"register", "refresh"}
    assert requests["register"]["request"]["auth"] == {"type": "noauth"}


def test_headers_are_off_unless_needed(requests: dict[str, Json]) -> None:
    key = {"key": "x-api-key", "value": "{{apiKey}}", "description": "If set", "disabled": True}
    assert key in requests["register"]["request"]["header"]
    sent = {
        name: [each["key"] for each in item["request"]["header"] if "disabled" not in each]
        for name, item in requests.items()
    }
    assert sent["add"] == ["Content-Type"]
    assert sent["read"] == []
    assert [each["key"] for each in requests["refresh"]["request"]["header"]] == ["Content-Type"]


def test_the_body_is_the_first_example_with_variables(requests: dict[str, Json]) -> None:
    added, refreshed = (
        orjson.loads(requests[name]["request"]["body"]["raw"]) for name in ("add", "refresh")
    )
    assert added == {"eventId": "{{$guid}}", "id": "{{bookId}}", "title": "A"}
    assert refreshed == {"refreshToken": "{{refreshToken}}"}
    assert "body" not in requests["read"]["request"]


def test_tokens_and_ids_that_the_hub_made_are_stored(requests: dict[str, Json]) -> None:
    scripts = {
        name: "\n".join(item["event"][0]["script"]["exec"])
        for name, item in requests.items()
        if "event" in item
    }
    assert scripts.keys() == {"register", "refresh"}  # `add` sent the id itself
    for script in scripts.values():
        stored = re.findall(r'set\("(\w+)", answer\.(\w+)\)', script)
        assert stored == [(name, name) for name in ("token", "refreshToken", "readerId")]


def test_what_has_no_end_says_so(requests: dict[str, Json]) -> None:
    endless = {name for name, item in requests.items() if "no end" in str(item["request"])}
    assert endless == {"follow"}


def test_the_hubs_own_can_be_sent_as_it_is() -> None:
    document = openapi("1", examples().calls)
    collection = postman(document)
    assert sorted(item["id"] for item in items(collection)) == sorted(op.name for op in OPERATIONS)
    variables = {each["key"]: each["value"] for each in collection["variable"]}
    assert set(re.findall(r"{{(\w+)}}", str(collection))) == variables.keys()
    assert {name for name, value in variables.items() if not value} == {
        "token",
        "refreshToken",
        "apiKey",
    }
    needed = {op.name for op in OPERATIONS if op.needs == "user"}
    sent = {item["id"] for item in items(collection) if "auth" not in item["request"]}
    assert sent == needed
    storing = {item["id"] for item in items(collection) if '"refreshToken", ' in str(item)}
    assert storing == {"register", "login", "refresh"}
    for item in items(collection):
        url = item["request"]["url"]
        filled = {f":{each['key']}" for each in url.get("variable", [])}
        assert filled == {part for part in url["path"] if part.startswith(":")}
