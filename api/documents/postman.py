"""The REST routes as a Postman collection (v2.1.0), made from the OpenAPI document alone.

Its variables hold what requests share: the token, which signing in stores, and the ids of paths,
which at first are those of the examples. A request works as it is where what it names exists:
register first, then create a budget, then submit events.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from api.documents.schemas import Json, resolved

_SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
_BASE_URL = "http://127.0.0.1:8000"
_JSON = "application/json"
_STREAM = "text/event-stream"
_TOKENS = ("token", "refreshToken")
_ENDLESS = (
    "**The answer has no end**: Postman shows events as they come. Leave this request out of a run"
    " of the collection."
)


class _Operation(NamedTuple):
    openapi: Json
    method: str
    path: str
    described: Json
    ids: Mapping[str, str]  # of all paths, and what each is at first

    def parameters(self, where: str) -> list[Json]:
        found = (resolved(self.openapi, each) for each in self.described.get("parameters", []))
        return [parameter for parameter in found if parameter["in"] == where]

    def answers(self) -> list[tuple[str, Json]]:
        responses = self.described["responses"].items()
        return [(status, resolved(self.openapi, response)) for status, response in responses]

    def asks_for(self, kind: str) -> list[Json]:
        """Schemes of this kind that the operation knows."""
        schemes = self.openapi["components"]["securitySchemes"]
        names = {name: None for each in self.described["security"] for name in each}
        return [schemes[name] for name in names if schemes[name]["type"] == kind]

    def bodies(self) -> Json:
        """Examples of what is sent, by title."""
        content = self.described.get("requestBody", {}).get("content", {}).get(_JSON, {})
        return {title: each["value"] for title, each in content.get("examples", {}).items()}


def postman(openapi: Json) -> Json:
    ids = _ids(openapi)
    operations = [
        _Operation(openapi, method.upper(), path, described, ids)
        for path, item in openapi["paths"].items()
        for method, described in item.items()
    ]
    variables = {"baseUrl": _BASE_URL, **dict.fromkeys((*_TOKENS, "apiKey"), ""), **ids}
    return {
        "info": {
            "name": openapi["info"]["title"],
            "description": openapi["info"]["description"],
            "version": openapi["info"]["version"],
            "schema": _SCHEMA,
        },
        "auth": {
            "type": "bearer",
            "bearer": [{"key": "token", "value": "{{token}}", "type": "string"}],
        },
        "variable": [{"key": key, "value": value} for key, value in variables.items()],
        "item": [
            {
                "name": tag["name"],
                "item": [_item(op) for op in operations if tag["name"] in op.described["tags"]],
            }
            for tag in openapi["tags"]
        ],
    }


def _ids(openapi: Json) -> dict[str, str]:
    """The names in paths. Each is what an example says of what stands at the end of its path."""
    ids: dict[str, str] = {}
    for path, item in openapi["paths"].items():
        for name in re.findall(r"{(\w+)}", path):
            ids.setdefault(name, "")
            if not ids[name] and path.endswith(f"{{{name}}}"):
                for operation in item.values():
                    for answer in _examples(operation):
                        ids[name] = ids[name] or answer.get("id") or answer.get(name) or ""
    return ids


def _examples(operation: Json) -> Iterator[Json]:
    """What success answers, in JSON."""
    for status, response in operation["responses"].items():
        if status < "300":
            content = response.get("content", {}).get(_JSON, {})
            for example in content.get("examples", {}).values():
                yield example["value"]


def _item(op: _Operation) -> Json:
    item: Json = {
        "name": op.described["summary"].replace("`", ""),
        "id": op.described["operationId"],
        "request": _request(op, next(iter(op.bodies().values()), None)),
    }
    if kept := _kept(op):
        script = {"type": "text/javascript", "exec": _keep(kept)}
        item["event"] = [{"listen": "test", "script": script}]
    return item


def _request(op: _Operation, body: Any) -> Json:
    described = [op.described.get("description", "")]
    if any(_STREAM in answer.get("content", {}) for _, answer in op.answers()):
        described.append(_ENDLESS)
    request: Json = {
        "method": op.method,
        "description": "\n\n".join(filter(None, described)),
        "header": _headers(op, body),
        "url": _url(op),
    }
    if not op.asks_for("http"):
        request["auth"] = {"type": "noauth"}
    if body is not None:
        request["body"] = {
            "mode": "raw",
            "raw": _filled(json.dumps(body, ensure_ascii=False, indent=2), op.ids),
            "options": {"raw": {"language": "json"}},
        }
    return request


def _filled(body: str, ids: Mapping[str, str]) -> str:
    """With variables for what requests share, so that another budget takes one changed variable;
    and with a new id for each event, since a known one is answered as what it named first."""
    for name, value in ids.items():
        if value:
            body = body.replace(json.dumps(value), f'"{{{{{name}}}}}"')
    body = re.sub(r'"refreshToken": "[^"]*"', '"refreshToken": "{{refreshToken}}"', body)
    return re.sub(r'"eventId": "[^"]*"', '"eventId": "{{$guid}}"', body)


def _headers(op: _Operation, body: Any) -> list[Json]:
    headers: list[Json] = [] if body is None else [{"key": "Content-Type", "value": _JSON}]
    headers += [_field(op, parameter) for parameter in op.parameters("header")]
    headers += [
        {
            "key": scheme["name"],
            "value": "{{apiKey}}",
            "description": scheme.get("description", ""),
            "disabled": True,
        }
        for scheme in op.asks_for("apiKey")
    ]
    return headers


def _url(op: _Operation) -> Json:
    path = re.sub(r"{(\w+)}", r":\1", op.path)
    query = [_field(op, parameter) for parameter in op.parameters("query")]
    sent = "&".join(f"{each['key']}={each['value']}" for each in query if "disabled" not in each)
    url: Json = {
        "raw": f"{{{{baseUrl}}}}{path}{'?' if sent else ''}{sent}",
        "host": ["{{baseUrl}}"],
        "path": path[1:].split("/"),
    }
    if query:
        url["query"] = query
    variables = [_field(op, parameter) for parameter in op.parameters("path")]
    if variables:
        url["variable"] = variables
    return url


def _field(op: _Operation, parameter: Json) -> Json:
    """A header, or a variable or query parameter of an URL."""
    name = parameter["name"]
    field = {
        "key": name,
        "value": f"{{{{{name}}}}}" if name in op.ids else _value(op.openapi, parameter["schema"]),
        "description": parameter.get("description", ""),
    }
    return field if parameter.get("required") else {**field, "disabled": True}


def _value(openapi: Json, schema: Json) -> str:
    """Something that the schema allows, where it is easy to say."""
    schema = resolved(openapi, schema)
    values = schema.get("enum") or schema.get("x-extensible-enum") or [schema.get("minimum", "")]
    return str(schema.get("default", values[0]))


def _kept(op: _Operation) -> list[str]:
    """What of the answer is stored: tokens, and ids that the hub made."""
    kept: list[str] = []
    for status, answer in op.answers():
        schema = answer.get("content", {}).get(_JSON, {}).get("schema", {})
        fields = resolved(op.openapi, schema).get("properties", {})
        if status < "300" and all(name in fields for name in _TOKENS):
            kept += _TOKENS
    if op.method == "POST":
        sent = json.dumps(list(op.bodies().values()))
        for answer in _examples(op.described):
            kept += [
                name
                for name in op.ids
                if name in answer and f"{{{name}}}" not in op.path and answer[name] not in sent
            ]
    return list(dict.fromkeys(kept))


def _keep(names: Sequence[str]) -> list[str]:
    return [
        "if (pm.response.code < 300) {",
        "    const answer = pm.response.json();",
        *(f'    pm.collectionVariables.set("{name}", answer.{name});' for name in names),
        "}",
    ]
