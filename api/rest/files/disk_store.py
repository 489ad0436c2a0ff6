"""`/photos/…`: the store of a hub without S3."""

from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from hub.errors import Code, HubError
from storage.objects.disk import PUBLIC_PATH, UPLOAD_PATH, DiskPhotos
from storage.objects.media_types import sniffed
from storage.objects.store import CACHE_CONTROL


class DiskStoreRoutes(NamedTuple):
    """What S3 and the CDN would do: no token, for upload URLs are signed and photos public."""

    disk: DiskPhotos

    def routes(self) -> list[Route]:
        return [
            Route(f"{UPLOAD_PATH}/{{folder}}/{{key}}", self.receive, methods=["PUT"]),
            Route(f"{PUBLIC_PATH}/user-photos/{{folder}}/{{key}}", self.read),
        ]

    async def receive(self, request: Request) -> Response:
        await self.disk.receive(
            request.path_params["folder"],
            request.path_params["key"],
            content_type=request.headers.get("content-type", ""),
            content_length=request.headers.get("content-length"),
            size=request.query_params.get("size", ""),
            expires=request.query_params.get("expires", ""),
            signature=request.query_params.get("signature", ""),
            body=request.stream(),
        )
        return Response(status_code=200)

    async def read(self, request: Request) -> Response:
        path_params = request.path_params
        found = await self.disk.public_file(path_params["folder"], path_params["key"])
        if found is None:
            raise HubError(Code.PHOTO_NOT_FOUND)
        path, head = found
        headers = {"Cache-Control": CACHE_CONTROL}
        return FileResponse(path, media_type=sniffed(head), headers=headers)
