"""`/budgets`: creating a budget, and reading what it is: whole, in parts, or what has changed."""

from typing import NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import VARY, respond, respond_large
from api.http.requests import ForUsers, correlation, json_body, path_id, query_int
from api.http.verdicts import submitted
from hub.budget.events import parse_batch
from hub.errors import Code, HubError
from hub.hub import Hub
from hub.ports import Principal
from storage.postgres.core.snapshots import Snapshots

COUNT_MAX = 100


class BudgetRoutes(NamedTuple):
    hub: Hub
    snapshots: Snapshots

    def routes(self, user: ForUsers) -> list[Route]:
        return [
            Route("/budget", user(self.create), methods=["POST"]),
            Route("/budgets", user(self.create), methods=["POST"]),
            Route("/budgets", user(self.list_budgets)),
            Route("/budgets/{budget_id}", user(self.read)),
            Route("/budgets/{budget_id}/delta", user(self.delta)),
            Route("/budgets/{budget_id}/last-event-sequence", user(self.head)),
            Route("/budgets/{budget_id}/participants", user(self.participants)),
            Route("/budgets/{budget_id}/categories", user(self.categories)),
            Route("/budgets/{budget_id}/categories/{category_id}", user(self.category)),
            Route("/budgets/{budget_id}/expenses", user(self.expenses)),
            Route("/budgets/{budget_id}/expenses/{expense_id}", user(self.expense)),
        ]

    async def create(self, request: Request, who: Principal) -> Response:
        """The `budget.create` event by another name: its `id` is the event's `budgetId`."""
        raw = await json_body(request)
        if not isinstance(raw, dict):
            raise HubError(Code.BAD_REQUEST, "the body is not an object")
        event = {**raw, "eventType": "budget.create", "budgetId": raw.get("id")}
        events = parse_batch([event], 1)
        [verdict] = await submitted(self.hub, who.user_id, events, "stop", correlation(request))
        if verdict.error is not None:
            raise HubError(verdict.error, verdict.detail)
        return respond(verdict.to_json(legacy_event=True), 201)

    async def read(self, request: Request, who: Principal) -> Response:
        budget_id = path_id(request, "budget_id")
        seen = _tags(request)
        if seen:
            tag = await self.snapshots.tag(budget_id, who.user_id)
            if tag in seen or "*" in seen:
                return Response(status_code=304, headers={**_tagged(tag), **VARY})
        snapshot = await self.snapshots.read(budget_id, who.user_id)
        return await respond_large(request, snapshot.text, _tagged(snapshot.tag))

    async def delta(self, request: Request, who: Principal) -> Response:
        budget_id, key = path_id(request, "budget_id"), query_int(request, "key", 0)
        found = await self.snapshots.delta(budget_id, who.user_id, key)
        changed = {"budget": found.budget, "participants": found.participants}
        body = {
            "budgetId": budget_id,
            "key": key,
            "categories": orjson.Fragment(found.categories),
            "expenses": orjson.Fragment(found.expenses),
            **{name: orjson.Fragment(text) for name, text in changed.items() if text is not None},
            "lastEventSequence": found.head,
            "digest": found.digest,
            "logId": found.log_id,
        }
        return await respond_large(request, orjson.dumps(body))

    async def head(self, request: Request, who: Principal) -> Response:
        budget_id = path_id(request, "budget_id")
        last_sequence, digest = await self.snapshots.head(budget_id, who.user_id)
        return respond({"budgetId": budget_id, "lastSequence": last_sequence, "digest": digest})

    async def list_budgets(self, request: Request, who: Principal) -> Response:
        key, count = _page(request)
        next_key, found = await self.snapshots.budgets(who.user_id, key, count)
        page = {"userId": who.user_id, "key": key, "nextKey": next_key}
        return respond({**page, "budgets": orjson.Fragment(found)})

    async def categories(self, request: Request, who: Principal) -> Response:
        found = await self.snapshots.categories(path_id(request, "budget_id"), who.user_id)
        return await respond_large(request, b'{"categories":%b}' % found)

    async def participants(self, request: Request, who: Principal) -> Response:
        found = await self.snapshots.participants(path_id(request, "budget_id"), who.user_id)
        return await respond_large(request, b'{"participants":%b}' % found)

    async def expenses(self, request: Request, who: Principal) -> Response:
        budget_id = path_id(request, "budget_id")
        key, count = _page(request)
        next_key, found = await self.snapshots.expenses(budget_id, who.user_id, key, count)
        page = {"budgetId": budget_id, "key": key, "nextKey": next_key}
        body = orjson.dumps({**page, "expenses": orjson.Fragment(found)})
        return await respond_large(request, body)

    async def category(self, request: Request, who: Principal) -> Response:
        budget_id, id = path_id(request, "budget_id"), path_id(request, "category_id")
        return respond(await self.snapshots.category(budget_id, who.user_id, id))

    async def expense(self, request: Request, who: Principal) -> Response:
        budget_id, id = path_id(request, "budget_id"), path_id(request, "expense_id")
        return respond(await self.snapshots.expense(budget_id, who.user_id, id))


def _page(request: Request) -> tuple[int, int]:
    """Key and count of a page; a count above `COUNT_MAX` is that."""
    count = query_int(request, "count", COUNT_MAX, least=1)
    return query_int(request, "key", 0), min(count, COUNT_MAX)


def _tags(request: Request) -> set[str]:
    """What the client has, by `If-None-Match`; `*` is whatever there is."""
    offered = ",".join(request.headers.getlist("if-none-match")).split(",")
    return {tag.strip().removeprefix("W/").strip('"') for tag in offered} - {""}


def _tagged(tag: str) -> dict[str, str]:
    return {"ETag": f'W/"{tag}"', "Cache-Control": "private, no-cache"}
