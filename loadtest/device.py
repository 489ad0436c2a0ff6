"""A device: the reference client of `budget.sync.v2`.

It follows budgets and changes them, online or not, and comes back by itself after whatever ends its
connection. What waits to be sent and what it holds are the pure `loadtest.outbox` and
`loadtest.inbox`; the connection is one of the wires of `loadtest.wire`; here is what joins them.

    device = Device("phone", target, account, new_id=lambda: str(uuid4()), rng=Random())
    device.follow(budget_id)
    running = asyncio.create_task(device.run())
    device.submit({"eventId": …, "eventType": "expense.add", "budgetId": budget_id, …})
    …
    device.stop()
    await running

| the connection ends with  | the device                                                           |
|---------------------------|----------------------------------------------------------------------|
| 1001, 1012 after `goaway` | comes back after the time it was told, which the hub has spread      |
| 4401, HTTP 401            | renews its token, and comes back at once                             |
| 4429                      | comes back after a backoff of `FLOODED_S` at least                   |
| 1007, 1009, 4400          | tells its witness (it has sent what it should not), backs off        |
| anything else             | comes back after a backoff with full jitter                          |
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import count
from random import Random
from typing import Any

import orjson

from loadtest.account import Account
from loadtest.http_client import HttpClient
from loadtest.http_wire import POST_EVENTS_MAX, EventStream, LongPoll
from loadtest.inbox import Inbox, Step
from loadtest.outbox import BATCH_EVENTS_MAX, Event, Outbox, Outcome, Unexpected
from loadtest.replica import Diverged
from loadtest.target import Refused, Target, Unreachable
from loadtest.websocket import open_websocket
from loadtest.wire import ABNORMAL, Decode, Frame, Lost, Transport, Wire

BACKOFF_S = 0.5  # the first attempt again is within this time, each further one within twice that
BACKOFF_S_MAX = 15.0
FLOODED_S = 2.0
RETRY_S = 0.2  # after an undecided verdict, likewise
RETRY_S_MAX = 5.0
PATIENCE_S = 40.0  # silence, of a hub that has a heartbeat of 15 s
ANSWER_S = 20.0  # how long a batch may be in flight; a hub answers, if only that it cannot decide
SIGNED_OUT, FLOODED, GONE_AWAY = 4401, 4429, 1012
OUR_FAULT = frozenset({1007, 1009, 4400})


class Witness:
    """Who is told what a device does and sees; this one looks away. Times are of the device's
    clock, in seconds."""

    def submitted(self, user_id: str, event: Event, at_s: float) -> None: ...

    def answered(self, device: "Device", verdict: Mapping[str, Any], at_s: float) -> None: ...

    def subscribed(
        self,
        observer: str,
        budget_id: str,
        key: int,
        at_s: float,
        *,
        user_id: str,
        snapshot: bool,
    ) -> None: ...

    def saw(
        self, observer: str, budget_id: str, events: Sequence[Mapping[str, Any]], at_s: float
    ) -> None: ...

    def broke(self, observer: str, how: str) -> None: ...

    def connected(self, device: "Device") -> None: ...

    def disconnected(self, device: "Device", lost: Lost) -> None: ...

    def troubled(self, device: "Device", trouble: str) -> None:
        """Something that a client copes with: a refusal, a lost answer, a hub out of reach."""


class Device:
    """One device of one user, at one hub. Everything it keeps stays when the connection does not.

    `new_id` gives eventIds, `rng` the jitter, `clock` seconds that only grow. `decode` reads a
    frame; devices in one process may share one that remembers what it has read. `receive_bytes` is
    the size of a socket's buffer in the kernel, where the system's choice will not do."""

    def __init__(
        self,
        name: str,
        target: Target,
        account: Account,
        *,
        new_id: Callable[[], str],
        rng: Random,
        transport: Transport = Transport.SOCKET,
        witness: Witness | None = None,
        clock: Callable[[], float] = time.monotonic,
        decode: Decode = orjson.loads,
        receive_bytes: int | None = None,
        patience_s: float = PATIENCE_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.name = name
        self.target = target
        self.account = account
        self.transport = transport
        batch_max = BATCH_EVENTS_MAX if transport is Transport.SOCKET else POST_EVENTS_MAX
        self.outbox = Outbox(new_id, batch_events_max=batch_max)
        self.inboxes: dict[str, Inbox] = {}  # by budget
        self.opened = 0  # how many connections it has had
        self._rng = rng
        self._witness = witness or Witness()
        self._clock = clock
        self._decode = decode
        self._receive_bytes = receive_bytes
        self._patience_s = patience_s
        self._answer_s = answer_s
        self._ids = count(1)
        self._token = ""
        self._wire: Wire | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._lost: asyncio.Future[Lost] | None = None
        self._asked: dict[int, str] = {}  # requests to subscribe → budget
        self._asked_at_s = 0.0  # the last of them
        self._batch_id = 0  # of the request whose verdicts are awaited
        self._batch_at_s = 0.0
        self._retries = 0  # of undecided events, in a row
        self._retrying: asyncio.TimerHandle | None = None
        self._heard_at_s = 0.0
        self._away_s: float | None = None  # told by `goaway`
        self._wanted = True  # to be online
        self._paused = False
        self._stopped = False
        self._turn = asyncio.Event()  # `_wanted` or `_stopped` has changed
        self._tasks: set[asyncio.Task[None]] = set()

    def __str__(self) -> str:
        return f"{self.name} at {self.target}"

    @property
    def connected(self) -> bool:
        return self._wire is not None

    @property
    def offline(self) -> bool:
        """By its own wish."""
        return not self._wanted

    @property
    def reads(self) -> bool:
        """It is not as if it hung."""
        return not self._paused

    @property
    def up_to_date(self) -> bool:
        """As far as it knows: it has all its verdicts, and all events it has heard of."""
        return not self.outbox and all(
            inbox.ended or (inbox.live and inbox.cursor >= inbox.head)
            for inbox in self.inboxes.values()
        )

    def observer(self, budget_id: str) -> str:
        """The name under which it observes this budget."""
        return f"{self.name}/{budget_id[:8]}"

    def follow(self, budget_id: str) -> Inbox:
        """Hold a replica of the budget from now on; also again, after the hub ended that."""
        inbox = self.inboxes.setdefault(budget_id, Inbox(budget_id))
        inbox.ended = None
        self._subscribe(inbox)
        return inbox

    def submit(self, event: Event) -> None:
        """Have the event sent, now or when that is possible, and again until it has its verdict.

        `version`, where the event's type needs one, is to come from `version_of`. Raises
        `OutboxFull`."""
        self.outbox.add(event)
        self._send_batch()

    def version_of(self, inbox: Inbox, kind: str, record_id: str) -> int:
        """Upon which version a change of the record is to build. Raises `KeyError`."""
        return self.outbox.version(record_id, inbox.replica.records[kind, record_id]["version"])

    def go_offline(self) -> None:
        """Leave, and stay away until `go_online`. What is submitted meanwhile waits."""
        self._wanted = False
        self._turn.set()
        if self._wire is not None:
            self._wire.close()

    def go_online(self) -> None:
        self._wanted = True
        self._turn.set()

    def drop(self) -> None:
        """Lose the connection without a word; it comes back by itself."""
        if self._wire is not None:
            self._wire.abort()

    def pause_reading(self) -> None:
        self._paused = True
        if self._wire is not None:
            self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        self._heard_at_s = self._batch_at_s = self._asked_at_s = self._clock()
        if self._wire is not None:
            self._wire.resume_reading()

    def stop(self) -> None:
        """Leave for good; `run` returns."""
        self._stopped = True
        self.go_offline()

    async def run(self) -> None:
        """Be connected whenever that is wished and possible, until `stop`."""
        failures = 0
        refused: str | None = None
        while not self._stopped:
            if not self._wanted:
                self._turn.clear()
                await self._turn.wait()
                continue
            lost, came = await self._connection(refused)
            refused = None
            if lost.by_device:
                failures = 0
                if self._wanted:  # it was dropped
                    await self._pause(self._jitter(0))
                continue
            failures = 0 if came else failures + 1
            if lost.code in OUR_FAULT:
                self._witness.broke(self.name, f"was closed with {lost.code} {lost.reason}")
                failures = max(failures, 3)
            if self._away_s is not None:
                await self._pause(self._away_s)
            elif lost.code == SIGNED_OUT and failures < 2:
                refused = self._token
            else:
                least_s = FLOODED_S if lost.code == FLOODED else 0.0
                await self._pause(least_s + self._jitter(failures))
        for task in self._tasks:
            task.cancel()

    async def _connection(self, refused: str | None) -> tuple[Lost, bool]:
        """One connection from its opening to its end, and whether it was good for anything."""
        self._lost = asyncio.get_running_loop().create_future()
        self._away_s = None
        try:
            self._token = await self.account.token(refused)
            wire = await self._open(self._token)
        except Refused as error:
            self._witness.troubled(self, str(error))
            code = SIGNED_OUT if error.status == 401 else ABNORMAL
            return Lost(code, str(error)), False
        except Unreachable as error:
            self._witness.troubled(self, str(error))
            return Lost(ABNORMAL, str(error)), False
        if not self._lost.done():
            self._begin(wire)
            if not self._wanted:
                wire.close()
        lost = await self._lost
        came = self._wire is not None
        self._end()
        self._witness.disconnected(self, lost)
        return lost, came

    async def _open(self, token: str) -> Wire:
        if self.transport is Transport.SOCKET:
            return await open_websocket(
                self.target, token, self, self._decode, receive_bytes=self._receive_bytes
            )
        kind = LongPoll if self.transport is Transport.LONG_POLL else EventStream
        return kind(self.target, token, self, self._decode)

    def _begin(self, wire: Wire) -> None:
        self._wire = wire
        self.opened += 1
        self._heard_at_s = self._clock()
        self._watching = asyncio.get_running_loop().call_later(self._look_s, self._look)
        self._witness.connected(self)
        for inbox in self.inboxes.values():
            self._subscribe(inbox)
        self._send_batch()

    def _end(self) -> None:
        if self._wire is None:
            return
        self._wire = None
        if self._watching is not None:
            self._watching.cancel()
        self._cancel_retry()
        self._asked.clear()
        self._batch_id = 0
        self.outbox.interrupted()
        for inbox in self.inboxes.values():
            inbox.disconnected()

    # What the hub says (the wire calls these).

    def lost(self, lost: Lost) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(lost)

    def received(self, frame: Frame) -> None:
        at_s = self._clock()
        self._heard_at_s = at_s
        try:
            self._take(frame, at_s)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            excerpt = repr(frame)[:300]
            self._witness.broke(self.name, f"got a frame of another shape ({error!r}): {excerpt}")
        except Unexpected as error:
            self._witness.broke(self.name, f"got {error}")

    def _take(self, frame: Frame, at_s: float) -> None:
        match frame["type"]:
            case "events":
                self._take_events(frame, at_s)
            case "results":
                self._take_verdicts(frame, at_s)
            case "heads":
                for budget_id, head in frame["heads"].items():
                    if inbox := self.inboxes.get(budget_id):
                        self._do(inbox, inbox.heard(head))
            case "subscribed":
                self._take_subscribed(frame, at_s)
            case "unsubscribed":
                if "id" not in frame:
                    self._take_end(self.inboxes[frame["budgetId"]], frame["code"])
            case "error":
                self._take_error(frame)
            case "auth.expiring":
                self._spawn(self._renew())
            case "goaway":
                self._away_s = frame["reconnectAfterMs"] / 1000
            case "?":
                self._witness.broke(self.name, f"got what is no frame: {frame['text']}")

    def _take_events(self, frame: Frame, at_s: float) -> None:
        budget_id, events = frame["budgetId"], frame["events"]
        observer = self.observer(budget_id)
        inbox = self.inboxes.get(budget_id)
        if inbox is None or inbox.ended:
            self._witness.broke(observer, "got events of a budget it does not follow")
            return
        if not inbox.live:  # of a subscription that is being replaced: all of it comes again
            return
        self._witness.saw(observer, budget_id, events, at_s)
        stated = frame["fromSequence"], frame["toSequence"]
        if stated != (events[0]["sequence"], events[-1]["sequence"]):
            self._witness.broke(observer, "got events {}..{} that are others".format(*stated))
        fresh, step = inbox.take(events)
        for event in fresh:
            if event["actorId"] == self.account.user_id:
                self.outbox.arrived(event)
        if step is Step.SNAPSHOT:
            self._witness.broke(observer, inbox.trouble)
        self._do(inbox, step)

    def _take_verdicts(self, frame: Frame, at_s: float) -> None:
        if frame["id"] != self._batch_id:
            self._witness.broke(self.name, f"got verdicts on request {frame['id']}")
            return
        for verdict in frame["results"]:
            self._witness.answered(self, verdict, at_s)
            outcome = self.outbox.settle(verdict)
            if outcome is Outcome.UNDECIDED:
                self._witness.troubled(self, verdict["error"]["message"])
                self._retry_later(0)
            else:
                self._retries = 0
        if not self.outbox.in_flight:
            self._batch_id = 0
            self._send_batch()

    def _take_subscribed(self, frame: Frame, at_s: float) -> None:
        budget_id: str = frame["budgetId"]
        if self._asked.pop(frame["id"], None) != budget_id:
            self._witness.broke(self.name, f"got an answer to nothing it asked: {frame!r}")
            return
        inbox = self.inboxes[budget_id]
        self._witness.subscribed(
            self.observer(budget_id),
            budget_id,
            frame["key"],
            at_s,
            user_id=self.account.user_id,
            snapshot=inbox.renewed,
        )
        self._do(inbox, inbox.subscribed(frame["head"], frame["logId"]))

    def _take_end(self, inbox: Inbox, code: str) -> None:
        inbox.ended, inbox.live = code, False
        self._asked = {n: asked for n, asked in self._asked.items() if asked != inbox.budget_id}

    def _take_error(self, frame: Frame) -> None:
        error = frame["error"]
        self._witness.troubled(self, error["message"])
        budget_id = self._asked.pop(frame.get("id", 0), None)
        if budget_id is not None:
            self._subscription_refused(self.inboxes[budget_id], error)
        elif frame.get("id") == self._batch_id and self._batch_id:
            self._batch_id = 0
            if error["retryable"]:
                self.outbox.interrupted()
                self._retry_later(error.get("retryAfterMs", 0) / 1000)
            else:
                self.outbox.refused(error["message"])
                self._send_batch()

    def _subscription_refused(self, inbox: Inbox, error: Mapping[str, Any]) -> None:
        if error["message"] == "CURSOR_AHEAD":
            self._do(inbox, Step.SNAPSHOT)
        elif error["retryable"]:
            after_s = error.get("retryAfterMs", 0) / 1000 + self._rng.uniform(0, RETRY_S_MAX)
            asyncio.get_running_loop().call_later(after_s, self._subscribe, inbox)
        else:
            inbox.ended = error["message"]

    # What it says.

    def _subscribe(self, inbox: Inbox) -> None:
        asked = inbox.budget_id in self._asked.values()
        if self._wire is None or inbox.ended or inbox.live or asked:
            return
        request_id = next(self._ids)
        self._asked_at_s = self._clock()
        self._asked[request_id] = inbox.budget_id
        self._wire.send(
            {
                "type": "subscribe",
                "id": request_id,
                "budgetId": inbox.budget_id,
                "key": inbox.cursor,
            }
        )

    def _send_batch(self) -> None:
        if self._wire is None or self._retrying is not None or self._batch_id:
            return
        events = self.outbox.next_batch()
        if not events:
            return
        self._batch_id = next(self._ids)
        self._batch_at_s = at_s = self._clock()
        for event in events:
            self._witness.submitted(self.account.user_id, event, at_s)
        self._wire.send({"type": "events", "id": self._batch_id, "events": events, "mode": "stop"})

    def _retry_later(self, least_s: float) -> None:
        self._cancel_retry()
        self._retries += 1
        most_s = min(RETRY_S_MAX, RETRY_S * 2**self._retries)
        after_s = least_s + self._rng.uniform(0, most_s)
        self._retrying = asyncio.get_running_loop().call_later(after_s, self._retry)

    def _retry(self) -> None:
        self._retrying = None
        self._send_batch()

    def _cancel_retry(self) -> None:
        if self._retrying is not None:
            self._retrying.cancel()
            self._retrying = None

    def _do(self, inbox: Inbox, step: Step) -> None:
        if step is Step.SUBSCRIBE:
            self._witness.troubled(self, inbox.trouble)
            self._subscribe(inbox)
        elif step is Step.SNAPSHOT:
            self._spawn(self._snapshot(inbox))

    async def _snapshot(self, inbox: Inbox) -> None:
        """Begin anew from the server's state. Until that works the connection is worth nothing."""
        client = HttpClient(self.target)
        try:
            token = await self.account.token()
            inbox.snapshot(await client.call("GET", f"/budgets/{inbox.budget_id}", token=token))
        except Refused as error:
            self._witness.troubled(self, str(error))
            if error.retryable or error.status == 401:
                self.drop()
            else:
                inbox.ended = error.code
        except Unreachable as error:
            self._witness.troubled(self, str(error))
            self.drop()
        except (Diverged, KeyError) as error:
            self._witness.broke(self.observer(inbox.budget_id), f"got a snapshot: {error}")
            inbox.ended = "SNAPSHOT"
        else:
            self._subscribe(inbox)
        finally:
            client.close()

    async def _renew(self) -> None:
        """Renew the token of the running connection."""
        try:
            token = await self.account.token()
        except (Refused, Unreachable) as error:
            self._witness.troubled(self, str(error))
            return  # the connection ends with its token, and that is seen to then
        if self._wire is not None:
            self._wire.send({"type": "auth", "id": next(self._ids), "token": token})

    # Time.

    @property
    def _look_s(self) -> float:
        return min(self._patience_s, self._answer_s) / 2

    def _look(self) -> None:
        """Has the hub been silent for too long? It may be gone without a word."""
        now_s = self._clock()
        unanswered = (self._batch_id and now_s - self._batch_at_s > self._answer_s) or (
            self._asked and now_s - self._asked_at_s > self._answer_s
        )
        silent = now_s - self._heard_at_s > self._patience_s
        if self._paused:
            pass  # a device that hangs does not look
        elif unanswered or (silent and self.transport is Transport.SOCKET):
            self._witness.troubled(self, "no answer" if unanswered else "silence")
            self.drop()
        self._watching = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def _jitter(self, failures: int) -> float:
        """Full jitter: anything up to a bound that doubles. The crowd that lost its hub at one
        moment must not come back at one moment."""
        return self._rng.uniform(0, min(BACKOFF_S_MAX, BACKOFF_S * 2**failures))

    async def _pause(self, pause_s: float) -> None:
        """Wait, unless it is to stop or to go offline meanwhile."""
        self._turn.clear()
        if self._stopped or not self._wanted:
            return
        try:
            async with asyncio.timeout(pause_s):
                await self._turn.wait()
        except TimeoutError:
            pass

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def device_name(observer: str) -> str:
    """Of the device that observes under this name."""
    return observer.rpartition("/")[0]
