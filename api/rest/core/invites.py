"""`/budgets/:id/invites` and `…/link-sharing`: what the owner may hand out to let others in."""

import hashlib
import secrets
from collections.abc import Callable
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import respond
from api.http.requests import Body, ForUsers, body, path_id
from hub.budget.records import Invite
from hub.budget.scalars import whole
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

    async def create(self, request: Request, who: Principal) -> Response:
        """The answer is the only place that ever shows the token."""
        budget_id, wanted = path_id(request, "budget_id"), await body(request, NewInvite)
        token, created_at = secrets.token_urlsafe(TOKEN_BYTES), self.now_ms()
        invite = Invite(
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

    async def read(self, request: Request, who: Principal) -> Response:
        budget_id = path_id(request, "budget_id")
        found = await self.invites.of_budget(who.user_id, budget_id)
        return respond({"budgetId": budget_id, "invites": [_to_json(invite) for invite in found]})

    async def revoke(self, request: Request, who: Principal) -> Response:
        budget_id, invite_id = path_id(request, "budget_id"), path_id(request, "invite_id")
        await self.invites.revoke(who.user_id, budget_id, invite_id)
        return respond({"budgetId": budget_id, "inviteId": invite_id})

    async def share_link(self, request: Request, who: Principal) -> Response:
        budget_id, wanted = path_id(request, "budget_id"), await body(request, LinkSharing)
        await self.invites.share_link(who.user_id, budget_id, wanted.enabled)
        return respond({"budgetId": budget_id, "enabled": wanted.enabled})


def _to_json(invite: Invite) -> dict[str, object]:
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
