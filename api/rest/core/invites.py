"""`/budgets/:id/invites` and `…/link-sharing`: what the owner may hand out to let others in."""

import hashlib
import secrets
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import respond
from api.http.requests import body, path_id, principal
from hub.budget.records import Invite
from hub.budget.scalars import whole
from hub.ports import Authenticator
from storage.postgres.core.invites import Invites

TOKEN_BYTES = 24
WEEK_S = 7 * 24 * 3600
EXPIRES_IN_S_MAX = 30 * 24 * 3600
USES_MAX = 100


class _Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", hide_input_in_errors=True)


class NewInvite(_Body):
    expires_in_s: Annotated[
        int, Field(strict=True, ge=1, le=EXPIRES_IN_S_MAX), BeforeValidator(whole)
    ] = WEEK_S
    max_uses: Annotated[int, Field(strict=True, ge=1, le=USES_MAX), BeforeValidator(whole)] = 10


class LinkSharing(_Body):
    enabled: Annotated[bool, Field(strict=True)]


def routes(
    invites: Invites,
    authenticator: Authenticator,
    *,
    now_ms: Callable[[], int],
    new_id: Callable[[], str],
) -> list[Route]:
    async def create(request: Request) -> Response:
        """The answer is the only place that ever shows the token."""
        who = await principal(request, authenticator)
        budget_id, wanted = path_id(request, "budget_id"), await body(request, NewInvite)
        token, created_at = secrets.token_urlsafe(TOKEN_BYTES), now_ms()
        invite = Invite(
            budget_id,
            new_id(),
            invite_hash(token),
            created_at,
            created_at + wanted.expires_in_s * 1000,
            wanted.max_uses,
            uses=0,
            revoked=False,
        )
        await invites.create(who.user_id, invite)
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

    async def read(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id = path_id(request, "budget_id")
        found = await invites.of_budget(who.user_id, budget_id)
        return respond({"budgetId": budget_id, "invites": found})

    async def revoke(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id, invite_id = path_id(request, "budget_id"), path_id(request, "invite_id")
        await invites.revoke(who.user_id, budget_id, invite_id)
        return respond({"budgetId": budget_id, "inviteId": invite_id})

    async def share_link(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id, wanted = path_id(request, "budget_id"), await body(request, LinkSharing)
        await invites.share_link(who.user_id, budget_id, wanted.enabled)
        return respond({"budgetId": budget_id, "enabled": wanted.enabled})

    return [
        Route("/budgets/{budget_id}/invites", create, methods=["POST"]),
        Route("/budgets/{budget_id}/invites", read, methods=["GET"]),
        Route("/budgets/{budget_id}/invites/{invite_id}", revoke, methods=["DELETE"]),
        Route("/budgets/{budget_id}/link-sharing", share_link, methods=["PUT"]),
    ]


def invite_hash(token: str) -> bytes:
    """What is stored of an invite's token: it is random, so a plain hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
