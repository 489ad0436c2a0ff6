"""The AsyncAPI 3 document of the socket, `budget.sync.v2`: made from the models that check client
frames, and the shapes of server frames."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union

from pydantic import Field
from typing_extensions import TypeAliasType

from api.documents.examples import Sent
from api.documents.requests import Events
from api.documents.schemas import Json, schemas
from hub.budget.scalars import Uuid, Whole
from hub.errors import Code
from hub.frames import client, server
from hub.frames.events import StreamEvents
from hub.frames.websocket import PROTOCOL

ABOUT = """\
The hub's live interface: one WebSocket at `/sync`, subprotocol `budget.sync.v2`, JSON text frames
of at most 256 KiB in either direction. REST is described in [openapi.json](openapi.json).

Signing in, by the first of these that is there: the header `Authorization: Bearer <token>` (a bad
one is answered 401, before the upgrade); a subprotocol entry `bearer.<token>`, for browsers (a bad
one opens and closes 4401; the entry is never echoed); else the first frame must be `auth`, within
5 s. A token never stands in a URL.

A client frame may have an `id`, which its answer repeats. `subscribed` comes before the budget's
events; subscribing again replaces the subscription; `results` and `events` have no mutual order. A
subscriber gets its own events too. A `key` above the head is `CURSOR_AHEAD`; a `logId` other than
the one a client knows is another history: in both cases it takes a snapshot.\
"""


class Direction(NamedTuple):
    shape: Any
    answers: Sequence[str] = ()  # server frames that answer this client frame


CLIENT: Mapping[str, Direction] = {
    "auth": Direction(client.Auth, ("welcome", "auth", "error")),
    "subscribe": Direction(client.Subscribe, ("subscribed", "error")),
    "unsubscribe": Direction(client.Unsubscribe, ("unsubscribed", "error")),
    "events": Direction(Events, ("results", "error")),
    "ping": Direction(client.Ping, ("pong", "error")),
}
SERVER: Mapping[str, Any] = {
    "welcome": server.Welcome,
    "auth": server.SignedIn,
    "auth.expiring": server.AuthExpiring,
    "subscribed": server.Subscribed,
    "events": StreamEvents,
    "results": server.Results,
    "unsubscribed": server.Unsubscribed,
    "presence": server.Presence,
    "heads": server.Heads,
    "goaway": server.GoAway,
    "error": server.Refused,
    "pong": server.Pong,
}

# mypy cannot know unions made of values.
_Client: Any = Union[tuple(frame.shape for frame in CLIENT.values())]  # noqa: UP007
_Server: Any = Union[tuple(SERVER.values())]  # noqa: UP007
ClientFrame = TypeAliasType(
    "ClientFrame",
    Annotated[_Client, Field(discriminator="type", description="Any frame that a client sends.")],
)
ServerFrame = TypeAliasType(
    "ServerFrame",
    Annotated[_Server, Field(discriminator="type", description="Any frame that the hub sends.")],
)

# What a client should do when the connection ends. What a code of the table means stands there.
CLOSE_CODES: Mapping[int, tuple[str, str]] = {
    1001: ("The hub shuts down", "reconnect after `reconnectAfterMs` of `goaway`"),
    1002: ("What came was no WebSocket frame", "fix itself"),
    1007: ("A text frame was not UTF-8", "fix itself"),
    1009: (Code.PAYLOAD_TOO_LARGE.meaning, "fix itself"),
    1011: (Code.INTERNAL_SERVER_ERROR.meaning, "reconnect with backoff"),
    1012: ("The hub restarts", "reconnect after `reconnectAfterMs` of `goaway`"),
    4400: (Code.BAD_FRAME.meaning, "fix itself"),
    4401: (Code.NOT_LOGGED_IN.meaning, "get a token and reconnect, keeping its outbox"),
    4408: ("No answer to a ping, or the client stopped reading", "reconnect"),
    4429: ("`RATE_LIMITED` many times, or `QUOTA_EXCEEDED`", "back off, then reconnect"),
}


def asyncapi(version: str, sent: Sequence[Sent]) -> Json:
    """`sent` become the examples."""
    types: dict[str, Any] = {f"client.{name}": frame.shape for name, frame in CLIENT.items()}
    types |= {f"server.{name}": shape for name, shape in SERVER.items()}
    unions = {"any of client": ClientFrame, "any of server": ServerFrame}
    made, definitions = schemas({**types, **unions, "budget": Uuid, "key": Whole})
    for schema in definitions.values():
        _told_apart(schema)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Budget Hub: budget.sync.v2",
            "version": version,
            "description": f"{ABOUT}\n\n{_closing()}",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "hub": {
                "host": "{address}",
                "protocol": "ws",
                "description": "`wss` where the hub is behind TLS",
                "variables": {"address": {"default": "127.0.0.1:8000"}},
                "security": [{"$ref": "#/components/securitySchemes/token"}],
            }
        },
        "channels": {
            "sync": {
                "address": "/sync",
                "title": "The socket",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in types},
                "bindings": {"ws": _upgrade(made)},
                "x-close-codes": {
                    str(code): {"when": when, "client": client}
                    for code, (when, client) in CLOSE_CODES.items()
                },
            }
        },
        "operations": {
            **{f"client.{name}": _receive(name, frame.answers) for name, frame in CLIENT.items()},
            **{f"server.{name}": _send(name) for name in SERVER},
        },
        "components": {
            "messages": {name: _message(name, made[name], definitions, sent) for name in types},
            "schemas": definitions,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _message(
    name: str, payload: Json, definitions: Mapping[str, Json], sent: Sequence[Sent]
) -> Json:
    sender, _, frame = name.partition(".")
    message: Json = {"name": frame, "title": f"{frame}, from the {sender}", "payload": payload}
    about = definitions[payload["$ref"].rpartition("/")[2]].get("description")
    if about is not None:
        message["summary"] = about
    examples = [s for s in sent if s.sender == sender and s.frame["type"] == frame]
    if examples:
        message["examples"] = [{"summary": s.title, "payload": s.frame} for s in examples]
    return message


def _receive(name: str, answers: Sequence[str]) -> Json:
    return {
        "action": "receive",
        "channel": _CHANNEL,
        "messages": [_in_channel(f"client.{name}")],
        "reply": {
            "channel": _CHANNEL,
            "messages": [_in_channel(f"server.{answer}") for answer in answers],
        },
    }


def _send(name: str) -> Json:
    return {
        "action": "send",
        "channel": _CHANNEL,
        "messages": [_in_channel(f"server.{name}")],
    }


_CHANNEL = {"$ref": "#/channels/sync"}


def _in_channel(name: str) -> Json:
    return {"$ref": f"#/channels/sync/messages/{name}"}


def _upgrade(made: Mapping[str, Json]) -> Json:
    return {
        "bindingVersion": "0.1.0",
        "method": "GET",
        "query": {
            "type": "object",
            "description": "Subscribes at once",
            "properties": {"budgetId": made["budget"], "key": {**made["key"], "default": 0}},
        },
        "headers": {
            "type": "object",
            "properties": {
                "Authorization": {"type": "string", "description": "`Bearer <token>`"},
                "Sec-WebSocket-Protocol": {
                    "type": "string",
                    "description": f"`{PROTOCOL}`, and for browsers `bearer.<token>`",
                },
                "x-api-key": {
                    "type": "string",
                    "description": "Only where the hub was given API keys",
                },
            },
        },
    }


def _closing() -> str:
    lines = [f"{code}: {when}; the client should {do}." for code, (when, do) in CLOSE_CODES.items()]
    return "Close codes:\n\n" + "\n".join(f"- {line}" for line in lines)


def _told_apart(schema: Json) -> None:
    """Write discriminators as AsyncAPI has them: the name of a field that the schema itself has."""
    if isinstance(discriminator := schema.get("discriminator"), dict):
        name = discriminator["propertyName"]
        told = {"discriminator": name, "type": "object", "required": [name]}
        schema.update(told, properties={name: {"type": "string"}})
    for value in schema.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                _told_apart(part)
