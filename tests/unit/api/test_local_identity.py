"""What the local identity decides without a database: tokens, and the text of refresh tokens."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from unittest.mock import create_autospec

import jwt
import pytest
from hypothesis import given, settings, strategies as st

from api.auth.local import LocalIdentity, RefreshToken
from api.auth.tokens import TOKEN_LENGTH_MAX, Keys, Tokens
from hub.errors import Code, HubError
from hub.ports import Authenticator, Principal
from storage.postgres.people.logins import Logins

SECRET = b"s" * 32
OTHER_SECRET = b"o" * 32
STEADY_S = 77.0
NOW_S = 1_000_000_000.75  # long ago, so that a look at the real clock would show
KEYS = Keys.derived(SECRET)
CLAIMS = {"sub": "ada", "iat": int(NOW_S), "exp": int(NOW_S) + 900, "iss": "budget-hub"}
FAMILY = "0b8d5b0e-6f0f-4f0c-9b1d-2f6a3c1f9a10"


class Clock:
    """Epoch seconds that move only when told to."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def tokens_of(*secrets: bytes, now: Callable[[], float] | None = None) -> Tokens:
    return Tokens(secrets or [SECRET], now=now or Clock(), now_s=lambda: STEADY_S)


def signed(
    *,
    key: bytes = KEYS.token,
    without: str = "",
    header: Mapping[str, object] = {},
    **changed: object,
) -> str:
    """A token that is right in everything but what the arguments change.

    Made by hand, so that also what PyJWT would not make can be tried.
    """
    claims = {name: value for name, value in {**CLAIMS, **changed}.items() if name != without}
    header = {"alg": "HS256", "typ": "JWT", "kid": KEYS.kid, **header}
    text = f"{segment(header)}.{segment(claims)}"
    if header["alg"] == "none":
        return f"{text}."
    digest = str(header["alg"]).replace("HS", "sha")
    return f"{text}.{base64url(hmac.digest(key, text.encode(), digest))}"


def segment(value: object) -> str:
    return base64url(json.dumps(value).encode())


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_a_fresh_token_names_its_user_and_its_end() -> None:
    authenticator: Authenticator = tokens_of()
    token, expires_at_ms = tokens_of().issue("ada")
    assert expires_at_ms == (int(NOW_S) + 900) * 1000
    who = await authenticator.authenticate(token)
    left_s = expires_at_ms / 1000 - NOW_S
    assert who == Principal("ada", expires_at_ms, int(NOW_S) * 1000, STEADY_S + left_s)
    assert jwt.get_unverified_header(token)["kid"] == hashlib.sha256(SECRET).hexdigest()[:8]


async def test_a_token_ends_exactly_at_its_end() -> None:
    clock = Clock()
    tokens = tokens_of(now=clock)
    token, expires_at_ms = tokens.issue("ada")
    clock.now_s = expires_at_ms / 1000 - 0.001
    await tokens.authenticate(token)
    clock.now_s = expires_at_ms / 1000
    await refused(tokens, token)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(signed(iat=int(NOW_S) + 60), id="iat ahead by the leeway"),
        pytest.param(signed(nbf=int(NOW_S) + 60), id="nbf ahead by the leeway"),
        pytest.param(signed(iat=0), id="issued long ago"),
        pytest.param(signed(extra={"any": "thing"}), id="claims we do not know"),
    ],
)
async def test_tokens_that_count(token: str) -> None:
    assert (await tokens_of().authenticate(token)).user_id == "ada"


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(signed(exp=int(NOW_S)), id="expired a moment ago: no leeway"),
        pytest.param(signed(iat=int(NOW_S) + 62), id="iat ahead by more than the leeway"),
        pytest.param(signed(nbf=int(NOW_S) + 62), id="nbf ahead by more than the leeway"),
        pytest.param(signed(key=OTHER_SECRET), id="another secret"),
        pytest.param(signed(key=SECRET), id="the secret itself instead of the derived key"),
        pytest.param(signed(key=KEYS.refresh), id="the key of refresh tokens"),
        pytest.param(signed(header={"kid": "00000000"}), id="unknown kid"),
        pytest.param(signed(header={"kid": None}), id="kid null"),
        pytest.param(signed(header={"kid": ["x"]}), id="kid a list"),
        pytest.param(jwt.encode(CLAIMS, KEYS.token), id="no kid"),
        pytest.param(signed(header={"alg": "none"}), id="alg none"),
        pytest.param(signed(header={"alg": "HS512"}), id="alg HS512"),
        pytest.param(signed(header={"b64": False, "crit": ["b64"]}), id="payload detached"),
        pytest.param(signed(iss="another-hub"), id="another issuer"),
        pytest.param(signed(aud="another-hub"), id="for another audience"),
        pytest.param(signed(without="sub"), id="no sub"),
        pytest.param(signed(without="exp"), id="no exp"),
        pytest.param(signed(without="iat"), id="no iat"),
        pytest.param(signed(without="iss"), id="no iss"),
        pytest.param(signed(sub=None), id="sub null"),
        pytest.param(signed(sub=""), id="sub empty"),
        pytest.param(signed(sub=7), id="sub a number"),
        pytest.param(signed(exp=str(int(NOW_S) + 900)), id="exp a string"),
        pytest.param(signed(exp=1e300), id="exp a float"),
        pytest.param(signed(exp=float("inf")), id="exp infinite"),
        pytest.param(signed(iat=True), id="iat a boolean"),
        pytest.param(signed(nbf="soon"), id="nbf a string"),
        pytest.param("", id="nothing"),
        pytest.param("garbage", id="garbage"),
        pytest.param("a.b.c", id="three garbage segments"),
        pytest.param("..", id="three empty segments"),
        pytest.param(signed()[:-2], id="signature cut"),
        pytest.param("é" + signed(), id="not ASCII"),
        pytest.param("\ud800", id="a lone surrogate"),
        pytest.param(signed(padding="x" * TOKEN_LENGTH_MAX), id="too long"),
    ],
)
async def test_tokens_that_do_not_count(token: str) -> None:
    await refused(tokens_of(), token)


async def test_a_long_token_counts() -> None:
    token = signed(padding="x" * 5_900)
    assert 8_000 < len(token) <= TOKEN_LENGTH_MAX
    await tokens_of().authenticate(token)


@settings(deadline=None)
@given(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists))
async def test_whatever_is_sent_is_answered_the_same_way(text: str, value: object) -> None:
    tokens = tokens_of()
    await refused(tokens, text)
    header, payload, mac = signed().split(".")
    await refused(tokens, f"{segment(value)}.{payload}.{mac}")
    await refused(tokens, f"{header}.{segment(value)}.{mac}")
    for name in ("alg", "kid", "crit"):
        changed = segment({"alg": "HS256", "kid": KEYS.kid, name: value})
        await refused(tokens, f"{changed}.{payload}.{mac}")


async def test_secrets_rotate() -> None:
    old, new = tokens_of(OTHER_SECRET), tokens_of(SECRET, OTHER_SECRET)
    await new.authenticate(old.issue("ada")[0])  # from before the rotation
    await new.authenticate(new.issue("ada")[0])
    await refused(old, new.issue("ada")[0])  # the first of the secrets signs
    await refused(tokens_of(SECRET), old.issue("ada")[0])  # the old one was taken out


@pytest.mark.parametrize("secrets", [[], [b""], [SECRET, b""]])
def test_without_a_secret_nothing_is_made(secrets: list[bytes]) -> None:
    with pytest.raises(ValueError, match="secret"):
        Tokens(secrets, now=Clock())
    with pytest.raises(ValueError, match="secret"):
        LocalIdentity(secrets, create_autospec(Logins), now=Clock(), new_id=str)


def test_a_refresh_token_is_read_back_by_any_of_the_keys() -> None:
    token = RefreshToken(FAMILY, 41)
    text = token.text(KEYS.refresh)
    assert text.startswith(f"{FAMILY}.41.")
    assert RefreshToken.read(text, [KEYS.refresh]) == token
    assert RefreshToken.read(text, [b"another key", KEYS.refresh]) == token
    assert RefreshToken.read(text, [b"another key"]) is None
    assert RefreshToken.read(text, [KEYS.token]) is None
    assert RefreshToken.read(text, []) is None


def test_every_change_of_a_refresh_token_shows() -> None:
    text = RefreshToken(FAMILY, 41).text(KEYS.refresh)
    for index, was in enumerate(text):
        for put in "0aA_.":
            if put != was:
                changed = text[:index] + put + text[index + 1 :]
                assert RefreshToken.read(changed, [KEYS.refresh]) is None
    # The last character of 32 bytes in base64 stands for four bits; its two spare ones must not
    # make a second text of the same token.
    twin = text[:-1] + chr(ord(text[-1]) + 1)
    assert RefreshToken.read(twin, [KEYS.refresh]) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "..",
        FAMILY,
        f"{FAMILY}.1",
        f"{FAMILY}.1.",
        RefreshToken(FAMILY, 0).text(KEYS.refresh),
        RefreshToken(FAMILY, -1).text(KEYS.refresh),
        RefreshToken(FAMILY.upper(), 1).text(KEYS.refresh),
        RefreshToken("not-a-uuid", 1).text(KEYS.refresh),
        RefreshToken(FAMILY, 1).text(KEYS.refresh) + "\n",
        " " + RefreshToken(FAMILY, 1).text(KEYS.refresh),
        RefreshToken(FAMILY, 1).text(KEYS.refresh).replace(".1.", ".01."),
        RefreshToken(FAMILY, 1).text(KEYS.refresh).replace(".1.", ".\u0661."),
        "\ud800",
    ],
)
async def test_what_is_no_refresh_token_never_reaches_the_database(text: str) -> None:
    logins = create_autospec(Logins, instance=True)
    identity = LocalIdentity([SECRET], logins, now=Clock(), new_id=str)
    with pytest.raises(HubError) as refusal:
        await identity.refresh(text)
    assert refusal.value.code is Code.NOT_LOGGED_IN
    assert logins.mock_calls == []


def test_the_keys_of_a_secret_differ() -> None:
    assert len({SECRET, KEYS.token, KEYS.refresh}) == 3
    assert Keys.derived(OTHER_SECRET) != KEYS


async def refused(authenticator: Authenticator, token: str) -> None:
    with pytest.raises(HubError) as refusal:
        await authenticator.authenticate(token)
    assert refusal.value.code is Code.NOT_LOGGED_IN
