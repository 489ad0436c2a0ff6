"""The edge of REST on real processes: who is let in, how often, and what every answer has."""

import asyncio
import gzip
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from statistics import median

import asyncpg
import orjson
import pytest
from httpx2 import AsyncClient, Response
from starlette.routing import Route
from websockets.exceptions import InvalidStatus

from api.app import open_app
from api.settings import Settings
from hub.errors import Code
from hub.frames.websocket import PROTOCOL
from loadtest.cluster import FragileRedis
from storage.timeouts import STORAGE_TIMEOUTS
from tests.acceptance.rest.test_rest import BODY_BYTES_MAX, a_budget, refused
from tests.cluster import AUTH_SECRET, REST_S, Cluster, Node, until
from tests.device import category_add, connect, new_id, open_device

KEYS = ["android-key-0123456789", "web-key-0123456789"]
ORIGIN = "https://app.example.org"
SECURITY_HEADERS = {
    "Content-Security-Policy",
    "Referrer-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
}
USER_LIMIT, ADDRESS_LIMIT = 20, 60
LOGIN_EMAIL_LIMIT, LOGIN_ADDRESS_LIMIT = 3, 6
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_users = count(1)
_addresses = count(1)


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.fixture(scope="module")
async def closed(cluster: Cluster) -> Node:
    """One that asks for keys and serves one web page."""
    return await cluster.start(API_KEYS=",".join(KEYS), ORIGINS=ORIGIN)


@pytest.fixture(scope="module")
async def limited(cluster: Cluster) -> Sequence[Node]:
    """Two, behind a proxy."""
    settings = {
        "TRUSTED_PROXIES": "1",
        "REQUESTS_PER_MIN_USER": str(USER_LIMIT),
        "REQUESTS_PER_MIN_ADDRESS": str(ADDRESS_LIMIT),
        "LOGINS_PER_MIN_EMAIL": str(LOGIN_EMAIL_LIMIT),
        "LOGINS_PER_MIN_ADDRESS": str(LOGIN_ADDRESS_LIMIT),
    }
    return await asyncio.gather(cluster.start(**settings), cluster.start(**settings))


@pytest.fixture(scope="module")
async def routes(cluster: Cluster) -> Sequence[Route]:
    settings = Settings(
        database_url=cluster.database_url,
        auth_secret=AUTH_SECRET,
        photo_dir=str(cluster.folder / "photos"),
    )
    async with open_app(settings) as app:
        return [route for route in app.routes if isinstance(route, Route)]


@pytest.fixture
async def rest(node: Node, cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with node.rest(cluster.token(f"user-{next(_users)}")) as rest:
        yield rest


@asynccontextmanager
async def someone(
    node: Node, cluster: Cluster, user_id: str | None = None, address: str | None = None
) -> AsyncIterator[AsyncClient]:
    """A user, at an address of his own, as the proxy in front of the node says it."""
    address = address or f"198.51.100.{next(_addresses)}"
    async with node.rest(cluster.token(user_id or f"user-{next(_users)}")) as rest:
        rest.headers["X-Forwarded-For"] = f"203.0.113.{next(_addresses) % 256}, {address}"
        yield rest


def limited_at(response: Response) -> None:
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    assert (error["message"], error["retryable"]) == ("RATE_LIMITED", True)
    assert error["requestId"] == response.headers["X-Request-Id"]
    assert 1 <= int(response.headers["Retry-After"]) <= 60


def is_of_the_one_shape(response: Response) -> None:
    assert response.headers["Content-Type"] == "application/json", response.text
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"statusCode", "message", "detail", "retryable", "requestId"}
    assert body["error"]["statusCode"] == response.status_code
    assert Code[body["error"]["message"]].status == response.status_code
    assert body["error"]["requestId"] == response.headers["X-Request-Id"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text


# Every answer


async def test_security_headers_on_every_answer(rest: AsyncClient) -> None:
    budget_id = await a_budget(rest)
    snapshot = await rest.get(f"/budgets/{budget_id}")
    etag = {"If-None-Match": snapshot.headers["ETag"]}
    answers = [
        snapshot,
        await rest.get(f"/budgets/{budget_id}", headers=etag),
        await rest.get("/healthz"),
        await rest.head("/healthz"),
        await rest.get("/nowhere"),
        await rest.put("/events"),
        await rest.post("/events", content=b"{"),
        await rest.post("/events", content=b" " * (BODY_BYTES_MAX + 1)),
        await rest.get("/events", headers={"Authorization": ""}),
    ]
    statuses = [200, 304, 200, 200, 404, 405, 400, 413, 401]
    assert [answer.status_code for answer in answers] == statuses
    async with rest.stream("GET", f"/budgets/{budget_id}/stream") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        answers.append(stream)
    for answer in answers:
        for name in SECURITY_HEADERS | {"Cache-Control", "X-Request-Id"}:
            assert len(answer.headers.get_list(name)) == 1, (answer.status_code, name)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
    kept = [answer.headers["Cache-Control"] for answer in answers]
    assert kept == ["private, no-cache"] * 2 + ["no-store"] * 8


async def test_the_socket_has_none_of_them(node: Node, cluster: Cluster) -> None:
    async with connect(node.url, cluster.token("ada")) as device:
        response = device.socket.response
        assert response is not None
        assert not SECURITY_HEADERS & set(response.headers)
    with pytest.raises(InvalidStatus) as denied:
        async with open_device(node.url, headers={"Authorization": "Bearer bad"}):
            pass
    assert not SECURITY_HEADERS & set(denied.value.response.headers)


async def test_a_denied_upgrade_has_the_one_shape(node: Node) -> None:
    headers = {"Authorization": "Bearer bad", "X-Request-Id": "upgrade-1"}
    with pytest.raises(InvalidStatus) as denied:
        async with open_device(node.url, headers=headers):
            pass
    response = denied.value.response
    assert response.headers["X-Request-Id"] == "upgrade-1"
    assert orjson.loads(response.body or b"")["error"]["requestId"] == "upgrade-1"


async def test_table_of_errors(node: Node) -> None:
    async with node.rest() as nobody:
        response = await nobody.get("/errors")
    assert response.headers["Cache-Control"] == "public, max-age=3600"
    errors = response.json()["errors"]
    assert [error["message"] for error in errors] == [code.name for code in Code]
    assert {
        "statusCode": 401,
        "message": "NOT_LOGGED_IN",
        "detail": "The token is missing, bad or expired.",
        "retryable": False,
        "closeCode": 4401,
    } in errors


# Every route


@pytest.mark.parametrize("value", ["{new}", "%00", "x" * 300, "%ff%fe", "..%2f..%2fetc"])
async def test_every_error_of_every_route_has_the_one_shape(
    rest: AsyncClient, routes: Sequence[Route], value: str
) -> None:
    """Wrong methods, ids and bodies, and bad tokens."""
    methods: dict[str, set[str]] = {}
    for route in routes:
        methods.setdefault(route.path, set()).update(route.methods or ())
    assert len(methods) > 15
    seen = set()
    for path, known in methods.items():
        filled = re.sub(r"{\w+}", lambda _: value.replace("{new}", new_id()), path)
        reached = filled == path or "%2f" not in value  # a slash makes it another path
        for method in METHODS:
            body = b"a=b" if method in ("POST", "PUT", "PATCH") else b""
            response = await rest.request(method, filled, content=body)
            seen.add(response.status_code)
            assert response.status_code < 500, (method, filled)
            if response.status_code >= 400 and method != "HEAD":
                is_of_the_one_shape(response)
            if reached and method not in known:
                assert response.status_code == 405, (method, filled)
            if reached and method in known and path.startswith(("/budget", "/events")):
                bad = {"Authorization": "Bearer bad"}
                assert (await rest.request(method, filled, headers=bad)).status_code == 401
    assert seen >= {200, 400, 405}
    assert 404 in seen or value not in ("{new}", "..%2f..%2fetc")


BODIES = {
    "form": ("application/x-www-form-urlencoded", b"events=1&mode=each"),
    "parts": ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\n"),
    "XML": ("application/xml", b"<events/>"),
    "text": ("text/plain", b"events"),
    "compressed": ("application/json", gzip.compress(b'{"events":[]}')),
    "UTF-16": ("application/json; charset=utf-16", '{"events":[]}'.encode("utf-16")),
    "cut off": ("application/json", b'{"events":['),
    "nothing": ("application/json", b""),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "path", ["/events", "/budget", "/budgets", "/auth/register", "/auth/login", "/auth/refresh"]
)
async def test_what_is_not_json_is_400_however_it_is_called(
    rest: AsyncClient, path: str, body: str
) -> None:
    content_type, content = BODIES[body]
    response = await rest.post(path, content=content, headers={"Content-Type": content_type})
    refused(response, 400, "BAD_REQUEST")


async def test_every_route_that_reads_refuses_too_much(
    rest: AsyncClient, routes: Sequence[Route]
) -> None:
    large = b'{"pad":"' + b"x" * BODY_BYTES_MAX + b'"}'
    too_large = set()
    for route in routes:
        for method in (route.methods or set()) & {"POST", "PUT"}:
            path = route.path.replace("{budget_id}", new_id())
            response = await rest.request(method, path, content=large)
            assert response.status_code < 500
            if response.status_code >= 400:
                is_of_the_one_shape(response)
            if response.status_code == 413:
                too_large.add(path)
    assert too_large >= {"/events", "/budget", "/budgets", "/auth/login", "/auth/register"}


async def test_a_defect_on_a_real_node_shows_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """500 and 503 from the depths of Postgres, each one line in the log."""
    broken = Cluster(tmp_path, cluster.database_url, None)
    database = await asyncpg.connect(cluster.database_url)
    try:
        node = await broken.start()
        async with node.rest(cluster.token("ada")) as rest:
            budget_id = await a_budget(rest)
            await rest.post("/events", json={"events": [category_add(budget_id)]})
            path = f"/budgets/{budget_id}/categories"
            assert (await rest.get(path)).status_code == 200
            await database.execute("ALTER VIEW category_dtos RENAME TO kept")
            try:
                refused_by_postgres = await rest.get(path, headers={"X-Request-Id": "refused-1"})
                # What a full disk says, wherever it is met.
                await database.execute(
                    "CREATE FUNCTION full_disk() RETURNS boolean LANGUAGE plpgsql AS"
                    " $$BEGIN RAISE disk_full; END$$"
                )
                await database.execute(
                    "CREATE VIEW category_dtos AS SELECT * FROM kept WHERE full_disk()"
                )
                unavailable = await rest.get(path, headers={"X-Request-Id": "unavailable-1"})
                await database.execute("DROP VIEW category_dtos")
                await database.execute(
                    "CREATE VIEW category_dtos AS SELECT * FROM kept"
                    " WHERE 1 / (last_sequence - last_sequence) = 1"
                )
                failed = await rest.get(path, headers={"X-Request-Id": "failed-1"})
            finally:
                await database.execute("DROP VIEW IF EXISTS category_dtos")
                await database.execute("ALTER VIEW kept RENAME TO category_dtos")
            assert (await rest.get(path)).status_code == 200
    finally:
        await broken.close()
        await database.close()
    refused(unavailable, 503, "UNAVAILABLE")
    refused(failed, 500, "INTERNAL_SERVER_ERROR")
    refused(refused_by_postgres, 500, "INTERNAL_SERVER_ERROR")
    for response in (unavailable, failed, refused_by_postgres):
        is_of_the_one_shape(response)
        assert "category_dtos" not in response.text
        assert all(name in response.headers for name in SECURITY_HEADERS)
    for request_id, level in (
        ("unavailable-1", "warning"),
        ("failed-1", "error"),
        ("refused-1", "warning"),  # its traceback stands in a line of its own
    ):
        *before, line = [line for line in node.log() if line.get("request_id") == request_id]
        assert (line["event"], line["level"]) == ("request failed", level)
        assert line["route"] == "/budgets/{budget_id}/categories"
        told = [each["event"] for each in before]
        assert told == (["statement failed"] if request_id == "refused-1" else [])


# Request ids and the log


async def test_a_failed_request_is_logged_once(node: Node, rest: AsyncClient) -> None:
    mark = new_id()
    for number, path in enumerate(("/healthz", f"/secret-{mark}", "/budgets/1", "/events")):
        headers = {"X-Request-Id": f"{mark}-{number}"}
        response = await rest.get(path, headers=headers)
        assert response.headers["X-Request-Id"] == headers["X-Request-Id"]
    await until(lambda: f"{mark}-3" in node.err, REST_S)
    lines = [line for line in node.log() if str(line.get("request_id")).startswith(mark)]
    assert [(line["request_id"][-1], line["status"], line["route"]) for line in lines] == [
        ("1", 404, None),
        ("2", 400, "/budgets/{budget_id}"),
        ("3", 400, "/events"),
    ]
    assert all(line["event"] == "request refused" for line in lines)
    assert f"secret-{mark}" not in node.err


async def test_a_client_that_goes_away_in_its_body_is_no_defect(
    node: Node, rest: AsyncClient
) -> None:
    """The cluster's end checks that no node has logged one."""
    authority = node.url.removeprefix("http://")
    host, _, port = authority.partition(":")
    token = rest.headers["Authorization"]
    request_id = new_id()
    head = (
        f"POST /events HTTP/1.1\r\nHost: {authority}\r\nAuthorization: {token}\r\n"
        f"X-Request-Id: {request_id}\r\nContent-Length: 100\r\n\r\n{{"
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode())
    writer.write_eof()
    await reader.read()
    writer.close()
    await until(lambda: request_id in node.err, REST_S)
    [line] = [line for line in node.log() if line.get("request_id") == request_id]
    assert (line["level"], line["status"]) == ("info", 400)


# API keys


async def test_every_route_wants_a_key(
    closed: Node, cluster: Cluster, routes: Sequence[Route]
) -> None:
    async with closed.rest(cluster.token("ada")) as rest:
        for path in {route.path for route in routes} | {"/nowhere"}:
            if path in ("/healthz", "/readyz", "/metrics"):
                assert (await rest.get(path)).status_code == 200
                continue
            if path.startswith("/photos/"):  # signed or public
                assert (await rest.get(path)).json()["error"]["message"] != "INCORRECT_API_KEY"
                continue
            for wrong in ({}, {"X-API-Key": ""}, {"X-API-Key": KEYS[0][:-1]}):
                response = await rest.get(path, headers=wrong)
                refused(response, 403, "INCORRECT_API_KEY")
        for key in KEYS:
            response = await rest.get("/budgets", headers={"x-api-key": key})
            assert response.status_code == 200
        both = await rest.get("/budgets", headers={"x-api-key": ",".join(KEYS)})
        refused(both, 403, "INCORRECT_API_KEY")


async def test_the_socket_wants_a_key(closed: Node, cluster: Cluster) -> None:
    token = f"Bearer {cluster.token('ada')}"
    for wrong in ({}, {"X-API-Key": KEYS[0] + "x"}):
        with pytest.raises(InvalidStatus) as denied:
            async with open_device(
                closed.url, headers={"Authorization": token, **wrong}, subprotocols=[PROTOCOL]
            ):
                pass
        assert denied.value.response.status_code == 403
        error = orjson.loads(denied.value.response.body or b"")["error"]
        assert error["message"] == "INCORRECT_API_KEY"
    async with open_device(
        closed.url, headers={"Authorization": token, "X-API-Key": KEYS[1]}, subprotocols=[PROTOCOL]
    ) as device:
        await device.ping()


async def test_without_keys_none_is_needed(rest: AsyncClient) -> None:
    assert (await rest.get("/budgets", headers={"X-API-Key": "anything"})).status_code == 200


async def test_p9_keys_are_in_no_log(closed: Node) -> None:
    assert not any(key in closed.err + closed.out for key in KEYS)


# Web pages


async def test_a_page_that_is_listed_may_ask(closed: Node, cluster: Cluster) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization,content-type,x-api-key,x-request-id,"
        "if-none-match,last-event-id",
    }
    async with closed.rest() as page:
        response = await page.options("/budgets", headers=asked)  # a preflight has no key
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "PUT" in response.headers["Access-Control-Allow-Methods"]
        assert response.headers["Referrer-Policy"] == "no-referrer"
        custom = {**asked, "Access-Control-Request-Headers": "x-custom"}
        assert (await page.options("/budgets", headers=custom)).status_code == 400

        token = {"Authorization": f"Bearer {cluster.token('ada')}", "Origin": ORIGIN}
        for headers, status in (
            ({**token, "X-API-Key": KEYS[0]}, 200),
            (token, 403),  # what is refused can be read too
        ):
            response = await page.get("/budgets", headers=headers)
            assert response.status_code == status
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert "Origin" in response.headers["Vary"]
            exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
            assert set(exposed) == {"ETag", "Retry-After", "X-Request-Id"}


@pytest.mark.parametrize("origin", ["https://evil.example.org", "http://app.example.org", "null"])
async def test_a_page_that_is_not_may_not(closed: Node, origin: str) -> None:
    headers = {"Origin": origin, "X-API-Key": KEYS[0]}
    async with closed.rest() as page:
        preflight = await page.options(
            "/budgets", headers={**headers, "Access-Control-Request-Method": "GET"}
        )
        assert preflight.status_code == 400
        for response in (preflight, await page.get("/errors", headers=headers)):
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_without_a_list_no_page_may(rest: AsyncClient) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    refused(await rest.options("/budgets", headers=headers), 405, "METHOD_NOT_ALLOWED")
    response = await rest.get("/budgets", headers=headers)
    assert not any(name.startswith("access-control-") for name in response.headers)


# Rate limits. When the machine stalls, a node does not wait for Redis and counts by itself; then
# more than the limit passes, never less, and never more than each of three counts allows.


async def passed(clients: Sequence[AsyncClient], path: str, limit: int) -> int:
    """How many requests were answered, on nodes in turn, until each has refused one."""
    answered, refusing = 0, set[int]()
    for number in range(3 * limit + len(clients)):
        turn = number % len(clients)
        response = await clients[turn].get(path)
        if response.status_code == 200:
            answered += 1
        else:
            limited_at(response)
            refusing.add(turn)
            if len(refusing) == len(clients):
                return answered
    raise AssertionError(f"{answered} requests, and no end")


async def test_a_user_has_one_limit_on_all_nodes(limited: Sequence[Node], cluster: Cluster) -> None:
    user_id = f"user-{next(_users)}"
    async with (
        someone(limited[0], cluster, user_id) as here,
        someone(limited[1], cluster, user_id) as there,
        someone(limited[0], cluster, address=here.headers["X-Forwarded-For"]) as other,
    ):
        assert USER_LIMIT <= await passed([here, there], "/budgets", USER_LIMIT) <= 3 * USER_LIMIT
        assert (await other.get("/budgets")).status_code == 200
        refused(await here.get("/nowhere"), 404, "NOT_FOUND")  # needs no user
        with pytest.raises(InvalidStatus) as at_limit:  # a new socket is a request too
            async with connect(limited[0].url, cluster.token(user_id)):
                pass
        assert at_limit.value.response.status_code == 429


async def test_a_long_poll_counts_once(limited: Sequence[Node], cluster: Cluster) -> None:
    async with someone(limited[0], cluster) as rest:
        budget_id = await a_budget(rest)
        response = await rest.get(f"/events?budgetId={budget_id}&key=1&wait=1")
        assert response.json()["events"] == []
        assert USER_LIMIT - 2 <= await passed([rest], "/budgets", USER_LIMIT) < 3 * USER_LIMIT


async def test_an_address_has_a_limit_and_cannot_lie(
    limited: Sequence[Node], cluster: Cluster
) -> None:
    address = f"198.51.100.{next(_addresses)}"
    async with (
        # What they say came before the proxy differs, and is not looked at.
        someone(limited[0], cluster, address=address) as one,
        someone(limited[0], cluster, address=address) as other,
        someone(limited[0], cluster) as elsewhere,
    ):
        answered = await passed([one, other], "/errors", ADDRESS_LIMIT)
        assert ADDRESS_LIMIT <= answered < 3 * ADDRESS_LIMIT
        # Also where there is nothing: one count or another may have room left.
        responses = [await one.get("/nowhere") for _ in range(2 * ADDRESS_LIMIT)]
        limited_at(responses[-1])
        assert {response.status_code for response in responses} <= {404, 429}
        for path in ("/healthz", "/readyz"):
            assert (await one.get(path)).status_code == 200
        assert (await elsewhere.get("/errors")).status_code == 200


async def test_without_a_proxy_the_header_means_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """And without Redis a node counts alone, exactly."""
    alone = Cluster(tmp_path, cluster.database_url, None)
    try:
        node = await alone.start(REQUESTS_PER_MIN_ADDRESS="5")
        async with someone(node, cluster) as one, someone(node, cluster) as other:
            assert await passed([one, other], "/errors", 5) == 5
    finally:
        await alone.close()


async def test_logins_with_one_email_are_few(limited: Sequence[Node], cluster: Cluster) -> None:
    answers = []
    for number in range(3 * LOGIN_EMAIL_LIMIT + 1):
        # Each time from elsewhere, and written in another way.
        case = [str.upper if number & 1 << at else str.lower for at in range(4)]
        name = "".join(change(letter) for change, letter in zip(case, "adam", strict=True))
        account = {"email": f"{name}@example.org", "password": "guess"}
        async with someone(limited[number % 2], cluster) as somewhere:
            answers.append(await somewhere.post("/auth/login", json=account))
    statuses = [answer.status_code for answer in answers]
    assert statuses[:LOGIN_EMAIL_LIMIT] == [401] * LOGIN_EMAIL_LIMIT
    limited_at(answers[-1])
    async with someone(limited[0], cluster) as somewhere:
        response = await somewhere.post(
            "/auth/login", json={"email": "bob@example.org", "password": "guess"}
        )
        refused(response, 401, "BAD_CREDENTIALS")


async def test_logins_and_registrations_from_one_address_are_few(
    limited: Sequence[Node], cluster: Cluster
) -> None:
    async with someone(limited[0], cluster) as rest:
        for number in range(LOGIN_ADDRESS_LIMIT):
            account = {"email": f"guess-{number}@example.org", "password": "guess it all"}
            path = ("/auth/login", "/auth/register")[number % 2]
            assert (await rest.post(path, json=account)).status_code in (401, 201)
        last = [
            await rest.post("/auth/login", json={**account, "email": f"more-{n}@example.org"})
            for n in range(2 * LOGIN_ADDRESS_LIMIT)
        ][-1]
        limited_at(last)
        assert (await rest.get("/errors")).status_code == 200


async def test_p10_without_redis_requests_are_answered_and_limited(
    cluster: Cluster, tmp_path: Path
) -> None:
    redis = FragileRedis(tmp_path / "redis")
    degraded = Cluster(tmp_path, cluster.database_url, redis.url)
    try:
        node = await degraded.start(
            REQUESTS_PER_MIN_USER=str(USER_LIMIT), REQUESTS_PER_MIN_ADDRESS="100000"
        )
        async with node.rest(cluster.token("ada")) as ada, node.rest(cluster.token("bob")) as bob:
            assert (await ada.get("/budgets")).status_code == 200
            redis.kill()
            took_s = []
            for _ in range(100):
                began_s = time.monotonic()
                assert (await bob.get("/errors")).status_code == 200
                took_s.append(time.monotonic() - began_s)
            assert median(took_s) < STORAGE_TIMEOUTS.redis_connect_s / 4  # it is not waited for
            answered = await passed([ada], "/budgets", USER_LIMIT)
            assert USER_LIMIT - 1 <= answered <= 2 * USER_LIMIT
            await redis.restart()
            assert (await bob.get("/budgets")).status_code == 200
    finally:
        await degraded.close()
        redis.close()
    assert node.complaints() == []
