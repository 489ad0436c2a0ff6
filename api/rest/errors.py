"""`GET /errors`: every code a client can meet."""

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypedDict

from api.http.answers import JsonResponse, respond
from hub.errors import Code, Error


class CodeOfTable(Error):
    """`detail` is what the code means."""

    closeCode: Annotated[
        Annotated[int, Field(ge=1000, le=4999)] | None,
        Field(description="With which the socket closes, where it does"),
    ]


class ErrorTable(TypedDict):
    errors: list[CodeOfTable]


def routes() -> list[Route]:
    return [Route("/errors", table)]


async def table(request: Request) -> JsonResponse[ErrorTable]:
    codes: list[CodeOfTable] = [{**code.to_json(), "closeCode": code.close} for code in Code]
    response: JsonResponse[ErrorTable] = respond({"errors": codes})
    response.headers["Cache-Control"] = "public, max-age=3600"
    return response
