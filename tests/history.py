"""Random histories: an author who writes events about one budget, most of them acceptable."""

import random
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from hub.budget.events import Joining, Leaving, Submitted, parse_batch
from hub.budget.verdicts import Verdict
from hub.committer import Committer
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.database import Database
from tests.patience import PATIENT
from tests.racing import ask

BUDGET, CATEGORY, EXPENSE = "budget", "category", "expense"

# What JSON, SQL, terminals and line-wise readers are known to trip over.
TEXTS = (
    "Food",
    "Café \N{GREEN APPLE}\N{ZERO WIDTH JOINER}\U0010ffff",
    'quotes " \' \\ \\n \\u0041 {"a":[1]}',
    "lines\n\r\t\x0b\x0c\x1c\x1f\x7f\x85\u2028\u2029\ufeff end",
    "[red]markup[/] %s {0} $1",
    "\u0301combining \u202eright to left",
)


class Author:
    """Knows the versions of what it wrote, except where another event of its own changed them too:
    the expenses of a deleted category. `chance` decides everything."""

    def __init__(self, budget_id: str, chance: random.Random) -> None:
        self._budget_id = budget_id
        self._chance = chance
        self._versions: dict[tuple[str, str], int] = {}  # by kind and id

    def create(self) -> dict[str, Any]:
        """The first event."""
        return self._event("budget.create", title=self._text(), details=self._text())

    def change(self) -> dict[str, Any]:
        """Any other event, but for the deletion of the budget."""
        chance = self._chance
        kind = chance.choice((BUDGET, CATEGORY, CATEGORY, EXPENSE, EXPENSE, EXPENSE))
        verb = "edit" if kind == BUDGET else chance.choice(("add", "add", "edit", "edit", "delete"))
        known = [record_id for of, record_id in self._versions if of == kind]
        if verb == "add" or not known:
            fields = self._fields(kind)
            return self._event(f"{kind}.add", recordId=self._id(), **fields)
        record_id = chance.choice(known)
        named = self._fields(kind) if verb == "edit" else {}
        fields = {name: value for name, value in named.items() if chance.random() < 0.5}
        version = self._versions[kind, record_id]
        return self._event(f"{kind}.{verb}", recordId=record_id, version=version, **fields)

    def delete(self) -> dict[str, Any]:
        """The last event there can be."""
        return self._event("budget.delete", version=self._versions[BUDGET, self._budget_id])

    def accepted(self, event: dict[str, Any], version: int) -> None:
        """Take note of what an event of this author became."""
        kind = event["eventType"].partition(".")[0]
        self._versions[kind, event.get("recordId", self._budget_id)] = version

    def _event(self, event_type: str, **fields: Any) -> dict[str, Any]:
        return {
            "eventId": self._id(),
            "eventType": event_type,
            "budgetId": self._budget_id,
            "when": self._chance.randrange(2**53),
            **fields,
        }

    def _fields(self, kind: str) -> dict[str, Any]:
        chance = self._chance
        if kind == BUDGET:
            currency = chance.choice((None, "EUR", "JPY"))
            return {"title": self._text(), "details": self._text_or_none(), "currency": currency}
        if kind == CATEGORY:
            return {"name": self._text(), "allocate": self._money()}
        categories = [record_id for of, record_id in self._versions if of == CATEGORY]
        return {
            "categoryId": chance.choice([None, *categories]),
            "amount": self._money(),
            "date": f"{chance.randint(1, 9999):04}-{chance.randint(1, 12):02}-28",
            "note": self._text_or_none(),
        }

    def _id(self) -> str:
        return str(UUID(int=self._chance.getrandbits(128)))

    def _text(self) -> str:
        return self._chance.choice(TEXTS)

    def _text_or_none(self) -> str | None:
        return self._chance.choice((None, "", *TEXTS))

    def _money(self) -> str:
        return f"{self._chance.randrange(10**10)}.{self._chance.randrange(100):02}"


async def submit(database: Database, actor: str, events: Sequence[dict[str, Any]]) -> list[Verdict]:
    """What becomes of the events, one by one, at the door they all go through."""
    return await decided(database, actor, parse_batch(list(events), len(events)))


async def decided(
    database: Database, actor: str, events: Sequence[Submitted], now_ms: int = 1_700_000_000_123
) -> list[Verdict]:
    committer = Committer(
        PostgresLog(database),
        lambda budget_id, rows, written_at_ms, origins: None,
        now_ms=lambda: now_ms,
        jitter=lambda: 0.5,
        timeouts=PATIENT,
    )
    verdicts = await ask(committer, actor, events, "each")
    await committer.drain()
    return verdicts


async def write_history(
    database: Database, budget_id: str, seed: int, *, delete: bool = False
) -> list[dict[str, Any]]:
    """Make a budget and change it some hundred times; the events that were accepted, in order."""
    author = Author(budget_id, random.Random(seed))
    accepted: list[dict[str, Any]] = []
    batch = [author.create()]
    for number in range(21):
        for event, verdict in zip(batch, await submit(database, "ann", batch), strict=True):
            if verdict.version is not None:
                author.accepted(event, verdict.version)
                accepted.append(event)
        batch = [author.delete()] if delete and number == 19 else []
        batch += [author.change() for _ in range(10)]
    return accepted


async def write_membership(
    database: Database, budget_id: str, event_type: str, user_id: str, *, at_ms: int
) -> None:
    """The user joins, or leaves for good: what they own passes on."""
    ids = str(uuid4()), budget_id, user_id, at_ms
    joins = event_type == "participant.add"
    event = Joining(*ids, participants_max=10) if joins else Leaving(*ids, closes_account=True)
    [verdict] = await decided(database, user_id, [event], at_ms)
    assert verdict.accepted, verdict
