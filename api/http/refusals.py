"""Error responses below the application. Each is the last response of its connection."""

import asyncio
import email.utils
import math
import uuid
from http import HTTPStatus

import orjson

from api.http.edge import SECURITY_HEADERS
from api.http.errors import error_answer
from hub.errors import HubError


def refuse(transport: asyncio.Transport, error: HubError, request_id: str | None = None) -> None:
    """Write the response and close our half of the connection. The caller has to keep reading for a
    while: TCP resets a connection that is closed while data is unread, and the client would lose
    the response."""
    transport.write(refusal(error, request_id))
    if transport.can_write_eof():  # not over TLS
        transport.write_eof()


def refusal(error: HubError, request_id: str | None = None) -> bytes:
    """A complete HTTP/1.1 response in the one shape of errors (design 3.4). `request_id` is that of
    the request, if it could be read."""
    request_id = request_id or uuid.uuid4().hex
    body = orjson.dumps(error_answer(error.code, error.detail, request_id))
    after_s = error.retry_after_s
    lines = [
        f"HTTP/1.1 {error.code.status} {HTTPStatus(error.code.status).phrase}",
        f"Date: {email.utils.formatdate(usegmt=True)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"X-Request-Id: {request_id}",
        "Connection: close",
        *([] if after_s is None else [f"Retry-After: {math.ceil(after_s)}"]),
        *(f"{name.decode()}: {value.decode()}" for name, value in SECURITY_HEADERS),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
