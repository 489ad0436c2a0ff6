"""Server frames of `budget.sync.v2`, as `hub.frames` makes them; and the client's `events` frame
with the events spelled out, which the hub checks one by one."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from api.documents.errors import FrameError
from api.documents.events import ClientEvent
from api.documents.scalars import Head, Id, Key, LogId, Millis, SequenceNumber, UserId
from api.documents.stream import StreamEvent
from api.documents.verdicts import Verdict
from hub.budget.events import EVENTS_PER_FRAME_MAX
from hub.frames import client
from hub.frames.client import CORRELATION_ID


class Events(client.Events):
    """Submit 1 to 100 events. `mode` says whether the first that is not accepted ends the batch."""

    events: Annotated[list[ClientEvent], Field(min_length=1, max_length=EVENTS_PER_FRAME_MAX)]


class _Answer(TypedDict):
    id: NotRequired[
        Annotated[int | str, Field(description="Of the frame that it answers, if that had one")]
    ]


class Limits(TypedDict):
    """What a client may send and have."""

    frameBytesMax: int
    eventsPerFrameMax: int
    inFlightEventsMax: int
    subscriptionsMax: int


class Welcome(TypedDict):
    """The session is open."""

    type: Literal["welcome"]
    userId: UserId
    connectionId: Id
    serverTime: Millis
    limits: Limits
    heartbeatS: Annotated[float, Field(gt=0, description="Seconds between two `heads`")]


class SignedIn(TypedDict):
    """After `welcome`, and after every renewal."""

    type: Literal["auth"]
    expiresAt: Millis


class AuthExpiring(TypedDict):
    """The token ends in 60 s, and the connection with it (4401): send `auth`."""

    type: Literal["auth.expiring"]
    expiresAt: Millis


class Subscribed(_Answer):
    """The budget's events after `key` follow."""

    type: Literal["subscribed"]
    budgetId: Id
    key: Key
    head: Head
    logId: LogId


class StreamEvents(TypedDict):
    """Consecutive events of one budget, in order, each once."""

    type: Literal["events"]
    budgetId: Id
    fromSequence: SequenceNumber
    toSequence: SequenceNumber
    correlationIds: NotRequired[
        Annotated[
            dict[str, Annotated[str, Field(pattern=CORRELATION_ID)]],
            Field(
                description="What their clients call them (`correlationId`, or a request's own"
                " `X-Request-Id`), by sequence, for those that have such an id; only with what"
                " comes live"
            ),
        ]
    ]
    events: Annotated[list[StreamEvent], Field(min_length=1)]


class Results(_Answer):
    """Verdicts in the order of submission; long ones come in several frames with the same `id`."""

    type: Literal["results"]
    results: Annotated[list[Verdict], Field(min_length=1, max_length=EVENTS_PER_FRAME_MAX)]


class Unsubscribed(_Answer):
    """No more events of this budget. `code` is there where the server decided."""

    type: Literal["unsubscribed"]
    budgetId: Id
    code: NotRequired[Literal["NOT_PARTICIPANT", "BUDGET_DELETED"]]


class Attendance(TypedDict):
    userId: UserId
    devices: Annotated[int, Field(ge=1)]


class Presence(TypedDict):
    """Everybody with a socket on the budget, on whatever node; after `subscribed`, and again when
    it has changed."""

    type: Literal["presence"]
    budgetId: Id
    users: list[Attendance]


class Heads(TypedDict):
    """The head of each subscribed budget, every `heartbeatS`. Two in a row that are ahead, with
    nothing arriving between: subscribe again."""

    type: Literal["heads"]
    heads: dict[Id, Head]


class GoAway(TypedDict):
    """The hub stops: it takes nothing more, and closes with 1012 once the verdicts in flight are
    sent."""

    type: Literal["goaway"]
    reconnectAfterMs: Annotated[int, Field(ge=0)]
    reason: str


class Refused(_Answer):
    """The frame with this `id` was not taken; without an `id`, the connection is closed next."""

    type: Literal["error"]
    error: FrameError


class Pong(_Answer):
    type: Literal["pong"]
    serverTime: Millis


class StreamEnd(TypedDict):
    """Data of the last Server-Sent Event, `event: unsubscribed`."""

    type: Literal["unsubscribed"]
    code: Literal["NOT_PARTICIPANT", "BUDGET_DELETED"]
