"""The OpenAPI 3.1 document of the REST routes: made from `OPERATIONS`, the models that check
requests, and the shapes of answers."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic.alias_generators import to_camel

from api.documents import errors, frames
from api.documents.examples import Call
from api.documents.operations import JSON, OPERATIONS, Answer, Operation, Parameter
from api.documents.schemas import Json, schemas
from hub.errors import Code

ABOUT = """\
The hub's REST interface. The socket, `GET /sync`, is described in [asyncapi.json](asyncapi.json).

Ids are lower-case UUIDs (any letter case is taken), user ids are opaque text, times are epoch
milliseconds, dates `YYYY-MM-DD`. Money is a string; the hub always sends two decimals. Unknown
fields are ignored: clients should do the same. Every path that knows `GET` also knows `HEAD`, but
for `/budgets/:id/join`, which changes something.

Errors have one shape (`ErrorAnswer`). `message` is the stable code; `retryable` means undecided:
the same request may be sent again. A path that does not exist is `NOT_FOUND`, a method that a path
does not know `METHOD_NOT_ALLOWED`.\
"""


def openapi(version: str, served: Collection[tuple[str, str]], calls: Sequence[Call]) -> Json:
    """`served` are the methods and paths that this hub has, as Starlette names them: what another
    identity would have is left out. `calls` become the examples."""
    operations = [op for op in OPERATIONS if (op.method, op.path) in served]
    made, definitions = schemas(_types(operations))
    paths: dict[str, Json] = {}
    for op in operations:
        item = paths.setdefault(openapi_path(op.path), {})
        item[op.method.lower()] = _operation(op, made, [c for c in calls if c.operation == op.name])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Budget Hub",
            "version": version,
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(op.tag for op in operations)],
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Of `/auth/*`, or of the hub's other identity",
                },
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "Only where the hub was given API keys",
                },
            },
            "headers": {
                "X-Request-Id": {
                    "description": "The request's own, or made by the hub; it stands in the log",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
                },
                "Retry-After": {
                    "description": "Seconds until it is worth asking again",
                    "schema": {"type": "integer", "minimum": 0},
                },
            },
            "parameters": {
                "X-Request-Id": {
                    "name": "X-Request-Id",
                    "in": "header",
                    "description": "Names the request in the hub's log, and its events to who gets"
                    " them live: up to 64 of `A-Za-z0-9._-`",
                    "schema": {"type": "string"},
                },
            },
        },
    }


def openapi_path(path: str) -> str:
    """As clients know it: `/profiles/{user_id:opaque}` is `/profiles/{userId}`."""
    return re.sub(r"{(\w+)(:\w+)?}", lambda name: f"{{{to_camel(name[1])}}}", path)


def _types(operations: Iterable[Operation]) -> dict[str, Any]:
    types: dict[str, Any] = {
        "error": errors.ErrorAnswer,
        # What a stream's data is; OpenAPI 3.1 has no way to say so but in words.
        "stream": frames.StreamEvents,
        "end": frames.StreamEnd,
    }
    for op in operations:
        if op.body is not None:
            types[f"{op.name} body"] = op.body
        for parameter in op.parameters:
            types[f"{op.name} {parameter.name}"] = parameter.type
        for status, answer in op.answers.items():
            if answer.type is not None:
                types[f"{op.name} {status}"] = answer.type
    return types


def _operation(op: Operation, made: Mapping[str, Json], calls: Sequence[Call]) -> Json:
    described: Json = {"operationId": op.name, "summary": op.summary, "tags": [op.tag]}
    if op.description:
        described["description"] = op.description
    described["parameters"] = [
        *(_parameter(p, made[f"{op.name} {p.name}"]) for p in op.parameters),
        {"$ref": "#/components/parameters/X-Request-Id"},
    ]
    if op.body is not None:
        content: Json = {"schema": made[f"{op.name} body"]}
        sent = {call.title: {"value": call.body} for call in calls if call.status < 400}
        if sent:
            content["examples"] = sent
        described["requestBody"] = {"required": True, "content": {JSON: content}}
    described["responses"] = _responses(op, made, calls)
    signed_in: Json = {"token": []} if op.token else {}
    described["security"] = [signed_in, {**signed_in, "apiKey": []}] if op.guarded else []
    return described


def _parameter(parameter: Parameter, schema: Json) -> Json:
    described: Json = {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.description,
        "schema": schema,
    }
    if parameter.default is not None:
        described["schema"] = {**schema, "default": parameter.default}
    if parameter.required or parameter.where == "path":
        described["required"] = True
    return described


def _responses(op: Operation, made: Mapping[str, Json], calls: Sequence[Call]) -> Json:
    responses: Json = {}
    for status, answer in op.answers.items():
        responses[str(status)] = _answer(op, status, answer, made, calls)
    by_status: dict[int, list[Code]] = {}
    for code in op.all_errors():
        by_status.setdefault(code.status, []).append(code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = _error(codes, [call for call in calls if call.status == status])
    return responses


def _answer(
    op: Operation, status: int, answer: Answer, made: Mapping[str, Json], calls: Sequence[Call]
) -> Json:
    headers = {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in op.headers.items()
    }
    response: Json = {
        "description": answer.description,
        "headers": {"X-Request-Id": _REQUEST_ID, **headers},
    }
    if answer.type is not None:
        content: Json = {"schema": made[f"{op.name} {status}"]}
        examples = {c.title: {"value": c.answer} for c in calls if c.status == status and c.answer}
        if examples:
            content["examples"] = examples
        response["content"] = {answer.media: content}
    return response


def _error(codes: Sequence[Code], calls: Sequence[Call]) -> Json:
    headers: Json = {"X-Request-Id": _REQUEST_ID}
    if Code.RATE_LIMITED in codes:
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    narrowed = {
        "properties": {"error": {"properties": {"message": {"enum": [c.name for c in codes]}}}}
    }
    content: Json = {"schema": {"allOf": [{"$ref": "#/components/schemas/ErrorAnswer"}, narrowed]}}
    examples = {call.title: {"value": call.answer} for call in calls}
    if examples:
        content["examples"] = examples
    return {
        "description": f"{HTTPStatus(codes[0].status).phrase}. "
        + " ".join(f"`{code.name}`: {code.meaning}" for code in codes),
        "headers": headers,
        "content": {JSON: content},
    }


_REQUEST_ID = {"$ref": "#/components/headers/X-Request-Id"}
