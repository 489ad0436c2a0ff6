"""`/openapi.json`, `/asyncapi.json` and `/docs`: the interface, described by the hub itself.

The documents are made at the first request, in a thread, and kept: a hub that nobody asks spends
nothing on them.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import anyio.to_thread
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.documents.asyncapi import asyncapi
from api.documents.examples import examples
from api.documents.openapi import openapi
from api.documents.page import page
from api.http.answers import respond_large
from api.http.edge import CONTENT_SECURITY_POLICY

STORE_PATH = "/photos/"
STYLE = Path(__file__).with_name("page.css")


def routes(described: Sequence[Route]) -> list[Route]:
    """The handlers; the documents describe these routes and their own."""

    @cache
    def rest_document() -> bytes:
        return orjson.dumps(
            openapi(version("budget-hub"), served([*described, *own]), examples().calls)
        )

    @cache
    def socket_document() -> bytes:
        return orjson.dumps(asyncapi(version("budget-hub"), examples().sent))

    @cache
    def read_page() -> tuple[bytes, str]:
        """The page, and the only style that a browser may take on it."""
        style = STYLE.read_text()
        text = page(orjson.loads(rest_document()), orjson.loads(socket_document()), style)
        return text.encode(), b64encode(sha256(style.encode()).digest()).decode()

    async def rest(request: Request) -> Response:
        return await _document(request, rest_document)

    async def socket(request: Request) -> Response:
        return await _document(request, socket_document)

    async def docs(request: Request) -> Response:
        text, style = await anyio.to_thread.run_sync(read_page)
        # The edge's own, and the style.
        policy = f"{CONTENT_SECURITY_POLICY.decode()}; style-src 'sha256-{style}'"
        return await respond_large(
            request, text, {"Content-Security-Policy": policy}, media_type="text/html"
        )

    own = [
        Route("/openapi.json", rest, methods=["GET"]),
        Route("/asyncapi.json", socket, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
    ]
    return own


def served(routes: Sequence[BaseRoute]) -> set[tuple[str, str]]:
    """Methods and paths. Starlette adds `HEAD` to every `GET`; that goes without saying. So does
    the disk's store of photos: clients are told its addresses, as they would be told S3's."""
    return {
        (method, route.path)
        for route in routes
        if isinstance(route, Route) and not route.path.startswith(STORE_PATH)
        for method in route.methods or ()
        if method != "HEAD"
    }


async def _document(request: Request, make: Callable[[], bytes]) -> Response:
    return await respond_large(request, await anyio.to_thread.run_sync(make))
