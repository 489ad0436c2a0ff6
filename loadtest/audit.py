"""The server's side of the story, read over REST when all is quiet: snapshots and whole logs."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from loadtest.account import Account
from loadtest.history import Recorder
from loadtest.http_client import HttpClient
from loadtest.http_wire import plain
from loadtest.target import Refused, Target, Unreachable

AT_ONCE = 8  # requests
PAGE_EVENTS = 100
TRIES_MAX = 40
AGAIN_S = 0.5


class Audit:
    """Reads budgets as their participants; `accounts` has one for each budget. What it reads goes
    on record. A hub that cannot answer now is asked again, for some time."""

    def __init__(self, target: Target, accounts: Mapping[str, Account], recorder: Recorder) -> None:
        self._client = HttpClient(target)
        self._accounts = accounts
        self._recorder = recorder
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def heads(self) -> Mapping[str, int]:
        """The last sequence of each budget, by a snapshot. Raises `Refused`, `Unreachable`."""

        async def head(budget_id: str) -> tuple[str, int]:
            snapshot = await self._get(budget_id, f"/budgets/{quote(budget_id)}")
            self._recorder.snapshot(budget_id, snapshot)
            return budget_id, snapshot["lastEventSequence"]

        return dict(await asyncio.gather(*(head(budget_id) for budget_id in self._accounts)))

    async def logs(self) -> None:
        """Every log from its start. Raises `Refused`, `Unreachable`."""

        async def log(budget_id: str) -> None:
            key, more = 0, True
            while more:
                path = f"/events?budgetId={quote(budget_id)}&key={key}&count={PAGE_EVENTS}&wait=0"
                page = await self._get(budget_id, path)
                events: Sequence[Mapping[str, Any]] = [plain(event) for event in page["events"]]
                self._recorder.log(budget_id, events)
                key, more = page["nextKey"], page["hasMore"]

        await asyncio.gather(*(log(budget_id) for budget_id in self._accounts))

    def close(self) -> None:
        self._client.close()

    async def _get(self, budget_id: str, path: str) -> dict[str, Any]:
        async with self._at_once:
            for left in reversed(range(TRIES_MAX)):
                after_s = AGAIN_S
                try:
                    token = await self._accounts[budget_id].token()
                    return await self._client.call("GET", path, token=token)
                except Refused as error:
                    if not left or not error.retryable:
                        raise
                    after_s = max(error.after_s, after_s)
                except Unreachable:
                    if not left:
                        raise
                await asyncio.sleep(after_s)
            raise AssertionError("unreachable")
