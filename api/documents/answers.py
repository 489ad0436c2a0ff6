"""Bodies of REST requests and answers, where they are not a record, a verdict or a frame."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from api.documents.errors import Error
from api.documents.events import ClientEvent
from api.documents.records import (
    RECORDS,
    Budget,
    Category,
    Expense,
    Participant,
    fields_of,
    shape,
)
from api.documents.scalars import Digest, Head, Id, Key, LogId, Millis, NextKey, UserId
from api.documents.stream import StreamEvent
from api.documents.verdicts import Verdict
from api.rest.core.invites import USES_MAX
from hub.budget.events import EVENTS_PER_REQUEST_MAX
from hub.budget.kinds import BUDGET, KINDS
from hub.budget.scalars import Currency, Text, Title, Uuid, Whole

Uses = Annotated[int, Field(ge=1, le=USES_MAX)]


class SignedInAnswer(TypedDict):
    """What a client keeps. `expiresAt` is of `token`; `refreshToken` gets the next one, once."""

    userId: UserId
    token: str
    expiresAt: Millis
    refreshToken: str


class EventsRequest(BaseModel):
    """Taken in this order."""

    events: Annotated[list[ClientEvent], Field(min_length=1, max_length=EVENTS_PER_REQUEST_MAX)]


class BudgetRequest(BaseModel):
    """A `budget.create` event; `id` is the new budget's."""

    eventId: Uuid
    id: Uuid
    title: Title
    details: Text | None = None
    currency: Currency | None = None
    when: Whole


class EventsAnswer(TypedDict):
    """In the order of submission. In mode `stop` the first that is not accepted is the last."""

    events: Annotated[list[Verdict], Field(min_length=1, max_length=EVENTS_PER_REQUEST_MAX)]


class LogPage(TypedDict):
    budgetId: Id
    key: Key
    nextKey: NextKey
    head: Head
    hasMore: bool
    logId: LogId
    events: list[StreamEvent]


class BudgetsPage(TypedDict):
    userId: UserId
    key: Key
    nextKey: NextKey
    budgets: list[Budget]


_List: Any = list  # mypy takes an index for a type
_LISTS = {kind.plural: _List[RECORDS[kind.name]] for kind in KINDS.values() if kind is not BUDGET}
_STANDING = {"lastEventSequence": Head, "digest": Digest, "logId": LogId}
Snapshot = shape(
    "Snapshot",
    "The whole budget at one instant, as of event `lastEventSequence`; without deleted records.",
    {**fields_of(BUDGET), **_LISTS, "participants": list[Participant], **_STANDING},
)
Delta = shape(
    "Delta",
    "The records that changed after event `key`, as they are now; deleted ones are whole records"
    " with `deleted`. `budget` and `participants` are there only where they changed.",
    {
        "budgetId": Id,
        "key": Key,
        "budget": NotRequired[Budget],
        **_LISTS,
        "participants": NotRequired[list[Participant]],
        **_STANDING,
    },
)


class LastSequence(TypedDict):
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


class Invited(TypedDict):
    """`token` is shown here and nowhere else; the link is `/budgets/:id/join?invite=<token>`."""

    budgetId: Id
    inviteId: Id
    token: str
    expiresAt: Millis
    maxUses: Uses


class Invite(TypedDict):
    """It lets in until `expiresAt`, `maxUses` times, unless it is `revoked`."""

    inviteId: Id
    createdAt: Millis
    expiresAt: Millis
    maxUses: Uses
    uses: Annotated[int, Field(ge=0, le=USES_MAX)]
    revoked: bool


class InviteList(TypedDict):
    """In the order of creation, with those that no longer let in."""

    budgetId: Id
    invites: list[Invite]


class Revoked(TypedDict):
    budgetId: Id
    inviteId: Id


class LinkShared(TypedDict):
    budgetId: Id
    enabled: Annotated[bool, Field(description="The budget's bare id lets in")]


class Joined(TypedDict):
    budget: Budget
    participant: Participant


class Left(TypedDict):
    budgetId: Id
    userId: UserId


class Profile(TypedDict):
    """What others may see of somebody: never the e-mail."""

    id: UserId
    firstName: str | None
    lastName: str | None
    photo: str | None


class OwnProfile(Profile):
    email: str | None


class PhotoUpload(TypedDict):
    """`headers` are to be sent with the upload; the URL counts for `expiresInSeconds`."""

    url: str
    expiresInSeconds: Annotated[int, Field(ge=1)]
    key: Id
    headers: dict[str, str]


class Photo(TypedDict):
    """The photo's address, which anybody may read."""

    photo: str


class Forgotten(TypedDict):
    userId: UserId


class CodeOfTable(Error):
    """`detail` is what the code means."""

    closeCode: Annotated[
        int | None, Field(description="With which the socket closes, where it does")
    ]


class ErrorTable(TypedDict):
    errors: list[CodeOfTable]


class Alive(TypedDict):
    status: Literal["ok"]


class Ready(TypedDict):
    """`degraded`: without the bus, which is slower and still correct, or without the store of
    photos."""

    status: Literal["ok", "degraded"]
    postgres: Literal[True]


class Unready(TypedDict):
    status: Literal["unavailable"]
    postgres: Literal[False]
