"""uvicorn's HTTP protocol, with limits on the size and duration of requests.

| what                              | bound                             | what it meets   |
|-----------------------------------|-----------------------------------|-----------------|
| the head: first line and fields   | `HEAD_BYTES_MAX`, `HEADERS_MAX`   | 431, the end    |
| the head to arrive                | `head_s`                          | 408, the end    |
| the first byte of a connection    | `head_s`                          | the end         |
| the body to arrive                | `body_s`, and a second for every  | 408, the end    |
|                                   | `BODY_BYTES_PER_S` that came      |                 |
| what is no HTTP                   |                                   | 400, the end    |
| `CONNECT`                         |                                   | 405, the end    |
| connections of one address        | `CONNECTIONS_PER_ADDRESS`         | 403, the end    |
| when the process ends: the body,  | `farewell_s`                      | 503, the end;   |
| and what was answered to be taken |                                   | the end         |

A request may offer to upgrade its connection (RFC 9110 section 7.8). The hub takes an offer of
`websocket`, in HTTP/1.1, and ignores all others: Java's `HttpClient` and `curl --http2` offer `h2c`
with every request. The parser stops at any offer and skips the body, which it would then read as
the next request. So the head is given to it once more, without the offer.

Each route limits the size of its body. The kernel drops a peer that reads nothing
(`api.process.server.bind`); what others have not read yet is counted (`api.http.unread`).
"""

import asyncio
from collections import Counter
from functools import partial
from typing import ClassVar

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.http.connections import Connections
from api.http.guard import PROBES
from api.http.refusals import refuse
from api.http.unread import Backlog, Unread
from api.timeouts import AppTimeouts
from hub.errors import Code, HubError

HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 128
BODY_BYTES_PER_S = 500


class _Refused(Exception):
    """Ends the parser."""


class HttpProtocol(HttpToolsProtocol):
    """`tests/unit/api/test_leaning.py` lists what this class uses of its base class."""

    # Set by `api.process.server.configured`.
    timeouts: ClassVar[AppTimeouts]
    connections_by_address: ClassVar[Connections]
    refusals: ClassVar[Counter[str]]  # by code
    unread: ClassVar[Unread]

    _backlog: Backlog

    _expected = "head"  # the part of a request that the peer has to send; "" between requests
    _requests = 0  # begun so far
    _timed = ("", 0)  # the part that the timer is for, and the number of its request
    _timer: asyncio.TimerHandle | None = None
    _began_s = 0.0
    _head_bytes = 0  # of the lines that the parser has passed on
    _line_bytes = 0  # received while the head was incomplete: the parser holds back half a line
    _body_bytes = 0
    _refusal = Code.BAD_REQUEST  # for what the parser does not take
    _crowded = False  # no place for one more connection of its address
    _answering: RequestResponseCycle | None = None  # the request that runs; others may wait behind
    _lingering = False  # the last response is written, and what arrives is discarded
    _parting = False  # the process ends

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        drop = partial(self.loop.call_soon, transport.abort)
        self._backlog = self.unread.backlog(transport.get_write_buffer_size, drop)
        self._crowded = not self.connections_by_address.made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expected = ""
        self._watch()
        self.connections_by_address.ended(self.transport)
        if self._answering is not None:  # uvicorn tells the last request only that its peer is gone
            self._answering.disconnected = True
            self._answering.message_event.set()
            self._answering = None
        self.pipeline.clear()
        self._backlog.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        before = self._expected
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._expected == "body":
            self._body_bytes += len(data)
        elif self._expected == "head" == before:
            self._line_bytes += len(data)
            if self._line_bytes > HEAD_BYTES_MAX:
                self._refuse(Code.HEAD_TOO_LARGE)
        elif not self._expected and self.timeout_keep_alive_task is None and self._idle():
            self._expected = "head"  # after empty lines, uvicorn has no timer for the next request
        if self._timed != (self._expected, self._requests) and not self._lingering:
            self._watch()

    def _parse(self, data: bytes | memoryview) -> None:
        """Replaces what uvicorn does here, which also logs a warning for everything malformed."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserError:  # also what one of our own callbacks raised
                self._refuse(self._refusal)
                return
            except httptools.HttpParserUpgrade as stopped:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                if self.parser.get_method() == b"CONNECT":
                    self._refuse(Code.METHOD_NOT_ALLOWED)
                    return
                [end] = stopped.args  # of the head
            head = self._without_offer()
            # A new one: behind a head with `Connection: close` this one discards what comes.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self._parse(head)
            if self._lingering or self.transport.is_closing():
                return
            data = memoryview(data)[end:]

    def _without_offer(self) -> bytes:
        """The head that was parsed last, without the field that the parser stops at."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _should_upgrade(self) -> bool:
        return (
            self.parser.should_upgrade()
            and self.parser.get_http_version() == "1.1"
            and any(
                name == b"upgrade" and value.strip().lower() == b"websocket"
                for name, value in self.headers
            )
        )

    def handle_websocket_upgrade(self) -> None:
        if not self._idle() or self.pipeline:
            self._refuse(Code.BAD_REQUEST)  # its response would get in between the socket's frames
            return
        self._expected = ""
        self._watch()
        super().handle_websocket_upgrade()
        self._lingering = True  # another protocol has the connection
        self.parser = None  # type: ignore[assignment]  # a cycle, which only gc would free

    # The parser's calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["backlog"] = self._backlog
        self._expected = "head"
        self._requests += 1
        self._head_bytes = self._line_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._expected = "body"
        self._body_bytes = 0
        if self._stops_here():
            return
        if not self._has_place():
            self._refusal = Code.QUOTA_EXCEEDED
            raise _Refused
        super().on_headers_complete()
        if self._crowded and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        if not self._stops_here():
            self._expected = ""
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def timeout_keep_alive_handler(self) -> None:
        """The next request has its time from when the peer has taken the response: uvicorn's is
        over while megabytes are still on their way, and the peer's next request would be lost."""
        if self.transport.get_write_buffer_size() and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def on_response_complete(self) -> None:
        self.connections_by_address.answered(self.transport)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._backlog.full()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._backlog.drained()

    def _has_place(self) -> bool:
        """Whether there is one for this request. Probes need none: an operator asks most when there
        are too many connections."""
        if not self._crowded and self.connections_by_address.asked(self.transport, self.headers):
            return True
        return self.url.partition(b"?")[0].decode("latin-1") in PROBES

    def _stops_here(self) -> bool:
        """Whether the parser stops behind this head, to read it once more without its offer."""
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX or len(self.headers) >= HEADERS_MAX:
            self._refusal = Code.HEAD_TOO_LARGE
            raise _Refused

    # Time

    def _watch(self) -> None:
        """Start the timer for the part that the peer has to send, or stop it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = self._expected, self._requests
        if self._expected:
            self._began_s = self.loop.time()
            wait_s = self.timeouts.head_s if self._expected == "head" else self.timeouts.body_s
            if self._crowded:
                wait_s = self.timeouts.flush_s
            self._timer = self.loop.call_later(wait_s, self._due)

    def _due(self) -> None:
        left_s = 0.0
        if self._expected == "body":
            until_s = self._began_s + self.timeouts.body_s + self._body_bytes / BODY_BYTES_PER_S
            left_s = until_s - self.loop.time()
            if self.flow.read_paused:  # the application is slow, not the peer
                left_s = max(left_s, self.timeouts.body_s)
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._due)
        elif self._expected == "head" and not self._line_bytes:
            self.transport.close()  # no request was begun
        else:
            self._refuse(Code.REQUEST_TIMEOUT)

    # The end

    def shutdown(self) -> None:
        """The process ends. A request that is being answered has its time; its peer may keep the
        process for `farewell_s`."""
        super().shutdown()
        self._parting = True
        self.loop.call_later(self.timeouts.farewell_s, self._part)

    def _part(self) -> None:
        if self.parser is None:  # gone, or a socket now
            return
        if self._expected == "body" and not self.flow.write_paused:
            self._refuse(Code.UNAVAILABLE)
            self.loop.call_later(self.timeouts.flush_s, self.transport.abort)
        elif self.flow.write_paused or self.transport.is_closing() or self._refused():
            self.transport.abort()

    def _refused(self) -> bool:
        """Whether the last response was ours, and no earlier one is due."""
        return self._lingering and (self._idle() or self.cycle.disconnected)

    def abort(self) -> None:
        self.transport.abort()

    def _idle(self) -> bool:
        """Whether no response is due."""
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, code: Code) -> None:
        """Answer a request that could not be read, and end the connection. If an earlier request
        still waits for its response, that response is sent instead, as the last one."""
        self._expected = ""
        self._watch()
        self.refusals[code.name] += 1
        cycle = self.cycle  # of the request that came last
        unread = cycle is not None and cycle.more_body and not cycle.response_started
        if self._idle() or (unread and not self.pipeline):
            if not self._idle():
                cycle.disconnected = True  # the response of the application is dropped
                cycle.message_event.set()
            refuse(self.transport, HubError(code))
            self._lingering = True
            # Of those that are too many, none may stay for long.
            soon = self._crowded or self._parting
            linger_s = self.timeouts.flush_s if soon else self.timeouts.close_s
            self._timer = self.loop.call_later(linger_s, self.transport.abort)
        elif cycle.more_body:
            self.transport.close()  # a response has begun, or one to an earlier request is due
        else:
            self._lingering = True
            cycle.keep_alive = False
