"""`/auth/*`: registering, signing in and refreshing, for the local identity only (no token)."""

import re
from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints
from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypedDict

from api.auth.local import LocalIdentity, SignedIn
from api.http.addresses import ADDRESS
from api.http.answers import JsonResponse, respond
from api.http.guard import RequestLimits
from api.http.requests import UNSIGNED_BODY_BYTES_MAX, Body, body
from hub.budget.shapes.scalars import Millis, UserId


class SignedInAnswer(TypedDict):
    """What a client keeps. `expiresAt` is of `token`; `refreshToken` gets the next one, once."""

    userId: UserId
    token: str
    expiresAt: Millis
    refreshToken: str


class AuthRoutes(NamedTuple):
    identity: LocalIdentity
    limits: RequestLimits

    def routes(self) -> list[Route]:
        return [
            Route("/auth/register", self.register, methods=["POST"]),
            Route("/auth/login", self.login, methods=["POST"]),
            Route("/auth/refresh", self.refresh, methods=["POST"]),
        ]

    async def register(self, request: Request) -> JsonResponse[SignedInAnswer, Literal[201]]:
        asked = await body(request, RegisterRequest, UNSIGNED_BODY_BYTES_MAX)
        await self.limits.login(request.scope, asked.email)
        session = await self.identity.register(
            asked.email,
            asked.password,
            asked.first_name,
            asked.last_name,
            address=request.scope.get(ADDRESS, ""),
        )
        return respond(_to_json(session), 201)

    async def login(self, request: Request) -> JsonResponse[SignedInAnswer]:
        asked = await body(request, LoginRequest, UNSIGNED_BODY_BYTES_MAX)
        await self.limits.login(request.scope, asked.email)
        address = request.scope.get(ADDRESS, "")
        session = await self.identity.login(asked.email, asked.password, address=address)
        return respond(_to_json(session))

    async def refresh(self, request: Request) -> JsonResponse[SignedInAnswer]:
        asked = await body(request, RefreshRequest, UNSIGNED_BODY_BYTES_MAX)
        return respond(_to_json(await self.identity.refresh(asked.refresh_token)))


# Neither white space nor control characters, spelled out because `\s` means other characters to the
# readers of the documents. Enough to catch a slip of the finger; whether the address exists only a
# letter could tell.
_PART = r"[^@\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
_EMAIL = rf"^{_PART}@{_PART}\.{_PART}$"


def _address(text: str) -> str:
    if re.fullmatch(_EMAIL, text) is None:
        raise ValueError("not an e-mail address")
    return text


Email: TypeAlias = Annotated[
    str,
    StringConstraints(strict=True, strip_whitespace=True, max_length=320),
    AfterValidator(_address),
    Field(json_schema_extra={"pattern": _EMAIL}),
]
Name: TypeAlias = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=200, pattern=r"^[^\x00]*$")
]
# `repr=False`, and `hide_input_in_errors` of `Body`, keep what is secret out of logs and answers.
NewPassword: TypeAlias = Annotated[
    str, StringConstraints(strict=True, min_length=8, max_length=128), Field(repr=False)
]
# Without the lower bound: a password that is too short is a wrong one, not a malformed request.
Password: TypeAlias = Annotated[
    str, StringConstraints(strict=True, max_length=128), Field(repr=False)
]


class RegisterRequest(Body):
    email: Email
    password: NewPassword
    first_name: Name | None = None
    last_name: Name | None = None


class LoginRequest(Body):
    email: Email
    password: Password


class RefreshRequest(Body):
    refresh_token: Annotated[str, StringConstraints(strict=True), Field(repr=False)]


def _to_json(session: SignedIn) -> SignedInAnswer:
    return {
        "userId": session.user_id,
        "token": session.token,
        "expiresAt": session.expires_at_ms,
        "refreshToken": session.refresh_token,
    }
