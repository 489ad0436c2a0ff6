"""Accounts the hub keeps itself (AUTH_MODE=local): passwords, logins, refresh tokens.

A refresh token is derived, not stored: `<family>.<generation>.<mac>`. A family is one login, and
its row knows only the generation that counts. Presenting that one moves the family on; presenting
the one before it, soon after, gives the same successor again, because phones lose answers. Any
other was copied by somebody, so the whole family ends.
"""

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import NamedTuple, TypeVar
from uuid import uuid4

import structlog
from anyio import CapacityLimiter, to_thread
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from structlog.typing import FilteringBoundLogger

from api.auth.tokens import Tokens
from hub.errors import Code, HubError
from hub.gate import Gate
from hub.turns import Crowded
from storage.postgres.people.logins import Logins

HASHING_AT_ONCE = 2  # argon2 takes 64 MiB and several cores each time
HASHING_PER_ADDRESS = 1
HASHING_ASKED_MAX = 128  # running or waiting: some ten seconds of work, then callers are put off
WAITING_PER_ADDRESS = 63  # with the one that runs half of it: no address takes it all

_REFRESH = re.compile(
    r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([1-9][0-9]{0,9})\.([A-Za-z0-9_-]{43})"
)

_T = TypeVar("_T")
_log: FilteringBoundLogger = structlog.get_logger()


class SignedIn(NamedTuple):
    """What a client holds after signing in. `expires_at_ms`: epoch milliseconds, of `token`."""

    user_id: str
    token: str
    expires_at_ms: int
    refresh_token: str


class LocalIdentity:
    """Registers users, signs them in and keeps them signed in; `Tokens` says who they are.

    The first of `secrets` signs and all of them verify: to rotate, put the new one in front, and
    take the old one out after `refresh_ttl_s`. `now` gives epoch seconds, `new_id` the id of a new
    account. A login lasts `refresh_ttl_s` from its last refresh. Besides what they state, the
    methods raise `Disconnected` while Postgres is out of reach.
    """

    def __init__(
        self,
        secrets: Sequence[bytes],
        logins: Logins,
        *,
        now: Callable[[], float],
        new_id: Callable[[], str],
        token_ttl_s: int = 900,
        refresh_ttl_s: int = 60 * 60 * 24 * 60,
        previous_refresh_honoured_s: int = 60,
    ) -> None:
        self._tokens = Tokens(secrets, now=now, token_ttl_s=token_ttl_s)
        self._refresh_keys = [keys.refresh for keys in self._tokens.keys]
        self._logins = logins
        self._now = now
        self._new_id = new_id
        self._refresh_ttl = timedelta(seconds=refresh_ttl_s)
        self._previous_honoured = timedelta(seconds=previous_refresh_honoured_s)
        self._hasher = PasswordHasher()
        self._hashing = CapacityLimiter(HASHING_AT_ONCE)
        self._turns = Gate(HASHING_AT_ONCE, HASHING_PER_ADDRESS, WAITING_PER_ADDRESS)
        self._hashing_asked = 0

    async def register(
        self,
        email: str,
        password: str,
        first_name: str | None,
        last_name: str | None,
        *,
        address: str = "",
    ) -> SignedIn:
        """Make an account and sign it in. Callers take turns by their addresses. Raises `HubError`:
        `EMAIL_TAKEN`, `BUSY`."""
        password_hash = await self._off_loop(lambda: self._hasher.hash(password), address)
        user_id = self._new_id()
        if not await self._logins.create(
            user_id, email.strip(), password_hash, first_name, last_name
        ):
            raise HubError(Code.EMAIL_TAKEN)
        return await self._start_session(user_id)

    async def login(self, email: str, password: str, *, address: str = "") -> SignedIn:
        """Sign in. Callers take turns by their addresses. Raises `HubError`: `BAD_CREDENTIALS`,
        `BUSY`."""
        account = await self._logins.by_email(email.strip())
        stored = account and account.password_hash
        matches = await self._off_loop(lambda: self._matches(stored, password), address)
        if not matches or account is None:
            raise HubError(Code.BAD_CREDENTIALS)
        if self._hasher.check_needs_rehash(account.password_hash):
            stronger = await self._off_loop(lambda: self._hasher.hash(password), address)
            await self._logins.set_password_hash(
                account.user_id, stronger, replacing=account.password_hash
            )
        return await self._start_session(account.user_id)

    async def refresh(self, refresh_token: str) -> SignedIn:
        """The session's next token and refresh token.

        A token presented twice, at once or within `previous_refresh_honoured_s`, gives the same
        successor. Raises `HubError` (`NOT_LOGGED_IN`).
        """
        presented = RefreshToken.read(refresh_token, self._refresh_keys)
        if presented is None:
            raise HubError(Code.NOT_LOGGED_IN)
        family_id, generation = presented
        now = self._time()
        user_id = await self._logins.rotate_family(
            family_id, generation, now=now, expires_at=now + self._refresh_ttl
        )
        if user_id is None:
            family = await self._logins.live_family(family_id, now=now)
            if family is None:
                raise HubError(Code.NOT_LOGGED_IN)
            repeated = generation == family.generation - 1
            if not repeated or now - family.rotated_at > self._previous_honoured:
                await self._logins.revoke_family(family_id)
                _log.warning("refresh token reused", user_id=family.user_id, family_id=family_id)
                raise HubError(Code.NOT_LOGGED_IN)
            user_id = family.user_id
        return self._session(user_id, RefreshToken(family_id, generation + 1))

    async def _start_session(self, user_id: str) -> SignedIn:
        first = RefreshToken(str(uuid4()), 1)
        now = self._time()
        await self._logins.start_family(
            first.family_id, user_id, now=now, expires_at=now + self._refresh_ttl
        )
        return self._session(user_id, first)

    def _session(self, user_id: str, refresh_token: "RefreshToken") -> SignedIn:
        token, expires_at_ms = self._tokens.issue(user_id)
        text = refresh_token.text(self._refresh_keys[0])
        return SignedIn(user_id, token, expires_at_ms, text)

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)

    async def _off_loop(self, work: Callable[[], _T], address: str) -> _T:
        if self._hashing_asked >= HASHING_ASKED_MAX:
            raise HubError(Code.BUSY)
        self._hashing_asked += 1
        try:
            async with self._turns.turn(address):
                return await to_thread.run_sync(work, limiter=self._hashing)
        except Crowded:
            raise HubError(Code.BUSY) from None
        finally:
            self._hashing_asked -= 1

    def _matches(self, password_hash: str | None, password: str) -> bool:
        nobodys = self._nobodys_hash  # first, so that its making tells nothing about the account
        try:
            return self._hasher.verify(password_hash or nobodys, password)
        except VerifyMismatchError:
            return False

    @cached_property
    def _nobodys_hash(self) -> str:
        """Verified in place of an unknown account's, so that the answer takes as long."""
        return self._hasher.hash(uuid4().bytes)


class RefreshToken(NamedTuple):
    """What the text of a refresh token says: which login, and how often it was refreshed."""

    family_id: str
    generation: int

    def text(self, key: bytes) -> str:
        """The token as the client holds it."""
        named = f"{self.family_id}.{self.generation}"
        mac = hmac.digest(key, named.encode(), "sha256")
        return f"{named}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"

    @classmethod
    def read(cls, text: str, keys: Iterable[bytes]) -> "RefreshToken | None":
        """The token in `text` if one of `keys` made it."""
        match = _REFRESH.fullmatch(text)
        if match is None:
            return None
        token = cls(match[1], int(match[2]))
        # Texts are compared, not decoded macs: the last character of base64 has bits to spare.
        return token if any(hmac.compare_digest(token.text(key), text) for key in keys) else None
