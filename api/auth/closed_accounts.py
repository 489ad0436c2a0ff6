"""Tokens of accounts that were closed here: they count no more, on any node.

`closed_accounts` in Postgres is short, since it forgets what is older than any token; so each node
knows it by heart and asks only for what is new. No request waits for that.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from hub.budget.records import UserId
from hub.errors import Code, HubError
from hub.hub import Hub
from hub.ports import Authenticator, Principal
from hub.recent import Recent
from storage.postgres.people.closed_accounts import ROWS_MAX, ClosedAccount, ClosedAccounts

CHECK_S = 1.0  # a closed account is gone everywhere within two, as who was removed is (P9)
OVERLAP_S = 10.0  # how long a closing may take from its time to its commit
KNOWN_MAX = 100_000  # some 10 MB; above, the oldest are forgotten, and count until they expire


class ClosedAccountWatch:
    """Which tokens do not count because of their age."""

    def __init__(self, accounts: ClosedAccounts, hub: Hub, *, known_max: int = KNOWN_MAX) -> None:
        self._accounts = accounts
        self._hub = hub
        self._closed_at_ms: Recent[UserId, int] = Recent(known_max)
        self._seen_until = datetime.fromtimestamp(0, UTC)

    async def look(self) -> None:
        """Learn of what was closed since, every `CHECK_S`. Raises `Disconnected`."""
        last = ClosedAccount("", self._seen_until - timedelta(seconds=OVERLAP_S))
        while True:
            accounts = await self._accounts.since(last.closed_at, last.user_id)
            self.learn(accounts)
            if len(accounts) < ROWS_MAX:
                return
            last = accounts[-1]

    def learn(self, accounts: Iterable[ClosedAccount]) -> None:
        """End every session that goes by a token of theirs."""
        closed_at_ms: dict[UserId, int] = {}
        for user_id, closed_at in accounts:
            closed_at_ms[user_id] = int(closed_at.timestamp() * 1000)
            if self._closed_at_ms.get(user_id, 0) < closed_at_ms[user_id]:
                self._closed_at_ms[user_id] = closed_at_ms[user_id]
            self._seen_until = max(self._seen_until, closed_at)
        # Also of those that are known: a session may have been on its way in when they became so.
        if closed_at_ms:
            self._hub.sign_out(closed_at_ms)

    def refuses(self, who: Principal) -> bool:
        """Whether the token was issued before its account was closed."""
        return who.issued_at_ms < self._closed_at_ms.get(who.user_id, 0)


class RefusingClosedAccounts:
    """An `Authenticator` that asks another one, and refuses tokens of accounts closed since."""

    def __init__(self, authenticator: Authenticator, closed: ClosedAccountWatch) -> None:
        self._authenticator = authenticator
        self._closed = closed

    async def authenticate(self, token: str, address: str = "") -> Principal:
        """Raises `HubError` as the other one does, and `NOT_LOGGED_IN`."""
        who = await self._authenticator.authenticate(token, address)
        if self._closed.refuses(who):
            raise HubError(Code.NOT_LOGGED_IN)
        return who
