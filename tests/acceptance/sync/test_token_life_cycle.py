"""What a token is good for, from its first second to after its end, on every way into the hub.

The table: each state of a token, on each way, with both identities. Firebase's tokens are signed
here (`tests/google.py`) and verified by the real SDK; the hub checks for revocations every second.
In mid-stream a token can end, be revoked or lose its key, but not change its audience.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import jwt
import pytest
from websockets.exceptions import InvalidStatus

from api.auth.local import RefreshToken
from api.auth.tokens import ISSUER, Keys, Tokens
from api.timeouts import APP_TIMEOUTS
from tests import ROOT
from tests.cluster import AUTH_SECRET, Cluster, Node, until
from tests.device import Ended, budget_create, connect, expense_add, new_id, open_device
from tests.event_stream import streaming
from tests.google import FIREBASE_HUB, PROJECT, Google, Signer, encoded, running
from tests.lateness import again_if_too_late, in_time, unpaused

SKEW_S = 60
AUTH_S = 5.0  # for who has not said who he is
REVOCATION_CHECK_S = 1
NOTICED_S = 30.0  # within which a test must see it, on a busy machine
OLD_SECRET = "the-secret-before-the-last-rotation"
USER = "ada"
REVOKED = "rita"  # her tokens count since half an hour ago


class Identity(NamedTuple):
    """A node, and a token in each state of the table. `fresh` makes one for any user."""

    node: Node
    fresh: Callable[[str], str]
    ends_in: Callable[[int], str]  # a token that counts so many seconds more
    states: Mapping[str, Callable[[], str]]


COUNTS = ["fresh", "60 s left", "rotated key"]
REFUSED = ["expired", "other audience", "not yet valid", "unknown key"]
TABLE = [
    *(("firebase", state) for state in [*COUNTS, *REFUSED, "revoked", "removed key"]),
    *(("local", state) for state in [*COUNTS, *REFUSED]),
]


@pytest.fixture(scope="module")
def google() -> Iterator[Google]:
    with running() as google:
        google.max_age_s = 0
        google.valid_since_s[REVOKED] = int(time.time()) - 1800
        yield google


@pytest.fixture(scope="module")
def program() -> Sequence[str]:
    return FIREBASE_HUB


@pytest.fixture(scope="module")
async def firebase(cluster: Cluster, google: Google) -> Identity:
    node = await cluster.start(
        PYTHONPATH=str(ROOT),
        GOOGLE_URL=google.url,
        AUTH_MODE="firebase",
        PRODUCTION="true",
        FIREBASE_SERVICE_ACCOUNT_BASE64=encoded(google.service_account()),
        REVOCATION_CHECK_S=str(REVOCATION_CHECK_S),
    )
    async with node.rest(google.signer.token(USER)) as rest:
        assert (await rest.get("/budgets")).status_code == 200  # it has the first key now
    removed = google.rotate()
    unknown = Signer.made("nobody-published-it")

    def token(**changed: object) -> str:
        return google.signer.token(USER, **changed)

    def now_s() -> int:
        return int(time.time())

    return Identity(
        node,
        lambda user_id: google.signer.token(user_id),
        lambda seconds: token(iat=now_s() - 3600, exp=now_s() + seconds - SKEW_S),
        {
            "fresh": token,
            "60 s left": lambda: token(iat=now_s() - 3600, exp=now_s()),
            "rotated key": token,
            "expired": lambda: token(iat=now_s() - 3661, exp=now_s() - SKEW_S - 1),
            "other audience": lambda: token(aud="another-project"),
            "not yet valid": lambda: token(iat=now_s() + 2 * SKEW_S),
            "unknown key": lambda: unknown.token(USER),
            "removed key": lambda: removed.token(USER, name="Unseen"),
            "revoked": lambda: google.signer.token(REVOKED, iat=now_s() - 3500),
        },
    )


@pytest.fixture(scope="module")
async def local(cluster: Cluster) -> Identity:
    node = await cluster.start(
        PYTHONPATH=str(ROOT),
        GOOGLE_URL="",
        AUTH_SECRET_PREVIOUS=OLD_SECRET,
    )

    def token(secret: str = AUTH_SECRET, *, issued_in_s: int = 0, ttl_s: int = 900) -> str:
        def now() -> float:
            return time.time() + issued_in_s

        return Tokens([secret.encode()], now=now, token_ttl_s=ttl_s).issue(USER)[0]

    def elsewhere() -> str:
        now_s = int(time.time())
        keys = Keys.derived(AUTH_SECRET.encode())
        claims = {"sub": USER, "iat": now_s, "exp": now_s + 900, "iss": ISSUER, "aud": PROJECT}
        return jwt.encode(claims, keys.token, headers={"kid": keys.kid})

    return Identity(
        node,
        cluster.token,
        lambda seconds: token(ttl_s=seconds),
        {
            "fresh": token,
            "60 s left": lambda: token(ttl_s=60),
            "rotated key": lambda: token(OLD_SECRET),
            "expired": lambda: token(issued_in_s=-901),
            "other audience": elsewhere,
            "not yet valid": lambda: token(issued_in_s=2 * SKEW_S),
            "unknown key": lambda: token("a-secret-that-nobody-here-has-ever-known"),
        },
    )


@pytest.fixture
def identity(request: pytest.FixtureRequest) -> Identity:
    found: Identity = request.getfixturevalue(request.param)
    return found


async def budget_of(identity: Identity, user_id: str = USER) -> str:
    budget_id = new_id()
    async with connect(identity.node.url, identity.fresh(user_id)) as device:
        await device.accepted(budget_create(budget_id))
    return budget_id


table = pytest.mark.parametrize(("identity", "state"), TABLE, indirect=["identity"])
identities = pytest.mark.parametrize("identity", ["firebase", "local"], indirect=True)


@table
@again_if_too_late
@unpaused(APP_TIMEOUTS.standing_s / 2)  # else Google does not answer in time
async def test_upgrade(identity: Identity, state: str) -> None:
    token = identity.states[state]()
    if state in COUNTS:
        async with connect(identity.node.url, token) as device:
            await device.ping()
            assert bool(device.of_type("auth.expiring")) is (state == "60 s left")
        return
    with pytest.raises(InvalidStatus) as refused:
        async with connect(identity.node.url, token):
            pass
    assert refused.value.response.status_code == 401
    for way in ("subprotocol", "frame"):
        with pytest.raises(Ended) as ended:
            async with connect(identity.node.url, token, way=way):
                pass
        assert ended.value.code == 4401


@table
@again_if_too_late
@unpaused(APP_TIMEOUTS.standing_s / 2)  # else Google does not answer in time
async def test_rest(identity: Identity, state: str) -> None:
    async with identity.node.rest(identity.states[state]()) as rest:
        answer = await rest.get("/budgets")
        if state in COUNTS:
            assert (answer.status_code, answer.json()["userId"]) == (200, USER)
        else:
            assert answer.status_code == 401
            assert answer.json()["error"]["message"] == "NOT_LOGGED_IN"


@table
@again_if_too_late
@unpaused(APP_TIMEOUTS.standing_s / 2)  # else Google does not answer in time
async def test_long_poll(identity: Identity, state: str) -> None:
    budget_id = new_id()
    async with (
        connect(identity.node.url, identity.fresh(USER)) as device,
        identity.node.rest(identity.states[state]()) as rest,
    ):
        await device.accepted(budget_create(budget_id))
        poll = asyncio.create_task(rest.get(f"/events?budgetId={budget_id}&key=1&wait=30"))
        await device.accepted(expense_add(budget_id))
        answer = await poll
    if state in COUNTS:
        assert answer.status_code == 200
        assert [event["sequence"] for event in answer.json()["events"]] == [2]
    else:
        assert answer.status_code == 401
        assert answer.json()["error"]["message"] == "NOT_LOGGED_IN"


@table
@again_if_too_late
@unpaused(APP_TIMEOUTS.standing_s / 2)  # else Google does not answer in time
async def test_renewal_in_band(identity: Identity, state: str) -> None:
    user_id = REVOKED if state == "revoked" else USER
    async with connect(identity.node.url, identity.fresh(user_id)) as device:
        await device.send({"type": "auth", "token": identity.states[state]()})
        if state in COUNTS:
            await device.wait_for(lambda: len(device.of_type("auth")) == 2)
            await device.ping()
            assert bool(device.of_type("auth.expiring")) is (state == "60 s left")
        else:
            assert await device.until_closed() == 4401
            assert [e["error"]["message"] for e in device.of_type("error")] == ["NOT_LOGGED_IN"]


@identities
@again_if_too_late
async def test_in_mid_stream_a_token_ends(identity: Identity) -> None:
    async with AsyncExitStack() as stack:
        with in_time(2):  # the tokens have more than that
            device, renewed = [
                await stack.enter_async_context(connect(identity.node.url, token))
                for token in (identity.ends_in(3), identity.ends_in(3))
            ]
            await renewed.send({"type": "auth", "token": identity.fresh(USER)})
            await renewed.wait_for(lambda: len(renewed.of_type("auth")) == 2)
            await device.wait_for(lambda: bool(device.of_type("auth.expiring")))
            [auth] = device.of_type("auth")
        assert await device.until_closed() == 4401
        assert -50 <= time.time() * 1000 - auth["expiresAt"] < NOTICED_S * 1000
        await renewed.ping()


async def test_in_mid_stream_a_removed_key_leaves_who_was_verified(
    firebase: Identity, google: Google
) -> None:
    token = firebase.fresh(USER)
    async with connect(firebase.node.url, token) as device, firebase.node.rest(token) as rest:
        old = google.rotate()
        async with firebase.node.rest(old.token(USER, name="Another")) as other:
            assert (await other.get("/budgets")).status_code == 401
        async with connect(firebase.node.url, firebase.fresh(USER)):
            pass  # by the new key
        await device.ping()
        assert (await rest.get("/budgets")).status_code == 200


@pytest.mark.parametrize("how", ["revoked", "disabled", "deleted"])
async def test_in_mid_stream_a_revoked_user_is_signed_out_everywhere(
    firebase: Identity, google: Google, how: str
) -> None:
    user_id = f"{how}-{new_id()}"
    budget_id = await budget_of(firebase, user_id)
    token = google.signer.token(user_id, iat=int(time.time()) - 30)
    asked = f"/events?budgetId={budget_id}&key=1&wait=30"
    opened_s = time.monotonic()
    async with (
        connect(firebase.node.url, token) as device,
        firebase.node.rest(token) as rest,
        streaming(firebase.node, token, budget_id) as stream,
        open_device(firebase.node.url) as nobody,
        connect(firebase.node.url, google.signer.token("somebody-else")) as bystander,
    ):
        await stream.next()
        poll = asyncio.create_task(rest.get(asked, timeout=40))
        await bystander.ping()
        assert not poll.done()

        at_s = time.monotonic()
        if how == "revoked":
            google.valid_since_s[user_id] = int(time.time()) - 10
        else:
            getattr(google, how).add(user_id)
        assert await device.until_closed() == 4401
        noticed_s = time.monotonic() - at_s
        assert await stream.ended()
        assert (await poll).status_code == 401
        assert (await rest.get("/budgets")).status_code == 401
        assert noticed_s < NOTICED_S
        await bystander.ping()
        # At most for having said nothing all the time.
        assert all(frame.at_s - opened_s > AUTH_S - 0.5 for frame in nobody.frames)
        with pytest.raises(InvalidStatus):
            async with connect(firebase.node.url, token):
                pass
        if how == "revoked":  # who signs in again is let in
            async with connect(firebase.node.url, google.signer.token(user_id)) as again:
                await asked_again(google)
                await again.ping()


async def test_p10_while_google_is_away_who_is_known_goes_on(
    firebase: Identity, google: Google
) -> None:
    known, unseen = firebase.fresh(USER), google.signer.token(USER, name="Unseen")
    async with connect(firebase.node.url, known) as device, firebase.node.rest(known) as rest:
        google.down = {"keys", "accounts"}
        try:
            await asked_again(google)
            assert (await rest.get("/budgets")).status_code == 200
            async with connect(firebase.node.url, known) as again:
                await again.ping()
            # Keys are known for a while: whoever comes with a good token is let in.
            async with connect(firebase.node.url, unseen) as other:
                await other.ping()
        finally:
            google.down = set()
        await asked_again(google)
        await device.ping()


async def test_names_come_with_the_first_token_and_then_are_the_users(
    firebase: Identity, google: Google
) -> None:
    user_id = new_id()
    said = {"name": "Ada King Lovelace", "email": "ada@example.org", "picture": "https://a.b/c.png"}
    seen = {"id": user_id, "firstName": "Ada", "lastName": "King Lovelace"}
    seen |= {"email": "ada@example.org", "photo": "https://a.b/c.png"}
    async with firebase.node.rest(google.signer.token(user_id, **said)) as rest:
        assert (await rest.get("/user")).json() == seen
        edited = {"firstName": "Augusta", "lastName": None}
        assert (await rest.put("/user", json=edited)).status_code == 200
    async with firebase.node.rest(google.signer.token(user_id, **said, iat=1)) as rest:
        assert (await rest.get("/user")).json() == {**seen, **edited}


async def test_the_hubs_own_accounts_are_not_there(firebase: Identity, local: Identity) -> None:
    for path in ("/auth/register", "/auth/login", "/auth/refresh"):
        async with firebase.node.rest() as rest:
            assert (await rest.post(path, json={})).status_code == 404
        async with local.node.rest() as rest:
            assert (await rest.post(path, json={})).status_code == 400


async def test_a_login_from_before_the_change_of_the_secret_goes_on(local: Identity) -> None:
    who = {"email": f"{new_id()}@example.org", "password": "correct horse battery"}
    async with local.node.rest() as rest:
        registered = (await rest.post("/auth/register", json=who)).json()
        family_id, generation, _ = registered["refreshToken"].split(".")
        before = RefreshToken(family_id, int(generation))
        for secret, status in (("an-unknown-secret" * 2, 401), (OLD_SECRET, 200)):
            text = before.text(Keys.derived(secret.encode()).refresh)
            answer = await rest.post("/auth/refresh", json={"refreshToken": text})
            assert answer.status_code == status
        following = answer.json()
    assert following["userId"] == registered["userId"]
    current = Keys.derived(AUTH_SECRET.encode())
    assert RefreshToken.read(following["refreshToken"], [current.refresh]) is not None
    assert jwt.get_unverified_header(following["token"])["kid"] == current.kid


@identities
async def test_p9_no_token_is_in_the_log(identity: Identity) -> None:
    for make in identity.states.values():
        token = make()
        async with identity.node.rest(token) as rest:
            await rest.get("/budgets")
        for part in token.split(".")[1:]:
            assert part not in identity.node.err


async def asked_again(google: Google) -> None:
    """Wait until the hub has asked for everybody who is signed in, begun after this call."""
    seen = google.asked
    await until(lambda: google.asked >= seen + 2, NOTICED_S)
