"""The reference client, `loadtest.device`, on real hubs: it comes back from everything, and what it
was told to do is done once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from loadtest.account import SignedAccount
from loadtest.device import Device, Witness
from loadtest.inbox import Inbox
from loadtest.outbox import Event
from loadtest.replica import Replica
from loadtest.target import Target
from loadtest.wire import Decode, Lost, Transport
from storage.embedded.redis import EmbeddedRedis
from tests.cluster import AUTH_SECRET, Cluster, Node, until
from tests.crowd import patched
from tests.device import budget_create, budget_edit, expense_add, expense_edit, new_id

WAIT_S = 60.0


class Kept(Witness):
    """Keeps what a test asks for."""

    def __init__(self) -> None:
        self.verdicts: list[Mapping[str, Any]] = []
        self.sent: list[str] = []
        self.ends: list[Lost] = []
        self.broken: list[str] = []
        self.troubles: list[str] = []
        self.keys: list[tuple[int, bool]] = []

    def submitted(self, user_id: str, event: Event, at_s: float) -> None:
        self.sent.append(event["eventId"])

    def answered(self, device: Device, verdict: Mapping[str, Any], at_s: float) -> None:
        self.verdicts.append(verdict)

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
        self.keys.append((key, snapshot))

    def disconnected(self, device: Device, lost: Lost) -> None:
        self.ends.append(lost)

    def broke(self, observer: str, how: str) -> None:
        self.broken.append(how)

    def troubled(self, device: Device, trouble: str) -> None:
        self.troubles.append(trouble)


class Phone:
    """A device with its witness, on one budget."""

    def __init__(self, device: Device, witness: Kept, budget_id: str) -> None:
        self.device = device
        self.witness = witness
        self.inbox: Inbox = device.follow(budget_id)

    def has(self, sequence: int) -> Callable[[], bool]:
        return lambda: self.device.up_to_date and self.inbox.cursor >= sequence

    @property
    def expenses(self) -> dict[str, Any]:
        records = self.inbox.replica.records.items()
        return {record_id: record for (kind, record_id), record in records if kind == "expense"}


@asynccontextmanager
async def phone(
    node: Node,
    budget_id: str,
    user: str = "ada",
    *,
    transport: Transport = Transport.SOCKET,
    account: SignedAccount | None = None,
    patience_s: float = 40.0,
    answer_s: float = 20.0,
    decode: Decode = orjson.loads,
) -> AsyncIterator[Phone]:
    witness = Kept()
    device = Device(
        "phone",
        Target.parse(node.url),
        account or SignedAccount(user, AUTH_SECRET),
        new_id=new_id,
        rng=Random(7),
        transport=transport,
        witness=witness,
        patience_s=patience_s,
        answer_s=answer_s,
        decode=decode,
    )
    made = Phone(device, witness, budget_id)
    running = asyncio.create_task(device.run())
    try:
        yield made
        assert witness.broken == []
    finally:
        device.stop()
        await running


async def edit_offline(away: Phone, record: str, *changes: Mapping[str, Any]) -> None:
    device = away.device
    device.go_offline()
    await until(lambda: not device.connected, WAIT_S)
    for change in changes:
        version = device.version_of(away.inbox, "expense", record)
        device.submit(expense_edit(away.inbox.budget_id, record, version, **change))


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.fixture
async def budget_id(node: Node) -> str:
    budget_id = new_id()
    await post(node, "ada", [budget_create(budget_id)])
    return budget_id


async def post(node: Node, user: str, events: Sequence[Mapping[str, Any]]) -> None:
    async with node.rest(signed_token(user)) as rest:
        answer = await rest.post("/events", json={"events": list(events)})
        assert [v["status"] for v in answer.json()["events"]] == ["accepted"] * len(events)


def signed_token(user: str) -> str:
    """Made as the load script makes them from the hub's secret."""
    return SignedAccount(user, AUTH_SECRET).signed()


@pytest.mark.parametrize("transport", list(Transport))
async def test_p6_a_device_converges_over_every_transport(
    node: Node, budget_id: str, transport: Transport
) -> None:
    async with (
        phone(node, budget_id) as other,
        phone(node, budget_id, transport=transport) as device,
    ):
        await until(device.has(1), WAIT_S)
        mine = [expense_add(budget_id) for _ in range(30)]  # more than one request takes
        for event in mine:
            device.device.submit(event)
        await until(other.has(31), WAIT_S)
        theirs = expense_add(budget_id)
        other.device.submit(theirs)
        await until(device.has(32), WAIT_S)
        assert device.expenses.keys() == {e["recordId"] for e in (*mine, theirs)}
        assert device.inbox.replica.difference(other.inbox.replica) is None


@pytest.mark.parametrize("transport", list(Transport))
async def test_p3_what_is_cut_off_is_sent_again_and_counts_once(
    node: Node, budget_id: str, transport: Transport
) -> None:
    async with phone(node, budget_id, transport=transport) as device:
        await until(device.has(1), WAIT_S)
        events = [expense_add(budget_id) for _ in range(5)]
        for event in events:
            device.device.submit(event)
            await asyncio.sleep(0)
            device.device.drop()
            await until(lambda: not device.device.connected, WAIT_S)
        await until(device.has(6), WAIT_S)
        assert list(device.expenses) == [event["recordId"] for event in events]
        assert len(device.witness.sent) > len(events)


async def test_edits_made_offline_meet_and_both_arrive(node: Node, budget_id: str) -> None:
    """The second to come back conflicts, and makes its changes again upon the other's."""
    expense = expense_add(budget_id)
    record = expense["recordId"]
    await post(node, "ada", [expense])
    async with phone(node, budget_id) as first, phone(node, budget_id) as second:
        await until(first.has(2), WAIT_S)
        await until(second.has(2), WAIT_S)
        await edit_offline(first, record, {"amount": "1.00"}, {"note": "first"})
        await edit_offline(second, record, {"date": "2026-02-02"}, {"categoryId": None})
        first.device.go_online()
        await until(first.has(4), WAIT_S)
        second.device.go_online()
        await until(second.has(6), WAIT_S)
        await until(first.has(6), WAIT_S)
        merged = first.expenses[record]
        assert (merged["amount"], merged["note"], merged["date"], merged["version"]) == (
            "1.00", "first", "2026-02-02", 5,
        )  # fmt: skip
        assert [v["status"] for v in second.witness.verdicts].count("conflict") == 1


async def test_a_rejected_event_is_quarantined_and_the_next_ones_go(
    node: Node, budget_id: str
) -> None:
    async with phone(node, budget_id) as device:
        bad = expense_edit(budget_id, new_id(), 1, amount="1")
        good = expense_add(budget_id)
        device.device.submit(bad)
        device.device.submit(good)
        await until(device.has(2), WAIT_S)
        [quarantined] = device.device.outbox.quarantine
        assert (quarantined.event, quarantined.code) == (bad, "EXPENSE_NOT_EXISTS")


async def test_a_malformed_event_does_not_take_its_batch_along(node: Node, budget_id: str) -> None:
    async with phone(node, budget_id) as device:
        device.device.go_offline()
        good = [expense_add(budget_id), expense_add(budget_id)]
        for event in (good[0], {**expense_add(budget_id), "eventId": "no uuid"}, good[1]):
            device.device.submit(event)
        device.device.go_online()
        await until(device.has(3), WAIT_S)
        assert [q.event["eventId"] for q in device.device.outbox.quarantine] == ["no uuid"]
        assert list(device.expenses) == [event["recordId"] for event in good]


@pytest.mark.parametrize("transport", list(Transport))
async def test_a_cursor_ahead_of_the_budget_takes_a_snapshot(
    node: Node, budget_id: str, transport: Transport
) -> None:
    await post(node, "ada", [expense_add(budget_id)])
    async with phone(node, budget_id, transport=transport) as device:
        await until(device.has(2), WAIT_S)
        device.device.go_offline()
        await until(lambda: not device.device.connected, WAIT_S)
        device.inbox.replica.sequence = 1000  # as after a restore that lost events
        device.device.go_online()
        await until(lambda: device.has(2)() and device.inbox.cursor == 2, WAIT_S)
        assert device.witness.keys[-1] == (2, True)
        await post(node, "ada", [expense_add(budget_id)])
        await until(device.has(3), WAIT_S)


@pytest.mark.parametrize("transport", list(Transport))
async def test_another_history_takes_a_snapshot(
    node: Node, budget_id: str, transport: Transport
) -> None:
    async with phone(node, budget_id, transport=transport) as device:
        await until(device.has(1), WAIT_S)
        device.inbox.log_id = "before the restore"
        device.device.drop()
        await until(lambda: len(device.witness.keys) == 3 and device.has(1)(), WAIT_S)
        assert device.witness.keys == [(0, False), (1, False), (1, True)]
        assert device.inbox.log_id != "before the restore"


async def test_a_stranger_is_told_and_asks_no_more(node: Node, budget_id: str) -> None:
    async with phone(node, budget_id, user="eve") as device:
        await until(lambda: device.inbox.ended is not None, WAIT_S)
        assert device.inbox.ended == "BUDGET_NOT_EXISTS"
        assert device.device.connected


async def test_p9_a_removed_participant_keeps_what_it_has(node: Node, budget_id: str) -> None:
    async with node.rest(signed_token("bob")) as rest:
        assert (await rest.post(f"/budgets/{budget_id}/join")).status_code == 200
    async with phone(node, budget_id, user="bob") as device:
        await until(device.has(2), WAIT_S)
        async with node.rest(signed_token("ada")) as rest:
            await rest.delete(f"/budgets/{budget_id}/participants/bob")
        await until(lambda: device.inbox.ended is not None, WAIT_S)
        await post(node, "ada", [budget_edit(budget_id, 1, title="without Bob")])
        assert device.inbox.ended == "NOT_PARTICIPANT"
        assert device.inbox.cursor == 3  # his own removal was the last he saw

        async with node.rest(signed_token("ada")) as rest:
            made = await rest.post(f"/budgets/{budget_id}/invites", json={})
        link = f"/budgets/{budget_id}/join?invite={made.json()['token']}"
        async with node.rest(signed_token("bob")) as rest:
            assert (await rest.post(link)).status_code == 200
        device.device.follow(budget_id)
        await until(device.has(5), WAIT_S)


async def test_a_token_is_renewed_in_band(node: Node, budget_id: str) -> None:
    """The hub warns 60 s before the end, which is a second away; the connection stays."""
    ends: list[int] = []

    def decode(text: bytes) -> Any:
        frame = orjson.loads(text)
        if frame["type"] == "auth":
            ends.append(frame["expiresAt"])
        return frame

    account = SignedAccount("ada", AUTH_SECRET, ttl_s=62)
    async with phone(node, budget_id, account=account, decode=decode) as device:
        await until(device.has(1), WAIT_S)
        await until(lambda: len(ends) > 1, WAIT_S)
        assert ends[1] > ends[0]
        await post(node, "ada", [expense_add(budget_id)])
        await until(device.has(2), WAIT_S)
        assert device.device.opened == 1


@pytest.mark.parametrize("transport", list(Transport))
async def test_a_refused_token_is_renewed_and_the_device_comes_back(
    node: Node, budget_id: str, transport: Transport
) -> None:
    class Forgetful(SignedAccount):
        """Has a token that the hub does not take, until it is told so."""

        async def token(self, refused: str | None = None) -> str:
            if refused is None and not self.told:
                return "no.token.atall"
            self.told = True
            return await super().token(refused)

        told = False

    account = Forgetful("ada", AUTH_SECRET)
    async with phone(node, budget_id, account=account, transport=transport) as device:
        device.device.submit(expense_add(budget_id))
        await until(device.has(2), WAIT_S)
        assert account.told


async def test_p11_devices_survive_their_hub(cluster: Cluster) -> None:
    """A drained hub says when to come back; a killed one says nothing."""
    node = await cluster.start()
    budget_id = new_id()
    await post(node, "ada", [budget_create(budget_id)])
    made: list[str] = []
    async with AsyncExitStack() as stack:
        phones = [
            await stack.enter_async_context(phone(node, budget_id, transport=transport))
            for transport in Transport
        ]

        async def away_and_back(end: Callable[[], Awaitable[object]]) -> None:
            await until(lambda: all(each.has(1 + len(made))() for each in phones), WAIT_S)
            await end()
            await until(lambda: not phones[0].device.connected, WAIT_S)
            for each in phones:
                event = expense_add(budget_id)
                made.append(event["recordId"])
                each.device.submit(event)
            await cluster.start(PORT=node.port)
            await until(lambda: all(each.has(1 + len(made))() for each in phones), WAIT_S)

        await away_and_back(node.stop)
        assert phones[0].witness.ends[0].code == 1012
        node = cluster.nodes[-1]
        await away_and_back(node.kill)
        for each in phones:
            assert each.expenses.keys() == set(made)
    await cluster.nodes[-1].stop()


async def test_a_hub_that_is_silent_is_left(cluster: Cluster) -> None:
    """A frozen hub closes nothing: the device notices that its events are not answered."""
    node = await cluster.start()
    budget_id = new_id()
    await post(node, "ada", [budget_create(budget_id)])
    async with phone(node, budget_id, answer_s=1.0) as device:
        await until(device.has(1), WAIT_S)
        node.pause()
        device.device.submit(expense_add(budget_id))
        await until(lambda: not device.device.connected, WAIT_S)
        node.resume()
        await until(device.has(2), WAIT_S)
        assert len(device.expenses) == 1
    await node.stop()


async def test_p7_a_device_that_missed_events_asks_for_them(
    cluster_database_url: str, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """The heartbeat tells it: twice in a row a head is ahead of it, and nothing comes."""
    program = patched("import hub.session", "hub.session.HEARTBEAT_S = 0.3")
    cluster = Cluster(tmp_path, cluster_database_url, redis.url, program)
    try:
        node = await cluster.start()
        budget_id = new_id()
        await post(node, "ada", [budget_create(budget_id), expense_add(budget_id)])
        async with phone(node, budget_id) as device:
            await until(device.has(2), WAIT_S)
            device.inbox.replica = Replica(budget_id)  # as if nothing had come
            await until(lambda: device.inbox.cursor == 2, WAIT_S)
            assert device.device.opened == 1
            assert [key for key, _ in device.witness.keys] == [0, 0]
            assert any("nothing came after 0" in trouble for trouble in device.witness.troubles)
    finally:
        await cluster.close()
