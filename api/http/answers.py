"""JSON answers, compressed where that pays."""

import gzip
import re
from collections.abc import Mapping

import anyio.to_thread
import orjson
from starlette.requests import Request
from starlette.responses import Response

COMPRESSED_FROM_BYTES = 1024
COMPRESSION = 5  # of 9; higher ones take longer than they save
VARY = {"Vary": "Accept-Encoding"}


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
