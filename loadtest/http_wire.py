"""The two wires over HTTP: long-poll, as legacy clients do it, and Server-Sent Events.

Events go out by `POST /events`. What comes back is put into the frames of the socket (see
`loadtest.wire`): a page of `GET /events` is a `subscribed` and an `events` frame.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import orjson

from loadtest.http_client import HttpClient, refusal
from loadtest.target import Refused, Target, Unreachable
from loadtest.wire import ABNORMAL, Decode, Frame, Lost, Receiver

POLL_S = 20  # how long the hub may keep a poll waiting
SILENCE_S = 40.0  # a stream says something every 15 s, if only that it is still there
ANSWER_S = 20.0
PAGE_EVENTS = 100
POST_EVENTS_MAX = 25
AGAIN_S = 1.0  # after a refusal that does not say when to come back
SIGNED_OUT = 4401


class HttpWire:
    """A wire (see `loadtest.wire.Wire`); its kinds differ in how they wait."""

    def __init__(self, target: Target, token: str, receiver: Receiver, decode: Decode) -> None:
        self._client = HttpClient(target)
        self._token = token
        self._receiver = receiver
        self._decode = decode
        self._following: dict[str, asyncio.Task[None]] = {}  # by budget
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost = False
        self._reads = asyncio.Event()
        self._reads.set()

    def send(self, frame: Frame) -> None:
        if self._lost:
            return
        match frame["type"]:
            case "auth":
                self._token = frame["token"]
            case "events":
                self._start(self._post(frame))
            case "subscribe":
                self._unfollow(frame["budgetId"])
                self._following[frame["budgetId"]] = self._start(self._follow(frame))
            case "unsubscribe":
                self._unfollow(frame["budgetId"])

    def close(self) -> None:
        self._end(Lost(ABNORMAL, "", by_device=True))

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        self._reads.clear()

    def resume_reading(self) -> None:
        self._reads.set()

    async def wait(self, budget_id: str, key: int, page: Frame) -> None:
        """Give the receiver what comes after `key`, for ever; `page` was the last one."""
        raise NotImplementedError

    async def page(self, budget_id: str, key: int, wait_s: int) -> Frame:
        """The next events after `key`, asked for until the hub can tell. Raises `Refused` and
        `Unreachable`."""
        path = f"/events?budgetId={budget_id}&key={key}&count={PAGE_EVENTS}&wait={wait_s}"
        while True:
            answer = await self._client.request(
                "GET", path, token=self._token, timeout_s=wait_s + ANSWER_S
            )
            if answer.status < 400:
                page: Frame = self._decode(answer.body)
                return page
            error = refusal(answer, f"{self._client.target} answered GET /events")
            if not error.retryable:
                raise error
            await asyncio.sleep(error.after_s or AGAIN_S)

    def give(self, page: Frame) -> None:
        """Hand a page on as the frame of its events."""
        events = [plain(event) for event in page["events"]]
        if events:
            self._receiver.received(
                {
                    "type": "events",
                    "budgetId": page["budgetId"],
                    "fromSequence": events[0]["sequence"],
                    "toSequence": events[-1]["sequence"],
                    "events": events,
                }
            )

    async def _follow(self, frame: Frame) -> None:
        budget_id, key = frame["budgetId"], frame["key"]
        await self._reads.wait()
        try:
            page = await self.page(budget_id, key, 0)
            self._receiver.received(
                {
                    "type": "subscribed",
                    "id": frame["id"],
                    "budgetId": budget_id,
                    "key": key,
                    "head": page["head"],
                    "logId": page["logId"],
                }
            )
            self.give(page)
            await self.wait(budget_id, page["nextKey"], page)
        except Refused as error:
            if error.status == 401 or error.code == "CURSOR_AHEAD":
                self._refused(frame, error)
            elif error.retryable:  # from the beginning, but from where the device is by now
                self._end(Lost(ABNORMAL, str(error)))
            else:
                self._receiver.received(
                    {"type": "unsubscribed", "budgetId": budget_id, "code": error.code}
                )
        except (Unreachable, ValueError, KeyError) as error:
            self._end(Lost(ABNORMAL, str(error)))

    async def _post(self, frame: Frame) -> None:
        try:
            answer = await self._client.call(
                "POST",
                f"/events?mode={frame.get('mode', 'stop')}",
                token=self._token,
                body={"events": frame["events"]},
                timeout_s=ANSWER_S,
            )
            results = [plain(verdict) for verdict in answer["events"]]
            self._receiver.received({"type": "results", "id": frame["id"], "results": results})
        except Refused as error:
            self._refused(frame, error)
        except (Unreachable, KeyError) as error:
            self._end(Lost(ABNORMAL, str(error)))

    def _refused(self, frame: Frame, error: Refused) -> None:
        if error.status == 401:
            self._end(Lost(SIGNED_OUT, error.code))
            return
        self._receiver.received(
            {
                "type": "error",
                "id": frame["id"],
                "error": {
                    "statusCode": error.status,
                    "message": error.code,
                    "detail": str(error),
                    "retryable": error.retryable,
                    "retryAfterMs": error.after_s * 1000,
                },
            }
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _unfollow(self, budget_id: str) -> None:
        if task := self._following.pop(budget_id, None):
            task.cancel()

    def _end(self, lost: Lost) -> None:
        if self._lost:
            return
        self._lost = True
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._client.close()
        # Later, as with a socket: whoever closes a wire is not called back while doing so.
        asyncio.get_running_loop().call_soon(self._receiver.lost, lost)


class LongPoll(HttpWire):
    async def wait(self, budget_id: str, key: int, page: Frame) -> None:
        log_id = page["logId"]
        while page["logId"] == log_id:
            await self._reads.wait()
            page = await self.page(budget_id, key, 0 if page["hasMore"] else POLL_S)
            self.give(page)
            key = page["nextKey"]
        self._end(Lost(ABNORMAL, "the budget has another history"))


class EventStream(HttpWire):
    async def wait(self, budget_id: str, key: int, page: Frame) -> None:
        while page["hasMore"]:
            page = await self.page(budget_id, key, 0)
            self.give(page)
            key = page["nextKey"]
        reader = _Reader()

        def came(data: bytes) -> None:
            for kind, message in reader.read(data):
                if kind == "events":
                    self._receiver.received(self._decode(message))
                elif kind == "retry":
                    after_ms = int(message)
                    self._receiver.received({"type": "goaway", "reconnectAfterMs": after_ms})
                elif kind == "unsubscribed":
                    self._receiver.received({**orjson.loads(message), "budgetId": budget_id})

        path = f"/budgets/{budget_id}/stream?key={key}"
        answer = await self._client.stream(path, came, token=self._token, timeout_s=SILENCE_S)
        if answer.status >= 400:
            raise refusal(answer, f"{self._client.target} answered the stream")
        self._end(Lost(ABNORMAL, "the stream ended"))


def plain(item: Frame) -> Frame:
    """A stream event or verdict as the socket has it: REST repeats its type, for old clients."""
    return {name: value for name, value in item.items() if name != "event"}


class _Reader:
    """Cuts a stream of Server-Sent Events into them. Lines end with a newline."""

    def __init__(self) -> None:
        self._rest = b""
        self._kind = ""
        self._data = b""

    def read(self, data: bytes) -> list[tuple[str, bytes]]:
        """The kind and the data of each event that is complete now."""
        events = []
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"event: "):
                self._kind = line[7:].decode()
            elif line.startswith(b"data: "):
                self._data = line[6:]
            elif line.startswith(b"retry: "):  # the hub is about to end
                events.append(("retry", line[7:]))
            elif not line and self._kind:
                events.append((self._kind, self._data))
                self._kind, self._data = "", b""
        return events
