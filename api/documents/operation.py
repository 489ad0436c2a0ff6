"""An operation: one method of one path, with what it takes and what it answers."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import Field
from starlette.responses import Response

from api.http.answers import JsonResponse
from api.http.guard import PROBES
from api.rest.people.profiles import USER_ID_MAX
from hub.budget.scalars import Uuid
from hub.errors import Code

JSON = "application/json"
BODILESS = {204, 304}  # statuses of answers that have no body

# Errors by what may cause them.
ALWAYS = (Code.INTERNAL_SERVER_ERROR,)
OF_GUARD = (Code.INCORRECT_API_KEY, Code.QUOTA_EXCEEDED, Code.RATE_LIMITED)
OF_DATABASE = (Code.BUSY, Code.UNAVAILABLE)
OF_BODY = (Code.BAD_REQUEST, Code.PAYLOAD_TOO_LARGE)
OF_BUDGET = (Code.BAD_REQUEST, Code.BUDGET_NOT_EXISTS, Code.NOT_PARTICIPANT)


class Parameter(NamedTuple):
    name: str
    where: Literal["path", "query", "header"]
    type: Any
    description: str
    default: object = None
    required: bool = False  # what stands in the path always is


_USER_ID = Annotated[str, Field(min_length=1, max_length=USER_ID_MAX)]
IN_PATH: Mapping[str, Parameter] = {
    "{budget_id}": Parameter("budgetId", "path", Uuid, "In any letter case"),
    "{category_id}": Parameter("categoryId", "path", Uuid, "In any letter case"),
    "{expense_id}": Parameter("expenseId", "path", Uuid, "In any letter case"),
    "{invite_id}": Parameter("inviteId", "path", Uuid, "In any letter case"),
    "{user_id:opaque}": Parameter("userId", "path", _USER_ID, "The user's id"),
}


class Tag(NamedTuple):
    name: str
    about: str


# By the first part of a path.
TAGS: Mapping[str, Tag] = {
    "auth": Tag("signing in", "Accounts of the local identity"),
    "events": Tag("events", "What devices submit, and the log that they follow"),
    "budgets": Tag("budgets", "A budget as it is, and who takes part in it"),
    "user": Tag("users", "Your own profile, and what others may see of one"),
    "": Tag("the hub itself", "Health, error codes and these documents"),
}
_SAME_TAG = {"budget": "budgets", "profiles": "user"}


@dataclass(frozen=True)
class Operation:
    """`route` is method and path, as Starlette has it.

    `handler` answers it; the shapes of its answers are those of its annotation (`shapes`), and
    `answers` says when each status comes. `errors` are its own; `all_errors` adds those of its
    kind, but for `never`. Where the answer is not JSON (`media`), `handler` may be None.
    """

    route: str
    handler: Callable[..., Awaitable[Response]] | None
    name: str  # operationId
    summary: str
    answers: Mapping[int, str]
    description: str = ""
    parameters: Sequence[Parameter] = ()  # but for those of the path
    body: Any = None
    errors: Sequence[Code] = ()
    never: Sequence[Code] = ()
    needs: Literal["user", "database", "nothing"] = "user"
    headers: Mapping[str, str] = field(default_factory=dict)  # of the answers below 400
    media: str = JSON

    @property
    def method(self) -> str:
        return self.route.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.route.partition(" ")[2]

    @property
    def tag(self) -> Tag:
        first = self.path.split("/")[1]
        return TAGS.get(_SAME_TAG.get(first, first), TAGS[""])

    @property
    def guarded(self) -> bool:
        return self.path not in PROBES

    @property
    def all_parameters(self) -> list[Parameter]:
        found = [IN_PATH[part] for part in self.path.split("/") if part.startswith("{")]
        return [*found, *self.parameters]

    def shapes(self) -> dict[int, Any]:
        """By status, the shape of each answer with a body. Raises `TypeError` where `answers` does
        not tell of the statuses that the handler's annotation has."""
        if self.media != JSON or self.handler is None:
            return dict.fromkeys(self.answers, str)
        returned = get_type_hints(self.handler, include_extras=True)["return"]
        parts = get_args(returned) if get_origin(returned) in (Union, UnionType) else [returned]
        shapes = {
            status: shape
            for part in parts
            if get_origin(part) is JsonResponse
            for shape, statuses in [get_args(part)]
            for status in get_args(statuses)
        }
        if self.answers.keys() - shapes.keys() - BODILESS or shapes.keys() - self.answers.keys():
            raise TypeError(f"{self.name}: answers {set(self.answers)}, annotated {set(shapes)}")
        return shapes

    def all_errors(self) -> list[Code]:
        """In the order of the table of codes."""
        found = {*ALWAYS, *self.errors}
        if self.guarded:
            found.update(OF_GUARD)
        if self.needs == "user":
            found.add(Code.NOT_LOGGED_IN)
        if self.needs != "nothing":
            found.update(OF_DATABASE)
        if self.body is not None:
            found.update(OF_BODY)
        if "{budget_id}" in self.path:
            found.update(OF_BUDGET)
        return [code for code in Code if code in found and code not in self.never]
