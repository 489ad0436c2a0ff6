"""What every REST route shares: reading a body, answering, and the one shape of errors."""

import gzip
import re
import uuid
from collections.abc import Mapping
from typing import TypeVar

import anyio.to_thread
import orjson
import structlog
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub import wire_json
from hub.errors import BadData, Code, Disconnected, Held, HubError, LostRace
from hub.events import INTEGER_MAX, Uuid, describe
from hub.ports import Authenticator, Principal

BODY_BYTES_MAX = 256 * 1024
COMPRESSED_FROM_BYTES = 1024
COMPRESSION = 5  # of 9; higher ones take longer than they save

_M = TypeVar("_M", bound=BaseModel)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UUID: TypeAdapter[str] = TypeAdapter(Uuid)

_log = structlog.get_logger()


async def body(request: Request, model: type[_M]) -> _M:
    """The request's JSON body as `model`. Raises `HubError` where it is too large, not JSON, or
    not of that shape."""
    try:
        return model.model_validate(await json_body(request))
    except ValidationError as error:
        raise HubError(Code.BAD_REQUEST, describe(error)) from None


async def json_body(request: Request) -> object:
    """The request's body, decoded. Raises `HubError` where it is too large or not JSON."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > BODY_BYTES_MAX:
            raise HubError(Code.PAYLOAD_TOO_LARGE)
    try:
        return wire_json.decode(bytes(text))
    except ValueError:
        raise HubError(Code.BAD_REQUEST, "the body is not JSON") from None


async def principal(request: Request, authenticator: Authenticator) -> Principal:
    """Who asks. Raises `HubError(NOT_LOGGED_IN)`."""
    token = bearer(request.headers.get("authorization", ""))
    if token is None:
        raise HubError(Code.NOT_LOGGED_IN)
    return await authenticator.authenticate(token)


def bearer(authorization: str) -> str | None:
    """The token of an `Authorization` header, None if it holds none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def path_id(request: Request, name: str) -> str:
    """A UUID of the path, in lower case. Raises `HubError(BAD_REQUEST)`."""
    return as_uuid(request.path_params[name], name)


def as_uuid(text: object, name: str) -> str:
    try:
        return _UUID.validate_python(text)
    except ValidationError:
        raise HubError(Code.BAD_REQUEST, f"{name}: not a UUID") from None


def query_int(
    request: Request, name: str, default: int, *, least: int = 0, most: int = INTEGER_MAX
) -> int:
    """An integer of the query string. Raises `HubError(BAD_REQUEST)`."""
    text = request.query_params.get(name, "")
    if text == "":
        return default
    if re.fullmatch(r"[0-9]{1,16}", text) is None or not least <= int(text) <= most:
        raise HubError(Code.BAD_REQUEST, f"{name}: an integer from {least} to {most}")
    return int(text)


def respond(payload: Mapping[str, object] | bytes, status: int = 200) -> Response:
    """A JSON answer; `bytes` are JSON text already."""
    text = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    return Response(text, status, media_type="application/json")


async def respond_large(
    request: Request,
    text: bytes,
    headers: Mapping[str, str] = {},
    media_type: str = "application/json",
) -> Response:
    """An answer of any size, compressed if the client takes that: in a thread, because some
    megabytes take longer than the loop may be held."""
    compressed = dict(headers, Vary="Accept-Encoding")
    if len(text) >= COMPRESSED_FROM_BYTES and _takes_gzip(request):
        text = await anyio.to_thread.run_sync(gzip.compress, text, COMPRESSION)
        compressed["Content-Encoding"] = "gzip"
    return Response(text, headers=compressed, media_type=media_type)


def _takes_gzip(request: Request) -> bool:
    for coding in request.headers.get("accept-encoding", "").split(","):
        name, _, weight = coding.partition(";")
        if name.strip().lower() == "gzip":
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", weight) is None
    return False


def error_response(request: Request, code: Code, detail: str | None = None) -> Response:
    """The one shape of errors (design 3.4)."""
    error = {**code.to_wire(detail), "requestId": request.state.request_id}
    return respond({"error": error}, code.status)


async def on_hub_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    return error_response(request, error.code, error.detail)


async def on_disconnected(request: Request, error: Exception) -> Response:
    _log.warning("database out of reach", error=str(error), path=request.url.path)
    return error_response(request, Code.UNAVAILABLE)


async def on_held(request: Request, error: Exception) -> Response:
    return error_response(request, Code.BUSY)


async def on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}
    response = error_response(request, codes.get(error.status_code, Code.BAD_REQUEST))
    response.headers.update(error.headers or {})
    return response


async def on_defect(request: Request, error: Exception) -> Response:
    """Reveals nothing; the server logs the exception once."""
    return error_response(request, Code.INTERNAL_SERVER_ERROR)


ERROR_HANDLERS = {
    HubError: on_hub_error,
    Disconnected: on_disconnected,
    Held: on_held,
    LostRace: on_held,
    BadData: on_defect,
    HTTPException: on_http_exception,
    Exception: on_defect,
}


class RequestId:
    """ASGI middleware: every request has an id, its own (`X-Request-Id`) or one made here; it is in
    the answer's header, in errors and in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = ""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value.decode("latin-1")
        if _REQUEST_ID.fullmatch(request_id) is None:
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)
