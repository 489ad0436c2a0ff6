"""Joining, leaving and removing over REST on real nodes, and what becomes of all their sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
from httpx2 import AsyncClient, Response

from storage.embedded.postgres import EmbeddedPostgres
from tests.cluster import BUSY_S, Cluster, Node, Process
from tests.conftest import with_database
from tests.device import (
    Device,
    Json,
    Refused,
    budget_create,
    budget_edit,
    connect,
    expense_add,
    new_id,
)
from tests.model import weight

P9_S = 2.0  # from removal to the end of the subscription, on every node
LIMIT = 10
BUDGET_DTO = ("id", "createdBy", "title", "details", "currency", "version", "offlineLastModified")

_users = count(1)


class User:
    """Somebody with a token, at one node. Each time a test asks for one it is somebody new."""

    def __init__(self, user_id: str, token: str, rest: AsyncClient) -> None:
        self.id = user_id
        self.token = token
        self.rest = rest

    async def join(self, budget_id: str) -> Response:
        return await self.rest.post(f"/budgets/{budget_id}/join")

    async def leave(self, budget_id: str) -> Response:
        return await self.rest.delete(f"/budgets/{budget_id}/leave")

    async def remove(self, budget_id: str, user_id: str) -> Response:
        path = f"/budgets/{budget_id}/participants/{quote(user_id, safe='')}"
        return await self.rest.delete(path)

    async def log(self, budget_id: str) -> list[Json]:
        response = await self.rest.get(f"/events?budgetId={budget_id}")
        assert response.status_code == 200, response.text
        events: list[Json] = response.json()["events"]
        return events

    async def submit(self, *events: Json) -> list[Json]:
        response = await self.rest.post("/events?mode=each", json={"events": events})
        verdicts: list[Json] = response.json()["events"]
        return verdicts

    async def new_budget(self, *guests: "User") -> str:
        """A budget of this user's; the guests join it."""
        budget_id = new_id()
        [verdict] = await self.submit(budget_create(budget_id))
        assert verdict["status"] == "accepted"
        for guest in guests:
            ok(await guest.join(budget_id))
        return budget_id


NewUser = Callable[..., User]


@pytest.fixture(scope="module")
async def nodes(cluster: Cluster) -> list[Node]:
    return await cluster.start_some(2)


@pytest.fixture
async def new_user(cluster: Cluster, nodes: list[Node]) -> AsyncIterator[NewUser]:
    async with AsyncExitStack() as stack:
        clients: list[AsyncClient] = []

        def make(user_id: str | None = None, node: int = 0) -> User:
            user_id = user_id or f"member-{next(_users)}"
            token = cluster.token(user_id)
            clients.append(nodes[node].rest(token))
            stack.push_async_callback(clients[-1].aclose)
            return User(user_id, token, clients[-1])

        yield make


@pytest.fixture
def ann(new_user: NewUser) -> User:
    """The owner of what the tests make."""
    return new_user()


@pytest.fixture
def ben(new_user: NewUser) -> User:
    return new_user(node=1)


@pytest.fixture
def zoe(new_user: NewUser) -> User:
    return new_user()


def ok(response: Response) -> Json:
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    body: Json = response.json()
    return body


def refused(response: Response, status: int, code: str) -> Json:
    """The error, without what differs from request to request."""
    assert response.status_code == status, response.text
    error: Json = response.json()["error"]
    assert set(error) == {"statusCode", "message", "detail", "retryable", "requestId"}
    assert (error["statusCode"], error["message"], error["retryable"]) == (status, code, False)
    return {**error, "requestId": None}


# What is answered


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_joining_is_answered_with_budget_and_participant(
    ann: User, ben: User, method: str
) -> None:
    budget_id = await ann.new_budget()
    body = ok(await ben.rest.request(method, f"/budgets/{budget_id.upper()}/join"))
    assert set(body) == {"budget", "participant"}
    snapshot = ok(await ann.rest.get(f"/budgets/{budget_id}"))
    assert {name: body["budget"][name] for name in BUDGET_DTO} == {
        name: snapshot[name] for name in BUDGET_DTO
    }
    assert body["budget"]["createdBy"] == ann.id
    assert body["budget"].keys().isdisjoint({"participants", "categories", "expenses"})
    joined_at = body["participant"]["joinedAt"]
    assert body["participant"] == {
        "userId": ben.id,
        "budgetId": budget_id,
        "role": "editor",
        "userExists": False,
        "firstName": None,
        "lastName": None,
        "photo": None,
        "joinedAt": joined_at,
    }
    assert [each["userId"] for each in snapshot["participants"]] == [ann.id, ben.id]
    assert snapshot["participants"][1] == body["participant"]
    assert isinstance(joined_at, int)
    # Whatever is so already is a success, and makes no event.
    for other in ("GET", "POST"):
        assert ok(await ben.rest.request(other, f"/budgets/{budget_id}/join")) == body
    assert len(await ann.log(budget_id)) == 2


async def test_participant_has_the_name_of_the_account_and_the_event_has_not(
    ann: User, nodes: list[Node]
) -> None:
    """P9."""
    account = {"email": "cyd@example.org", "password": "correct horse", "firstName": "Cyd Secret"}
    async with nodes[0].rest() as nobody:
        signed_in = (await nobody.post("/auth/register", json=account)).json()
    budget_id = await ann.new_budget()
    async with nodes[1].rest(signed_in["token"]) as rest:
        participant = ok(await rest.post(f"/budgets/{budget_id}/join"))["participant"]
    assert (participant["userExists"], participant["firstName"]) == (True, "Cyd Secret")
    assert "Secret" not in str(await ann.log(budget_id))


async def test_leaving_and_removing_are_answered_with_budget_and_user(
    ann: User, ben: User, zoe: User
) -> None:
    budget_id = await ann.new_budget(ben, zoe)
    for _ in range(3):
        left = ok(await ben.leave(budget_id.upper()))
        assert left == {"budgetId": budget_id, "userId": ben.id}
        removed = ok(await ann.remove(budget_id.upper(), zoe.id))
        assert removed == {"budgetId": budget_id, "userId": zoe.id}
    snapshot = ok(await ann.rest.get(f"/budgets/{budget_id}"))
    assert [each["userId"] for each in snapshot["participants"]] == [ann.id]
    assert len(await ann.log(budget_id)) == 5


async def test_every_way_out_is_a_success_for_who_is_out(ann: User, ben: User, zoe: User) -> None:
    budget_id = await ann.new_budget(ben, zoe)
    ok(await ben.leave(budget_id))
    for _ in range(2):
        ok(await ann.remove(budget_id, ben.id))  # he has left
        ok(await ann.remove(budget_id, zoe.id))
    ok(await zoe.leave(budget_id))  # she was removed
    assert len(await ann.log(budget_id)) == 6


async def test_p9_who_leaves_before_they_are_removed_stays_out(ann: User, ben: User) -> None:
    budget_id = await ann.new_budget(ben)
    ok(await ben.leave(budget_id))
    ok(await ann.remove(budget_id, ben.id))
    refused(await ben.join(budget_id), 403, "NOT_PARTICIPANT")
    refused(await ben.rest.get(f"/budgets/{budget_id}"), 403, "NOT_PARTICIPANT")


async def test_removing_oneself_is_leaving_however_often(ann: User, ben: User) -> None:
    budget_id = await ann.new_budget(ben)
    for _ in range(2):
        assert ok(await ben.remove(budget_id, ben.id)) == {"budgetId": budget_id, "userId": ben.id}
    ok(await ben.join(budget_id))  # of himself he left: he may come back


async def test_membership_is_streamed_to_who_is_there(
    ann: User, ben: User, zoe: User, nodes: list[Node]
) -> None:
    """The events of design 3.2, in one sequence with all others."""
    budget_id = await ann.new_budget()
    async with connect(nodes[1].url, ann.token) as device:
        await device.subscribe(budget_id, 1)
        joined_at = [
            ok(await user.join(budget_id))["participant"]["joinedAt"] for user in (ben, zoe)
        ]
        [edited] = await ben.submit(budget_edit(budget_id, 1, title="Ours"))
        assert (edited["status"], edited["sequence"]) == ("accepted", 4)
        ok(await ben.leave(budget_id))
        ok(await ann.remove(budget_id, zoe.id))
        stream = await device.reached(budget_id, 6)
    events = [event.body for event in stream.events]
    told = [(e["eventType"], e["recordId"], e["actorId"]) for e in events]
    assert told == [
        ("participant.add", ben.id, ben.id),
        ("participant.add", zoe.id, zoe.id),
        ("budget.edit", budget_id, ben.id),
        ("participant.remove", ben.id, ben.id),
        ("participant.remove", zoe.id, ann.id),
    ]
    for at, user, when in ((0, ben, 0), (1, zoe, 1), (3, ben, 0), (4, zoe, 1)):
        event = events[at]
        participant = {
            "userId": user.id,
            "budgetId": budget_id,
            "joinedAt": joined_at[when],
            "role": "editor",
        }
        assert event["participant"] == participant
        assert set(event) == {
            *("sequence", "eventId", "eventType", "budgetId", "recordId", "actorId", "when"),
            *("participant", "digest"),
        }
    # They change no record, but the digest counts who takes part.
    added = [weight("participant", user.id, 1, {"role": "editor"}) for user in (ben, zoe)]
    digests = [int(event["digest"], 16) for event in events]
    assert (digests[1] - digests[0]) % 2**64 == added[1]
    assert [(digests[at] - digests[at - 1]) % 2**64 for at in (3, 4)] == [
        -each % 2**64 for each in added
    ]
    of_rest = [
        {name: value for name, value in event.items() if name != "event"}
        for event in (await ann.log(budget_id))[1:]
    ]
    assert of_rest == events


# Who may not


async def test_foreign_budget_is_an_unknown_one(ann: User, ben: User, zoe: User) -> None:
    """P9. By its link it can be joined, for who has it."""
    budget_id, unknown_id = await ann.new_budget(ben), new_id()
    errors = []
    for asked_id in (budget_id, unknown_id):
        for response in (
            await zoe.leave(asked_id),
            await zoe.remove(asked_id, ann.id),
            await zoe.remove(asked_id, ben.id),
            await zoe.remove(asked_id, zoe.id),
            await zoe.remove(asked_id, "nobody"),
        ):
            errors.append(refused(response, 404, "BUDGET_NOT_EXISTS"))
    errors.append(refused(await zoe.join(unknown_id), 404, "BUDGET_NOT_EXISTS"))
    assert errors == [errors[0]] * 11
    assert len(await ann.log(budget_id)) == 2


async def test_deleted_budget_is_an_unknown_one_to_all(ann: User, ben: User, zoe: User) -> None:
    budget_id = await ann.new_budget(ben, zoe)
    ok(await zoe.leave(budget_id))
    delete = {**budget_edit(budget_id, 1), "eventType": "budget.delete"}
    assert [verdict["status"] for verdict in await ann.submit(delete)] == ["accepted"]
    for user in (ann, ben, zoe):
        refused(await user.join(budget_id), 404, "BUDGET_NOT_EXISTS")
        refused(await user.leave(budget_id), 404, "BUDGET_NOT_EXISTS")
        refused(await user.remove(budget_id, ben.id), 404, "BUDGET_NOT_EXISTS")


@pytest.mark.parametrize("how", ["left", "removed"])
async def test_former_participant_is_told_so_everywhere(
    ann: User, ben: User, zoe: User, how: str, nodes: list[Node]
) -> None:
    """P9."""
    budget_id = await ann.new_budget(ben, zoe)
    ok(await (ben.leave(budget_id) if how == "left" else ann.remove(budget_id, ben.id)))
    for path in (f"/budgets/{budget_id}", f"/events?budgetId={budget_id}"):
        refused(await ben.rest.get(path), 403, "NOT_PARTICIPANT")
    for user_id in (ann.id, zoe.id, "nobody"):
        refused(await ben.remove(budget_id, user_id), 403, "NOT_PARTICIPANT")
    [verdict] = await ben.submit(expense_add(budget_id))
    assert verdict["error"]["message"] == "NOT_PARTICIPANT"
    async with connect(nodes[0].url, ben.token) as device:
        for key in (0, 3, 99):
            with pytest.raises(Refused) as refusal:
                await device.subscribe(budget_id, key)
            assert refusal.value.code == "NOT_PARTICIPANT"
    assert len(await ann.log(budget_id)) == 4


async def test_only_the_owner_removes_others(ann: User, ben: User, zoe: User) -> None:
    budget_id = await ann.new_budget(ben, zoe)
    for user_id in (ann.id, zoe.id, "nobody"):
        refused(await ben.remove(budget_id, user_id), 403, "NOT_OWNER")
    refused(await ann.remove(budget_id, "nobody"), 404, "PARTICIPANT_NOT_EXISTS")
    assert len(await ann.log(budget_id)) == 3


async def test_owner_leaves_last_and_may_come_back(ann: User, ben: User) -> None:
    budget_id = await ann.new_budget(ben)
    for response in (await ann.leave(budget_id), await ann.remove(budget_id, ann.id)):
        refused(response, 409, "OWNER_CANNOT_LEAVE")
    ok(await ben.leave(budget_id))
    for _ in range(2):
        ok(await ann.leave(budget_id))
    refused(await ann.rest.get(f"/budgets/{budget_id}"), 403, "NOT_PARTICIPANT")
    ok(await ann.join(budget_id))
    ok(await ben.join(budget_id))
    ok(await ann.remove(budget_id, ben.id))  # still the owner


async def test_who_left_comes_back_and_who_was_removed_does_not(
    ann: User, ben: User, zoe: User, nodes: list[Node]
) -> None:
    """The one reads the whole log again, also what came while he was away."""
    budget_id = await ann.new_budget(ben, zoe)
    ok(await ben.leave(budget_id))
    ok(await ann.remove(budget_id, zoe.id))
    [meanwhile] = await ann.submit(expense_add(budget_id))
    assert meanwhile["sequence"] == 6
    for _ in range(2):
        refused(await zoe.join(budget_id), 403, "NOT_PARTICIPANT")
    before = ok(await ann.rest.get(f"/budgets/{budget_id}"))
    participant = ok(await ben.join(budget_id))["participant"]
    log = await ben.log(budget_id)
    assert [event["sequence"] for event in log] == list(range(1, 8))
    assert log[1]["participant"]["joinedAt"] <= participant["joinedAt"]
    assert log[6]["participant"]["joinedAt"] == participant["joinedAt"]
    async with connect(nodes[0].url, ben.token) as device:
        await device.subscribe(budget_id)
        stream = await device.reached(budget_id, 7)
        assert stream.events[0].body["eventType"] == "budget.create"
        await device.accepted(expense_add(budget_id))
        await device.reached(budget_id, 8)
    after = ok(await ben.rest.get(f"/budgets/{budget_id}"))
    assert [each["userId"] for each in after["participants"]] == [ann.id, ben.id]
    assert [each["userId"] for each in before["participants"]] == [ann.id]
    refused(await zoe.rest.get(f"/budgets/{budget_id}"), 403, "NOT_PARTICIPANT")


async def test_p2_a_full_budget_takes_nobody_more_however_many_come_at_once(
    ann: User, new_user: NewUser
) -> None:
    budget_id = await ann.new_budget()
    crowd = [new_user(node=number % 2) for number in range(2 * LIMIT)]
    responses = await asyncio.gather(*(user.join(budget_id) for user in crowd))
    inside = [user for user, r in zip(crowd, responses, strict=True) if r.status_code == 200]
    outside = [user for user in crowd if user not in inside]
    assert len(inside) == LIMIT - 1
    for user in outside:
        refused(await user.join(budget_id), 403, "PARTICIPANT_LIMIT_REACHED")
    ok(await inside[0].join(budget_id))  # who is in stays in
    ok(await inside[0].leave(budget_id))
    ok(await outside[0].join(budget_id))
    refused(await inside[0].join(budget_id), 403, "PARTICIPANT_LIMIT_REACHED")
    snapshot = ok(await ann.rest.get(f"/budgets/{budget_id}"))
    assert len(snapshot["participants"]) == LIMIT


# What clients might try


async def test_clients_cannot_make_membership_events_nor_use_their_ids(
    ann: User, ben: User, nodes: list[Node]
) -> None:
    budget_id = await ann.new_budget(ben)
    [joined] = (await ann.log(budget_id))[1:]
    forged = [
        {**joined, "eventId": new_id()},
        {**joined, "eventId": new_id(), "userId": "zoe", "participantsMax": 99},
        {**joined, "eventId": new_id(), "eventType": "participant.remove"},
        {**joined, "recordId": new_id()},
    ]
    for user in (ann, ben):
        verdicts = await user.submit(*forged)
        assert [v["error"]["message"] for v in verdicts] == ["INVALID_EVENT"] * len(forged)
        async with connect(nodes[1].url, user.token) as device:
            verdicts = await device.submit(forged, "each")
            assert [v["error"]["message"] for v in verdicts] == ["INVALID_EVENT"] * len(forged)
            [verdict] = await device.submit(
                [{**expense_add(budget_id), "eventId": joined["eventId"]}]
            )
            assert verdict["error"]["message"] == "EVENT_ID_REUSED"
    assert len(await ann.log(budget_id)) == 2


WEIRD = {
    "unicode": "zoé 🥞\u202e",
    "percent": "100%25%00",
    "dots": "...",
    "spaces": "  ",
    "line": "a\nb",
    "query": "a?b=c#d&e",
    "quotes": "'\"\\;--",
    "longest": "ß" * 128,
}


@pytest.mark.parametrize("user_id", WEIRD.values(), ids=WEIRD)
async def test_user_ids_are_opaque_text(
    ann: User, ben: User, new_user: NewUser, user_id: str
) -> None:
    budget_id = await ann.new_budget(ben)
    refused(await ben.remove(budget_id, user_id), 403, "NOT_OWNER")
    refused(await ann.remove(budget_id, user_id), 404, "PARTICIPANT_NOT_EXISTS")
    weird = new_user(user_id)
    assert ok(await weird.join(budget_id))["participant"]["userId"] == user_id
    for _ in range(2):
        removed = ok(await ann.remove(budget_id, user_id))
        assert removed == {"budgetId": budget_id, "userId": user_id}
    refused(await weird.join(budget_id), 403, "NOT_PARTICIPANT")
    assert len(await ann.log(budget_id)) == 4


async def test_user_id_with_a_slash_can_be_removed_too(ann: User, new_user: NewUser) -> None:
    budget_id = await ann.new_budget()
    ok(await new_user("auth/zoe").join(budget_id))
    assert ok(await ann.remove(budget_id, "auth/zoe"))["userId"] == "auth/zoe"


@pytest.mark.parametrize(
    "written",
    ["%00", "ben%00", "x" * 129, "x" * 20_000, "%F0%9F%A5%9E" * 129, "%ff", "%C3%28", "%ED%A0%80"],
    ids=["NUL", "ends NUL", "129", "20000", "129 pancakes", "no UTF-8", "cut", "surrogate"],
)
async def test_user_id_that_nobody_has_is_no_participant(ann: User, written: str) -> None:
    """Neither the hub nor Postgres stumbles, whatever stands in the path."""
    budget_id = await ann.new_budget()
    response = await ann.rest.delete(f"/budgets/{budget_id}/participants/{written}")
    refused(response, 404, "PARTICIPANT_NOT_EXISTS")
    assert len(await ann.log(budget_id)) == 1


async def test_no_user_id_is_no_path(ann: User) -> None:
    budget_id = await ann.new_budget()
    response = await ann.rest.delete(f"/budgets/{budget_id}/participants/")
    refused(response, 404, "NOT_FOUND")


@pytest.mark.parametrize("written", ["1", "%00", "{id}%00", "{id}x", "%F0%9F%A5%9E", "x" * 5000])
async def test_budget_id_that_is_none_is_400(ann: User, written: str) -> None:
    budget_id = written.replace("{id}", new_id())
    refused(await ann.rest.post(f"/budgets/{budget_id}/join"), 400, "BAD_REQUEST")
    refused(await ann.rest.delete(f"/budgets/{budget_id}/leave"), 400, "BAD_REQUEST")
    path = f"/budgets/{budget_id}/participants/ben"
    refused(await ann.rest.delete(path), 400, "BAD_REQUEST")


ROUTES = {
    "/budgets/{id}/join": {"GET", "POST"},
    "/budgets/{id}/leave": {"DELETE"},
    "/budgets/{id}/participants/ben": {"GET", "DELETE"},
}


@pytest.mark.parametrize(("path", "known"), ROUTES.items())
async def test_wrong_method_is_405(ann: User, path: str, known: set[str]) -> None:
    path = path.replace("{id}", await ann.new_budget())
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - known:
        response = await ann.rest.request(method, path)
        refused(response, 405, "METHOD_NOT_ALLOWED")
        assert known == set(response.headers["Allow"].split(", ")) - {"HEAD"}


async def test_a_head_does_not_join(ann: User, ben: User) -> None:
    budget_id = await ann.new_budget()
    response = await ben.rest.head(f"/budgets/{budget_id}/join")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, POST")
    assert len(await ann.log(budget_id)) == 1


@pytest.mark.parametrize(("path", "known"), ROUTES.items())
async def test_no_or_bad_token_is_401(
    ann: User, cluster: Cluster, nodes: list[Node], path: str, known: set[str]
) -> None:
    """… before anything else is looked at."""
    budget_id = await ann.new_budget()
    expired = f"Bearer {cluster.token(ann.id, ttl_s=-1)}"
    async with nodes[0].rest() as nobody:
        for method in known:
            for asked in (budget_id, new_id(), "no id"):
                for header in ("", "Bearer", "Bearer bad", "Basic dTpw", expired):
                    response = await nobody.request(
                        method, path.replace("{id}", asked), headers={"Authorization": header}
                    )
                    refused(response, 401, "NOT_LOGGED_IN")
    assert len(await ann.log(budget_id)) == 1


# Sockets


@pytest.mark.parametrize("how", ["left", "removed"])
async def test_p9_the_subscriptions_of_who_is_out_end_on_every_node(
    ann: User, ben: User, nodes: list[Node], how: str
) -> None:
    """All of his devices; the last event they get is the one that says so. The owner's go on."""
    budget_id, elsewhere_id = await ann.new_budget(ben), await ben.new_budget()
    async with AsyncExitStack() as stack:

        async def device(node: Node, user: User) -> Device:
            device = await stack.enter_async_context(connect(node.url, user.token))
            await device.subscribe(budget_id)
            await device.reached(budget_id, 2)
            return device

        his = [await device(node, ben) for node in nodes]
        hers = [await device(node, ann) for node in nodes]
        for each in his:
            await each.subscribe(elsewhere_id)
        ok(await (ben.leave(budget_id) if how == "left" else ann.remove(budget_id, ben.id)))
        for each in his:
            await put_out(each)
            [frame] = unsubscribed(each)
            assert (frame["budgetId"], frame["code"]) == (budget_id, "NOT_PARTICIPANT")
            assert "id" not in frame
            last = each.streams[budget_id].events[-1].body
            assert (last["sequence"], last["eventType"]) == (3, "participant.remove")
        assert [v["status"] for v in await ann.submit(expense_add(budget_id))] == ["accepted"]
        for each in hers:
            await each.reached(budget_id, 4)
            assert unsubscribed(each) == []
        # His other budget is not concerned, and nothing more of this one came.
        [verdict] = await his[0].submit([expense_add(elsewhere_id)])
        for each in his:
            await each.reached(elsewhere_id, verdict["sequence"])
            assert each.streams[budget_id].cursor == 3
            with pytest.raises(Refused) as refusal:
                await each.subscribe(budget_id, 3)
            assert refusal.value.code == "NOT_PARTICIPANT"


async def test_p9_who_comes_back_subscribes_again_on_the_same_socket(
    ann: User, ben: User, nodes: list[Node]
) -> None:
    budget_id = await ann.new_budget(ben)
    async with connect(nodes[0].url, ben.token) as device:
        for times in range(3):
            sequence = 2 + 2 * times
            await device.subscribe(budget_id)
            await device.reached(budget_id, sequence)
            ok(await ben.leave(budget_id))  # at the other node
            await put_out(device, times + 1)
            ok(await ben.join(budget_id))
        await device.subscribe(budget_id, 7)
        await device.reached(budget_id, 8)
        await device.accepted(expense_add(budget_id))
        await device.reached(budget_id, 9)


async def put_out(device: Device, times: int = 1) -> None:
    """Wait until it was unsubscribed so often."""
    await device.wait_for(lambda: len(unsubscribed(device)) == times, P9_S + BUSY_S)


def unsubscribed(device: Device) -> list[Json]:
    return device.of_type("unsubscribed")


# Carried elsewhere


async def test_such_a_budget_is_verified_exported_and_imported(
    ann: User,
    ben: User,
    zoe: User,
    new_user: NewUser,
    cluster: Cluster,
    cluster_database_url: str,
    postgres: EmbeddedPostgres,
    template: str,
    tmp_path: Path,
) -> None:
    """Where it goes, who left may still come back and who was removed may not."""
    kim = new_user()
    budget_id = await ann.new_budget(ben, zoe, kim)
    ok(await ben.leave(budget_id))
    ok(await ben.join(budget_id))
    [verdict] = await ben.submit(expense_add(budget_id))
    assert verdict["status"] == "accepted"
    ok(await ben.leave(budget_id))
    ok(await ann.remove(budget_id, zoe.id))
    snapshot = ok(await ann.rest.get(f"/budgets/{budget_id}"))
    log = await ann.log(budget_id)

    async def run(name: str, database_url: str, *arguments: str | Path) -> str:
        environ = {"DATABASE_URL": database_url, "PYTHONWARNINGS": "error"}
        process = Process(tmp_path, name, arguments, environ)
        try:
            assert await process.ended() == 0, process.out + process.err
        finally:
            await process.close()
        return process.out

    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE members_elsewhere TEMPLATE {template}")
    elsewhere_url = with_database(postgres.url, "members_elsewhere")
    there: Node | None = None
    try:
        await run("verify-here", cluster_database_url, "verify", "--budget", budget_id)
        file = tmp_path / "budget.jsonl"
        file.write_text(await run("export", cluster_database_url, "export", budget_id))
        await run("import", elsewhere_url, "import", file)
        await run("verify-there", elsewhere_url, "verify")
        there = await cluster.start(DATABASE_URL=elsewhere_url)
        async with AsyncExitStack() as stack:

            async def moved(user: User) -> User:
                assert there is not None
                rest = await stack.enter_async_context(there.rest(user.token))
                return User(user.id, user.token, rest)

            ann_, ben_, zoe_, kim_ = [await moved(user) for user in (ann, ben, zoe, kim)]
            assert await ann_.log(budget_id) == log
            same = ok(await ann_.rest.get(f"/budgets/{budget_id}"))
            assert {**same, "logId": None} == {**snapshot, "logId": None}
            refused(await zoe_.join(budget_id), 403, "NOT_PARTICIPANT")
            ok(await ben_.join(budget_id))
            ok(await ann_.remove(budget_id, kim_.id))
            assert len(await ann_.log(budget_id)) == len(log) + 2
        await run("verify-later", elsewhere_url, "verify", "--budget", budget_id)
    finally:
        if there is not None:
            await there.close()
        await admin.execute("DROP DATABASE members_elsewhere WITH (FORCE)")
        await admin.close()
