"""REST reads of what a budget is: whole, changed since, in lists and single records; and that each
of them is kept from everybody it is not for."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import count, pairwise

import asyncpg
import pytest
from httpx2 import AsyncClient, Response

from loadtest.replica import Replica
from tests.cluster import Cluster, Node
from tests.device import (
    Json,
    budget_create,
    budget_edit,
    category_add,
    expense_add,
    expense_edit,
    new_id,
)
from tests.history import Author
from tests.replicas import after_delta

EVENTS_MAX = 25
PAGE_MAX = 100

_users = count(1)


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start()


@pytest.fixture
async def sql(cluster: Cluster) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(cluster.database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def people(node: Node, cluster: Cluster) -> AsyncIterator[list[AsyncClient]]:
    """Three users nobody has seen before, each at his client, and one without a token."""
    async with AsyncExitStack() as stack:
        clients = [cluster.token(f"user-{next(_users)}") for _ in range(3)]
        yield [await stack.enter_async_context(node.rest(token)) for token in (*clients, None)]


async def submit(rest: AsyncClient, *events: Json) -> list[Json]:
    """Submit in mode `stop`; all are accepted."""
    verdicts: list[Json] = []
    for start in range(0, len(events), EVENTS_MAX):
        response = await rest.post("/events", json={"events": events[start : start + EVENTS_MAX]})
        assert response.status_code == 200, response.text
        verdicts += response.json()["events"]
    assert [verdict["status"] for verdict in verdicts] == ["accepted"] * len(events), verdicts
    return verdicts


async def write(rest: AsyncClient, author: Author, events: Sequence[Json]) -> None:
    """Submit in mode `each` and tell the author what was accepted."""
    response = await rest.post("/events?mode=each", json={"events": events})
    assert response.status_code in (200, 207), response.text
    for event, verdict in zip(events, response.json()["events"], strict=True):
        if verdict["status"] == "accepted":
            author.accepted(event, verdict["version"])


async def read(rest: AsyncClient, path: str) -> Json:
    response = await rest.get(path)
    assert response.status_code == 200, response.text
    body: Json = response.json()
    return body


async def user_id(rest: AsyncClient) -> str:
    name: str = (await read(rest, "/budgets"))["userId"]
    return name


async def join(rest: AsyncClient, budget_id: str) -> None:
    assert (await rest.post(f"/budgets/{budget_id}/join")).status_code == 200


async def leave(rest: AsyncClient, budget_id: str) -> None:
    assert (await rest.delete(f"/budgets/{budget_id}/leave")).status_code == 200


def refused(response: Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"] == code
    assert "ETag" not in response.headers


# The snapshot's tag


async def test_the_tag_stands_until_something_changes(
    people: list[AsyncClient], sql: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    ann, ben, _, _ = people
    ben_id = await user_id(ben)
    budget_id, category_id, expense_id = new_id(), new_id(), new_id()
    path = f"/budgets/{budget_id}"
    await sql.execute("INSERT INTO users (id, first_name) VALUES ($1, 'Ben')", ben_id)

    def event(event_type: str, record_id: str, version: int) -> Json:
        base = {"eventId": new_id(), "eventType": event_type, "budgetId": budget_id, "when": 1}
        return {**base, "recordId": record_id, "version": version}

    changes: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        ("budget.edit", lambda: submit(ann, budget_edit(budget_id, 1, title="Other"))),
        ("category.add", lambda: submit(ann, category_add(budget_id, recordId=category_id))),
        ("category.edit", lambda: submit(ann, event("category.edit", category_id, 1))),
        ("expense.add", lambda: submit(ann, expense_add(budget_id, recordId=expense_id))),
        ("expense.edit", lambda: submit(ann, expense_edit(budget_id, expense_id, 1, note="x"))),
        ("expense.delete", lambda: submit(ann, event("expense.delete", expense_id, 2))),
        ("category.delete", lambda: submit(ann, event("category.delete", category_id, 2))),
        ("join", lambda: join(ben, budget_id)),
        (
            "profile",
            lambda: sql.execute(
                """
                UPDATE users SET first_name = 'Benjamin', profile_version = profile_version + 1
                WHERE id = $1
                """,
                ben_id,
            ),
        ),
        ("no profile", lambda: sql.execute("DELETE FROM users WHERE id = $1", ben_id)),
        ("leave", lambda: leave(ben, budget_id)),
        ("join again", lambda: join(ben, budget_id)),
        ("removal", lambda: ann.delete(f"{path}/participants/{ben_id}")),
        # As after a restore that lost events: other events may have the same numbers.
        ("logId", lambda: sql.execute("UPDATE log_identity SET log_id = gen_random_uuid()")),
    ]
    await submit(ann, budget_create(budget_id))
    response = await ann.get(path)
    tags, bodies = [response.headers["ETag"]], [response.json()]
    for name, change in changes:
        same = await ann.get(path, headers={"If-None-Match": tags[-1]})
        assert (same.status_code, same.content) == (304, b""), name
        await change()
        response = await ann.get(path, headers={"If-None-Match": tags[-1]})
        assert response.status_code == 200, name
        tags.append(response.headers["ETag"])
        bodies.append(response.json())
    assert len(set(tags)) == len(tags)
    # Each step was one that can be seen.
    assert all(old != new for old, new in pairwise(bodies))
    [_, shown] = bodies[9]["participants"]
    assert (shown["userExists"], shown["firstName"]) == (True, "Benjamin")


async def test_tags_are_compared_weakly_and_in_lists(people: list[AsyncClient]) -> None:
    ann, ben, stranger, _ = people
    budget_id = new_id()
    path = f"/budgets/{budget_id}"
    await submit(ann, budget_create(budget_id))
    first = await ann.get(path)
    tag = first.headers["ETag"]
    assert tag.startswith('W/"') and tag.endswith('"')
    strong = tag.removeprefix("W/")
    for offered in (tag, strong, f'W/"x", {tag}', f'"x",{strong} , "y"', "*"):
        same = await ann.get(path, headers={"If-None-Match": offered})
        assert same.status_code == 304, offered
        for name in ("ETag", "Cache-Control", "Vary"):  # RFC 9110 section 15.4.5
            assert same.headers[name] == first.headers[name]
        refused(await ben.get(path, headers={"If-None-Match": offered}), 404, "BUDGET_NOT_EXISTS")
    lines = [("If-None-Match", '"x"'), ("If-None-Match", tag)]
    assert (await ann.get(path, headers=lines)).status_code == 304
    for offered in ("", '"x"', 'W/"', ",", strong[:-2] + '"'):
        answer = await ann.get(path, headers={"If-None-Match": offered})
        assert (answer.status_code, answer.json()) == (200, first.json()), offered
    # Another participant sees the same, under the same tag; who has left sees nothing of it.
    await join(ben, budget_id)
    ours = (await ann.get(path)).headers["ETag"]
    assert (await ben.get(path, headers={"If-None-Match": ours})).status_code == 304
    await leave(ben, budget_id)
    refused(await ben.get(path, headers={"If-None-Match": "*"}), 403, "NOT_PARTICIPANT")
    refused(await stranger.get(path, headers={"If-None-Match": ours}), 404, "BUDGET_NOT_EXISTS")


@pytest.mark.parametrize(
    ("accepts", "compressed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, br", False),
        ("identity", False),
        ("", False),
    ],
)
async def test_compression_is_asked_for(
    people: list[AsyncClient], accepts: str, compressed: bool
) -> None:
    ann, *_ = people
    budget_id = new_id()
    note = "Käse, Wurst, Schokolade " * 20
    await submit(
        ann, budget_create(budget_id), *(expense_add(budget_id, note=note) for _ in range(10))
    )
    # Above: what a client gets that takes no compression at all.
    for path in ("", "/expenses", "/delta"):
        plain = await ann.get(f"/budgets/{budget_id}{path}", headers={"Accept-Encoding": ""})
        answer = await ann.get(f"/budgets/{budget_id}{path}", headers={"Accept-Encoding": accepts})
        assert ("Content-Encoding" in answer.headers) is compressed
        assert answer.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
        assert answer.content == plain.content
        small = int(answer.headers["Content-Length"]) < len(plain.content) / 4
        assert small is compressed
        assert answer.headers.get("ETag") == plain.headers.get("ETag")


# What has changed


async def test_delta_holds_what_changed_and_nothing_else(people: list[AsyncClient]) -> None:
    ann, ben, _, _ = people
    budget_id, kept, gone, moved = new_id(), new_id(), new_id(), new_id()
    path = f"/budgets/{budget_id}"
    await submit(  # 1 to 5
        ann,
        budget_create(budget_id),
        category_add(budget_id, recordId=kept),
        category_add(budget_id, recordId=gone),
        expense_add(budget_id, recordId=moved, categoryId=gone, note="old"),
        expense_add(budget_id, categoryId=kept),
    )
    snapshot = await read(ann, path)
    everything = await read(ann, f"{path}/delta")  # from the start
    assert everything == await read(ann, f"{path}/delta?key=0")
    own = {name: snapshot[name] for name in everything["budget"]}
    assert everything == {
        "budgetId": budget_id,
        "key": 0,
        "budget": own,
        "categories": snapshot["categories"],
        "expenses": snapshot["expenses"],
        "participants": snapshot["participants"],
        "lastEventSequence": 5,
        "digest": snapshot["digest"],
        "logId": snapshot["logId"],
    }
    nothing = {**everything, "key": 5, "categories": [], "expenses": []}
    del nothing["budget"], nothing["participants"]
    assert await read(ann, f"{path}/delta?key=5") == nothing
    refused(await ann.get(f"{path}/delta?key=6"), 409, "CURSOR_AHEAD")
    refused(await ann.get(f"{path}/delta?key=9007199254740991"), 409, "CURSOR_AHEAD")
    for key in ("x", "-1", "1.0", "9007199254740992"):
        refused(await ann.get(f"{path}/delta?key={key}"), 400, "BAD_REQUEST")

    deletion = {"eventId": new_id(), "eventType": "category.delete", "budgetId": budget_id}
    await submit(ann, {**deletion, "recordId": gone, "version": 1, "when": 77})  # 6
    delta = await read(ann, f"{path}/delta?key=5")
    assert set(delta) == set(nothing)  # neither `budget` nor `participants`
    [category], [expense] = delta["categories"], delta["expenses"]
    [old_category] = [each for each in snapshot["categories"] if each["id"] == gone]
    [old_expense] = [each for each in snapshot["expenses"] if each["id"] == moved]
    tombstone = {"version": 2, "offlineLastModified": 77, "deleted": True}
    assert category == {**old_category, **tombstone}
    assert expense == {**old_expense, **tombstone}

    await submit(ann, budget_edit(budget_id, 1, details="x"))  # 7
    delta = await read(ann, f"{path}/delta?key=6")
    assert set(delta) == {*nothing, "budget"}
    assert (delta["budget"]["details"], delta["budget"]["version"]) == ("x", 2)
    assert (delta["categories"], delta["expenses"]) == ([], [])
    await join(ben, budget_id)  # 8
    delta = await read(ann, f"{path}/delta?key=7")
    assert set(delta) == {*nothing, "participants"}
    assert delta["participants"] == (await read(ann, path))["participants"]
    assert len(delta["participants"]) == 2
    await leave(ben, budget_id)  # 9
    assert len((await read(ann, f"{path}/delta?key=8"))["participants"]) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_p6_a_snapshot_and_the_delta_after_it_make_the_snapshot_now(
    people: list[AsyncClient], seed: int
) -> None:
    ann, ben, _, _ = people
    chance = random.Random(seed)
    budget_id = new_id()
    path = f"/budgets/{budget_id}"
    author = Author(budget_id, chance)
    await write(ann, author, [author.create()])
    snapshots = [await read(ann, path)]
    await join(ben, budget_id)
    for _ in range(10):
        await write(ann, author, [author.change() for _ in range(chance.randint(1, EVENTS_MAX))])
        if chance.random() < 0.4:
            await chance.choice((join, leave))(ben, budget_id)
        snapshots.append(await read(ann, path))
    now = snapshots[-1]
    assert any(each["expenses"] for each in snapshots)
    for snapshot in snapshots:
        delta = await read(ann, f"{path}/delta?key={snapshot['lastEventSequence']}")
        replica = after_delta(Replica.from_snapshot(snapshot), delta)
        assert replica.difference(Replica.from_snapshot(now)) is None
        assert delta.get("participants", snapshot["participants"]) == now["participants"]
    # From any event on, though no snapshot was taken there.
    replica, key, replicas = Replica(budget_id), 0, [Replica(budget_id)]
    while key < now["lastEventSequence"]:
        page = await read(ann, f"/events?budgetId={budget_id}&key={key}&wait=0")
        for event in page["events"]:
            replica.apply(event)
            if chance.random() < 0.15:
                replicas.append(after_delta(replica, None))
        key = page["nextKey"]
    for earlier in replicas:
        delta = await read(ann, f"{path}/delta?key={earlier.sequence}")
        assert after_delta(earlier, delta).difference(replica) is None


async def test_head_and_digest(people: list[AsyncClient]) -> None:
    ann, *_ = people
    budget_id = new_id()
    path = f"/budgets/{budget_id}"
    [_, _] = await submit(ann, budget_create(budget_id), expense_add(budget_id))
    snapshot = await read(ann, path)
    assert await read(ann, f"{path}/last-event-sequence") == {
        "budgetId": budget_id,
        "lastSequence": 2,
        "digest": snapshot["digest"],
    }


# Lists


async def test_lists_hold_what_is_live_in_the_order_of_creation(people: list[AsyncClient]) -> None:
    ann, ben, _, _ = people
    budget_id = new_id()
    path = f"/budgets/{budget_id}"
    deletion = {"eventType": "category.delete", "budgetId": budget_id, "version": 1, "when": 1}
    verdicts = await submit(
        ann,
        budget_create(budget_id),
        *(category_add(budget_id, name=f"{n}") for n in range(3)),
        *(expense_add(budget_id, note=f"{n}") for n in range(3)),
    )
    categories = [verdict["record"] for verdict in verdicts[1:4]]
    expenses = [verdict["record"] for verdict in verdicts[4:]]
    await submit(
        ann,
        {**deletion, "eventId": new_id(), "recordId": categories[1]["id"]},
        expense_edit(budget_id, expenses[0]["id"], 1, note="changed, and still the first"),
        {
            **deletion,
            "eventId": new_id(),
            "eventType": "expense.delete",
            "recordId": expenses[2]["id"],
        },
    )
    await join(ben, budget_id)
    for rest in (ann, ben):
        found = await read(rest, f"{path}/categories")
        assert found == {"categories": [categories[0], categories[2]]}
        page = await read(rest, f"{path}/expenses")
        assert (page["budgetId"], page["key"], page["nextKey"]) == (budget_id, 0, 6)
        assert [each["version"] for each in page["expenses"]] == [2, 1]
        assert page["expenses"] == (await read(rest, path))["expenses"]
        people_now = await read(rest, f"{path}/participants")
        assert [each["userId"] for each in people_now["participants"]] == [
            await user_id(ann),
            await user_id(ben),
        ]
        assert people_now["participants"] == (await read(rest, path))["participants"]
    await leave(ben, budget_id)
    assert len((await read(ann, f"{path}/participants"))["participants"]) == 1


async def test_paging_misses_and_repeats_nothing_while_others_write(
    people: list[AsyncClient],
) -> None:
    ann, ben, _, _ = people
    chance = random.Random(7)
    budget_id = new_id()
    path = f"/budgets/{budget_id}/expenses"
    adds = [expense_add(budget_id) for _ in range(60)]
    await submit(ann, budget_create(budget_id), *adds)
    await join(ben, budget_id)
    stays = [add["recordId"] for add in adds]
    seen: list[str] = []
    key = 0
    while True:
        page = await read(ann, f"{path}?key={key}&count=7")
        assert page["key"] == key
        if not page["expenses"]:
            assert page["nextKey"] == key
            break
        assert page["nextKey"] > key
        seen += [each["id"] for each in page["expenses"]]
        key = page["nextKey"]
        if len(seen) < 60:  # the other one adds, edits and deletes, before and behind the key
            victim, edited = chance.sample(stays, 2)
            stays.remove(victim)
            deletion = {**expense_edit(budget_id, victim, 1), "eventType": "expense.delete"}
            response = await ben.post(
                "/events?mode=each",
                json={
                    "events": [expense_add(budget_id), deletion, expense_edit(budget_id, edited, 1)]
                },
            )
            assert response.status_code in (200, 207)
    assert len(seen) == len(set(seen))
    assert set(stays) <= set(seen)


@pytest.mark.parametrize("path", ["/budgets", "/budgets/{id}/expenses"])
async def test_key_and_count_of_pages(people: list[AsyncClient], path: str) -> None:
    ann, *_ = people
    budget_id = new_id()
    await submit(ann, budget_create(budget_id), *(expense_add(budget_id) for _ in range(101)))
    await submit(ann, *(budget_create(new_id()) for _ in range(100)))
    path = path.replace("{id}", budget_id)
    name = path.rpartition("/")[2]
    for query, length in (("", PAGE_MAX), ("?count=100000", PAGE_MAX), ("?count=3", 3)):
        page = await read(ann, path + query)
        assert len(page[name]) == length
        rest = (await read(ann, f"{path}?key={page['nextKey']}"))[name]
        assert len(rest) == min(101 - length, PAGE_MAX)
    beyond = await read(ann, f"{path}?key=9007199254740991")
    assert (beyond[name], beyond["nextKey"]) == ([], 9007199254740991)
    for query in ("key=x", "key=-1", "count=0", "count=1.5", "key=9007199254740992"):
        refused(await ann.get(f"{path}?{query}"), 400, "BAD_REQUEST")


async def test_the_budgets_of_a_user(people: list[AsyncClient]) -> None:
    ann, ben, _, _ = people
    budgets = [new_id() for _ in range(4)]
    verdicts = [(await submit(ann, budget_create(budget_id)))[0] for budget_id in budgets]

    async def listed(rest: AsyncClient) -> list[str]:
        """Page by page."""
        found: list[str] = []
        key = 0
        while True:
            page = await read(rest, f"/budgets?key={key}&count=1")
            assert (page["userId"], page["key"]) == (await user_id(rest), key)
            if not page["budgets"]:
                return found
            [budget] = page["budgets"]
            found.append(budget["id"])
            key = page["nextKey"]

    assert await listed(ben) == []
    page = await read(ann, "/budgets")
    assert page["budgets"] == [verdict["record"] for verdict in verdicts]
    for budget_id in budgets[:3]:
        await join(ben, budget_id)
    await submit(ben, budget_edit(budgets[0], 1, title="Edited, and still the first"))
    assert await listed(ben) == budgets[:3]
    await leave(ben, budgets[1])
    assert await listed(ben) == [budgets[0], budgets[2]]
    removed = await ann.delete(f"/budgets/{budgets[0]}/participants/{await user_id(ben)}")
    assert removed.status_code == 200
    assert await listed(ben) == [budgets[2]]
    await submit(ann, {**budget_edit(budgets[2], 1), "eventType": "budget.delete"})
    assert await listed(ben) == []
    await join(ben, budgets[1])
    assert await listed(ben) == [budgets[1]]
    assert await listed(ann) == [budgets[0], budgets[1], budgets[3]]


# Single records


async def test_single_records_are_those_of_the_lists(people: list[AsyncClient]) -> None:
    ann, ben, stranger, _ = people
    budget_id, other_id = new_id(), new_id()
    path, other = f"/budgets/{budget_id}", f"/budgets/{other_id}"
    await submit(ann, budget_create(budget_id), category_add(budget_id), expense_add(budget_id))
    await submit(ann, budget_create(other_id))
    await join(ben, budget_id)
    snapshot = await read(ann, path)
    for kind, code in (
        ("categories", "CATEGORY_NOT_EXISTS"),
        ("expenses", "EXPENSE_NOT_EXISTS"),
        ("participants", "PARTICIPANT_NOT_EXISTS"),
    ):
        for record in snapshot[kind]:
            id = record["userId" if kind == "participants" else "id"]
            assert await read(ben, f"{path}/{kind}/{id}") == record
            if kind != "participants":
                upper = f"/budgets/{budget_id.upper()}/{kind}/{id.upper()}"
                assert await read(ben, upper) == record
        refused(await ann.get(f"{path}/{kind}/{new_id()}"), 404, code)
        # A record of another budget does not exist here (both are hers).
        id = snapshot[kind][-1]["userId" if kind == "participants" else "id"]
        refused(await ann.get(f"{other}/{kind}/{id}"), 404, code)
    for kind in ("categories", "expenses"):
        refused(await ann.get(f"{path}/{kind}/1"), 400, "BAD_REQUEST")
        [record] = snapshot[kind]
        kind_of = {"categories": "category.delete", "expenses": "expense.delete"}[kind]
        deletion = {**expense_edit(budget_id, record["id"], 1), "eventType": kind_of}
        await submit(ann, deletion)
        code = {"categories": "CATEGORY_NOT_EXISTS", "expenses": "EXPENSE_NOT_EXISTS"}[kind]
        refused(await ann.get(f"{path}/{kind}/{record['id']}"), 404, code)
    ben_id = await user_id(ben)
    await leave(ben, budget_id)
    for absent in (ben_id, await user_id(stranger), "x" * 129, "%00", "%ff", "a b"):
        answer = await ann.get(f"{path}/participants/{absent}")
        refused(answer, 404, "PARTICIPANT_NOT_EXISTS")


# Everybody else

READS = [
    "",
    "/delta",
    "/delta?key=9",  # not even that the key is ahead
    "/last-event-sequence",
    "/participants",
    "/participants/{user}",
    "/categories",
    "/categories/{record}",
    "/expenses",
    "/expenses/{record}",
    "/stream",
]


@pytest.mark.parametrize("suffix", READS)
async def test_p9_outsiders(
    people: list[AsyncClient], node: Node, cluster: Cluster, suffix: str
) -> None:
    ann, former, stranger, nobody = people
    budget_id, record_id = new_id(), new_id()
    events = [
        expense_add(budget_id, recordId=record_id),
        category_add(budget_id, recordId=record_id),
    ]
    await submit(ann, budget_create(budget_id), *events)
    suffix = suffix.replace("{user}", await user_id(ann)).replace("{record}", record_id)
    path = f"/budgets/{budget_id}{suffix}"

    def told(response: Response) -> Json:
        error: Json = response.json()["error"]
        return {**error, "requestId": None}

    refused(await nobody.get(path), 401, "NOT_LOGGED_IN")
    for bad in ("bad", cluster.token("ann", ttl_s=-1)):
        headers = {"Authorization": f"Bearer {bad}"}
        refused(await nobody.get(path, headers=headers), 401, "NOT_LOGGED_IN")
    foreign = await stranger.get(path)
    refused(foreign, 404, "BUDGET_NOT_EXISTS")
    unknown = await stranger.get(path.replace(budget_id, new_id()))
    assert told(foreign) == told(unknown)
    await join(former, budget_id)
    if suffix not in ("/stream", "/delta?key=9"):
        await read(former, path)
    await leave(former, budget_id)
    refused(await former.get(path), 403, "NOT_PARTICIPANT")

    await submit(ann, {**budget_edit(budget_id, 1), "eventType": "budget.delete"})
    for rest in (former, stranger, *([ann] if suffix != "/stream" else [])):
        refused(await rest.get(path), 404, "BUDGET_NOT_EXISTS")
    refused(await ann.get("/budgets/1" + suffix), 400, "BAD_REQUEST")


async def test_p9_the_list_of_budgets_needs_a_token(people: list[AsyncClient]) -> None:
    refused(await people[-1].get("/budgets"), 401, "NOT_LOGGED_IN")


async def test_reads_do_not_hold_up_each_other(people: list[AsyncClient]) -> None:
    """More of them at once than there are connections: all get their turn."""
    ann, *_ = people
    budget_id = new_id()
    await submit(ann, budget_create(budget_id), *(expense_add(budget_id) for _ in range(50)))
    paths = [f"/budgets/{budget_id}{suffix}" for suffix in ("", "/expenses", "/delta")] * 20
    answers = await asyncio.gather(*(ann.get(path) for path in paths))
    assert {answer.status_code for answer in answers} == {200}
