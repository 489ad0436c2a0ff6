"""REST on a real process: events in and out, budgets, signing in, and the one shape of errors."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count

import orjson
import pytest
from httpx2 import AsyncClient, Response

from tests.cluster import Cluster, Node
from tests.device import (
    Json,
    budget_create,
    budget_edit,
    category_add,
    connect,
    expense_add,
    expense_edit,
    new_id,
)

BODY_BYTES_MAX = 256 * 1024
EVENTS_MAX = 25
PAGE_MAX = 100

_users = count(1)


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.fixture
def user_id() -> str:
    return f"user-{next(_users)}"


@pytest.fixture
async def rest(node: Node, cluster: Cluster, user_id: str) -> AsyncIterator[AsyncClient]:
    async with node.rest(cluster.token(user_id)) as rest:
        yield rest


@pytest.fixture
async def stranger(node: Node, cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with node.rest(cluster.token(f"user-{next(_users)}")) as rest:
        yield rest


@pytest.fixture
async def nobody(node: Node) -> AsyncIterator[AsyncClient]:
    async with node.rest() as rest:
        yield rest


async def submit(rest: AsyncClient, *events: Json) -> list[Json]:
    """Submit in mode `stop`; all are accepted."""
    response = await rest.post("/events", json={"events": events})
    assert response.status_code == 200, response.text
    verdicts: list[Json] = response.json()["events"]
    assert [verdict["status"] for verdict in verdicts] == ["accepted"] * len(events)
    return verdicts


async def a_budget(rest: AsyncClient, expenses: int = 0) -> str:
    budget_id = new_id()
    await submit(rest, budget_create(budget_id))
    left = expenses
    while left:
        part = min(left, EVENTS_MAX)
        await submit(rest, *(expense_add(budget_id) for _ in range(part)))
        left -= part
    return budget_id


def refused(response: Response, status: int, code: str) -> Json:
    """The error, which has the one shape that all have."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error: Json = body["error"]
    assert set(error) == {"statusCode", "message", "detail", "retryable", "requestId"}
    assert (error["statusCode"], error["message"]) == (status, code)
    assert error["detail"] and isinstance(error["detail"], str)
    assert error["retryable"] is (code in ("BUSY", "UNAVAILABLE"))
    assert error["requestId"] == response.headers["X-Request-Id"]
    return error


# POST /events


async def test_verdicts_of_a_batch(rest: AsyncClient, user_id: str) -> None:
    budget_id, record_id = new_id(), new_id()
    create, add = budget_create(budget_id), category_add(budget_id, recordId=record_id)
    [created, added] = await submit(rest, create, add)
    assert created == {
        "eventId": create["eventId"],
        "eventType": "budget.create",
        "event": "budget.create",
        "budgetId": budget_id,
        "recordId": budget_id,
        "status": "accepted",
        "sequence": 1,
        "version": 1,
        "record": {
            "id": budget_id,
            "createdBy": user_id,
            "title": "Trip",
            "details": None,
            "currency": None,
            "version": 1,
            "offlineLastModified": create["when"],
        },
    }
    assert (added["event"], added["sequence"], added["recordId"]) == ("category.add", 2, record_id)
    assert added["record"]["allocate"] == "100.00"
    again = await submit(rest, create, add)
    assert again == [{**created, "duplicate": True}, {**added, "duplicate": True}]


async def test_legacy_clients_write_event(rest: AsyncClient) -> None:
    budget_id = new_id()
    create = budget_create(budget_id)
    legacy = {**create, "event": create["eventType"]}
    del legacy["eventType"]
    [verdict] = await submit(rest, legacy)
    assert verdict["event"] == verdict["eventType"] == "budget.create"
    [again] = await submit(rest, create)  # the same event, whatever the name of its type
    assert again["duplicate"] is True


@pytest.mark.parametrize("mode", ["", "?mode=stop", "?mode=each"])
async def test_modes(rest: AsyncClient, mode: str) -> None:
    budget_id, record_id = new_id(), new_id()
    batch = [
        budget_create(budget_id),
        expense_add(budget_id, recordId=record_id),
        expense_edit(budget_id, record_id, 2, note="from the future"),
        expense_add(budget_id, categoryId=new_id()),
        {"eventId": new_id(), "eventType": "no.such"},
        expense_edit(budget_id, record_id, 1, note="in time"),
    ]
    response = await rest.post(f"/events{mode}", json={"events": batch})
    verdicts = response.json()["events"]
    outcomes = [v["error"]["message"] if "error" in v else v["status"] for v in verdicts]
    wanted = ["accepted", "accepted", "conflict"]
    if mode == "?mode=each":
        wanted += ["CATEGORY_NOT_EXISTS", "INVALID_EVENT", "accepted"]
    assert outcomes == wanted
    assert response.status_code == (207 if mode == "?mode=each" else 200)
    assert [verdict["eventId"] for verdict in verdicts] == [
        event["eventId"] for event in batch[: len(wanted)]
    ]
    assert verdicts[2]["currentRecord"]["version"] == 1


async def test_each_that_is_wholly_accepted_is_200(rest: AsyncClient) -> None:
    batch = {"events": [budget_create(new_id())]}
    for _ in range(2):  # a duplicate counts as accepted
        response = await rest.post("/events?mode=each", json=batch)
        assert response.status_code == 200


async def test_stale_edit_changes_nothing(rest: AsyncClient) -> None:
    budget_id = await a_budget(rest)
    edits = [budget_edit(budget_id, 1, title=title) for title in ("First", "Second")]
    await submit(rest, edits[0])
    response = await rest.post("/events", json={"events": edits[1:]})
    [verdict] = response.json()["events"]
    assert verdict["status"] == "conflict"
    assert (verdict["currentRecord"]["title"], verdict["currentRecord"]["version"]) == ("First", 2)
    assert (await rest.get(f"/budgets/{budget_id}")).json()["title"] == "First"


async def test_event_id_names_one_event_for_ever(rest: AsyncClient, stranger: AsyncClient) -> None:
    budget_id = await a_budget(rest)
    event = expense_add(budget_id, amount="1.5")
    await submit(rest, event)
    same = {**event, "amount": "1.50"}
    other = {**event, "amount": "1.51"}
    response = await rest.post("/events?mode=each", json={"events": [same, other]})
    [duplicate, reused] = response.json()["events"]
    assert duplicate["duplicate"] is True
    assert reused["error"]["message"] == "EVENT_ID_REUSED"
    assert "record" not in reused and "currentRecord" not in reused
    [verdict] = (await stranger.post("/events", json={"events": [event]})).json()["events"]
    assert verdict["error"]["message"] == "BUDGET_NOT_EXISTS"


@pytest.mark.parametrize(
    "body",
    [
        {"events": []},
        {"events": [{"eventId": "00000000-0000-4000-8000-000000000000"}] * (EVENTS_MAX + 1)},
        {"events": [{"eventType": "budget.create"}]},
        {"events": [{"eventId": "no UUID"}]},
        {"events": ["event"]},
        {"events": {}},
        {"events": None},
        {},
        [],
        None,
        "events",
    ],
    ids=["none", "26", "no id", "no UUID", "text", "object", "null", "{}", "[]", "nothing", "str"],
)
async def test_bad_envelope_refuses_the_whole_batch(rest: AsyncClient, body: object) -> None:
    refused(await rest.post("/events?mode=each", json=body), 400, "BAD_REQUEST")


async def test_unknown_mode_is_400(rest: AsyncClient) -> None:
    body = {"events": [budget_create(new_id())]}
    refused(await rest.post("/events?mode=some", json=body), 400, "BAD_REQUEST")


async def test_money_and_text_arrive_exactly(rest: AsyncClient) -> None:
    budget_id = await a_budget(rest)
    note = 'a"b\\c\n\t\u2028\u00e9\U0001f95e\u0000'.rstrip("\0")
    amounts = {"0": "0.00", "0.1": "0.10", "9999999999.99": "9999999999.99", "007": "7.00"}
    for written, normalised in amounts.items():
        [verdict] = await submit(rest, expense_add(budget_id, amount=written, note=note))
        assert verdict["record"]["amount"] == normalised
        assert verdict["record"]["note"] == note
    snapshot = (await rest.get(f"/budgets/{budget_id}")).json()
    assert [expense["amount"] for expense in snapshot["expenses"]] == list(amounts.values())
    assert {expense["note"] for expense in snapshot["expenses"]} == {note}


# GET /events


async def test_reading_pages_of_the_stream(rest: AsyncClient, node: Node) -> None:
    budget_id = await a_budget(rest, 9)
    key, seen = 0, list[Json]()
    while True:
        page = (await rest.get(f"/events?budgetId={budget_id}&key={key}&count=4")).json()
        assert (page["budgetId"], page["key"], page["head"]) == (budget_id, key, 10)
        assert page["hasMore"] is (page["nextKey"] < 10)
        seen += page["events"]
        key = page["nextKey"]
        if not page["hasMore"]:
            break
    assert [event["sequence"] for event in seen] == list(range(1, 11))
    assert all(event["event"] == event["eventType"] for event in seen)
    async with connect(node.url, rest.headers["Authorization"].split()[1]) as device:
        await device.subscribe(budget_id)
        stream = await device.reached(budget_id, 10)
    assert [event.body for event in stream.events] == [
        {name: value for name, value in event.items() if name != "event"} for event in seen
    ]
    assert page["logId"] == stream.log_id


async def test_key_and_count_have_defaults_and_bounds(rest: AsyncClient) -> None:
    budget_id = (await a_budget(rest, 104)).upper()
    page = (await rest.get(f"/events?budgetId={budget_id}")).json()
    assert (page["key"], page["nextKey"], len(page["events"])) == (0, PAGE_MAX, PAGE_MAX)
    page = (await rest.get(f"/events?budgetId={budget_id}&count=1000")).json()
    assert len(page["events"]) == PAGE_MAX
    page = (await rest.get(f"/events?budgetId={budget_id}&key=104")).json()
    assert (page["nextKey"], page["hasMore"], len(page["events"])) == (105, False, 1)


async def test_key_at_the_head_and_beyond(rest: AsyncClient) -> None:
    budget_id = await a_budget(rest, 2)
    page = (await rest.get(f"/events?budgetId={budget_id}&key=3&wait=0")).json()
    assert (page["nextKey"], page["head"], page["hasMore"], page["events"]) == (3, 3, False, [])
    refused(await rest.get(f"/events?budgetId={budget_id}&key=4"), 409, "CURSOR_AHEAD")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "budgetId=1",
        "budgetId={id}&key=x",
        "budgetId={id}&key=-1",
        "budgetId={id}&key=1.0",
        "budgetId={id}&key=9007199254740992",
        "budgetId={id}&count=0",
        "budgetId={id}&count=ten",
    ],
)
async def test_query_that_makes_no_sense_is_400(rest: AsyncClient, query: str) -> None:
    refused(await rest.get("/events?" + query.replace("{id}", new_id())), 400, "BAD_REQUEST")


# Budgets


@pytest.mark.parametrize("path", ["/budget", "/budgets"])
async def test_creating_a_budget(rest: AsyncClient, stranger: AsyncClient, path: str) -> None:
    asked = {"eventId": new_id(), "id": new_id(), "title": "Home", "currency": "EUR", "when": 7}
    response = await rest.post(path, json=asked)
    assert response.status_code == 201
    verdict = response.json()
    assert verdict["eventId"] == asked["eventId"]
    assert verdict["event"] == verdict["eventType"] == "budget.create"
    assert (verdict["status"], verdict["sequence"], verdict["version"]) == ("accepted", 1, 1)
    assert (verdict["record"]["title"], verdict["record"]["currency"]) == ("Home", "EUR")
    again = await rest.post(path, json=asked)
    assert (again.status_code, again.json()) == (201, {**verdict, "duplicate": True})
    # By its other name it is the same event.
    create = {**asked, "eventType": "budget.create", "budgetId": asked["id"]}
    assert await submit(rest, create) == [{**verdict, "duplicate": True}]

    for other in (rest, stranger):
        new = {**asked, "eventId": new_id()}
        refused(await other.post(path, json=new), 409, "BUDGET_EXISTS")
    assert (await rest.post(path, json={**asked, "title": "Other"})).status_code == 409


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("title", "", "INVALID_EVENT"),
        ("title", "x" * 201, "INVALID_EVENT"),
        ("title", None, "INVALID_EVENT"),
        ("currency", "XXQ", "INVALID_EVENT"),
        ("when", -1, "INVALID_EVENT"),
        ("id", "no UUID", "INVALID_EVENT"),
        ("eventId", "no UUID", "BAD_REQUEST"),
    ],
)
async def test_budget_that_makes_no_sense_is_400(
    rest: AsyncClient, field: str, value: object, code: str
) -> None:
    asked = {"eventId": new_id(), "id": new_id(), "title": "Home", "when": 7, field: value}
    refused(await rest.post("/budget", json=asked), 400, code)


async def test_snapshot(rest: AsyncClient, user_id: str) -> None:
    budget_id, category_id = new_id(), new_id()
    create = budget_create(budget_id, details="Lisbon", currency="EUR")
    [_, category, expense] = await submit(
        rest,
        create,
        category_add(budget_id, recordId=category_id),
        expense_add(budget_id, categoryId=category_id, note="Pastéis"),
    )
    response = await rest.get(f"/budgets/{budget_id.upper()}")
    assert response.status_code == 200
    snapshot = response.json()
    [participant] = snapshot.pop("participants")
    assert isinstance(participant.pop("joinedAt"), int)
    assert participant == {
        "userId": user_id,
        "budgetId": budget_id,
        "role": "owner",
        "userExists": False,
        "firstName": None,
        "lastName": None,
        "photo": None,
    }
    page = (await rest.get(f"/events?budgetId={budget_id}")).json()
    assert snapshot == {
        "id": budget_id,
        "createdBy": user_id,
        "title": "Trip",
        "details": "Lisbon",
        "currency": "EUR",
        "version": 1,
        "offlineLastModified": create["when"],
        "categories": [category["record"]],
        "expenses": [expense["record"]],
        "lastEventSequence": 3,
        "digest": page["events"][-1]["digest"],
        "logId": page["logId"],
    }


async def test_foreign_budget_is_an_unknown_one(rest: AsyncClient, stranger: AsyncClient) -> None:
    budget_id, unknown_id = await a_budget(rest), new_id()
    errors = []
    for asked_id in (budget_id, unknown_id):
        for path in (f"/budgets/{asked_id}", f"/events?budgetId={asked_id}&key=9"):
            error = refused(await stranger.get(path), 404, "BUDGET_NOT_EXISTS")
            errors.append({**error, "requestId": None})
    assert errors == [errors[0]] * 4


async def test_budget_id_that_is_none_is_400(rest: AsyncClient) -> None:
    error = refused(await rest.get("/budgets/1"), 400, "BAD_REQUEST")
    assert error["detail"] == "budgetId: not a UUID"


# Errors, whatever the route


async def test_request_id_is_echoed_or_made(rest: AsyncClient) -> None:
    for path in ("/healthz", "/nowhere"):
        response = await rest.get(path, headers={"X-Request-Id": "My-request_1.0"})
        assert response.headers["X-Request-Id"] == "My-request_1.0"
    mine = {"X-Request-Id": "a" * 64}
    error = refused(await rest.get("/nowhere", headers=mine), 404, "NOT_FOUND")
    assert error["requestId"] == "a" * 64
    made = set()
    for bad in ("", "a" * 65, "two words", "<b>"):
        response = await rest.get("/healthz", headers={"X-Request-Id": bad})
        made.add(response.headers["X-Request-Id"])
    assert len(made) == 4
    assert all(len(request_id) == 32 for request_id in made)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1,]", '{"events":[NaN]}', "nonsense", '"\udcff"'],
    ids=["empty", "cut off", "comma", "NaN", "nonsense", "no UTF-8"],
)
@pytest.mark.parametrize("path", ["/events", "/budget", "/auth/login"])
async def test_malformed_json_is_400(rest: AsyncClient, path: str, text: str) -> None:
    content = text.encode("utf-8", "surrogateescape")
    refused(await rest.post(path, content=content), 400, "BAD_REQUEST")


@pytest.mark.parametrize("path", ["/events", "/budget"])
async def test_body_over_256_kib_is_413(rest: AsyncClient, path: str) -> None:
    start, end = b'{"events":[],"pad":"', b'"}'
    pad = b"x" * (BODY_BYTES_MAX - len(start) - len(end))
    refused(await rest.post(path, content=start + pad + end), 400, "BAD_REQUEST")
    response = await rest.post(path, content=start + pad + b"x" + end)
    refused(response, 413, "PAYLOAD_TOO_LARGE")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 16384

    refused(await rest.post(path, content=endless()), 413, "PAYLOAD_TOO_LARGE")
    assert (await rest.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/events/", "/events/1", "/budgets/1/nothing", "/Events"]
)
async def test_unknown_path_is_404(rest: AsyncClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        refused(await rest.request(method, path), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/events", {"GET", "POST", "HEAD"}),
        ("DELETE", "/events", {"GET", "POST", "HEAD"}),
        ("GET", "/auth/login", {"POST"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("GET", "/budget", {"POST"}),
    ],
)
async def test_wrong_method_is_405(
    rest: AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    response = await rest.request(method, path)
    refused(response, 405, "METHOD_NOT_ALLOWED")
    assert set(response.headers["Allow"].split(", ")) <= allowed


NEED_A_TOKEN = [
    ("POST", "/events"),
    ("GET", "/events"),
    ("POST", "/budget"),
    ("POST", "/budgets"),
    ("GET", "/budgets/00000000-0000-4000-8000-000000000000"),
]


@pytest.mark.parametrize(("method", "path"), NEED_A_TOKEN)
async def test_no_or_bad_token_is_401(
    nobody: AsyncClient, cluster: Cluster, method: str, path: str
) -> None:
    expired = f"Bearer {cluster.token('ada', ttl_s=-1)}"
    refused(await nobody.request(method, path), 401, "NOT_LOGGED_IN")
    for header in ("", "Bearer", "Bearer bad", "Basic dTpw", "Bearer \u00e9", expired):
        headers = [(b"Authorization", header.encode("latin-1"))]
        response = await nobody.request(method, path, headers=headers)
        refused(response, 401, "NOT_LOGGED_IN")


async def test_health(nobody: AsyncClient) -> None:
    response = await nobody.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    response = await nobody.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ok")
    assert (await nobody.head("/healthz")).status_code == 200


# Signing in


async def test_register_login_refresh_and_work(nobody: AsyncClient, node: Node) -> None:
    account = {"email": "Ada@example.org", "password": "correct horse", "firstName": "Ada"}
    response = await nobody.post("/auth/register", json=account)
    assert response.status_code == 201
    registered = response.json()
    assert set(registered) == {"userId", "token", "expiresAt", "refreshToken"}
    refused(await nobody.post("/auth/register", json=account), 409, "EMAIL_TAKEN")

    wrong = {"email": "ada@example.org", "password": "wrong horse"}
    refused(await nobody.post("/auth/login", json=wrong), 401, "BAD_CREDENTIALS")
    response = await nobody.post("/auth/login", json={**wrong, "password": "correct horse"})
    assert response.status_code == 200
    logged_in = response.json()
    assert logged_in["userId"] == registered["userId"]

    presented = {"refreshToken": logged_in["refreshToken"]}
    response = await nobody.post("/auth/refresh", json=presented)
    assert response.status_code == 200
    refreshed = response.json()
    assert refreshed["refreshToken"] != logged_in["refreshToken"]
    again = (await nobody.post("/auth/refresh", json=presented)).json()  # a lost answer
    assert again["refreshToken"] == refreshed["refreshToken"]
    refused(await nobody.post("/auth/refresh", json={"refreshToken": "x"}), 401, "NOT_LOGGED_IN")

    for session in (registered, logged_in, refreshed):
        async with connect(node.url, session["token"]) as device:
            assert device.of_type("welcome")[0]["userId"] == registered["userId"]
            assert device.of_type("auth")[0]["expiresAt"] == session["expiresAt"]
    async with node.rest(refreshed["token"]) as rest:
        budget_id = await a_budget(rest)
        [participant] = (await rest.get(f"/budgets/{budget_id}")).json()["participants"]
    assert (participant["userExists"], participant["firstName"]) == (True, "Ada")


@pytest.mark.parametrize(
    "body",
    [
        {"email": "ada", "password": "correct horse"},
        {"email": "bob@example.org", "password": "short"},
        {"email": "bob@example.org"},
        {"email": ["bob@example.org"], "password": "correct horse"},
        [],
    ],
    ids=["no e-mail", "short", "no password", "list", "no object"],
)
async def test_registration_that_makes_no_sense_is_400(nobody: AsyncClient, body: object) -> None:
    response = await nobody.post("/auth/register", json=body)
    refused(response, 400, "BAD_REQUEST")
    assert "correct horse" not in response.text


async def test_two_registrations_at_once_make_one_account(node: Node) -> None:
    account = orjson.dumps({"email": "twin@example.org", "password": "correct horse"})
    async with node.rest() as one, node.rest() as other, asyncio.TaskGroup() as tasks:
        answers = [
            tasks.create_task(rest.post("/auth/register", content=account)) for rest in (one, other)
        ]
    assert sorted(answer.result().status_code for answer in answers) == [201, 409]
