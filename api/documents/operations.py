"""Every REST route as the documents describe it; a test compares this table with what is served.

To document a new route, add a row to `OPERATIONS`, and a step to the conversation of
`tests/conversation.py` that shows it; `make examples` writes it down.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from api.auth.routes import AuthRoutes, LoginRequest, RefreshRequest, RegisterRequest
from api.documents.operation import OF_BUDGET, Operation, Parameter
from api.documents.requests import BudgetRequest, EventsRequest
from api.documents.routes import Documents
from api.rest.core import budgets, events
from api.rest.core.budgets import BudgetRoutes
from api.rest.core.events import EventRoutes
from api.rest.core.invites import InviteRoutes, LinkSharing, NewInvite
from api.rest.core.members import MemberRoutes
from api.rest.errors import table
from api.rest.health import HealthRoutes
from api.rest.people.photos import Confirmation, PhotoRoutes
from api.rest.people.profiles import ProfileFields, ProfileRoutes
from hub.budget.scalars import INTEGER_MAX, Uuid
from hub.errors import Code
from storage.objects.media_types import PHOTO_BYTES_MAX, PhotoType
from storage.postgres.core.invites import INVITES_MAX

SSE = "text/event-stream"
HTML = "text/html"
TEXT = "text/plain"

_KEY = Annotated[int, Field(ge=0, le=INTEGER_MAX)]
_COUNT = Annotated[int, Field(ge=1, le=INTEGER_MAX)]
_WAIT = Annotated[int, Field(ge=0, le=events.WAIT_S_MAX)]
_SIZE = Annotated[int, Field(ge=1, le=PHOTO_BYTES_MAX)]
_MOST = f"How many at most; more than {budgets.COUNT_MAX} is {budgets.COUNT_MAX}"

KEY = Parameter("key", "query", _KEY, "The last sequence the client has; 0 is from the start", 0)
PAGE_KEY = Parameter("key", "query", _KEY, "`nextKey` of the page before; 0 is the first page", 0)
COUNT = Parameter("count", "query", _COUNT, _MOST, budgets.COUNT_MAX)
PHOTO_TYPE = Parameter("type", "query", PhotoType, "What is to be uploaded", required=True)
PHOTO_SIZE = Parameter("size", "query", _SIZE, "Its size in bytes", required=True)
OF_PHOTO = (
    Code.PHOTO_NOT_FOUND,
    Code.PHOTO_NOT_VALID,
    Code.PHOTO_TOO_BIG,
    Code.PHOTOS_UNAVAILABLE,
)

OPERATIONS: Sequence[Operation] = (
    Operation(
        "POST /auth/register",
        AuthRoutes.register,
        "register",
        "Make an account and sign in",
        {201: "The account is made"},
        "Only with the local identity. An account is known by its e-mail, in any letter case.",
        body=RegisterRequest,
        errors=(Code.EMAIL_TAKEN,),
        needs="database",
    ),
    Operation(
        "POST /auth/login",
        AuthRoutes.login,
        "login",
        "Sign in",
        {200: "Signed in"},
        "Only with the local identity. Every login has refresh tokens of its own.",
        body=LoginRequest,
        errors=(Code.BAD_CREDENTIALS,),
        needs="database",
    ),
    Operation(
        "POST /auth/refresh",
        AuthRoutes.refresh,
        "refresh",
        "The next token and refresh token",
        {200: "Signed in for longer"},
        "Only with the local identity. A refresh token counts once. The one before it gives the "
        "same answer again for 60 s, for clients that lost it; any older one ends the login.",
        body=RefreshRequest,
        errors=(Code.NOT_LOGGED_IN,),
        needs="database",
    ),
    Operation(
        "POST /events",
        EventRoutes.submit,
        "submitEvents",
        "Submit 1 to 25 events",
        {
            200: "Their verdicts",
            207: "Mode `each`, and some were not accepted",
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
        body=EventsRequest,
    ),
    Operation(
        "GET /events",
        EventRoutes.read,
        "readEvents",
        "The budget's log after `key`; waits for an event if there is none (long-poll)",
        {200: "A page; without events when none came in time"},
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
        "GET /budgets/{budget_id}/stream",
        EventRoutes.stream,
        "streamEvents",
        "The same stream as Server-Sent Events",
        {200: "Server-Sent Events, until the token or the subscription ends"},
        "`event: events` has as `data` a frame like the socket's (schema `StreamEvents`) and as "
        "`id` its `toSequence`, so that `Last-Event-ID` goes on where it broke off. `event: "
        "unsubscribed` (schema `StreamEnd`) is the last, where the server ends the subscription. "
        "A comment comes every 15 s; `retry` when the hub stops.",
        media=SSE,
        parameters=(
            KEY,
            Parameter("Last-Event-ID", "header", _KEY, "The last `id` received; instead of `key`"),
        ),
        errors=(Code.CURSOR_AHEAD,),
        headers={"Cache-Control": "`no-store`"},
    ),
    *(
        Operation(
            f"POST {path}",
            BudgetRoutes.create,
            name,
            f"Create a budget{as_legacy}",
            {201: "It is created; also when it was before, by this event"},
            "The `budget.create` event by another name.",
            body=BudgetRequest,
            errors=(
                Code.INVALID_EVENT,
                Code.BUDGET_EXISTS,
                Code.EVENT_ID_REUSED,
            ),
        )
        for path, name, as_legacy in (
            ("/budgets", "createBudget", ""),
            ("/budget", "createBudgetLegacy", ", as legacy clients do"),
        )
    ),
    Operation(
        "GET /budgets",
        BudgetRoutes.list_budgets,
        "listBudgets",
        "The budgets that the user takes part in",
        {200: "A page, in the order of joining"},
        parameters=(PAGE_KEY, COUNT),
        errors=(Code.BAD_REQUEST,),
    ),
    Operation(
        "GET /budgets/{budget_id}",
        BudgetRoutes.read,
        "readBudget",
        "The whole budget at one instant",
        {
            200: "The snapshot; go on with events after its sequence",
            304: "The client has it already",
        },
        parameters=(
            Parameter("If-None-Match", "header", str, "`ETag`s of snapshots that the client has"),
        ),
        headers={
            "ETag": "Weak: changes whenever the snapshot does",
            "Cache-Control": "`private, no-cache`",
        },
    ),
    Operation(
        "GET /budgets/{budget_id}/delta",
        BudgetRoutes.delta,
        "readDelta",
        "What has changed after event `key`, as it is now",
        {200: "The changed records"},
        parameters=(KEY,),
        errors=(Code.CURSOR_AHEAD,),
    ),
    Operation(
        "GET /budgets/{budget_id}/last-event-sequence",
        BudgetRoutes.head,
        "readLastSequence",
        "Whether there is anything new",
        {200: "The head and the digest"},
    ),
    Operation(
        "GET /budgets/{budget_id}/participants",
        BudgetRoutes.participants,
        "listParticipants",
        "Who takes part",
        {200: "All of them"},
    ),
    Operation(
        "GET /budgets/{budget_id}/participants/{user_id:opaque}",
        MemberRoutes.read,
        "readParticipant",
        "One who takes part",
        {200: "The participant"},
        errors=(Code.PARTICIPANT_NOT_EXISTS,),
    ),
    Operation(
        "DELETE /budgets/{budget_id}/participants/{user_id:opaque}",
        MemberRoutes.remove,
        "removeParticipant",
        "Remove somebody (owner)",
        {200: "They no longer take part; also when they had left before"},
        errors=(Code.NOT_OWNER, Code.PARTICIPANT_NOT_EXISTS, Code.OWNER_CANNOT_LEAVE),
    ),
    *(
        Operation(
            f"{method} /budgets/{{budget_id}}/join",
            MemberRoutes.join,
            name,
            "Join a budget by an invite, or by its bare id",
            {200: "The user takes part; also when they did before"},
            "The bare id lets in while link sharing is on. Who left may come back; who was removed "
            "needs an invite made after that. Somebody who joins a budget that its owner left "
            "empty owns it; the `participant.add` event names them as `owner`." + also,
            parameters=(
                Parameter("invite", "query", str, "The invite's token; absent: by the bare id"),
            ),
            errors=(Code.INVITE_NOT_VALID, Code.PARTICIPANT_LIMIT_REACHED),
        )
        for method, name, also in (
            ("POST", "joinBudget", ""),
            ("GET", "joinBudgetByLink", " The same as `POST`, for links and legacy clients."),
        )
    ),
    Operation(
        "DELETE /budgets/{budget_id}/leave",
        MemberRoutes.leave,
        "leaveBudget",
        "Leave a budget",
        {200: "The user no longer takes part; also when they had left before"},
        errors=(Code.OWNER_CANNOT_LEAVE,),
        never=(Code.NOT_PARTICIPANT,),
    ),
    Operation(
        "POST /budgets/{budget_id}/invites",
        InviteRoutes.create,
        "createInvite",
        "Make an invite (owner)",
        {201: "The invite, with its token"},
        f"A budget has at most {INVITES_MAX} that are neither run out nor revoked.",
        body=NewInvite,
        errors=(Code.NOT_OWNER,),
    ),
    Operation(
        "GET /budgets/{budget_id}/invites",
        InviteRoutes.read,
        "listInvites",
        "The budget's invites (owner)",
        {200: "All of them, without their tokens"},
        errors=(Code.NOT_OWNER,),
    ),
    Operation(
        "DELETE /budgets/{budget_id}/invites/{invite_id}",
        InviteRoutes.revoke,
        "revokeInvite",
        "Revoke an invite (owner)",
        {200: "It lets nobody in; also when it was revoked before"},
        errors=(Code.NOT_OWNER, Code.INVITE_NOT_EXISTS),
    ),
    Operation(
        "PUT /budgets/{budget_id}/link-sharing",
        InviteRoutes.share_link,
        "shareLink",
        "Whether the budget's bare id lets in (owner)",
        {200: "As it is now"},
        "A new budget's does.",
        body=LinkSharing,
        errors=(Code.NOT_OWNER,),
    ),
    Operation(
        "GET /budgets/{budget_id}/categories",
        BudgetRoutes.categories,
        "listCategories",
        "All categories",
        {200: "Without deleted ones"},
    ),
    Operation(
        "GET /budgets/{budget_id}/categories/{category_id}",
        BudgetRoutes.category,
        "readCategory",
        "One category",
        {200: "The category"},
        errors=(Code.CATEGORY_NOT_EXISTS,),
    ),
    Operation(
        "GET /budgets/{budget_id}/expenses",
        BudgetRoutes.expenses,
        "listExpenses",
        "The expenses, page by page",
        {200: "A page, without deleted ones"},
        parameters=(PAGE_KEY, COUNT),
    ),
    Operation(
        "GET /budgets/{budget_id}/expenses/{expense_id}",
        BudgetRoutes.expense,
        "readExpense",
        "One expense",
        {200: "The expense"},
        errors=(Code.EXPENSE_NOT_EXISTS,),
    ),
    Operation(
        "GET /user",
        ProfileRoutes.read,
        "readUser",
        "Your own profile",
        {200: "The profile"},
        errors=(Code.USER_NOT_FOUND,),
    ),
    Operation(
        "PUT /user",
        ProfileRoutes.write,
        "writeUser",
        "Create or change your profile",
        {200: "The profile as it is now"},
        "An absent field is unchanged, null clears it.",
        body=ProfileFields,
        errors=(Code.EMAIL_TAKEN,),
    ),
    Operation(
        "DELETE /user",
        ProfileRoutes.delete,
        "deleteUser",
        "Delete your account",
        {200: "The profile is gone; also when there was none"},
        "The user leaves every budget. A budget of theirs passes to the participant who joined "
        "first; the `participant.remove` event names them as `owner`. Tokens that were issued "
        "before no longer count, except to repeat this request.",
    ),
    Operation(
        "GET /user/photo-upload-url",
        PhotoRoutes.begin,
        "beginPhoto",
        "Where to PUT a photo",
        {200: "A signed URL, good for one upload"},
        "PUT the photo to `url` with these `headers`, then confirm `key`.",
        parameters=(PHOTO_TYPE, PHOTO_SIZE),
        errors=(Code.BAD_REQUEST, Code.PHOTO_TOO_BIG),
    ),
    *(
        Operation(
            f"{method} {path}",
            PhotoRoutes.confirm,
            name,
            f"Set the profile photo{as_legacy}",
            {201: "It is; also when the key was confirmed before"},
            "What was uploaded must have the size and be of the type that were announced.",
            body=Confirmation,
            errors=OF_PHOTO,
        )
        for method, path, name, as_legacy in (
            ("POST", "/user/confirm-photo-upload", "confirmPhoto", ""),
            ("PUT", "/user/photo-upload-confirm", "confirmPhotoLegacy", ", as legacy clients do"),
        )
    ),
    Operation(
        "DELETE /user/profile-photo",
        PhotoRoutes.remove,
        "deletePhoto",
        "Have no photo",
        {204: "There is none; also when there was none"},
    ),
    Operation(
        "GET /profiles/{user_id:opaque}",
        ProfileRoutes.read_other,
        "readProfile",
        "What others may see of a user",
        {200: "The profile"},
        errors=(Code.USER_NOT_FOUND,),
    ),
    Operation(
        "GET /errors",
        table,
        "listErrors",
        "Every code that a client may meet",
        {200: "The table"},
        needs="nothing",
        headers={"Cache-Control": "`public, max-age=3600`"},
    ),
    Operation(
        "GET /healthz",
        HealthRoutes.alive,
        "isAlive",
        "Whether the process answers",
        {200: "It does"},
        needs="nothing",
    ),
    Operation(
        "GET /readyz",
        HealthRoutes.ready,
        "isReady",
        "Whether the hub can do its work",
        {
            200: "It can",
            503: "It cannot: Postgres is out of reach",
        },
        needs="nothing",
    ),
    Operation(
        "GET /metrics",
        None,
        "readMetrics",
        "What the hub has counted, for Prometheus",
        {200: "Prometheus' text format, or OpenMetrics if asked for"},
        media=TEXT,
        needs="nothing",
    ),
    Operation(
        "GET /openapi.json",
        Documents.rest,
        "readOpenApi",
        "This document",
        {200: "OpenAPI 3.1"},
        needs="nothing",
    ),
    Operation(
        "GET /asyncapi.json",
        Documents.socket,
        "readAsyncApi",
        "The socket's document",
        {200: "AsyncAPI 3.0"},
        needs="nothing",
    ),
    Operation(
        "GET /postman.json",
        Documents.postman,
        "readPostman",
        "This document as a Postman collection",
        {200: "Postman Collection 2.1"},
        needs="nothing",
    ),
    Operation(
        "GET /docs",
        Documents.page,
        "readDocs",
        "Both documents as a page for people",
        {200: "A page without scripts"},
        media=HTML,
        needs="nothing",
    ),
)
