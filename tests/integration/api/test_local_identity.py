"""Registering, signing in and refreshing, on a real Postgres."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from httpx2 import ASGITransport, AsyncClient
from starlette.applications import Starlette
from structlog.testing import capture_logs

from api.auth import local
from api.auth.local import LocalIdentity, RefreshToken, SignedIn
from api.auth.routes import AuthRoutes
from api.auth.tokens import Keys, Tokens
from api.http.edge import Edge
from api.http.errors import ERROR_HANDLERS
from api.http.guard import PerMinute, RequestLimits
from hub.errors import Code, HubError
from storage.postgres.database import Database
from storage.postgres.people.logins import Logins
from storage.redis.rate_limits import RateLimits

SECRET = b"s" * 32
EMAIL = "Ada@Example.org"
PASSWORD = "correct horse"
GOOD = {"email": EMAIL, "password": PASSWORD}
DAY_S = 60 * 60 * 24


class Clock:
    """Epoch seconds that move only when told to."""

    def __init__(self) -> None:
        self.now_s = 1_000_000_000.25

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(database: Database) -> Logins:
    return Logins(database)


@pytest.fixture
def identity(logins: Logins, clock: Clock) -> LocalIdentity:
    return an_identity(logins, clock)


@pytest.fixture
async def client(identity: LocalIdentity, clock: Clock) -> AsyncIterator[AsyncClient]:
    limits = RequestLimits(RateLimits(None, "log", SECRET, now_s=clock), PerMinute())
    app = Starlette(routes=AuthRoutes(identity, limits).routes(), exception_handlers=ERROR_HANDLERS)
    async with AsyncClient(transport=ASGITransport(Edge(app)), base_url="http://hub") as client:
        yield client


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens([SECRET], now=clock)


def an_identity(logins: Logins, clock: Clock, *secrets: bytes) -> LocalIdentity:
    return LocalIdentity(secrets or [SECRET], logins, now=clock, new_id=lambda: str(uuid4()))


async def test_register_then_login(identity: LocalIdentity, tokens: Tokens, clock: Clock) -> None:
    registered = await identity.register(EMAIL, PASSWORD, "Ada", None)
    loggedin = await identity.login(EMAIL, PASSWORD)
    assert loggedin.user_id == registered.user_id
    assert loggedin.refresh_token != registered.refresh_token  # each login is a family of its own
    for session in (registered, loggedin):
        assert session.expires_at_ms == (int(clock.now_s) + 900) * 1000
        principal = await tokens.authenticate(session.token)
        assert principal[:2] == (session.user_id, session.expires_at_ms)


async def test_what_register_stores(identity: LocalIdentity, database: Database) -> None:
    session = await identity.register(f" {EMAIL}\n", PASSWORD, "Ada", None)
    row = await only_row(database, "SELECT * FROM users")
    assert row["id"] == session.user_id
    assert (row["email"], row["first_name"], row["last_name"]) == (EMAIL, "Ada", None)
    assert row["password_hash"].startswith("$argon2id$")


@pytest.mark.parametrize("email", [EMAIL, EMAIL.swapcase(), f"  {EMAIL.lower()} "])
async def test_an_email_is_one_account_however_it_is_written(
    identity: LocalIdentity, email: str
) -> None:
    session = await identity.register(EMAIL, PASSWORD, None, None)
    await refused(Code.EMAIL_TAKEN, identity.register(email, "another password", None, None))
    assert (await identity.login(email, PASSWORD)).user_id == session.user_id


async def test_of_registrations_at_once_one_wins(identity: LocalIdentity) -> None:
    answers = await asyncio.gather(
        *(identity.register(EMAIL, PASSWORD, None, None) for _ in range(4)),
        return_exceptions=True,
    )
    assert Counter(map(kind, answers)) == {"SignedIn": 1, "EMAIL_TAKEN": 3}


async def test_an_email_known_from_another_identity_is_free(
    identity: LocalIdentity, database: Database
) -> None:
    async with database.connection("rest") as connection:
        await connection.execute("INSERT INTO users (id, email) VALUES ('elsewhere', $1)", EMAIL)
    await refused(Code.BAD_CREDENTIALS, identity.login(EMAIL, PASSWORD))
    await identity.register(EMAIL, PASSWORD, None, None)


async def test_wrong_credentials(identity: LocalIdentity) -> None:
    await identity.register(EMAIL, PASSWORD, None, None)
    await refused(Code.BAD_CREDENTIALS, identity.login(EMAIL, PASSWORD.upper()))
    await refused(Code.BAD_CREDENTIALS, identity.login(EMAIL, ""))
    await refused(Code.BAD_CREDENTIALS, identity.login("bob@example.org", PASSWORD))


async def test_an_unknown_account_costs_as_much_as_a_wrong_password(
    identity: LocalIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    await identity.register(EMAIL, PASSWORD, None, None)
    verified = []
    verify = PasswordHasher.verify

    def spy(self: PasswordHasher, hash: str | bytes, password: str | bytes) -> bool:
        verified.append(self.check_needs_rehash(hash))
        return verify(self, hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", spy)
    await refused(Code.BAD_CREDENTIALS, identity.login(EMAIL, "not the password"))
    await refused(Code.BAD_CREDENTIALS, identity.login("bob@example.org", PASSWORD))
    assert verified == [False, False]  # one each, both of today's parameters


async def test_a_hash_of_older_parameters_is_renewed_at_login(
    identity: LocalIdentity, logins: Logins
) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(PASSWORD)
    await logins.create("ada", EMAIL, weak, None, None)
    await refused(Code.BAD_CREDENTIALS, identity.login(EMAIL, "not the password"))
    assert await logins.by_email(EMAIL) == ("ada", weak)

    await identity.login(EMAIL, PASSWORD)
    renewed = await logins.by_email(EMAIL)
    assert renewed is not None
    assert not PasswordHasher().check_needs_rehash(renewed.password_hash)

    await identity.login(EMAIL, PASSWORD)
    assert await logins.by_email(EMAIL) == renewed


async def test_a_renewed_hash_does_not_undo_a_changed_password(logins: Logins) -> None:
    await logins.create("ada", EMAIL, "changed", None, None)
    await logins.set_password_hash("ada", "renewed", replacing="before")
    assert await logins.by_email(EMAIL) == ("ada", "changed")


async def test_logins_beyond_the_bound_are_put_off(
    identity: LocalIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "HASHING_ASKED_MAX", 3)
    addresses = [f"{number}@example.org" for number in range(5)]
    answers = await asyncio.gather(
        *(identity.register(address, PASSWORD, None, None) for address in addresses),
        return_exceptions=True,
    )
    assert Counter(map(kind, answers)) == {"SignedIn": 3, "BUSY": 2}
    await identity.register("later@example.org", PASSWORD, None, None)


async def test_p20_a_flood_of_one_address_holds_up_no_other(identity: LocalIdentity) -> None:
    async with asyncio.TaskGroup() as group:
        flood = [
            group.create_task(
                identity.register(f"{n}@example.org", PASSWORD, None, None, address="flood")
            )
            for n in range(8)
        ]
        await asyncio.sleep(0)
        await identity.register(EMAIL, PASSWORD, None, None, address="ann's")
        assert sum(task.done() for task in flood) <= 4  # she was the next


async def test_p20_an_address_is_put_off_before_there_is_no_room_for_others(
    logins: Logins, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "WAITING_PER_ADDRESS", 2)
    identity = an_identity(logins, clock)
    answers = await asyncio.gather(
        *(
            identity.register(f"{n}@example.org", PASSWORD, None, None, address="flood")
            for n in range(5)
        ),
        identity.register(EMAIL, PASSWORD, None, None, address="ann's"),
        return_exceptions=True,
    )
    assert Counter(map(kind, answers[:-1])) == {"SignedIn": 3, "BUSY": 2}
    assert kind(answers[-1]) == "SignedIn"


async def test_a_refresh_gives_the_next_tokens(
    identity: LocalIdentity, tokens: Tokens, clock: Clock
) -> None:
    session = await identity.register(EMAIL, PASSWORD, None, None)
    for _ in range(3):
        clock.now_s += 800
        following = await identity.refresh(session.refresh_token)
        assert following.user_id == session.user_id
        assert following.refresh_token != session.refresh_token
        await tokens.authenticate(following.token)
        session = following


async def test_a_lost_answer_is_given_again_for_a_minute(
    identity: LocalIdentity, tokens: Tokens, clock: Clock, database: Database
) -> None:
    session = await identity.register(EMAIL, PASSWORD, None, None)
    clock.now_s += 800
    following = await identity.refresh(session.refresh_token)
    before = await only_row(database, "SELECT * FROM refresh_families")
    for waited_s in (0, 30, 30):
        clock.now_s += waited_s
        again = await identity.refresh(session.refresh_token)
        assert again.refresh_token == following.refresh_token
        await tokens.authenticate(again.token)
    assert await only_row(database, "SELECT * FROM refresh_families") == before
    await identity.refresh(following.refresh_token)


async def test_a_lost_answer_is_not_given_again_later(
    identity: LocalIdentity, clock: Clock
) -> None:
    session = await identity.register(EMAIL, PASSWORD, None, None)
    following = await identity.refresh(session.refresh_token)
    clock.now_s += 60.001
    await refused(Code.NOT_LOGGED_IN, identity.refresh(session.refresh_token))
    await refused(Code.NOT_LOGGED_IN, identity.refresh(following.refresh_token))


async def test_an_older_refresh_token_ends_the_login_and_no_other(
    identity: LocalIdentity,
) -> None:
    first = await identity.register(EMAIL, PASSWORD, None, None)
    other = await identity.login(EMAIL, PASSWORD)
    second = await identity.refresh(first.refresh_token)
    third = await identity.refresh(second.refresh_token)
    with capture_logs() as logs:
        for session in (first, second, third):
            await refused(Code.NOT_LOGGED_IN, identity.refresh(session.refresh_token))
    await identity.refresh(other.refresh_token)

    assert [entry["log_level"] for entry in logs] == ["warning"]  # once, when it is ended
    assert logs[0]["user_id"] == first.user_id
    secrets = (EMAIL, first.token, *(s.refresh_token[37:] for s in (first, second, third)))
    assert not any(secret.lower() in str(logs).lower() for secret in secrets)


async def test_a_generation_of_the_future_ends_the_login(identity: LocalIdentity) -> None:
    """As after a restore that lost a rotation: which of the two holders is ours cannot be told."""
    session = await identity.register(EMAIL, PASSWORD, None, None)
    key = Keys.derived(SECRET).refresh
    family_id = session.refresh_token.split(".")[0]
    await refused(Code.NOT_LOGGED_IN, identity.refresh(RefreshToken(family_id, 2).text(key)))
    await refused(Code.NOT_LOGGED_IN, identity.refresh(session.refresh_token))


async def test_refreshes_at_once_give_one_successor(
    logins: Logins, clock: Clock, database: Database
) -> None:
    nodes = [an_identity(logins, clock) for _ in range(2)]
    session = await nodes[0].register(EMAIL, PASSWORD, None, None)
    for generation in range(1, 11):
        answers = await asyncio.gather(
            *(node.refresh(session.refresh_token) for node in nodes for _ in range(5))
        )
        assert len({answer.refresh_token for answer in answers}) == 1
        session = answers[0]
        row = await only_row(database, "SELECT generation, revoked FROM refresh_families")
        assert tuple(row) == (generation + 1, False)


async def test_a_login_lasts_from_its_last_use(identity: LocalIdentity, clock: Clock) -> None:
    unused = await identity.register(EMAIL, PASSWORD, None, None)
    used = await identity.login(EMAIL, PASSWORD)
    clock.now_s += 60 * DAY_S - 1
    used = await identity.refresh(used.refresh_token)
    clock.now_s += 1
    await refused(Code.NOT_LOGGED_IN, identity.refresh(unused.refresh_token))
    clock.now_s += 60 * DAY_S - 2
    used = await identity.refresh(used.refresh_token)
    clock.now_s += 60 * DAY_S
    await refused(Code.NOT_LOGGED_IN, identity.refresh(used.refresh_token))


async def test_an_unknown_family_is_refused(identity: LocalIdentity) -> None:
    unknown = RefreshToken(str(uuid4()), 1).text(Keys.derived(SECRET).refresh)
    with capture_logs() as logs:
        await refused(Code.NOT_LOGGED_IN, identity.refresh(unknown))
    assert logs == []


async def test_a_deleted_account_takes_its_logins_along(
    identity: LocalIdentity, database: Database
) -> None:
    session = await identity.register(EMAIL, PASSWORD, None, None)
    async with database.connection("rest") as connection:
        await connection.execute("DELETE FROM users")
    await refused(Code.NOT_LOGGED_IN, identity.refresh(session.refresh_token))
    await refused(Code.BAD_CREDENTIALS, identity.login(EMAIL, PASSWORD))


async def test_refresh_tokens_outlive_a_rotation_of_secrets(logins: Logins, clock: Clock) -> None:
    before = an_identity(logins, clock, b"old" * 16)
    after = an_identity(logins, clock, SECRET, b"old" * 16)
    session = await before.register(EMAIL, PASSWORD, None, None)
    session = await after.refresh(session.refresh_token)
    await refused(Code.NOT_LOGGED_IN, before.refresh(session.refresh_token))
    await an_identity(logins, clock, SECRET).refresh(session.refresh_token)


async def test_logins_that_ran_out_are_cleared(logins: Logins, database: Database) -> None:
    await logins.create("ada", EMAIL, "hash", None, None)
    for day in range(1, 29):
        await logins.start_family(str(uuid4()), "ada", now=january(1), expires_at=january(day))
    left = "SELECT count(*) FROM refresh_families WHERE expires_at <= $1"
    async with database.connection("rest") as connection:
        for count in (5, 0, 0):  # the 1st went at the 2nd's start, ten at a time after that
            await logins.start_family(str(uuid4()), "ada", now=january(16), expires_at=january(31))
            assert await connection.fetchval(left, january(16)) == count


async def test_over_http(client: AsyncClient, tokens: Tokens) -> None:
    who = {"email": f" {EMAIL}", "password": PASSWORD, "firstName": "Ada", "nickname": "ignored"}
    registered = await client.post("/auth/register", json=who)
    assert registered.status_code == 201
    loggedin = await client.post("/auth/login", json=GOOD)
    assert loggedin.status_code == 200
    refresh = {"refreshToken": loggedin.json()["refreshToken"]}
    refreshed = await client.post("/auth/refresh", json=refresh)
    assert refreshed.status_code == 200
    for answer in (registered, loggedin, refreshed):
        session = answer.json()
        assert list(session) == ["userId", "token", "expiresAt", "refreshToken"]
        principal = await tokens.authenticate(session["token"])
        assert principal[:2] == (session["userId"], session["expiresAt"])


@pytest.mark.parametrize(
    ("path", "sent", "status", "code"),
    [
        ("register", {"email": EMAIL, "password": "x" * 7}, 400, "BAD_REQUEST"),
        ("register", {"email": EMAIL, "password": "x" * 129}, 400, "BAD_REQUEST"),
        ("register", {"email": EMAIL, "password": 12345678}, 400, "BAD_REQUEST"),
        ("register", {"email": EMAIL, "password": "\ud800" * 8}, 400, "BAD_REQUEST"),
        ("register", {"email": EMAIL}, 400, "BAD_REQUEST"),
        ("register", {"email": "ada", "password": PASSWORD}, 400, "BAD_REQUEST"),
        ("register", {"email": "a b@c.d", "password": PASSWORD}, 400, "BAD_REQUEST"),
        ("register", {"email": "a@b.c\nd", "password": PASSWORD}, 400, "BAD_REQUEST"),
        ("register", {"email": "a\0@b.c", "password": PASSWORD}, 400, "BAD_REQUEST"),
        ("register", {"email": "a" * 317 + "@b.c", "password": PASSWORD}, 400, "BAD_REQUEST"),
        ("register", {**GOOD, "lastName": ""}, 400, "BAD_REQUEST"),
        ("register", {**GOOD, "lastName": "x" * 201}, 400, "BAD_REQUEST"),
        ("register", {**GOOD, "lastName": "x\0"}, 400, "BAD_REQUEST"),
        ("register", [], 400, "BAD_REQUEST"),
        ("login", {"email": EMAIL, "password": "short"}, 401, "BAD_CREDENTIALS"),
        ("login", {"email": EMAIL, "password": "x" * 129}, 400, "BAD_REQUEST"),
        ("refresh", {"refreshToken": "garbage"}, 401, "NOT_LOGGED_IN"),
        ("refresh", {"refreshToken": None}, 400, "BAD_REQUEST"),
    ],
)
async def test_refusals_over_http(
    client: AsyncClient, path: str, sent: object, status: int, code: str
) -> None:
    answer = await client.post(f"/auth/{path}", content=json.dumps(sent))
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, code)
    told = answer.text.replace(answer.json()["error"]["requestId"], "")  # chance could write `ada`
    for said in sent.values() if isinstance(sent, dict) else ():
        assert not said or str(said) not in told  # nothing of it comes back


@pytest.mark.parametrize(
    "fields",
    [
        {"password": "\U0001f511" * 8},  # code points, not bytes or UTF-16 units
        {"password": "\U0001f511" * 128},
        {"password": "with\0nul!"},
        {"firstName": "\U0001f511" * 200, "lastName": None},
        {"email": "ü" * 316 + "@b.c"},
    ],
)
async def test_what_may_be_registered(client: AsyncClient, fields: dict[str, object]) -> None:
    who = {**GOOD, **fields}
    assert (await client.post("/auth/register", json=who)).status_code == 201
    assert (await client.post("/auth/login", json=who)).status_code == 200


def january(day: int) -> datetime:
    return datetime(2001, 1, day, tzinfo=UTC)


def kind(answer: SignedIn | BaseException) -> str:
    return answer.code.name if isinstance(answer, HubError) else type(answer).__name__


async def refused(code: Code, asked: Awaitable[SignedIn]) -> None:
    with pytest.raises(HubError) as refusal:
        await asked
    assert refusal.value.code is code


async def only_row(database: Database, query: str) -> Any:
    async with database.connection("rest") as connection:
        rows = await connection.fetch(query)
    assert len(rows) == 1
    return rows[0]
