"""Submitting over HTTP: a request waits for the verdicts of its events."""

import asyncio
from collections.abc import Sequence

from hub.budget.events import Submitted
from hub.budget.records import UserId
from hub.budget.verdicts import Verdict
from hub.committer import Mode
from hub.hub import Hub
from hub.tracing import Correlation


async def submitted(
    hub: Hub,
    actor: UserId,
    events: Sequence[Submitted],
    mode: Mode,
    correlation: Correlation | None = None,
) -> list[Verdict]:
    """The verdicts in order; in `stop` mode up to and with the first that is not accepted. A client
    that goes away meanwhile cancels nothing."""
    answer: asyncio.Future[list[Verdict]] = asyncio.get_running_loop().create_future()
    hub.submit(actor, events, mode, answer, correlation)
    return await answer
