"""Checks that what a hub says is what its documents say, and nothing more.

The documents leave room for fields, codes and currencies of tomorrow, as clients must; these checks
do not: a field or value that is not documented is an error.
"""

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, FormatChecker

from tests.device import Json


class Answered(Protocol):
    """A response, of whatever client. Header names are in any letter case."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def content(self) -> bytes: ...
    @property
    def text(self) -> str: ...
    def json(self) -> Any: ...


class Documented:
    """Both documents, as a hub serves them."""

    def __init__(self, openapi: Json, asyncapi: Json) -> None:
        self.openapi = openapi
        self.asyncapi = asyncapi
        self.met: set[tuple[str, str]] = set()  # operations, and the codes of errors they gave
        self._rest = _strict(openapi)
        self._socket = _strict(asyncapi)

    @property
    def operations(self) -> dict[str, tuple[str, str, Json]]:
        """By its id: method, path and description of each."""
        return {
            operation["operationId"]: (method.upper(), path, operation)
            for path, item in self.openapi["paths"].items()
            for method, operation in item.items()
        }

    def responses(self, name: str) -> dict[str, Json]:
        """Those of an operation by status, named ones resolved."""
        described = self.operations[name][2]["responses"]
        return {
            status: resolve(self.openapi, response["$ref"]) if "$ref" in response else response
            for status, response in described.items()
        }

    def codes(self, name: str) -> set[str]:
        """Of the errors that an operation may answer."""
        return set(self.operations[name][2]["x-codes"])

    def operation_of(self, method: str, url: str) -> str:
        """The id of the operation that this request asks for."""
        parts = urlsplit(url).path.split("/")
        found = [
            (template.count("{"), name)
            for name, (known, template, _) in self.operations.items()
            if known == method and _fits(template.split("/"), parts)
        ]
        return min(found)[1]

    def check_answer(self, name: str, response: Answered) -> None:
        """Raises `AssertionError` where the answer is not as documented."""
        told = f"{name} {response.status_code} {response.text[:300]}"
        documented = self.responses(name).get(str(response.status_code))
        assert documented is not None, f"undocumented status: {told}"
        for header, described in documented["headers"].items():
            if "$ref" in described:
                described = self.openapi["components"]["headers"][header]
                if not described.get("required"):
                    continue
            value = response.headers.get(header)
            assert value is not None, f"no {header}: {told}"
            _conform(value, described["schema"], self._rest, told)
        if "content" not in documented:
            assert response.content == b"", told
            return
        [(media, content)] = documented["content"].items()
        assert response.headers["Content-Type"].partition(";")[0] == media, told
        if media == "application/json":
            answer = response.json()
            _conform(answer, content["schema"], self._rest, told)
            if isinstance(answer, dict) and "error" in answer:
                assert answer["error"]["message"] in self.codes(name), told
                self.met.add((name, answer["error"]["message"]))

    def check_body(self, name: str, body: object) -> None:
        """The body of a request that was good."""
        content = self.operations[name][2]["requestBody"]["content"]["application/json"]
        _conform(body, content["schema"], self._rest, name)

    def check_frame(self, sender: str, frame: Json) -> None:
        message = self.asyncapi["components"]["messages"].get(f"{sender}.{frame['type']}")
        assert message is not None, f"undocumented frame: {frame}"
        _conform(frame, message["payload"], self._socket, str(frame)[:300])

    def check_stream(self, name: str, data: Json) -> None:
        """An event of a Server-Sent Events stream, by its `event` and `data`."""
        shape = {"events": "StreamEvents", "unsubscribed": "StreamEnd"}[name]
        _conform(data, {"$ref": f"#/components/schemas/{shape}"}, self._rest, str(data)[:300])


def _fits(template: list[str], parts: list[str]) -> bool:
    return len(template) == len(parts) and all(
        known.startswith("{") or known == part for known, part in zip(template, parts, strict=True)
    )


def _strict(document: Json) -> Json:
    """The document's schemas, where objects have no fields but the documented ones."""
    schemas = {
        name: {**schema, "additionalProperties": False}
        if "properties" in schema and "oneOf" not in schema
        else schema
        for name, schema in document["components"]["schemas"].items()
    }
    return {"components": {"schemas": closed(schemas)}}


def closed(part: Any) -> Any:
    """Without room for values of tomorrow."""
    if isinstance(part, dict):
        return {
            "enum" if key == "x-extensible-enum" else key: closed(value)
            for key, value in part.items()
        }
    return [closed(each) for each in part] if isinstance(part, list) else part


def _conform(value: object, schema: Json, document: Json, told: str) -> None:
    validator: Any = Draft202012Validator(
        {**schema, **document}, format_checker=FormatChecker(["uuid", "date"])
    )
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
    assert errors == [], f"{told}: {errors[:3]}"


def texts(document: Json, key: str) -> set[str]:
    """Every text that stands under this key in the document."""
    found: set[str] = set()

    def walk(part: object) -> None:
        if isinstance(part, dict):
            if isinstance(part.get(key), str):
                found.add(part[key])
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                walk(value)

    walk(document)
    return found


def resolve(document: Json, reference: str) -> Any:
    """What a `$ref` points to. Raises `KeyError`."""
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found
