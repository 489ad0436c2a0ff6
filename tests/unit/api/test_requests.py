"""Handlers that take the user who asks."""

from typing import NamedTuple

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.requests import signed_in
from hub.errors import Code, HubError
from hub.ports import Principal

ANN = Principal("ann", 2, 1, 2.0)


class Known:
    """An `Authenticator` that knows one token."""

    async def authenticate(self, token: str, address: str = "") -> Principal:
        if token != "good":
            raise HubError(Code.NOT_LOGGED_IN)
        return ANN


class Resource(NamedTuple):
    asked: list[Principal]

    async def read(self, request: Request, who: Principal) -> Response:
        self.asked.append(who)
        return Response(who.user_id)


def request(*authorization: bytes) -> Request:
    headers = [(b"authorization", value) for value in authorization]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers})


async def test_a_method_is_called_with_the_user_who_asks() -> None:
    resource = Resource([])
    response = await signed_in(Known(), resource.read)(request(b"Bearer good"))
    assert (response.body, resource.asked) == (b"ann", [ANN])


@pytest.mark.parametrize("given", [[], [b""], [b"Bearer "], [b"Basic good"], [b"Bearer bad"]])
async def test_it_is_not_called_for_anybody_else(given: list[bytes]) -> None:
    resource = Resource([])
    with pytest.raises(HubError) as refused:
        await signed_in(Known(), resource.read)(request(*given))
    assert (refused.value.code, resource.asked) == (Code.NOT_LOGGED_IN, [])


def test_starlette_takes_it_for_a_handler() -> None:
    """It takes a callable object for an ASGI application, with every method allowed."""
    assert Route("/", signed_in(Known(), Resource([]).read)).methods == {"GET", "HEAD"}
