"""Invites, link sharing, profiles and the closing of an account, on a real node."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from storage.postgres.core.invites import INVITES_MAX
from tests.cluster import Cluster, Node
from tests.device import Json, budget_create, new_id


class Person:
    """A user's way to the REST interface."""

    def __init__(self, user_id: str, rest: httpx2.AsyncClient) -> None:
        self.id = user_id
        self.rest = rest

    async def ask(self, method: str, path: str, status: int = 200, **how: Any) -> Json:
        answer = await self.rest.request(method, path, **how)
        assert answer.status_code == status, answer.text
        body: Json = answer.json()
        return body

    async def refused(self, method: str, path: str, **how: Any) -> str:
        """The code of the error."""
        answer = await self.rest.request(method, path, **how)
        error = answer.json()["error"]
        assert answer.status_code == error["statusCode"]
        assert error["requestId"] == answer.headers["x-request-id"]
        code: str = error["message"]
        return code


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start(MAX_PARTICIPANTS="3")


@pytest.fixture
async def people(cluster: Cluster, node: Node) -> AsyncIterator[list[Person]]:
    """Four, the first of whom owns `budget_id`."""
    names = [f"{name}-{new_id()[:8]}" for name in ("ann", "ben", "cid", "dot")]
    found = [Person(name, node.rest(cluster.token(name))) for name in names]
    yield found
    for person in found:
        await person.rest.aclose()


@pytest.fixture
async def budget_id(people: list[Person]) -> str:
    budget_id = new_id()
    await people[0].ask("POST", "/events", json={"events": [budget_create(budget_id)]})
    return budget_id


async def members(person: Person, budget_id: str) -> list[str]:
    body = await person.ask("GET", f"/budgets/{budget_id}/participants")
    return [participant["userId"] for participant in body["participants"]]


async def test_the_bare_id_is_a_link_until_the_owner_says_otherwise(
    people: list[Person], budget_id: str
) -> None:
    ann, ben, cid, _ = people
    joined = await ben.ask("GET", f"/budgets/{budget_id}/join")
    assert (joined["budget"]["id"], joined["participant"]["userId"]) == (budget_id, ben.id)
    assert await ben.ask("POST", f"/budgets/{budget_id}/join") == joined
    assert await ben.refused(
        "PUT", f"/budgets/{budget_id}/link-sharing", json={"enabled": False}
    ) == ("NOT_OWNER")
    await ann.ask("PUT", f"/budgets/{budget_id}/link-sharing", json={"enabled": False})
    assert await cid.refused("POST", f"/budgets/{budget_id}/join") == "BUDGET_NOT_EXISTS"
    await ben.ask("DELETE", f"/budgets/{budget_id}/leave")
    await ben.ask("DELETE", f"/budgets/{budget_id}/leave")
    assert await ben.refused("POST", f"/budgets/{budget_id}/join") == "NOT_PARTICIPANT"
    await ann.ask("PUT", f"/budgets/{budget_id}/link-sharing", json={"enabled": True})
    await ben.ask("POST", f"/budgets/{budget_id}/join")
    assert await members(ann, budget_id) == [ann.id, ben.id]


async def test_an_invite_lets_in_as_often_as_it_says(people: list[Person], budget_id: str) -> None:
    ann, ben, cid, _ = people
    await ann.ask("PUT", f"/budgets/{budget_id}/link-sharing", json={"enabled": False})
    made = await ann.ask("POST", f"/budgets/{budget_id}/invites", 201, json={"maxUses": 1})
    join = f"/budgets/{budget_id}/join?invite={made['token']}"
    await ben.ask("POST", join)
    await ben.ask("POST", join)  # again costs no use
    assert await cid.refused("POST", join) == "INVITE_NOT_VALID"
    wrong = f"/budgets/{budget_id}/join?invite=guessed"
    assert await cid.refused("POST", wrong) == "BUDGET_NOT_EXISTS"
    [listed] = (await ann.ask("GET", f"/budgets/{budget_id}/invites"))["invites"]
    assert (listed["inviteId"], listed["uses"], listed["maxUses"]) == (made["inviteId"], 1, 1)
    assert made["token"] not in str(listed)
    assert await ben.refused("GET", f"/budgets/{budget_id}/invites") == "NOT_OWNER"
    assert await cid.refused("GET", f"/budgets/{budget_id}/invites") == "BUDGET_NOT_EXISTS"


async def test_a_revoked_invite_and_one_of_another_budget_let_nobody_in(
    people: list[Person], budget_id: str
) -> None:
    ann, ben, _, _ = people
    other = new_id()
    await ann.ask("POST", "/events", json={"events": [budget_create(other)]})
    await ann.ask("PUT", f"/budgets/{budget_id}/link-sharing", json={"enabled": False})
    elsewhere = await ann.ask("POST", f"/budgets/{other}/invites", 201, json={})
    foreign = f"/budgets/{budget_id}/join?invite={elsewhere['token']}"
    assert await ben.refused("POST", foreign) == "BUDGET_NOT_EXISTS"
    made = await ann.ask("POST", f"/budgets/{budget_id}/invites", 201, json={})
    revoke = f"/budgets/{budget_id}/invites/{made['inviteId']}"
    assert await ann.ask("DELETE", revoke) == await ann.ask("DELETE", revoke)
    assert await ann.refused("DELETE", f"/budgets/{budget_id}/invites/{new_id()}") == (
        "INVITE_NOT_EXISTS"
    )
    join = f"/budgets/{budget_id}/join?invite={made['token']}"
    assert await ben.refused("POST", join) == "INVITE_NOT_VALID"


async def test_revoked_invites_make_room_for_new_ones(people: list[Person], budget_id: str) -> None:
    ann, ben, _, _ = people
    path = f"/budgets/{budget_id}/invites"
    made = [await ann.ask("POST", path, 201, json={}) for _ in range(INVITES_MAX)]
    assert await ann.refused("POST", path, json={}) == "BAD_REQUEST"
    await ann.ask("DELETE", f"{path}/{made[0]['inviteId']}")
    new = await ann.ask("POST", path, 201, json={})
    assert await ann.refused("POST", path, json={}) == "BAD_REQUEST"
    listed = [invite["inviteId"] for invite in (await ann.ask("GET", path))["invites"]]
    assert sorted(listed) == sorted(invite["inviteId"] for invite in [*made[1:], new])
    await ben.ask("POST", f"/budgets/{budget_id}/join?invite={new['token']}")


async def test_numbers_of_an_invite_may_be_written_as_json_allows(
    people: list[Person], budget_id: str
) -> None:
    path = f"/budgets/{budget_id}/invites"
    made = await people[0].ask("POST", path, 201, json={"maxUses": 2.0, "expiresInS": 60.0})
    assert made["maxUses"] == 2
    assert await people[0].refused("POST", path, json={"maxUses": 2.5}) == "BAD_REQUEST"
    assert await people[0].refused("POST", path, json={"maxUses": True}) == "BAD_REQUEST"


async def test_p9_who_was_removed_needs_an_invite_made_later(
    people: list[Person], budget_id: str
) -> None:
    ann, ben, _, _ = people
    old = await ann.ask("POST", f"/budgets/{budget_id}/invites", 201, json={})
    await ben.ask("POST", f"/budgets/{budget_id}/join")
    await ann.ask("DELETE", f"/budgets/{budget_id}/participants/{ben.id}")
    assert await ben.refused("POST", f"/budgets/{budget_id}/join") == "NOT_PARTICIPANT"
    stale = f"/budgets/{budget_id}/join?invite={old['token']}"
    assert await ben.refused("POST", stale) == "NOT_PARTICIPANT"
    new = await ann.ask("POST", f"/budgets/{budget_id}/invites", 201, json={})
    await ben.ask("POST", f"/budgets/{budget_id}/join?invite={new['token']}")
    assert await members(ann, budget_id) == [ann.id, ben.id]


async def test_a_full_budget_takes_nobody_else(people: list[Person], budget_id: str) -> None:
    _, ben, cid, dot = people
    await ben.ask("POST", f"/budgets/{budget_id}/join")
    await cid.ask("POST", f"/budgets/{budget_id}/join")
    assert await dot.refused("POST", f"/budgets/{budget_id}/join") == "PARTICIPANT_LIMIT_REACHED"
    await ben.ask("POST", f"/budgets/{budget_id}/join")  # who is in stays in


async def test_a_profile_shows_its_email_to_its_owner_only(people: list[Person]) -> None:
    ann, ben, _, _ = people
    assert await ann.refused("GET", "/user") == "USER_NOT_FOUND"
    body = {"email": "ann@example.org", "firstName": "Ann"}
    made = await ann.ask("PUT", "/user", json=body)
    assert made == {
        "id": ann.id,
        "firstName": "Ann",
        "lastName": None,
        "photo": None,
        "email": "ann@example.org",
    }
    changed = await ann.ask("PUT", "/user", json={"lastName": "Lee", "firstName": None})
    assert (changed["firstName"], changed["lastName"]) == (None, "Lee")
    assert await ann.ask("GET", "/user") == changed
    seen = await ben.ask("GET", f"/profiles/{ann.id}")
    assert seen == {"id": ann.id, "firstName": None, "lastName": "Lee", "photo": None}
    assert await ben.refused("GET", "/profiles/nobody") == "USER_NOT_FOUND"
    assert await ben.refused("GET", "/profiles/%00") == "USER_NOT_FOUND"
    assert await ann.refused("PUT", "/user", json={"email": "no e-mail"}) == "BAD_REQUEST"


async def test_who_signs_in_by_an_email_cannot_be_without_one(node: Node) -> None:
    login = {"email": f"{new_id()}@example.org", "password": "correct horse battery"}
    async with node.rest() as nobody:
        made = (await nobody.post("/auth/register", json=login)).json()
        async with node.rest(made["token"]) as rest:
            zoe = Person(made["userId"], rest)
            assert await zoe.refused("PUT", "/user", json={"email": None}) == "BAD_REQUEST"
            other = {**login, "email": f"{new_id()}@example.org"}
            await zoe.ask("PUT", "/user", json={"email": other["email"], "firstName": "Zoe"})
        assert (await nobody.post("/auth/login", json=login)).status_code == 401
        assert (await nobody.post("/auth/login", json=other)).status_code == 200


async def test_a_profile_is_found_by_whatever_its_user_is_called(
    cluster: Cluster, node: Node, people: list[Person]
) -> None:
    user_id = f"a/b ?#\n{new_id()}"
    async with node.rest(cluster.token(user_id)) as rest:
        await Person(user_id, rest).ask("PUT", "/user", json={"firstName": "Odd"})
    seen = await people[0].ask("GET", f"/profiles/{quote(user_id, safe='')}")
    assert (seen["id"], seen["firstName"]) == (user_id, "Odd")


async def test_a_closed_account_leaves_its_budgets_to_who_joined_first(
    people: list[Person], budget_id: str
) -> None:
    ann, ben, cid, _ = people
    await ann.ask("PUT", "/user", json={"firstName": "Ann"})
    await cid.ask("POST", f"/budgets/{budget_id}/join")
    await ben.ask("POST", f"/budgets/{budget_id}/join")
    assert await ann.refused("DELETE", f"/budgets/{budget_id}/leave") == "OWNER_CANNOT_LEAVE"
    assert await ann.ask("DELETE", "/user") == {"userId": ann.id}
    await ann.ask("DELETE", "/user")  # the answer may have been lost
    for path in ("/user", f"/budgets/{budget_id}"):
        assert await ann.refused("GET", path) == "NOT_LOGGED_IN"
    events = await ben.ask("GET", f"/events?budgetId={budget_id}")
    last = events["events"][-1]
    assert (last["eventType"], last["recordId"], last["owner"]) == (
        "participant.remove",
        ann.id,
        cid.id,
    )
    await cid.ask("DELETE", f"/budgets/{budget_id}/participants/{ben.id}")  # as an owner may
    assert await members(cid, budget_id) == [cid.id]
