"""P9: whatever is sent, and whatever fails, nothing that a person wrote and no token is in a node's
log or in its traces.

Every field of every request holds the mark, in all the ways a request can be: signed in or not, of
the right shape or not, to every route that the hub's own document names. Then every event and
frame; then failures in the depths of Postgres, whose own words quote the row.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import asyncpg
import httpx2
import orjson
import pytest

from api.auth.tokens import Tokens
from tests.cluster import Cluster, Node, until
from tests.device import (
    Ended,
    Json,
    Refused,
    budget_create,
    budget_edit,
    category_add,
    connect,
    expense_add,
    expense_edit,
    new_id,
    open_device,
)
from tests.lateness import TRIES_MAX
from tests.otlp import Collector, collecting

MARK = "Geheim7f3a"  # in every field; what holds it is secret
EMAIL = f"{MARK}@example.org"
PASSWORD = f"{MARK} correct horse"
DEADLINE_S = 30.0
TEXTS = {"title": MARK, "name": MARK, "note": MARK, "details": MARK}
HEADERS = {
    "Cookie": f"session={MARK}",
    "Origin": f"https://{MARK}.example",
    "Referer": f"https://example.org/{MARK}",
    "User-Agent": MARK,
    "X-Api-Key": MARK,
    "X-Forwarded-For": MARK,
    "X-Request-Id": f"{MARK}@example.org",  # no id of ours can be that
    "If-None-Match": f'"{MARK}"',
    "Last-Event-ID": MARK,
}


class Watched(NamedTuple):
    cluster: Cluster
    nodes: list[Node]
    collector: Collector

    def said(self) -> str:
        """All that the nodes logged, and all that they told the collector."""
        logs = [node.err + node.out for node in self.nodes]
        return "\n".join([*logs, *(body.decode("latin-1") for body in self.collector.bodies)])

    async def until_logged(self, *events: str) -> None:
        def logged() -> set[str]:
            return {line["event"] for node in self.nodes for line in node.log()}

        await until(lambda: set(events) <= logged(), DEADLINE_S)


@pytest.fixture(scope="module")
async def watched(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Watched]:
    """Two nodes that log all they can. They may log defects, which these tests provoke."""
    with collecting() as (address, collector):
        folder = tmp_path_factory.mktemp("watched")
        failing = Cluster(folder, cluster.database_url, cluster.redis_url)
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "LOG_LEVEL": "debug",
            "PHOTO_DIR": str(folder / "photos"),
        }
        try:
            nodes = await asyncio.gather(*(failing.start(**settings) for _ in range(2)))
            yield Watched(failing, list(nodes), collector)
        finally:
            await failing.close()


def filled(schema: Json, definitions: Json) -> Any:
    """A value of about this shape with the mark wherever text may be."""
    if "$ref" in schema:
        return filled(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return filled(schema[several][0], definitions)
    if "properties" in schema:
        return {name: filled(of, definitions) for name, of in schema["properties"].items()}
    if schema.get("type") == "array":
        return [filled(schema.get("items", {}), definitions)]
    if schema.get("type") in ("integer", "number", "boolean"):
        return 1
    return schema.get("const", EMAIL if schema.get("format") == "email" else MARK)


def requests(document: Json, tokens: dict[str, str | None]) -> Iterator[dict[str, Any]]:
    """Every operation, in every way."""
    definitions = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method not in ("get", "post", "put", "delete"):
                continue
            known = operation.get("parameters", [])
            names = [p["name"] for p in known if p.get("in") == "query"]
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            bodies = [b"", MARK.encode(), orjson.dumps({MARK: MARK})]
            if schema is not None:
                bodies.append(orjson.dumps(filled(schema, definitions)))
            # Who is not signed in gets no further, whatever he sends.
            strangers = [token for name, token in tokens.items() if name != "good"]
            ways = [
                *itertools.product(strangers, bodies[-1:], [MARK]),
                *itertools.product([tokens["good"]], bodies, [MARK, new_id()]),
            ]
            for token, body, of_path in ways:
                yield {
                    "method": method,
                    "url": re.sub(r"\{[^}]+\}", of_path, path),
                    "params": {name: MARK for name in names} if of_path == MARK else {},
                    "content": body,
                    "headers": {
                        **HEADERS,
                        **({} if token is None else {"Authorization": f"Bearer {token}"}),
                    },
                }


async def test_no_request_leaves_its_words_behind(watched: Watched) -> None:
    here, _ = watched.nodes
    forged = Tokens([b"x" * 32], now=lambda: 2e9).issue(MARK)[0]
    tokens = {"none": None, "bad": MARK, "forged": forged, "good": watched.cluster.token("ann")}
    async with here.rest() as rest:
        document = (await rest.get("/openapi.json")).json()
        every = list(requests(document, tokens))
        gate = asyncio.Semaphore(20)

        async def ask(request: dict[str, Any]) -> int:
            async with gate:
                try:
                    async with rest.stream(**request) as response:
                        return int(response.status_code)
                except httpx2.InvalidURL:
                    return 0

        statuses = await asyncio.gather(*map(ask, every))
    assert {200, 400, 401, 404} <= set(statuses)
    assert not {status for status in statuses if status >= 500}
    assert len(every) > 300
    await watched.until_logged("request refused")
    secret = [*(token for token in tokens.values() if token not in (None, MARK)), MARK]
    assert [word for word in secret if word in watched.said()] == []


async def test_no_account_budget_or_photo_is_in_the_log(watched: Watched) -> None:
    """Where all goes well, over REST."""
    here, there = watched.nodes
    account = {"email": EMAIL, "password": PASSWORD, "firstName": MARK, "lastName": MARK}
    async with here.rest() as rest:
        registered = (await rest.post("/auth/register", json=account)).json()
        assert (await rest.post("/auth/register", json=account)).status_code == 409
        wrong = {"email": EMAIL, "password": f"{MARK} wrong"}
        assert (await rest.post("/auth/login", json=wrong)).status_code == 401
        logged_in = (await rest.post("/auth/login", json=account)).json()
        refreshed = (
            await rest.post("/auth/refresh", json={"refreshToken": registered["refreshToken"]})
        ).json()
    budget_id = new_id()
    async with (
        here.rest(refreshed["token"]) as rest,
        connect(there.url, watched.cluster.token("bob")) as bob,
        there.rest(watched.cluster.token("bob")) as of_bob,
    ):
        profile = {"firstName": MARK, "lastName": MARK, "email": EMAIL}
        assert (await rest.put("/user", json=profile)).status_code == 200
        made = budget_create(budget_id, title=MARK, details=MARK)
        wanted = {"X-Request-Id": "tap-1"}
        assert (await rest.post("/events", json={"events": [made]}, headers=wanted)).is_success
        invite = (await rest.post(f"/budgets/{budget_id}/invites", json={})).json()
        [token] = [v for k, v in invite.items() if k in ("token", "invite")]
        joined = await of_bob.get(f"/budgets/{budget_id}/join", params={"invite": token})
        assert joined.status_code == 200
        await bob.subscribe(budget_id)
        for at in range(4, 4 + 2 * TRIES_MAX, 2):  # a sweep may find them before the bus tells
            events = [category_add(budget_id, name=MARK), expense_add(budget_id, note=MARK)]
            answer = (await rest.post("/events", json={"events": events}, headers=wanted)).json()
            assert [verdict["status"] for verdict in answer["events"]] == ["accepted"] * 2
            await bob.reached(budget_id, at)
            if "correlationIds" in bob.of_type("events")[-1]:
                break
        upload = await rest.get("/user/photo-upload-url", params={"type": "image/png", "size": 9})
        url = upload.json()["url"]
        assert (await rest.put(url.replace("signature=", "signature=x"), content=b"")).is_error
    await watched.until_logged("events delivered")
    given = [
        v for told in (registered, logged_in, refreshed) for k, v in told.items() if "oken" in k
    ]
    assert len(given) == 6
    query = url.partition("?")[2]
    secret = [MARK, EMAIL, PASSWORD, token, query, *given]
    assert [word for word in secret if word in watched.said()] == []


async def test_no_frame_leaves_its_words_behind(watched: Watched) -> None:
    """Good ones, bad ones, and what is none; over every way of signing in."""
    here, there = watched.nodes
    token = watched.cluster.token("ann")
    budget_id, expense = new_id(), new_id()
    with pytest.raises(Exception, match="401"):
        async with connect(here.url, f"{MARK}.{MARK}.{MARK}"):
            pass
    for way in ("subprotocol", "frame"):
        with pytest.raises(Ended, match="4401"):
            async with connect(here.url, f"{MARK}.{MARK}.{MARK}", way=way):
                pass
    async with (
        connect(here.url, token, way="frame") as device,
        connect(there.url, token, way="subprotocol") as observer,
    ):
        verdicts = await device.submit(
            [
                budget_create(budget_id, **TEXTS),
                expense_add(budget_id, recordId=expense, **TEXTS),
                expense_add(budget_id, recordId=expense, **TEXTS),  # exists
                expense_edit(budget_id, expense, 9, **TEXTS),  # stale
                budget_edit(budget_id, 1, **TEXTS, currency=MARK),
                expense_add(budget_id, amount=MARK, date=MARK, **TEXTS),
                {"eventId": new_id(), "eventType": MARK, "budgetId": MARK, **TEXTS},
                expense_add(MARK, **TEXTS),
                expense_add(new_id(), **TEXTS),
            ],
            "each",
        )
        assert {verdict["status"] for verdict in verdicts} == {"accepted", "conflict", "rejected"}
        await observer.subscribe(budget_id)
        await observer.reached(budget_id, 2)
        for frame in (
            {"type": "events", "events": [{"eventId": MARK, **TEXTS}]},
            {"type": "events", "events": MARK, "mode": MARK},
            {"type": "events", "events": [expense_add(budget_id)], "correlationId": EMAIL},
            {"type": "subscribe", "budgetId": MARK, "key": MARK},
            {"type": "auth", "token": ""},
        ):
            with pytest.raises(Refused):
                await device.ask(frame)
        with pytest.raises((Ended, Refused)):
            await device.ask({"type": "auth", "token": f"{MARK}.{MARK}.{MARK}"})
    for message in (MARK, f'{{"type":"{MARK}"}}', f'["{MARK}"', MARK.encode()):
        async with connect(here.url, token) as device:
            await device.send_raw(message)
            assert await device.until_closed() == 4400
    with pytest.raises(Exception, match="400"):
        async with open_device(here.url, headers=HEADERS, query=f"?budgetId={MARK}&key={MARK}"):
            pass
    await watched.until_logged("frame refused", "socket closed")
    assert [word for word in (MARK, token) if word in watched.said()] == []


async def test_no_failure_quotes_what_it_failed_on(watched: Watched) -> None:
    """Postgres says the whole row when it cannot store it, and a value when it stumbles over it."""
    here, _ = watched.nodes
    token = watched.cluster.token("ann")
    budget_id, hated = new_id(), f"{MARK} hated"
    database = await asyncpg.connect(watched.cluster.database_url)
    try:
        async with connect(here.url, token) as device, here.rest(token) as rest:
            await device.accepted(budget_create(budget_id), category_add(budget_id, name=MARK))
            await database.execute(
                f"ALTER TABLE expenses ADD CONSTRAINT no_hate CHECK (note <> '{hated}')"
            )
            event = expense_add(budget_id, note=hated)
            device.expect(77, [event], None)
            wanted = {"type": "events", "id": 77, "events": [event], "correlationId": "tap-5"}
            await device.send(wanted)
            [verdict] = await device.verdicts(77)
            assert verdict["error"]["message"] == "INTERNAL_SERVER_ERROR"
            await database.execute("ALTER VIEW category_dtos RENAME TO kept")
            await database.execute(
                "CREATE VIEW category_dtos AS SELECT * FROM kept WHERE (dto ->> 'name')::int = 1"
            )
            path = f"/budgets/{budget_id}/categories"
            failed = await rest.get(path, headers={"X-Request-Id": "tap-6"})
            assert failed.status_code == 500
    finally:
        await database.close()
    await watched.until_logged("an event cannot be stored", "request failed")
    lines = [line for node in watched.nodes for line in node.log() if line["level"] == "error"]
    [stored] = [line for line in lines if line.get("correlation_ids") == ["tap-5"]]
    assert (stored["event"], stored["error"]) == (
        "an event cannot be stored",
        "CheckViolationError no_hate",
    )
    [read] = [line for line in lines if line.get("request_id") == "tap-6"]
    assert read["event"] == "request failed"
    assert "InvalidTextRepresentationError" in str(read["exception"])
    assert MARK not in watched.said()
