"""The answer to a request that no application has seen: whole, as bytes, and the last of its
connection."""

import email.utils
import uuid
from collections.abc import Mapping
from http import HTTPStatus

import orjson

from api.http.edge import SECURITY_HEADERS
from hub.errors import HubError


def refusal(
    error: HubError, request_id: str | None = None, headers: Mapping[str, str] = {}
) -> bytes:
    """An HTTP/1.1 response of the one shape of errors (design 3.4). `request_id` is the request's
    own, where it could be read; `headers` come on top."""
    request_id = request_id or uuid.uuid4().hex
    body = orjson.dumps({"error": {**error.code.to_json(error.detail), "requestId": request_id}})
    lines = [
        f"HTTP/1.1 {error.code.status} {HTTPStatus(error.code.status).phrase}",
        f"Date: {email.utils.formatdate(usegmt=True)}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"X-Request-Id: {request_id}",
        "Connection: close",
        *(f"{name.decode()}: {value.decode()}" for name, value in SECURITY_HEADERS),
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
