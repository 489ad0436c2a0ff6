"""P7: whatever the bus has lost, the sweeper finds, by either of its ways."""

from collections.abc import Mapping, Sequence

import pytest

from api.http.verdicts import submitted
from hub.budget.events import Joining, parse_batch
from hub.budget.records import BudgetId, UserId
from hub.budget.scalars import INTEGER_MAX
from hub.feed import sweeper as sweeper_module
from hub.hub import Hub
from hub.limits import Rates
from hub.ports import EventLog, Page
from hub.service import Service
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.database import Database
from tests.cluster import until
from tests.device import budget_create, expense_add, new_id
from tests.patience import PATIENT


class Counting:
    """The log, with the names of what the sweeper asked."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.transaction = log.transaction
        self.asked: list[str] = []

    async def page(
        self, budget_id: BudgetId, user_id: UserId | None, after: int, up_to: int, limit: int
    ) -> Page | None:
        return await self._log.page(budget_id, user_id, after, up_to, limit)

    async def behind(self, positions: Mapping[BudgetId, int]) -> dict[BudgetId, int]:
        self.asked.append("behind")
        return await self._log.behind(positions)

    async def recent(self, seconds: float) -> dict[BudgetId, int]:
        self.asked.append("recent")
        return await self._log.recent(seconds)


class Reader:
    """A follower that counts."""

    attends = False
    full = False

    def __init__(self) -> None:
        self.got = b""
        self.head = -1

    def write(self, data: bytes) -> None:
        self.got += data

    def joined(self, key: int, head: int) -> None:
        self.head = head

    def refused(self, code: object) -> None:
        raise AssertionError(code)

    def ended(self, code: object) -> None:
        raise AssertionError(code)


def hub_on(log: EventLog) -> Hub:
    return Hub(
        log,
        "log",
        None,
        now_ms=lambda: 1,
        jitter=lambda: 0.5,
        rates=Rates(1000, 1000),
        timeouts=PATIENT,
    )


@pytest.mark.parametrize(("few", "asks"), [(5_000, ["behind"]), (0, ["recent", "behind"])])
async def test_p7_what_the_bus_lost_is_found(
    database: Database, monkeypatch: pytest.MonkeyPatch, few: int, asks: Sequence[str]
) -> None:
    monkeypatch.setattr(sweeper_module, "COMPARED_ALL_MAX", few)
    log = Counting(PostgresLog(database))
    here, elsewhere = hub_on(log), hub_on(PostgresLog(database))  # and no bus between them
    budget_id = new_id()
    await submitted(elsewhere, "ann", parse_batch([budget_create(budget_id)], 1), "stop")
    reader = Reader()
    here.feeds.subscribe("ann", budget_id, 1, reader)
    await until(lambda: reader.head == 1, 30)
    here.spawn(Service("sweeper", 0.01, here.feeds.sweeper.run_once).run())
    await submitted(elsewhere, "ann", parse_batch([expense_add(budget_id)], 1), "stop")
    join = Joining(new_id(), budget_id, "ben", 1, participants_max=INTEGER_MAX)
    await submitted(elsewhere, "ben", [join], "stop")
    await until(lambda: b'"toSequence":3' in reader.got, 30)
    assert reader.got.count(b'"sequence":') == 2
    assert log.asked[: len(asks)] == list(asks)
    await here.close()
    await elsewhere.close()
