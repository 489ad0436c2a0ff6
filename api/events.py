"""`/events`: submitting events and reading the stream, for clients that have only HTTP."""

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http import as_uuid, json_body, principal, query_int, respond
from hub.committer import Mode
from hub.errors import Code, HubError
from hub.events import EVENTS_PER_REQUEST_MAX, parse_batch
from hub.hub import Hub
from hub.ports import Authenticator, LogEvent

COUNT_MAX = 100


def routes(hub: Hub, authenticator: Authenticator) -> list[Route]:
    async def submit(request: Request) -> Response:
        who = await principal(request, authenticator)
        mode = _mode(request)
        raw = await json_body(request)
        events = parse_batch(
            raw.get("events") if isinstance(raw, dict) else None, EVENTS_PER_REQUEST_MAX
        )
        verdicts = await hub.submit(who.user_id, events, mode)
        partly = mode == "each" and not all(verdict.settled for verdict in verdicts)
        return respond(
            {"events": [verdict.to_wire(legacy_event=True) for verdict in verdicts]},
            207 if partly else 200,
        )

    async def read(request: Request) -> Response:
        who = await principal(request, authenticator)
        budget_id = as_uuid(request.query_params.get("budgetId"), "budgetId")
        key = query_int(request, "key", 0)
        count = min(query_int(request, "count", COUNT_MAX, least=1), COUNT_MAX)
        page = await hub.read(budget_id, who.user_id, key, count)
        if key > page.head:
            raise HubError(Code.CURSOR_AHEAD)
        next_key = page.events[-1].sequence if page.events else key
        return respond(
            {
                "budgetId": budget_id,
                "key": key,
                "nextKey": next_key,
                "head": page.head,
                "hasMore": next_key < page.head,
                "logId": hub.log_id,
                "events": [orjson.Fragment(_with_legacy_name(event)) for event in page.events],
            }
        )

    return [
        Route("/events", submit, methods=["POST"]),
        Route("/events", read, methods=["GET"]),
    ]


def _mode(request: Request) -> Mode:
    mode = request.query_params.get("mode", "stop")
    if mode == "stop":
        return "stop"
    if mode == "each":
        return "each"
    raise HubError(Code.BAD_REQUEST, "mode: stop or each")


def _with_legacy_name(event: LogEvent) -> bytes:
    """The stream event with its type under `event` too, as REST shows it (design 3.4)."""
    return b'{"event":"%b",%b' % (event.event_type.encode(), event.event[1:])
