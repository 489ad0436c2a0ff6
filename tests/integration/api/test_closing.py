"""An account that closes, and what is left of it: nothing that is personal, and every log whole."""

import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from api.auth.closed_accounts import ClosedAccountWatch
from api.auth.closing import AccountClosing
from api.http.verdicts import submitted
from hub.budget.events import Joining, parse_batch
from hub.errors import Code, HubError
from hub.hub import Hub
from hub.limits import Rates
from hub.ports import Principal
from storage.care.verify import verify
from storage.objects.disk import DiskPhotos
from storage.objects.photos import Photos
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.database import Database
from storage.postgres.people.closed_accounts import ClosedAccounts
from storage.postgres.people.logins import Logins
from storage.postgres.people.profiles import Profiles
from tests.device import budget_create, category_add, new_id
from tests.patience import PATIENT

SECRET = b"s" * 32
LATE_S = 300.0  # longer than a test can take


class Clock:
    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class World:
    """A hub's accounts on one database. A closing may be made to fail."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.clock = Clock()
        self.database = database
        self.hub = Hub(
            PostgresLog(database),
            "log",
            None,
            now_ms=self.now_ms,
            jitter=lambda: 0.5,
            rates=Rates(500, 500),
            timeouts=PATIENT,
        )
        self.profiles = Profiles(database)
        self.logins = Logins(database)
        self.accounts = ClosedAccounts(database)
        self.closed = ClosedAccountWatch(self.accounts, self.hub)
        store = DiskPhotos(folder, [SECRET], base_url="/photos", now=self.clock)
        self.closing = AccountClosing(
            self.hub,
            self.accounts,
            self.closed,
            self.profiles,
            Photos(database, store, now=self.clock, new_id=new_id),
            now_ms=self.now_ms,
            new_id=new_id,
            timeouts=replace(PATIENT, late_s=LATE_S),
        )

    def now_ms(self) -> int:
        return int(self.clock() * 1000)

    def signed_in(self, user_id: str, *, ago_s: float = 1) -> Principal:
        issued_at_ms = self.now_ms() - int(ago_s * 1000)
        return Principal(user_id, issued_at_ms + 900_000, issued_at_ms, math.inf)

    async def budget(self, user_id: str, *others: str) -> str:
        """One of the user's, in which the others take part too."""
        budget_id = new_id()
        events = [budget_create(budget_id), category_add(budget_id)]
        verdicts = await submitted(self.hub, user_id, parse_batch(events, 2), "stop")
        assert [verdict.status for verdict in verdicts] == ["accepted"] * 2
        for other in others:
            await self.join(budget_id, other)
        return budget_id

    async def join(self, budget_id: str, user_id: str) -> None:
        event = Joining(new_id(), budget_id, user_id, self.now_ms(), participants_max=10)
        [verdict] = await submitted(self.hub, user_id, [event], "stop")
        assert verdict.status == "accepted"

    async def taking_part(self, budget_id: str) -> list[str]:
        async with self.database.connection("rest") as connection:
            rows = await connection.fetch(
                "SELECT user_id FROM participants WHERE budget_id = $1 AND active ORDER BY number",
                budget_id,
            )
        return [row[0] for row in rows]

    async def owner(self, budget_id: str) -> str:
        async with self.database.connection("rest") as connection:
            owner: str = await connection.fetchval(
                "SELECT owner_id FROM budgets WHERE id = $1", budget_id
            )
        return owner

    async def everything(self) -> str:
        """All rows of all tables, as text."""
        whole = BytesIO()
        async with self.database.connection("rest") as connection:
            tables = await connection.fetch(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'"
            )
            for [table] in tables:
                await connection.copy_from_table(table, output=whole)
        return whole.getvalue().decode()


class Late:
    """A session that does nothing."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.signed_out = 0

    def sign_out(self) -> None:
        self.signed_out += 1

    def go_away(self, reconnect_after_ms: int) -> None: ...

    def leave(self) -> None: ...


@pytest.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    world = World(database, tmp_path / "photos")
    yield world
    await world.hub.close()


async def test_nothing_personal_is_left_and_every_log_is_whole(world: World) -> None:
    """Budgets of one's own, of others, one nobody else is in, and one that was deleted."""
    now = datetime.now(UTC)
    await world.logins.create("ann", "ann@example.org", "$argon2id$secret", "Annabel", "Lee-Smith")
    await world.logins.start_family(new_id(), "ann", now=now, expires_at=now)
    own = await world.budget("ann", "cid", "ben")
    alone = await world.budget("ann")
    bens = await world.budget("ben", "ann")
    await world.closing.close(world.signed_in("ann"))
    everything = await world.everything()
    for personal in ("example.org", "Annabel", "Lee-Smith", "argon2id"):
        assert personal not in everything
    assert "ann" in everything  # by the id alone shared data names its users
    assert await world.taking_part(own) == ["cid", "ben"]
    assert await world.owner(own) == "cid"
    assert await world.taking_part(bens) == ["ben"]
    assert await world.taking_part(alone) == []
    await world.join(alone, "dot")  # by a link that somebody has
    assert await world.owner(alone) == "dot"
    assert [str(found) async for found in verify(world.database, None, lambda _: None)] == []


async def test_a_token_counts_until_its_account_is_closed(world: World) -> None:
    before, after = world.signed_in("ann", ago_s=60), world.signed_in("ann", ago_s=-600)
    assert not world.closed.refuses(before)
    await world.closing.close(before)
    assert world.closed.refuses(before)
    assert not world.closed.refuses(after)
    assert not world.closed.refuses(world.signed_in("ben", ago_s=60))


async def test_other_nodes_learn_of_it_and_so_do_those_that_start_later(world: World) -> None:
    other = ClosedAccountWatch(world.accounts, world.hub)
    before = world.signed_in("ann")
    await other.look()
    await world.closing.close(before)
    await world.closing.close(world.signed_in("ben"))
    for node in (other, ClosedAccountWatch(world.accounts, world.hub)):
        await node.look()
        assert node.refuses(before)
        assert not node.refuses(world.signed_in("cid"))


async def test_who_was_on_his_way_in_at_that_moment_is_signed_out(world: World) -> None:
    """The token counted when it was looked at; the account was closed before the session began."""
    late = Late(world.signed_in("ann"))
    await world.closing.close(late.principal)
    world.hub.attach(late)
    await world.closed.look()
    assert late.signed_out == 1
    later = Late(world.signed_in("ann", ago_s=-600))
    world.hub.attach(later)
    await world.closed.look()
    assert later.signed_out == 0


async def test_more_are_learnt_of_than_one_answer_holds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("storage.postgres.people.closed_accounts", "api.auth.closed_accounts"):
        monkeypatch.setattr(f"{module}.ROWS_MAX", 3)
    users = [world.signed_in(f"user-{n}") for n in range(10)]
    for user in users:
        await world.closing.close(user)
    other = ClosedAccountWatch(world.accounts, world.hub)
    await other.look()
    assert all(other.refuses(user) for user in users)


async def test_p8_what_is_known_is_bounded(world: World) -> None:
    users = [world.signed_in(f"user-{n}") for n in range(10)]
    for user in users:
        await world.closing.close(user)
    watch = ClosedAccountWatch(world.accounts, world.hub, known_max=4)
    await watch.look()
    assert [watch.refuses(user) for user in users] == [False] * 6 + [True] * 4


async def test_what_a_failure_interrupts_the_second_pass_finishes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client need not ask again."""
    budget_id, who = await world.budget("ann", "ben"), world.signed_in("ann")

    def busy(*_: Any) -> None:
        raise HubError(Code.BUSY)

    with monkeypatch.context() as broken:
        broken.setattr(world.hub, "submit", busy)
        with pytest.raises(HubError, match="BUSY"):
            await world.closing.close(who)
    assert world.closed.refuses(who)
    assert await world.taking_part(budget_id) == ["ann", "ben"]
    await world.closing.finish()  # too early: it may be under way still
    assert await world.taking_part(budget_id) == ["ann", "ben"]
    world.clock.ahead_s = 2 * LATE_S + 1
    await world.closing.finish()
    assert await world.taking_part(budget_id) == ["ben"]
    assert await world.owner(budget_id) == "ben"
    assert await world.accounts.uncleared(datetime(9999, 1, 1, tzinfo=UTC)) == []


async def test_one_that_cannot_be_finished_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user_id in ("ann", "ben"):
        await world.closing.close(world.signed_in(user_id))
        await world.budget(user_id, "cid")  # on another node, at that moment
    world.clock.ahead_s = 2 * LATE_S + 1
    submit = world.hub.submit

    def busy(actor: str, *how: Any) -> Any:
        if actor == "ann":
            raise HubError(Code.BUSY)
        return submit(actor, *how)

    monkeypatch.setattr(world.hub, "submit", busy)
    with pytest.raises(HubError, match="BUSY"):
        await world.closing.finish()
    left = await world.accounts.uncleared(datetime(9999, 1, 1, tzinfo=UTC))
    assert [account.user_id for account in left] == ["ann"]


async def test_what_another_node_let_it_do_meanwhile_goes_too(world: World) -> None:
    """And what a new account of the same id does later stays: Firebase knows the user still."""
    await world.closing.close(world.signed_in("ann"))
    during = await world.budget("ann", "ben")
    await world.profiles.write("ann", {"first_name": "Ann"})
    world.clock.ahead_s = 2 * LATE_S + 1
    later = await world.budget("ann", "ben")
    await world.closing.finish()
    assert await world.taking_part(during) == ["ben"]
    assert await world.taking_part(later) == ["ann", "ben"]
    with pytest.raises(HubError, match="USER_NOT_FOUND"):
        await world.profiles.read("ann")


async def test_an_old_token_does_not_close_the_account_again(world: World) -> None:
    """Whoever came back is not thrown out by a repeat that took its time."""
    old = world.signed_in("ann", ago_s=1200)
    await world.closing.close(old)
    async with world.database.connection("rest") as connection:
        await connection.execute(
            "UPDATE closed_accounts SET closed_at = closed_at - interval '10 minutes'"
        )
    budget_id = await world.budget("ann")
    await world.closing.close(old)
    assert await world.taking_part(budget_id) == ["ann"]
    await world.closing.close(world.signed_in("ann", ago_s=1))
    assert await world.taking_part(budget_id) == []
