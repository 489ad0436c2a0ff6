"""One run, from signing in to the proof: the parent of the generator processes."""

import asyncio
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, NamedTuple
from uuid import uuid4

from rich.console import Console

from loadtest.account import Account, LocalAccount, Session, SignedAccount, sign_in
from loadtest.audit import Audit
from loadtest.checker import Figures, Violation, check
from loadtest.fleet import Fleet
from loadtest.history import BadHistory, Recorder, read
from loadtest.http_client import HttpClient
from loadtest.live import LiveView
from loadtest.plan import Login, Options, Plan
from loadtest.ramp import Ramp
from loadtest.report import write
from loadtest.resources import costs, hubs, usage
from loadtest.scenarios import SCENARIOS
from loadtest.stats import TOTALS, Sample, Series
from loadtest.target import Target

FRESH_S = 300.0  # left of a token that is good for the audit
SOON_S = 0.3  # from the command to start to the start, so that all processes have got it
CPU_SHARE_MAX = 0.85  # of one core; what is due waits for what is being done above that
LAG_MS_MAX = 20.0  # p99, where it is also a large part of what was measured
RAMP_WARM_UP_S = 2
RAMP_STEP_S = 6
RAMP_TELL_S = 0.2  # until all processes have told of a second
RAMP_SETTLED = 0.95  # of the events of a step

PROVEN, VIOLATED, REFUSED, INVALID = 0, 1, 2, 3


class Outcome(NamedTuple):
    report: Mapping[str, Any]  # report.json
    exit_code: int
    figures: Figures | None
    violation: Violation | None


async def run(options: Options, folder: Path, console: Console, *, secret: str = "") -> Outcome:
    """Run the scenario, check it, and leave the history in `folder`.

    With the hub's `secret` any number of users have tokens; without, `options.users` are
    registered. Raises `Refused` or `Unreachable` where a target is no hub or does not let the run
    be set up, and `GeneratorFailed`."""
    targets = [Target.parse(url) for url in options.targets]
    for target in targets:
        await _look(target)
    await asyncio.to_thread(_clear, folder)
    pids = await asyncio.to_thread(hubs, targets)
    run_id = str(uuid4())
    with _step(console, f"signing {options.users:,} users in"):
        users = await _users(options, targets[0], run_id, secret)
    logins = {login.user_id: login for mine in users for login in mine}
    epoch_s = time.time() - time.monotonic()
    plans = [
        Plan(options, run_id, n, epoch_s, users[n], str(folder / f"history-{n}.jsonl"))
        for n in range(options.processes)
    ]
    series = Series()
    ramp: Ramp | None = None
    with Recorder(folder / "history-audit.jsonl") as recorder:
        async with Fleet(plans) as fleet:
            with _step(console, f"creating {options.budgets:,} budgets"):
                await fleet.all_say("founded")
            empty = usage(pids)
            fleet.tell("connect")
            with _step(console, f"connecting {options.devices:,} devices"):
                await fleet.all_say("connected")
            connected = usage(pids)
            started_at_ms, start_s = time.time() * 1000, time.monotonic() + SOON_S
            fleet.tell("start", at=start_s)
            with LiveView(console, options.scenario, options.duration_s) as live:
                fleet.sampled = lambda sample: _sampled(sample, series, live, options.processes)
                if SCENARIOS[options.scenario].ramp:
                    ramp = await _search(options, series, fleet, start_s)
                ends = await fleet.all_say("quiet")
                fleet.sampled = series.add  # to the end, but there is no more to show
            lasted_s, quiet = time.monotonic() - start_s, usage(pids)
            accounts = await _accounts(plans, logins, targets[0])
            audit = Audit(targets[0], accounts, recorder)
            try:
                with _step(console, "reading what the server has"):
                    fleet.tell("settle", heads=await audit.heads())
                    await fleet.all_say("settled")
                    await audit.logs()
            finally:
                audit.close()
    with _step(console, "checking all that happened"):
        figures, violation = await asyncio.to_thread(_prove, folder)
    if violation is None and (silent := sum(end["unsettled"] for end in ends)):
        violation = Violation("silent", f"{silent} events got no verdict, though none was due more")
    report = _report(options, series, figures, violation, started_at_ms, lasted_s)
    report["resources"] = costs(
        empty,
        connected,
        quiet,
        devices=options.devices,
        accepted=report["totals"]["accepted"],
        lasted_s=lasted_s,
    )
    if ramp is not None:
        report |= {"ramp": _ramp_report(options, ramp)}
    await asyncio.to_thread(write, report, folder)
    return Outcome(report, exit_code(report), figures, violation)


@contextmanager
def _step(console: Console, doing: str) -> Iterator[None]:
    """Say on a terminal what takes its time."""
    if not console.is_terminal:
        yield
        return
    with console.status(f"{doing} …"):
        yield


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("history-*.jsonl"):
        old.unlink()


def _sampled(sample: Sample, series: Series, live: LiveView, processes: int) -> None:
    if series.add(sample) == processes:
        live.update(series.at(sample.second).entry())


async def _search(options: Options, series: Series, fleet: Fleet, start_s: float) -> Ramp:
    """Change the rate, step by step, until it is found or the time is over."""
    ramp = Ramp(options.rate_per_s)
    second = RAMP_WARM_UP_S
    while ramp.rate_per_s is not None and second + RAMP_STEP_S <= options.duration_s:
        fleet.tell("rate", rate=ramp.rate_per_s)
        last = second + RAMP_STEP_S
        # The first second of a step still has what the step before left behind.
        await asyncio.sleep(start_s + last + RAMP_TELL_S - time.monotonic())
        measured = series.total(range(second + 1, last))
        p99s_ms = [measured.ack.percentile(0.99), measured.delivery.percentile(0.99)]
        p99_ms = max((ms for ms in p99s_ms if ms is not None), default=None)
        wanted = ramp.rate_per_s * (RAMP_STEP_S - 1)
        settled = measured.accepted + measured.conflicts
        ramp.stepped(
            p99_ms,
            kept=p99_ms is not None
            and p99_ms <= options.p99_ms
            and settled >= RAMP_SETTLED * wanted - 3 * wanted**0.5,
        )
        second = last
    fleet.tell("finish")
    return ramp


def _ramp_report(options: Options, ramp: Ramp) -> Mapping[str, Any]:
    return {
        "p99Ms": options.p99_ms,
        "highestRate": ramp.highest,
        "steps": [
            {"rate": step.rate_per_s, "p99Ms": step.p99_ms, "kept": step.kept}
            for step in ramp.steps
        ],
    }


async def _look(target: Target) -> None:
    client = HttpClient(target)
    try:
        await client.call("GET", "/healthz")
    finally:
        client.close()


async def _users(
    options: Options, target: Target, run_id: str, secret: str
) -> Sequence[Sequence[Login]]:
    """The users of each process. One who is in several has a session in each."""
    shared = options.budgets < options.processes
    each = max(1, options.users if shared else options.users // options.processes)
    if secret:
        names = [f"{run_id[:8]}-{n}" for n in range(each * (1 if shared else options.processes))]
        everybody = [Login(name, secret=secret) for name in names]
        if shared:
            return [everybody] * options.processes
        return [everybody[n :: options.processes] for n in range(options.processes)]
    users: list[list[Login]] = [[] for _ in range(options.processes)]

    async def login(email: str, password: str, *, new: bool) -> Login:
        session = await sign_in(target, email, password, new=new)
        return Login(session.user_id, tuple(session), email=email, password=password)

    for number in range(each if shared else each * options.processes):
        email = f"load-{run_id}-{number}@example.com"
        password = token_urlsafe(16)
        first = await login(email, password, new=True)
        if shared:
            users[0].append(first)
            for others in users[1:]:
                others.append(await login(email, password, new=False))
        else:
            users[number % options.processes].append(first)
    return users


async def _accounts(
    plans: Sequence[Plan], logins: Mapping[str, Login], target: Target
) -> Mapping[str, Account]:
    """Of each budget, one who may read it. Where a token will end soon the user signs in anew: the
    session it belongs to is a generator's, which may have renewed it."""
    known: dict[str, Account] = {}
    accounts: dict[str, Account] = {}
    for plan in plans:
        for number in plan.founded:
            login = logins[plan.logins_of(number)[0].user_id]
            if login.user_id not in known:
                known[login.user_id] = await _account(login, target)
            accounts[plan.budget_id(number)] = known[login.user_id]
    return accounts


async def _account(login: Login, target: Target) -> Account:
    if login.secret:
        return SignedAccount(login.user_id, login.secret)
    session = Session(*login.session)
    if session.expires_at_ms / 1000 - time.time() < FRESH_S:
        session = await sign_in(target, login.email, login.password, new=False)
    return LocalAccount(target, session)


def _prove(folder: Path) -> tuple[Figures | None, Violation | None]:
    try:
        history = read(sorted(folder.glob("history-*.jsonl")))
        return check(history, history.logs, history.snapshots), None
    except BadHistory as error:
        return None, Violation("history", str(error))
    except Violation as violation:
        return None, violation


def _report(
    options: Options,
    series: Series,
    figures: Figures | None,
    violation: Violation | None,
    started_at_ms: float,
    lasted_s: float,
) -> dict[str, Any]:
    total = series.total()
    at_work = [s.second for s in series.samples if s.second < options.duration_s]
    work = series.total(at_work)
    cpu = sum(s.cpu for s in series.samples if s.second in set(at_work)) / max(1, len(at_work))
    lag_ms = work.lag.percentile(0.99) or 0.0
    because = invalid_because(options, cpu, lag_ms, work)
    answered = total.accepted + total.conflicts + total.rejected + total.retryable
    unknown = figures.unknown if figures else max(0, total.sent - answered)
    return {
        "version": 1,
        "scenario": options.scenario,
        "seed": options.seed,
        "options": options.to_json(),
        "startedAt": started_at_ms,
        "durationS": lasted_s,
        "machine": machine(),
        "commit": commit(),
        "targets": list(options.targets),
        "valid": not because,
        "invalidBecause": because,
        "generator": {"processes": options.processes, "cpuShare": cpu, "lagP99Ms": lag_ms},
        "totals": {name: getattr(total, name) for name in TOTALS} | {"unknown": unknown},
        "latency": {"ackMs": total.ack.summary(), "deliveryMs": total.delivery.summary()},
        "histograms": {"ackMs": total.ack.buckets(), "deliveryMs": total.delivery.buckets()},
        "series": [sample.entry() for sample in series.samples if sample.second <= lasted_s],
        "proof": {
            "passed": violation is None,
            "checked": vars(figures) if figures else {},
            "violation": None
            if violation is None
            else {"rule": violation.rule, "what": violation.what, "story": violation.story},
        },
        "resources": None,
    }


def invalid_because(options: Options, cpu: float, lag_ms: float, work: Sample) -> list[str]:
    """Why the figures say more about this script than about the hub."""
    if not SCENARIOS[options.scenario].judged:
        return []
    because = []
    if cpu > CPU_SHARE_MAX:
        because.append(
            f"the busiest generator process took {cpu:.0%} of a core: use more processes"
        )
    measured_ms = max(work.delivery.percentile(0.99) or 0.0, work.ack.percentile(0.99) or 0.0)
    if lag_ms > LAG_MS_MAX and lag_ms > measured_ms / 2:
        because.append(f"the generator was {lag_ms:.0f} ms late at p99: its machine was too busy")
    return because


def exit_code(report: Mapping[str, Any]) -> int:
    if not report["proof"]["passed"]:
        return VIOLATED
    return PROVEN if report["valid"] else INVALID


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "cores": os.cpu_count() or 1,
        "cpu": cpu,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def commit() -> str | None:
    """Of this script's own checkout, where it is one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
