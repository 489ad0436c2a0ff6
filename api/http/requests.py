"""What every REST route shares: reading a body, answering, and the one shape of errors."""

import gzip
import math
import re
from collections.abc import Mapping
from typing import TypeVar

import anyio.to_thread
import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from hub import json_text
from hub.budget.events import INTEGER_MAX, Uuid, describe
from hub.errors import BadData, Code, Disconnected, Held, HubError, LostRace, StoreDown
from hub.ports import Authenticator, Principal
from hub.tracing import Correlation

BODY_BYTES_MAX = 256 * 1024
COMPRESSED_FROM_BYTES = 1024
COMPRESSION = 5  # of 9; higher ones take longer than they save
VARY = {"Vary": "Accept-Encoding"}

_M = TypeVar("_M", bound=BaseModel)
_UUID: TypeAdapter[str] = TypeAdapter(Uuid)


class Opaque(StringConvertor):
    """The rest of the path, whatever it is: user ids may hold slashes and line ends."""

    regex = "(?s:.+)"


register_url_convertor("opaque", Opaque())


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
        return json_text.decode(bytes(text))
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


def correlation(request: Request) -> Correlation:
    """What the request is called in the logs; the client's own id goes with its events too."""
    called: Correlation = request.state.correlation
    return called


def path_id(request: Request, name: str) -> str:
    """A UUID of the path, in lower case. Raises `HubError(BAD_REQUEST)`."""
    return as_uuid(request.path_params[name], to_camel(name))


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
    return default if text == "" else as_int(text, name, least=least, most=most)


def as_int(text: str, name: str, *, least: int = 0, most: int = INTEGER_MAX) -> int:
    """Raises `HubError(BAD_REQUEST)`."""
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
    compressed = {**headers, **VARY}
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
    request.state.code = code.name  # for the log
    error = {**code.to_wire(detail), "requestId": request.state.request_id}
    return respond({"error": error}, code.status)


async def on_hub_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    response = error_response(request, error.code, error.detail)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return response


async def on_disconnected(request: Request, error: Exception) -> Response:
    request.state.cause = f"database out of reach: {error}"
    return error_response(request, Code.UNAVAILABLE)


async def on_store_down(request: Request, error: Exception) -> Response:
    request.state.cause = f"photo store: {error}"
    return error_response(request, Code.PHOTOS_UNAVAILABLE)


async def on_held(request: Request, error: Exception) -> Response:
    return error_response(request, Code.BUSY)


async def on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}
    response = error_response(request, codes.get(error.status_code, Code.BAD_REQUEST))
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # one path has a route for each method; Starlette tells of one
        matching = [
            route
            for route in request.app.routes
            if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        ]
        known = {method for route in matching for method in route.methods or ()}
        response.headers["Allow"] = ", ".join(sorted(known))
    return response


async def on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody hears the answer."""
    return error_response(request, Code.BAD_REQUEST, "the body ended early")


async def on_defect(request: Request, error: Exception) -> Response:
    """Reveals nothing; the edge logs the exception."""
    request.state.defect = error
    return error_response(request, Code.INTERNAL_SERVER_ERROR)


ERROR_HANDLERS = {
    HubError: on_hub_error,
    Disconnected: on_disconnected,
    Held: on_held,
    LostRace: on_held,
    StoreDown: on_store_down,
    BadData: on_defect,
    ClientDisconnect: on_client_gone,
    HTTPException: on_http_exception,
    Exception: on_defect,
}
