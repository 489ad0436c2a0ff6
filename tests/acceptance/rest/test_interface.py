"""The documents of the interface: complete, valid, and true of a real hub; their examples are what
a real hub said."""

import asyncio
import os
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from hashlib import sha256
from inspect import unwrap
from pathlib import Path
from typing import Any

import orjson
import pytest
from httpx2 import AsyncClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from api.app import open_app
from api.documents import examples
from api.documents.asyncapi import CLOSE_CODES
from api.documents.operations import OPERATIONS
from api.http.edge import CONTENT_SECURITY_POLICY
from api.settings import Settings
from hub.errors import Code
from hub.frames import client
from tests import ROOT
from tests.asyncapi import AsyncApi
from tests.cluster import AUTH_SECRET, Cluster, Node, checked
from tests.conversation import NOWHERE, OTHER, Recorder, converse
from tests.device import (
    Device,
    Json,
    budget_create,
    category_add,
    connect,
    expense_add,
    new_id,
    open_device,
)
from tests.documented import Documented, resolve, texts
from tests.fuzz import explore, fuzz
from tests.raw_http import connected

IN_TROUBLE = {
    Code.BUSY,
    Code.UNAVAILABLE,
    Code.PHOTOS_UNAVAILABLE,
    Code.INTERNAL_SERVER_ERROR,
}
OF_GUARD = (Code.INCORRECT_API_KEY, Code.RATE_LIMITED)
GOOD: Mapping[str, Json] = {"createInvite": {}, "shareLink": {"enabled": True}}  # bodies
# Of documents and of a page an example would be the document itself.
WITHOUT_EXAMPLE = {"readOpenApi", "readAsyncApi", "readPostman", "readDocs", "readMetrics"}


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start(MAX_PARTICIPANTS="2")


@pytest.fixture(scope="module", autouse=True)
async def waiting(cluster: Cluster, node: Node) -> AsyncIterator[Device]:
    """Waits for its first heartbeat while other tests run."""
    async with connect(node.url, cluster.token("dora")) as device:
        await device.accepted(budget_create(OTHER))
        await device.subscribe(OTHER)
        yield device


@pytest.fixture(scope="module")
async def nobody(node: Node) -> AsyncIterator[AsyncClient]:
    async with node.rest() as rest:
        yield rest


@pytest.fixture(scope="module")
async def documented(nobody: AsyncClient) -> Documented:
    openapi, asyncapi = [
        (await nobody.get(path)).json() for path in ("/openapi.json", "/asyncapi.json")
    ]
    return Documented(openapi, asyncapi)


@pytest.fixture(scope="module")
async def conversation(
    cluster: Cluster, node: Node, documented: Documented, waiting: Device
) -> Recorder:
    return await converse(cluster, node, documented, waiting)


async def test_every_route_is_documented_by_its_handler_and_no_other(database_url: str) -> None:
    """The shapes of answers are the annotations of handlers, so these have to be the ones that
    answer."""
    settings = Settings(database_url=database_url, auth_secret=AUTH_SECRET)
    async with open_app(settings) as app:
        served = {
            (method, route.path): unwrap(route.endpoint)
            for route in app.routes
            # Clients are told the addresses of the disk's store of photos, as those of S3.
            if isinstance(route, Route) and not route.path.startswith("/photos/")
            for method in route.methods or ()
            if method != "HEAD"  # which Starlette adds to every `GET`
        }
    described = {(op.method, op.path): op.handler for op in OPERATIONS}
    assert served.keys() == described.keys()
    for route, handler in described.items():
        if handler is not None:
            assert getattr(served[route], "__func__", served[route]) is handler, route


def test_the_readme_tells_of_every_route(documented: Documented) -> None:
    readme = (ROOT / "api" / "README.md").read_text()
    section = readme.partition("## REST\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    told = {
        (method, re.sub(r":\w+", "{}", path))
        for row in rows
        for method, path in re.findall(r"`([A-Z]+) ([\w/:.-]+)", row)
    }
    assert told == {
        (method, re.sub(r"{\w+}", "{}", path)) for method, path, _ in documented.operations.values()
    }


def needs_token(operation: Json) -> bool:
    return any("token" in scheme for scheme in operation["security"])


def test_every_frame_is_documented_and_no_other(documented: Documented) -> None:
    protocol = (ROOT / "hub" / "protocol.md").read_text()
    for sender, title in (("client", "From the client"), ("server", "From the server")):
        section = protocol.partition(f"## {title}\n")[2].partition("\n##")[0]
        named = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
        if sender == "server":
            named.add("auth.expiring")  # told of in the row of `auth`
        assert _messages(documented, sender) == named
    parsed = {frame.model_fields["type"].annotation for frame in client.ClientFrame.__args__}
    assert {name for kind in parsed for name in kind.__args__} == _messages(documented, "client")


def _messages(documented: Documented, sender: str) -> set[str]:
    messages = documented.asyncapi["components"]["messages"]
    assert {message["name"] for key, message in messages.items() if key.startswith(sender)} == {
        key.partition(".")[2] for key in messages if key.startswith(sender)
    }
    return {key.partition(".")[2] for key in messages if key.startswith(f"{sender}.")}


def test_close_codes_are_those_of_the_table_and_the_protocol(documented: Documented) -> None:
    assert {code.close for code in Code} - {None} <= set(CLOSE_CODES)
    section = (ROOT / "hub" / "protocol.md").read_text().partition("## Closing\n")[2]
    told = {
        int(code)
        for line in section.partition("\n##")[0].splitlines()[3:]
        for code in line.split("|")[1].split(",")
        if line.startswith("|") and code.strip().isdigit()
    }
    assert told == set(CLOSE_CODES)
    channel = documented.asyncapi["channels"]["sync"]
    assert set(channel["x-close-codes"]) == {str(code) for code in CLOSE_CODES}


def test_the_documents_are_valid(documented: Documented) -> None:
    OpenAPIV31SpecValidator(documented.openapi).validate()
    AsyncApi.model_validate(documented.asyncapi)
    channels = {
        "#/channels/sync/messages/" + name
        for name in documented.asyncapi["channels"]["sync"]["messages"]
    }
    for operation in documented.asyncapi["operations"].values():
        for part in (operation, operation.get("reply", operation)):
            assert part["channel"]["$ref"] == "#/channels/sync"
            assert {message["$ref"] for message in part["messages"]} <= channels
    for document in (documented.openapi, documented.asyncapi):
        for reference in texts(document, "$ref"):
            assert resolve(document, reference) is not None, reference
        for shape in document["components"]["schemas"].values():
            Draft202012Validator.check_schema(shape)


def test_patterns_mean_the_same_to_everybody(documented: Documented) -> None:
    """What is white space, a letter or a digit differs between the hub's regular expressions and
    those of JSON Schema, which are ECMAScript's."""
    patterns = texts(documented.openapi, "pattern") | texts(documented.asyncapi, "pattern")
    assert len(patterns) > 5
    assert [pattern for pattern in patterns if re.search(r"\\[sSwWdDbB]", pattern)] == []


def test_examples_stand_in_the_documents(documented: Documented) -> None:
    told = orjson.dumps([documented.openapi, documented.asyncapi]).decode()
    for call in examples.examples().calls:
        if call.status < 400 and call.answer is not None:
            assert orjson.dumps(call.answer).decode() in told
    for sent in examples.examples().sent:
        assert orjson.dumps(sent.frame).decode() in told


async def test_documented_errors_are_those_that_the_hub_gives(
    documented: Documented, cluster: Cluster, node: Node
) -> None:
    """Every documented code of every route, but for those of a hub in trouble; and no other."""
    asked = Documented(documented.openapi, documented.asyncapi)

    async def refuse(rest: AsyncClient, code: Code, name: str, **said: Any) -> None:
        """`said` are parameters by name, and `body` and `content`."""
        method, path, _ = asked.operations[name]
        sent = {key: said.pop(key) for key in ("json", "content") if key in said}
        for parameter in [key for key in said if f"{{{key}}}" in path]:
            path = path.replace(f"{{{parameter}}}", said.pop(parameter))
        response = await rest.request(method, path, params=said, **sent)
        asked.check_answer(name, response)
        assert response.json()["error"]["message"] == code.name, (name, response.text)

    async with AsyncExitStack() as stack:
        nobody, owner, member, former, stranger = [
            await stack.enter_async_context(
                node.rest(None if name is None else cluster.token(name))
            )
            for name in (None, "owner", "member", "former", "stranger")
        ]
        budget_id = new_id()
        create = {"eventId": new_id(), "id": budget_id, "title": "Full", "when": 1}
        assert (await owner.post("/budgets", json=create)).status_code == 201
        budget = f"/budgets/{budget_id}"
        for rest in (former, member):
            assert (await rest.post(f"{budget}/join")).status_code == 200
            if rest is former:
                gone = await owner.delete(f"{budget}/participants/former")
                assert gone.status_code == 200

        for name, (_, path, operation) in asked.operations.items():
            told = {Code[code] for code in asked.codes(name)}
            ids = dict.fromkeys(("categoryId", "expenseId", "inviteId"), NOWHERE)
            ids["userId"] = "nobody"
            ids = {key: id for key, id in ids.items() if f"{{{key}}}" in path}
            queries = {p["name"]: p for p in operation["parameters"] if p.get("in") == "query"}
            if needs_token(operation):
                await refuse(nobody, Code.NOT_LOGGED_IN, name, **ids, budgetId=NOWHERE)
            if "requestBody" in operation:
                known = {"budgetId": budget_id} if "{budgetId}" in path else {}
                for content in (b"{", b"[]"):
                    await refuse(stranger, Code.BAD_REQUEST, name, **known, content=content)
                large = {**known, "content": b"1" * 300_000}
                await refuse(stranger, Code.PAYLOAD_TOO_LARGE, name, **large)
            for query in queries.keys() - {"invite"}:  # anything may be one
                known = {} if query == "budgetId" else {"budgetId": budget_id}
                await refuse(owner, Code.BAD_REQUEST, name, **ids, **known, **{query: "-1"})
            for key in ("budgetId", "categoryId", "expenseId", "inviteId"):
                if f"{{{key}}}" in path:
                    known = {"budgetId": budget_id, **ids, key: "1"}
                    await refuse(owner, Code.BAD_REQUEST, name, **known)
            good = {"json": GOOD[name]} if name in GOOD else {}
            for code, rest, id in (
                (Code.BUDGET_NOT_EXISTS, stranger, NOWHERE),
                (Code.NOT_PARTICIPANT, former, budget_id),
                (Code.NOT_OWNER, member, budget_id),
            ):
                if code in told:
                    await refuse(rest, code, name, **ids, **good, budgetId=id)
            if Code.CURSOR_AHEAD in told:
                await refuse(owner, Code.CURSOR_AHEAD, name, budgetId=budget_id, key=99)
            for code in (
                Code.CATEGORY_NOT_EXISTS,
                Code.EXPENSE_NOT_EXISTS,
                Code.PARTICIPANT_NOT_EXISTS,
                Code.INVITE_NOT_EXISTS,
            ):
                if code in told:
                    await refuse(owner, code, name, **ids, budgetId=budget_id)
            if Code.USER_NOT_FOUND in told:
                await refuse(stranger, Code.USER_NOT_FOUND, name, **ids)
        for name in ("createBudget", "createBudgetLegacy"):
            untitled, other = {**create, "title": ""}, {**create, "title": "Other"}
            await refuse(owner, Code.INVALID_EVENT, name, json=untitled)
            await refuse(owner, Code.EVENT_ID_REUSED, name, json=other)
            await refuse(owner, Code.BUDGET_EXISTS, name, json={**other, "eventId": new_id()})
        for name in ("joinBudget", "joinBudgetByLink"):
            await refuse(stranger, Code.PARTICIPANT_LIMIT_REACHED, name, budgetId=budget_id)
        invite = (await owner.post(f"{budget}/invites", json={})).json()
        revoked = await owner.delete(f"{budget}/invites/{invite['inviteId']}")
        unshared = await owner.put(f"{budget}/link-sharing", json={"enabled": False})
        assert (revoked.status_code, unshared.status_code) == (200, 200)
        for name in ("joinBudget", "joinBudgetByLink"):
            said = {"budgetId": budget_id, "invite": invite["token"]}
            await refuse(stranger, Code.INVITE_NOT_VALID, name, **said)
        await refuse(owner, Code.OWNER_CANNOT_LEAVE, "leaveBudget", budgetId=budget_id)
        themselves = {"budgetId": budget_id, "userId": "owner"}
        await refuse(owner, Code.OWNER_CANNOT_LEAVE, "removeParticipant", **themselves)
        account = {"email": "owner@example.org", "password": "correct horse"}
        assert (await nobody.post("/auth/register", json=account)).status_code == 201
        await refuse(nobody, Code.EMAIL_TAKEN, "register", json=account)
        other = {**account, "email": "other@example.org"}
        registered = (await nobody.post("/auth/register", json=other)).json()
        signed_in = await stack.enter_async_context(node.rest(registered["token"]))
        await refuse(signed_in, Code.EMAIL_TAKEN, "writeUser", json={"email": account["email"]})
        await refuse(owner, Code.PHOTO_TOO_BIG, "beginPhoto", type="image/png", size=2**23)
        begun = (await owner.get("/user/photo-upload-url?type=image/png&size=4")).json()
        for name in ("confirmPhoto", "confirmPhotoLegacy"):
            confirmation = {"key": begun["key"]}
            await refuse(owner, Code.PHOTO_NOT_FOUND, name, json={"key": NOWHERE})
            put = await owner.put(begun["url"], content=b"text", headers=begun["headers"])
            assert put.status_code == 200
            await refuse(owner, Code.PHOTO_NOT_VALID, name, json=confirmation)
        wrong = {**account, "password": "wrong"}
        await refuse(nobody, Code.BAD_CREDENTIALS, "login", json=wrong)
        await refuse(nobody, Code.NOT_LOGGED_IN, "refresh", json={"refreshToken": "x"})

    documented_codes = {
        (name, code)
        for name in asked.operations
        for code in asked.codes(name)
        - {each.name for each in (*IN_TROUBLE, *OF_GUARD, Code.QUOTA_EXCEEDED)}
    }
    # A store takes no more than was announced; what it takes all the same is looked at again.
    unmet = {(name, Code.PHOTO_TOO_BIG.name) for name in ("confirmPhoto", "confirmPhotoLegacy")}
    assert asked.met == documented_codes - unmet


async def test_what_the_guard_answers_is_documented_for_all_that_it_guards(
    documented: Documented, cluster: Cluster, tmp_path: Path
) -> None:
    """First it wants a key, then it has had enough. Without Redis, which it does not wait for, it
    counts exactly."""
    asked = Documented(documented.openapi, documented.asyncapi)
    guarded = {name for name, (_, _, op) in asked.operations.items() if op["security"]}
    settings = {"API_KEYS": "one-key-of-a-client", "REQUESTS_PER_MIN_ADDRESS": str(len(guarded))}
    async with checked(Cluster(tmp_path, cluster.database_url, None)) as alone:
        node = await alone.start(**settings)
        async with node.rest() as rest:
            for code in OF_GUARD:
                for name, (method, path, _) in asked.operations.items():
                    response = await rest.request(method, path)
                    asked.check_answer(name, response)
                    if name in guarded:
                        assert response.json()["error"]["message"] == code.name
                        assert ("Retry-After" in response.headers) == (code is Code.RATE_LIMITED)
                    else:
                        assert response.status_code == 200
    assert asked.operations.keys() - guarded == {"isAlive", "isReady", "readMetrics"}


async def test_an_address_with_too_many_connections_is_told_so_on_all_paths_but_probes(
    documented: Documented, cluster: Cluster, tmp_path: Path
) -> None:
    asked = Documented(documented.openapi, documented.asyncapi)
    async with checked(Cluster(tmp_path, cluster.database_url, None)) as alone:
        node = await alone.start(CONNECTIONS_PER_ADDRESS="1")
        async with connected(node.url):
            for name, (method, path, operation) in asked.operations.items():
                async with node.rest() as rest:
                    response = await rest.request(method, path)
                asked.check_answer(name, response)
                if operation["security"]:
                    assert response.json()["error"]["message"] == Code.QUOTA_EXCEEDED.name
                else:
                    assert response.status_code == 200


async def test_open_routes_need_no_token(documented: Documented, nobody: AsyncClient) -> None:
    for name, (method, path, operation) in documented.operations.items():
        if not needs_token(operation) and method == "GET":
            response = await nobody.get(path)
            assert response.status_code == 200
            documented.check_answer(name, response)


async def test_head_is_answered_like_get_and_leaves_the_connection_free(
    documented: Documented, cluster: Cluster, node: Node
) -> None:
    token = cluster.token("head")
    ids = {"budgetId": new_id(), "categoryId": new_id(), "expenseId": new_id(), "userId": "head"}
    queries = {"readEvents": ids, "beginPhoto": {"type": "image/png", "size": "9"}}
    made = [
        budget_create(ids["budgetId"]),
        category_add(ids["budgetId"], recordId=ids["categoryId"]),
        expense_add(ids["budgetId"], recordId=ids["expenseId"]),
    ]
    async with node.rest(token) as rest:
        assert (await rest.post("/events", json={"events": made})).status_code == 200
        await rest.put("/user", json={"firstName": "Head"})
        for name, (method, path, _) in documented.operations.items():
            if method != "GET":
                continue
            filled = path.format(**ids)
            params = queries.get(name, {})
            head = await rest.head(filled, params=params)
            assert head.content == b""
            if name == "joinBudgetByLink":
                assert head.status_code == 405
                continue
            assert head.status_code == 200, name
            if name != "streamEvents":  # which has no end
                get = await rest.get(filled, params=params)
                documented.check_answer(name, get)
                same = {"Content-Type", "Content-Length", "ETag", "Cache-Control"}
                if name == "readMetrics":  # whose numbers grow all the time
                    same.remove("Content-Length")
                for header in same:
                    assert head.headers.get(header) == get.headers.get(header), name


async def test_frames_that_are_none_are_answered_as_documented(
    documented: Documented, cluster: Cluster, node: Node
) -> None:
    bad: list[Json] = [
        {"type": "subscribe", "id": 1},
        {"type": "events", "id": 2, "events": []},
        {"type": "events", "id": 3, "events": [{"eventId": NOWHERE}]},
        {"type": "nonsense", "id": 4},
    ]
    headers = {"Authorization": f"Bearer {cluster.token('eve')}"}
    async with open_device(node.url, headers=headers) as device:
        device.expect(3, [{"eventId": NOWHERE}], None)
        for frame in bad:
            await device.send(frame)
        assert await device.until_closed() in CLOSE_CODES
        for received in device.frames:
            documented.check_frame("server", received.body)
        assert [frame["id"] for frame in device.of_type("error")] == [1, 2, 4]


async def test_the_page_shows_everything_and_loads_nothing(
    documented: Documented, nobody: AsyncClient
) -> None:
    response = await nobody.get("/docs")
    page = response.text
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    [policy] = response.headers.get_list("Content-Security-Policy")
    style = page.partition("<style>")[2].partition("</style>")[0]
    hashed = b64encode(sha256(style.encode()).digest()).decode()
    assert policy == f"{CONTENT_SECURITY_POLICY.decode()}; style-src 'sha256-{hashed}'"
    assert " style=" not in page
    for name in (*documented.operations, *documented.asyncapi["components"]["messages"]):
        assert f'id="{name}"' in page
    for shape in documented.openapi["components"]["schemas"]:
        assert f'id="shape-{shape}"' in page
    assert 'name="viewport"' in page
    for outside in ("<script", "<link", "<img", "src=", '="http', "@import", "url("):
        assert outside not in page
    links = {part.partition('"')[0] for part in page.split('href="')[1:]}
    for link in links:
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in page
        else:
            assert (await nobody.get(f"/{link}")).status_code == 200


async def fuzzed(documented: Documented, node: Node, token: str, requests_each: int) -> int:
    """Requests of every operation, well-formed and not, half of them about what exists. Each answer
    is checked. Returns how many there were that found what they asked for."""
    async with node.rest(token) as rest:
        budget_id, category_id, expense_id = new_id(), new_id(), new_id()
        made = [
            budget_create(budget_id),
            category_add(budget_id, recordId=category_id),
            expense_add(budget_id, recordId=expense_id, categoryId=category_id),
        ]
        assert (await rest.post("/events", json={"events": made})).status_code == 200
        me = (await rest.put("/user", json={"firstName": "Fuzz"})).json()["id"]
        invite = (await rest.post(f"/budgets/{budget_id}/invites", json={})).json()
    existing = {
        "budgetId": budget_id,
        "categoryId": category_id,
        "expenseId": expense_id,
        "inviteId": invite["inviteId"],
        "userId": me,
        "invite": invite["token"],
    }
    return await asyncio.to_thread(fuzz, documented, node.url, token, existing, requests_each)


async def test_whatever_is_asked_the_answer_is_documented(
    documented: Documented, cluster: Cluster, node: Node
) -> None:
    assert await fuzzed(documented, node, cluster.token("fuzz"), 2) >= 40


@pytest.mark.faults
async def test_whatever_is_asked_at_length_the_answer_is_documented(
    documented: Documented, cluster: Cluster, node: Node
) -> None:
    assert await fuzzed(documented, node, cluster.token("fuzz-at-length"), 100) >= 1000


async def explored(documented: Documented, cluster: Cluster, node: Node, requests_min: int) -> int:
    """Two users, the first of whom asks more."""
    tokens = [cluster.token(name) for name in ("explorer", "explorer", "explorer", "guest")]
    return await asyncio.to_thread(explore, documented, node.url, tokens, requests_min)


async def test_whatever_follows_from_answers_is_documented(
    documented: Documented, cluster: Cluster, node: Node
) -> None:
    assert await explored(documented, cluster, node, 150) >= 40


@pytest.mark.faults
async def test_whatever_follows_from_answers_at_length_is_documented(
    documented: Documented, cluster: Cluster, node: Node
) -> None:
    assert await explored(documented, cluster, node, 10_000) >= 1500


# Last, since the heartbeat has come by then.


def test_the_committed_examples_are_what_a_hub_says(conversation: Recorder) -> None:
    """`make examples` renews them."""
    taken = conversation.normalised()
    if os.environ.get("RENEW_EXAMPLES"):
        text = orjson.dumps(taken, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        examples.PATH.write_bytes(text)
    assert taken == orjson.loads(examples.PATH.read_bytes())


def test_everything_has_an_example(conversation: Recorder, documented: Documented) -> None:
    shown = {(call.operation, call.status < 400) for call in conversation.calls}
    for name in set(documented.operations) - WITHOUT_EXAMPLE:
        assert (name, True) in shown
    frames_shown = {f"{sent.sender}.{sent.frame['type']}" for sent in conversation.sent}
    assert frames_shown == set(documented.asyncapi["components"]["messages"])
