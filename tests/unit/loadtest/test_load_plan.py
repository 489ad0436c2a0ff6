"""A seed is a workload, in however many processes; and the parts of all processes are the whole."""

from collections import Counter
from functools import partial
from random import Random
from typing import Any

import orjson
import pytest

from loadtest.account import SignedAccount
from loadtest.device import Device
from loadtest.inbox import Inbox
from loadtest.plan import Login, Options, Plan
from loadtest.scenarios import SCENARIOS
from loadtest.target import Target
from loadtest.workload import EVERYDAY, Arrivals, change

RUN_ID = "00000000-0000-4000-8000-000000000001"


def plans(processes: int, **changes: Any) -> list[Plan]:
    options = Options(
        **{
            "scenario": "mixed",
            "targets": ["http://a:1", "http://b:2"],
            "devices": 23,
            "budgets": 7,
            "rate_per_s": 10.0,
            "duration_s": 5.0,
            "processes": processes,
            "users": 4,
            "seed": 7,
            "p99_ms": 100.0,
            **changes,
        }
    )
    logins = [Login("u1"), Login("u2")]
    made = [Plan(options, RUN_ID, n, 0.0, logins, f"h{n}") for n in range(processes)]
    return [Plan.from_json(orjson.loads(orjson.dumps(plan.to_json()))) for plan in made]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("budgets", [1, 2, 7, 23])
def test_every_device_and_budget_is_some_process_s(processes: int, budgets: int) -> None:
    made = plans(processes, budgets=budgets)
    assert Counter(n for plan in made for n in plan.devices) == Counter(range(23))
    assert Counter(n for plan in made for n in plan.founded) == Counter(range(budgets))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_device_follows_budgets_of_one_user_that_its_process_has(processes: int) -> None:
    for plan in plans(processes, budgets=14):
        for device in plan.devices:
            budgets = plan.budgets_of(device)
            assert set(budgets) <= set(plan.founded)
            user = plan.login_of(device)
            assert all(user in plan.logins_of(budget) for budget in budgets)


def test_the_devices_of_a_budget_meet_on_all_targets() -> None:
    [plan] = plans(1)
    for budget in range(7):
        targets = {plan.target_of(n) for n in plan.devices if plan.budgets_of(n)[0] == budget}
        assert len(targets) == 2


def test_what_a_device_does_depends_on_its_replica_and_the_seed_only() -> None:
    device = Device(
        "phone",
        Target.parse("http://h:1"),
        SignedAccount("ada", "secret"),
        new_id=lambda: "id",
        rng=Random(0),
    )
    inbox = Inbox("b")
    kinds = Counter[str]()
    for seed in range(300):
        first, again = (
            change(
                device, inbox, EVERYDAY, Random(seed), event_id=e, new_id=partial(str, e), when_ms=0
            )
            for e in ("x", "y")
        )
        assert {**first, "eventId": ""} | {"recordId": ""} == {
            **again, "eventId": "", "recordId": "",
        }  # fmt: skip
        kinds[first["eventType"]] += 1
    # An empty replica shows nothing that could be edited.
    assert kinds.keys() == {"expense.add", "category.add"}


def arrivals(numbers: range, rate_per_s: float, until_s: float) -> list[tuple[float, int]]:
    made = Arrivals(numbers, 7, 20, rate_per_s)
    events = []
    while (due_s := made.due_s()) < until_s:
        events.append((due_s, made.pop()))
    return events


def test_who_does_something_when_does_not_depend_on_the_processes() -> None:
    apart = [*arrivals(range(0, 20, 2), 50, 10), *arrivals(range(1, 20, 2), 50, 10)]
    assert sorted(apart) == arrivals(range(20), 50, 10)
    assert len(apart) == pytest.approx(500, abs=100)


def test_a_change_of_rate_keeps_the_order_of_what_happens() -> None:
    changed = Arrivals(range(20), 7, 20, 10)
    events = []
    for _ in range(50):
        events.append(changed.pop())
    changed.set_rate(1000, 5.0)
    assert changed.due_s() <= 5.0 + 1.0
    events += [changed.pop() for _ in range(50)]
    assert events == [who for _, who in arrivals(range(20), 10, 100)][:100]


def test_at_rate_0_nothing_is_due() -> None:
    silent = Arrivals(range(3), 7, 3, 10)
    while silent.due_s() < 1.0:
        silent.pop()
    silent.set_rate(0, 1.0)
    assert silent.due_s() == float("inf")
    silent.set_rate(10, 100.0)
    assert 100 <= silent.due_s() < 110


def test_every_scenario_has_what_it_needs() -> None:
    asked = "steady ramp hot-budget offline storm slow-readers legacy mixed soak smoke"
    assert SCENARIOS.keys() == set(asked.split())
    for scenario in SCENARIOS.values():
        assert scenario.devices >= scenario.budgets
        assert sum(scenario.mix.values()) == 100
