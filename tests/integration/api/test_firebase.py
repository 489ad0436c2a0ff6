"""The Firebase identity in this process: the real SDK, a Google on loopback, a clock of our own."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from google.auth.exceptions import TransportError
from structlog.testing import capture_logs

from api.auth.firebase import (
    KEYS_RETRY_S,
    KEYS_STALE_S,
    SKEW_S,
    Firebase,
    GoogleKeys,
    Standing,
    google_keys,
    open_client,
    principal_of,
    profile_of,
)
from api.auth.revocation import NEVER_MS, Revocations, Unreachable
from api.auth.token_cache import CachedTokens
from api.settings import Settings, SettingsError
from hub.errors import Code, Disconnected, HubError
from hub.hub import Connection, Hub
from hub.ports import Principal
from storage.postgres.database import Database
from storage.postgres.people.closed_accounts import ClosedAccounts
from storage.postgres.people.profiles import Profile, Profiles
from tests.google import PROJECT, Google, Signer, ask_at, encoded, running
from tests.patience import PATIENT

NOW_S = 1_795_257_600.5
CLAIMS = {"sub": "ada", "iat": int(NOW_S) - 10, "exp": int(NOW_S) + 3590}


@pytest.fixture(scope="module")
def one_google() -> Iterator[Google]:
    with running() as google:
        yield google


@pytest.fixture
def google(one_google: Google, monkeypatch: pytest.MonkeyPatch) -> Google:
    """As new, but for its key, which takes a while to make."""
    signer = one_google.signer
    one_google.published = {signer.kid: signer.certificate}
    one_google.valid_since_s, one_google.disabled, one_google.deleted = {}, set(), set()
    one_google.down, one_google.max_age_s = set(), 3600
    one_google.key_fetches, one_google.lookups = 0, []
    one_google.answering.set()
    ask_at(one_google.url, monkeypatch)
    return one_google


@pytest.fixture
def introduced() -> list[Profile]:
    return []


@pytest.fixture
def firebase(google: Google, introduced: list[Profile]) -> Firebase:
    async def introduce(profile: Profile, issued_at: datetime) -> None:
        introduced.append(profile)

    return firebase_of(google, introduce)


def firebase_of(google: Google, introduce: Callable[[Profile, datetime], Any]) -> Firebase:
    client = open_client(
        PROJECT, google.service_account(), emulated=False, keys=google_keys(now_s=time.monotonic)
    )
    return Firebase(client, introduce, now=time.time, timeouts=PATIENT)


async def refused(firebase: Firebase, token: str, code: Code = Code.NOT_LOGGED_IN) -> None:
    with pytest.raises(HubError) as refusal:
        await firebase.authenticate(token)
    assert refusal.value.code is code


# Tokens.


async def test_a_token_names_its_user_and_its_end(firebase: Firebase, google: Google) -> None:
    now_s = int(time.time())
    token = google.signer.token("ada", iat=now_s - 5, exp=now_s + 100)
    who = await firebase.authenticate(token)
    assert who[:3] == ("ada", (now_s + 100 + SKEW_S) * 1000, (now_s - 5) * 1000)
    left_s = who.ends_at_s - time.monotonic()  # by the clock that nobody sets
    assert SKEW_S < left_s <= 100 + SKEW_S
    assert google.lookups == [["ada"]]


def handmade(header: object, claims: object, signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="nothing"),
        pytest.param("garbage", id="garbage"),
        pytest.param("a.b.c", id="three segments"),
        pytest.param("..", id="three empty segments"),
        pytest.param(handmade([], []), id="no objects"),
        pytest.param(handmade({"alg": "none"}, CLAIMS), id="not signed"),
        pytest.param(handmade({"alg": "HS256"}, {"v": 0, "d": 5}), id="d a number"),
        pytest.param(handmade({"alg": ["RS256"], "kid": {}}, CLAIMS), id="header of odd types"),
        pytest.param("e30." + base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30", id="deep"),
    ],
)
async def test_no_token_is_refused(firebase: Firebase, google: Google, token: str) -> None:
    await refused(firebase, token)
    assert google.key_fetches == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": "another-project"},
        {"aud": [PROJECT, "another-project"]},
        {"aud": None},
        {"iss": "https://securetoken.google.com/another-project"},
        {"iss": f"https://session.firebase.google.com/{PROJECT}"},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 129},
        {"sub": "a\0b"},
        {"sub": "\ud800"},
        {"exp": None},
        {"exp": "soon"},
        {"exp": True},
        {"iat": None},
        {"nbf": 2**40},
        {"nbf": "soon"},
    ],
    ids=str,
)
async def test_a_signed_token_with_a_wrong_claim_is_refused(
    firebase: Firebase, google: Google, changed: dict[str, object]
) -> None:
    await refused(firebase, google.signer.token("ada", **changed))


async def test_a_clock_may_be_a_minute_off(firebase: Firebase, google: Google) -> None:

    def token(**ahead_s: int) -> str:
        now_s = int(time.time())
        return google.signer.token("ada", **{name: now_s + s for name, s in ahead_s.items()})

    assert await firebase.authenticate(token())  # so that the keys are there, and no time passes
    for times in ({"iat": 50}, {"iat": -100, "exp": -50}):
        assert (await firebase.authenticate(token(**times))).user_id == "ada"
    for times in ({"iat": 70}, {"iat": -100, "exp": -61}):
        await refused(firebase, token(**times))


async def test_a_tampered_token_is_refused(firebase: Firebase, google: Google) -> None:
    header, claims, signature = google.signer.token("ada").split(".")
    other = google.signer.token("eve").split(".")[1]
    await refused(firebase, f"{header}.{other}.{signature}")
    await refused(firebase, f"{header}.{claims}.{signature[:-4]}")
    await refused(firebase, Signer("key-1", Signer.made("x").key, "").token("ada"))


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, True),
        ({"exp": int(NOW_S) - SKEW_S + 1}, True),
        ({"exp": int(NOW_S) - SKEW_S}, False),
        ({"iat": int(NOW_S) + SKEW_S}, True),
        ({"iat": int(NOW_S) + SKEW_S + 1}, False),
        ({"nbf": int(NOW_S) + SKEW_S}, True),
        ({"nbf": int(NOW_S) + SKEW_S + 1}, False),
        ({"exp": 1.5}, False),
        ({"exp": None}, False),
        ({"iat": True}, False),
        ({"sub": 7}, False),
    ],
    ids=str,
)
def test_times_are_checked_here_too(changed: dict[str, object], counts: bool) -> None:
    """The emulator's tokens pass the library whatever they say."""
    claims = {**CLAIMS, **changed}
    if counts:
        who = principal_of(claims, NOW_S, 7.0)
        assert who.ends_at_s == 7 + who.expires_at_ms / 1000 - NOW_S
        assert who.expires_at_ms == (int(str(claims["exp"])) + SKEW_S) * 1000
    else:
        with pytest.raises(HubError):
            principal_of(claims, NOW_S, 7.0)


async def test_with_the_emulator_expired_tokens_are_refused_still(
    google: Google, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = google.url.removeprefix("http://")
    monkeypatch.setenv("FIREBASE_AUTH_EMULATOR_HOST", host)
    client = open_client(PROJECT, None, emulated=True, keys=google_keys(now_s=time.monotonic))
    claims = client.verify_id_token(google.signer.token("ada", exp=1000))
    assert claims["exp"] == 1000  # the trap
    with pytest.raises(HubError):
        principal_of(claims, time.time(), 0.0)


def test_an_emulator_that_the_settings_do_not_know_ends_the_start(
    google: Google, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIREBASE_AUTH_EMULATOR_HOST", "127.0.0.1:9099")
    with pytest.raises(ValueError, match="FIREBASE_AUTH_EMULATOR_HOST"):
        open_client(PROJECT, google.service_account(), emulated=False, keys=Fetch())


async def test_verifying_leaves_the_loop_alone(
    firebase: Firebase, google: Google, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Google takes its time, the loop goes on."""
    google.answering.clear()
    asking = asyncio.create_task(firebase.authenticate(google.signer.token("ada")))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not asking.done()
    google.answering.set()
    assert (await asking).user_id == "ada"


async def test_p11_what_google_does_not_answer_holds_nobody_up(
    firebase: Firebase, google: Google
) -> None:
    google.answering.clear()
    for waiting in (
        asyncio.create_task(firebase.authenticate(google.signer.token("ada"))),
        asyncio.create_task(firebase.valid_since_ms(["ada"])),
    ):
        for _ in range(20):
            await asyncio.sleep(0.001)
        waiting.cancel()
        for _ in range(20):  # turns of the loop; what it does not wait for takes few
            await asyncio.sleep(0)
        assert waiting.cancelled()
        assert not google.answering.is_set()
    google.answering.set()
    await firebase.authenticate(google.signer.token("ada"))  # after those in the same threads


async def test_p10_without_keys_nobody_is_refused_for_good(
    firebase: Firebase, google: Google
) -> None:
    google.down = {"keys"}
    for name in ("ada", "bob"):
        await refused(firebase, google.signer.token(name), Code.UNAVAILABLE)
    assert google.key_fetches == 1  # after a failure it is left alone for a while


# Keys.


class Answer:
    def __init__(self, status: int = 200, body: bytes = b'{"k":"c"}', max_age: str = "") -> None:
        self.status, self.data = status, body
        self.headers = {"Cache-Control": max_age} if max_age else {}


class Fetch:
    """Answers in turn; the last one again and again. None: out of reach."""

    def __init__(self, *answers: Answer | None) -> None:
        self.answers = list(answers) or [Answer()]
        self.calls = 0

    def __call__(self, url: str, *, method: str, timeout: float) -> Any:
        assert timeout <= 10
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise TransportError("away")  # type: ignore[no-untyped-call]
        return answer


class Clock:
    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("max_age", "kept_s"),
    [
        ("public, max-age=19000, must-revalidate", 19_000),
        ("max-age=0", 60),
        ("", 60),
        ("max-age=999999999", 24 * 3600),
    ],
)
def test_keys_are_kept_as_long_as_google_says(max_age: str, kept_s: float) -> None:
    clock, fetch = Clock(), Fetch(Answer(max_age=max_age))
    keys = GoogleKeys(fetch, now_s=clock)
    for waited_s, calls in ((0, 1), (kept_s - 1, 1), (1, 2)):
        clock.now_s += waited_s
        assert keys("url").status == 200
        assert fetch.calls == calls


def test_keys_are_fetched_once_for_all_who_wait() -> None:
    at_once = 8
    all_ask = threading.Barrier(at_once)
    calls = []

    def fetch(url: str, **_: object) -> Any:
        calls.append(url)
        time.sleep(0.05)  # time for the others to do what they must not
        return Answer()

    keys = GoogleKeys(fetch, now_s=Clock())

    def ask() -> Any:
        all_ask.wait(30)
        return keys("url")

    with ThreadPoolExecutor(at_once) as threads:
        asked = [threads.submit(ask) for _ in range(at_once)]
        assert {one.result(30).status for one in asked} == {200}
    assert calls == ["url"]


@pytest.mark.parametrize(
    "failure",
    [None, Answer(503), Answer(body=b"<html>"), Answer(body=b"[]")],
    ids=["no answer", "503", "a page", "a list"],
)
def test_known_keys_count_a_while_longer(failure: Answer | None) -> None:
    clock = Clock()
    fetch = Fetch(Answer(max_age="max-age=100"), failure)
    keys = GoogleKeys(fetch, now_s=clock)
    keys("url")
    clock.now_s += 100
    with capture_logs() as logs:
        keys("url")
    assert [line["event"] for line in logs] == ["keys not fetched"]
    keys("url")
    assert fetch.calls == 2  # not again at once
    clock.now_s += KEYS_RETRY_S
    keys("url")
    assert fetch.calls == 3
    clock.now_s += KEYS_STALE_S
    with pytest.raises(TransportError):
        keys("url")
    fetch.answers = [Answer()]
    clock.now_s += KEYS_RETRY_S
    assert keys("url").status == 200


# Whether a user may still.


async def test_a_storm_asks_for_a_hundred_users_at_a_time(
    firebase: Firebase, google: Google
) -> None:
    names = [f"user-{number}" for number in range(250)]
    answers = await asyncio.gather(*(firebase._standing.of(name) for name in names))
    assert set(answers) == {0}
    assert sorted(name for call in google.lookups for name in call) == sorted(names)
    assert len(google.lookups) <= 4
    assert max(len(call) for call in google.lookups) <= 100


@pytest.mark.parametrize("how", ["disabled", "deleted", "revoked"])
async def test_who_is_signed_out_already_is_not_let_in(
    firebase: Firebase, google: Google, how: str
) -> None:
    now_s = int(time.time())
    if how == "revoked":
        google.valid_since_s["ada"] = now_s - 4
    else:
        getattr(google, how).add("ada")
    await refused(firebase, google.signer.token("ada", iat=now_s - 5))
    if how == "revoked":
        await firebase.authenticate(google.signer.token("ada", iat=now_s - 4))


async def test_p20_a_flood_of_tokens_from_one_address_holds_up_no_other(
    firebase: Firebase, google: Google
) -> None:
    flood = [
        asyncio.create_task(firebase.authenticate(google.signer.token(f"user-{n}"), "flood"))
        for n in range(50)
    ]
    await asyncio.sleep(0)
    await firebase.authenticate(google.signer.token("ada"), "ada's")
    assert sum(task.done() for task in flood) < len(flood) / 2  # she was the next but one
    await asyncio.gather(*flood)


async def test_p10_where_nobody_knows_the_user_is_let_in_and_nobody_waits(
    firebase: Firebase, google: Google
) -> None:
    google.down = {"accounts"}
    with capture_logs() as logs:
        for name in ("ada", "bob", "cid"):
            assert (await firebase.authenticate(google.signer.token(name))).user_id == name
    assert [line["event"] for line in logs] == ["standing of users unknown"]
    google.down = set()
    await firebase.valid_since_ms(["ada"])  # the next round: it is back
    google.disabled = {"dan"}
    await refused(firebase, google.signer.token("dan"))


async def test_p10_nobody_waits_long_for_an_answer() -> None:
    answering = asyncio.Event()

    async def ask(user_ids: Collection[str]) -> Mapping[str, int]:
        await answering.wait()
        return dict.fromkeys(user_ids, 7)

    standing = Standing(ask, 0.01)
    assert await standing.of("ada") is None
    assert await standing.of("bob") is None  # at once
    answering.set()
    standing.outage.back()
    standing._wait_s = PATIENT.standing_s
    assert await standing.of("bob") == 7


class Attachment:
    """Somebody who is connected."""

    def __init__(self, principal: Principal | None) -> None:
        self.principal = principal
        self.signed_out = False

    def sign_out(self) -> None:
        self.signed_out = True

    def go_away(self, reconnect_after_ms: int) -> None: ...

    def leave(self) -> None: ...


class FakeAccounts:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.since: dict[str, int] = {}
        self.fails_after = 1000

    async def valid_since_ms(self, user_ids: Collection[str]) -> Mapping[str, int]:
        if len(self.calls) >= self.fails_after:
            raise Unreachable("TransportError")
        self.calls.append(list(user_ids))
        return {user_id: self.since.get(user_id, 0) for user_id in user_ids}


class FakeHub:
    def __init__(self, connections: Collection[Connection]) -> None:
        self.connections = set(connections)

    signed_in = Hub.signed_in
    sign_out = Hub.sign_out


def revocations(accounts: FakeAccounts, hub: FakeHub) -> Revocations:
    tokens = CachedTokens(None, now_s=lambda: 0)  # type: ignore[arg-type]
    tokens.cache.put(b"1", Principal("rest-only", 1000, 10, 1.0))  # type: ignore[arg-type]
    return Revocations(
        accounts,
        tokens.cache,
        hub,  # type: ignore[arg-type]
        now_s=lambda: 0,
    )


async def test_a_round_asks_for_everybody_and_ends_what_was_issued_before() -> None:
    old = Attachment(Principal("ann", 1000, 10, 1.0))
    new = Attachment(Principal("ann", 1000, 20, 1.0))
    disabled = Attachment(Principal("dan", 1000, 999_999, 1.0))
    bystander = Attachment(Principal("bob", 1000, 10, 1.0))
    nobody = Attachment(None)
    crowd = [Attachment(Principal(f"user-{number}", 1000, 10, 1.0)) for number in range(196)]
    accounts = FakeAccounts()
    accounts.since = {"ann": 20, "dan": NEVER_MS}
    round_ = revocations(accounts, FakeHub([old, new, disabled, bystander, nobody, *crowd]))
    await round_.check()
    assert [len(call) for call in accounts.calls] == [100, 100]
    assert "rest-only" in accounts.calls[0] + accounts.calls[1]
    assert (old.signed_out, new.signed_out, disabled.signed_out) == (True, False, True)
    assert not any(each.signed_out for each in (bystander, nobody, *crowd))


async def test_p10_a_round_that_fails_acts_on_what_it_knows() -> None:
    crowd = [Attachment(Principal(f"user-{number}", 1000, 10, 1.0)) for number in range(150)]
    accounts = FakeAccounts()
    accounts.since = {f"user-{number}": NEVER_MS for number in range(150)}
    accounts.fails_after = 1
    with capture_logs() as logs:
        await revocations(accounts, FakeHub(crowd)).check()
    assert [line["event"] for line in logs] == ["revocations unknown"]
    assert sum(each.signed_out for each in crowd) in (99, 100)


# Names.


@pytest.mark.parametrize(
    ("claims", "profile"),
    [
        ({}, None),
        ({"name": "", "email": None, "picture": 7}, None),
        ({"name": "Ada"}, ("Ada", None, None, None)),
        ({"name": " Ada  King   Lovelace "}, ("Ada", "King   Lovelace", None, None)),
        ({"name": "x" * 201 + " " + "y" * 201}, ("x" * 200, "y" * 200, None, None)),
        ({"name": "A\0da \ud800Lovelace"}, ("Ada", "Lovelace", None, None)),
        ({"email": "ada@example.org"}, (None, None, "ada@example.org", None)),
        ({"email": "a" * 321}, None),
        ({"picture": "https://a.b/c?d=e"}, (None, None, None, "https://a.b/c?d=e")),
        ({"picture": "http://a.b/c"}, None),
        ({"picture": "javascript:alert(1)"}, None),
        ({"picture": "https://a.b/c d"}, None),
        ({"picture": "https://a.b/" + "c" * 2048}, None),
    ],
    ids=repr,
)
def test_what_a_token_says_of_its_user(
    claims: dict[str, object], profile: tuple[str | None, ...] | None
) -> None:
    made = profile_of("ada", claims)
    if profile is None:
        assert made is None
    else:
        assert made is not None
        assert (made.first_name, made.last_name, made.email, made.photo) == profile


async def test_the_first_token_fills_the_profile_and_no_other_changes_it(
    database: Database, google: Google
) -> None:
    profiles = Profiles(database)
    firebase = firebase_of(google, profiles.introduce)
    await firebase.authenticate(google.signer.token("ada", name="Ada", email="a@example.org"))
    assert await profiles.read("ada") == Profile("ada", "a@example.org", "Ada", None, None)
    await profiles.write("ada", {"first_name": None, "last_name": "King"})
    await firebase.authenticate(google.signer.token("ada", name="Eve", email="e@example.org"))
    assert await profiles.read("ada") == Profile("ada", "a@example.org", None, "King", None)


async def test_a_token_from_before_the_account_was_closed_brings_no_name_back(
    database: Database, google: Google
) -> None:
    profiles = Profiles(database)
    firebase = firebase_of(google, profiles.introduce)
    token = google.signer.token("ada", name="Ada", email="a@example.org")
    issued_at = datetime.fromtimestamp(0, UTC)
    await ClosedAccounts(database).close("ada", issued_at=issued_at)
    await firebase.authenticate(token)
    with pytest.raises(HubError, match="USER_NOT_FOUND"):
        await profiles.read("ada")
    async with database.connection("rest") as connection:  # she comes back
        await connection.execute("UPDATE closed_accounts SET closed_at = to_timestamp(0)")
    await firebase.authenticate(token)
    assert (await profiles.read("ada")).first_name == "Ada"


async def test_a_token_that_says_nothing_makes_no_profile(
    firebase: Firebase, google: Google, introduced: list[Profile]
) -> None:
    await firebase.authenticate(google.signer.token("ada"))
    assert introduced == []


async def test_p10_without_the_database_users_are_let_in(google: Google) -> None:
    async def introduce(profile: Profile, issued_at: datetime) -> None:
        raise Disconnected("the password is in here")

    with capture_logs() as logs:
        token = google.signer.token("ada", name="Ada")
        assert (await firebase_of(google, introduce).authenticate(token)).user_id == "ada"
    assert logs == [
        {
            "event": "profile not filled",
            "user_id": "ada",
            "cause": "Disconnected",
            "log_level": "warning",
        }
    ]


# Settings.


ENVIRON = {"DATABASE_URL": "postgres://h/d", "AUTH_SECRET": "s" * 32, "AUTH_MODE": "firebase"}


def test_settings_of_a_deployment(google: Google) -> None:
    account = google.service_account()
    settings = Settings.from_env(
        {**ENVIRON, "FIREBASE_SERVICE_ACCOUNT_BASE64": encoded(account), "PRODUCTION": "true"}
    )
    assert settings.firebase_service_account() == account
    assert settings.firebase_project() == PROJECT
    assert Settings.from_env(settings.to_env()) == settings  # what workers are given
    assert account["private_key"] not in repr(settings)
    assert encoded(account) not in repr(settings)
    unpadded = encoded(account).rstrip("=")
    named = {"FIREBASE_SERVICE_ACCOUNT_BASE64": unpadded, "FIREBASE_PROJECT_ID": "another"}
    assert Settings.from_env({**ENVIRON, **named}).firebase_project() == "another"


def test_settings_of_the_emulator() -> None:
    emulated = {"FIREBASE_AUTH_EMULATOR_HOST": "127.0.0.1:9099", "FIREBASE_PROJECT_ID": PROJECT}
    assert Settings.from_env({**ENVIRON, **emulated}).firebase_service_account() is None
    for mode in ("firebase", "local"):
        with pytest.raises(SettingsError, match=r"^FIREBASE_AUTH_EMULATOR_HOST: .*PRODUCTION"):
            Settings.from_env({**ENVIRON, **emulated, "AUTH_MODE": mode, "PRODUCTION": "1"})


def without(name: str) -> str:
    account = {
        "type": "service_account",
        "project_id": PROJECT,
        "client_email": "hub@example.org",
        "token_uri": "https://example.org/token",
        "private_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    }
    return encoded({key: value for key, value in account.items() if key != name})


@pytest.mark.parametrize(
    ("name", "environ"),
    [
        ("FIREBASE_SERVICE_ACCOUNT_BASE64", {}),
        ("FIREBASE_SERVICE_ACCOUNT_BASE64", {"FIREBASE_PROJECT_ID": PROJECT}),
        ("FIREBASE_PROJECT_ID", {"FIREBASE_AUTH_EMULATOR_HOST": "localhost:9099"}),
        ("FIREBASE_PROJECT_ID", {"FIREBASE_PROJECT_ID": "Not A Project"}),
        ("FIREBASE_AUTH_EMULATOR_HOST", {"FIREBASE_AUTH_EMULATOR_HOST": "http://localhost:9099"}),
        ("FIREBASE_AUTH_EMULATOR_HOST", {"FIREBASE_AUTH_EMULATOR_HOST": "localhost"}),
        ("REVOCATION_CHECK_S", {"REVOCATION_CHECK_S": "0"}),
        ("REVOCATION_CHECK_S", {"REVOCATION_CHECK_S": "3601"}),
        ("PRODUCTION", {"PRODUCTION": "perhaps"}),
        ("AUTH_SECRET_PREVIOUS", {"AUTH_SECRET_PREVIOUS": "x" * 31}),
        *(
            ("FIREBASE_SERVICE_ACCOUNT_BASE64", {"FIREBASE_SERVICE_ACCOUNT_BASE64": value})
            for value in (
                "{}",
                "%%%%",
                "é",
                base64.urlsafe_b64encode(b"[]").decode(),
                base64.urlsafe_b64encode(b"[" * 5000).decode(),
                *map(without, ("type", "project_id", "client_email", "token_uri", "private_key")),
                without("nothing, but its key is none"),
            )
        ),
    ],
)
def test_a_bad_setting_ends_the_start_and_is_not_shown(name: str, environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: ") as refused:
        Settings.from_env({**ENVIRON, **environ})
    shown = str(refused.value)
    assert "\n" not in shown
    if name in ("FIREBASE_SERVICE_ACCOUNT_BASE64", "AUTH_SECRET_PREVIOUS") and name in environ:
        assert environ[name] not in shown
        assert "AAAA" not in shown


def test_the_previous_secret_verifies_and_does_not_sign() -> None:
    environ = {**ENVIRON, "AUTH_MODE": "local", "AUTH_SECRET_PREVIOUS": "p" * 32}
    assert Settings.from_env(environ).auth_secrets() == [b"s" * 32, b"p" * 32]
    assert "p" * 32 not in repr(Settings.from_env(environ))
