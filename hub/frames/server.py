"""Everything the server says but the events of a budget: functions that return ready-made WebSocket
text frames, so that the same bytes can be written to any number of sockets."""

from collections.abc import Iterator, Mapping, Sequence

import orjson

from hub.budget.records import BudgetId, UserId
from hub.budget.verdicts import Verdict
from hub.errors import Code
from hub.frames.client import RequestId
from hub.frames.websocket import FRAME_BYTES_MAX, framed


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
