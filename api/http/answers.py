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

COMPRESSED_FROM_BYTES = 1024
COMPRESSION = 5  # of 9; higher ones take longer than they save
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
    """An answer of any size, compressed if the client takes that."""
    text, all_headers = await packed(request, orjson.dumps(payload), headers)
    return JsonResponse(text, headers=all_headers)


async def packed(
    request: Request, text: bytes, headers: Mapping[str, str]
) -> tuple[bytes, Mapping[str, str]]:
    """The text, compressed if it is long and the client takes that, with the headers that say so:
    in a thread, because some megabytes take longer than the loop may be held."""
    all_headers = {**headers, **VARY}
    if len(text) >= COMPRESSED_FROM_BYTES and _takes_gzip(request):
        text = await anyio.to_thread.run_sync(gzip.compress, text, COMPRESSION)
        all_headers["Content-Encoding"] = "gzip"
    return text, all_headers


def _takes_gzip(request: Request) -> bool:
    for coding in request.headers.get("accept-encoding", "").split(","):
        name, _, weight = coding.partition(";")
        if name.strip().lower() == "gzip":
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", weight) is None
    return False
