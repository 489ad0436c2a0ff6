"""The events of a budget as frames, encoded once for every socket and node."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, NotRequired, Protocol

import orjson
from pydantic import Field
from typing_extensions import TypedDict

from hub.budget.records import BudgetId, UserId
from hub.budget.shapes.scalars import Id, SequenceNumber
from hub.budget.shapes.stream import StreamEvent
from hub.frames.client import CORRELATION_ID
from hub.frames.websocket import FRAME_BYTES_MAX, framed

_CORRELATION_BYTES_MAX = 16 + 64 + 6  # with its sequence, quotes and what stands between
NAMED_MAX = 20  # correlation ids in one log line, and with one frame on the bus


class Context(NamedTuple):
    """What is known about how a frame's events came: the span that published them (a W3C
    `traceparent`), and what their clients call them."""

    trace: str | None
    correlation_ids: tuple[str, ...]


class Frame(NamedTuple):
    """Consecutive events of one budget, encoded once: `data` goes as it is to sockets and nodes.

    A frame ends at a `participant.remove` (`removes` is the user) and at `budget.delete`
    (`deletes`), because subscriptions end there. `written_at_ms` is when its first event was
    written to the log (epoch milliseconds), None where that is not known. `context` is not sent to
    sockets.
    """

    budget_id: BudgetId
    from_sequence: int
    to_sequence: int
    data: bytes
    removes: UserId | None = None
    deletes: bool = False
    written_at_ms: int | None = None
    context: Context | None = None

    @property
    def events(self) -> int:
        """How many it carries."""
        return self.to_sequence - self.from_sequence + 1


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


class Streamed(Protocol):
    """A row of the log: just accepted, or read again."""

    @property
    def sequence(self) -> int: ...
    @property
    def event_type(self) -> str: ...
    @property
    def record_id(self) -> str: ...
    @property
    def event(self) -> bytes: ...


def event_frames(
    budget_id: BudgetId,
    rows: Iterable[Streamed],
    written_at_ms: int | None = None,
    correlation_ids: Mapping[int, str] = {},
) -> Iterator[Frame]:
    """The `events` frames that carry these consecutive rows of the log, the first of which was
    written at `written_at_ms`. `correlation_ids` is what the clients called them, by sequence."""
    part: list[Streamed] = []
    size = 0
    for row in rows:
        if part and size + len(row.event) > FRAME_BYTES_MAX - 512:  # 512: the frame around them
            yield _event_frame(budget_id, part, written_at_ms, correlation_ids)
            part, size = [], 0
        part.append(row)
        size += len(row.event) + 1
        if correlation_ids:
            size += _CORRELATION_BYTES_MAX
        if row.event_type in ("participant.remove", "budget.delete"):
            yield _event_frame(budget_id, part, written_at_ms, correlation_ids)
            part, size = [], 0
    if part:
        yield _event_frame(budget_id, part, written_at_ms, correlation_ids)


def _event_frame(
    budget_id: BudgetId,
    rows: Sequence[Streamed],
    written_at_ms: int | None,
    correlation_ids: Mapping[int, str],
) -> Frame:
    first, last = rows[0], rows[-1]
    called, context = b"", None
    if correlation_ids:
        ids = {str(s): id for row in rows if (id := correlation_ids.get(s := row.sequence))}
        if ids:
            called = b',"correlationIds":%b' % orjson.dumps(ids)
            context = Context(None, tuple(dict.fromkeys(ids.values()))[:NAMED_MAX])
    text = (
        b'{"type":"events","budgetId":"%b","fromSequence":%d,"toSequence":%d%b,"events":[%b]}'
        % (
            budget_id.encode(),
            first.sequence,
            last.sequence,
            called,
            b",".join([row.event for row in rows]),
        )
    )
    return Frame(
        budget_id,
        first.sequence,
        last.sequence,
        framed(text),
        last.record_id if last.event_type == "participant.remove" else None,
        last.event_type == "budget.delete",
        written_at_ms,
        context,
    )
