"""The wire of `GET /sync` on a real process: every frame, every refusal, every close code."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from itertools import count

import orjson
import pytest
from websockets import frames
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.cluster import BUSY_S, Cluster, Node, until
from tests.device import (
    FRAME_BYTES_MAX,
    PROTOCOL,
    Device,
    Json,
    Refused,
    Way,
    budget_create,
    connect,
    expense_add,
    expense_edit,
    new_id,
    open_device,
)
from tests.lateness import again_if_too_late, in_time

AUTH_S = 5.0
LONG_NOTE = "🥞" * 2000  # 8 KB as UTF-8

_users = count(1)


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.fixture(scope="module")
async def bystander(cluster: Cluster, node: Node) -> AsyncIterator[Device]:
    """Somebody else on the same process, all the time."""
    async with connect(node.url, cluster.token("bystander")) as device:
        yield device


@pytest.fixture(autouse=True)
async def others_are_served_still(node: Node, bystander: Device) -> AsyncIterator[None]:
    """Whatever a test does to its own connection: the process and the others do not notice."""
    pid = node.pid
    yield
    assert (node.exit_code, node.pid) == (None, pid)
    await bystander.ping()
    assert bystander.of_type("error") == []


@pytest.fixture
def user_id() -> str:
    return f"user-{next(_users)}"


@pytest.fixture
def token(cluster: Cluster, user_id: str) -> str:
    return cluster.token(user_id)


@pytest.fixture
async def device(node: Node, token: str) -> AsyncIterator[Device]:
    async with connect(node.url, token) as device:
        yield device


async def a_budget(device: Device, expenses: int = 0) -> str:
    """A new budget with so many expenses: its head is one more."""
    budget_id = new_id()
    await device.accepted(
        budget_create(budget_id), *(expense_add(budget_id) for _ in range(expenses))
    )
    return budget_id


# Signing in


@pytest.mark.parametrize("way", ["header", "subprotocol", "frame"])
async def test_every_way_to_sign_in_is_welcomed(
    node: Node, cluster: Cluster, user_id: str, way: Way
) -> None:
    begun_ms = time.time() * 1000
    async with connect(node.url, cluster.token(user_id), way=way) as device:
        await device.ping()
        assert device.socket.subprotocol == PROTOCOL
        welcome, auth, _pong = [frame.body for frame in device.frames]
    assert (welcome["type"], welcome["userId"], welcome["heartbeatS"]) == ("welcome", user_id, 15)
    assert begun_ms - 1 <= welcome["serverTime"] <= time.time() * 1000
    assert welcome["limits"]["frameBytesMax"] == FRAME_BYTES_MAX
    assert welcome["limits"]["eventsPerFrameMax"] == 100
    assert auth["type"] == "auth"
    assert begun_ms + 3590_000 < auth["expiresAt"] <= time.time() * 1000 + 3600_000


async def test_connections_have_ids_of_their_own(node: Node, token: str) -> None:
    async with connect(node.url, token) as one, connect(node.url, token) as other:
        ids = {device.of_type("welcome")[0]["connectionId"] for device in (one, other)}
    assert len(ids) == 2


@pytest.mark.parametrize("way", ["header", "subprotocol", "frame"])
async def test_token_is_never_echoed(node: Node, token: str, way: Way) -> None:
    async with connect(node.url, token, way=way) as device:
        assert device.socket.response is not None
        headers = device.socket.response.headers
        assert headers.get_all("Sec-WebSocket-Protocol") == [PROTOCOL]
        assert token not in str(headers)
        assert "Sec-WebSocket-Extensions" not in headers  # no deflate
        await device.ping()
        assert all(token.encode() not in frame.raw for frame in device.frames)
    assert token not in node.err


async def test_header_goes_before_subprotocol(node: Node, token: str) -> None:
    good, bad = f"Bearer {token}", "Bearer bad"
    async with open_device(
        node.url, headers={"Authorization": good}, subprotocols=[PROTOCOL, "bearer.bad"]
    ) as device:
        await device.ping()
    with pytest.raises(InvalidStatus):
        async with open_device(
            node.url, headers={"Authorization": bad}, subprotocols=[PROTOCOL, f"bearer.{token}"]
        ):
            pass


@pytest.mark.parametrize("header", ["Bearer bad", "Bearer", "Bearer  ", "Basic dTpw", "bad", ""])
async def test_bad_header_is_401_and_no_socket(node: Node, header: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with open_device(node.url, headers={"Authorization": header}):
            pass
    response = refused.value.response
    assert response.status_code == 401
    assert response.headers["Content-Type"] == "application/json"
    assert response.body is not None
    error = orjson.loads(response.body)["error"]
    assert (error["statusCode"], error["message"]) == (401, "NOT_LOGGED_IN")
    assert error["retryable"] is False
    assert error["detail"]


async def test_a_client_of_another_version_is_refused_at_the_handshake(
    node: Node, token: str
) -> None:
    """Its digests would never be ours. One that speaks this version too is taken by it."""
    signed_in = {"Authorization": f"Bearer {token}"}
    for offered in (["budget.sync.v1"], ["budget.sync.v9", "bearer.bad"]):
        with pytest.raises(InvalidStatus) as refused:
            async with open_device(node.url, headers=signed_in, subprotocols=offered):
                pass
        assert refused.value.response.status_code == 400
        assert PROTOCOL.encode() in (refused.value.response.body or b"")
    both = ["budget.sync.v1", PROTOCOL]
    async with open_device(node.url, headers=signed_in, subprotocols=both) as device:
        assert device.socket.subprotocol == PROTOCOL


async def test_expired_header_is_401(node: Node, cluster: Cluster, user_id: str) -> None:
    with pytest.raises(InvalidStatus):
        async with connect(node.url, cluster.token(user_id, ttl_s=-1)):
            pass


async def test_bad_token_in_the_subprotocol_opens_and_closes_4401(node: Node) -> None:
    async with open_device(node.url, subprotocols=[PROTOCOL, "bearer.bad"]) as device:
        assert device.socket.subprotocol == PROTOCOL
        assert await device.until_closed() == 4401
        only_refused(device, "NOT_LOGGED_IN")


@pytest.mark.parametrize(
    "first",
    [
        {"type": "auth", "token": "bad"},
        {"type": "ping", "id": 1},
        {"type": "subscribe", "id": 1, "budgetId": "00000000-0000-0000-0000-000000000000"},
        {"type": "events", "id": 1, "events": []},
    ],
    ids=["bad token", "ping", "subscribe", "events"],
)
async def test_first_frame_must_sign_in(node: Node, first: Json) -> None:
    async with open_device(node.url) as device:
        await device.send_raw(json.dumps(first))
        assert await device.until_closed() == 4401
        only_refused(device, "NOT_LOGGED_IN")


async def test_token_in_the_url_counts_for_nothing(node: Node, token: str) -> None:
    async with open_device(node.url, query=f"?token={token}&access_token={token}") as device:
        await device.send({"type": "ping"})
        assert await device.until_closed() == 4401


async def test_silence_closes_4401_after_five_seconds(node: Node) -> None:
    begun_s = time.monotonic()
    async with open_device(node.url) as device:
        assert await device.until_closed(AUTH_S + BUSY_S) == 4401
        only_refused(device, "NOT_LOGGED_IN")
    assert time.monotonic() - begun_s > AUTH_S - 0.5


async def test_other_path_is_404_and_no_socket(node: Node, token: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{node.url}/nowhere", token):
            pass
    assert refused.value.response.status_code == 404


# Renewing and expiring


@again_if_too_late
async def test_renewal_in_band(node: Node, cluster: Cluster, user_id: str) -> None:
    async with AsyncExitStack() as stack:
        with in_time(2):  # the token has more than that
            token = cluster.token(user_id, ttl_s=3)
            device = await stack.enter_async_context(connect(node.url, token))
            [first] = device.of_type("auth")
            await device.send({"type": "auth", "token": cluster.token(user_id)})
            await device.wait_for(lambda: len(device.of_type("auth")) == 2)
        assert device.of_type("auth")[1]["expiresAt"] > first["expiresAt"] + 3500_000
        await until(lambda: time.time() * 1000 > first["expiresAt"] + 200, 10)
        await device.ping()
        assert len(device.of_type("welcome")) == 1


@pytest.mark.parametrize("whose", ["nobody", "expired", "another"])
async def test_renewal_that_does_not_renew_closes_4401(
    node: Node, cluster: Cluster, user_id: str, device: Device, whose: str
) -> None:
    tokens = {
        "nobody": "bad",
        "expired": cluster.token(user_id, ttl_s=-1),
        "another": cluster.token("somebody-else"),
    }
    await device.send({"type": "auth", "token": tokens[whose]})
    assert await device.until_closed() == 4401
    [error] = device.of_type("error")
    assert error["error"]["message"] == "NOT_LOGGED_IN"


@again_if_too_late
async def test_expired_token_closes_4401(node: Node, cluster: Cluster, user_id: str) -> None:
    async with AsyncExitStack() as stack:
        with in_time(2):  # the token has more than that
            token = cluster.token(user_id, ttl_s=3)
            device = await stack.enter_async_context(connect(node.url, token))
            [auth] = device.of_type("auth")
            await device.wait_for(lambda: bool(device.of_type("auth.expiring")))
            await device.ping()
        assert await device.until_closed() == 4401
        assert time.time() * 1000 >= auth["expiresAt"]
        assert device.of_type("error")[-1]["error"]["message"] == "NOT_LOGGED_IN"


@again_if_too_late
async def test_expiry_is_announced_a_minute_before(
    node: Node, cluster: Cluster, user_id: str
) -> None:
    async with AsyncExitStack() as stack:
        with in_time(3):
            token = cluster.token(user_id, ttl_s=64)
            device = await stack.enter_async_context(connect(node.url, token))
            await device.ping()
            assert device.of_type("auth.expiring") == []
        await device.wait_for(lambda: bool(device.of_type("auth.expiring")))
        [auth] = device.of_type("auth")
        assert 60_000 - 1000 * BUSY_S < auth["expiresAt"] - time.time() * 1000 <= 60_000


# Subscribing


async def test_query_subscribes_at_once(node: Node, token: str, device: Device) -> None:
    budget_id = await a_budget(device, 4)
    for query, key in (("&key=2", 2), ("", 0), ("&key=", 0)):
        way: Way
        for way in ("header", "subprotocol", "frame"):
            url_query = f"?budgetId={budget_id.upper()}{query}"
            async with connect(node.url, token, way=way, query=url_query) as follower:
                stream = await follower.reached(budget_id, 5)
                assert (stream.key, stream.head, len(stream.events)) == (key, 5, 5 - key)
                assert "id" not in follower.of_type("subscribed")[0]


@pytest.mark.parametrize("query", ["?budgetId=1", "?budgetId={id}&key=x", "?budgetId={id}&key=-1"])
async def test_query_that_makes_no_sense_is_400(node: Node, token: str, query: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(node.url, token, query=query.replace("{id}", new_id())):
            pass
    assert refused.value.response.status_code == 400


async def test_query_for_no_budget_of_mine_leaves_the_connection(node: Node, token: str) -> None:
    async with connect(node.url, token, query=f"?budgetId={new_id()}") as device:
        await device.wait_for(lambda: bool(device.of_type("error")))
        [error] = device.of_type("error")
        assert (error["error"]["message"], "id" in error) == ("BUDGET_NOT_EXISTS", False)
        await device.ping()


async def test_subscribe_from_a_cursor(node: Node, token: str, device: Device) -> None:
    budget_id = await a_budget(device, 9)
    async with connect(node.url, token) as follower:
        for key in (7, 0, None, 9, 10):
            stream = await follower.subscribe(budget_id, key)
            assert stream.head == 10
            stream = await follower.reached(budget_id, 10)
            assert [event.body["sequence"] for event in stream.events] == list(
                range((key or 0) + 1, 11)
            )
        await device.accepted(expense_add(budget_id))
        await follower.reached(budget_id, 11)
        assert len(stream.events) == 1


async def test_cursor_ahead_of_the_head(device: Device) -> None:
    budget_id = await a_budget(device)
    with pytest.raises(Refused) as refused:
        await device.subscribe(budget_id, 2)
    assert refused.value.code == "CURSOR_AHEAD"
    assert refused.value.error["statusCode"] == 409
    stream = await device.subscribe(budget_id, 1)
    await device.accepted(expense_add(budget_id))
    await device.reached(budget_id, 2)
    assert len(stream.events) == 1


async def test_foreign_budget_is_an_unknown_one(
    node: Node, cluster: Cluster, device: Device
) -> None:
    budget_id, unknown_id = await a_budget(device), new_id()
    async with connect(node.url, cluster.token(f"user-{next(_users)}")) as stranger:
        refusals = []
        for refused_id in (budget_id, unknown_id):
            for key in (0, 1, 99):
                with pytest.raises(Refused) as refused:
                    await stranger.subscribe(refused_id, key)
                refusals.append(refused.value.error)
        assert refusals == [refusals[0]] * 6
        assert (refusals[0]["message"], refusals[0]["statusCode"]) == ("BUDGET_NOT_EXISTS", 404)

        verdicts = await stranger.submit([expense_add(budget_id), expense_add(unknown_id)], "each")
        for verdict, wanted in zip(verdicts, (budget_id, unknown_id), strict=True):
            assert (verdict["status"], verdict["budgetId"]) == ("rejected", wanted)
            assert verdict["error"] == refusals[0]
        await device.accepted(expense_add(budget_id))
        await stranger.ping()
        assert stranger.of_type("events") == []


async def test_subscribing_again_replaces(device: Device) -> None:
    budget_id = await a_budget(device, 4)
    before = await device.subscribe(budget_id)
    await device.reached(budget_id, 5)
    after = await device.subscribe(budget_id, 3)
    await device.accepted(expense_add(budget_id))
    await device.reached(budget_id, 6)
    await device.ping()  # a second copy of the event would have come before its answer
    assert (len(before.events), len(after.events)) == (5, 3)


async def test_unsubscribe(node: Node, token: str, device: Device) -> None:
    budget_id, other_id = await a_budget(device), await a_budget(device)
    async with connect(node.url, token) as follower:
        await follower.subscribe(budget_id)
        await follower.subscribe(other_id)
        await follower.unsubscribe(budget_id.upper())
        await device.accepted(expense_add(budget_id), expense_add(other_id))
        await follower.reached(other_id, 2)
        await follower.ping()
        assert follower.streams[budget_id].cursor == 1
        await follower.unsubscribe(budget_id)  # once more, and of what never was
        await follower.unsubscribe(new_id())
        await follower.subscribe(budget_id, 1)
        await follower.reached(budget_id, 2)


# Sending events


async def test_sender_sees_its_own_events_among_the_others(
    node: Node, token: str, device: Device
) -> None:
    async with connect(node.url, token) as other:
        budget_id = await a_budget(device)
        streams = [await each.subscribe(budget_id) for each in (device, other)]
        for _ in range(5):
            await device.accepted(expense_add(budget_id))
            await other.accepted(expense_add(budget_id))
        for each in (device, other):
            await each.reached(budget_id, 11)
        assert [e.raw for e in streams[0].events] == [e.raw for e in streams[1].events]


async def test_events_are_normalised_and_unknown_fields_ignored(
    device: Device, user_id: str
) -> None:
    budget_id = new_id()
    await device.ask({"type": "ping", "colour": "red"})
    create = budget_create(budget_id.upper(), title="Trip", colour="red")
    create["event"] = create.pop("eventType")  # as legacy clients call it
    create["eventId"] = create["eventId"].upper()
    add = expense_add(budget_id, amount="7.5", version=9, sequence=9, actorId="me", digest="0")
    [created, added] = await device.accepted(create, add)
    assert created["eventId"] == create["eventId"].lower()
    assert (created["budgetId"], created["eventType"]) == (budget_id, "budget.create")
    assert "event" not in created
    assert added["record"] == {
        "id": add["recordId"],
        "budgetId": budget_id,
        "categoryId": None,
        "createdBy": user_id,
        "date": "2026-11-21",
        "amount": "7.50",
        "note": None,
        "version": 1,
        "offlineLastModified": add["when"],
    }
    stream = await device.subscribe(budget_id)
    await device.reached(budget_id, 2)
    event = stream.events[1].body
    digest = event.pop("digest")
    assert len(digest) == 16 and set(digest) <= set("0123456789abcdef")
    assert event == {
        "sequence": 2,
        "eventId": add["eventId"],
        "eventType": "expense.add",
        "budgetId": budget_id,
        "recordId": add["recordId"],
        "actorId": user_id,
        "when": add["when"],
        "version": 1,
        "categoryId": None,
        "amount": "7.50",
        "date": "2026-11-21",
        "note": None,
    }


async def test_stop_ends_a_batch_at_the_first_refusal_and_each_does_not(device: Device) -> None:
    budget_id, record_id = new_id(), new_id()
    await device.accepted(budget_create(budget_id), expense_add(budget_id, recordId=record_id))
    known = expense_add(budget_id)
    await device.accepted(known)
    batch = [
        known,
        expense_add(budget_id),
        expense_edit(budget_id, record_id, 7, note="stale"),
        expense_add(budget_id, amount="1e3"),
        expense_add(budget_id),
    ]
    for mode in (None, "stop"):
        verdicts = await device.submit(batch, mode)
        assert [verdict["status"] for verdict in verdicts] == ["accepted", "accepted", "conflict"]
    verdicts = await device.submit(batch, "each")
    assert [verdict["status"] for verdict in verdicts] == [
        "accepted",
        "accepted",
        "conflict",
        "rejected",
        "accepted",
    ]
    assert [verdict.get("duplicate", False) for verdict in verdicts] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert verdicts[2]["currentRecord"]["version"] == 1
    assert verdicts[3]["error"]["message"] == "INVALID_EVENT"
    assert verdicts[3]["eventId"] == batch[3]["eventId"]
    assert verdicts[4]["sequence"] == 5


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{}] * 101,
        [{"eventType": "budget.create"}],
        [{"eventId": "1", "eventType": "budget.create"}],
        [{"eventId": 1}],
        ["event"],
        [None],
        "events",
        None,
        {"eventId": "00000000-0000-0000-0000-000000000000"},
    ],
    ids=[
        "none",
        "101",
        "no id",
        "no UUID",
        "number",
        "text",
        "null",
        "no list",
        "nothing",
        "object",
    ],
)
async def test_bad_envelope_is_an_error_with_the_id(device: Device, events: object) -> None:
    good = budget_create(new_id())
    if isinstance(events, list) and 0 < len(events) < 101:
        events = [good, *events]  # the whole batch is refused, the good with the bad
    with pytest.raises(Refused) as refused:
        await device.ask({"type": "events", "events": events, "mode": "each"})
    assert refused.value.error["statusCode"] == 400
    assert refused.value.error["retryable"] is False
    [verdict] = await device.accepted(good)
    assert "duplicate" not in verdict


async def test_lone_surrogate_is_one_events_verdict(device: Device) -> None:
    budget_id = await a_budget(device)
    events = [expense_add(budget_id), expense_add(budget_id, note="\ud800"), expense_add(budget_id)]
    await device.send_raw(
        json.dumps({"type": "events", "id": "odd", "events": events, "mode": "each"})
    )
    device.expect("odd", events, "each")
    verdicts = await device.verdicts("odd")
    assert [verdict["status"] for verdict in verdicts] == ["accepted", "rejected", "accepted"]
    assert verdicts[1]["error"]["message"] == "INVALID_EVENT"


async def test_long_verdicts_and_events_come_in_several_frames(
    node: Node, token: str, device: Device
) -> None:
    budget_id, record_id = new_id(), new_id()
    async with connect(node.url, token) as follower:
        await device.accepted(
            budget_create(budget_id), expense_add(budget_id, recordId=record_id, note=LONG_NOTE)
        )
        await follower.subscribe(budget_id)
        for _ in range(4):
            await device.post([expense_add(budget_id, note=LONG_NOTE) for _ in range(25)])
        stale = [expense_edit(budget_id, record_id, 9) for _ in range(100)]
        request_id = await device.post(stale, "each")
        verdicts = await device.verdicts(request_id)
        stream = await follower.reached(budget_id, 102)
    assert [verdict["eventId"] for verdict in verdicts] == [event["eventId"] for event in stale]
    assert {verdict["status"] for verdict in verdicts} == {"conflict"}
    assert {verdict["currentRecord"]["note"] for verdict in verdicts} == {LONG_NOTE}
    results = [frame for frame in device.frames if frame.body.get("id") == request_id]
    assert len(results) > 3
    assert max(len(frame.raw) for frame in (*results, *follower.frames)) <= FRAME_BYTES_MAX
    assert stream.events[-1].body["note"] == LONG_NOTE


# Frames that are none


async def test_ping_is_answered_under_its_id(device: Device) -> None:
    for request_id in (0, 1, 2**53 - 1, "", "a" * 64, "ü"):
        await device.send({"type": "ping", "id": request_id})
    await device.send({"type": "ping"})
    await device.send({"type": "ping", "id": None})
    await device.wait_for(lambda: len(device.of_type("pong")) == 8)
    pongs = device.of_type("pong")
    assert [pong.get("id") for pong in pongs[:6]] == [0, 1, 2**53 - 1, "", "a" * 64, "ü"]
    assert all("id" not in pong for pong in pongs[6:])
    assert all(abs(pong["serverTime"] - time.time() * 1000) < 60_000 for pong in pongs)


async def test_message_in_fragments_is_one_frame(device: Device) -> None:
    await device.socket.send(iter(['{"type":', '"ping"', ',"id":"whole"}']))
    await device.wait_for(lambda: bool(device.of_type("pong")))
    assert device.of_type("pong")[0]["id"] == "whole"


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "subscribe", "budgetId": "1"},
        {"type": "subscribe"},
        {"type": "subscribe", "budgetId": "00000000-0000-0000-0000-000000000000", "key": -1},
        {"type": "subscribe", "budgetId": "00000000-0000-0000-0000-000000000000", "key": "1"},
        {"type": "subscribe", "budgetId": "00000000-0000-0000-0000-000000000000", "key": True},
        {"type": "subscribe", "budgetId": "00000000-0000-0000-0000-000000000000", "key": 2**53},
        {"type": "unsubscribe", "budgetId": None},
        {"type": "events", "events": [], "mode": "some"},
        {"type": "auth"},
        {"type": "auth", "token": 1},
    ],
    ids=str,
)
async def test_wrong_field_is_an_error_with_the_id(device: Device, frame: Json) -> None:
    with pytest.raises(Refused) as refused:
        await device.ask(frame)
    assert (refused.value.error["statusCode"], refused.value.code) == (400, "BAD_FRAME")
    await device.ping()


async def test_wrong_id_is_not_echoed(device: Device) -> None:
    for request_id in ("-1", "1.5", "true", "[]", "{}", f'"{"a" * 65}"', '"\\ud800"', str(2**53)):
        await device.send_raw(f'{{"type":"ping","id":{request_id}}}')
    await device.ping()
    errors = device.of_type("error")
    assert [error["error"]["message"] for error in errors] == ["BAD_FRAME"] * 8
    assert all("id" not in error for error in errors)


NO_FRAMES = {
    "no JSON": "hello",
    "empty": "",
    "cut off": '{"type":"ping"',
    "array": '[{"type":"ping"}]',
    "number": "1",
    "null": "null",
    "text": '"ping"',
    "no type": "{}",
    "unknown type": '{"type":"pang"}',
    "type of no text": '{"type":["ping"]}',
    "server's type": '{"type":"welcome"}',
    "NaN": '{"type":"ping","id":NaN}',
    "too deep": '{"type":"ping","x":' + "[" * 50_000 + "]" * 50_000 + "}",
    "binary": b'{"type":"ping"}',
    "empty binary": b"",
}


@pytest.mark.parametrize("message", NO_FRAMES.values(), ids=NO_FRAMES.keys())
async def test_no_frame_of_this_protocol_closes_4400(device: Device, message: str | bytes) -> None:
    await device.send_raw(message)
    assert await device.until_closed() == 4400
    [error] = device.of_type("error")
    assert (error["error"]["statusCode"], error["error"]["message"]) == (400, "BAD_FRAME")


@pytest.mark.parametrize("message", ["hello", "[]", b"{}"])
async def test_no_frame_before_signing_in_closes_4400(node: Node, message: str | bytes) -> None:
    async with open_device(node.url) as device:
        await device.send_raw(message)
        assert await device.until_closed() == 4400
        only_refused(device, "BAD_FRAME")


async def test_text_that_is_not_utf8_is_no_frame(device: Device) -> None:
    await device.socket.send(b"\xff\xfe", text=True)
    assert await device.until_closed() == 1007


async def test_frame_of_256_kib_passes_and_one_byte_more_closes_1009(device: Device) -> None:
    start, end = '{"type":"ping","id":1,"pad":"', '"}'
    pad = "x" * (FRAME_BYTES_MAX - len(start) - len(end))
    await device.send_raw(f"{start}{pad}{end}")
    await device.wait_for(lambda: bool(device.of_type("pong")))
    await device.send_raw(f"{start}{pad}x{end}")
    assert await device.until_closed() == 1009


async def test_fragments_of_over_256_kib_close_1009(node: Node, device: Device) -> None:
    with suppress(ConnectionClosed):
        await device.socket.send(iter(["x" * 100_000] * 3))
    assert await device.until_closed() == 1009


async def test_too_much_before_signing_in_closes_1009(node: Node) -> None:
    async with open_device(node.url) as device:
        await device.send_raw("x" * (FRAME_BYTES_MAX + 1))
        assert await device.until_closed() == 1009


def frames_of(*pings: tuple[int, int]) -> bytes:
    """Masked WebSocket frames: for each id and size a ping of ours that long."""
    data = b""
    for request_id, size in pings:
        text = f'{{"type":"ping","id":{request_id},"pad":"'
        text += "x" * (size - len(text) - 2) + '"}'
        data += frames.Frame(frames.Opcode.TEXT, text.encode()).serialize(mask=True)
    return data


async def test_frames_are_found_however_the_stream_is_cut(device: Device) -> None:
    # The three forms of a length; all in one piece, then in pieces of every size.
    data = frames_of((1, 100), (2, 125), (3, 126), (4, 1000), (5, 65535), (6, 65536), (7, 100))
    head = frames_of((8, 60), (9, 130))
    pieces = [data]
    for at in range(1, len(head)):
        pieces += [head[:at], head[at:]]
    pieces += [head[at : at + 1] for at in range(len(head))]
    for piece in pieces:
        device.socket.transport.write(piece)
        await asyncio.sleep(0)
    heads = len(head)  # so often it was sent: cut at every place, and byte by byte
    await device.wait_for(lambda: len(device.of_type("pong")) == 7 + 2 * heads)
    assert [pong["id"] for pong in device.of_type("pong")] == [*range(1, 8), *[8, 9] * heads]


async def test_control_frames_between_fragments(device: Device) -> None:
    text = b'{"type":"ping","id":"whole"}'
    parts = [
        frames.Frame(frames.Opcode.TEXT, text[:5], fin=False),
        frames.Frame(frames.Opcode.PING, b"between"),
        frames.Frame(frames.Opcode.CONT, text[5:9], fin=False),
        frames.Frame(frames.Opcode.PONG, b"unasked"),
        frames.Frame(frames.Opcode.CONT, b"", fin=False),
        frames.Frame(frames.Opcode.CONT, text[9:]),
    ]
    device.socket.transport.write(b"".join(part.serialize(mask=True) for part in parts))
    await device.wait_for(lambda: bool(device.of_type("pong")))
    assert device.of_type("pong")[0]["id"] == "whole"
    await device.ping()


ILL_FORMED = {
    "not masked": frames.Frame(frames.Opcode.TEXT, b'{"type":"ping"}').serialize(mask=False),
    "reserved bit": b"\xc1\x80\x00\x00\x00\x00",
    "reserved opcode": b"\x83\x80\x00\x00\x00\x00",
    "continues nothing": b"\x80\x80\x00\x00\x00\x00",
    "message in a message": b"\x01\x80\x00\x00\x00\x00"
    + frames.Frame(frames.Opcode.TEXT, b'{"type":"ping"}').serialize(mask=True),
    "long control frame": b"\x89\xfe\x00\x80\x00\x00\x00\x00" + b"\x00" * 128,
    "control frame in parts": b"\x09\x80\x00\x00\x00\x00",
    "length of 63 bits": b"\x81\xff" + b"\xff" * 12,
}


@pytest.mark.parametrize("data", ILL_FORMED.values(), ids=ILL_FORMED.keys())
async def test_ill_formed_websocket_frame_ends_the_connection(device: Device, data: bytes) -> None:
    device.socket.transport.write(data)
    assert await device.until_closed() == (1009 if data[:2] == b"\x81\xff" else 1002)
    assert device.of_type("pong") == []


async def test_leaving_is_answered(device: Device) -> None:
    await device.socket.close(1000)
    assert await device.until_closed() == 1000
    assert device.of_type("error") == []


async def test_connection_cut_in_mid_frame_harms_nobody(node: Node, token: str) -> None:
    for _ in range(5):
        async with connect(node.url, token) as device:
            await device.post([budget_create(new_id())])
            device.socket.transport.write(b"\x81\xfe\xff")  # the head of a frame, and no more
            device.socket.transport.abort()


async def test_heads_come_with_every_heartbeat(bystander: Device) -> None:
    """Last, because by now the fifteen seconds are nearly over."""
    budget_id = await a_budget(bystander, 2)
    await bystander.subscribe(budget_id)
    await bystander.reached(budget_id, 3)
    seen = len(bystander.of_type("heads"))
    await bystander.wait_for(lambda: len(bystander.of_type("heads")) > seen, 60)
    assert bystander.of_type("heads")[-1]["heads"][budget_id] == 3


def only_refused(device: Device, code: str) -> None:
    """The device was told why it is not let in, and nothing else."""
    [frame] = device.frames
    assert (frame.body["type"], frame.body["error"]["message"]) == ("error", code)
