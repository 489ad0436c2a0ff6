"""API keys: one of them has to be sent, wholly; what is configured is checked at the start."""

import pytest

from api.http.guard import ApiKeys
from api.settings import Settings, SettingsError
from hub.errors import Code, HubError

ANDROID, WEB = "android-key-0123456789", "web-key-0123456789"
ENVIRON = {"DATABASE_URL": "postgresql://127.0.0.1/hub", "AUTH_SECRET": "s" * 32}


def admits(keys: ApiKeys, *given: bytes) -> bool:
    try:
        keys.check([(b"host", b"hub"), *((b"x-api-key", value) for value in given)])
    except HubError as error:
        assert error.code is Code.INCORRECT_API_KEY
        return False
    return True


def test_any_of_the_keys_is_good() -> None:
    keys = ApiKeys([ANDROID, WEB])
    assert admits(keys, ANDROID.encode())
    assert admits(keys, WEB.encode())


@pytest.mark.parametrize(
    "given",
    [
        [],
        [b""],
        [ANDROID[:-1].encode()],
        [ANDROID.encode() + b"x"],
        [f"{ANDROID},{WEB}".encode()],
        [ANDROID[:9].encode(), ANDROID[9:].encode()],
        [ANDROID.upper().encode()],
        ["ключ".encode()],
    ],
)
def test_nothing_else_is(given: list[bytes]) -> None:
    assert not admits(ApiKeys([ANDROID, WEB]), *given)


def test_without_keys_none_is_needed() -> None:
    assert admits(ApiKeys([]))
    assert admits(ApiKeys([]), b"whatever")


def test_keys_are_a_list_in_one_variable() -> None:
    settings = Settings.from_env({**ENVIRON, "API_KEYS": f"{ANDROID},{WEB}"})
    assert settings.api_key_list() == [ANDROID, WEB]
    assert Settings.from_env(settings.to_env()) == settings  # what workers are given
    assert Settings.from_env({**ENVIRON, "API_KEYS": ""}).api_key_list() == []


@pytest.mark.parametrize(
    "keys",
    [
        "only-15-letters",
        f"{ANDROID},",
        f",{ANDROID}",
        f"{ANDROID}, {WEB}",
        f"{ANDROID},short",
        "ж" * 16,
    ],
)
def test_a_bad_key_ends_the_start_and_is_not_shown(keys: str) -> None:
    with pytest.raises(SettingsError, match=r"^API_KEYS: ") as refused:
        Settings.from_env({**ENVIRON, "API_KEYS": keys})
    assert keys not in str(refused.value)
    assert ANDROID not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REQUESTS_PER_MIN_USER", "-1"),
        ("REQUESTS_PER_MIN_ADDRESS", "many"),
        ("TRUSTED_PROXIES", "-1"),
        ("TRUSTED_PROXIES", "true"),
    ],
)
def test_a_bad_number_ends_the_start(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: "):
        Settings.from_env({**ENVIRON, name: value})
