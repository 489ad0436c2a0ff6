"""Traces by OpenTelemetry, which is the extra `tracing`. This module is imported only where that is
switched on.

`OTEL_EXPORTER_OTLP_ENDPOINT` says where they go, by OTLP over HTTP. The other variables of the
standard count too, because the SDK reads them itself: `OTEL_TRACES_SAMPLER`,
`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`, …
"""

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Self
from uuid import uuid4

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    Link,
    Span as OtelSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hub.outage import Outage

EXPORT_S = 5.0  # for one request to the collector, with its repetitions
CLOSE_S = 2.0  # for the last spans to leave

_KINDS = {
    "submit": SpanKind.SERVER,
    "publish": SpanKind.PRODUCER,
    "deliver": SpanKind.CONSUMER,
}
_PROPAGATOR = TraceContextTextMapPropagator()

_log = structlog.get_logger()


def open_tracer(endpoint: str) -> "OpenTelemetry":
    """Spans go to `endpoint` in batches, from a bounded queue: what is too much, or what nobody
    takes, is dropped."""
    ours = Resource({"service.name": "budget-hub", "service.instance.id": str(uuid4())})
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_S)
    # Several lines for each failed request, some of them with the collector's answer.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    provider.add_span_processor(BatchSpanProcessor(_Collector(exporter)))
    return OpenTelemetry(provider)


class OpenTelemetry:
    """Implements `hub.ports.Tracer`. The loop never waits for the collector."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("budget-hub")

    def begin(
        self,
        name: str,
        *,
        parent: str | None = None,
        links: Sequence[str] = (),
        attributes: Mapping[str, str | int] = {},
    ) -> "_Span | None":
        span = self._tracer.start_span(
            name,
            context=_context(parent),
            kind=_KINDS.get(name, SpanKind.INTERNAL),
            links=[Link(_span_context(link)) for link in links],
            attributes={f"budget_hub.{key}": value for key, value in attributes.items()},
        )
        return _Span(span) if span.is_recording() else None

    async def close(self) -> None:
        """Send what is left, for `CLOSE_S` at most."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        # A daemon, which no exit waits for: a collector that says nothing would hold it.
        threading.Thread(target=shut_down, daemon=True).start()
        try:
            async with asyncio.timeout(CLOSE_S):
                await done.wait()
        except TimeoutError:
            _log.warning("the last traces were not taken", within_s=CLOSE_S)


class _Collector(SpanExporter):
    """Says once that it is away, and once that it is back. Called by the processor's thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._outage = Outage("collector of traces lost", "collector of traces back")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._outage.back()
        else:
            self._outage.lost(result.name)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Span:
    """Implements `hub.ports.Span`."""

    __slots__ = ("_span", "context")

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span, Context()))
        self.context = carrier["traceparent"]

    def link(self, context: str) -> None:
        self._span.add_link(_span_context(context))

    def end(self, failure: str | None = None) -> None:
        if self._span.is_recording():
            if failure is not None:
                self._span.set_status(Status(StatusCode.ERROR, failure))
            self._span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(None if kind is None else kind.__name__)


def _context(traceparent: str | None) -> Context:
    """Never that of the task or thread. What is no `traceparent` begins a trace of its own."""
    if traceparent is None:
        return Context()
    return _PROPAGATOR.extract({"traceparent": traceparent}, Context())


def _span_context(traceparent: str) -> SpanContext:
    return get_current_span(_context(traceparent)).get_span_context()
