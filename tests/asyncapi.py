"""What AsyncAPI 3.0.0 allows, as far as our document goes: written from its specification. What
stands in a document and is not here is an error, but for extensions (`x-…`)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]  # of whatever stands in a map


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_extensions(cls, said: object) -> object:
        if isinstance(said, Mapping):
            return {key: value for key, value in said.items() if not key.startswith("x-")}
        return said


class Reference(_Object):
    ref: Annotated[str, Field(alias="$ref", pattern="^#/")]


class License(_Object):
    name: str


class Info(_Object):
    title: str
    version: str
    description: str | None = None
    license: License | None = None


class ServerVariable(_Object):
    default: str
    description: str | None = None


class Server(_Object):
    host: str
    protocol: str
    description: str | None = None
    variables: dict[Name, ServerVariable] = {}
    security: list[Reference] = []


class WebSocketBinding(_Object):
    """The channel binding of `ws`, version 0.1.0; `query` and `headers` are schemas of objects."""

    bindingVersion: Literal["0.1.0"]
    method: Literal["GET", "POST"]
    query: dict[str, Any]
    headers: dict[str, Any]


class Bindings(_Object):
    ws: WebSocketBinding


class Channel(_Object):
    address: str
    title: str | None = None
    messages: dict[Name, Reference]
    bindings: Bindings


class Reply(_Object):
    channel: Reference
    messages: list[Reference]


class Operation(_Object):
    action: Literal["send", "receive"]
    channel: Reference
    messages: list[Reference]
    reply: Reply | None = None


class Example(_Object):
    summary: str
    payload: dict[str, Any]


class Message(_Object):
    """`payload` is a JSON Schema."""

    name: str
    title: str
    summary: str | None = None
    payload: dict[str, Any]
    examples: list[Example] = []


class HttpSecurity(_Object):
    type: Literal["http"]
    scheme: str


class Components(_Object):
    messages: dict[Name, Message]
    schemas: dict[Name, dict[str, Any]]
    securitySchemes: dict[Name, HttpSecurity]


class AsyncApi(_Object):
    asyncapi: Literal["3.0.0"]
    info: Info
    defaultContentType: str
    servers: dict[Name, Server]
    channels: dict[Name, Channel]
    operations: dict[Name, Operation]
    components: Components
