"""`/budgets/:id/…`: joining a budget, leaving it, removing somebody from it.

They are events like all others (`participant.add`, `participant.remove`), through the same door;
the server makes them. All of them are idempotent: what is so already is a success.
"""

from collections.abc import Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import respond
from api.http.errors import error_response
from api.http.requests import correlation, path_id, principal
from api.http.verdicts import submitted
from api.rest.core.invites import invite_hash
from hub.budget.events import Joining, Leaving
from hub.budget.records import UserId
from hub.errors import Code, HubError
from hub.hub import Hub
from hub.ports import Authenticator
from hub.tracing import Correlation
from storage.postgres.core.snapshots import Snapshots


def routes(
    hub: Hub,
    snapshots: Snapshots,
    authenticator: Authenticator,
    *,
    participants_max: int,
    now_ms: Callable[[], int],
    new_id: Callable[[], str],
) -> list[Route]:
    async def join(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id = path_id(request, "budget_id")
        token = request.query_params.get("invite")
        invite = None if token is None else invite_hash(token)
        event = Joining(new_id(), budget_id, who.user_id, now_ms(), participants_max, invite)
        refused = await refusal(who.user_id, event, correlation(request))
        if refused is not None and refused is not Code.ALREADY_PARTICIPANT:
            return error_response(request, refused)
        budget, participant = await snapshots.joined(budget_id, who.user_id)
        return respond(
            {"budget": orjson.Fragment(budget), "participant": orjson.Fragment(participant)}
        )

    async def leave(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id = path_id(request, "budget_id")
        event = Leaving(new_id(), budget_id, who.user_id, now_ms())
        refused = await refusal(who.user_id, event, correlation(request))
        if refused is not None and refused is not Code.NOT_PARTICIPANT:
            return error_response(request, refused)
        return respond({"budgetId": budget_id, "userId": who.user_id})

    async def read(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id, user_id = path_id(request, "budget_id"), _user_id(request)
        return respond(await snapshots.participant(budget_id, who.user_id, user_id))

    async def remove(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id, user_id = path_id(request, "budget_id"), _user_id(request)
        event = Leaving(new_id(), budget_id, user_id, now_ms())
        refused = await refusal(who.user_id, event, correlation(request))
        already = Code.NOT_PARTICIPANT if user_id == who.user_id else Code.ALREADY_LEFT
        if refused is not None and refused is not already:
            return error_response(request, refused)
        return respond({"budgetId": budget_id, "userId": user_id})

    async def refusal(actor: UserId, event: Joining | Leaving, called: Correlation) -> Code | None:
        [verdict] = await submitted(hub, actor, [event], "stop", called)
        return verdict.error

    joining = Route("/budgets/{budget_id}/join", join, methods=["GET", "POST"])
    assert joining.methods is not None
    joining.methods.discard("HEAD")  # comes with GET, and must not change anything
    return [
        joining,
        Route("/budgets/{budget_id}/leave", leave, methods=["DELETE"]),
        Route("/budgets/{budget_id}/participants/{user_id:opaque}", read, methods=["GET"]),
        Route("/budgets/{budget_id}/participants/{user_id:opaque}", remove, methods=["DELETE"]),
    ]


def _user_id(request: Request) -> UserId:
    """Raises `HubError` for what is nobody's id, and Postgres could not even look for."""
    user_id: str = request.path_params["user_id"]
    if "\0" in user_id:
        raise HubError(Code.PARTICIPANT_NOT_EXISTS)
    return user_id
