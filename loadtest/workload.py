"""What the people of a fleet do: which device changes what, and when.

Pure. One seed gives one workload, in however many processes it runs: every device has random
numbers of its own. Ids are new in every run, so that one hub can take many runs of one seed.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from loadtest.device import Device
    from loadtest.inbox import Inbox
    from loadtest.outbox import Event
    from loadtest.replica import Record

Mix: TypeAlias = Mapping[str, int]  # event type → how often, in percent

EVERYDAY: Mix = {
    "expense.add": 40,
    "expense.edit": 38,
    "category.add": 8,
    "category.edit": 5,
    "budget.edit": 5,
    "expense.delete": 3,
    "category.delete": 1,
}
# Edits of few records, by everybody.
CONTESTED: Mix = {"expense.edit": 70, "expense.add": 10, "budget.edit": 15, "expense.delete": 5}

RECENT = 50  # records that people still look at: few, so that edits meet
_CURRENCIES = ("EUR", "USD", "CHF", "JPY", None)


class Arrivals:
    """When each of some devices does its next thing: independent Poisson processes, together
    `rate_per_s`.

    Every device draws its moments on a clock that runs with the rate, so that the rate may change
    at any time, and the order of what happens does not."""

    def __init__(self, numbers: Sequence[int], seed: int, devices: int, rate_per_s: float) -> None:
        self._random = {number: Random(f"{seed}/arrivals/{number}") for number in numbers}
        self._devices = devices
        self._rate_per_s = rate_per_s
        self._since_s = 0.0
        self._since = 0.0  # of the work's clock, which makes one step per event of the whole fleet
        self._heap = [(self._gap(number), number) for number in numbers]
        heapq.heapify(self._heap)

    def __bool__(self) -> bool:
        return bool(self._heap)

    def due_s(self) -> float:
        """When the next event is due, in seconds from the start; for ever away at rate 0."""
        if not self._heap or self._rate_per_s <= 0:
            return float("inf")
        return self._since_s + (self._heap[0][0] - self._since) / self._rate_per_s

    def pop(self) -> int:
        """Whose event it is; it is taken."""
        at, number = self._heap[0]
        heapq.heapreplace(self._heap, (at + self._gap(number), number))
        return number

    def set_rate(self, rate_per_s: float, now_s: float) -> None:
        """From `now_s` on, in seconds from the start."""
        self._since += max(0.0, now_s - self._since_s) * self._rate_per_s
        self._since_s = now_s
        self._rate_per_s = rate_per_s

    def _gap(self, number: int) -> float:
        return self._random[number].expovariate(1 / self._devices)


def change(
    device: "Device",
    inbox: "Inbox",
    mix: Mix,
    rng: Random,
    *,
    event_id: str,
    new_id: Callable[[], str],
    when_ms: int,
    recent: int = RECENT,
    note_chars: int = 0,
) -> "Event":
    """An event that fits what the device's replica shows. Where there is nothing to change, it adds
    something."""
    kind = rng.choices(list(mix), list(mix.values()))[0]
    records, verb = kind.split(".")
    replica = inbox.replica
    fields: dict[str, object] = {}
    if records == "budget":
        if ("budget", replica.budget_id) not in replica.records:
            records, verb = "expense", "add"  # nothing has arrived yet
        else:
            fields = {"version": device.version_of(inbox, "budget", replica.budget_id)}
            fields |= _one_of(_settings(rng), rng)
    if records != "budget":
        known = _recent(inbox, records, recent)
        if verb != "add" and not known:
            verb = "add"
        made = _category(rng) if records == "category" else _expense(inbox, rng, recent)
        if note_chars and "note" in made:
            made["note"] = "🥞" * note_chars
        if verb == "add":
            fields = {"recordId": new_id(), **made}
        else:
            record_id = rng.choice(known)["id"]
            version = device.version_of(inbox, records, record_id)
            fields = {"recordId": record_id, "version": version}
            if verb == "edit":
                fields |= _one_of(made, rng)
    return {
        "eventId": event_id,
        "eventType": f"{records}.{verb}",
        "budgetId": replica.budget_id,
        "when": when_ms,
        **fields,
    }


def _settings(rng: Random) -> Mapping[str, object]:
    return {
        "title": f"Household {rng.randrange(1000)}",
        "details": rng.choice((None, "groceries, rent and the dog")),
        "currency": rng.choice(_CURRENCIES),
    }


def _category(rng: Random) -> dict[str, object]:
    return {"name": f"Category {rng.randrange(1000)}", "allocate": _amount(rng)}


def _expense(inbox: "Inbox", rng: Random, recent: int) -> dict[str, object]:
    categories = [None, *(category["id"] for category in _recent(inbox, "category", recent))]
    return {
        "categoryId": rng.choice(categories),
        "amount": _amount(rng),
        "date": f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        "note": rng.choice((None, "weekly shop", "Brot und Käse")),
    }


def _recent(inbox: "Inbox", kind: str, recent: int) -> list["Record"]:
    # The dict keeps the order of changes. Looking at the last ones only costs the same however
    # large the budget has become.
    last = islice(reversed(inbox.replica.records.items()), recent)
    return [record for (record_kind, _), record in last if record_kind == kind]


def _one_of(fields: Mapping[str, object], rng: Random) -> dict[str, object]:
    field = rng.choice(list(fields))
    return {field: fields[field]}


def _amount(rng: Random) -> str:
    return f"{rng.randrange(1000)}.{rng.randrange(100):02}"
