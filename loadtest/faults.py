"""Fault runs: devices work on a cluster while its parts are killed, stopped and cut off; then the
history of all they sent and saw is checked.

Each run has budgets and devices of its own on one cluster that is used for all. Its seed decides
what the devices do, and what befalls the cluster when; only how the processes interleave is left
to the machine. In each run a guest joins a budget, and is removed from it in the middle of it all.
"""

import asyncio
import gc
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple
from uuid import uuid4

from rich.console import Console

from loadtest.account import SignedAccount
from loadtest.audit import Audit
from loadtest.checker import Figures, Violation, check
from loadtest.cluster import NODES, Cluster, FragileRedis, Node
from loadtest.device import Device
from loadtest.generator import Generator
from loadtest.history import Recorder, read
from loadtest.http_client import HttpClient
from loadtest.plan import Login, Options, Plan
from loadtest.process import until
from loadtest.proxy import Proxy
from loadtest.runner import commit, machine
from loadtest.target import Refused, Target, Unreachable

WORK_S = 2.0  # of the devices
BUDGETS = 2
SCENARIOS = ("smoke", "smoke", "offline", "legacy", "mixed")
# How long a part is stopped or cut off. A hub that is killed is away until the next one is up.
LASTS_S = (0.2, 1.2)
SOON_S = 0.05
HEALTHY_S = 60.0  # within which all is well again, on a busy machine
CALM_S = 60.0  # and then all devices, whose attempts to come back have got rare by then
ANSWER_S = 3.0  # for a node, before another one is asked
TRY_AGAIN_S = 0.2
TABLE_PATH = Path(__file__).with_name("FAULTS.md")
GUEST = 1_000_000  # a device's number, beyond those of the plan


class Fault(StrEnum):
    HUB_KILL = "hub kill"
    HUB_PAUSE = "hub pause"
    POSTGRES_RESTART = "Postgres restart"
    REDIS_KILL = "Redis kill"
    CLIENT_PARTITION = "partition client-hub"
    REDIS_PARTITION = "partition hub-Redis"
    RANDOM = "all at random"


DEVICES = (5, 10)
RATES_PER_S = (10, 20, 40)
_SINGLE = tuple(fault for fault in Fault if fault is not Fault.RANDOM)


class Partition(StrEnum):
    CUT = "every connection is reset"
    HELD = "nothing passes, and what was sent arrives later"
    UNHEARD = "what is sent arrives, no answer does, and then every connection is reset"


class Blow(NamedTuple):
    """One part breaks, `at_s` after the start of work."""

    at_s: float
    fault: Fault
    node: int  # where it is one of a node's parts
    lasts_s: float
    partition: Partition  # where it is one


class Case(NamedTuple):
    """One cell of the matrix, with a seed."""

    number: int
    seed: int
    fault: Fault
    devices: int
    rate_per_s: int
    scenario: str

    def __str__(self) -> str:
        load = f"{self.devices} devices, {self.rate_per_s}/s, {self.scenario}"
        return f"run {self.number}, {self.fault.value}: {load}, seed {self.seed}"

    def blows(self) -> Iterator[Blow]:
        """What befalls the cluster, in order."""
        rng = Random(f"{self.seed}/blows")
        faults = [self.fault] * rng.choice((1, 2))
        if self.fault is Fault.RANDOM:
            faults = rng.choices(_SINGLE, k=rng.choice((2, 3, 4)))
        for at_s in sorted(rng.uniform(0.1, WORK_S * 0.9) for _ in faults):
            node, lasts_s = rng.randrange(NODES), rng.uniform(*LASTS_S)
            yield Blow(at_s, faults.pop(), node, lasts_s, rng.choice(list(Partition)))


def cases(runs: int, seed: int) -> Iterator[Case]:
    """So many cells of the matrix: whole rounds of it, each in an order of its own."""
    rng = Random(seed)
    number = 0
    while True:
        matrix = list(product(Fault, DEVICES, RATES_PER_S))
        rng.shuffle(matrix)
        for fault, devices, rate_per_s in matrix:
            if number == runs:
                return
            number += 1
            scenario = rng.choice(SCENARIOS)
            yield Case(number, rng.randrange(2**32), fault, devices, rate_per_s, scenario)


class Result(NamedTuple):
    case: Case
    took_s: float
    reconnects: int
    figures: Figures | None
    violation: Violation | None


async def torment(
    todo: Sequence[Case], folder: Path, console: Console
) -> tuple[list[Result], list[str]]:
    """All the runs, on a cluster in `folder`; and, in words, what else was wrong with it.

    Raises what `run_all` and `Cluster` raise."""
    async with Cluster(folder / "cluster") as cluster:
        results = await run_all(cluster, todo, folder, console)
        verified = await cluster.run("verify")
        wrong = [f"a hub logged: {line}" for line in cluster.complaints()]
    if verified.exit_code != 0:
        wrong.append(f"the tables are not what the log makes: {verified.out}{verified.err}")
    return results, wrong


async def run_all(
    cluster: Cluster, todo: Sequence[Case], folder: Path, console: Console
) -> list[Result]:
    """One run after the other, each with a line on the console. The history of a run that broke a
    rule stays in `folder`.

    Raises `Refused`, `Unreachable` or `TimeoutError` where the cluster does not come back to
    health, so that no run can begin."""
    results = []
    for case in todo:
        path = folder / f"run-{case.number}"
        path.mkdir(parents=True)
        result = await run(cluster, case, path)
        results.append(result)
        line = f"{case.number:>4}/{todo[-1].number}  {result.took_s:4.1f} s  {_summary(result)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        if result.violation is None:
            shutil.rmtree(path)
        else:
            console.print(f"{case}\n{result.violation}", markup=False, soft_wrap=True)
    return results


async def run(cluster: Cluster, case: Case, folder: Path) -> Result:
    """One case from a healthy cluster to the judgement; the history is left in `folder`."""
    began_s = time.monotonic()
    await _healthy(cluster)
    run = _Run(cluster, case, folder)
    violation: Violation | None = None
    figures: Figures | None = None
    thresholds = gc.get_threshold()
    try:
        await run.work()
        figures = await asyncio.to_thread(_judge, folder)
        run.check_settled()
    except Violation as found:
        violation = found
    finally:
        # A generator expects to be the only one that its process ever has.
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    return Result(case, time.monotonic() - began_s, run.reconnects, figures, violation)


def _judge(folder: Path) -> Figures:
    history = read(sorted(folder.glob("*.jsonl")))
    return check(history, history.logs, history.snapshots)


class _Run:
    def __init__(self, cluster: Cluster, case: Case, folder: Path) -> None:
        self._cluster = cluster
        self._case = case
        self._folder = folder
        self._rng = Random(f"{case.seed}/guest")
        self._targets = [Target.parse(url) for url in cluster.targets]
        # One blow at a time for each part.
        self._parts: dict[object, asyncio.Lock] = {}
        run_id = str(uuid4())
        logins = [Login(f"{run_id[:8]}-{n}", secret=cluster.secret) for n in range(BUDGETS)]
        self._guest = SignedAccount(f"{run_id[:8]}-guest", cluster.secret)
        options = Options(
            scenario=case.scenario,
            targets=cluster.targets,
            devices=case.devices,
            budgets=BUDGETS,
            rate_per_s=case.rate_per_s,
            duration_s=WORK_S,
            processes=1,
            users=len(logins),
            seed=case.seed,
            p99_ms=0,
        )
        epoch_s = time.time() - time.monotonic()
        history = str(folder / "history-0.jsonl")
        self._plan = Plan(options, run_id, 0, epoch_s, logins, history)
        self._generator = Generator(self._plan, lambda message: None)

    @property
    def reconnects(self) -> int:
        return sum(device.opened - 1 for device in self._generator.devices.values())

    def _calm(self) -> bool:
        """All devices have come back, have their verdicts, and what they have heard of."""
        return all(
            device.up_to_date or all(inbox.ended for inbox in device.inboxes.values())
            for device in self._generator.devices.values()
        )

    def check_settled(self) -> None:
        """P4: what was sent had its verdict soon after all was well again. Raises `Violation`."""
        devices = self._generator.devices.values()
        unsettled = [
            event
            for device in devices
            for event in (*device.outbox.in_flight, *device.outbox.waiting)
        ]
        if unsettled:
            what = f"{len(unsettled)} events have no verdict, though all is well again"
            raise Violation("silent", what, [f"the first is {unsettled[0]}"])

    async def work(self) -> None:
        """Everything up to the end of the history."""
        generator = self._generator
        try:
            await generator.found()
            await self._invite()
            await generator.connect()
            async with asyncio.TaskGroup() as everything:
                everything.create_task(generator.work(time.monotonic() + SOON_S))
                everything.create_task(self._remove_guest())
                for blow in self._case.blows():
                    everything.create_task(self._strike(blow))
            await self._settle()
        finally:
            await generator.close()

    async def _settle(self) -> None:
        """The end of the history, when all is healthy and quiet, and what every node shows then."""
        await _healthy(self._cluster)
        with suppress(TimeoutError):  # the checker says what is missing
            await until(self._calm, CALM_S)
        owners = {self._plan.budget_id(n): self._owner(n) for n in self._plan.founded}
        with Recorder(self._folder / "audit.jsonl") as recorder:
            heads: dict[str, int] = {}
            for number, target in enumerate(self._targets):
                audit = Audit(target, owners, recorder)
                try:
                    heads |= await audit.heads()
                    if number == 0:
                        await audit.logs()
                finally:
                    audit.close()
            await self._generator.settle(heads)

    def _owner(self, budget: int) -> SignedAccount:
        return SignedAccount(self._plan.logins_of(budget)[0].user_id, self._cluster.secret)

    # The guest

    async def _invite(self) -> None:
        """A further device, of a user who joins the first budget and follows it."""
        budget_id = self._plan.budget_id(0)
        await self._ask(self._guest, "POST", f"/budgets/{budget_id}/join")
        guest = Device(
            "guest",
            self._rng.choice(self._targets),
            self._guest,
            new_id=lambda: str(uuid4()),
            rng=self._rng,
            witness=self._generator.ledger,
        )
        guest.follow(budget_id)
        self._generator.accompany(GUEST, guest)

    async def _remove_guest(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.2, 0.8) * WORK_S)
        path = f"/budgets/{self._plan.budget_id(0)}/participants/{self._guest.user_id}"
        await self._ask(self._owner(0), "DELETE", path)

    async def _ask(self, account: SignedAccount, method: str, path: str) -> None:
        """Ask until a node answers: what is asked here may be done twice."""
        async with asyncio.timeout(HEALTHY_S):
            while True:
                client = HttpClient(self._rng.choice(self._targets))
                try:
                    await client.call(method, path, token=await account.token(), timeout_s=ANSWER_S)
                    return
                except Unreachable:
                    pass
                except Refused as refused:
                    if not refused.retryable:
                        raise
                finally:
                    client.close()
                await asyncio.sleep(TRY_AGAIN_S)

    # The blows

    async def _strike(self, blow: Blow) -> None:
        await asyncio.sleep(blow.at_s)
        node = self._cluster.nodes[blow.node]
        postgres, redis = self._cluster.postgres, self._cluster.redis
        strikes: Mapping[Fault, tuple[object, Callable[[], Awaitable[None]]]] = {
            Fault.HUB_KILL: (node, lambda: _kill_hub(node)),
            Fault.HUB_PAUSE: (node, lambda: _pause_hub(node, blow.lasts_s)),
            Fault.POSTGRES_RESTART: (postgres, postgres.crash),
            Fault.REDIS_KILL: (redis, lambda: _kill_redis(redis, blow.lasts_s)),
            Fault.CLIENT_PARTITION: (node.door, lambda: _partition(node.door, blow)),
            Fault.REDIS_PARTITION: (node.bus, lambda: _partition(node.bus, blow)),
        }
        part, strike = strikes[blow.fault]
        async with self._parts.setdefault(part, asyncio.Lock()):
            await strike()


async def _kill_hub(node: Node) -> None:
    await node.hub.kill()
    await node.start()


async def _pause_hub(node: Node, lasts_s: float) -> None:
    node.hub.pause()
    try:
        await asyncio.sleep(lasts_s)
    finally:
        node.hub.resume()


async def _kill_redis(redis: FragileRedis, lasts_s: float) -> None:
    redis.kill()
    try:
        await asyncio.sleep(lasts_s)
    finally:
        await redis.restart()


async def _partition(proxy: Proxy, blow: Blow) -> None:
    match blow.partition:
        case Partition.CUT:
            await proxy.cut()
        case Partition.HELD:
            proxy.black_hole()
        case Partition.UNHEARD:
            proxy.hold_back()
    try:
        await asyncio.sleep(blow.lasts_s)
        if blow.partition is Partition.UNHEARD:
            await proxy.cut()
    finally:
        await proxy.heal()


async def _healthy(cluster: Cluster) -> None:
    """Wait until every node says that it has all it needs. Raises `TimeoutError`."""
    async with asyncio.timeout(HEALTHY_S):
        for url in cluster.targets:
            target = Target.parse(url)
            while await _status(target) != "ok":  # noqa: ASYNC110  the node has to be asked
                await asyncio.sleep(SOON_S)


async def _status(target: Target) -> str:
    client = HttpClient(target)
    try:
        answer = await client.call("GET", "/readyz", timeout_s=ANSWER_S)
    except (Refused, Unreachable):
        return "out of reach"
    else:
        return str(answer["status"])
    finally:
        client.close()


# The table


def table(results: Sequence[Result], seed: int, date: str) -> str:
    """What `FAULTS.md` says of these results, in Markdown."""
    violations = [(r.case, r.violation) for r in results if r.violation is not None]
    minutes = sum(result.took_s for result in results) / 60
    of = machine()
    system = f"{of['cores']} cores ({of['cpu']}), {of['system']}, Python {of['python']}"
    command = f"python -m loadtest faults --runs {len(results)} --seed {seed} --record"
    loads = Counter((result.case.devices, result.case.rate_per_s) for result in results)
    heads = (
        "fault",
        "runs",
        "violations",
        "accepted",
        "sent again",
        "duplicates",
        "conflicts",
        "reconnects",
        "delivered",
        "seconds a run",
    )
    rows = [_row(fault.value, [r for r in results if r.case.fault is fault]) for fault in Fault]
    of_loads = [
        [f"{devices} devices", *(str(loads[devices, rate]) for rate in RATES_PER_S)]
        for devices in DEVICES
    ]
    told = (
        f"**{len(results)} runs, {len(violations)} violations** in {minutes:.0f} minutes, on"
        f" {date} at commit {commit()}, on one cluster of two hubs: {system}. Written by"
        f" `{command}`."
    )
    explained = (
        f"In each run devices on two budgets, and a guest who is removed, work for {WORK_S:.0f} s"
        " while parts of the cluster break; when all is well again the checker reads the history."
        " *Sent again* are events whose verdict did not come, *duplicates* what the hub had"
        " accepted before; *delivered* are events given to devices, each compared with the log."
    )
    parts = [
        "# Fault runs",
        told,
        *(f"{case}: **{found.rule}**, {found.what}" for case, found in violations),
        explained,
        _markdown(heads, [*rows, _row("**all**", results)]),
        _markdown(("runs", *(f"{rate}/s" for rate in RATES_PER_S)), of_loads),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, results: Sequence[Result]) -> Sequence[str]:
    total: Counter[str] = Counter()
    for result in results:
        total["violations"] += result.violation is not None
        total["reconnects"] += result.reconnects
        if result.figures is not None:
            total.update(vars(result.figures))
    names = ("violations", "accepted", "resent", "duplicates", "conflicts", "reconnects")
    numbers = [len(results), *(total[each] for each in names), total["observed"]]
    seconds = sum(result.took_s for result in results) / max(1, len(results))
    return [name, *(f"{each:,}" for each in numbers), f"{seconds:.1f}"]


def _summary(result: Result) -> str:
    case, figures = result.case, result.figures
    what = f"{case.fault.value}: {case.devices} devices, {case.rate_per_s}/s, {case.scenario}"
    if figures is None:
        return f"{what}: VIOLATION"
    numbers = f"{figures.accepted} accepted, {figures.resent} sent again"
    return f"{what}: {numbers}, {result.reconnects} reconnects"
