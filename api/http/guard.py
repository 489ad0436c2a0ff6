"""Who is let in: the API key, and how many requests from each address and user.

`Guard` stands before all routes and knows the key and the address; `api.sync.endpoint` asks the
same for sockets. Users are known only inside, so `LimitedByUser` counts where a token is verified,
and the routes of signing in count themselves.
"""

import hmac
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.addresses import ADDRESS, sender
from api.http.errors import on_hub_error
from hub.errors import Code, HubError
from hub.ports import Authenticator, Principal
from storage.redis.rate_limits import Limit, RateLimits

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})  # of an operator, who has no key here
# Upload URLs are signed, photos public: as with S3, the address is all that a client needs.
KEYLESS = "/photos/"


class ApiKeys:
    """The keys a client may have; with none of them, it needs none."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises `HubError(INCORRECT_API_KEY)`. How long it takes does not tell how much of a key
        was right, nor which one it was."""
        if not self._keys:
            return
        given = dict(headers).get(b"x-api-key", b"")
        if not sum(hmac.compare_digest(given, key) for key in self._keys):
            raise HubError(Code.INCORRECT_API_KEY)


class PerMinute(NamedTuple):
    """How many requests a minute; 0: any number."""

    user: int = 0
    address: int = 0
    login_address: int = 0
    login_email: int = 0


class RequestLimits:
    """Counts requests, the upgrades to sockets among them. All methods raise
    `HubError(RATE_LIMITED)`."""

    def __init__(self, rates: RateLimits, most: PerMinute, *, trusted_proxies: int = 0) -> None:
        self._rates = rates
        self._trusted_proxies = trusted_proxies
        self._user = _limit(most.user, "user")
        self._address = _limit(most.address, "address")
        self._login_address = _limit(most.login_address, "login-address")
        self._login_email = _limit(most.login_email, "login-email")

    async def from_address(self, address: str) -> None:
        await self._take(self._address, address)

    async def of_user(self, user_id: str) -> None:
        await self._take(self._user, user_id)

    def address(self, peer: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Where a request comes from."""
        return sender(peer, headers, self._trusted_proxies)

    async def login(self, scope: Scope, email: str) -> None:
        """Registrations count too: they tell whether an account exists."""
        address = self.address(scope.get("client"), scope["headers"])
        await self._take(self._login_address, address)
        await self._take(self._login_email, email.strip().lower())

    async def _take(self, limit: Limit | None, caller: str) -> None:
        if limit is not None and (missing_s := await self._rates.take(limit, caller)):
            raise HubError(Code.RATE_LIMITED, retry_after_s=missing_s)


class LimitedByUser:
    """An `Authenticator` that counts for the user: a request verifies its token once, a socket
    once for each token it is given."""

    def __init__(self, authenticator: Authenticator, limits: RequestLimits) -> None:
        self._authenticator = authenticator
        self._limits = limits

    async def authenticate(self, token: str, address: str = "") -> Principal:
        """Raises `HubError`: `NOT_LOGGED_IN`, `RATE_LIMITED`."""
        who = await self._authenticator.authenticate(token, address)
        await self._limits.of_user(who.user_id)
        return who


class FromAddress:
    """An `Authenticator` for one connection: all its tokens come from there."""

    __slots__ = ("_address", "_authenticator")

    def __init__(self, authenticator: Authenticator, address: str) -> None:
        self._authenticator = authenticator
        self._address = address

    async def authenticate(self, token: str, address: str = "") -> Principal:
        """Raises `HubError` as the other one does."""
        return await self._authenticator.authenticate(token, self._address)


class Guard:
    """ASGI middleware: answers what is not let in, and notes in the scope where it comes from."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, limits: RequestLimits) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ADDRESS] = address = self._limits.address(scope.get("client"), scope["headers"])
        if scope["path"] not in PROBES:
            try:
                # First: keys are not to be guessed either.
                await self._limits.from_address(address)
                if not scope["path"].startswith(KEYLESS):
                    self._keys.check(scope["headers"])
            except HubError as error:
                response = await on_hub_error(Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _limit(per_min: int, name: str) -> Limit | None:
    return Limit(name, per_min) if per_min else None
