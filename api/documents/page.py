"""Both documents as one page for people: plain HTML without scripts, made to be read on a phone."""

import re
from collections.abc import Iterator, Mapping
from html import escape

import orjson

from api.documents.schemas import Json

_NAVIGATION = (
    '<nav><a href="#rest">REST</a><a href="#socket">Socket</a><a href="#shapes">Shapes</a>'
    '<a href="openapi.json">openapi.json</a><a href="asyncapi.json">asyncapi.json</a></nav>'
)


def page(openapi: Json, asyncapi: Json, style: str) -> str:
    """`style` is CSS; it may not hold `</`."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(openapi['info']['title'])}</title><style>{style}</style></head><body>",
            f"<h1>{escape(openapi['info']['title'])}</h1>",
            f'<p class="faint">Version {escape(openapi["info"]["version"])}</p>',
            _NAVIGATION,
            '<h2 id="rest">REST</h2>',
            _prose(openapi["info"]["description"]),
            *_rest(openapi),
            '<h2 id="socket">Socket</h2>',
            _prose(asyncapi["info"]["description"]),
            *_socket(asyncapi),
            '<h2 id="shapes">Shapes</h2>',
            *_shapes({**asyncapi["components"]["schemas"], **openapi["components"]["schemas"]}),
            "</body></html>",
        ]
    )


def _rest(document: Json) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h3>{escape(tag['name'])}</h3>"
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(method.upper(), path, operation)


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f'<details id="{escape(operation["operationId"])}"><summary>'
    yield f"<b>{method} {escape(path)}</b><br>{_inline(operation['summary'])}</summary>"
    yield _prose(operation.get("description", ""))
    if not any("token" in scheme for scheme in operation["security"]):
        yield "<p>No token needed.</p>"
    parameters = [parameter for parameter in operation["parameters"] if "name" in parameter]
    if parameters:
        yield "<h4>Parameters</h4><dl>"
        for parameter in parameters:
            needed = ", required" if parameter.get("required") else ""
            yield f"<dt><b>{escape(parameter['name'])}</b> in {parameter['in']}{needed}: "
            yield f"{_type(parameter['schema'])}</dt><dd>{_inline(parameter['description'])}</dd>"
        yield "</dl>"
    if "requestBody" in operation:
        yield "<h4>Body</h4>"
        yield from _content(operation["requestBody"]["content"])
    for status, response in operation["responses"].items():
        yield f"<h4>{status}</h4>{_prose(response['description'])}"
        yield from _content(response.get("content", {}))
    yield "</details>"


def _content(content: Mapping[str, Json]) -> Iterator[str]:
    for media, described in content.items():
        yield f'<p class="faint">{escape(media)}: {_type(described["schema"])}</p>'
        for title, example in described.get("examples", {}).items():
            yield from _example(title, example["value"])


def _socket(document: Json) -> Iterator[str]:
    for sender, title in (("client", "From the client"), ("server", "From the server")):
        yield f"<h3>{title}</h3>"
        for key, message in document["components"]["messages"].items():
            if not key.startswith(f"{sender}."):
                continue
            yield f'<details id="{escape(key)}"><summary><b>{escape(message["name"])}</b>'
            yield f"<br>{_inline(message.get('summary', ''))}</summary>"
            yield f"<p>{_type(message['payload'])}</p>"
            reply = document["operations"][key].get("reply", {"messages": []})
            if reply["messages"]:
                names = [ref["$ref"].rpartition("/")[2] for ref in reply["messages"]]
                links = (f'<a href="#{n}">{n.removeprefix("server.")}</a>' for n in names)
                yield f"<p>Answered by {' or '.join(links)}.</p>"
            for example in message.get("examples", []):
                yield from _example(example["summary"], example["payload"])
            yield "</details>"


def _example(title: str, value: object) -> Iterator[str]:
    text = (
        value
        if isinstance(value, str)
        else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    )
    yield f"<details><summary>{_inline(title)}</summary><pre>{escape(text)}</pre></details>"


def _shapes(schemas: Mapping[str, Json]) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        yield f'<details id="shape-{escape(name)}"><summary><b>{escape(name)}</b></summary>'
        yield _prose(schema.get("description", ""))
        if "properties" in schema:
            yield "<dl>"
            for field, described in schema["properties"].items():
                absent = "" if field in schema.get("required", []) else ", may be absent"
                yield f"<dt><b>{escape(field)}</b>{absent}: {_type(described)}</dt>"
                yield f"<dd>{_inline(described.get('description', ''))}</dd>"
            yield "</dl>"
        else:
            yield f"<p>{_type(schema)}</p>"
        yield "</details>"


def _type(schema: Json) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#shape-{name}">{name}</a>'
    if "allOf" in schema:  # of errors: the shape, and which codes
        return _type(schema["allOf"][0])
    for either in ("anyOf", "oneOf"):
        if either in schema:
            return " or ".join(_type(part) for part in schema[either])
    if "const" in schema:
        return f"<code>{escape(orjson.dumps(schema['const']).decode())}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    kind: str = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema['items'])}{_bounds(schema, 'minItems', 'maxItems')}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    if "format" in schema:
        return f"{kind} ({escape(schema['format'])})"
    bounds = _bounds(schema, "minimum", "maximum") or _bounds(schema, "minLength", "maxLength")
    default = (
        f", default <code>{escape(str(schema['default']))}</code>" if "default" in schema else ""
    )
    return f"{kind}{bounds}{default}"


def _bounds(schema: Json, least: str, most: str) -> str:
    bounds = [
        f"{word} {schema[name]}" for word, name in (("from", least), ("to", most)) if name in schema
    ]
    return f" {' '.join(bounds)}" if bounds else ""


def _prose(text: str) -> str:
    """Paragraphs and lists of the little Markdown that the documents are written in."""
    parts = []
    for part in filter(None, text.split("\n\n")):
        if part.startswith("- "):
            items = (f"<li>{_inline(line[2:])}</li>" for line in part.split("\n"))
            parts.append(f"<ul>{''.join(items)}</ul>")
        else:
            parts.append(f"<p>{_inline(part)}</p>")
    return "".join(parts)


def _inline(text: str) -> str:
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\[([^\]]+)\]\(([\w./-]+)\)", r'<a href="\2">\1</a>', code)
