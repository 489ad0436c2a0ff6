"""`/budgets`: creating a budget, and reading what it is: whole, in parts, or what has changed."""

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.answers import VARY, respond, respond_large
from api.http.errors import error_response
from api.http.requests import correlation, json_body, path_id, principal, query_int
from api.http.verdicts import submitted
from hub.budget.events import parse_batch
from hub.errors import Code, HubError
from hub.hub import Hub
from hub.ports import Authenticator
from storage.postgres.core.snapshots import Snapshots

COUNT_MAX = 100


def routes(hub: Hub, snapshots: Snapshots, authenticator: Authenticator) -> list[Route]:
    async def create(request: Request) -> Response:
        """The `budget.create` event by another name: its `id` is the event's `budgetId`."""
        who = await principal(request, authenticator)
        raw = await json_body(request)
        if not isinstance(raw, dict):
            raise HubError(Code.BAD_REQUEST, "the body is not an object")
        event = {**raw, "eventType": "budget.create", "budgetId": raw.get("id")}
        events = parse_batch([event], 1)
        called = correlation(request)
        [verdict] = await submitted(hub, who.user_id, events, "stop", called)
        if verdict.error is not None:
            return error_response(request, verdict.error, verdict.detail)
        return respond(verdict.to_json(legacy_event=True), 201)

    async def read(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id = path_id(request, "budget_id")
        seen = _tags(request)
        if seen:
            tag = await snapshots.tag(budget_id, who.user_id)
            if tag in seen or "*" in seen:
                return Response(status_code=304, headers={**_tagged(tag), **VARY})
        snapshot = await snapshots.read(budget_id, who.user_id)
        return await respond_large(request, snapshot.text, _tagged(snapshot.tag))

    async def delta(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id, key = path_id(request, "budget_id"), query_int(request, "key", 0)
        found = await snapshots.delta(budget_id, who.user_id, key)
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

    async def head(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id = path_id(request, "budget_id")
        last_sequence, digest = await snapshots.head(budget_id, who.user_id)
        return respond({"budgetId": budget_id, "lastSequence": last_sequence, "digest": digest})

    async def list_budgets(request: Request) -> Response:
        who = await principal(request, authenticator)
        key, count = _page(request)
        next_key, budgets = await snapshots.budgets(who.user_id, key, count)
        return respond(
            {
                "userId": who.user_id,
                "key": key,
                "nextKey": next_key,
                "budgets": orjson.Fragment(budgets),
            }
        )

    async def categories(request: Request) -> Response:
        who = await principal(request, authenticator)
        found = await snapshots.categories(path_id(request, "budget_id"), who.user_id)
        return await respond_large(request, b'{"categories":%b}' % found)

    async def participants(request: Request) -> Response:
        who = await principal(request, authenticator)
        found = await snapshots.participants(path_id(request, "budget_id"), who.user_id)
        return await respond_large(request, b'{"participants":%b}' % found)

    async def expenses(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id = path_id(request, "budget_id")
        key, count = _page(request)
        next_key, found = await snapshots.expenses(budget_id, who.user_id, key, count)
        body = {
            "budgetId": budget_id,
            "key": key,
            "nextKey": next_key,
            "expenses": orjson.Fragment(found),
        }
        return await respond_large(request, orjson.dumps(body))

    async def category(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id, id = path_id(request, "budget_id"), path_id(request, "category_id")
        return respond(await snapshots.category(budget_id, who.user_id, id))

    async def expense(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id, id = path_id(request, "budget_id"), path_id(request, "expense_id")
        return respond(await snapshots.expense(budget_id, who.user_id, id))

    return [
        Route("/budget", create, methods=["POST"]),
        Route("/budgets", create, methods=["POST"]),
        Route("/budgets", list_budgets, methods=["GET"]),
        Route("/budgets/{budget_id}", read, methods=["GET"]),
        Route("/budgets/{budget_id}/delta", delta, methods=["GET"]),
        Route("/budgets/{budget_id}/last-event-sequence", head, methods=["GET"]),
        Route("/budgets/{budget_id}/participants", participants, methods=["GET"]),
        Route("/budgets/{budget_id}/categories", categories, methods=["GET"]),
        Route("/budgets/{budget_id}/categories/{category_id}", category, methods=["GET"]),
        Route("/budgets/{budget_id}/expenses", expenses, methods=["GET"]),
        Route("/budgets/{budget_id}/expenses/{expense_id}", expense, methods=["GET"]),
    ]


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
