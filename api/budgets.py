"""`/budgets`: creating a budget and reading it whole."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http import error_response, json_body, path_id, principal, respond
from hub.errors import Code, HubError
from hub.events import parse_batch
from hub.hub import Hub
from hub.ports import Authenticator
from storage.snapshots import Snapshots


def routes(hub: Hub, snapshots: Snapshots, authenticator: Authenticator) -> list[Route]:
    async def create(request: Request) -> Response:
        """The `budget.create` event by another name: its `id` is the event's `budgetId`."""
        who = await principal(request, authenticator)
        raw = await json_body(request)
        if not isinstance(raw, dict):
            raise HubError(Code.BAD_REQUEST, "the body is not an object")
        event = {**raw, "eventType": "budget.create", "budgetId": raw.get("id")}
        [verdict] = await hub.submit(who.user_id, parse_batch([event], 1), "stop")
        if verdict.error is not None:
            return error_response(request, verdict.error, verdict.detail)
        return respond(verdict.to_wire(legacy_event=True), 201)

    async def read(request: Request) -> Response:
        who = await principal(request, authenticator)
        return respond(await snapshots.read(path_id(request, "budget_id"), who.user_id))

    return [
        Route("/budget", create, methods=["POST"]),
        Route("/budgets", create, methods=["POST"]),
        Route("/budgets/{budget_id}", read, methods=["GET"]),
    ]
