"""Who may no longer be signed in, though the token has not expired: noticed, and acted on.

A token says nothing of what happened after it was issued. So its issuer is asked every so
often, for all the users who are signed in here, and off the way of every request: that costs a
call for a hundred users, and while nobody answers, everybody goes on until their token expires.
"""

from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import Protocol

import structlog

from api.auth.token_cache import TokenCache
from hub.budget.records import UserId
from hub.hub import Hub

NEVER_MS = 2**62  # no token was issued after that: the user is disabled, or is no more
USERS_PER_CALL_MAX = 100  # of Firebase

_log = structlog.get_logger()


class Unreachable(Exception):
    """The issuer of the tokens does not answer; the message is the kind of failure, no more."""


class Accounts(Protocol):
    """The issuer of the tokens."""

    async def valid_since_ms(self, user_ids: Collection[UserId]) -> Mapping[UserId, int]:
        """For each of at most `USERS_PER_CALL_MAX` users: tokens issued before do not count (epoch
        milliseconds), `NEVER_MS` where none does. Raises `Unreachable`."""
        ...


class Revocations:
    """Ends what goes by a revoked token. Checked every n seconds, at most 2 n after it was revoked,
    as long as `accounts` answers in n."""

    def __init__(
        self,
        accounts: Accounts,
        tokens: TokenCache,
        hub: Hub,
        *,
        now_s: Callable[[], float],
    ) -> None:
        self._accounts = accounts
        self._tokens = tokens
        self._hub = hub
        self._now_s = now_s

    async def check(self) -> None:
        """Ask for everybody who is signed in here, once."""
        # A session may outlive its token in the cache, which is bounded, and REST has no session.
        users = iter(self._hub.signed_in() | self._tokens.users(self._now_s()))
        valid_since_ms: dict[UserId, int] = {}
        try:
            while some := list(islice(users, USERS_PER_CALL_MAX)):
                valid_since_ms.update(await self._accounts.valid_since_ms(some))
        except Unreachable as error:
            _log.warning("revocations unknown", cause=str(error))
        self._tokens.revoke(valid_since_ms)
        self._hub.sign_out(valid_since_ms)
