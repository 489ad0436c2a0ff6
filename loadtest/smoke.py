"""The smoke scenario: a few devices write to a few budgets for seconds; then everything is checked.

`run` does it. `faults_of` is the judge of one budget's history: pure, so that it can be shown to
find what it should.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from math import ceil
from random import Random
from secrets import token_hex, token_urlsafe
from typing import NamedTuple
from uuid import uuid4

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from loadtest import rest
from loadtest.device import Device, Event, Seen, Verdict, until
from loadtest.replica import Diverged, Record, Replica
from loadtest.rest import Refused, Target, Unreachable

SETTLE_S = 10.0  # after the last send; by then everything must have arrived everywhere
EVENTS_MAX = 1_000_000  # what is seen stays in memory until it is checked

# Kinds of event, and how often each comes, in percent.
_MIX = {"expense.add": 40, "expense.edit": 40, "category.add": 10, "budget.edit": 10}
_RECENT = 50  # records that devices still look at: few, so that edits meet
FAULTS_SHOWN = 10
_OUTCOMES = ("accepted", "conflict", "rejected", "undecided", "unanswered")
_CURRENCIES = ("EUR", "USD", "CHF", "JPY", None)


class Options(NamedTuple):
    """`seed` fixes which device sends what kind of event when. Ids are new in every run, so that
    one hub can take many runs of one seed."""

    targets: Sequence[Target]
    devices: int
    budgets: int
    rate_per_s: float
    duration_s: float
    seed: int

    @property
    def events(self) -> int:
        return round(self.rate_per_s * self.duration_s)


class Report(NamedTuple):
    """Latencies are in ms and sorted. `faults` is empty where the hub kept its promises."""

    verdicts: Mapping[str, int]  # accepted, conflict, rejected, undecided, unanswered → events
    accepted_per_s: float
    ack_ms: Sequence[float]  # intended send → verdict at the sender
    delivery_ms: Sequence[float]  # intended send → the event at each other device
    lag_ms: Sequence[float]  # intended send → real send: the generator's own part of the above
    faults: Sequence[str]


async def run(options: Options, console: Console) -> Report:
    """Drive the targets and check them, with progress on `console`.

    Raises `Unreachable` where a target is no running hub, `Refused` where setting up fails. What
    goes wrong from the first event on is a fault in the report.
    """
    changed = asyncio.Event()
    with _progress(console) as progress:
        step = progress.add_task("looking for the hubs", total=len(options.targets))
        for target in options.targets:
            await rest.call(target, "GET", "/healthz")
            progress.advance(step)

        progress.reset(step, description="creating the budgets", total=options.budgets)
        run_id = token_hex(4)
        budgets = []
        for number in range(options.budgets):
            budgets.append(await _found(options, run_id, number, changed))
            progress.advance(step)

        progress.reset(step, description="connecting the devices", total=options.devices)
        async with AsyncExitStack() as stack:
            for budget in budgets:
                for device in budget.devices:
                    await stack.enter_async_context(device.connected())
                    progress.advance(step)

            progress.reset(step, description="sending events", total=options.events)
            start_s = time.perf_counter()
            await _send_all(options, budgets, start_s, progress, step)
            deadline_s = time.perf_counter() + SETTLE_S

            progress.reset(step, description="checking the budgets", total=options.budgets)
            for budget in budgets:
                await budget.check(deadline_s)
                progress.advance(step)
    return _report(budgets, start_s)


class History(NamedTuple):
    """What happened to one budget, as every side saw it."""

    budget_id: str
    submitted: Mapping[str, Verdict | None]  # by eventId, in the order of sending
    log: Sequence[Seen]  # read from its start when all was over
    head: int  # by the server's snapshot
    seen: Mapping[str, Sequence[Seen]]  # by device


def faults_of(history: History) -> list[str]:
    """Every break of a promise that the history shows, each with the event it shows in.

    An acknowledged event must be in the log exactly once, at its sequence; one that conflicted or
    was rejected must not be. Log and devices must have 1..head, each once, in order, alike.
    """
    faults = []
    acknowledged: dict[int, str] = {}
    for event_id, verdict in history.submitted.items():
        if verdict is None:
            faults.append(f"event {event_id} got no verdict")
        elif verdict.sequence is not None:
            other = acknowledged.setdefault(verdict.sequence, event_id)
            if other != event_id:
                faults.append(f"events {other} and {event_id} both became {verdict.sequence}")
        elif verdict.status == "rejected" and not verdict.retryable:
            faults.append(f"event {event_id} was rejected: {verdict.code}")
    head = max(history.head, *acknowledged, 0)
    faults += [f"the log: {fault}" for fault in _log_faults(history, head, acknowledged)]
    names = {item.sequence: item.event_id for item in history.log} | acknowledged
    for device, seen in history.seen.items():
        fault = stream_fault(seen, head, names)
        if fault is not None:
            faults.append(f"{device}: {fault}")
    return [f"budget {history.budget_id}: {fault}" for fault in faults]


def stream_fault(seen: Sequence[Seen], head: int, names: Mapping[int, str]) -> str | None:
    """The first place where `seen` is not 1..head, each once and in order; None if it is.

    `names` holds the eventIds known to belong to sequences; not every sequence needs one.
    """
    due = 1
    for place, item in enumerate(seen):
        came = f"sequence {item.sequence} (event {item.event_id})"
        if item.sequence < due:
            return f"repeated: {came} came again"
        if item.sequence > due:
            if any(later.sequence == due for later in seen[place:]):
                return f"misordered: {came} came before {due}"
            return f"missed: {_named(due, names)} never came, after {due - 1} came {item.sequence}"
        if names.get(due, item.event_id) != item.event_id:
            return f"mistaken: {came} came, where {names[due]} has that sequence"
        due += 1
    return f"missed: {_named(due, names)} never came" if due <= head else None


def _log_faults(history: History, head: int, acknowledged: Mapping[int, str]) -> Iterator[str]:
    fault = stream_fault(history.log, head, acknowledged)
    if fault is not None:
        yield fault
    for event_id, times in Counter(item.event_id for item in history.log).items():
        if times > 1:
            yield f"event {event_id} is there {times} times"
        if event_id not in history.submitted:
            yield f"event {event_id} was never sent"
            continue
        verdict = history.submitted[event_id]
        if verdict is not None and verdict.sequence is None and not verdict.retryable:
            yield f"event {event_id} is there, though its verdict was {verdict.status}"


def _named(sequence: int, names: Mapping[int, str]) -> str:
    return f"sequence {sequence} (event {names.get(sequence, 'unknown')})"


class _Sent(NamedTuple):
    device: Device
    due_s: float  # when it was meant to leave
    at_s: float  # when it left


class _Budget:
    """One budget of the run: its devices, what they sent, and what came of it."""

    def __init__(self, created: str, devices: Sequence[Device], auditor: Device) -> None:
        self.id = auditor.replica.budget_id
        self.created = created  # the eventId of its budget.create, sequence 1
        self.devices = devices
        self.auditor = auditor  # connects after the run, to read the log
        self.sent: dict[str, _Sent] = {}  # by eventId
        self.faults: list[str] = []

    async def send(self, device: Device, event: Event, due_s: float) -> None:
        self.sent[event["eventId"]] = _Sent(device, due_s, time.perf_counter())
        await device.submit(event)

    async def check(self, deadline_s: float) -> None:
        """Wait for what is on its way, then compare all sides; what is wrong goes to `faults`."""
        try:
            snapshot = await self._settled_snapshot(deadline_s)
        except (Refused, Unreachable, Diverged, KeyError) as error:
            faults = [f"budget {self.id} has no snapshot: {type(error).__name__}: {error}"]
        else:
            unread = await self._read_log()
            faults = self._compare(snapshot) or unread
        # First what devices met themselves: it tends to be the cause.
        self.faults = [f"{device} {device.fault}" for device in self.devices if device.fault]
        self.faults += faults

    def verdict(self, event_id: str) -> Verdict | None:
        return self.sent[event_id].device.verdicts.get(event_id)

    async def _settled_snapshot(self, deadline_s: float) -> Replica:
        """The server's snapshot, once all events have a verdict and all devices what it covers, or
        the deadline has passed. A device with a fault is not waited for."""
        auditor = self.auditor
        healthy = [device for device in self.devices if device.fault is None]

        def answered() -> bool:
            return all(not device.unsettled or device.fault for device in healthy)

        def arrived() -> bool:
            return all(len(device.seen) >= snapshot.sequence or device.fault for device in healthy)

        await until(answered, auditor.changed, deadline_s - time.perf_counter())
        path = f"/budgets/{self.id}"
        answer = await rest.call(auditor.target, "GET", path, token=auditor.token)
        snapshot = Replica.from_snapshot(answer)
        await until(arrived, auditor.changed, deadline_s - time.perf_counter())
        return snapshot

    async def _read_log(self) -> list[str]:
        """Let the auditor see the whole log; what kept it from that, if anything."""
        try:
            async with self.auditor.connected():
                return []  # connected means up to date
        except (Refused, Unreachable) as error:
            return [f"the log of budget {self.id} cannot be read: {error}"]

    def _compare(self, snapshot: Replica) -> list[str]:
        submitted = {event_id: self.verdict(event_id) for event_id in self.sent}
        healthy = [device for device in self.devices if device.fault is None]
        faults = faults_of(
            History(
                self.id,
                {self.created: Verdict("accepted", 1, None, False, 0.0), **submitted},
                self.auditor.seen,
                snapshot.sequence,
                {str(device): device.seen for device in healthy},
            )
        )
        if faults:
            return faults  # replicas that differ would only say it again
        for device in (*healthy, self.auditor):
            difference = device.replica.difference(snapshot)
            if difference is not None:
                faults.append(f"{device} and the snapshot of budget {self.id}: {difference}")
        return faults


async def _found(options: Options, run_id: str, number: int, changed: asyncio.Event) -> _Budget:
    """Create the budget of this number and its devices, not yet connected."""
    targets = options.targets
    # Every budget begins at another target and goes round: its devices must meet on several nodes.
    around = [targets[(number + place) % len(targets)] for place in range(len(targets))]
    budget_id, event_id = str(uuid4()), str(uuid4())
    token = await _register(around[0], f"smoke-{options.seed}-{run_id}-{number}@example.com")
    await rest.call(
        around[0],
        "POST",
        "/budget",
        body={
            "eventId": event_id,
            "id": budget_id,
            "title": f"Smoke {run_id}, budget {number}",
            "when": _now_ms(),
        },
        token=token,
    )
    # The budget's people. As long as budgets cannot be joined, all devices are their owner's; from
    # then on each gets a user of its own here, who joins.
    numbers = range(number, options.devices, options.budgets)
    tokens = [token for _ in numbers]
    devices = [
        Device(f"device {n}", around[place % len(around)], tokens[place], budget_id, changed)
        for place, n in enumerate(numbers)
    ]
    return _Budget(event_id, devices, Device("auditor", around[-1], token, budget_id, changed))


async def _register(target: Target, email: str) -> str:
    """A bearer token of a new user."""
    body: dict[str, object] = {"email": email, "password": token_urlsafe(16)}
    answer = await rest.call(target, "POST", "/auth/register", body=body)
    if not isinstance(answer.get("token"), str):
        raise Refused(f"{target} registered {email} without a token")
    token: str = answer["token"]
    return token


async def _send_all(
    options: Options, budgets: Sequence[_Budget], start_s: float, progress: Progress, step: TaskID
) -> None:
    """Open loop: every event has its time from the start, whatever became of those before it."""
    rng = Random(options.seed)
    dues_s = sorted(rng.uniform(0, options.duration_s) for _ in range(options.events))
    for number, due_s in enumerate(dues_s):
        budget = rng.choice(budgets)
        device = rng.choice(budget.devices)
        kind = rng.choices(list(_MIX), list(_MIX.values()))[0]
        # Also when late: a generator that never pauses would not let its devices read.
        await asyncio.sleep(max(0.0, start_s + due_s - time.perf_counter()))
        if device.fault is not None:
            return
        # An own generator for each event: how many numbers one takes depends on the replica, and
        # must not change what follows.
        event = _event(kind, device.replica, Random(f"{options.seed}/{number}"))
        await budget.send(device, event, start_s + due_s)
        progress.advance(step)


def _event(kind: str, replica: Replica, rng: Random) -> Event:
    """An event that fits what the replica shows. Where there is no expense to edit, it adds one."""
    expenses = _recent(replica, "expense")
    categories = [None, *(category["id"] for category in _recent(replica, "category"))]
    if kind == "expense.edit" and not expenses:
        kind = "expense.add"
    if kind == "budget.edit":
        settings = {
            "title": f"Household {rng.randrange(1000)}",
            "details": rng.choice((None, "groceries, rent and the dog")),
            "currency": rng.choice(_CURRENCIES),
        }
        budget = replica.records["budget", replica.budget_id]
        fields = {"version": budget["version"], **_one_of(settings, rng)}
    elif kind == "category.add":
        fields = {"name": f"Category {rng.randrange(1000)}", "allocate": _amount(rng)}
    else:
        fields = {
            "categoryId": rng.choice(categories),
            "amount": _amount(rng),
            "date": f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
            "note": rng.choice((None, "weekly shop", "Brot und Käse")),
        }
        if kind == "expense.edit":
            expense = rng.choice(expenses)
            known = {"recordId": expense["id"], "version": expense["version"]}
            fields = known | _one_of(fields, rng)
    return {
        "eventId": str(uuid4()),
        "eventType": kind,
        "budgetId": replica.budget_id,
        "when": _now_ms(),
        **({"recordId": str(uuid4())} if kind.endswith(".add") else {}),
        **fields,
    }


def _recent(replica: Replica, kind: str) -> list[Record]:
    # The dict keeps the order of changes. Looking at the last ones only costs the same however
    # large the budget has become.
    last = islice(reversed(replica.records.items()), _RECENT)
    return [record for (record_kind, _), record in last if record_kind == kind]


def _one_of(fields: Event, rng: Random) -> Event:
    field = rng.choice(list(fields))
    return {field: fields[field]}


def _amount(rng: Random) -> str:
    return f"{rng.randrange(1000)}.{rng.randrange(100):02}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _report(budgets: Sequence[_Budget], start_s: float) -> Report:
    verdicts: Counter[str] = Counter()
    acks_s, deliveries_s, lags_s, last_s = [], [], [], start_s
    for budget in budgets:
        for event_id, sent in budget.sent.items():
            lags_s.append(sent.at_s - sent.due_s)
            verdict = budget.verdict(event_id)
            if verdict is None:
                verdicts["unanswered"] += 1
                continue
            verdicts["undecided" if verdict.retryable else verdict.status] += 1
            acks_s.append(verdict.at_s - sent.due_s)
            last_s = max(last_s, verdict.at_s)
        for device in budget.devices:
            for item in device.seen:
                source = budget.sent.get(item.event_id)
                if source is not None and source.device is not device:
                    deliveries_s.append(item.at_s - source.due_s)
    faults = [fault for budget in budgets for fault in budget.faults]
    if not faults and not verdicts["accepted"]:
        faults.append("no event was accepted, so nothing was shown")
    return Report(
        verdicts,
        verdicts["accepted"] / (last_s - start_s) if last_s > start_s else 0.0,
        _sorted_ms(acks_s),
        _sorted_ms(deliveries_s),
        _sorted_ms(lags_s),
        faults,
    )


def _sorted_ms(times_s: Sequence[float]) -> list[float]:
    return sorted(time_s * 1000 for time_s in times_s)


def show(report: Report, options: Options, console: Console) -> None:
    """Print the report for people."""
    counts = ", ".join(f"{report.verdicts.get(name, 0)} {name}" for name in _OUTCOMES)
    lines = {
        "seed": f"{options.seed}",
        "events": f"{sum(report.verdicts.values())} sent: {counts}",
        "events/s": f"{report.accepted_per_s:.1f} accepted",
        "send → commit → delivery": _latency(report.delivery_ms),
        "ack": _latency(report.ack_ms),
        "generator lag": _latency(report.lag_ms),
    }
    for name, value in lines.items():
        console.print(f"{name:<26}{value}", markup=False, highlight=False, soft_wrap=True)
    for fault in report.faults[:FAULTS_SHOWN]:
        console.print(f"fault: {fault}", markup=False, highlight=False, soft_wrap=True)
    if report.faults:
        more = len(report.faults) - FAULTS_SHOWN
        hidden = f", {more} of them not shown" if more > 0 else ""
        console.print(f"[bold red]FAILED[/] faults: {len(report.faults)}{hidden}", highlight=False)
    else:
        console.print("[bold green]PASSED[/] nothing missed, repeated, misordered or lost")


def _latency(sorted_ms: Sequence[float]) -> str:
    if not sorted_ms:
        return "none measured"
    p50_ms, p99_ms = (percentile(sorted_ms, share) for share in (0.50, 0.99))
    return f"p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms, {len(sorted_ms)} measured"


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values: the least one that `share` of all reach."""
    return values[max(0, ceil(share * len(values)) - 1)]


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        refresh_per_second=5,
    )
