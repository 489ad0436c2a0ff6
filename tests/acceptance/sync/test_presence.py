"""Who is there: told on every node, counted by device, and never more than can be known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count, pairwise

import pytest

from hub.timeouts import TIMEOUTS
from tests.acceptance.conftest import Pair
from tests.cluster import Cluster, Node, all_say
from tests.device import TIMEOUT_S, Device, Refused, budget_create, connect, new_id

FORGOTTEN_S = 60.0  # a killed node, at the latest; it takes about ten

_numbers = count(1)


class Party:
    """Devices of a household, each on whatever node; one budget. Their names are their users'."""

    def __init__(self, cluster: Cluster, stack: AsyncExitStack) -> None:
        self.budget_id = new_id()
        self._cluster = cluster
        self._stack = stack
        self._number = next(_numbers)

    def user_id(self, name: str) -> str:
        return f"{name}-{self._number}"

    def token(self, name: str) -> str:
        return self._cluster.token(self.user_id(name))

    async def device(self, node: Node, name: str) -> Device:
        """Signed in; it follows nothing yet."""
        return await self._stack.enter_async_context(connect(node.url, self.token(name)))

    async def comes(self, node: Node, name: str) -> Device:
        """A new device that follows the budget."""
        device = await self.device(node, name)
        await device.subscribe(self.budget_id)
        return device

    async def founded_by(self, node: Node, name: str) -> Device:
        device = await self.device(node, name)
        await device.accepted(budget_create(self.budget_id))
        await device.subscribe(self.budget_id)
        return device

    async def joins(self, node: Node, name: str) -> None:
        async with node.rest(self.token(name)) as rest:
            response = await rest.post(f"/budgets/{self.budget_id}/join")
            assert response.status_code == 200, response.text

    def told(self, device: Device) -> list[dict[str, int]]:
        """Who was there, each time the device was told."""
        return [
            {each["userId"]: each["devices"] for each in frame["users"]}
            for frame in device.of_type("presence")
            if frame["budgetId"] == self.budget_id
        ]

    async def sees(self, devices: list[Device], timeout_s: float = TIMEOUT_S, **users: int) -> None:
        """Wait until that is the last each of the devices was told."""
        expected = {self.user_id(name): number for name, number in users.items()}

        async def sees(device: Device) -> None:
            try:
                await device.wait_for(lambda: self.told(device)[-1:] == [expected], timeout_s)
            except TimeoutError:
                raise AssertionError(f"told {self.told(device)}, not {expected}") from None

        await asyncio.gather(*(sees(device) for device in devices))


@pytest.fixture
async def party(cluster: Cluster) -> AsyncIterator[Party]:
    async with AsyncExitStack() as stack:
        yield Party(cluster, stack)


async def test_everybody_knows_who_is_there(fragile_pair: Pair, party: Party) -> None:
    """Users by their devices, on whatever node; from whoever comes, and as it changes."""
    here, there = fragile_pair.nodes
    phone = await party.founded_by(here, "ada")
    await party.sees([phone], ada=1)
    await party.joins(there, "bob")
    laptop, tablet = await party.comes(there, "ada"), await party.comes(here, "bob")
    await party.sees([phone, laptop, tablet], ada=2, bob=1)
    desk = await party.comes(there, "bob")
    everybody = [phone, laptop, tablet, desk]
    await party.sees(everybody, ada=2, bob=2)
    for device in everybody:
        kinds = [frame.body["type"] for frame in device.frames]
        assert kinds.index("subscribed") < kinds.index("presence")
        assert all(one != other for one, other in pairwise(party.told(device)))  # news only
    [frame] = [f for f in desk.of_type("presence") if len(f["users"]) == 2][-1:]
    assert set(frame) == {"type", "budgetId", "users"}
    assert [user["userId"] for user in frame["users"]] == [
        party.user_id("ada"),
        party.user_id("bob"),
    ]


async def test_subscribing_again_is_one_device(fragile_pair: Pair, party: Party) -> None:
    phone = await party.founded_by(fragile_pair.nodes[0], "ada")
    laptop, desk = [await party.comes(fragile_pair.nodes[1], "ada") for _ in range(2)]
    await party.sees([phone, laptop, desk], ada=3)
    seen = len(party.told(laptop))
    for _ in range(5):
        await laptop.subscribe(party.budget_id)
    await laptop.wait_for(lambda: len(party.told(laptop)) > seen)
    await party.sees([phone, laptop, desk], ada=3)


async def test_p9_presence_is_for_participants(fragile_pair: Pair, party: Party) -> None:
    """Not for strangers, nor for those who only signed in, nor for whoever was removed; and
    nobody is told of them."""
    here, there = fragile_pair.nodes
    phone = await party.founded_by(here, "ada")
    await party.joins(there, "bob")
    laptop, removed = await party.comes(there, "ada"), await party.comes(there, "bob")
    idle = await party.device(there, "ada")
    strangers = [await party.device(node, "eve") for node in fragile_pair.nodes]
    for stranger in strangers:
        with pytest.raises(Refused, match="BUDGET_NOT_EXISTS"):
            await stranger.subscribe(party.budget_id)
    await party.sees([phone, laptop, removed], ada=2, bob=1)
    async with here.rest(party.token("ada")) as rest:
        path = f"/budgets/{party.budget_id}/participants/{party.user_id('bob')}"
        assert (await rest.delete(path)).status_code == 200
    await party.sees([phone, laptop], ada=2)
    third = await party.comes(there, "ada")
    await party.sees([phone, laptop, third], ada=3)
    for device in (idle, *strangers):
        await device.ping()
        assert device.of_type("presence") == []
    kinds = [frame.body["type"] for frame in removed.frames]
    assert "presence" not in kinds[kinds.index("unsubscribed") :]
    assert all(party.user_id("eve") not in users for users in party.told(phone))


async def test_p10_nothing_is_told_while_redis_is_away(fragile_pair: Pair, party: Party) -> None:
    """Half the truth is none. Afterwards it is the whole truth again, whatever happened
    meanwhile."""
    here, there = fragile_pair.nodes
    phone = await party.founded_by(here, "ada")
    await party.joins(here, "bob")
    laptop, tablet = await party.comes(there, "ada"), await party.comes(there, "bob")
    await party.sees([phone, laptop, tablet], ada=2, bob=1)
    fragile_pair.redis.kill()
    try:
        await all_say(fragile_pair.nodes, party.token("ada"), "degraded")
        seen = [len(party.told(device)) for device in (phone, laptop)]
        await tablet.socket.close()
        desk = await party.comes(here, "bob")
        watch = await party.comes(there, "ada")
        await asyncio.sleep(2 * TIMEOUTS.presence_s)  # long enough for presence to arrive
        for device in (desk, watch):
            await device.ping()
            assert party.told(device) == []
        assert [len(party.told(device)) for device in (phone, laptop)] == seen
    finally:
        await fragile_pair.redis.restart()
    await party.sees([phone, laptop, desk, watch], ada=3, bob=1)


async def test_the_last_of_a_node_goes_while_redis_is_away(
    fragile_pair: Pair, party: Party
) -> None:
    """Then nobody on that node follows the budget any more, to say so when Redis is back."""
    phone = await party.founded_by(fragile_pair.nodes[0], "ada")
    laptop = await party.comes(fragile_pair.nodes[1], "ada")
    await party.sees([phone, laptop], ada=2)
    fragile_pair.redis.kill()
    try:
        await all_say(fragile_pair.nodes, party.token("ada"), "degraded")
        await laptop.socket.close()
    finally:
        await fragile_pair.redis.restart()
    await all_say(fragile_pair.nodes, party.token("ada"), "ok")
    await party.sees([phone], ada=1)


@pytest.mark.parametrize("staying", [0, 1], ids=["it-is-cut-off", "the-other-is-cut-off"])
async def test_the_last_of_a_node_goes_and_one_node_has_no_redis(
    fragile_pair: Pair, party: Party, staying: int
) -> None:
    """One of them has noticed nothing, the other hears nothing."""
    phone = await party.founded_by(fragile_pair.nodes[staying], "ada")
    laptop = await party.comes(fragile_pair.nodes[1 - staying], "ada")
    await party.sees([phone, laptop], ada=2)
    await fragile_pair.proxy.cut()
    try:
        await all_say([fragile_pair.nodes[1]], party.token("ada"), "degraded")
        await laptop.socket.close()
    finally:
        await fragile_pair.proxy.heal()
    await all_say(fragile_pair.nodes, party.token("ada"), "ok")
    await party.sees([phone], ada=1)


async def test_a_single_node_tells_its_own(
    cluster: Cluster, party: Party, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without any Redis."""
    alone = Cluster(tmp_path_factory.mktemp("alone"), cluster.database_url, None)
    try:
        node = await alone.start()
        phone = await party.founded_by(node, "ada")
        await party.joins(node, "bob")
        tablet = await party.comes(node, "bob")
        await party.sees([phone, tablet], ada=1, bob=1)
        await phone.socket.close()
        await party.sees([tablet], bob=1)
        assert node.complaints() == []
    finally:
        await alone.close()


async def test_who_goes_is_counted_out_on_every_node(fragile_pair: Pair, party: Party) -> None:
    """However he goes: out of the budget, off the net, without a word, or with his node. Only that
    takes time: nobody can know it before the node has been silent for long enough."""
    here, there = fragile_pair.nodes
    doomed = await fragile_pair.cluster.start(REDIS_URL=fragile_pair.redis.url)
    await all_say([doomed], party.token("ada"), "ok")
    phone = await party.founded_by(here, "ada")
    await party.joins(here, "bob")
    laptop = await party.comes(there, "ada")
    staying = [phone, laptop]
    going = [await party.comes(node, "bob") for node in (here, there, there)]
    for name in ("ada", "bob"):
        await party.comes(doomed, name)
    await party.sees([*staying, *going], ada=3, bob=4)
    known = len(party.told(going[0]))
    await going[0].unsubscribe(party.budget_id)
    await party.sees(staying, ada=3, bob=3)
    await going[1].socket.close()
    going[2].socket.transport.abort()
    await party.sees(staying, ada=3, bob=1)
    back = await party.comes(there, "bob")
    await party.sees([*staying, back], ada=3, bob=2)
    told = [len(party.told(device)) for device in staying]
    await doomed.kill()
    await party.sees([*staying, back], FORGOTTEN_S, ada=2, bob=1)
    assert [len(party.told(device)) for device in staying] == [number + 1 for number in told]
    await going[0].ping()
    assert len(party.told(going[0])) == known  # he left
