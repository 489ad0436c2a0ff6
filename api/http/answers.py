"""JSON answers, compressed where that pays."""

import gzip
import re
from collections.abc import Mapping
from typing import Any, Generic, Literal, overload

import anyio.to_thread
import orjson
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypeVar

from api.http.requests import backlog_of

COMPRESSED_FROM_BYTES = 1024
COMPRESSION = 5  # of 9; higher ones take longer than they save
GZIP = {"Content-Encoding": "gzip"}
VARY = {"Vary": "Accept-Encoding"}

Shape = TypeVar("Shape")
Status = TypeVar("Status", bound=int, default=Literal[200])


class JsonResponse(Response, Generic[Shape, Status]):
    """A JSON answer of one shape, with one of these statuses. A handler that returns it promises
    both: mypy compares what it says, and the documents are made from its annotation."""

    media_type = "application/json"


@overload
def respond(payload: Shape) -> JsonResponse[Shape]: ...
@overload
def respond(payload: Shape, status: Status) -> JsonResponse[Shape, Status]: ...
def respond(payload: object, status: int = 200) -> JsonResponse[Any, Any]:
    """The answer to a small question."""
    return JsonResponse(orjson.dumps(payload), status)


async def respond_large(
    request: Request, payload: Shape, headers: Mapping[str, str] = {}
) -> JsonResponse[Shape]:
    """An answer of any size, compressed if the client takes that. Raises `HubError(RATE_LIMITED)`
    for a user who has not read many others."""
    return await respond_text(request, orjson.dumps(payload), headers)


async def respond_text(
    request: Request, text: bytes, headers: Mapping[str, str] = {}
) -> JsonResponse[Any]:
    """The same, of JSON text as it is, which may have megabytes: it is not copied."""
    if (backlog := backlog_of(request)) is not None:
        backlog.hold(len(text), may_refuse=True)  # not only once it is compressed
    if len(text) < COMPRESSED_FROM_BYTES or not _takes_gzip(request):
        return JsonResponse(text, headers={**headers, **VARY})
    # In a thread: some megabytes take longer than the loop may be held.
    compressed = await anyio.to_thread.run_sync(gzip.compress, text, COMPRESSION)
    return JsonResponse(compressed, headers={**headers, **VARY, **GZIP})


def chosen(request: Request, text: bytes, compressed: bytes) -> tuple[bytes, dict[str, str]]:
    """The one of the two that the client takes, and the headers that say so."""
    return (compressed, {**VARY, **GZIP}) if _takes_gzip(request) else (text, {**VARY})


def _takes_gzip(request: Request) -> bool:
    for coding in request.headers.get("accept-encoding", "").split(","):
        name, _, weight = coding.partition(";")
        if name.strip().lower() == "gzip":
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", weight) is None
    return False
