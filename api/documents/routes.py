"""`/openapi.json`, `/asyncapi.json`, `/postman.json` and `/docs`: the files that `make documents`
has written, as they are."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import JsonResponse, packed, respond_large
from api.http.edge import CONTENT_SECURITY_POLICY
from hub.json_text import written

Document: TypeAlias = dict[str, Any]


class Documents(NamedTuple):
    folder: Path = Path(__file__).with_name("files")

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
        page = await anyio.Path(self.folder / "docs.html").read_bytes()
        text, headers = await packed(request, page, {"Content-Security-Policy": policy(page)})
        return Response(text, headers=headers, media_type="text/html")

    async def _file(self, request: Request, name: str) -> JsonResponse[Document]:
        document: Document = written(await anyio.Path(self.folder / name).read_bytes())
        return await respond_large(request, document)


def policy(page: bytes) -> str:
    """The edge's own, and the one style that stands on the page."""
    style = re.search(b"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    allowed = b64encode(sha256(style[1]).digest()).decode()
    return f"{CONTENT_SECURITY_POLICY.decode()}; style-src 'sha256-{allowed}'"
