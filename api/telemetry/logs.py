"""Logging: one line an event, JSON for machines or readable for people, always to stderr.

A traceback never shows the values of variables: among them are tokens, notes, the database's URL
(P9). A line that cannot be written stops nobody: it is lost, and counted (`LineWriter`).
"""

import atexit
import logging
import sys
from typing import TextIO, cast

import structlog

from api.settings import Settings
from api.telemetry.line_writer import LineWriter

_writers: list[LineWriter] = []  # of this process, since it was configured: logging is global


def configure(settings: Settings) -> LineWriter:
    """Log as the settings say, from now on and for this process; to what is returned."""
    writer = opened(sys.stderr)
    _writers.append(writer)
    stream = cast(TextIO, writer)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        renderers: list[structlog.typing.Processor] = [
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(),
        ]
    else:
        renderers = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr is not None and sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: Lines(stream),
        cache_logger_on_first_use=True,
    )
    # What libraries log (uvicorn, asyncio, redis) takes the same form, warnings and worse only.
    handler = Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    return writer


def lost_lines() -> int:
    """How many lines of this process were lost."""
    return sum(writer.lost for writer in _writers)


def opened(stream: TextIO | None) -> LineWriter:
    """A writer of lines to that stream, which is waited for a little when the process ends. None
    is a stream that was closed when it began."""
    writer = LineWriter(None) if stream is None else LineWriter(stream.fileno(), stream.encoding)
    atexit.register(writer.finish)
    return writer


class Lines:
    """What structlog writes with. Its own holds a lock meanwhile: a finalizer that logs would wait
    for itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, text: str) -> None:
        self._stream.write(f"{text}\n")

    debug = info = warning = error = critical = msg


class Handler(logging.StreamHandler[TextIO]):
    """For libraries. A call whose arguments do not fit its text is a line too: the standard library
    would write it to stderr itself, and wait there."""

    def handleError(self, record: logging.LogRecord) -> None:
        structlog.get_logger().exception("log call failed", logger=record.name)
