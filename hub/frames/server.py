"""Everything the server says but the events of a budget: functions that return ready-made WebSocket
text frames, so that the same bytes can be written to any number of sockets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, NotRequired, TypeAlias

import orjson
from pydantic import Field
from typing_extensions import TypedDict

from hub.budget.events import EVENTS_PER_FRAME_MAX
from hub.budget.records import BudgetId
from hub.budget.shapes import verdicts as shapes
from hub.budget.shapes.scalars import Head, Id, Key, LogId, Millis, UserId
from hub.budget.verdicts import Verdict
from hub.errors import Code, Error
from hub.frames.client import RequestId
from hub.frames.websocket import FRAME_BYTES_MAX, framed


class _Answering(TypedDict):
    id: NotRequired[
        Annotated[int | str, Field(description="Of the frame that it answers, if that had one")]
    ]


class Limits(TypedDict):
    """What a client may send and have."""

    frameBytesMax: int
    eventsPerFrameMax: int
    inFlightEventsMax: int
    subscriptionsMax: int


class Welcome(TypedDict):
    """The session is open."""

    type: Literal["welcome"]
    userId: UserId
    connectionId: Id
    serverTime: Millis
    limits: Limits
    heartbeatS: Annotated[float, Field(gt=0, description="Seconds between two `heads`")]


def welcome(
    user_id: UserId,
    connection_id: str,
    server_time_ms: int,
    limits: Limits,
    heartbeat_s: float,
) -> bytes:
    frame: Welcome = {
        "type": "welcome",
        "userId": user_id,
        "connectionId": connection_id,
        "serverTime": server_time_ms,
        "limits": limits,
        "heartbeatS": heartbeat_s,
    }
    return _encode(frame)


class SignedIn(TypedDict):
    """After `welcome`, and after every renewal."""

    type: Literal["auth"]
    expiresAt: Millis


def auth(expires_at_ms: int) -> bytes:
    frame: SignedIn = {"type": "auth", "expiresAt": expires_at_ms}
    return _encode(frame)


class AuthExpiring(TypedDict):
    """The token ends in 60 s, and the connection with it (4401): send `auth`."""

    type: Literal["auth.expiring"]
    expiresAt: Millis


def auth_expiring(expires_at_ms: int) -> bytes:
    frame: AuthExpiring = {"type": "auth.expiring", "expiresAt": expires_at_ms}
    return _encode(frame)


class Subscribed(_Answering):
    """The budget's events after `key` follow."""

    type: Literal["subscribed"]
    budgetId: Id
    key: Key
    head: Head
    logId: LogId


def subscribed(
    request_id: RequestId, budget_id: BudgetId, key: int, head: int, log_id: str
) -> bytes:
    frame: Subscribed = {
        "type": "subscribed",
        **_answering(request_id),
        "budgetId": budget_id,
        "key": key,
        "head": head,
        "logId": log_id,
    }
    return _encode(frame)


EndCode: TypeAlias = Annotated[
    str,
    Field(
        json_schema_extra={
            "x-extensible-enum": [Code.NOT_PARTICIPANT.name, Code.BUDGET_DELETED.name]
        },
        description="Why the subscription ended",
    ),
]


class Unsubscribed(_Answering):
    """No more events of this budget. `code` is there where the server decided."""

    type: Literal["unsubscribed"]
    budgetId: Id
    code: NotRequired[EndCode]


def unsubscribed(request_id: RequestId, budget_id: BudgetId, code: Code | None = None) -> bytes:
    """`code` says why where the server decided; then there is no request to answer."""
    frame: Unsubscribed = {
        "type": "unsubscribed",
        **_answering(request_id),
        "budgetId": budget_id,
        "code": "" if code is None else code.name,
    }
    if code is None:  # beside a `**` mypy wants every key named, also one that may be absent
        del frame["code"]
    return _encode(frame)


class Results(_Answering):
    """Verdicts in the order of submission; long ones come in several frames with the same `id`."""

    type: Literal["results"]
    results: Annotated[list[shapes.Verdict], Field(min_length=1, max_length=EVENTS_PER_FRAME_MAX)]


def results(request_id: RequestId, verdicts: Sequence[Verdict]) -> bytes:
    """The verdicts of one `events` frame; several frames with the same id where they are long."""
    encoded = [verdict.encode() for verdict in verdicts]
    if type(request_id) is int:
        head = b'{"type":"results","id":%d' % request_id
    else:
        head = orjson.dumps({"type": "results", **_answering(request_id)})[:-1]
    return b"".join(
        [framed(b'%b,"results":[%b]}' % (head, b",".join(part))) for part in _cut(encoded)]
    )


class Attendance(TypedDict):
    userId: UserId
    devices: Annotated[int, Field(ge=1)]


class Presence(TypedDict):
    """Everybody with a socket on the budget, on whatever node; after `subscribed`, and again when
    it has changed."""

    type: Literal["presence"]
    budgetId: Id
    users: list[Attendance]


def presence(budget_id: BudgetId, devices: Mapping[UserId, int]) -> bytes:
    """Who has live sockets on the budget, and how many."""
    users: list[Attendance] = [{"userId": id, "devices": number} for id, number in devices.items()]
    frame: Presence = {"type": "presence", "budgetId": budget_id, "users": users}
    return _encode(frame)


class Heads(TypedDict):
    """The head of each subscribed budget, every `heartbeatS`. Two in a row that are ahead, with
    nothing arriving between: subscribe again."""

    type: Literal["heads"]
    heads: Mapping[str, Head]


def heads(heads: Mapping[BudgetId, int]) -> bytes:
    """The head of every subscribed budget as this node knows it."""
    frame: Heads = {"type": "heads", "heads": heads}
    return _encode(frame)


class FrameError(Error):
    """Why a frame was refused."""

    retryAfterMs: NotRequired[Annotated[int, Field(ge=0, description="With `RATE_LIMITED`")]]


class Refused(_Answering):
    """A frame was not taken; `id` is that frame's, if it had one. What could not be read as a frame
    ends the connection too (4400)."""

    type: Literal["error"]
    error: FrameError


def error(
    request_id: RequestId,
    code: Code,
    detail: str | None = None,
    *,
    retry_after_ms: int | None = None,
) -> bytes:
    told = code.to_json(detail)
    described: FrameError = {
        "statusCode": told["statusCode"],
        "message": told["message"],
        "detail": told["detail"],
        "retryable": told["retryable"],
    }
    if retry_after_ms is not None:
        described["retryAfterMs"] = retry_after_ms
    frame: Refused = {"type": "error", **_answering(request_id), "error": described}
    return _encode(frame)


class GoAway(TypedDict):
    """The hub stops: it takes nothing more, and closes with 1012 once the verdicts in flight are
    sent."""

    type: Literal["goaway"]
    reconnectAfterMs: Annotated[int, Field(ge=0)]
    reason: str


def goaway(reconnect_after_ms: int, reason: str) -> bytes:
    """The connection will be closed with 1012; the client should come back after that time."""
    frame: GoAway = {"type": "goaway", "reconnectAfterMs": reconnect_after_ms, "reason": reason}
    return _encode(frame)


class Pong(_Answering):
    """The answer to `ping`, with the server's clock."""

    type: Literal["pong"]
    serverTime: Millis


def pong(request_id: RequestId, server_time_ms: int) -> bytes:
    frame: Pong = {"type": "pong", **_answering(request_id), "serverTime": server_time_ms}
    return _encode(frame)


def _answering(request_id: RequestId) -> _Answering:
    return {} if request_id is None else {"id": request_id}


def _cut(items: Sequence[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for item in items:
        if part and size + len(item) > FRAME_BYTES_MAX - 512:
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item) + 1
    yield part


def _encode(frame: Mapping[str, object]) -> bytes:
    return framed(orjson.dumps(frame))
