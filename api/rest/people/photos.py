"""`/user/photo-…`: uploading a profile photo."""

from typing import Annotated, Literal, NamedTuple
from urllib.parse import urljoin

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from api.http.answers import JsonResponse, respond
from api.http.requests import Body, ForUsers, as_int, body
from hub.budget.scalars import Uuid
from hub.budget.shapes.scalars import Id
from hub.errors import Code, HubError
from hub.ports import Principal
from storage.objects.media_types import PhotoType
from storage.objects.photos import Photos


class Confirmation(Body):
    key: Uuid


class PhotoUpload(TypedDict):
    """`headers` are to be sent with the upload; the URL counts for `expiresInSeconds`."""

    url: str
    expiresInSeconds: Annotated[int, Field(ge=1)]
    key: Id
    headers: dict[str, str]


class Photo(TypedDict):
    """The photo's address, which anybody may read."""

    photo: str


class PhotoRoutes(NamedTuple):
    photos: Photos
    behind_proxy: bool  # believe what `X-Forwarded-Proto` says of the address a client uses

    def routes(self, user: ForUsers) -> list[Route]:
        return [
            Route("/user/photo-upload-url", user(self.begin)),
            Route("/user/confirm-photo-upload", user(self.confirm), methods=["POST"]),
            # As legacy clients do.
            Route("/user/photo-upload-confirm", user(self.confirm), methods=["PUT"]),
            Route("/user/profile-photo", user(self.remove), methods=["DELETE"]),
        ]

    async def begin(self, request: Request, who: Principal) -> JsonResponse[PhotoUpload]:
        content_type = _type(request.query_params.get("type", ""))
        size_bytes = as_int(request.query_params.get("size", ""), "size", least=1)
        upload = await self.photos.begin(who.user_id, content_type, size_bytes)
        return respond(
            {
                "url": urljoin(_origin(request, self.behind_proxy), upload.url),
                "expiresInSeconds": upload.expires_in_s,
                "key": upload.key,
                "headers": {"Content-Type": upload.content_type},
            }
        )

    async def confirm(self, request: Request, who: Principal) -> JsonResponse[Photo, Literal[201]]:
        asked = await body(request, Confirmation)
        return respond({"photo": await self.photos.confirm(who.user_id, asked.key)}, 201)

    async def remove(self, request: Request, who: Principal) -> Response:
        await self.photos.remove(who.user_id)
        return Response(status_code=204)


def _type(text: str) -> PhotoType:
    try:
        return PhotoType(text)
    except ValueError:
        raise HubError(Code.BAD_REQUEST, f"type: one of {', '.join(PhotoType)}") from None


def _origin(request: Request, behind_proxy: bool) -> str:
    """The address by which the client has reached us; it is told to nobody else."""
    url = request.base_url
    proto = request.headers.get("x-forwarded-proto", "").rpartition(",")[2].strip()
    if behind_proxy and proto in ("http", "https"):
        url = url.replace(scheme=proto)
    return str(url)
