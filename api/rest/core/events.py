"""`/events` and `/budgets/:id/stream`: submitting events, and the stream of a budget by long-poll
or as Server-Sent Events, for clients that have only HTTP."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from api.http.answers import JsonResponse, respond
from api.http.reads import Reads
from api.http.requests import (
    ForUsers,
    as_int,
    as_uuid,
    backlog_of,
    body_text,
    correlation,
    decoded,
    path_id,
    query_int,
)
from api.http.verdicts import submitted
from api.rest.core.followers import EventStream, EventStreamResponse, Poll, RestEvent, rest_event
from hub.budget.events import EVENTS_PER_REQUEST_MAX, Submitted, parse_batch
from hub.budget.shapes.scalars import Head, Id, Key, LogId, NextKey
from hub.budget.shapes.stream import StreamEvent
from hub.budget.shapes.verdicts import Verdict
from hub.committer import Mode
from hub.errors import Code, HubError
from hub.hub import Hub
from hub.json_text import written
from hub.limits import Bucket, cost_of, text_of
from hub.ports import Principal

COUNT_MAX = 100
WAIT_S = 8  # by default; common HTTP clients give up after 10 s
WAIT_S_MAX = 60


class EventsAnswer(TypedDict):
    """In the order of submission. In mode `stop` the first that is not accepted is the last."""

    events: Annotated[list[Verdict], Field(min_length=1, max_length=EVENTS_PER_REQUEST_MAX)]


class LogPage(TypedDict):
    """Consecutive events after `key`, in order. `hasMore`: ask again at once, with `nextKey`."""

    budgetId: Id
    key: Key
    nextKey: NextKey
    head: Head
    hasMore: bool
    logId: LogId
    events: list[StreamEvent]


class EventRoutes(NamedTuple):
    hub: Hub
    now_s: Callable[[], float]
    keep_alive_s: float
    reads: Reads

    def routes(self, user: ForUsers) -> list[Route]:
        return [
            Route("/events", user(self.submit), methods=["POST"]),
            Route("/events", user(self.read)),
            Route("/budgets/{budget_id}/stream", user(self.stream)),
        ]

    async def submit(
        self, request: Request, who: Principal
    ) -> JsonResponse[EventsAnswer, Literal[200, 207]]:
        mode = _mode(request)
        events = self._paid_batch(who, await body_text(request))
        verdicts = await submitted(self.hub, who.user_id, events, mode, correlation(request))
        partly = mode == "each" and not all(verdict.accepted for verdict in verdicts)
        return respond(
            {"events": [verdict.to_json(legacy_event=True) for verdict in verdicts]},
            207 if partly else 200,
        )

    def _paid_batch(self, who: Principal, text: bytes) -> list[Submitted]:
        """The events of a request, charged to its user like those of a socket: the bytes before
        they are parsed, the events before they are checked. Raises `HubError`."""
        now_s = self.now_s()
        rates = self.hub.rates
        bucket = rates.of_user(who.user_id, now_s)

        def take(amount: int, bucket: Bucket = bucket) -> None:
            if missing_s := bucket.take(amount, now_s):
                raise HubError(Code.RATE_LIMITED, retry_after_s=missing_s)

        charged = cost_of(len(text))
        take(charged)
        raw = decoded(text)
        listed = raw.get("events") if isinstance(raw, dict) else None
        named = min(len(listed), EVENTS_PER_REQUEST_MAX) if isinstance(listed, list) else 0
        if named > charged:
            take(named - charged)
        events = parse_batch(listed, EVENTS_PER_REQUEST_MAX)
        if long := text_of(events, len(text)):
            take(long, rates.of_text(who.user_id, now_s))
        return events

    async def read(self, request: Request, who: Principal) -> JsonResponse[LogPage]:
        budget_id = as_uuid(request.query_params.get("budgetId"), "budgetId")
        key = query_int(request, "key", 0)
        count = min(query_int(request, "count", COUNT_MAX, least=1), COUNT_MAX)
        wait_s = query_int(request, "wait", WAIT_S, most=WAIT_S_MAX)
        async with self.reads.turn(request, who):
            page = await self.hub.feeds.read(budget_id, who.user_id, key, count)
        if key > page.head:
            raise HubError(Code.CURSOR_AHEAD)
        head = page.head
        events: Sequence[RestEvent] = [
            RestEvent(event.sequence, rest_event(event.event_type, event.event))
            for event in page.events
        ]
        if not events and wait_s and not page.deleted:
            poll = Poll(who)
            left_s = max(who.ends_at_s - self.now_s(), 0.0)  # of the token
            await poll.wait(self.hub, budget_id, key, min(wait_s, left_s), request)
            head, events = max(head, poll.head or 0), poll.events[:count]
        next_key = events[-1].sequence if events else key
        return respond(
            {
                "budgetId": budget_id,
                "key": key,
                "nextKey": next_key,
                "head": head,
                "hasMore": next_key < head,
                "logId": self.hub.log_id,
                "events": [written(event.text) for event in events],
            }
        )

    async def stream(self, request: Request, who: Principal) -> Response:
        budget_id = path_id(request, "budget_id")
        key = query_int(request, "key", 0)
        if seen := request.headers.get("last-event-id"):
            key = as_int(seen, "Last-Event-ID")
        backlog = backlog_of(request)
        holds = None if backlog is None else backlog.hold
        events = EventStream(self.hub, who, self.keep_alive_s, holds)
        await events.open(budget_id, key)
        # A HEAD, which comes with GET, is over at once: others wait for its connection.
        ends_in_s = 0 if request.method == "HEAD" else who.ends_at_s - self.now_s()
        return EventStreamResponse(events, ends_in_s)


def _mode(request: Request) -> Mode:
    mode = request.query_params.get("mode", "stop")
    if mode == "stop":
        return "stop"
    if mode == "each":
        return "each"
    raise HubError(Code.BAD_REQUEST, "mode: stop or each")
