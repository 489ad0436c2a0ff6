"""Where a submission comes from, and its way through the hub as spans of a trace.

    submit ─┬─ batch ── commit            a batch joins many submissions: it belongs to the trace of
            │                             the first and is linked with all others, both ways
            └─ publish ─┬─ deliver        here, and on every other node with followers: the bus
                        └─ deliver …      brings `Context` along

Where tracing is off and the client sent no correlation id a submission has no `Origin`, and nothing
here is called: that costs a comparison with None for each submission, transaction and frame. What a
feed reads from the log was nobody's frame: it has no context, and no `deliver`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from hub.budget.records import BudgetId
from hub.frames import Context, Frame
from hub.ports import Span, Tracer

LINKS_MAX = 100  # submissions that one span names
NAMED_MAX = 20  # correlation ids in one log line, and with one frame on the bus


class Correlation(NamedTuple):
    """What a submission is called wherever it comes. `shared` says whether those who get its events
    are told too: they are if the client chose the id, not if it was made up on the way."""

    id: str
    shared: bool


class Origin:
    """Of one submission. `span` is open until its verdicts are given; `batch` is the context of the
    batch it was taken into."""

    __slots__ = ("batch", "correlation", "span")

    def __init__(self, correlation: Correlation | None, span: Span | None) -> None:
        self.correlation = correlation
        self.span = span
        self.batch: str | None = None

    def end(self, failure: str | None = None) -> None:
        if self.span is not None:
            self.span.end(failure)
            self.span = None


# The origins of a budget's new events, by sequence.
Origins = Mapping[int, Origin]
NO_ORIGINS: Origins = {}


def correlation_ids(origins: Iterable[Origin | None], *, shared: bool = False) -> tuple[str, ...]:
    """What the submissions are called, each once, `NAMED_MAX` at most; with `shared` only what may
    leave the hub."""
    ids = {
        origin.correlation.id: None
        for origin in origins
        if origin is not None
        and origin.correlation is not None
        and (origin.correlation.shared or not shared)
    }
    return tuple(ids)[:NAMED_MAX]


def begin_submission(
    tracer: Tracer | None, correlation: Correlation | None, events: int
) -> Origin | None:
    """None where nobody asked for one."""
    span = None
    if tracer is not None:
        attributes: dict[str, str | int] = {"events": events}
        if correlation is not None:
            attributes["correlation_id"] = correlation.id
        span = tracer.begin("submit", attributes=attributes)
    if span is None and correlation is None:
        return None
    return Origin(correlation, span)


def begin_batch(tracer: Tracer, origins: Sequence[Origin | None], events: int) -> Span | None:
    """`origins` are those of the batch's submissions; None if none of them is traced."""
    traced = _traced(origins)
    if not traced:
        return None
    (_, first), *others = traced
    batch = tracer.begin(
        "batch",
        parent=first.context,
        links=[span.context for _, span in others[:LINKS_MAX]],
        attributes={"submissions": len(origins), "events": events},
    )
    if batch is not None:
        for origin, _ in traced:
            origin.batch = batch.context
        for _, span in others:
            span.link(batch.context)
    return batch


def begin_commit(tracer: Tracer, origins: Iterable[Origin | None]) -> Span | None:
    """One attempt to commit a batch, or a part of it."""
    batch = next((o.batch for o in origins if o is not None and o.batch is not None), None)
    return None if batch is None else tracer.begin("commit", parent=batch)


def begin_publish(
    tracer: Tracer | None, origins: Sequence[Origin], frame: Frame
) -> tuple[Frame, Span | None]:
    """The frame with what is known about its events, and the span of its delivery to all."""
    span = None
    traced = _traced(origins) if tracer is not None else []
    if tracer is not None and traced:
        (_, first), *others = traced
        span = tracer.begin(
            "publish",
            parent=first.context,
            links=[other.context for _, other in others[:LINKS_MAX]],
            attributes=_about(frame),
        )
    ids = correlation_ids(origins, shared=True)
    if span is None and not ids:
        return frame, None
    return frame._replace(context=Context(None if span is None else span.context, ids)), span


def begin_deliver(tracer: Tracer, context: Context, frame: Frame) -> Span | None:
    if context.trace is None:
        return None
    attributes = _about(frame)
    if context.correlation_ids:
        attributes["correlation_id"] = ",".join(context.correlation_ids)
    return tracer.begin("deliver", parent=context.trace, attributes=attributes)


def of_frame(origins: Origins, frame: Frame) -> Sequence[Origin]:
    """Those of the frame's events, each once."""
    found = {
        id(origin): origin
        for sequence, origin in origins.items()
        if frame.from_sequence <= sequence <= frame.to_sequence
    }
    return list(found.values())


def shared_ids(origins: Origins) -> Mapping[int, str]:
    """What the events' readers are told, by sequence."""
    return {
        sequence: origin.correlation.id
        for sequence, origin in origins.items()
        if origin.correlation is not None and origin.correlation.shared
    }


def _traced(origins: Iterable[Origin | None]) -> list[tuple[Origin, Span]]:
    return [(o, o.span) for o in origins if o is not None and o.span is not None]


def _about(frame: Frame) -> dict[str, str | int]:
    budget_id: BudgetId = frame.budget_id
    return {
        "budget_id": budget_id,
        "from_sequence": frame.from_sequence,
        "to_sequence": frame.to_sequence,
    }
