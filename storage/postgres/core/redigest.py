"""The digest of 0.1.0 becomes that of 0.2.0 (design-2 section 3): a step of `migrate`.

Each budget is one transaction, so a run that is killed goes on where it was. Of the log it changes
the member `digest` of the event texts, of the tables fingerprints, C (`fields_hash`) and the
budget's digest; nothing else.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from hub.budget.digest import digest_text
from hub.budget.records import BudgetId
from hub.budget.replay import ReplayError, Replica
from storage.postgres.core.record_sql import signed
from storage.postgres.log_identity import RENEW, refuse_beside_nodes

if TYPE_CHECKING:
    from storage.postgres.database import Connection

PAGE = 1_000  # rows of the log at a time

COUNT_LEFT = "SELECT count(*) FROM budgets WHERE fields_hash = ''"
NEXT_LEFT = """
SELECT id::text FROM budgets WHERE fields_hash = '' AND id > $1 ORDER BY id LIMIT 1
"""
READ_LOG = """
SELECT sequence, event FROM accepted_events
WHERE budget_id = $1 AND sequence > 0 AND sequence > $2
ORDER BY sequence LIMIT $3
"""
WRITE_LOG = """
UPDATE accepted_events e SET event = new.event
FROM unnest($2::bigint[], $3::text[]) AS new (sequence, event)
WHERE e.budget_id = $1 AND e.sequence > 0 AND e.sequence = new.sequence
"""
# The kinds of 0.1.0.
WRITE_RECORDS = {
    "category": """
UPDATE categories c SET fields_hash = new.fields_hash, fingerprint = new.fingerprint
FROM unnest($2::uuid[], $3::bytea[], $4::bigint[]) AS new (id, fields_hash, fingerprint)
WHERE c.budget_id = $1 AND c.id = new.id
""",
    "expense": """
UPDATE expenses e SET fields_hash = new.fields_hash, fingerprint = new.fingerprint
FROM unnest($2::uuid[], $3::bytea[], $4::bigint[]) AS new (id, fields_hash, fingerprint)
WHERE e.budget_id = $1 AND e.id = new.id
""",
}
WRITE_BUDGET = "UPDATE budgets SET fields_hash = $2, fingerprint = $3, digest = $4 WHERE id = $1"
# From now on a row without its C is an error.
FINISH = """
ALTER TABLE budgets ALTER COLUMN fields_hash DROP DEFAULT;
ALTER TABLE categories ALTER COLUMN fields_hash DROP DEFAULT;
ALTER TABLE expenses ALTER COLUMN fields_hash DROP DEFAULT;
"""

_DIGEST = re.compile(r'"digest":"[0-9a-f]{16}"\}\Z')


class NotReplayable(Exception):
    """The log of a budget cannot be replayed, so it has no digest. The message is one line."""


async def redigest_all(connection: "Connection", progress: Callable[[int, int], None]) -> None:
    """Every budget that is left, in the order of their ids; `progress` gets how many are done, and
    of how many. Raises `NodesRunning`, and `NotReplayable` with the budget it stopped at."""
    await refuse_beside_nodes(connection)
    total = await connection.fetchval(COUNT_LEFT)
    budget_id = "00000000-0000-0000-0000-000000000000"
    done = 0
    while (budget_id := await connection.fetchval(NEXT_LEFT, budget_id)) is not None:
        async with connection.transaction():
            await redigest(connection, budget_id)
        done += 1
        progress(done, total)


async def finish(connection: "Connection") -> None:
    """When no budget is left: the digests that devices hold are the old ones, so they are to take
    snapshots."""
    await connection.execute(FINISH)
    await connection.fetchval(RENEW)


async def redigest(connection: "Connection", budget_id: BudgetId) -> None:
    """One budget, in the connection's transaction. Raises `NotReplayable`."""
    replica = Replica(budget_id)
    try:
        while rows := await connection.fetch(READ_LOG, budget_id, replica.head, PAGE):
            texts = [_followed(replica, row["event"]) for row in rows]
            await connection.execute(WRITE_LOG, budget_id, [row["sequence"] for row in rows], texts)
    except (ReplayError, orjson.JSONDecodeError) as error:
        said = str(error) if isinstance(error, ReplayError) else "a text in it is no JSON"
        raise NotReplayable(f"the log of budget {budget_id} cannot be replayed: {said}") from None
    budget = replica.budget
    if budget is None:
        raise NotReplayable(f"the log of budget {budget_id} cannot be replayed: it is empty")
    for kind, statement in WRITE_RECORDS.items():
        records = [each for each in replica.records.values() if each.kind.name == kind]
        await connection.execute(
            statement,
            budget_id,
            [record.id for record in records],
            [record.fields_hash for record in records],
            [signed(record.fingerprint) for record in records],
        )
    record = budget.record
    await connection.execute(
        WRITE_BUDGET,
        budget_id,
        record.fields_hash,
        signed(record.fingerprint),
        signed(budget.digest),
    )


def _followed(replica: Replica, text: str) -> str:
    """The event's text with the digest that the replica has after it."""
    event = orjson.loads(text)
    replica.follow(event)
    said, count = _DIGEST.subn(f'"digest":"{digest_text(replica.digest)}"}}', text)
    if count != 1:
        raise ReplayError(event["sequence"], "text", "a digest at its end", "none")
    return said
