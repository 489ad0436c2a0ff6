"""Every REST route as the documents describe it; a test compares this table with what is served.

To document a new route, add a row to `OPERATIONS`, and a step to the conversation of
`tests/conversation.py` that shows it; `make examples` takes it down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from api.auth.routes import LoginRequest, RefreshRequest, RegisterRequest
from api.documents import answers, records, verdicts
from api.http.guard import EXEMPT
from api.rest.core import budgets, events
from api.rest.core.invites import LinkSharing, NewInvite
from api.rest.people.photos import Confirmation
from api.rest.people.profiles import USER_ID_MAX, ProfileFields
from hub.budget.scalars import INTEGER_MAX, Uuid
from hub.errors import Code
from storage.objects.media_types import PHOTO_BYTES_MAX, PhotoType
from storage.postgres.core.invites import INVITES_MAX

SSE = "text/event-stream"
HTML = "text/html"
TEXT = "text/plain"
JSON = "application/json"

# What may befall every request, and every one that the guard looks at.
ALWAYS = (Code.INTERNAL_SERVER_ERROR,)
OF_GUARD = (Code.INCORRECT_API_KEY, Code.RATE_LIMITED)
OF_DATABASE = (Code.BUSY, Code.UNAVAILABLE)
OF_BODY = (Code.BAD_REQUEST, Code.PAYLOAD_TOO_LARGE)
OF_BUDGET = (Code.BAD_REQUEST, Code.BUDGET_NOT_EXISTS, Code.NOT_PARTICIPANT)
OF_OWNER = (*OF_BUDGET, Code.NOT_OWNER)


class Parameter(NamedTuple):
    name: str
    where: Literal["path", "query", "header"]
    type: Any
    description: str
    default: object = None
    required: bool = False  # what stands in the path always is


class Answer(NamedTuple):
    """What comes with a status below 400, or with one that is no error of the table."""

    type: Any  # None: no body
    description: str
    media: str = JSON


@dataclass(frozen=True)
class Operation:
    """One method of one path. `path` is as Starlette has it. `errors` are its own; those that all
    routes of its kind share are added by `all_errors`."""

    method: str
    path: str
    name: str  # operationId
    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    parameters: Sequence[Parameter] = ()
    body: Any = None
    errors: Sequence[Code] = ()
    token: bool = True
    database: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)  # of the answers below 400

    @property
    def tag(self) -> str:
        first = self.path.split("/")[1]
        return _TAGS.get(first, "the hub itself")

    @property
    def guarded(self) -> bool:
        return self.path not in EXEMPT

    def all_errors(self) -> list[Code]:
        """In the order of the table."""
        found = {*ALWAYS, *self.errors}
        if self.guarded:
            found.update(OF_GUARD)
        if self.token:
            found.add(Code.NOT_LOGGED_IN)
        if self.database:
            found.update(OF_DATABASE)
        if self.body is not None:
            found.update(OF_BODY)
        return [code for code in Code if code in found]


_TAGS = {
    "auth": "signing in",
    "events": "events",
    "budget": "budgets",
    "budgets": "budgets",
    "user": "users",
    "profiles": "users",
}
_KEY = Annotated[int, Field(ge=0, le=INTEGER_MAX)]
_COUNT = Annotated[int, Field(ge=1, le=INTEGER_MAX)]
_WAIT = Annotated[int, Field(ge=0, le=events.WAIT_S_MAX)]

BUDGET = Parameter("budgetId", "path", Uuid, "In any letter case")
CATEGORY = Parameter("categoryId", "path", Uuid, "In any letter case")
EXPENSE = Parameter("expenseId", "path", Uuid, "In any letter case")
INVITE = Parameter("inviteId", "path", Uuid, "In any letter case")
USER = Parameter(
    "userId", "path", Annotated[str, Field(min_length=1, max_length=USER_ID_MAX)], "Whom"
)
KEY = Parameter("key", "query", _KEY, "The last sequence the client has; 0 is from the start", 0)
PAGE_KEY = Parameter("key", "query", _KEY, "`nextKey` of the page before; 0 is the first page", 0)
COUNT = Parameter(
    "count",
    "query",
    _COUNT,
    f"How many at most; more than {budgets.COUNT_MAX} is {budgets.COUNT_MAX}",
    budgets.COUNT_MAX,
)
PHOTO_TYPE = Parameter("type", "query", PhotoType, "What is to be uploaded", required=True)
PHOTO_SIZE = Parameter(
    "size",
    "query",
    Annotated[int, Field(ge=1, le=PHOTO_BYTES_MAX)],
    "Its size in bytes",
    required=True,
)
OF_PHOTO = (
    Code.PHOTO_NOT_FOUND,
    Code.PHOTO_NOT_VALID,
    Code.PHOTO_TOO_BIG,
    Code.PHOTOS_UNAVAILABLE,
)

OPERATIONS: Sequence[Operation] = (
    Operation(
        "POST",
        "/auth/register",
        "register",
        "Make an account and sign in",
        {201: Answer(answers.SignedInAnswer, "The account is made")},
        "Only with the local identity. An account is known by its e-mail, in any letter case.",
        body=RegisterRequest,
        errors=(Code.EMAIL_TAKEN,),
        token=False,
    ),
    Operation(
        "POST",
        "/auth/login",
        "login",
        "Sign in",
        {200: Answer(answers.SignedInAnswer, "Signed in")},
        "Only with the local identity. Every login has refresh tokens of its own.",
        body=LoginRequest,
        errors=(Code.BAD_CREDENTIALS,),
        token=False,
    ),
    Operation(
        "POST",
        "/auth/refresh",
        "refresh",
        "The next token and refresh token",
        {200: Answer(answers.SignedInAnswer, "Signed in for longer")},
        "Only with the local identity. A refresh token counts once. The one before it gives the "
        "same answer again for 60 s, for clients that lost it; any older one ends the login.",
        body=RefreshRequest,
        errors=(Code.NOT_LOGGED_IN,),
        token=False,
    ),
    Operation(
        "POST",
        "/events",
        "submitEvents",
        "Submit 1 to 25 events",
        {
            200: Answer(answers.EventsAnswer, "Their verdicts"),
            207: Answer(answers.EventsAnswer, "Mode `each`, and some were not accepted"),
        },
        "An accepted event is committed. Sent again, whenever and on whatever way, it gives the "
        "same verdict with `duplicate`. Legacy clients may write `event` for `eventType`. A bad "
        "envelope refuses the whole batch with 400; whatever else is wrong with an event is its "
        "verdict. After an error that is `retryable`, or no answer: send the same again.",
        parameters=(
            Parameter(
                "mode",
                "query",
                Literal["stop", "each"],
                "`stop`: the first event that is not accepted ends the batch. `each`: every event "
                "gets a verdict",
                "stop",
            ),
        ),
        body=answers.EventsRequest,
    ),
    Operation(
        "GET",
        "/events",
        "readEvents",
        "The budget's log after `key`; waits for an event if there is none (long-poll)",
        {200: Answer(answers.LogPage, "A page; without events when none came in time")},
        "Ask again with `nextKey`, at once while `hasMore`. Every event of the log comes once and "
        "in order. After `budget.delete` who took part may still read.",
        parameters=(
            Parameter("budgetId", "query", Uuid, "In any letter case", required=True),
            KEY,
            COUNT,
            Parameter(
                "wait",
                "query",
                _WAIT,
                "Seconds to wait for an event if there is none after `key`; 0 answers at once",
                events.WAIT_S,
            ),
        ),
        errors=(*OF_BUDGET, Code.CURSOR_AHEAD),
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/stream",
        "streamEvents",
        "The same stream as Server-Sent Events",
        {200: Answer(str, "Server-Sent Events, until the token or the subscription ends", SSE)},
        "`event: events` has as `data` a frame like the socket's (schema `StreamEvents`) and as "
        "`id` its `toSequence`, so that `Last-Event-ID` goes on where it broke off. `event: "
        "unsubscribed` (schema `StreamEnd`) is the last, where the server ends the subscription. "
        "A comment comes every 15 s; `retry` when the hub stops.",
        parameters=(
            BUDGET,
            KEY,
            Parameter("Last-Event-ID", "header", _KEY, "The last `id` received; instead of `key`"),
        ),
        errors=(*OF_BUDGET, Code.CURSOR_AHEAD),
        headers={"Cache-Control": "`no-store`"},
    ),
    *(
        Operation(
            "POST",
            path,
            name,
            "Create a budget",
            {
                201: Answer(
                    verdicts.Accepted, "It is created; also when it was before, by this event"
                )
            },
            "The `budget.create` event by another name." + also,
            body=answers.BudgetRequest,
            errors=(
                Code.INVALID_EVENT,
                Code.BUDGET_EXISTS,
                Code.EVENT_ID_REUSED,
            ),
        )
        for path, name, also in (
            ("/budgets", "createBudget", ""),
            ("/budget", "createBudgetLegacy", " The same as `POST /budgets`, for legacy clients."),
        )
    ),
    Operation(
        "GET",
        "/budgets",
        "listBudgets",
        "The budgets that the user takes part in",
        {200: Answer(answers.BudgetsPage, "A page, in the order of joining")},
        parameters=(PAGE_KEY, COUNT),
        errors=(Code.BAD_REQUEST,),
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}",
        "readBudget",
        "The whole budget at one instant",
        {
            200: Answer(answers.Snapshot, "The snapshot; go on with events after its sequence"),
            304: Answer(None, "The client has it already"),
        },
        parameters=(
            BUDGET,
            Parameter("If-None-Match", "header", str, "`ETag`s of snapshots that the client has"),
        ),
        errors=OF_BUDGET,
        headers={
            "ETag": "Weak: changes whenever the snapshot does",
            "Cache-Control": "`private, no-cache`",
        },
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/delta",
        "readDelta",
        "What has changed after event `key`, as it is now",
        {200: Answer(answers.Delta, "The changed records")},
        parameters=(BUDGET, KEY),
        errors=(*OF_BUDGET, Code.CURSOR_AHEAD),
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/last-event-sequence",
        "readLastSequence",
        "Whether there is anything new",
        {200: Answer(answers.LastSequence, "The head and the digest")},
        parameters=(BUDGET,),
        errors=OF_BUDGET,
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/participants",
        "listParticipants",
        "Who takes part",
        {200: Answer(answers.Participants, "All of them")},
        parameters=(BUDGET,),
        errors=OF_BUDGET,
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/participants/{user_id:opaque}",
        "readParticipant",
        "One who takes part",
        {200: Answer(records.Participant, "The participant")},
        parameters=(BUDGET, USER),
        errors=(*OF_BUDGET, Code.PARTICIPANT_NOT_EXISTS),
    ),
    Operation(
        "DELETE",
        "/budgets/{budget_id}/participants/{user_id:opaque}",
        "removeParticipant",
        "Remove somebody (owner)",
        {200: Answer(answers.Left, "They no longer take part; also when they had left before")},
        parameters=(BUDGET, USER),
        errors=(*OF_BUDGET, Code.NOT_OWNER, Code.PARTICIPANT_NOT_EXISTS, Code.OWNER_CANNOT_LEAVE),
    ),
    *(
        Operation(
            method,
            "/budgets/{budget_id}/join",
            name,
            "Join a budget by an invite, or by its bare id",
            {200: Answer(answers.Joined, "The user takes part; also when they did before")},
            "The bare id lets in while link sharing is on. Who left may come back; who was removed "
            "needs an invite made after that. Whoever joins a budget that its owner left empty "
            "owns it; the `participant.add` event names them as `owner`." + also,
            parameters=(
                BUDGET,
                Parameter("invite", "query", str, "The invite's token; absent: by the bare id"),
            ),
            errors=(*OF_BUDGET, Code.INVITE_NOT_VALID, Code.PARTICIPANT_LIMIT_REACHED),
        )
        for method, name, also in (
            ("POST", "joinBudget", ""),
            ("GET", "joinBudgetByLink", " The same as `POST`, for links and legacy clients."),
        )
    ),
    Operation(
        "DELETE",
        "/budgets/{budget_id}/leave",
        "leaveBudget",
        "Leave a budget",
        {
            200: Answer(
                answers.Left, "The user no longer takes part; also when they had left before"
            )
        },
        parameters=(BUDGET,),
        errors=(Code.BAD_REQUEST, Code.BUDGET_NOT_EXISTS, Code.OWNER_CANNOT_LEAVE),
    ),
    Operation(
        "POST",
        "/budgets/{budget_id}/invites",
        "createInvite",
        "Make an invite (owner)",
        {201: Answer(answers.Invited, "The invite, with its token")},
        f"A budget has at most {INVITES_MAX} that are neither run out nor revoked.",
        parameters=(BUDGET,),
        body=NewInvite,
        errors=OF_OWNER,
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/invites",
        "listInvites",
        "The budget's invites (owner)",
        {200: Answer(answers.InviteList, "All of them, without their tokens")},
        parameters=(BUDGET,),
        errors=OF_OWNER,
    ),
    Operation(
        "DELETE",
        "/budgets/{budget_id}/invites/{invite_id}",
        "revokeInvite",
        "Revoke an invite (owner)",
        {200: Answer(answers.Revoked, "It lets nobody in; also when it was revoked before")},
        parameters=(BUDGET, INVITE),
        errors=(*OF_OWNER, Code.INVITE_NOT_EXISTS),
    ),
    Operation(
        "PUT",
        "/budgets/{budget_id}/link-sharing",
        "shareLink",
        "Whether the budget's bare id lets in (owner)",
        {200: Answer(answers.LinkShared, "As it is now")},
        "A new budget's does.",
        parameters=(BUDGET,),
        body=LinkSharing,
        errors=OF_OWNER,
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/categories",
        "listCategories",
        "All categories",
        {200: Answer(answers.Categories, "Without deleted ones")},
        parameters=(BUDGET,),
        errors=OF_BUDGET,
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/categories/{category_id}",
        "readCategory",
        "One category",
        {200: Answer(records.Category, "The category")},
        parameters=(BUDGET, CATEGORY),
        errors=(*OF_BUDGET, Code.CATEGORY_NOT_EXISTS),
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/expenses",
        "listExpenses",
        "The expenses, page by page",
        {200: Answer(answers.ExpensesPage, "A page, without deleted ones")},
        parameters=(BUDGET, PAGE_KEY, COUNT),
        errors=OF_BUDGET,
    ),
    Operation(
        "GET",
        "/budgets/{budget_id}/expenses/{expense_id}",
        "readExpense",
        "One expense",
        {200: Answer(records.Expense, "The expense")},
        parameters=(BUDGET, EXPENSE),
        errors=(*OF_BUDGET, Code.EXPENSE_NOT_EXISTS),
    ),
    Operation(
        "GET",
        "/user",
        "readUser",
        "Your own profile",
        {200: Answer(answers.OwnProfile, "The profile")},
        errors=(Code.USER_NOT_FOUND,),
    ),
    Operation(
        "PUT",
        "/user",
        "writeUser",
        "Create or change your profile",
        {200: Answer(answers.OwnProfile, "The profile as it is now")},
        "An absent field is unchanged, null clears it.",
        body=ProfileFields,
        errors=(Code.EMAIL_TAKEN,),
    ),
    Operation(
        "DELETE",
        "/user",
        "deleteUser",
        "Delete your account",
        {200: Answer(answers.Forgotten, "The profile is gone; also when there was none")},
        "The user leaves every budget. A budget of theirs passes to the participant who joined "
        "first; the `participant.remove` event names them as `owner`. Tokens that were issued "
        "before no longer count, except to repeat this request.",
    ),
    Operation(
        "GET",
        "/user/photo-upload-url",
        "beginPhoto",
        "Where to PUT a photo",
        {200: Answer(answers.PhotoUpload, "A signed URL, good for one upload")},
        "PUT the photo to `url` with these `headers`, then confirm `key`.",
        parameters=(PHOTO_TYPE, PHOTO_SIZE),
        errors=(Code.BAD_REQUEST, Code.PHOTO_TOO_BIG),
    ),
    *(
        Operation(
            method,
            path,
            name,
            "Set the profile photo",
            {201: Answer(answers.Photo, "It is; also when the key was confirmed before")},
            "What was uploaded must have the size and be of the type that were announced." + more,
            body=Confirmation,
            errors=OF_PHOTO,
        )
        for method, path, name, more in (
            ("POST", "/user/confirm-photo-upload", "confirmPhoto", ""),
            ("PUT", "/user/photo-upload-confirm", "confirmPhotoLegacy", " As legacy clients ask."),
        )
    ),
    Operation(
        "DELETE",
        "/user/profile-photo",
        "deletePhoto",
        "Have no photo",
        {204: Answer(None, "There is none; also when there was none")},
    ),
    Operation(
        "GET",
        "/profiles/{user_id:opaque}",
        "readProfile",
        "What others may see of a user",
        {200: Answer(answers.Profile, "The profile")},
        parameters=(USER,),
        errors=(Code.USER_NOT_FOUND,),
    ),
    Operation(
        "GET",
        "/errors",
        "listErrors",
        "Every code that a client may meet",
        {200: Answer(answers.ErrorTable, "The table")},
        token=False,
        database=False,
        headers={"Cache-Control": "`public, max-age=3600`"},
    ),
    Operation(
        "GET",
        "/healthz",
        "isAlive",
        "Whether the process answers",
        {200: Answer(answers.Alive, "It does")},
        token=False,
        database=False,
    ),
    Operation(
        "GET",
        "/readyz",
        "isReady",
        "Whether the hub can do its work",
        {
            200: Answer(answers.Ready, "It can"),
            503: Answer(answers.Unready, "It cannot: Postgres is out of reach"),
        },
        token=False,
        database=False,
    ),
    Operation(
        "GET",
        "/metrics",
        "readMetrics",
        "What the hub has counted, for Prometheus",
        {200: Answer(str, "Prometheus' text format, or OpenMetrics if asked for", TEXT)},
        token=False,
        database=False,
    ),
    Operation(
        "GET",
        "/openapi.json",
        "readOpenApi",
        "This document",
        {200: Answer(dict[str, Any], "OpenAPI 3.1")},
        token=False,
        database=False,
    ),
    Operation(
        "GET",
        "/asyncapi.json",
        "readAsyncApi",
        "The socket's document",
        {200: Answer(dict[str, Any], "AsyncAPI 3.0")},
        token=False,
        database=False,
    ),
    Operation(
        "GET",
        "/docs",
        "readDocs",
        "Both documents as a page for people",
        {200: Answer(str, "A page without scripts", HTML)},
        token=False,
        database=False,
    ),
)
