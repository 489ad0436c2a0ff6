"""What HTTP makes of a subscription: a long-poll that waits, and a stream of Server-Sent Events.

Both follow the same feeds as sockets do (design 5), so they wait without a database connection and
see the same events in the same order.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from api.sync.wire import HIGH_WATER_BYTES
from hub.budget.records import BudgetId
from hub.errors import Code, HubError
from hub.feed.feed import Subscription
from hub.frames.server import EndCode
from hub.frames.websocket import texts
from hub.hub import Hub
from hub.ports import Principal

_TO_SEQUENCE = re.compile(rb'"toSequence":(\d+)')  # the first is the frame's: ids stand before it


class RestEvent(NamedTuple):
    """A stream event as REST shows it: JSON text, with its type under `event` too."""

    sequence: int
    text: bytes


class Poll:
    """Waits for the first events behind a cursor."""

    attends = False

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.full = False
        self.events: list[RestEvent] = []
        self.head: int | None = None  # before it has joined
        self._refusal: Code | None = None
        self._over = asyncio.Event()

    async def wait(
        self, hub: Hub, budget_id: BudgetId, key: int, wait_s: float, request: Request
    ) -> None:
        """Return when there are events, after `wait_s` seconds, when the hub drains, or when the
        client of `request` is gone: a client that retries in a loop would pile up waiting polls.

        Raises `HubError` where the user may not read, or may no longer, and `QUOTA_EXCEEDED`."""
        hub.attach(self)
        try:
            hub.admit(self, self.principal.user_id)
            await self._follow(hub, budget_id, key, wait_s, request)
        finally:
            hub.detach(self)
        if self._refusal is not None:
            raise HubError(self._refusal)

    async def _follow(
        self, hub: Hub, budget_id: BudgetId, key: int, wait_s: float, request: Request
    ) -> None:
        subscription = hub.feeds.subscribe(self.principal.user_id, budget_id, key, self)
        watching = asyncio.create_task(self._watch(request))
        try:
            async with asyncio.timeout(wait_s):
                await self._over.wait()
        except TimeoutError:
            pass
        finally:
            watching.cancel()
            subscription.end()

    async def _watch(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.leave()

    def write(self, data: bytes) -> None:
        self.events += _rest_events(data)
        self.head = max(self.head or 0, self.events[-1].sequence)
        self.full = True
        self._over.set()

    def joined(self, key: int, head: int) -> None:
        self.head = head

    def refused(self, code: Code) -> None:
        self._refusal = code
        self._over.set()

    def ended(self, code: Code) -> None:
        if code is not Code.BUDGET_DELETED:  # who took part may read the log to its end
            self._refusal = code
        self._over.set()

    def sign_out(self) -> None:
        self.refused(Code.NOT_LOGGED_IN)

    def go_away(self, reconnect_after_ms: int) -> None:
        self._over.set()

    def leave(self) -> None:
        self._over.set()


class StreamEnd(TypedDict):
    """Data of the last Server-Sent Event, `event: unsubscribed`."""

    type: Literal["unsubscribed"]
    code: EndCode


class EventStream:
    """A stream of Server-Sent Events. What waits to be sent is bounded: a stream whose peer is slow
    lags, and catches up from the log (P8)."""

    attends = False

    def __init__(
        self,
        hub: Hub,
        principal: Principal,
        keep_alive_s: float,
        holds: Callable[[int], None] | None = None,
    ) -> None:
        """`holds` is told how many bytes wait here while the peer is slow, and then that none
        do."""
        self.principal = principal
        self._keep_alive_s = keep_alive_s
        self._holds = holds
        self.full = False
        self._hub = hub
        self._subscription: Subscription | None = None
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._joined = asyncio.Event()
        self._some = asyncio.Event()
        self._refusal: Code | None = None
        self._over = False

    async def open(self, budget_id: BudgetId, key: int) -> None:
        """Subscribe; `close` ends it. Raises `HubError` where the user may not read, and
        `QUOTA_EXCEEDED`."""
        self._hub.attach(self)
        try:
            self._hub.admit(self, self.principal.user_id)
            user_id = self.principal.user_id
            self._subscription = self._hub.feeds.subscribe(user_id, budget_id, key, self)
            await self._joined.wait()
            if self._refusal is not None:
                raise HubError(self._refusal)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._hub.detach(self)
        if self._subscription is not None:
            self._subscription.end()

    async def chunks(self, ends_in_s: float) -> AsyncIterator[bytes]:
        """What goes to the client, until the subscription ends, the hub drains, or `ends_in_s`
        seconds have passed: then the token counts no more."""
        loop = asyncio.get_running_loop()
        ends_at_s = loop.time() + ends_in_s
        while loop.time() < ends_at_s:
            if self._queue:
                data = self._queue.popleft()
                yield data
                self._taken(len(data))
                continue
            if self._over:
                return
            self._some.clear()
            until_s = min(loop.time() + self._keep_alive_s, ends_at_s)
            try:
                async with asyncio.timeout_at(until_s):
                    await self._some.wait()
            except TimeoutError:
                if until_s < ends_at_s:  # not by the clock: timers strike up to a millisecond early
                    yield b": still here\n\n"

    def write(self, data: bytes) -> None:
        for text in texts(data):
            to_sequence = _TO_SEQUENCE.search(text)
            assert to_sequence is not None
            self._send(b"event: events\ndata: %b\nid: %b\n\n" % (text, to_sequence[1]))

    def joined(self, key: int, head: int) -> None:
        self._joined.set()

    def refused(self, code: Code) -> None:
        self._refusal = code
        self._joined.set()

    def ended(self, code: Code) -> None:
        if self.full and code is Code.NOT_PARTICIPANT:
            self._queue.clear()  # nothing more of it goes out, however slowly (P9)
        end: StreamEnd = {"type": "unsubscribed", "code": code.name}
        self._send(b"event: unsubscribed\ndata: %b\n\n" % orjson.dumps(end))
        self.leave()

    def sign_out(self) -> None:
        """It ends, as with the token's own end."""
        if self._subscription is None or not self._joined.is_set():
            self.refused(Code.NOT_LOGGED_IN)
            return
        self._subscription.end()
        self._queue.clear()
        self.leave()

    def go_away(self, reconnect_after_ms: int) -> None:
        self._send(b"retry: %d\n\n" % reconnect_after_ms)

    def leave(self) -> None:
        self._over = True
        self._some.set()

    def _send(self, data: bytes) -> None:
        self._queue.append(data)
        self._bytes += len(data)
        self._some.set()
        if not self.full and self._bytes > HIGH_WATER_BYTES:
            self.full = True
            if self._subscription is not None:
                self._subscription.lag()
        if self.full and self._holds is not None:
            self._holds(self._bytes)

    def _taken(self, size: int) -> None:
        self._bytes -= size
        if self.full and self._bytes <= HIGH_WATER_BYTES // 4:
            self.full = False
            if self._holds is not None:
                self._holds(0)
            assert self._subscription is not None
            self._subscription.drained()


class EventStreamResponse(StreamingResponse):
    """Closes the stream however the answer ends. The end of the iterator is no place for it: one
    that was left at a `yield`, or never begun, is only told when it is collected, if at all."""

    def __init__(self, events: EventStream, ends_in_s: float) -> None:
        super().__init__(
            events.chunks(ends_in_s),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._events.close()


@lru_cache(maxsize=64)  # a thousand polls wait for the same frame
def _rest_events(data: bytes) -> Sequence[RestEvent]:
    return [
        RestEvent(event["sequence"], rest_event(event["eventType"], orjson.dumps(event)))
        for text in texts(data)
        for event in orjson.loads(text)["events"]
    ]


def rest_event(event_type: str, text: bytes) -> bytes:
    """The stream event with its type under `event` too, as REST shows it (design 3.4)."""
    return b'{"event":"%b",%b' % (event_type.encode(), text[1:])
