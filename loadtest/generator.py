"""One generator process: a part of the fleet, at work.

Started by `loadtest.runner` as `python -m loadtest.generator`. Its plan is the first line of its
stdin; each further line is a command. What it says on stdout is a line of JSON each:

| command               | then                                                | and it says     |
|-----------------------|-----------------------------------------------------|-----------------|
| the plan              | its budgets are created                             | `founded`       |
| `connect`             | its devices connect, and have what is in the log    | `connected`     |
| `start`, at a moment  | people do what the scenario says, for its duration; | `sample`, each  |
|                       | then everybody goes online, and no more is done     | second; `quiet` |
| `rate`, `finish`      | from now on it is another one; or nothing is done   |                 |
| `settle`, with heads  | all devices come so far, tell what they have, leave | `settled`       |
"""

import asyncio
import gc
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import orjson
import uvloop

from loadtest.account import Account, LocalAccount, Session, SignedAccount
from loadtest.device import Device, Witness, device_name
from loadtest.event_ids import due_s, timed_id, untimed_id
from loadtest.history import Recorder
from loadtest.http_client import HttpClient
from loadtest.http_wire import plain
from loadtest.outbox import Event, OutboxFull
from loadtest.plan import Login, Plan
from loadtest.scenarios import DAY
from loadtest.stats import Histogram, Sample
from loadtest.target import Refused, Target, Unreachable
from loadtest.wire import Decode
from loadtest.workload import Arrivals, change

OPENING_AT_ONCE = 100  # connections
CONNECT_S = 120.0  # for all of them, and the log
QUIET_S = 30.0  # after the last event: all verdicts are there
SETTLE_S = 20.0
FOUND_AT_ONCE = 8  # requests
FOUND_EVENTS = 25  # budgets created in one request
SLOW_BYTES = 64 * 1024  # what the kernel may keep for a device that does not read
LAG_EVERY_S = 0.02
REMEMBERED_MAX, REMEMBERED_BYTES = 1024, 16 * 1024  # frames
EXCUSED_MAX = 10_000
PAUSE_S = 0.05  # between two looks at what is awaited


class Ledger(Witness):
    """What the devices of this process do and see: on record for the checker, and counted."""

    def __init__(self, recorder: Recorder, epoch_s: float) -> None:
        self.recorder = recorder
        self.epoch_s = epoch_s
        self.sample = Sample(0)
        self.start_s: float | None = None  # of measuring
        # Observers and devices that were away as the scenario wants it, and since when they are
        # there: what they were late for is not the hub's doing. Infinite: not yet.
        self._back_s: dict[str, float] = {}
        self._excused: dict[str, None] = {}  # eventIds that were under way then, the oldest first

    def submitted(self, user_id: str, event: Event, at_s: float) -> None:
        self.sample.sent += 1
        self.recorder.submitted(user_id, event, at_s)

    def answered(self, device: Device, verdict: Mapping[str, Any], at_s: float) -> None:
        sample = self.sample
        self.recorder.answered(verdict, at_s)
        status = verdict["status"]
        if status == "accepted":
            sample.accepted += 1
            if verdict.get("duplicate"):
                sample.duplicates += 1
        elif status == "conflict":
            sample.conflicts += 1
        elif verdict["error"]["retryable"]:
            sample.retryable += 1
            return
        else:
            sample.rejected += 1
        self._measure(sample.ack, verdict["eventId"], at_s, device.name)

    def subscribed(
        self,
        observer: str,
        budget_id: str,
        key: int,
        at_s: float,
        *,
        user_id: str,
        snapshot: bool,
    ) -> None:
        self.recorder.subscribed(observer, budget_id, key, at_s, user_id=user_id, snapshot=snapshot)
        if self._back_s.get(observer) == inf:
            self._back_s[observer] = at_s
            self._back_s[device_name(observer)] = at_s

    def saw(
        self, observer: str, budget_id: str, events: Sequence[Mapping[str, Any]], at_s: float
    ) -> None:
        self.recorder.saw(observer, budget_id, events, at_s)
        sample = self.sample
        sample.deliveries += len(events)
        for event in events:
            self._measure(sample.delivery, event["eventId"], at_s, observer)

    def broke(self, observer: str, how: str) -> None:
        self.sample.errors += 1
        self.recorder.broke(observer, how)

    def connected(self, device: Device) -> None:
        if device.opened > 1:
            self.sample.reconnects += 1

    def troubled(self, device: Device, trouble: str) -> None:
        self.sample.errors += 1

    def away(self, device: Device, back_s: float = inf) -> None:
        """The device takes nothing, as the scenario wants it; or does again, from `back_s` on. What
        it has under way does not count: how long that takes is up to the device."""
        self._back_s[device.name] = back_s
        for budget_id in device.inboxes:
            self._back_s[device.observer(budget_id)] = back_s
        for event in (*device.outbox.in_flight, *device.outbox.waiting):
            self._excused[event["eventId"]] = None
        while len(self._excused) > EXCUSED_MAX:
            del self._excused[next(iter(self._excused))]

    def _measure(self, into: Histogram, event_id: str, at_s: float, who: str) -> None:
        if self.start_s is None or event_id in self._excused:
            return
        due = due_s(event_id)
        if due is None:
            return
        due -= self.epoch_s
        if due >= self._back_s.get(who, 0.0):
            into.add((at_s - due) * 1000)


def remembering() -> Decode:
    """`orjson.loads`, but neighbours get the same frame: the second one's is at hand. Only small
    ones, so that what is kept stays small."""
    known = lru_cache(maxsize=REMEMBERED_MAX)(orjson.loads)
    return lambda text: known(text) if len(text) <= REMEMBERED_BYTES else orjson.loads(text)


class Generator:
    def __init__(self, plan: Plan, say: Callable[[Mapping[str, Any]], None]) -> None:
        self.plan = plan
        self.scenario = plan.scenario
        self.ledger = Ledger(Recorder(Path(plan.history)), plan.epoch_s)
        self.devices: dict[int, Device] = {}  # by number
        self._say = say
        self._ids = Random()  # of ids, which are new in every run
        self._decode = remembering()
        self._accounts: dict[str, Account] = {}
        self._done: dict[int, int] = {}  # how much each device has done
        self._start_s = float("inf")  # a `rate` may come before `work` has begun
        self._until_s = plan.options.duration_s
        self._cpu_s = 0.0
        self._rate_per_s = plan.options.rate_per_s
        self._arrivals = Arrivals(
            plan.devices, plan.options.seed, plan.options.devices, plan.options.rate_per_s
        )
        self._running: list[asyncio.Task[None]] = []
        self._timers: set[asyncio.TimerHandle] = set()

    async def found(self) -> None:
        """Create this process's budgets. Raises `Refused`, `Unreachable`."""
        by_user: dict[str, list[int]] = {}
        for number in self.plan.founded:
            by_user.setdefault(self.plan.logins_of(number)[0].user_id, []).append(number)
        client = HttpClient(Target.parse(self.plan.options.targets[0]))
        try:
            at_once = asyncio.Semaphore(FOUND_AT_ONCE)

            async def found(numbers: Sequence[int]) -> None:
                async with at_once:
                    owner = self._account(self.plan.logins_of(numbers[0])[0])
                    await self._found(client, owner, numbers)
                    for number in numbers:
                        for login in self.plan.logins_of(number)[1:]:
                            await self._join(client, self._account(login), number)

            await asyncio.gather(
                *(
                    found(numbers[first : first + FOUND_EVENTS])
                    for numbers in by_user.values()
                    for first in range(0, len(numbers), FOUND_EVENTS)
                )
            )
        finally:
            client.close()

    async def connect(self) -> None:
        """Make the devices and wait until all have what is in the log. Raises `Unreachable`."""
        deadline_s = time.monotonic() + CONNECT_S
        opening: list[Device] = []
        for number in self.plan.devices:
            device = self.devices[number] = self._device(number)
            self._running.append(asyncio.create_task(device.run()))
            opening.append(device)
            while len(opening) >= OPENING_AT_ONCE:
                opening = await self._opened(opening, deadline_s)
        while opening:
            opening = await self._opened(opening, deadline_s)
        # What lives by now lives to the end; to look through it again and again for garbage would
        # stop everything for tenths of a second.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    def accompany(self, number: int, device: Device) -> None:
        """Have one more device, which is not among those of the plan: it only follows."""
        self.devices[number] = device
        self._running.append(asyncio.create_task(device.run()))

    async def work(self, start_s: float) -> None:
        """Do what the scenario says from `start_s` on, for its duration; return when every event
        has its verdict, or no longer gets one."""
        self._start_s = start_s
        await asyncio.sleep(start_s - time.monotonic())
        self.ledger.sample = Sample(0)
        self.ledger.start_s = start_s
        self._cpu_s = _cpu_s()
        self._running += [asyncio.create_task(self._measure()), asyncio.create_task(self._lag())]
        self._upset()
        await self._submit_all()
        for timer in self._timers:
            timer.cancel()
        for device in self.devices.values():
            device.resume_reading()
            device.go_online()
        deadline_s = time.monotonic() + QUIET_S
        while any(device.outbox for device in self.devices.values()):
            if time.monotonic() > deadline_s:
                break
            await asyncio.sleep(PAUSE_S)

    def set_rate(self, rate_per_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._arrivals.set_rate(rate_per_s, max(0.0, time.monotonic() - self._start_s))

    def finish(self) -> None:
        """Do no more from now on."""
        self._until_s = min(self._until_s, time.monotonic() - self._start_s)

    async def settle(self, heads: Mapping[str, int]) -> None:
        """Let all devices come to their budgets' heads, say what they have, and leave."""
        deadline_s = time.monotonic() + SETTLE_S

        def arrived() -> bool:
            return all(
                inbox.ended or inbox.cursor >= heads.get(inbox.budget_id, 0)
                for device in self.devices.values()
                for inbox in device.inboxes.values()
            )

        while not arrived():
            if time.monotonic() > deadline_s:
                break  # the checker tells what is missing
            await asyncio.sleep(PAUSE_S)
        recorder = self.ledger.recorder
        for device in self.devices.values():
            for inbox in device.inboxes.values():
                observer = device.observer(inbox.budget_id)
                if inbox.ended:
                    recorder.left(observer)
                else:
                    digest = inbox.replica.digest_text
                    recorder.replica(observer, inbox.budget_id, inbox.cursor, digest)
            device.stop()
        self._tell()

    async def close(self) -> None:
        for device in self.devices.values():
            device.stop()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self.ledger.recorder.close()

    # Setting up.

    async def _found(self, client: HttpClient, account: Account, numbers: Sequence[int]) -> None:
        events = [
            {
                "eventId": untimed_id(self._ids),
                "eventType": "budget.create",
                "budgetId": self.plan.budget_id(number),
                "title": f"Budget {number}",
                "when": self._now_ms(),
            }
            for number in numbers
        ]
        for event in events:
            self.ledger.recorder.submitted(account.user_id, event, time.monotonic())
        answer = await self._call(client, "/events", account, {"events": events})
        for verdict in answer["events"]:
            self.ledger.recorder.answered(plain(verdict), time.monotonic())
        if [verdict["status"] for verdict in answer["events"]] != ["accepted"] * len(events):
            raise Refused(f"{client.target} created no budget: {answer['events'][-1]}")

    async def _join(self, client: HttpClient, account: Account, number: int) -> None:
        await self._call(client, f"/budgets/{self.plan.budget_id(number)}/join", account, {})

    async def _call(
        self, client: HttpClient, path: str, account: Account, body: Mapping[str, object]
    ) -> Mapping[str, Any]:
        """POST, again and again while the hub is busy."""
        while True:
            try:
                return await client.call("POST", path, token=await account.token(), body=body)
            except Refused as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(max(error.after_s, 0.2))

    def _device(self, number: int) -> Device:
        plan, rng = self.plan, Random(f"{self.plan.options.seed}/device/{number}")
        transports = self.scenario.transports
        budgets = plan.budgets_of(number)
        device = Device(
            f"device {number}",
            plan.target_of(number),
            self._account(plan.login_of(number)),
            new_id=lambda: untimed_id(self._ids),
            rng=rng,
            transport=rng.choices(list(transports), list(transports.values()))[0],
            witness=self.ledger,
            decode=self._decode,
            receive_bytes=SLOW_BYTES if self.scenario.slow_share else None,
        )
        for budget in budgets:
            device.follow(plan.budget_id(budget))
        return device

    def _account(self, login: Login) -> Account:
        account = self._accounts.get(login.user_id)
        if account is None:
            if login.secret:
                account = SignedAccount(login.user_id, login.secret)
            else:
                target = Target.parse(self.plan.options.targets[0])
                account = LocalAccount(target, Session(*login.session))
            self._accounts[login.user_id] = account
        return account

    async def _opened(self, opening: Sequence[Device], deadline_s: float) -> list[Device]:
        if time.monotonic() > deadline_s:
            raise Unreachable(f"{len(opening)} devices were not connected in {CONNECT_S:.0f} s")
        await asyncio.sleep(0.005)
        return [device for device in opening if not device.up_to_date]

    # At work.

    async def _submit_all(self) -> None:
        duration_s = self.plan.options.duration_s
        while True:
            now_s = time.monotonic() - self._start_s
            if self.scenario.day:
                hour = DAY[min(int(now_s / duration_s * len(DAY)), len(DAY) - 1)]
                self._arrivals.set_rate(self._rate_per_s * hour, now_s)
            due_s = self._arrivals.due_s()
            if now_s >= self._until_s:
                return
            # Also when late: a generator that never pauses would not let its devices read. Not for
            # long: the rate may change.
            await asyncio.sleep(min(max(0.0, min(due_s, self._until_s) - now_s), 0.1))
            if due_s < self._until_s and due_s <= time.monotonic() - self._start_s:
                self._submit(self._arrivals.pop(), due_s)

    def _submit(self, number: int, due_s: float) -> None:
        device = self.devices[number]
        done = self._done[number] = self._done.get(number, 0) + 1
        # An own generator for each event: how many numbers one takes depends on the replica, and
        # must not change what follows.
        rng = Random(f"{self.plan.options.seed}/{number}/{done}")
        open_to_it = [inbox for inbox in device.inboxes.values() if not inbox.ended]
        if not open_to_it:
            return
        inbox = rng.choice(open_to_it)
        due_epoch_s = self._start_s + due_s + self.plan.epoch_s
        timed = device.reads and not device.offline
        event_id = timed_id(due_epoch_s, self._ids) if timed else untimed_id(self._ids)
        event = change(
            device,
            inbox,
            self.scenario.mix,
            rng,
            event_id=event_id,
            new_id=lambda: untimed_id(self._ids),
            when_ms=self._now_ms(),
            recent=self.scenario.recent,
            note_chars=self.scenario.note_chars,
        )
        try:
            device.submit(event)
        except OutboxFull as error:
            self.ledger.troubled(device, str(error))

    def _upset(self) -> None:
        """Set the clocks of everything that befalls the devices."""
        scenario, duration_s = self.scenario, self.plan.options.duration_s
        for storm in range(scenario.storms):
            self._later(duration_s * (storm + 1) / (scenario.storms + 1), self._storm)
        for number, device in self.devices.items():
            rng = Random(f"{self.plan.options.seed}/upset/{number}")
            if rng.random() < scenario.offline_share:
                self._alternate(
                    device, rng, scenario.offline_for * duration_s, self._go, self._come
                )
            if rng.random() < scenario.slow_share:
                self._alternate(
                    device, rng, scenario.slow_for * duration_s, self._stall, self._go_on
                )
            if scenario.reconnect_s is not None:
                self._again(rng, scenario.reconnect_s, partial(self._drop, device))

    def _alternate(
        self,
        device: Device,
        rng: Random,
        mean_s: float,
        first: Callable[[Device], None],
        second: Callable[[Device], None],
    ) -> None:
        def turn(now: Callable[[Device], None], then: Callable[[Device], None]) -> None:
            now(device)
            self._later(rng.expovariate(1 / mean_s), lambda: turn(then, now))

        self._later(rng.uniform(0, mean_s), lambda: turn(first, second))

    def _again(self, rng: Random, mean_s: float, act: Callable[[], None]) -> None:
        def turn() -> None:
            act()
            self._again(rng, mean_s, act)

        self._later(rng.expovariate(1 / mean_s), turn)

    def _later(self, after_s: float, act: Callable[[], None]) -> None:
        def turn() -> None:
            self._timers.discard(timer)
            act()

        timer = asyncio.get_running_loop().call_later(after_s, turn)
        self._timers.add(timer)

    def _storm(self) -> None:
        for device in self.devices.values():
            device.drop()

    def _go(self, device: Device) -> None:
        self.ledger.away(device)
        device.go_offline()

    def _come(self, device: Device) -> None:
        device.go_online()

    def _drop(self, device: Device) -> None:
        if device.connected:
            self.ledger.away(device)
            device.drop()

    def _stall(self, device: Device) -> None:
        self.ledger.away(device)
        device.pause_reading()

    def _go_on(self, device: Device) -> None:
        self.ledger.away(device, back_s=time.monotonic())
        device.resume_reading()

    # Measuring.

    async def _measure(self) -> None:
        while True:
            second = self.ledger.sample.second + 1
            await asyncio.sleep(self._start_s + second - time.monotonic())
            self._tell()

    def _tell(self) -> None:
        """The second that has passed, or, at the end, what has passed of it."""
        sample, self.ledger.sample = self.ledger.sample, Sample(self.ledger.sample.second + 1)
        sample.connected = sum(device.connected for device in self.devices.values())
        sample.offline = len(self.devices) - sample.connected
        cpu_s, self._cpu_s = self._cpu_s, _cpu_s()
        sample.cpu = self._cpu_s - cpu_s
        self._say({"kind": "sample", "sample": sample.to_json()})

    async def _lag(self) -> None:
        """How late this process is with what it wants to do at a certain moment."""
        while True:
            due_s = time.monotonic() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.ledger.sample.lag.add((time.monotonic() - due_s) * 1000)

    def _now_ms(self) -> int:
        return int((time.monotonic() + self.plan.epoch_s) * 1000)


async def run(lines: asyncio.StreamReader, say: Callable[[Mapping[str, Any]], None]) -> None:
    generator = Generator(Plan.from_json(orjson.loads(await lines.readline())), say)
    working: asyncio.Task[None] | None = None
    try:
        await generator.found()
        say({"kind": "founded"})
        while line := await lines.readline():
            command = orjson.loads(line)
            match command["do"]:
                case "connect":
                    await generator.connect()
                    say({"kind": "connected"})
                case "start":
                    working = asyncio.create_task(generator.work(command["at"]))
                    working.add_done_callback(lambda task: _worked(task, say, generator))
                case "rate":
                    generator.set_rate(command["rate"])
                case "finish":
                    generator.finish()
                case "settle":
                    await generator.settle(command["heads"])
                    await generator.close()
                    say({"kind": "settled"})
                    return
    except (Refused, Unreachable) as error:
        say({"kind": "failed", "message": str(error), "refused": isinstance(error, Refused)})
    finally:
        if working is not None:
            working.cancel()
        await generator.close()


def _worked(
    task: asyncio.Task[None], say: Callable[[Mapping[str, Any]], None], generator: Generator
) -> None:
    if not task.cancelled():
        task.result()
        unsettled = sum(len(device.outbox) for device in generator.devices.values())
        say({"kind": "quiet", "unsettled": unsettled})


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _main() -> None:
    lines = asyncio.StreamReader(limit=2**26)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    out = sys.stdout.buffer

    def say(message: Mapping[str, Any]) -> None:
        out.write(orjson.dumps(message) + b"\n")
        out.flush()

    await run(lines, say)


if __name__ == "__main__":
    # At Ctrl-C it is the parent who ends, and then their stdin does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_main())
