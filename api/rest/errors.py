"""`GET /errors`: every code a client can meet."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import respond
from hub.errors import Code


def routes() -> list[Route]:
    return [Route("/errors", table)]


async def table(request: Request) -> Response:
    codes = [{**code.to_json(), "closeCode": code.close} for code in Code]
    response = respond({"errors": codes})
    response.headers["Cache-Control"] = "public, max-age=3600"
    return response
