"""`/user` and `/profiles/:userId`: the caller's own profile, and what others may see of one."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth.closing import AccountClosing
from api.auth.routes import Email
from api.http.answers import respond
from api.http.requests import body, correlation, principal
from hub.errors import Code, HubError
from hub.ports import Authenticator
from storage.postgres.people.profiles import Profile, Profiles

USER_ID_MAX = 128  # characters

Name = Annotated[str, StringConstraints(strict=True, max_length=200, pattern=r"^[^\x00]*$")]


class ProfileFields(BaseModel):
    """Absent is unchanged, null clears."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", hide_input_in_errors=True)
    email: Annotated[Email | None, Field(repr=False)] = None
    first_name: Annotated[Name | None, Field(repr=False)] = None
    last_name: Annotated[Name | None, Field(repr=False)] = None


def routes(
    profiles: Profiles,
    closing: AccountClosing,
    authenticator: Authenticator,
    *,
    closed_too: Authenticator,
) -> list[Route]:
    """`closed_too` lets in who has closed the account already: the answer may have been lost."""

    async def read(request: Request) -> Response:
        who = await principal(request, authenticator)
        return respond(_own(await profiles.read(who.user_id)))

    async def write(request: Request) -> Response:
        who = await principal(request, authenticator)
        asked = await body(request, ProfileFields)
        fields = {name: getattr(asked, name) for name in asked.model_fields_set}
        return respond(_own(await profiles.write(who.user_id, fields)))

    async def delete(request: Request) -> Response:
        who = await principal(request, closed_too)
        await closing.close(who, correlation(request))
        return respond({"userId": who.user_id})

    async def read_other(request: Request) -> Response:
        await principal(request, authenticator)
        user_id: str = request.path_params["user_id"]
        if len(user_id) > USER_ID_MAX or "\0" in user_id:
            raise HubError(Code.USER_NOT_FOUND)
        return respond(_public(await profiles.read(user_id)))

    return [
        Route("/user", read, methods=["GET"]),
        Route("/user", write, methods=["PUT"]),
        Route("/user", delete, methods=["DELETE"]),
        Route("/profiles/{user_id:opaque}", read_other, methods=["GET"]),
    ]


def _own(profile: Profile) -> dict[str, object]:
    return {**_public(profile), "email": profile.email}


def _public(profile: Profile) -> dict[str, object]:
    """Never the e-mail (design 3.4)."""
    return {
        "id": profile.user_id,
        "firstName": profile.first_name,
        "lastName": profile.last_name,
        "photo": profile.photo,
    }
