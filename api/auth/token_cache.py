"""Verified tokens, remembered until they expire: a token is verified once, however often it comes.

When a hub restarts, every device comes back at the same moment, some of them several times, all
with tokens that were good a second ago. What is refused is not remembered: it may be good later.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import NewType

from api.auth.tokens import TOKEN_LENGTH_MAX
from hub.budget.records import UserId
from hub.errors import Code, HubError
from hub.ports import Authenticator, Principal
from hub.recent import Recent

TOKENS_MAX = 20_000  # remembered: some 8 MB
VERIFYING_MAX = 5_000  # tokens that are being verified, or wait for it; then callers are put off

TokenHash = NewType("TokenHash", bytes)


def token_hash(token: str) -> TokenHash:
    """What a token is remembered by, so that a dump of the memory shows none. ASCII only."""
    return TokenHash(sha256(token.encode("ascii")).digest())


class TokenCache:
    """At most `size_max` tokens by their hash; when there are more, the ones not asked for longest
    are forgotten. `now_s` is on the steady clock."""

    def __init__(self, size_max: int) -> None:
        self._principals: Recent[TokenHash, Principal] = Recent(size_max)

    def __len__(self) -> int:
        return len(self._principals)

    def get(self, key: TokenHash, now_s: float) -> Principal | None:
        """Whose token it is, if it counts still."""
        principal = self._principals.use(key)
        if principal is not None and now_s >= principal.ends_at_s:
            del self._principals[key]
            return None
        return principal

    def put(self, key: TokenHash, principal: Principal) -> None:
        self._principals[key] = principal

    def users(self, now_s: float) -> set[UserId]:
        """Everybody with a token that counts. Forgets those that expired."""
        expired = [key for key, who in self._principals.items() if now_s >= who.ends_at_s]
        for key in expired:
            del self._principals[key]
        return {who.user_id for who in self._principals.values()}

    def revoke(self, valid_since_ms: Mapping[UserId, int]) -> None:
        """Forget the tokens that their user was issued before."""
        revoked = [
            key
            for key, who in self._principals.items()
            if who.issued_at_ms < valid_since_ms.get(who.user_id, 0)
        ]
        for key in revoked:
            del self._principals[key]


class CachedTokens:
    """An `Authenticator` that asks another one at most once at a time for each token."""

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        now_s: Callable[[], float],
        tokens_max: int = TOKENS_MAX,
        verifying_max: int = VERIFYING_MAX,
    ) -> None:
        self.cache = TokenCache(tokens_max)
        self._authenticator = authenticator
        self._now_s = now_s
        self._verifying: dict[TokenHash, asyncio.Task[Principal | Code]] = {}
        self._verifying_max = verifying_max
        self.outcomes: Counter[str] = Counter()  # of all that was asked

    async def authenticate(self, token: str, address: str = "") -> Principal:
        """The token's user. Raises `HubError`: `NOT_LOGGED_IN`, `UNAVAILABLE`, `BUSY`."""
        # What is not ASCII is no token, and can hold what no encoder takes.
        if len(token) > TOKEN_LENGTH_MAX or not token.isascii():
            self.outcomes["refused"] += 1
            raise HubError(Code.NOT_LOGGED_IN)
        key = token_hash(token)
        known = self.cache.get(key, self._now_s())
        if known is not None:
            self.outcomes["remembered"] += 1
            return known
        task = self._verifying.get(key)
        if task is None:
            if len(self._verifying) >= self._verifying_max:
                self.outcomes["unknown"] += 1
                raise HubError(Code.BUSY)
            task = asyncio.create_task(self._verify(key, token, address))
            self._verifying[key] = task
        # A caller that is gone must not take the others' answer along.
        outcome = await asyncio.shield(task)
        if isinstance(outcome, Code):
            self.outcomes["unknown" if outcome.retryable else "refused"] += 1
            raise HubError(outcome)
        self.outcomes["verified"] += 1
        return outcome

    async def close(self) -> None:
        """Nobody waits any more."""
        for task in list(self._verifying.values()):
            task.cancel()
        await asyncio.gather(*self._verifying.values(), return_exceptions=True)

    async def _verify(self, key: TokenHash, token: str, address: str) -> Principal | Code:
        try:
            principal = await self._authenticator.authenticate(token, address)
        except HubError as error:
            return error.code  # an exception would be one object for all who wait
        finally:
            del self._verifying[key]
        self.cache.put(key, principal)
        return principal
