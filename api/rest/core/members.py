"""`/budgets/:id/…`: joining a budget, leaving it, removing somebody from it.

They are events like all others (`participant.add`, `participant.remove`), through the same door;
the server makes them. All of them are idempotent: what is so already is a success.
"""

from collections.abc import Callable
from typing import NamedTuple

from starlette.requests import Request
from starlette.routing import Route
from typing_extensions import TypedDict

from api.http.answers import JsonResponse, respond
from api.http.requests import ForUsers, correlation, path_id
from api.http.verdicts import submitted
from api.rest.core.invites import invite_hash
from hub.budget.events import Joining, Leaving
from hub.budget.records import BudgetId, UserId
from hub.budget.shapes import scalars
from hub.budget.shapes.records import Budget, Participant
from hub.errors import Code, HubError
from hub.hub import Hub
from hub.json_text import written
from hub.ports import Principal
from storage.postgres.core.snapshots import Snapshots

PARTICIPANT = "/budgets/{budget_id}/participants/{user_id:opaque}"


class Joined(TypedDict):
    """The budget, and the user as a participant."""

    budget: Budget
    participant: Participant


class Left(TypedDict):
    """Who no longer takes part."""

    budgetId: scalars.Id
    userId: scalars.UserId


class MemberRoutes(NamedTuple):
    hub: Hub
    snapshots: Snapshots
    participants_max: int
    now_ms: Callable[[], int]
    new_id: Callable[[], str]

    def routes(self, user: ForUsers) -> list[Route]:
        joining = Route("/budgets/{budget_id}/join", user(self.join), methods=["GET", "POST"])
        assert joining.methods is not None
        joining.methods.discard("HEAD")  # comes with GET, and must not change anything
        return [
            joining,
            Route("/budgets/{budget_id}/leave", user(self.leave), methods=["DELETE"]),
            Route(PARTICIPANT, user(self.read)),
            Route(PARTICIPANT, user(self.remove), methods=["DELETE"]),
        ]

    async def join(self, request: Request, who: Principal) -> JsonResponse[Joined]:
        budget_id = path_id(request, "budget_id")
        token = request.query_params.get("invite")
        invite = None if token is None else invite_hash(token)
        event = Joining(
            self.new_id(), budget_id, who.user_id, self.now_ms(), self.participants_max, invite
        )
        await self._submit(request, who, event, already=Code.ALREADY_PARTICIPANT)
        budget, participant = await self.snapshots.joined(budget_id, who.user_id)
        return respond({"budget": written(budget), "participant": written(participant)})

    async def leave(self, request: Request, who: Principal) -> JsonResponse[Left]:
        return await self._end(request, who, path_id(request, "budget_id"), who.user_id)

    async def remove(self, request: Request, who: Principal) -> JsonResponse[Left]:
        return await self._end(request, who, path_id(request, "budget_id"), _user_id(request))

    async def read(self, request: Request, who: Principal) -> JsonResponse[Participant]:
        budget_id, user_id = path_id(request, "budget_id"), _user_id(request)
        found = await self.snapshots.participant(budget_id, who.user_id, user_id)
        return respond(written(found))

    async def _end(
        self, request: Request, who: Principal, budget_id: BudgetId, user_id: UserId
    ) -> JsonResponse[Left]:
        event = Leaving(self.new_id(), budget_id, user_id, self.now_ms())
        already = Code.NOT_PARTICIPANT if user_id == who.user_id else Code.ALREADY_LEFT
        await self._submit(request, who, event, already=already)
        return respond({"budgetId": budget_id, "userId": user_id})

    async def _submit(
        self, request: Request, who: Principal, event: Joining | Leaving, *, already: Code
    ) -> None:
        """Raises `HubError` where the event is refused, unless it is so `already`."""
        [verdict] = await submitted(self.hub, who.user_id, [event], "stop", correlation(request))
        if verdict.error is not None and verdict.error is not already:
            raise HubError(verdict.error)


def _user_id(request: Request) -> UserId:
    """Raises `HubError` for what is nobody's id, and Postgres could not even look for."""
    user_id: str = request.path_params["user_id"]
    if "\0" in user_id:
        raise HubError(Code.PARTICIPANT_NOT_EXISTS)
    return user_id
