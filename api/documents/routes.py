"""`/openapi.json`, `/asyncapi.json`, `/postman.json` and `/docs`: the files that `make documents`
has written, as they are."""

import gzip
import re
from base64 import b64encode
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import JsonResponse, chosen
from api.http.edge import CONTENT_SECURITY_POLICY

FOLDER = Path(__file__).with_name("files")

Document: TypeAlias = dict[str, Any]


class Documents:
    """Anybody may ask for these, so they are read and compressed once."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, bytes]] = {}  # as they are, and compressed

    def routes(self) -> list[Route]:
        return [
            Route("/openapi.json", self.rest),
            Route("/asyncapi.json", self.socket),
            Route("/postman.json", self.postman),
            Route("/docs", self.page),
        ]

    async def rest(self, request: Request) -> JsonResponse[Document]:
        return await self._file(request, "openapi.json")

    async def socket(self, request: Request) -> JsonResponse[Document]:
        return await self._file(request, "asyncapi.json")

    async def postman(self, request: Request) -> JsonResponse[Document]:
        return await self._file(request, "postman.json")

    async def page(self, request: Request) -> Response:
        page, compressed = await self._read("docs.html")
        text, headers = chosen(request, page, compressed)
        headers["Content-Security-Policy"] = policy(page)
        return Response(text, headers=headers, media_type="text/html")

    async def _file(self, request: Request, name: str) -> JsonResponse[Document]:
        text, headers = chosen(request, *await self._read(name))
        return JsonResponse(text, headers=headers)

    async def _read(self, name: str) -> tuple[bytes, bytes]:
        if name not in self._files:
            self._files[name] = await anyio.to_thread.run_sync(_read, FOLDER / name)
        return self._files[name]


def _read(path: Path) -> tuple[bytes, bytes]:
    text = path.read_bytes()
    return text, gzip.compress(text)


@lru_cache(maxsize=1)
def policy(page: bytes) -> str:
    """The edge's own, and the one style that stands on the page."""
    style = re.search(b"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    allowed = b64encode(sha256(style[1]).digest()).decode()
    return f"{CONTENT_SECURITY_POLICY.decode()}; style-src 'sha256-{allowed}'"
