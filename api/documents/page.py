"""Both documents as one page for people: plain HTML without scripts, made to be read on a phone.

`page.html` says what stands where. The id of a box is on its content, not on the box: a browser
opens a closed `<details>` for a link to something inside it, and only for that.
"""

import html
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from api.documents.schemas import Json, resolved

_VALUES_SHOWN = 6  # of an enumeration, where it is not the shape itself
_ITEMS_SHOWN = 5  # of a list in an example
_LINE = 76  # of an example
_WHOLE_MAX = 2**53 - 1
_OPEN_ENUM = "x-extensible-enum"


class _Operation(NamedTuple):
    method: str
    path: str
    described: Json
    parameters: Sequence[Json]  # without those that every operation has
    answers: Sequence[tuple[str, Json]]  # by status
    errors: Sequence[tuple[str, Sequence[str]]]  # codes by status


class _Error(NamedTuple):
    code: str
    status: str
    retryable: str
    meaning: str


def page(openapi: Json, asyncapi: Json, style: str) -> str:
    """`style` is CSS; it may not hold `</`."""
    schemas = {**asyncapi["components"]["schemas"], **openapi["components"]["schemas"]}
    operations = list(_operations(openapi))
    return _ENVIRONMENT.get_template("page.html").render(
        style=Markup(style),
        openapi=openapi,
        asyncapi=asyncapi,
        files=[path[1:] for path in openapi["paths"] if path.endswith(".json")],
        tags=[
            (tag["name"], [op for op in operations if tag["name"] in op.described["tags"]])
            for tag in openapi["tags"]
        ],
        everywhere=_everywhere(openapi),
        errors=list(_errors(openapi, operations)),
        error_examples=list(_error_examples(openapi)),
        frames=[
            (title, list(_frames(asyncapi, sender)))
            for sender, title in (("client", "From the client"), ("server", "From the server"))
        ],
        shapes=sorted(schemas.items()),
    )


def _operations(openapi: Json) -> Iterator[_Operation]:
    everywhere = _everywhere(openapi)
    for path, item in openapi["paths"].items():
        for method, operation in item.items():
            answers = [
                (status, resolved(openapi, answer))
                for status, answer in operation["responses"].items()
            ]
            parameters = (resolved(openapi, part) for part in operation.get("parameters", []))
            yield _Operation(
                method.upper(),
                path,
                operation,
                [parameter for parameter in parameters if parameter not in everywhere],
                [answer for answer in answers if "x-codes" not in answer[1]],
                [
                    (status, [code for code in answer["x-codes"] if code in operation["x-codes"]])
                    for status, answer in answers
                    if "x-codes" in answer
                ],
            )


def _everywhere(openapi: Json) -> list[Json]:
    """The parameters that every operation has. They are shown once."""
    asked = [op.get("parameters", []) for item in openapi["paths"].values() for op in item.values()]
    return [resolved(openapi, part) for part in asked[0] if all(part in each for each in asked)]


def _errors(openapi: Json, operations: Sequence[_Operation]) -> Iterator[_Error]:
    """The whole table, which the document has as an answer's example; after it, what only the named
    answers know."""
    told = set()
    answers = (answer for operation in operations for _, answer in operation.answers)
    tables = (value["errors"] for value in _examples(answers) if "errors" in value)
    for row in next(tables, []):
        told.add(row["message"])
        retryable = "yes" if row["retryable"] else ""
        yield _Error(row["message"], str(row["statusCode"]), retryable, row["detail"])
    meanings = {code: each["description"] for each in _named(openapi) for code in each["x-codes"]}
    for operation in operations:
        for status, codes in operation.errors:
            for code in codes:
                if code not in told:
                    told.add(code)
                    yield _Error(code, status, "", meanings[code])


def _error_examples(openapi: Json) -> Iterator[Markup]:
    """Of each code the one that the named answers have."""
    values = _examples(_named(openapi))
    return (_text(json.dumps(value, ensure_ascii=False)) for value in values)


def _named(openapi: Json) -> list[Json]:
    """The errors among the named answers."""
    answers = openapi["components"].get("responses", {}).values()
    return [answer for answer in answers if "x-codes" in answer]


def _examples(answers: Iterable[Json]) -> Iterator[Json]:
    """Those in JSON."""
    for answer in answers:
        content = answer.get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            yield example["value"]


def _frames(asyncapi: Json, sender: str) -> Iterator[tuple[str, Json, list[str]]]:
    """Key and message, and the keys of the messages that answer it."""
    for key, message in asyncapi["components"]["messages"].items():
        if key.startswith(f"{sender}."):
            replies = asyncapi["operations"][key].get("reply", {}).get("messages", [])
            yield key, message, [_name(reply["$ref"]) for reply in replies]


def _type(schema: Json, whole: bool = False) -> Markup:
    """A schema in a few words; `whole` with all of its values, however many."""
    default = Markup(", default ") + _code(schema["default"]) if "default" in schema else ""
    return _kind(schema, whole) + default


def _kind(schema: Json, whole: bool) -> Markup:
    if "$ref" in schema:
        return Markup('<a href="#shape-{0}">{0}</a>').format(_name(schema["$ref"]))
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return _values(schema["enum"], whole, " or ")
    if _OPEN_ENUM in schema:
        return Markup("string, today one of ") + _values(schema[_OPEN_ENUM], whole, ", ")
    for several, word in (("allOf", " and "), ("anyOf", " or "), ("oneOf", " or ")):
        if several in schema:
            parts = [_type(part) for part in schema[several]]
            if "discriminator" in schema:
                return _told_apart(schema["discriminator"]) + Markup(", ").join(parts)
            comma = "," if any(", " in part for part in parts) else ""
            return Markup(comma + word).join(parts)
    kinds = schema.get("type", "anything")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return Markup(" or ").join(_plain(kind, schema) for kind in kinds)


def _told_apart(discriminator: Json | str) -> Markup:
    """An object in OpenAPI, the property's name in AsyncAPI."""
    name = discriminator if isinstance(discriminator, str) else discriminator["propertyName"]
    return Markup("one of, told apart by <code>{}</code>: ").format(name)


def _plain(kind: str, schema: Json) -> Markup:
    if kind == "array":
        many = _bounds(schema, "minItems", "maxItems", " items")
        return Markup("list of {}{}").format(_type(schema.get("items", {})), many)
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return Markup("object of {}").format(_type(schema["additionalProperties"]))
    if kind in ("integer", "number"):
        form = f" ({schema['format']})" if "format" in schema else ""
        return escape(f"{kind}{form}{_bounds(schema, 'minimum', 'maximum', '')}")
    if kind == "string" and "format" in schema:  # which says what its pattern says
        return escape(f"string ({schema['format']})")
    if kind == "string":
        length = _bounds(schema, "minLength", "maxLength", " characters")
        pattern = Markup(", matching <code>{}</code>").format(schema.get("pattern"))
        return escape(f"string{length}") + (pattern if "pattern" in schema else "")
    return escape(kind)


def _bounds(schema: Json, least: str, most: str, unit: str) -> str:
    """With a comma before it: `, from 1 to 25 items`."""
    low, high = schema.get(least), schema.get(most)
    high = "2^53 - 1" if high == _WHOLE_MAX else high
    match low, high:
        case None, None:
            return ""
        case None, _:
            return f", up to {high}{unit}"
        case _, None:
            return f", at least {low}{unit}"
    return f", {low}{unit}" if low == high else f", from {low} to {high}{unit}"


def _values(values: Sequence[object], whole: bool, between: str) -> Markup:
    shown = values if whole or len(values) <= _VALUES_SHOWN + 1 else values[:_VALUES_SHOWN]
    more = f", … and {len(values) - len(shown)} more"
    text = Markup(between).join(_code(value) for value in shown)
    return text + (more if len(shown) < len(values) else "")


def _code(value: object) -> Markup:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Markup("<code>{}</code>").format(text)


def _name(ref: str) -> str:
    return ref.rpartition("/")[2]


def _example(value: object) -> Markup:
    return _text(value.strip() if isinstance(value, str) else _json(value, ""))


def _json(value: object, indent: str) -> str:
    """What fits in a line stands in one. Of a long list only the beginning is shown."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent + line) <= _LINE or not isinstance(value, dict | list):
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_json(part, inner)}" for key, part in value.items()]
        opened, closed = "{", "}"
    else:
        parts = [_json(part, inner) for part in value[:_ITEMS_SHOWN]]
        if len(value) > len(parts):
            parts.append(f"… and {len(value) - len(parts)} more")
        opened, closed = "[", "]"
    return f"{opened}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{closed}"


def _text(text: str) -> Markup:
    """Content of an element, where quotes may stand as they are."""
    return Markup(html.escape(text, quote=False))


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).disable("image")


def _prose(text: str) -> Markup:
    return Markup(_MARKDOWN.render(text).rstrip())


def _line(text: str) -> Markup:
    return Markup(_MARKDOWN.renderInline(text))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters.update(type=_type, prose=_prose, line=_line, example=_example)
