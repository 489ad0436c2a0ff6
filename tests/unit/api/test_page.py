"""The page for people: everything has its place, every link opens it, and nothing of the documents
is taken for HTML."""

from collections.abc import Mapping
from copy import deepcopy
from html.parser import HTMLParser
from typing import Any, TypeAlias

import pytest

from api.documents.page import page

Json: TypeAlias = dict[str, Any]

STYLE = "p > a { color: red; }"
CURRENCIES = [f"C{number:02}" for number in range(40)]
UNSAFE = '<b onclick="x">bold</b> & [js](javascript:x) ![i](x.png)'


def ref(name: str, kind: str = "schemas") -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def refusal(*codes: str) -> Json:
    said = {"error": {"message": codes[0], "statusCode": 404}}
    content = {"schema": ref("ErrorAnswer"), "examples": {"one": {"value": said}}}
    return {
        "description": f"What {codes[0]} means",
        "content": {"application/json": content},
        "x-codes": list(codes),
    }


def operation(name: str, **more: Any) -> Json:
    return {
        "operationId": name,
        "summary": f"Does {name}",
        "tags": ["things"],
        "parameters": [ref("Trace", "parameters")],
        "responses": {"200": {"description": "Done"}, "404": ref("Missing", "responses")},
        "security": [{"token": []}],
        "x-codes": ["MISSING", "GONE", "LOST"],
        **more,
    }


ROWS = [
    {"message": "MISSING", "statusCode": 404, "retryable": False, "detail": "Not there."},
    {"message": "BUSY", "statusCode": 503, "retryable": True, "detail": "Later."},
]
TABLE = {
    "200": {
        "description": "All codes",
        "headers": {"ETag": {"description": "Its `hash`", "schema": {"type": "string"}}},
        "content": {
            "application/json": {
                "schema": ref("ErrorTable"),
                "examples": {"the table": {"value": {"errors": ROWS}}},
            }
        },
    },
    "410": ref("Gone", "responses"),
}
EVENT = {
    "oneOf": [ref("Added"), ref("Removed")],
    "discriminator": {"propertyName": "kind", "mapping": {}},
}
OPENAPI: Json = {
    "info": {"title": "Things", "version": "1", "description": "All of [them](openapi.json)."},
    "tags": [{"name": "things"}],
    "paths": {
        "/things/{id}": {
            "get": operation("readThing", description=UNSAFE),
            "put": operation(
                "writeThing",
                requestBody={"content": {"application/json": {"schema": ref("Event")}}},
            ),
        },
        "/errors": {"get": operation("listErrors", responses=TABLE, security=[{}])},
        "/openapi.json": {"get": operation("readOpenApi")},
    },
    "components": {
        "schemas": {
            "Added": {
                "type": "object",
                "description": UNSAFE,
                "properties": {
                    "amount": {"type": "string", "pattern": "^<[0-9]+$", "description": UNSAFE},
                    "currency": {"type": "string", "x-extensible-enum": CURRENCIES},
                },
                "required": ["amount"],
            },
            "Removed": {"type": "object", "properties": {}},
            "Event": EVENT,
            "Currency": {"type": "string", "x-extensible-enum": CURRENCIES},
            "ErrorAnswer": {"type": "object"},
            "ErrorTable": {"type": "object"},
        },
        "responses": {"Missing": refusal("MISSING", "ELSEWHERE"), "Gone": refusal("GONE", "LOST")},
        "headers": {"X-Trace": {"description": "Its name", "schema": {"type": "string"}}},
        "parameters": {
            "Trace": {
                "name": "X-Trace",
                "in": "header",
                "description": "Names it",
                "schema": {"type": "string"},
            }
        },
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        },
    },
}
QUERY = {"type": "object", "properties": {"since": {"type": "integer"}}}
UPGRADE = {"ws": {"method": "GET", "query": QUERY}}
ASYNCAPI: Json = {
    "info": {"title": "Live", "version": "1", "description": "Closes:\n\n- 1001: later"},
    "channels": {"live": {"address": "/live", "bindings": UPGRADE}},
    "operations": {
        "client.ask": {"reply": {"messages": [{"$ref": "#/channels/live/messages/server.told"}]}},
        "server.told": {},
    },
    "components": {
        "messages": {
            "client.ask": {
                "name": "ask",
                "payload": ref("Ask"),
                "examples": [{"summary": "a question", "payload": {"text": "</pre><script>"}}],
            },
            "server.told": {"name": "told", "payload": ref("Event"), "summary": UNSAFE},
        },
        "schemas": {
            "Ask": {"type": "object", "properties": {"text": {"type": "string"}}},
            "Event": {
                **EVENT,
                "discriminator": "kind",
                "type": "object",
                "properties": {"kind": {"type": "string"}},
            },
        },
    },
}


class Read(HTMLParser):
    """What stands in a page. `closed` are the ids inside the content of a box."""

    VOID = {"meta", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.closed: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        named = {name: value or "" for name, value in attrs}
        self.attributes |= named.keys()
        if "id" in named:
            self.ids.append(named["id"])
            if "details" in self.open and "summary" not in self.open:
                self.closed.add(named["id"])
        if "href" in named:
            self.links.append(named["href"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text() -> str:
    return page(OPENAPI, ASYNCAPI, STYLE)


@pytest.fixture(scope="module")
def read(text: str) -> Read:
    return Read(text)


def content(text: str, id: str) -> str:
    """What stands in the box of this id."""
    return text.partition(f'<div id="{id}">')[2].partition("</div>")[0]


def type_of(schema: Mapping[str, Any]) -> str:
    """How the page writes a type."""
    openapi = deepcopy(OPENAPI)
    openapi["components"]["schemas"]["Added"]["properties"] = {"field": schema}
    shown = content(page(openapi, ASYNCAPI, STYLE), "shape-Added")
    return shown.partition("<b>field</b>, may be absent: ")[2].partition("</dt>")[0]


def test_everything_has_its_place_inside_a_box(read: Read) -> None:
    operations = {op["operationId"] for item in OPENAPI["paths"].values() for op in item.values()}
    shapes = OPENAPI["components"]["schemas"] | ASYNCAPI["components"]["schemas"]
    boxes = operations | set(ASYNCAPI["components"]["messages"]) | {f"shape-{s}" for s in shapes}
    assert boxes == read.closed
    assert len(read.ids) == len(set(read.ids))


def test_every_place_is_linked_and_every_link_has_its_place(read: Read) -> None:
    inside = {link[1:] for link in read.links if link.startswith("#")}
    assert inside - set(read.ids) == set()
    assert read.closed <= inside
    # An image is no more than a link.
    assert {link for link in read.links if link[0] != "#"} == {"openapi.json", "x.png"}


def test_nothing_runs_and_nothing_is_loaded(read: Read, text: str) -> None:
    assert read.tags.isdisjoint({"script", "img", "link", "iframe"})
    assert not any(name == "style" or name.startswith("on") for name in read.attributes)
    assert text.count(f"<style>{STYLE}</style>") == 1


def test_text_is_text_and_not_html(text: str) -> None:
    assert "<b onclick" not in text
    assert text.count("&lt;b onclick=&quot;x&quot;&gt;bold&lt;/b&gt; &amp; [js](javascript:x)") == 4
    assert '<pre>{"text": "&lt;/pre&gt;&lt;script&gt;"}</pre>' in text
    assert "<code>^&lt;[0-9]+$</code>" in text


def test_an_operation_names_its_errors_and_the_table_tells_of_them(text: str) -> None:
    assert '<a href="#error-MISSING">404 MISSING</a>' in content(text, "readThing")
    assert "ErrorAnswer" not in content(text, "readThing")
    assert "ELSEWHERE" not in text  # a code of that answer which no operation has
    rows = [line for line in text.splitlines() if line.startswith('<tr id="error-')]
    cells = [row.replace("<td>", "").split("</td>")[1:4] for row in rows]
    assert cells == [
        ["404", "", "Not there."],
        ["503", "yes", "Later."],
        ["410", "", "What GONE means"],
        ["410", "", "What GONE means"],
    ]
    assert text.count('{"error": {"message": "GONE"') == 1


def test_what_every_operation_has_is_told_once(text: str) -> None:
    assert text.count("Names it") == 1
    assert "No token needed." in content(text, "listErrors")
    assert "No token needed." not in content(text, "readThing")
    assert "<b>ETag</b> in header: string" in content(text, "listErrors")


def test_a_frame_links_to_its_answers(text: str) -> None:
    assert '<a href="#server.told">told</a>.' in content(text, "client.ask")


def test_values_of_a_shape_are_all_there_and_elsewhere_the_first(text: str) -> None:
    assert all(f"<code>{name}</code>" in content(text, "shape-Currency") for name in CURRENCIES)
    field = content(text, "shape-Added")
    assert "<code>C05</code>, … and 34 more" in field
    assert "C06" not in field


@pytest.mark.parametrize("discriminator", ["kind", {"propertyName": "kind", "mapping": {}}])
def test_alternatives_are_told_apart_by_a_property(discriminator: object) -> None:
    assert type_of({**EVENT, "discriminator": discriminator}) == (
        'one of, told apart by <code>kind</code>: <a href="#shape-Added">Added</a>,'
        ' <a href="#shape-Removed">Removed</a>'
    )


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "maxLength": 2000}, "string, up to 2000 characters"),
        ({"type": "string", "minLength": 8}, "string, at least 8 characters"),
        ({"type": "string", "minLength": 4, "maxLength": 4}, "string, 4 characters"),
        ({"type": "string", "pattern": "^[0-9]+$"}, "string, matching <code>^[0-9]+$</code>"),
        ({"type": "string", "format": "uuid", "pattern": "^[0-9a-f-]{36}$"}, "string (uuid)"),
        ({"type": "integer", "minimum": 1, "maximum": 25}, "integer, from 1 to 25"),
        (
            {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**53 - 1},
            "integer (int64), from 0 to 2^53 - 1",
        ),
        ({"type": "integer", "default": 0}, "integer, default <code>0</code>"),
        (
            {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
            "string, up to 5 characters, or null",
        ),
        ({"type": ["string", "null"]}, "string or null"),
        (
            {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 25},
            "list of boolean, from 1 to 25 items",
        ),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of string"),
        ({"const": None}, "<code>null</code>"),
        ({"enum": ["a", "b"]}, "<code>a</code> or <code>b</code>"),
        (
            {"type": "string", "x-extensible-enum": ["a", "b"]},
            "string, today one of <code>a</code>, <code>b</code>",
        ),
        ({}, "anything"),
    ],
)
def test_a_type_is_said_in_a_few_words(schema: Json, words: str) -> None:
    assert type_of(schema) == words


def test_of_a_long_list_only_the_beginning_is_shown() -> None:
    openapi = deepcopy(OPENAPI)
    said = {"things": [{"id": f"{number:060}"} for number in range(9)], "more": True}
    examples = {"many": {"value": said}}
    openapi["paths"]["/things/{id}"]["get"]["responses"]["200"]["content"] = {
        "application/json": {"schema": ref("Event"), "examples": examples}
    }
    lines = content(page(openapi, ASYNCAPI, STYLE), "readThing").splitlines()
    assert lines[lines.index("<pre>{") :][:9] == [
        "<pre>{",
        '  "things": [',
        *(f'    {{"id": "{number:060}"}},' for number in range(5)),
        "    … and 4 more",
        "  ],",
    ]
