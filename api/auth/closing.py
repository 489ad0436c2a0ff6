"""Closing an account: out of every budget, and nothing personal left (design 3.4).

First it is closed, in Postgres, and no token counts any more that was issued before: on this node
at once, on the others within two seconds. What a device does on one of those meanwhile is found by
a second pass, from housekeeping; it also finishes what a failure interrupted.

    shared data (budgets, records, the log)   stays; it names users by their ids only
    takes part                                leaves by an event each, an owned budget passes on
    profile, login, refresh tokens            deleted
    photos, uploads                           deleted, also what was copied and never confirmed
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from api.auth.closed_accounts import ClosedAccountWatch
from api.http.verdicts import submitted
from api.timeouts import APP_TIMEOUTS, AppTimeouts
from hub.budget.events import Leaving
from hub.errors import Code, HubError
from hub.hub import Hub
from hub.ports import Principal
from hub.tracing import Correlation
from storage.objects.photos import Photos
from storage.postgres.people.closed_accounts import ClosedAccount, ClosedAccounts
from storage.postgres.people.profiles import Profiles

GONE = {Code.ALREADY_LEFT, Code.NOT_PARTICIPANT, Code.BUDGET_NOT_EXISTS}


class AccountClosing:
    def __init__(
        self,
        hub: Hub,
        accounts: ClosedAccounts,
        closed: ClosedAccountWatch,
        profiles: Profiles,
        photos: Photos,
        *,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
        timeouts: AppTimeouts = APP_TIMEOUTS,
    ) -> None:
        self._late = timedelta(seconds=timeouts.late_s)
        self._hub = hub
        self._accounts = accounts
        self._closed = closed
        self._profiles = profiles
        self._photos = photos
        self._now_ms = now_ms
        self._new_id = new_id

    async def close(self, who: Principal, correlation: Correlation | None = None) -> None:
        """Close the account of `who`; again changes nothing. Raises `HubError`, `Disconnected`:
        what was done until then is not undone, and the same call goes on from there."""
        issued_at = datetime.fromtimestamp(who.issued_at_ms / 1000, UTC)
        account = await self._accounts.close(who.user_id, issued_at=issued_at)
        self._closed.learn([account])
        await self._clear(account, correlation)

    async def finish(self) -> None:
        """The second pass, for everybody who needs it. Raises `Disconnected`, and the `HubError` of
        one that has to be tried again, when all the others are done."""
        now = datetime.fromtimestamp(self._now_ms() / 1000, UTC)
        failed: HubError | None = None
        for account in await self._accounts.uncleared(now - 2 * self._late):
            try:
                await self._clear(account)
                await self._accounts.cleared(account)
            except HubError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    async def _clear(self, account: ClosedAccount, correlation: Correlation | None = None) -> None:
        user_id = account.user_id
        until = account.closed_at + self._late
        # Delete the login first, so that the user cannot sign in again meanwhile.
        await self._profiles.delete(user_id, made_until=until)
        for budget_id in await self._profiles.budgets(user_id, joined_until=until):
            event = Leaving(self._new_id(), budget_id, user_id, self._now_ms(), closes_account=True)
            [verdict] = await submitted(self._hub, user_id, [event], "stop", correlation)
            if verdict.error is not None and verdict.error not in GONE:
                raise HubError(verdict.error, verdict.detail)
        await self._photos.clear(user_id)
