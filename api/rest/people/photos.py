"""`/user/photo-…`: uploading a profile photo."""

from urllib.parse import urljoin

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import respond
from api.http.requests import as_int, body, principal
from hub.budget.scalars import Uuid
from hub.errors import Code, HubError
from hub.ports import Authenticator
from storage.objects.media_types import PhotoType
from storage.objects.photos import Photos


class Confirmation(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)
    key: Uuid


def routes(photos: Photos, authenticator: Authenticator, *, behind_proxy: bool) -> list[Route]:
    """`behind_proxy`: believe what `X-Forwarded-Proto` says of the address a client uses."""

    async def begin(request: Request) -> Response:
        who = await principal(request, authenticator)
        content_type = _type(request.query_params.get("type", ""))
        size_bytes = as_int(request.query_params.get("size", ""), "size", least=1)
        upload = await photos.begin(who.user_id, content_type, size_bytes)
        return respond(
            {
                "url": urljoin(_origin(request, behind_proxy), upload.url),
                "expiresInSeconds": upload.expires_in_s,
                "key": upload.key,
                "headers": {"Content-Type": upload.content_type},
            }
        )

    async def confirm(request: Request) -> Response:
        who = await principal(request, authenticator)
        asked = await body(request, Confirmation)
        return respond({"photo": await photos.confirm(who.user_id, asked.key)}, 201)

    async def remove(request: Request) -> Response:
        who = await principal(request, authenticator)
        await photos.remove(who.user_id)
        return Response(status_code=204)

    return [
        Route("/user/photo-upload-url", begin, methods=["GET"]),
        Route("/user/confirm-photo-upload", confirm, methods=["POST"]),
        Route("/user/photo-upload-confirm", confirm, methods=["PUT"]),  # as legacy clients do
        Route("/user/profile-photo", remove, methods=["DELETE"]),
    ]


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
