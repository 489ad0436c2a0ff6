"""`/budgets`: creating a budget, and reading what it is: whole, in parts, or what has changed."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from api.http.answers import VARY, JsonResponse, respond, respond_large, respond_text
from api.http.reads import Reads
from api.http.requests import ForUsers, correlation, json_body, path_id, query_int
from api.http.verdicts import submitted
from hub.budget.events import parse_batch
from hub.budget.kinds import BUDGET, KINDS
from hub.budget.shapes.records import (
    RECORDS,
    Budget,
    Category,
    Expense,
    Participant,
    fields_of,
    shape,
)
from hub.budget.shapes.scalars import Digest, Head, Id, Key, LogId, NextKey, UserId
from hub.budget.shapes.verdicts import Accepted
from hub.errors import Code, HubError
from hub.hub import Hub
from hub.json_text import written
from hub.ports import Principal
from storage.postgres.core.snapshots import Snapshots

COUNT_MAX = 100


class BudgetsPage(TypedDict):
    """In the order of joining; keys are numbers of memberships."""

    userId: UserId
    key: Key
    nextKey: NextKey
    budgets: list[Budget]


class LastSequence(TypedDict):
    """How far the log is."""

    budgetId: Id
    lastSequence: Head
    digest: Digest


class Participants(TypedDict):
    """In the order of joining."""

    participants: list[Participant]


class Categories(TypedDict):
    """In the order of creation."""

    categories: list[Category]


class ExpensesPage(TypedDict):
    """In the order of creation; keys are the sequences that created them."""

    budgetId: Id
    key: Key
    nextKey: NextKey
    expenses: list[Expense]


# They follow the table of kinds, and mypy cannot know types that are made from values.
if TYPE_CHECKING:
    Snapshot: TypeAlias = dict[str, Any]
    Delta: TypeAlias = dict[str, Any]
else:
    _LISTS = {
        kind.plural: list[RECORDS[kind.name]] for kind in KINDS.values() if kind is not BUDGET
    }
    _STANDING = {"lastEventSequence": Head, "digest": Digest, "logId": LogId}
    Snapshot = shape(
        "Snapshot",
        "The whole budget at one instant, as of event `lastEventSequence`; without deleted"
        " records.",
        {**fields_of(BUDGET), **_LISTS, "participants": list[Participant], **_STANDING},
    )
    Delta = shape(
        "Delta",
        "The records that changed after event `key`, as they are now; deleted ones are whole"
        " records with `deleted`. `budget` and `participants` are there only where they changed.",
        {
            "budgetId": Id,
            "key": Key,
            "budget": NotRequired[Budget],
            **_LISTS,
            "participants": NotRequired[list[Participant]],
            **_STANDING,
        },
    )


class BudgetRoutes(NamedTuple):
    hub: Hub
    snapshots: Snapshots
    reads: Reads

    def routes(self, user: ForUsers) -> list[Route]:
        return [
            Route("/budget", user(self.create), methods=["POST"]),
            Route("/budgets", user(self.create), methods=["POST"]),
            Route("/budgets", user(self.list_budgets)),
            Route("/budgets/{budget_id}", user(self.reads.in_turn(self.read))),
            Route("/budgets/{budget_id}/delta", user(self.reads.in_turn(self.delta))),
            Route("/budgets/{budget_id}/last-event-sequence", user(self.head)),
            Route("/budgets/{budget_id}/participants", user(self.reads.in_turn(self.participants))),
            Route("/budgets/{budget_id}/categories", user(self.reads.in_turn(self.categories))),
            Route("/budgets/{budget_id}/categories/{category_id}", user(self.category)),
            Route("/budgets/{budget_id}/expenses", user(self.reads.in_turn(self.expenses))),
            Route("/budgets/{budget_id}/expenses/{expense_id}", user(self.expense)),
        ]

    async def create(
        self, request: Request, who: Principal
    ) -> JsonResponse[Accepted, Literal[201]]:
        """The `budget.create` event by another name: its `id` is the event's `budgetId`."""
        raw = await json_body(request)
        if not isinstance(raw, dict):
            raise HubError(Code.BAD_REQUEST, "the body is not an object")
        event = {**raw, "eventType": "budget.create", "budgetId": raw.get("id")}
        events = parse_batch([event], 1)
        [verdict] = await submitted(self.hub, who.user_id, events, "stop", correlation(request))
        if verdict.error is not None:
            raise HubError(verdict.error, verdict.detail)
        told = verdict.to_json(legacy_event=True)
        assert told["status"] == "accepted"  # a budget that is new has no version to differ from
        return respond(told, 201)

    async def read(self, request: Request, who: Principal) -> JsonResponse[Snapshot] | Response:
        budget_id = path_id(request, "budget_id")
        seen = _tags(request)
        if seen:
            tag = await self.snapshots.tag(budget_id, who.user_id)
            if tag in seen or "*" in seen:
                return Response(status_code=304, headers={**_tagged(tag), **VARY})
        snapshot = await self.snapshots.read(budget_id, who.user_id)
        return await respond_text(request, snapshot.text, _tagged(snapshot.tag))

    async def delta(self, request: Request, who: Principal) -> JsonResponse[Delta]:
        budget_id, key = path_id(request, "budget_id"), query_int(request, "key", 0)
        found = await self.snapshots.delta(budget_id, who.user_id, key)
        changed = {"budget": found.budget, "participants": found.participants}
        delta: Delta = {
            "budgetId": budget_id,
            "key": key,
            **{name: written(text) for name, text in found.records.items()},
            **{name: written(text) for name, text in changed.items() if text is not None},
            "lastEventSequence": found.head,
            "digest": found.digest,
            "logId": found.log_id,
        }
        return await respond_large(request, delta)

    async def head(self, request: Request, who: Principal) -> JsonResponse[LastSequence]:
        budget_id = path_id(request, "budget_id")
        last_sequence, digest = await self.snapshots.head(budget_id, who.user_id)
        return respond({"budgetId": budget_id, "lastSequence": last_sequence, "digest": digest})

    async def list_budgets(self, request: Request, who: Principal) -> JsonResponse[BudgetsPage]:
        key, count = _page(request)
        next_key, found = await self.snapshots.budgets(who.user_id, key, count)
        budgets = written(found)
        return respond({"userId": who.user_id, "key": key, "nextKey": next_key, "budgets": budgets})

    async def categories(self, request: Request, who: Principal) -> JsonResponse[Categories]:
        found = await self.snapshots.categories(path_id(request, "budget_id"), who.user_id)
        return await respond_large(request, {"categories": written(found)})

    async def participants(self, request: Request, who: Principal) -> JsonResponse[Participants]:
        found = await self.snapshots.participants(path_id(request, "budget_id"), who.user_id)
        return await respond_large(request, {"participants": written(found)})

    async def expenses(self, request: Request, who: Principal) -> JsonResponse[ExpensesPage]:
        budget_id = path_id(request, "budget_id")
        key, count = _page(request)
        next_key, found = await self.snapshots.expenses(budget_id, who.user_id, key, count)
        expenses = written(found)
        return await respond_large(
            request,
            {"budgetId": budget_id, "key": key, "nextKey": next_key, "expenses": expenses},
        )

    async def category(self, request: Request, who: Principal) -> JsonResponse[Category]:
        budget_id, id = path_id(request, "budget_id"), path_id(request, "category_id")
        return respond(written(await self.snapshots.category(budget_id, who.user_id, id)))

    async def expense(self, request: Request, who: Principal) -> JsonResponse[Expense]:
        budget_id, id = path_id(request, "budget_id"), path_id(request, "expense_id")
        return respond(written(await self.snapshots.expense(budget_id, who.user_id, id)))


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
