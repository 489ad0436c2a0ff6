"""Frames of `budget.sync.v2`: what a client may send, and everything the server says.

Client frames are pydantic models told apart by `type`; unknown fields are ignored. Server frames
are functions that return ready-made WebSocket text frames, so that the same bytes can be written to
any number of sockets. A frame to a client is at most `FRAME_BYTES_MAX`.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from hub import json_text
from hub.budget.events import describe
from hub.budget.records import BudgetId, UserId
from hub.budget.scalars import Uuid, Whole
from hub.budget.verdicts import Verdict
from hub.errors import Code

PROTOCOL = "budget.sync.v2"
FRAME_BYTES_MAX = 256 * 1024

RequestId: TypeAlias = int | str | None


# From the client


class _ClientFrame(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, hide_input_in_errors=True
    )
    id: Annotated[
        Whole | Annotated[str, Field(strict=True, max_length=64)] | None,
        Field(union_mode="left_to_right"),
    ] = None


class Auth(_ClientFrame):
    """First frame of a connection without a token in its headers; later, renews the session."""

    type: Literal["auth"]
    token: Annotated[str, Field(strict=True, min_length=1, max_length=8192)]


class Subscribe(_ClientFrame):
    """Follow a budget. `key` is the last sequence the client has; 0 is from the start."""

    type: Literal["subscribe"]
    budget_id: Uuid
    key: Whole = 0


class Unsubscribe(_ClientFrame):
    type: Literal["unsubscribe"]
    budget_id: Uuid


# Something to search for that a client chose: no name, address or text of anybody fits in.
CORRELATION_ID = r"^[A-Za-z0-9._-]{1,64}$"
_CORRELATION_BYTES_MAX = 16 + 64 + 6  # with its sequence, quotes and what stands between


class Events(_ClientFrame):
    """Submit 1 to 100 events; each is checked on its own (`hub.budget.events.parse_batch`)."""

    type: Literal["events"]
    events: list[Any]
    mode: Literal["stop", "each"] = "stop"
    correlation_id: Annotated[
        Annotated[str, StringConstraints(strict=True, pattern=CORRELATION_ID)] | None,
        Field(description="Goes with the events to every log line about them and to who gets them"),
    ] = None


class Ping(_ClientFrame):
    type: Literal["ping"]


ClientFrame: TypeAlias = Auth | Subscribe | Unsubscribe | Events | Ping
_MODELS: Mapping[str, type[ClientFrame]] = {
    "auth": Auth,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "events": Events,
    "ping": Ping,
}


class BadFrame(Exception):
    """What arrived is no frame (`fatal`: the connection ends with 4400), or a frame of a known type
    with wrong fields (an `error` frame answers it)."""

    def __init__(self, detail: str, *, request_id: RequestId = None, fatal: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.request_id = request_id
        self.fatal = fatal


def parse(text: bytes | str) -> ClientFrame:
    """One client frame. Raises `BadFrame`."""
    try:
        raw = json_text.decode(text)
    except ValueError:
        raise BadFrame("not JSON", fatal=True) from None
    if not isinstance(raw, dict):
        raise BadFrame("not an object", fatal=True)
    kind = raw.get("type")
    model = _MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise BadFrame("unknown type", request_id=_request_id(raw), fatal=True)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise BadFrame(describe(error), request_id=_request_id(raw), fatal=False) from None


def _request_id(raw: Mapping[str, object]) -> RequestId:
    value = raw.get("id")
    if (type(value) is int and 0 <= value <= 2**53 - 1) or (
        isinstance(value, str) and len(value) <= 64 and value.isprintable()
    ):
        return value
    return None


# To the client


NAMED_MAX = 20  # correlation ids in one log line, and with one frame on the bus


class Context(NamedTuple):
    """What is known about how a frame's events came: the span that published them (a W3C
    `traceparent`), and what their clients call them."""

    trace: str | None
    correlation_ids: tuple[str, ...]


class Frame(NamedTuple):
    """Consecutive events of one budget, encoded once: `data` goes as it is to sockets and nodes.

    A frame ends at a `participant.remove` (`removes` is the user) and at `budget.delete`
    (`deletes`), because subscriptions end there. `written_at_ms` is when its first event was
    written to the log (epoch milliseconds), None where that is not known. `context` is not sent to
    sockets.
    """

    budget_id: BudgetId
    from_sequence: int
    to_sequence: int
    data: bytes
    removes: UserId | None = None
    deletes: bool = False
    written_at_ms: int | None = None
    context: Context | None = None

    @property
    def events(self) -> int:
        """How many it carries."""
        return self.to_sequence - self.from_sequence + 1


class Streamed(Protocol):
    """A row of the log: just accepted, or read again."""

    @property
    def sequence(self) -> int: ...
    @property
    def event_type(self) -> str: ...
    @property
    def record_id(self) -> str: ...
    @property
    def event(self) -> bytes: ...


def event_frames(
    budget_id: BudgetId,
    rows: Iterable[Streamed],
    written_at_ms: int | None = None,
    correlation_ids: Mapping[int, str] = {},
) -> Iterator[Frame]:
    """The `events` frames that carry these consecutive rows of the log, the first of which was
    written at `written_at_ms`. `correlation_ids` is what the clients called them, by sequence."""
    part: list[Streamed] = []
    size = 0
    for row in rows:
        if part and size + len(row.event) > FRAME_BYTES_MAX - 512:  # 512: the frame around them
            yield _event_frame(budget_id, part, written_at_ms, correlation_ids)
            part, size = [], 0
        part.append(row)
        size += len(row.event) + 1
        if correlation_ids:
            size += _CORRELATION_BYTES_MAX
        if row.event_type in ("participant.remove", "budget.delete"):
            yield _event_frame(budget_id, part, written_at_ms, correlation_ids)
            part, size = [], 0
    if part:
        yield _event_frame(budget_id, part, written_at_ms, correlation_ids)


def _event_frame(
    budget_id: BudgetId,
    rows: Sequence[Streamed],
    written_at_ms: int | None,
    correlation_ids: Mapping[int, str],
) -> Frame:
    first, last = rows[0], rows[-1]
    called, context = b"", None
    if correlation_ids:
        ids = {str(s): id for row in rows if (id := correlation_ids.get(s := row.sequence))}
        if ids:
            called = b',"correlationIds":%b' % orjson.dumps(ids)
            context = Context(None, tuple(dict.fromkeys(ids.values()))[:NAMED_MAX])
    text = (
        b'{"type":"events","budgetId":"%b","fromSequence":%d,"toSequence":%d%b,"events":[%b]}'
        % (
            budget_id.encode(),
            first.sequence,
            last.sequence,
            called,
            b",".join([row.event for row in rows]),
        )
    )
    return Frame(
        budget_id,
        first.sequence,
        last.sequence,
        framed(text),
        last.record_id if last.event_type == "participant.remove" else None,
        last.event_type == "budget.delete",
        written_at_ms,
        context,
    )


def welcome(
    user_id: UserId,
    connection_id: str,
    server_time_ms: int,
    limits: Mapping[str, int],
    heartbeat_s: float,
) -> bytes:
    return _encode(
        {
            "type": "welcome",
            "userId": user_id,
            "connectionId": connection_id,
            "serverTime": server_time_ms,
            "limits": limits,
            "heartbeatS": heartbeat_s,
        }
    )


def auth(expires_at_ms: int) -> bytes:
    return _encode({"type": "auth", "expiresAt": expires_at_ms})


def auth_expiring(expires_at_ms: int) -> bytes:
    return _encode({"type": "auth.expiring", "expiresAt": expires_at_ms})


def subscribed(
    request_id: RequestId, budget_id: BudgetId, key: int, head: int, log_id: str
) -> bytes:
    return _encode(
        {
            "type": "subscribed",
            **_answering(request_id),
            "budgetId": budget_id,
            "key": key,
            "head": head,
            "logId": log_id,
        }
    )


def unsubscribed(request_id: RequestId, budget_id: BudgetId, code: Code | None = None) -> bytes:
    """`code` says why where the server decided; then there is no request to answer."""
    reason = {} if code is None else {"code": code.name}
    return _encode(
        {"type": "unsubscribed", **_answering(request_id), "budgetId": budget_id, **reason}
    )


def results(request_id: RequestId, verdicts: Sequence[Verdict]) -> bytes:
    """The verdicts of one `events` frame; several frames with the same id where they are long."""
    encoded = [verdict.encode() for verdict in verdicts]
    if type(request_id) is int:
        head = b'{"type":"results","id":%d' % request_id
    else:
        head = _encode_text({"type": "results", **_answering(request_id)})[:-1]
    return b"".join(
        [framed(b'%b,"results":[%b]}' % (head, b",".join(part))) for part in _cut(encoded)]
    )


def presence(budget_id: BudgetId, devices: Mapping[UserId, int]) -> bytes:
    """Who has live sockets on the budget, and how many."""
    users = [{"userId": user_id, "devices": number} for user_id, number in devices.items()]
    return _encode({"type": "presence", "budgetId": budget_id, "users": users})


def heads(heads: Mapping[BudgetId, int]) -> bytes:
    """The head of every subscribed budget as this node knows it."""
    return _encode({"type": "heads", "heads": heads})


def error(
    request_id: RequestId,
    code: Code,
    detail: str | None = None,
    *,
    retry_after_ms: int | None = None,
) -> bytes:
    described = code.to_json(detail)
    if retry_after_ms is not None:
        described["retryAfterMs"] = retry_after_ms
    return _encode({"type": "error", **_answering(request_id), "error": described})


def goaway(reconnect_after_ms: int, reason: str) -> bytes:
    """The connection will be closed with 1012; the client should come back after that time."""
    return _encode({"type": "goaway", "reconnectAfterMs": reconnect_after_ms, "reason": reason})


def pong(request_id: RequestId, server_time_ms: int) -> bytes:
    return _encode({"type": "pong", **_answering(request_id), "serverTime": server_time_ms})


def _answering(request_id: RequestId) -> dict[str, RequestId]:
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


def _encode_text(frame: Mapping[str, object]) -> bytes:
    return orjson.dumps(frame)


def _encode(frame: Mapping[str, object]) -> bytes:
    return framed(_encode_text(frame))


# RFC 6455 section 5.2: FIN and opcode, then the length in 7, 16 or 64 bits. A server does not mask.


def framed(text: bytes) -> bytes:
    """`text` as one unfragmented WebSocket text frame."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 65536:
        return b"\x81\x7e%b%b" % (struct.pack("!H", size), text)
    return b"\x81\x7f%b%b" % (struct.pack("!Q", size), text)


def texts(data: bytes) -> Iterator[bytes]:
    """The texts of frames made by `framed`, for transports that do their own framing."""
    start = 0
    while start < len(data):
        size = data[start + 1]
        start += 2
        if size == 126:
            (size,) = struct.unpack_from("!H", data, start)
            start += 2
        elif size == 127:
            (size,) = struct.unpack_from("!Q", data, start)
            start += 8
        yield data[start : start + size]
        start += size
