"""`/budgets/:id/invites` and `…/link-sharing`: what the owner may hand out to let others in."""

import hashlib
import secrets
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypedDict

from api.http.answers import JsonResponse, respond
from api.http.requests import Body, ForUsers, body, path_id
from hub.budget import records
from hub.budget.scalars import whole
from hub.budget.shapes.scalars import Id, Millis
from hub.ports import Principal
from storage.postgres.core.invites import Invites

TOKEN_BYTES = 24
WEEK_S = 7 * 24 * 3600
EXPIRES_IN_S_MAX = 30 * 24 * 3600
USES_MAX = 100
INVITES = "/budgets/{budget_id}/invites"


class NewInvite(Body):
    expires_in_s: Annotated[
        int, Field(strict=True, ge=1, le=EXPIRES_IN_S_MAX), BeforeValidator(whole)
    ] = WEEK_S
    max_uses: Annotated[int, Field(strict=True, ge=1, le=USES_MAX), BeforeValidator(whole)] = 10


class LinkSharing(Body):
    enabled: Annotated[bool, Field(strict=True)]


Uses = Annotated[int, Field(ge=1, le=USES_MAX)]


class Invited(TypedDict):
    """`token` is shown here and nowhere else; the link is `/budgets/:id/join?invite=<token>`."""

    budgetId: Id
    inviteId: Id
    token: str
    expiresAt: Millis
    maxUses: Uses


class Invite(TypedDict):
    """It lets in until `expiresAt`, `maxUses` times, unless it is `revoked`."""

    inviteId: Id
    createdAt: Millis
    expiresAt: Millis
    maxUses: Uses
    uses: Annotated[int, Field(ge=0, le=USES_MAX)]
    revoked: bool


class InviteList(TypedDict):
    """In the order of creation, with those that no longer let in."""

    budgetId: Id
    invites: list[Invite]


class Revoked(TypedDict):
    budgetId: Id
    inviteId: Id


class LinkShared(TypedDict):
    budgetId: Id
    enabled: Annotated[bool, Field(description="The budget's bare id lets in")]


class InviteRoutes(NamedTuple):
    invites: Invites
    now_ms: Callable[[], int]
    new_id: Callable[[], str]

    def routes(self, user: ForUsers) -> list[Route]:
        return [
            Route(INVITES, user(self.create), methods=["POST"]),
            Route(INVITES, user(self.read)),
            Route(f"{INVITES}/{{invite_id}}", user(self.revoke), methods=["DELETE"]),
            Route("/budgets/{budget_id}/link-sharing", user(self.share_link), methods=["PUT"]),
        ]

    async def create(self, request: Request, who: Principal) -> JsonResponse[Invited, Literal[201]]:
        """The answer is the only place that ever shows the token."""
        budget_id, wanted = path_id(request, "budget_id"), await body(request, NewInvite)
        token, created_at = secrets.token_urlsafe(TOKEN_BYTES), self.now_ms()
        invite = records.Invite(
            budget_id,
            self.new_id(),
            invite_hash(token),
            created_at,
            created_at + wanted.expires_in_s * 1000,
            wanted.max_uses,
            uses=0,
            revoked=False,
        )
        await self.invites.create(who.user_id, invite)
        return respond(
            {
                "budgetId": budget_id,
                "inviteId": invite.id,
                "token": token,
                "expiresAt": invite.expires_at,
                "maxUses": invite.max_uses,
            },
            201,
        )

    async def read(self, request: Request, who: Principal) -> JsonResponse[InviteList]:
        budget_id = path_id(request, "budget_id")
        found = await self.invites.of_budget(who.user_id, budget_id)
        return respond({"budgetId": budget_id, "invites": [_to_json(invite) for invite in found]})

    async def revoke(self, request: Request, who: Principal) -> JsonResponse[Revoked]:
        budget_id, invite_id = path_id(request, "budget_id"), path_id(request, "invite_id")
        await self.invites.revoke(who.user_id, budget_id, invite_id)
        return respond({"budgetId": budget_id, "inviteId": invite_id})

    async def share_link(self, request: Request, who: Principal) -> JsonResponse[LinkShared]:
        budget_id, wanted = path_id(request, "budget_id"), await body(request, LinkSharing)
        await self.invites.share_link(who.user_id, budget_id, wanted.enabled)
        return respond({"budgetId": budget_id, "enabled": wanted.enabled})


def _to_json(invite: records.Invite) -> Invite:
    """Without its token, which nobody knows any more."""
    return {
        "inviteId": invite.id,
        "createdAt": invite.created_at,
        "expiresAt": invite.expires_at,
        "maxUses": invite.max_uses,
        "uses": invite.uses,
        "revoked": invite.revoked,
    }


def invite_hash(token: str) -> bytes:
    """What is stored of an invite's token: it is random, so a plain hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
