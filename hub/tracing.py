"""Where a submission comes from, and its way through the hub as spans of a trace.

    submit ─┬─ batch ── commit            a batch joins many submissions: it belongs to the trace of
            │                             the first and is linked with all others, both ways
            └─ publish ─┬─ deliver        here, and on every other node with followers: the bus
                        └─ deliver …      brings `Context` along

`Trail` is what the engine calls. Where tracing is off every step is `NO_SPAN`, which costs the same
however many events there are. What a feed reads from the log was nobody's frame: it has no context,
and no `deliver`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Self

from hub.frames.events import NAMED_MAX, Context, Frame
from hub.ports import Span, Tracer

LINKS_MAX = 100  # submissions that one span names


class Correlation(NamedTuple):
    """What a submission is called wherever it comes. `shared` says whether those who get its events
    are told too: they are if the client chose the id, not if it was made up on the way."""

    id: str
    shared: bool


class NoSpan:
    """A step that nobody traces."""

    __slots__ = ()
    context: str | None = None

    def link(self, context: str) -> None: ...
    def end(self, failure: str | None = None) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


NO_SPAN = NoSpan()


class Origin:
    """Of one submission. `span` is open until its verdicts are given; `batch` is the context of the
    batch it was taken into."""

    __slots__ = ("batch", "correlation", "span")

    def __init__(self, correlation: Correlation | None = None, span: Span = NO_SPAN) -> None:
        self.correlation = correlation
        self.span = span
        self.batch: str | None = None


NOWHERE = Origin()  # of all that nobody traces and no client has named
Origins = Mapping[int, Origin]  # of a budget's new events, by sequence, without `NOWHERE`
NO_ORIGINS: Origins = {}


class Trail:
    """The way of the events, as spans of `tracer`; without one there are none."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    def submit(self, events: int, correlation: Correlation | None) -> Origin:
        """A submission of so many events begins here."""
        span: Span = NO_SPAN
        if self._tracer is not None:
            called = {} if correlation is None else {"correlation_id": correlation.id}
            span = self._begin("submit", [], {"events": events, **called})
        if correlation is None and span is NO_SPAN:
            return NOWHERE
        return Origin(correlation, span)

    def batch(self, origins: Sequence[Origin], events: int) -> Span:
        """These submissions go on together."""
        traced = _traced(origins)
        if not traced:
            return NO_SPAN
        about = {"submissions": len(origins), "events": events}
        span = self._begin("batch", _contexts(traced), about)
        if span.context is not None:
            for origin in traced:
                origin.batch = span.context
            for origin in traced[1:]:
                origin.span.link(span.context)
        return span

    def commit(self, origins: Iterable[Origin]) -> Span:
        """One attempt to commit a batch, or a part of it."""
        batch = next((origin.batch for origin in origins if origin.batch is not None), None)
        return NO_SPAN if batch is None else self._begin("commit", [batch], {})

    def publish(self, frame: Frame, origins: Origins) -> Span:
        """The delivery of a frame to all; its context is to be brought to those who deliver."""
        if not origins:
            return NO_SPAN
        sequences = range(frame.from_sequence, frame.to_sequence + 1)
        traced = _traced(dict.fromkeys(origins[each] for each in sequences if each in origins))
        return self._begin("publish", _contexts(traced), _about(frame)) if traced else NO_SPAN

    def deliver(self, frame: Frame) -> Span:
        """The delivery of a frame on this node."""
        context = frame.context
        if context is None or context.trace is None:
            return NO_SPAN
        called = ",".join(context.correlation_ids)
        about = {**_about(frame), "correlation_id": called} if called else _about(frame)
        return self._begin("deliver", [context.trace], about)

    def _begin(
        self, name: str, contexts: Sequence[str], attributes: Mapping[str, str | int]
    ) -> Span:
        """Under the first of the contexts, and linked with the others."""
        if self._tracer is None:
            return NO_SPAN
        parent, links = next(iter(contexts), None), contexts[1:]
        span = self._tracer.begin(name, parent=parent, links=links, attributes=attributes)
        return span or NO_SPAN


def in_context(frame: Frame, span: Span) -> Frame:
    """The frame with what those who deliver it have to know."""
    if span.context is None:
        return frame
    known = frame.context or Context(None, ())
    return frame._replace(context=known._replace(trace=span.context))


def correlation_ids(origins: Iterable[Origin]) -> tuple[str, ...]:
    """What the submissions are called, each once, `NAMED_MAX` at most."""
    called = (origin.correlation for origin in origins)
    return tuple(dict.fromkeys(each.id for each in called if each is not None))[:NAMED_MAX]


def shared_ids(origins: Origins) -> Mapping[int, str]:
    """What the events' readers are told, by sequence."""
    if not origins:
        return {}
    return {
        sequence: origin.correlation.id
        for sequence, origin in origins.items()
        if origin.correlation is not None and origin.correlation.shared
    }


def _traced(origins: Iterable[Origin]) -> list[Origin]:
    return [origin for origin in origins if origin.span is not NO_SPAN]


def _contexts(traced: Sequence[Origin]) -> list[str]:
    contexts = (origin.span.context for origin in traced[: LINKS_MAX + 1])
    return [context for context in contexts if context is not None]


def _about(frame: Frame) -> dict[str, str | int]:
    return {
        "budget_id": frame.budget_id,
        "from_sequence": frame.from_sequence,
        "to_sequence": frame.to_sequence,
    }
