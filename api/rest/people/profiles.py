"""`/user` and `/profiles/:userId`: the caller's own profile, and what others may see of one."""

from typing import Annotated, NamedTuple

from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypedDict

from api.auth.closing import AccountClosing
from api.auth.routes import Email
from api.http.answers import JsonResponse, respond
from api.http.requests import Body, ForUsers, body, correlation
from hub.budget.shapes.scalars import UserId
from hub.errors import Code, HubError
from hub.ports import Principal
from storage.postgres.people import profiles
from storage.postgres.people.profiles import Profiles

USER_ID_MAX = 128  # characters

Name = Annotated[str, StringConstraints(strict=True, max_length=200, pattern=r"^[^\x00]*$")]


class ProfileFields(Body):
    """Absent is unchanged, null clears."""

    email: Annotated[Email | None, Field(repr=False)] = None
    first_name: Annotated[Name | None, Field(repr=False)] = None
    last_name: Annotated[Name | None, Field(repr=False)] = None


class Profile(TypedDict):
    """What others may see of somebody: never the e-mail."""

    id: UserId
    firstName: str | None
    lastName: str | None
    photo: str | None


class OwnProfile(Profile):
    """With what only the user may see."""

    email: str | None


class Forgotten(TypedDict):
    """The user whose account is closed."""

    userId: UserId


class ProfileRoutes(NamedTuple):
    profiles: Profiles
    closing: AccountClosing

    def routes(self, user: ForUsers, *, closed_too: ForUsers) -> list[Route]:
        """`closed_too` lets in a user whose account is closed: the answer may have been lost."""
        return [
            Route("/user", user(self.read)),
            Route("/user", user(self.write), methods=["PUT"]),
            Route("/user", closed_too(self.delete), methods=["DELETE"]),
            Route("/profiles/{user_id:opaque}", user(self.read_other)),
        ]

    async def read(self, request: Request, who: Principal) -> JsonResponse[OwnProfile]:
        return respond(_own(await self.profiles.read(who.user_id)))

    async def write(self, request: Request, who: Principal) -> JsonResponse[OwnProfile]:
        asked = await body(request, ProfileFields)
        fields = {name: getattr(asked, name) for name in asked.model_fields_set}
        return respond(_own(await self.profiles.write(who.user_id, fields)))

    async def delete(self, request: Request, who: Principal) -> JsonResponse[Forgotten]:
        await self.closing.close(who, correlation(request))
        return respond({"userId": who.user_id})

    async def read_other(self, request: Request, who: Principal) -> JsonResponse[Profile]:
        user_id: str = request.path_params["user_id"]
        if len(user_id) > USER_ID_MAX or "\0" in user_id:
            raise HubError(Code.USER_NOT_FOUND)
        return respond(_public(await self.profiles.read(user_id)))


def _own(profile: profiles.Profile) -> OwnProfile:
    return {**_public(profile), "email": profile.email}


def _public(profile: profiles.Profile) -> Profile:
    return {
        "id": profile.user_id,
        "firstName": profile.first_name,
        "lastName": profile.last_name,
        "photo": profile.photo,
    }
