"""The OpenAPI 3.1 document of the REST routes: made from `OPERATIONS`, the models that check
requests, and the shapes of answers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic.alias_generators import to_camel

from api.documents.examples import Call
from api.documents.operation import JSON, TAGS, Operation, Parameter
from api.documents.operations import OPERATIONS
from api.documents.schemas import Json, schemas
from api.http.errors import ErrorAnswer
from api.rest.core.followers import StreamEnd
from hub.errors import Code
from hub.frames.events import StreamEvents

ABOUT = """\
The hub's REST interface. The socket, `GET /sync`, is described in [asyncapi.json](asyncapi.json).

Ids are lower-case UUIDs (any letter case is taken), user ids are opaque text, times are epoch
milliseconds, dates `YYYY-MM-DD`. Money is a string; the hub always sends two decimals. Unknown
fields are ignored: clients should do the same. Every path that knows `GET` also knows `HEAD`, but
for `/budgets/:id/join`, which changes something.

Errors have one shape (`ErrorAnswer`). `message` is the stable code; `retryable` means undecided:
the same request may be sent again. A path that does not exist is `NOT_FOUND`, a method that a path
does not know `METHOD_NOT_ALLOWED`, a head that is too large `HEAD_TOO_LARGE`, a request that does
not arrive in time `REQUEST_TIMEOUT`. All codes stand in `GET /errors`.

Codes, currencies, roles and types of events may become more (`x-extensible-enum`): a client should
expect others than those it knows.\
"""


def openapi(version: str, calls: Sequence[Call]) -> Json:
    """`calls` become the examples."""
    made, definitions = schemas(_types(OPERATIONS))
    paths: dict[str, Json] = {}
    for op in OPERATIONS:
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
        "tags": [{"name": tag.name, "description": tag.about} for tag in TAGS.values()],
        "paths": paths,
        "components": {
            "schemas": definitions,
            "responses": {
                name: _refusal(codes, calls) for name, codes in _by_name(OPERATIONS).items()
            },
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
                    "schema": {"type": "integer", "format": "int32", "minimum": 0},
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
        "error": ErrorAnswer,
        # What a stream's data is; OpenAPI 3.1 has no way to say so but in words.
        "stream": StreamEvents,
        "end": StreamEnd,
    }
    for op in operations:
        if op.body is not None:
            types[f"{op.name} body"] = op.body
        for parameter in op.all_parameters:
            types[f"{op.name} {parameter.name}"] = parameter.type
        for status, shape in op.shapes().items():
            types[f"{op.name} {status}"] = shape
    return types


def _operation(op: Operation, made: Mapping[str, Json], calls: Sequence[Call]) -> Json:
    described: Json = {"operationId": op.name, "summary": op.summary, "tags": [op.tag.name]}
    if op.description:
        described["description"] = op.description
    described["parameters"] = [
        *(_parameter(p, made[f"{op.name} {p.name}"]) for p in op.all_parameters),
        {"$ref": "#/components/parameters/X-Request-Id"},
    ]
    if op.body is not None:
        content: Json = {"schema": made[f"{op.name} body"]}
        sent = {call.title: {"value": call.body} for call in calls if call.status < 400}
        if sent:
            content["examples"] = sent
        described["requestBody"] = {"required": True, "content": {JSON: content}}
    described["responses"] = _responses(op, made, calls)
    described["x-codes"] = [code.name for code in op.all_errors()]
    signed_in: Json = {"token": []} if op.needs == "user" else {}
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
    for status in op.answers:
        schema = made.get(f"{op.name} {status}")
        responses[str(status)] = _answer(
            op, status, schema, [c for c in calls if c.status == status]
        )
    for name, codes in _by_name([op]).items():
        responses[str(codes[0].status)] = {
            "$ref": f"#/components/responses/{name}",
            "description": _meanings(codes),
        }
    return responses


def _answer(op: Operation, status: int, schema: Json | None, calls: Sequence[Call]) -> Json:
    headers = {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in op.headers.items()
    }
    response: Json = {
        "description": op.answers[status],
        "headers": {"X-Request-Id": _REQUEST_ID, **headers},
    }
    if schema is not None:
        content: Json = {"schema": schema}
        examples = {call.title: {"value": call.answer} for call in calls if call.answer}
        if examples:
            content["examples"] = examples
        response["content"] = {op.media: content}
    return response


# Named as HTTP names the statuses (RFC 9110); `http.HTTPStatus` has other words in other Pythons.
NAMES = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Gone",
    413: "ContentTooLarge",
    429: "TooManyRequests",
    500: "InternalServerError",
    503: "ServiceUnavailable",
}


def _by_name(operations: Iterable[Operation]) -> dict[str, list[Code]]:
    """The errors of these operations, those of each status together."""
    codes = {code for op in operations for code in op.all_errors()}
    found: dict[str, list[Code]] = {}
    for code in sorted(filter(codes.__contains__, Code), key=lambda code: code.status):
        found.setdefault(NAMES[code.status], []).append(code)
    return found


def _meanings(codes: Sequence[Code]) -> str:
    return " ".join(f"`{code.name}`: {code.meaning}" for code in codes)


def _refusal(codes: Sequence[Code], calls: Sequence[Call]) -> Json:
    """The error answer with one of these codes. All have one schema: a client that was made from
    the document must be able to read a code that is younger than itself."""
    headers: Json = {"X-Request-Id": _REQUEST_ID}
    if Code.RATE_LIMITED in codes:
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    content: Json = {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}
    examples: Json = {}
    for call in calls:
        if call.status == codes[0].status and isinstance(call.answer, dict):
            code = call.answer.get("error", {}).get("message")
            if code in [each.name for each in codes]:
                examples.setdefault(code, {"summary": call.title, "value": call.answer})
    if examples:
        content["examples"] = examples
    return {
        "description": _meanings(codes),
        "headers": headers,
        "content": {JSON: content},
        "x-codes": [code.name for code in codes],
    }


_REQUEST_ID = {"$ref": "#/components/headers/X-Request-Id"}
