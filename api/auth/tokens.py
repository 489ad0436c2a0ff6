"""The short-lived tokens of the local identity: made and verified here, stored nowhere."""

import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import jwt
from jwt.types import Options

from hub.errors import Code, HubError
from hub.ports import Principal

ISSUER = "budget-hub"
TOKEN_LENGTH_MAX = 8192  # characters
LEEWAY_S = 60  # how far ahead the clock of another node may have been when it issued a token

_ALGORITHM = "HS256"
# PyJWT would read the real clock: `_counts` checks the times against ours.
_CHECKS: Options = {
    "require": ["sub", "exp", "iat", "iss"],
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
}


class Keys(NamedTuple):
    """What is derived from one secret; no key can be taken for another."""

    kid: str
    token: bytes
    refresh: bytes

    @classmethod
    def derived(cls, secret: bytes) -> "Keys":
        return cls(
            sha256(secret).hexdigest()[:8],
            hmac.digest(secret, b"budget-hub token", "sha256"),
            hmac.digest(secret, b"budget-hub refresh", "sha256"),
        )


class Tokens:
    """Issues tokens and verifies them (a `hub.ports.Authenticator`).

    The first of `secrets` signs and all of them verify: to rotate, put the new one in front, and
    take the old one out when what it signed has expired. `now` gives epoch seconds, `now_s` seconds
    of the steady clock.
    """

    def __init__(
        self,
        secrets: Sequence[bytes],
        *,
        now: Callable[[], float],
        now_s: Callable[[], float] = time.monotonic,
        token_ttl_s: int = 900,
    ) -> None:
        if not secrets or not all(secrets):
            raise ValueError("an identity needs a secret, and no secret may be empty")
        self.keys = [Keys.derived(secret) for secret in secrets]
        self._token_keys = {keys.kid: keys.token for keys in self.keys}
        self._now = now
        self._now_s = now_s
        self._token_ttl_s = token_ttl_s

    def issue(self, user_id: str) -> tuple[str, int]:
        """A new token for the user, and when it expires (epoch milliseconds)."""
        issued_at_s = int(self._now())
        expires_at_s = issued_at_s + self._token_ttl_s
        claims = {"sub": user_id, "iat": issued_at_s, "exp": expires_at_s, "iss": ISSUER}
        keys = self.keys[0]
        token = jwt.encode(claims, keys.token, _ALGORITHM, headers={"kid": keys.kid})
        return token, expires_at_s * 1000

    async def authenticate(self, token: str, address: str = "") -> Principal:
        """The user of a token issued here. Raises `HubError` (`NOT_LOGGED_IN`)."""
        # PyJWT cannot even encode a lone surrogate; what is not ASCII is no token anyway.
        if len(token) > TOKEN_LENGTH_MAX or not token.isascii():
            raise HubError(Code.NOT_LOGGED_IN)
        try:
            key = self._token_keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(token, key, [_ALGORITHM], options=_CHECKS, issuer=ISSUER)
        except (jwt.InvalidTokenError, KeyError) as error:
            raise HubError(Code.NOT_LOGGED_IN) from error
        now = self._now()
        if not claims["sub"] or not _counts(claims, now):
            raise HubError(Code.NOT_LOGGED_IN)
        ends_at_s = self._now_s() + (claims["exp"] - now)
        return Principal(claims["sub"], claims["exp"] * 1000, claims["iat"] * 1000, ends_at_s)


def _counts(claims: Mapping[str, Any], now_s: float) -> bool:
    expires, issued = claims["exp"], claims["iat"]
    begins = claims.get("nbf", issued)
    whole = all(type(at) is int for at in (expires, issued, begins))
    return whole and bool(now_s < expires and max(issued, begins) <= now_s + LEEWAY_S)
