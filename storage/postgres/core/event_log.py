"""The log in Postgres, and the one transaction that writes it.

Statements are set-based: their number depends on what kinds of records a batch touches, never on
how many events it has. `LOCK` and what loads stay apart on purpose (see `Transaction.load`).
The statements of each kind of record stand in `record_sql`.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from hub.budget.digest import DIGEST_MODULUS
from hub.budget.kinds import KINDS
from hub.budget.records import BudgetId, Invite, Membership, RecordKey, UserId
from hub.budget.state import BudgetState, LogRow, Taken, Want, cascades, owners
from hub.errors import LostRace
from hub.ports import LogEvent, Page
from storage.postgres.core.record_sql import (
    LOAD_BUDGETS,
    RECORD_SQL,
    budget_of,
    record_of,
    row_of,
    signed,
)
from storage.postgres.database import Database, Purpose

if TYPE_CHECKING:
    from storage.postgres.database import Connection

# What is free is taken, what another node holds is left to a transaction of its own.
LOCK_FREE = """
SELECT id::text FROM budgets WHERE id = ANY($1::uuid[]) ORDER BY id
FOR NO KEY UPDATE SKIP LOCKED
"""
LOCK_WAIT = """
SELECT id::text FROM budgets WHERE id = ANY($1::uuid[]) ORDER BY id
FOR NO KEY UPDATE
"""
FIND_BUDGETS = "SELECT id::text FROM budgets WHERE id = ANY($1::uuid[])"
LOAD_KNOWN = """
SELECT e.budget_id::text, e.sequence, e.event_id::text, e.event_type, e.record_id, e.actor_id,
       e.content_hash, e.content_fields, e.version, e.event, e.record
FROM unnest($1::uuid[], $2::uuid[]) AS wanted (budget_id, event_id)
JOIN accepted_events e USING (budget_id, event_id)
"""
LOAD_MEMBERS = """
SELECT p.budget_id::text, p.user_id, p.joined_at, p.active, p.removed_at,
       p.last_sequence
FROM unnest($1::uuid[], $2::text[]) AS wanted (budget_id, user_id)
JOIN participants p USING (budget_id, user_id)
"""
LOAD_DOORS = """
SELECT b.id::text, b.link_sharing,
       ARRAY(
           SELECT p.user_id FROM participants p WHERE p.budget_id = b.id AND p.active
           ORDER BY p.joined_at, p.number
       )
FROM budgets b WHERE b.id = ANY($1::uuid[])
"""
LOAD_INVITES = """
SELECT i.budget_id::text, i.id::text, i.token_hash, i.created_at, i.expires_at, i.max_uses, i.uses,
       i.revoked, i.created_sequence
FROM unnest($1::uuid[], $2::bytea[]) AS wanted (budget_id, token_hash)
JOIN invites i USING (budget_id, token_hash)
"""
# All of them, the deleted and the left: the rows a user may have are bounded (`EVER_TIMES`).
LOAD_TAKEN = """
SELECT p.user_id, count(*) FILTER (WHERE p.active AND NOT b.deleted), count(*)
FROM unnest($1::text[]) AS comers (user_id)
JOIN participants p USING (user_id)
JOIN budgets b ON b.id = p.budget_id
GROUP BY p.user_id
"""
LOAD_CASCADES = """
SELECT e.budget_id::text, e.category_id::text, sum(e.fingerprint)
FROM unnest($1::uuid[], $2::uuid[]) AS wanted (budget_id, category_id)
JOIN expenses e USING (budget_id, category_id)
WHERE NOT e.deleted
GROUP BY e.budget_id, e.category_id
"""
# In id order: two nodes that create the same budgets cannot wait for each other in a circle.
INSERT_BUDGETS = """
INSERT INTO budgets (id, owner_id, last_sequence, digest, record_count, log_bytes, created_by,
                     version, deleted, offline_last_modified, fields_hash, fingerprint,
                     record_sequence, title, details, currency)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                     $7::text[], $8::bigint[], $9::boolean[], $10::bigint[], $11::bytea[],
                     $12::bigint[], $13::bigint[], $14::text[], $15::text[], $16::text[])
     AS new (id)
ORDER BY id
ON CONFLICT (id) DO NOTHING
RETURNING id::text
"""
UPDATE_BUDGETS = """
UPDATE budgets b
SET owner_id = new.owner_id, last_sequence = new.last_sequence, digest = new.digest,
    record_count = new.record_count, log_bytes = new.log_bytes,
    version = new.version, deleted = new.deleted,
    offline_last_modified = new.offline_last_modified, fields_hash = new.fields_hash,
    fingerprint = new.fingerprint, record_sequence = new.record_sequence, title = new.title,
    details = new.details, currency = new.currency
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
            $7::text[], $8::bigint[], $9::boolean[], $10::bigint[], $11::bytea[], $12::bigint[],
            $13::bigint[], $14::text[], $15::text[], $16::text[])
     AS new (id, owner_id, last_sequence, digest, record_count, log_bytes, created_by, version,
             deleted, offline_last_modified, fields_hash, fingerprint, record_sequence, title,
             details, currency)
WHERE b.id = new.id
"""
UPDATE_HEADS = """
UPDATE budgets b
SET last_sequence = new.last_sequence, digest = new.digest, record_count = new.record_count,
    log_bytes = new.log_bytes
FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
     AS new (id, last_sequence, digest, record_count, log_bytes)
WHERE b.id = new.id
"""
UPSERT_MEMBERS = """
INSERT INTO participants (budget_id, user_id, joined_at, active, removed_at, last_sequence)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::boolean[], $5::bigint[],
                     $6::bigint[])
ON CONFLICT (budget_id, user_id) DO UPDATE
SET joined_at = excluded.joined_at, active = excluded.active, removed_at = excluded.removed_at,
    last_sequence = excluded.last_sequence
"""
USE_INVITES = """
UPDATE invites i SET uses = used.uses
FROM unnest($1::uuid[], $2::uuid[], $3::integer[]) AS used (budget_id, id, uses)
WHERE i.budget_id = used.budget_id AND i.id = used.id
"""
# Runs before the upserts: what the batch itself holds of these expenses is written over it.
CASCADE = """
UPDATE expenses e
SET deleted = true, version = e.version + 1, last_sequence = gone.sequence,
    offline_last_modified = gone.at
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[])
     AS gone (budget_id, category_id, sequence, at)
WHERE e.budget_id = gone.budget_id AND e.category_id = gone.category_id AND NOT e.deleted
"""
INSERT_LOG = """
INSERT INTO accepted_events (budget_id, sequence, event_id, event_type, record_id, actor_id,
                             content_hash, content_fields, version, event, record)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::text[],
                     $7::bytea[], $8::smallint[], $9::bigint[], $10::text[], $11::text[])
"""
# Whoever does not take part at that instant gets no events, by the same statement that reads them.
READ_PAGE = """
SELECT b.last_sequence, b.deleted, p.active, e.sequence, e.event_type, e.record_id, e.event,
       (extract(epoch FROM e.accepted_at) * 1000)::bigint
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
LEFT JOIN LATERAL (
    SELECT * FROM accepted_events
    WHERE budget_id = b.id AND sequence > 0 AND sequence > $3 AND sequence <= $4
      AND (p.active OR $2 IS NULL)
    ORDER BY sequence
    LIMIT $5
) e ON true
WHERE b.id = $1
ORDER BY e.sequence
"""
READ_BEHIND = """
SELECT b.id::text, b.last_sequence
FROM unnest($1::uuid[], $2::bigint[]) AS here (id, position)
JOIN budgets b USING (id)
WHERE b.last_sequence > here.position
"""
READ_RECENT = """
SELECT budget_id::text, max(sequence)
FROM accepted_events
WHERE accepted_at > now() - make_interval(secs => $1)
GROUP BY budget_id
"""
READ_LOG_ID = "SELECT log_id::text FROM log_identity"


class PostgresLog:
    """Implements `hub.ports.EventLog`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["PostgresTransaction"]:
        async with self._database.committing() as connection:
            yield PostgresTransaction(connection)

    async def page(
        self, budget_id: BudgetId, user_id: UserId | None, after: int, up_to: int, limit: int
    ) -> Page | None:
        purpose: Purpose = "gaps" if user_id is None else "feeds"
        async with self._database.connection(purpose, user_id) as connection:
            rows = await connection.fetch(READ_PAGE, budget_id, user_id, after, up_to, limit)
        if not rows:
            return None
        events = [
            LogEvent(row[3], row[4], row[5], row[6].encode(), row[7]) for row in rows if row[3]
        ]
        head, deleted, member = rows[0][0], rows[0][1], rows[0][2]
        return Page(head, deleted, member, events)

    async def behind(self, positions: Mapping[BudgetId, int]) -> dict[BudgetId, int]:
        async with self._database.connection("watch") as connection:
            rows = await connection.fetch(
                READ_BEHIND, list(positions.keys()), list(positions.values())
            )
        return {row[0]: row[1] for row in rows}

    async def recent(self, seconds: float) -> dict[BudgetId, int]:
        async with self._database.connection("watch") as connection:
            rows = await connection.fetch(READ_RECENT, seconds)
        return {row[0]: row[1] for row in rows}

    async def log_id(self) -> str:
        """Identity of the log's history; renewed after a restore that lost events."""
        async with self._database.connection("feeds") as connection:
            log_id: str = await connection.fetchval(READ_LOG_ID)
        return log_id


class PostgresTransaction:
    """Implements `hub.ports.Transaction`."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._locked: set[BudgetId] = set()

    async def lock(self, budget_ids: Collection[BudgetId], *, wait: bool) -> set[BudgetId]:
        fetch = self._connection.fetch
        rows = await fetch(LOCK_WAIT if wait else LOCK_FREE, list(budget_ids))
        self._locked = {row[0] for row in rows}
        if wait or len(self._locked) == len(budget_ids):
            return set()
        rows = await fetch(FIND_BUDGETS, [id for id in budget_ids if id not in self._locked])
        return {row[0] for row in rows}

    async def load(self, want: Want) -> dict[BudgetId, BudgetState]:
        fetch = self._connection.fetch
        taken: dict[UserId, Taken] = {}
        states = {budget_id: BudgetState(taken) for budget_id in want.budgets}
        for row in await fetch(LOAD_BUDGETS, list(want.budgets)):
            budget = budget_of(row)
            if budget.record.id not in self._locked:
                raise LostRace("a budget was created after the lock was asked for")
            states[budget.record.id].budget = budget
        for row in await fetch(LOAD_KNOWN, *columns(want.events, 2)):
            states[row[0]].known[row[2]] = LogRow._make(
                (*row[:9], row[9].encode(), None if row[10] is None else row[10].encode())
            )
        for row in await fetch(LOAD_MEMBERS, *columns(want.members, 2)):
            states[row[0]].members[row[1]] = Membership._make(row)
        if want.doors:
            for row in await fetch(LOAD_DOORS, list(want.doors)):
                states[row[0]].link_sharing, states[row[0]].participants = row[1], row[2]
        if want.comers:
            for row in await fetch(LOAD_TAKEN, list(want.comers)):
                taken[row[0]] = Taken(row[1], row[2])
        if want.invites:
            for row in await fetch(LOAD_INVITES, *columns(want.invites, 2)):
                states[row[0]].invites[row[2]] = Invite._make(row)
        for kind_name, keys in want.records.items():
            kind = KINDS[kind_name]
            for row in await fetch(RECORD_SQL[kind_name].load, *columns(keys, 2)):
                states[row[0]].records[kind_name, row[1]] = record_of(kind, row)
        if possible := cascades(want, states):
            for budget_id, category_id in possible:
                states[budget_id].sums[category_id] = 0
            for row in await fetch(LOAD_CASCADES, *columns(possible, 2)):
                states[row[0]].sums[row[1]] = int(row[2]) % DIGEST_MODULUS
        return states

    async def write(self, states: Sequence[BudgetState]) -> None:
        execute = self._connection.execute
        writes = Writes(states)
        if writes.new_budgets:
            inserted = await self._connection.fetch(
                INSERT_BUDGETS, *columns(writes.new_budgets, 16)
            )
            if len(inserted) < len(writes.new_budgets):
                raise LostRace("another node created the budget")
        if writes.members:
            await execute(UPSERT_MEMBERS, *columns(writes.members, 6))
        if writes.invites:
            await execute(USE_INVITES, *columns(writes.invites, 3))
        if writes.cascades:
            await execute(CASCADE, *columns(writes.cascades, 4))
        for kind_name, rows in writes.records.items():
            if rows:
                await execute(RECORD_SQL[kind_name].upsert, *zip(*rows, strict=True))
        await execute(INSERT_LOG, *columns(writes.log, 11))
        if writes.budgets:
            await execute(UPDATE_BUDGETS, *columns(writes.budgets, 16))
        if writes.heads:
            await execute(UPDATE_HEADS, *columns(writes.heads, 5))


class Writes:
    """What the states' changes leave behind, one tuple of column values for each row to write."""

    def __init__(self, states: Sequence[BudgetState]) -> None:
        self.new_budgets: list[tuple[Any, ...]] = []
        self.budgets: list[tuple[Any, ...]] = []
        self.heads: list[tuple[Any, ...]] = []
        self.members: list[tuple[Any, ...]] = []
        self.invites: list[tuple[Any, ...]] = []
        self.cascades: list[tuple[Any, ...]] = []
        # By kind, what is referred to before what refers to it.
        self.records: dict[str, list[tuple[Any, ...]]] = {kind: [] for kind in KINDS}
        self.log: list[tuple[Any, ...]] = []
        for state in states:
            self._add(state)

    def _add(self, state: BudgetState) -> None:
        records: set[RecordKey] = set()
        members: dict[UserId, None] = {}  # in the order of their coming, which numbers them
        invites: set[bytes] = set()
        cascaded: set[str] = set()
        for change in state.changes:
            row = change.row
            self.log.append(
                (*row[:9], row.event.decode(), None if row.record is None else row.record.decode())
            )
            if change.member is not None:
                members[change.member.user_id] = None
            if change.invite is not None:
                invites.add(change.invite.token_hash)
            if (record := change.record) is not None:
                records.add((record.kind.name, record.id))
                if change.cascade:
                    cascaded.add(record.id)
                    self.cascades.append((row.budget_id, record.id, row.sequence, record.when))
        if cascaded:
            records |= {
                key for key, each in state.records.items() if not cascaded.isdisjoint(owners(each))
            }
        self.members += [state.members[user_id] for user_id in members]
        used = [state.invites[token_hash] for token_hash in invites]
        self.invites += [(invite.budget_id, invite.id, invite.uses) for invite in used]
        for key in records:
            self.records[key[0]].append(row_of(state.records[key]))
        self._add_budget(state)

    def _add_budget(self, state: BudgetState) -> None:
        budget = state.budget
        assert budget is not None
        first = state.changes[0].row.sequence
        record_id = budget.record.id
        log = (
            budget.last_sequence,
            signed(budget.digest),
            budget.record_count,
            budget.log_bytes,
        )
        passes_on = any(change.passes_on for change in state.changes)
        if first > 1 and budget.record.last_sequence < first and not passes_on:
            self.heads.append((record_id, *log))
            return
        record = row_of(budget.record)  # its sequence of creation is 1 and no column
        row = (record_id, budget.owner_id, *log, *record[2:8], *record[9:])
        (self.new_budgets if first == 1 else self.budgets).append(row)


def columns(rows: Collection[tuple[Any, ...]], width: int) -> list[Sequence[Any]]:
    """Rows turned into the columns that `unnest` takes; `width` of them also where there is no
    row."""
    return list(zip(*rows, strict=True)) if rows else [()] * width
