"""Who a device is: a user's token, renewed before it ends and whenever the hub takes it no more."""

import asyncio
import hmac
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from loadtest.http_client import HttpClient
from loadtest.target import Refused, Target, Unreachable

SIGNED_TTL_S = 900
RENEW_BEFORE_S = 60.0
LOGIN_WAIT_S_MAX = 70.0  # a hub counts logins by the minute


class Account(Protocol):
    """One user. Devices may share it."""

    user_id: str

    async def token(self, refused: str | None = None) -> str:
        """A bearer token that counts; another one than `refused`, which the hub did not take.

        Raises `Refused` where the user is signed out for good, `Unreachable`."""


class Session(NamedTuple):
    """As `/auth/*` answers. `expires_at_ms`: epoch milliseconds, of `token`."""

    user_id: str
    token: str
    expires_at_ms: int
    refresh_token: str

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any]) -> "Session":
        """Raises `KeyError`."""
        return cls(raw["userId"], raw["token"], raw["expiresAt"], raw["refreshToken"])


class LocalAccount:
    """A user whom the hub signs in itself. A session belongs to one process: two that refreshed it
    at different times would look like a thief and his victim."""

    def __init__(self, target: Target, session: Session) -> None:
        self.user_id = session.user_id
        self._target = target
        self._session = session
        self._renewing = asyncio.Lock()

    async def token(self, refused: str | None = None) -> str:
        async with self._renewing:  # one renewal for all devices that ask
            left_s = self._session.expires_at_ms / 1000 - time.time()
            if self._session.token == refused or left_s < RENEW_BEFORE_S:
                await self._renew(left_s)
            return self._session.token

    async def _renew(self, left_s: float) -> None:
        client = HttpClient(self._target)
        try:
            body = {"refreshToken": self._session.refresh_token}
            self._session = Session.from_wire(await client.call("POST", "/auth/refresh", body=body))
        except Unreachable:
            if left_s <= 0:
                raise
        finally:
            client.close()


class SignedAccount:
    """A user of any id, with tokens signed here by the hub's own `AUTH_SECRET`: thousands of users
    without as many registrations, each of which the hub makes slow on purpose."""

    def __init__(self, user_id: str, secret: str, *, ttl_s: int = SIGNED_TTL_S) -> None:
        self.user_id = user_id
        self._ttl_s = ttl_s
        digest = sha256(secret.encode()).hexdigest()
        self._key = hmac.digest(secret.encode(), b"budget-hub token", "sha256")
        self._headers = {"kid": digest[:8]}
        self._token = ""
        self._ends_s = 0.0

    async def token(self, refused: str | None = None) -> str:
        return self.signed(refused)

    def signed(self, refused: str | None = None) -> str:
        """The same, without waiting for anything."""
        import jwt  # only here: it brings all of its cryptography, for a tenth of a second

        now_s = time.time()
        if self._token == refused or self._ends_s - now_s < RENEW_BEFORE_S:
            self._ends_s = int(now_s) + self._ttl_s
            claims = {
                "sub": self.user_id,
                "iat": int(now_s),
                "exp": int(self._ends_s),
                "iss": "budget-hub",
            }
            self._token = jwt.encode(claims, self._key, "HS256", headers=self._headers)
        return self._token


async def sign_in(target: Target, email: str, password: str, *, new: bool) -> Session:
    """Register, or log in; where the hub has had too many of those it is asked again.

    Raises `Refused`, `Unreachable`."""
    path = "/auth/register" if new else "/auth/login"
    deadline_s = time.monotonic() + LOGIN_WAIT_S_MAX
    client = HttpClient(target)
    try:
        while True:
            try:
                body = {"email": email, "password": password}
                return Session.from_wire(await client.call("POST", path, body=body))
            except Refused as error:
                if not error.retryable or time.monotonic() + error.after_s > deadline_s:
                    raise
                await asyncio.sleep(max(error.after_s, 0.2))
            except KeyError as error:
                raise Refused(f"{target} signed in without {error}") from error
    finally:
        client.close()
