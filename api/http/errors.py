"""The one shape of errors, and which exception becomes which."""

import math
from typing import Annotated

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from typing_extensions import TypedDict

from api.http.answers import respond
from hub.errors import (
    BadData,
    Code,
    Disconnected,
    Error,
    Held,
    HubError,
    LostRace,
    StatementFailed,
    StoreDown,
)


class AnswerError(Error):
    """Why a request was refused."""

    requestId: Annotated[str, Field(description="The answer's `X-Request-Id`")]


class ErrorAnswer(TypedDict):
    """The body of every answer from 400 on, but for that of `/readyz`."""

    error: AnswerError


def error_answer(code: Code, detail: str | None, request_id: str) -> ErrorAnswer:
    return {"error": {**code.to_json(detail), "requestId": request_id}}


def error_response(request: Request, code: Code, detail: str | None = None) -> Response:
    request.state.code = code.name  # for the log
    return respond(error_answer(code, detail, request.state.request_id), code.status)


async def on_hub_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    response = error_response(request, error.code, error.detail)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return response


async def on_disconnected(request: Request, error: Exception) -> Response:
    request.state.cause = f"database out of reach: {error}"
    return error_response(request, Code.UNAVAILABLE)


async def on_statement_failed(request: Request, error: Exception) -> Response:
    """A defect, whose traceback is in the log already, and not for each request."""
    request.state.cause = f"statement failed: {error}"
    return error_response(request, Code.INTERNAL_SERVER_ERROR)


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
    StatementFailed: on_statement_failed,
    Held: on_held,
    LostRace: on_held,
    StoreDown: on_store_down,
    BadData: on_defect,
    ClientDisconnect: on_client_gone,
    HTTPException: on_http_exception,
    Exception: on_defect,
}
