"""Reading a request: its body, its user, the ids and numbers of its path and query."""

import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from api.http.addresses import ADDRESS
from api.http.unread import Backlog
from hub import json_text
from hub.budget.events import describe
from hub.budget.scalars import INTEGER_MAX, Uuid
from hub.errors import Code, HubError
from hub.ports import Authenticator, Principal
from hub.tracing import Correlation

BODY_BYTES_MAX = 256 * 1024
UNSIGNED_BODY_BYTES_MAX = 16 * 1024  # of a request that has no token yet

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
UserHandler: TypeAlias = Callable[[Request, Principal], Awaitable[Response]]
ForUsers: TypeAlias = Callable[[UserHandler], Handler]  # `signed_in`, its authenticator given

_M = TypeVar("_M", bound=BaseModel)
_UUID: TypeAdapter[str] = TypeAdapter(Uuid)


class Body(BaseModel):
    """What a client sends: in camelCase, perhaps with fields of a later version, and never quoted
    in logs and error answers."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, hide_input_in_errors=True
    )


class Opaque(StringConvertor):
    """The rest of the path, whatever it is: user ids may hold slashes and line ends."""

    regex = "(?s:.+)"


register_url_convertor("opaque", Opaque())


async def body(request: Request, model: type[_M], bytes_max: int = BODY_BYTES_MAX) -> _M:
    """The request's JSON body as `model`. Raises `HubError` where it is too large, not JSON, or
    not of that shape."""
    try:
        return model.model_validate(await json_body(request, bytes_max))
    except ValidationError as error:
        raise HubError(Code.BAD_REQUEST, describe(error)) from None


async def json_body(request: Request, bytes_max: int = BODY_BYTES_MAX) -> object:
    """The request's body, decoded. Raises `HubError` where it is too large or not JSON."""
    return decoded(await body_text(request, bytes_max))


async def body_text(request: Request, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The request's body. Raises `HubError` where it is too large."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > bytes_max:
            raise HubError(Code.PAYLOAD_TOO_LARGE, f"the body is at most {bytes_max} bytes")
    return bytes(text)


def decoded(text: bytes) -> object:
    """What a body says. Raises `HubError` where it is not JSON."""
    try:
        return json_text.decode(text)
    except ValueError:
        raise HubError(Code.BAD_REQUEST, "the body is not JSON") from None


def signed_in(authenticator: Authenticator, handler: UserHandler) -> Handler:
    """The handler, with the user who asks. Raises `HubError` before it is called: `NOT_LOGGED_IN`,
    and `RATE_LIMITED` for a user who does not read what they are answered. A GET may be refused so
    also after it."""

    @wraps(handler)  # the documents describe the handler, and a test looks for it
    async def handle(request: Request) -> Response:
        token = bearer(request.headers.get("authorization", ""))
        if token is None:
            raise HubError(Code.NOT_LOGGED_IN)
        address = request.scope.get(ADDRESS, "")
        who = await authenticator.authenticate(token, address)
        backlog = backlog_of(request)
        if backlog is None:
            return await handler(request, who)
        backlog.asked_by(who.user_id)
        response = await handler(request, who)
        backlog.hold(len(getattr(response, "body", b"")), may_refuse=request.method == "GET")
        return response

    return handle


def backlog_of(request: Request) -> Backlog | None:
    """Of the request's connection; None where there is none, as in a test."""
    backlog: Backlog | None = request.scope.get("state", {}).get("backlog")
    return backlog


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
