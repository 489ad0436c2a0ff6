"""`api.sync.wire` in real processes: what a client sends, its bounds, its end."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from itertools import count, islice, pairwise
from pathlib import Path

import orjson
import pytest
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode

from api.app import App
from api.settings import Settings
from hub.timeouts import TIMEOUTS
from loadtest.proxy import Proxy
from storage.embedded.redis import EmbeddedRedis
from tests.cluster import AUTH_SECRET, BUSY_S, Cluster, Node, token, until
from tests.crowd import (
    SMALL_BYTES,
    Crowd,
    Spectator,
    connections,
    in_this_process,
    open_spectator,
    patched,
    waiting,
)
from tests.device import (
    FRAME_BYTES_MAX,
    Device,
    Json,
    Refused,
    budget_create,
    connect,
    expense_add,
    expense_edit,
    new_id,
    open_device,
)
from tests.lateness import again_if_too_late, in_time, unpaused
from tests.masked import masked
from tests.storm import NO_RATE_LIMITS

WAIT_S = 30.0
PING_S = 1  # of an impatient hub
CLOSE_S = 1.0  # what the hub gives a close frame to leave
IN_FLIGHT_EVENTS_MAX = 400
STRIKES_MAX = 20
LONG_NOTE = "🥞" * 2000  # 8 KB as UTF-8

_users = count(1)


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.fixture(scope="module")
async def strict(cluster: Cluster) -> Node:
    """Rates so small that a test gets beyond them, and two origins."""
    return await cluster.start(
        EVENTS_PER_S_CONNECTION="1",  # and ten at once
        EVENTS_PER_S_USER="2",
        ORIGINS="https://app.example.org,http://localhost:3000",
    )


@pytest.fixture
def user_id() -> str:
    return f"user-{next(_users)}"


@pytest.fixture
async def device(node: Node, user_id: str) -> AsyncIterator[Device]:
    async with connect(node.url, token(user_id)) as device:
        yield device


# What a client sends


async def test_events_in_and_out(node: Node, user_id: str, device: Device) -> None:
    """P2: many events of one commit, more than a frame holds, come in order and as the same bytes
    to everybody."""
    budget_id = new_id()
    async with connect(node.url, token(user_id)) as other:
        await device.accepted(budget_create(budget_id))
        for each in (device, other):
            await each.subscribe(budget_id)
        posts = [[expense_add(budget_id, note=LONG_NOTE) for _ in range(25)] for _ in range(4)]
        posted = [await device.post(events) for events in posts]
        verdicts = [verdict for id in posted for verdict in await device.verdicts(id)]
        assert [verdict["sequence"] for verdict in verdicts] == list(range(2, 102))
        here, there = [await each.reached(budget_id, 101) for each in (device, other)]
        sent = [event["eventId"] for events in posts for event in events]
        assert [event.body["eventId"] for event in here.events[1:]] == sent
        assert [event.raw for event in here.events] == [event.raw for event in there.events]
        assert max(len(frame.raw) for frame in other.frames) <= FRAME_BYTES_MAX
        [again] = await other.submit([posts[0][0]])
        assert again == {**verdicts[0], "duplicate": True}
        record_id = posts[0][0]["recordId"]
        stale = [expense_edit(budget_id, record_id, 9) for _ in range(100)]
        verdicts = await device.submit(stale, "each")  # in several frames, written as one
        assert [verdict["eventId"] for verdict in verdicts] == [e["eventId"] for e in stale]
        assert {verdict["currentRecord"]["note"] for verdict in verdicts} == {LONG_NOTE}


async def test_p8_reader_that_stops_and_goes_on_misses_nothing(
    node: Node, user_id: str, device: Device
) -> None:
    budget_id = new_id()
    await device.accepted(budget_create(budget_id))
    await device.subscribe(budget_id)
    with Crowd() as crowd:
        slow, dead = await crowd.join(
            *(open_spectator(node.url, token(user_id), receive_bytes=SMALL_BYTES) for _ in "12")
        )
        for spectator in (slow, dead):
            spectator.subscribe(budget_id)
            await spectator.joined(budget_id)
            spectator.stop_reading()
        for start in range(0, 800, 25):
            events = [expense_add(budget_id, note=LONG_NOTE) for _ in range(25)]
            await device.post(events)
            await device.reached(budget_id, 1 + start + 25)  # nobody waits for the slow
        slow.resume_reading()
        await until(lambda: slow.cursors[budget_id] == 801, WAIT_S)
        await device.accepted(expense_add(budget_id))
        await until(lambda: slow.cursors[budget_id] == 802, WAIT_S)
        slow.check()


def raw(*parts: tuple[Opcode, bytes, bool]) -> bytes:
    """Masked frames of opcode, payload, and whether it is the last of its message."""
    return b"".join(masked(opcode, data, fin=fin) for opcode, data, fin in parts)


async def test_fragments_and_control_frames_cut_at_every_byte(device: Device) -> None:
    """A character of four bytes is cut too, by fragments and by TCP."""
    text = orjson.dumps({"type": "ping", "id": "🥞"})
    at = text.index("🥞".encode()) + 2
    data = raw(
        (Opcode.TEXT, text, True),
        (Opcode.TEXT, text[:at], False),
        (Opcode.PING, b"between", True),
        (Opcode.CONT, b"", False),
        (Opcode.PONG, b"unasked", True),
        (Opcode.CONT, text[at:], True),
        (Opcode.TEXT, text, True),
    )
    pieces = [data]
    for cut in range(1, len(data)):
        pieces += [data[:cut], data[cut:]]
    pieces += [data[byte : byte + 1] for byte in range(len(data))]
    for piece in pieces:
        device.socket.transport.write(piece)
        await asyncio.sleep(0)
    times = 1 + len(data)
    await device.wait_for(lambda: len(device.of_type("pong")) == 3 * times)
    assert {pong["id"] for pong in device.of_type("pong")} == {"🥞"}


@pytest.mark.parametrize(
    "data",
    [
        raw((Opcode.TEXT, b'{"type":"ping","id":"\xff"}', True)),
        raw((Opcode.TEXT, b'{"type":"ping","id":"\xed\xa0\x80"}', True)),  # half a surrogate pair
        raw((Opcode.TEXT, b'{"type":"ping","id":"\xf0\x9f', True)),
        raw((Opcode.TEXT, b'{"type":', False), (Opcode.CONT, b'"\xc0\x80"}', True)),
        raw((Opcode.TEXT, b'{"id":"\xf0\x9f', False), (Opcode.CONT, b'"}', True)),
    ],
    ids=["whole", "surrogate", "cut off", "fragmented", "cut off in a fragment"],
)
async def test_text_that_is_not_utf8_closes_1007(device: Device, data: bytes) -> None:
    device.socket.transport.write(data)
    assert await device.until_closed() == 1007
    assert device.of_type("pong") == []


@pytest.mark.parametrize("seed", range(3))
async def test_verdicts_do_not_depend_on_how_the_bytes_come(
    node: Node, user_id: str, seed: int
) -> None:
    """P2, P4: whole or in fragments, with control frames between them, cut anywhere."""
    chance = random.Random(seed)
    plan = [chance.randrange(6) for _ in range(60)]
    whole, cut = [story(plan, new_id()) for _ in "12"]
    found = []
    async with connect(node.url, token(user_id)) as device:
        posted = [await device.post(events) for events in whole]
        found.append([v for request_id in posted for v in await device.verdicts(request_id)])
    async with connect(node.url, token(user_id)) as device:
        sent = b""
        for number, events in enumerate(cut):
            device.expect(number, events, None)
            sent += in_pieces({"type": "events", "id": number, "events": events}, chance)
        while sent:
            size = chance.choice((1, 2, 3, 7, 50, 1000, 30_000))
            device.socket.transport.write(sent[:size])
            sent = sent[size:]
            await asyncio.sleep(0)
        found.append([v for number in range(len(cut)) for v in await device.verdicts(number)])
    kinds = [
        [(v["status"], v.get("error", {}).get("message"), v.get("sequence")) for v in verdicts]
        for verdicts in found
    ]
    assert kinds[0] == kinds[1]
    assert {code for _, code, _ in kinds[0]} >= {None, "BUDGET_EXISTS", "INVALID_EVENT"}


def story(plan: Sequence[int], budget_id: str) -> list[list[Json]]:
    """Batches of events that hang on each other, some of them wrong; the same for the same plan."""
    batches, records = [[budget_create(budget_id)]], [new_id()]
    for step in plan:
        match step:
            case 0:
                batches.append([budget_create(budget_id)])  # exists
            case 1:
                batches.append(batches[-1])  # a duplicate
            case 2:
                batches.append([expense_edit(budget_id, records[-1], 1)])  # soon stale
            case 3:
                batches.append([{"eventType": "nonsense", "eventId": new_id()}])
            case _:
                made = [expense_add(budget_id, note=LONG_NOTE) for _ in range(step)]
                records += [each["recordId"] for each in made]
                batches.append(made)
    return batches


def in_pieces(frame: Json, chance: random.Random) -> bytes:
    """One frame in fragments of any size, none included, with control frames between them."""
    text = orjson.dumps(frame)
    cuts = sorted(chance.randrange(len(text) + 1) for _ in range(chance.choice((0, 0, 1, 5, 40))))
    parts = [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]
    sent = b""
    for number, part in enumerate(parts):
        sent += raw((Opcode.CONT if number else Opcode.TEXT, part, number == len(parts) - 1))
        if chance.random() < 0.3:
            sent += raw((chance.choice((Opcode.PING, Opcode.PONG)), b"between", True))
    return sent


# Inside: what is left of a peer that is gone


async def test_peer_that_vanishes_leaves_nothing(
    database_url: str, redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: no task, no session, no feed; in whatever state it was. And a peer that is there at the
    end is closed as one that may come back."""
    settings = Settings(
        database_url=database_url, redis_url=redis.url, auth_secret=AUTH_SECRET, port=0
    )
    budget_id = new_id()
    with Crowd() as crowd:
        async with in_this_process(settings, monkeypatch) as (url, app):
            async with connect(url, token("ada")) as writer:
                await writer.accepted(budget_create(budget_id))
            await until(lambda: not app.hub.connections, WAIT_S)
            for state in ("idle", "new", "live", "in flight", "stopped reading"):
                before = asyncio.all_tasks()
                await vanish(url, crowd, state, budget_id)
                await left_nothing(app, before, state)
            [last] = await crowd.join(open_spectator(url, token("ada")))
        await asyncio.wait_for(last.lost, WAIT_S)
        assert last.close_code == 1012


async def vanish(url: str, crowd: Crowd, state: str, budget_id: str) -> None:
    """Come into this state, and be gone."""
    who = None if state == "new" else token("ada")
    peers = await crowd.join(
        *(open_spectator(url, who, receive_bytes=SMALL_BYTES) for _ in range(5))
    )
    if state not in ("new", "idle"):
        for peer in peers:
            peer.subscribe(budget_id)
            await peer.joined(budget_id)
    if state == "in flight":
        for peer in peers:
            peer.post([expense_add(budget_id) for _ in range(20)])
    if state == "stopped reading":
        for peer in peers:
            peer.stop_reading()
        async with connect(url, token("ada")) as writer:
            for _ in range(32):
                await writer.accepted(*(expense_add(budget_id, note=LONG_NOTE) for _ in range(25)))
        for peer in peers:
            peer.send({"type": "ping"})  # which the hub reads, and then it does not read on
        await asyncio.sleep(0.1)
    for peer in peers:
        peer.reset()


async def left_nothing(app: App, before: set["asyncio.Task[object]"], state: str) -> None:
    def left() -> list[object]:
        new = asyncio.all_tasks() - before
        of_hub = [task for task in new if "/asyncpg/" not in str(task)]
        return [*of_hub, *app.hub.connections, *app.hub.feeds]

    try:
        await until(lambda: not left(), WAIT_S)
    except TimeoutError:
        raise AssertionError(f"left of peers that were {state}: {left()}") from None


# What the hub does not take from a client


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("https://app.example.org", 101),
        ("http://localhost:3000", 101),
        ("https://evil.example.org", 403),
        ("http://app.example.org", 403),
        ("https://app.example.org.evil.org", 403),
        ("https://app.example.org:444", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_only_listed_origins_may_open_sockets(
    strict: Node, user_id: str, origin: str | None, status: int
) -> None:
    headers = {"Authorization": f"Bearer {token(user_id)}"}
    if origin is not None:
        headers["Origin"] = origin
    if status == 101:
        async with open_device(strict.url, headers=headers) as device:
            await device.ping()
        return
    with pytest.raises(InvalidStatus) as refused:
        async with open_device(strict.url, headers=headers):
            pass
    response = refused.value.response
    assert response.status_code == status
    assert response.body is not None
    assert orjson.loads(response.body)["error"]["message"] == "ORIGIN_NOT_ALLOWED"


async def test_any_origin_may_come_where_none_is_listed(node: Node, user_id: str) -> None:
    headers = {"Authorization": f"Bearer {token(user_id)}", "Origin": "https://evil.example.org"}
    async with open_device(node.url, headers=headers) as device:
        await device.ping()


@again_if_too_late
async def test_p8_too_many_events_are_refused_and_not_looked_at(strict: Node) -> None:
    budget_id = new_id()
    async with connect(strict.url, token(f"user-{next(_users)}")) as device:
        whole = [budget_create(budget_id), *(expense_add(budget_id) for _ in range(9))]
        one_more = expense_add(budget_id)
        with in_time(1), pytest.raises(Refused) as refused:  # later there is room for one
            first, second = await device.post(whole), await device.post([one_more])
            await device.verdicts(first)
            await device.verdicts(second)
        error = refused.value.error
        assert (error["statusCode"], error["message"]) == (429, "RATE_LIMITED")
        assert error["retryable"] is True
        assert 0 < error["retryAfterMs"] <= 1001
        await asyncio.sleep(error["retryAfterMs"] / 1000)
        [verdict] = await device.submit([one_more])
        assert (verdict["status"], verdict["sequence"]) == ("accepted", 11)
        assert "duplicate" not in verdict


@again_if_too_late
async def test_p8_a_users_sockets_share_a_rate(strict: Node) -> None:
    user_id = f"user-{next(_users)}"
    async with (
        connect(strict.url, token(user_id)) as one,
        connect(strict.url, token(user_id)) as two,
        connect(strict.url, token(user_id)) as three,
        connect(strict.url, token(f"other-{user_id}")) as other,
    ):
        with in_time(5), pytest.raises(Refused) as refused:  # later there is room for ten
            for device in (one, two):
                await device.submit([budget_create(new_id()) for _ in range(10)])
            # Though it has said nothing itself.
            await three.submit([budget_create(new_id()) for _ in range(10)])
        assert refused.value.code == "RATE_LIMITED"
        assert 0 < refused.value.error["retryAfterMs"] <= 5001
        await other.submit([budget_create(new_id()) for _ in range(10)])


FLOODS = {
    "ping": {"type": "ping"},
    "events": {"type": "events", "events": [budget_create(new_id())]},
    "subscribe": {"type": "subscribe", "budgetId": new_id()},
    "unsubscribe": {"type": "unsubscribe", "budgetId": new_id()},
    "bad envelope": {"type": "events", "events": []},
    "wrong field": {"type": "subscribe", "budgetId": "1"},
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS.keys())
@again_if_too_late
async def test_p8_flood_closes_4429(strict: Node, frame: Json) -> None:
    """Any frame counts: ten at once are taken, and whoever sends on after so many refusals in a
    row is closed."""
    with Crowd() as crowd:
        who = token(f"user-{next(_users)}")
        [flooding] = await crowd.join(open_spectator(strict.url, who))
        with in_time(1):  # later there is room for one more in between
            flooding.send(*({**frame, "id": number} for number in range(10 + 3 * STRIKES_MAX)))
            await until(lambda: flooding.lost.done(), WAIT_S)
            errors = [frame["error"] for frame in flooding.of_type("error")]
            refusals = [error for error in errors if error["message"] == "RATE_LIMITED"]
            assert flooding.close_code == 4429
            assert len(refusals) == STRIKES_MAX + 2  # and why it is closed
            assert all("retryAfterMs" in error for error in refusals[:-1])
            limited = [f for f in flooding.of_type("error") if "retryAfterMs" in f["error"]]
            assert all(frame["id"] >= 10 for frame in limited)


async def test_who_slows_down_is_not_closed(strict: Node, user_id: str) -> None:
    with Crowd() as crowd:
        [hasty] = await crowd.join(open_spectator(strict.url, token(user_id)))
        for _ in range(2):
            pings = len(hasty.frames)
            hasty.send(*({"type": "ping"} for _ in range(15)))
            await until(lambda before=pings: len(hasty.frames) == before + 15, WAIT_S)  # type: ignore[misc]
            await asyncio.sleep(1.1)
            answered = len(hasty.of_type("pong"))
            hasty.send({"type": "ping"})
            await until(lambda before=answered: len(hasty.of_type("pong")) > before, WAIT_S)  # type: ignore[misc]
        assert hasty.errors().count("RATE_LIMITED") > STRIKES_MAX - 5
        hasty.check()


@again_if_too_late
async def test_p8_p4_hub_reads_no_further_than_400_events_in_flight(
    cluster: Cluster, node: Node, user_id: str
) -> None:
    """While the database answers nothing: what a client sends on stays with the client, others are
    served, and in the end everything is answered and in the log."""
    async with Proxy(cluster.database_url) as proxy:
        cut_off = await cluster.start(DATABASE_URL=proxy.url, **NO_RATE_LIMITS)
        budget_id = new_id()
        async with (
            connect(cut_off.url, token(user_id)) as sender,
            connect(cut_off.url, token(f"other-{user_id}")) as other,
        ):
            await sender.accepted(budget_create(budget_id))
            # Then the hub answers that it cannot tell.
            with in_time(TIMEOUTS.settle_s):
                proxy.black_hole()
                batches = [[expense_add(budget_id) for _ in range(100)] for _ in range(6)]
                posted = [await sender.post(events) for events in batches[:4]]
                pad = "x" * 200_000
                answered, pings = len(sender.of_type("pong")), count()
                while await settled_size(sender) < 1_000_000:  # then TCP says no
                    for number in islice(pings, 80):
                        text = orjson.dumps({"type": "ping", "id": f"late {number}", "pad": pad})
                        sender.socket.transport.write(raw((Opcode.TEXT, text, True)))
                await other.ping()
                assert len(sender.of_type("pong")) == answered
                assert sender.of_type("results")[1:] == []
                await proxy.heal()
                posted += [await sender.post(events) for events in batches[4:]]
                verdicts = [v for request_id in posted for v in await sender.verdicts(request_id)]
                assert {verdict["status"] for verdict in verdicts} == {"accepted"}
            late = next(pings)
            await sender.wait_for(lambda: len(sender.of_type("pong")) == answered + late)
        assert [verdict["sequence"] for verdict in verdicts] == list(range(2, 602))
        async with connect(node.url, token(user_id)) as reader:
            await reader.subscribe(budget_id)
            stream = await reader.reached(budget_id, 601)
            sent = [event["eventId"] for events in batches for event in events]
            assert [event.body["eventId"] for event in stream.events[1:]] == sent
        await cut_off.stop()


async def settled_size(device: Device) -> int:
    """How much of what was written stays in this process, once nothing moves any more."""
    transport = device.socket.transport
    size, since_s = transport.get_write_buffer_size(), time.monotonic()
    while time.monotonic() - since_s < 0.5:
        await asyncio.sleep(0.02)
        if transport.get_write_buffer_size() != size:
            size, since_s = transport.get_write_buffer_size(), time.monotonic()
    return size


# Peers that are gone and do not say so


@pytest.fixture
async def impatient(
    cluster_database_url: str, redis: EmbeddedRedis, tmp_path: Path
) -> AsyncIterator[Node]:
    """A hub that pings every second, and gives a closing handshake one second."""
    program = patched(waiting(ping_s=PING_S, close_s=1.0))
    cluster = Cluster(tmp_path, cluster_database_url, redis.url, program)
    try:
        yield await cluster.start()
    finally:
        await cluster.close()
    assert cluster.nodes[0].complaints() == []


@again_if_too_late
async def test_p8_peer_that_answers_no_ping_is_closed_4408(impatient: Node, user_id: str) -> None:
    async with unpaused(PING_S / 2):  # else nobody answers in time
        with Crowd() as crowd:
            [mute] = await crowd.join(open_spectator(impatient.url, token(user_id), pongs=False))
            [present] = await crowd.join(open_spectator(impatient.url, token(user_id)))
            await until(lambda: mute.lost.done(), 2 * PING_S + BUSY_S)
            assert mute.close_code == 4408
            await asyncio.sleep(PING_S)
            present.check()


@pytest.mark.parametrize("ends", [False, True], ids=["no answer", "token ends"])
@again_if_too_late
async def test_p8_peer_that_stops_reading_is_dropped(impatient: Node, ends: bool) -> None:
    """What was written to it is dropped too, and its descriptor is free; also where the hub has
    another reason to close it before it finds out."""
    user_id = f"user-{next(_users)}"
    async with unpaused(PING_S / 2), connect(impatient.url, token(user_id)) as writer:
        await until(lambda: connections(impatient.url) == 1, WAIT_S)
        budget_id = new_id()
        await writer.accepted(budget_create(budget_id))
        await fill(writer, budget_id)
        if ends:  # with the second after this one; let that be in half a second or more
            await until(lambda: time.time() % 1 < 0.5, WAIT_S)
        with Crowd() as crowd:
            with in_time(0.5):
                await hung(
                    crowd, impatient, user_id, budget_id, ttl_s=1 if ends else 3600, number=5
                )
                await until(lambda: connections(impatient.url) == 1 + 5, WAIT_S)
            await until(lambda: connections(impatient.url) == 1, 4 + CLOSE_S + BUSY_S)
        codes = [
            line["close_code"]
            for line in impatient.log()
            if (line["event"], line.get("user_id")) == ("socket closed", user_id)
        ]
        assert codes == [4401 if ends else 4408] * 5


async def fill(writer: Device, budget_id: str) -> None:
    """Six megabytes: more than the kernels' buffers of one connection take."""
    for _ in range(30):
        await writer.accepted(*(expense_add(budget_id, note=LONG_NOTE) for _ in range(25)))


async def hung(
    crowd: Crowd, node: Node, user_id: str, budget_id: str, *, ttl_s: int, number: int
) -> Sequence[Spectator]:
    """Peers that have much to read and do not."""
    who = token(user_id, ttl_s=ttl_s)
    peers = await crowd.join(
        *(open_spectator(node.url, who, receive_bytes=SMALL_BYTES) for _ in range(number))
    )
    for peer in peers:
        peer.stop_reading()
        peer.subscribe(budget_id)
    return peers
