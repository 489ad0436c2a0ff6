"""A whole budget as a file, and back. (`budget-hub export`, `budget-hub import`)

The file is JSON Lines, UTF-8, one object a line, told apart by `kind`:

| kind          | how many | what                                                                  |
|---------------|----------|-----------------------------------------------------------------------|
| `header`      | 1        | format and its version, budget id, head, digest, logId of the source  |
| `budget`      | 1        | the budget's row                                                      |
| `participant` | any      | user id, when they joined, whether they do now; by order of joining  |
| `category`    | any      | tombstones included, in order of creation                             |
| `expense`     | any      | the same                                                              |
| `event`       | any      | the log in order; stream event and verdict record as text, as sent    |
| `trailer`     | 1        | how many lines there are of each; SHA-256 of all bytes before this    |

Money and 64-bit fingerprints are strings, so that no reader makes floats of them (P12). Not in the
file: names, e-mails and photos of people (they belong to accounts, not to budgets), and invites:
their links belong to the hub that made them, new ones are made where the budget goes.

This is format 2. Format 1, of 0.1.0, has no `fields_hash`, and the digests of then: `import` takes
it too, and gives the budget the digests of now.

Rows become JSON in Postgres and rows again there: here they are lines of text.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hub.budget.kinds import KINDS, Kind
from hub.budget.records import BudgetId
from hub.budget.scalars import Uuid, Whole
from hub.errors import BadData, Held, LostRace
from storage.care.comparison import PAGE, compare
from storage.care.verify import NoSuchBudget, at_one_instant
from storage.postgres.core.record_sql import RECORD_SQL
from storage.postgres.core.redigest import NotReplayable, redigest
from storage.postgres.database import Database

if TYPE_CHECKING:
    from storage.postgres.database import Connection

LINE_BYTES_MAX = 1 << 20  # far more than the longest event

_RECORDS = [KINDS[name] for name in RECORD_SQL]

EXPORT_HEADER = """
SELECT row_to_json(line)::text FROM (
    SELECT 'header' AS kind, 'budget-hub' AS format, 2 AS version, id AS budget_id,
           last_sequence AS head, lpad(to_hex(digest), 16, '0') AS digest,
           (SELECT log_id FROM log_identity) AS log_id
    FROM budgets WHERE id = $1
) line
"""
EXPORT_BUDGET = """
SELECT row_to_json(line)::text FROM (
    SELECT 'budget' AS kind, created_by, owner_id, title, details, currency, version, deleted,
           offline_last_modified, link_sharing, encode(fields_hash, 'hex') AS fields_hash,
           fingerprint::text, record_sequence
    FROM budgets WHERE id = $1
) line
"""
EXPORT_PARTICIPANTS = """
SELECT row_to_json(line)::text FROM (
    SELECT 'participant' AS kind, user_id, joined_at, active, removed_at, last_sequence
    FROM participants WHERE budget_id = $1 ORDER BY number
) line
"""
# In pages, not like the others: to sort a long log at once may take longer than a statement may.
EXPORT_EVENTS = """
SELECT sequence, row_to_json(line)::text FROM (
    SELECT 'event' AS kind, sequence, event_id, event_type, record_id, actor_id,
           encode(content_hash, 'hex') AS content_hash, content_fields, version, event, record,
           accepted_at
    FROM accepted_events
    WHERE budget_id = $1 AND sequence > 0 AND sequence > $2
    ORDER BY sequence LIMIT $3
) line
"""

IMPORT_BUDGET = """
INSERT INTO budgets (id, created_by, owner_id, title, details, currency, version, deleted,
                     offline_last_modified, link_sharing, fields_hash, fingerprint,
                     record_sequence, last_sequence, digest)
SELECT $1, created_by, owner_id, title, details, currency, version, deleted, offline_last_modified,
       link_sharing, decode(coalesce(fields_hash, ''), 'hex'), fingerprint, record_sequence, $3,
       ('x' || $4::text)::bit(64)::bigint
FROM json_to_recordset($2::json) AS line (
    created_by text, owner_id text, title text, details text, currency text, version bigint,
    deleted boolean, offline_last_modified bigint, link_sharing boolean, fields_hash text,
    fingerprint bigint, record_sequence bigint
)
ON CONFLICT (id) DO NOTHING
RETURNING id
"""
IMPORT_PARTICIPANTS = """
INSERT INTO participants (budget_id, user_id, joined_at, active, removed_at, last_sequence)
SELECT $1, line.*
FROM json_to_recordset($2::json) AS line (
    user_id text, joined_at bigint, active boolean, removed_at bigint, last_sequence bigint
)
"""
IMPORT_EVENTS = """
INSERT INTO accepted_events (budget_id, sequence, event_id, event_type, record_id, actor_id,
                             content_hash, content_fields, version, event, record, accepted_at)
SELECT $1, line.sequence, line.event_id, line.event_type, line.record_id, line.actor_id,
       decode(line.content_hash, 'hex'), line.content_fields, line.version, line.event,
       line.record, line.accepted_at
FROM json_to_recordset($2::json) AS line (
    sequence bigint, event_id uuid, event_type text, record_id text, actor_id text,
    content_hash text, content_fields smallint, version bigint, event text, record text,
    accepted_at timestamptz
)
"""
# `storage/migrations/0006_fairness.sql` says what is counted.
COUNT_USED = """
UPDATE budgets
SET record_count = $2, log_bytes = (
    SELECT coalesce(sum(octet_length(event) + coalesce(octet_length(record), 0)), 0)
    FROM accepted_events WHERE budget_id = $1
)
WHERE id = $1
"""


class Refused(Exception):
    """A file that is not imported; nothing was written. The message is one line."""


class Header(BaseModel):
    """The first line. `digest` is the budget's, as on the wire."""

    kind: Literal["header"]
    format: Literal["budget-hub"]
    version: Literal[1, 2]
    budget_id: Uuid
    head: Whole
    digest: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    log_id: Uuid


class Trailer(BaseModel):
    """The last line: how many lines of each kind, and SHA-256 (hex) of all bytes before it. The
    records are counted by the plural of their kind."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Whole]
    kind: Literal["trailer"] = "trailer"
    participants: Whole
    events: Whole
    sha256: str

    def records(self, kind: Kind) -> int:
        return self.__pydantic_extra__.get(kind.plural, 0)


async def export_budget(database: Database, budget_id: BudgetId) -> AsyncGenerator[bytes, None]:
    """The lines of the file, each with its newline: the budget as it stands at one instant, while
    the hub goes on committing.

    Raises `NoSuchBudget`, and `Disconnected` while Postgres is out of reach. Close the iterator if
    you leave it early.
    """
    digest = sha256()
    lines: Counter[str] = Counter()
    async with at_one_instant(database) as connection:
        async for section, text in _exported(connection, budget_id):
            line = text.encode() + b"\n"
            digest.update(line)
            lines[section] += 1
            yield line
    if not lines:
        raise NoSuchBudget(budget_id)
    trailer = Trailer(
        participants=lines["participants"],
        **{kind.plural: lines[kind.plural] for kind in _RECORDS},
        events=lines["events"],
        sha256=digest.hexdigest(),
    )
    yield trailer.model_dump_json().encode() + b"\n"


async def import_budget(database: Database, file: BinaryIO) -> Header:
    """Write the file's budget into a database that does not have it; return the file's header.

    All of it or nothing: the file is read to its end before the transaction begins, and before the
    commit the new rows are compared as `verify` does. A file that cannot be read twice, such as a
    pipe, is kept on disk meanwhile. Raises `Refused`, and `Disconnected` while Postgres is out of
    reach.
    """
    with _rereadable(file) as source:
        header, trailer = _checked(source)
        try:
            # A connection for commits never scans a table. Another would, for each foreign key,
            # once it has planned the look-up while the tables were still empty.
            async with database.committing() as connection:
                await _write(connection, header, trailer, source)
                async for difference in compare(connection, header.budget_id, lambda rows: None):
                    raise Refused(f"the file contradicts itself: {difference}")
        except NotReplayable as error:
            raise Refused(str(error)) from None
        except (BadData, LostRace) as error:
            # What the driver says may quote the row, and with it somebody's text.
            raise Refused("the file's rows are not those of a budget") from error
        except Held as error:
            raise Refused("the budget is being created by somebody else") from error
    return header


async def _exported(
    connection: "Connection", budget_id: BudgetId
) -> AsyncIterator[tuple[str, str]]:
    """All lines but the trailer, and of which section they are; none if there is no budget."""
    for section, statement in (
        ("header", EXPORT_HEADER),
        ("budget", EXPORT_BUDGET),
        ("participants", EXPORT_PARTICIPANTS),
        *((kind.plural, RECORD_SQL[kind.name].export) for kind in _RECORDS),
    ):
        async for row in connection.cursor(statement, budget_id, prefetch=PAGE):
            yield section, row[0]
    after = 0
    while rows := await connection.fetch(EXPORT_EVENTS, budget_id, after, PAGE):
        for row in rows:
            yield "events", row[1]
        after = rows[-1][0]


async def _write(
    connection: "Connection", header: Header, trailer: Trailer, file: BinaryIO
) -> None:
    file.seek(0)
    lines = _lines(file)
    next(lines)  # the header
    budget = _array([next(lines)])
    written = await connection.fetchval(
        IMPORT_BUDGET, header.budget_id, budget, header.head, header.digest
    )
    if written is None:
        raise Refused(f"budget {header.budget_id} is here already")
    for statement, count in (
        (IMPORT_PARTICIPANTS, trailer.participants),
        *((RECORD_SQL[kind.name].restore, trailer.records(kind)) for kind in _RECORDS),
        (IMPORT_EVENTS, trailer.events),
    ):
        section = islice(lines, count)
        while batch := list(islice(section, PAGE)):
            await connection.execute(statement, header.budget_id, _array(batch))
    if header.version == 1:
        await redigest(connection, header.budget_id)
    await connection.execute(COUNT_USED, header.budget_id, sum(map(trailer.records, _RECORDS)))


def _checked(file: BinaryIO) -> tuple[Header, Trailer]:
    """Header and trailer of a file that is whole. Raises `Refused`."""
    file.seek(0)
    lines = _lines(file)
    last = next(lines, b"")
    try:
        header = Header.model_validate_json(last)
    except ValidationError:
        raise Refused("not a budget as `budget-hub export` writes it") from None
    digest = sha256()
    count = 1
    for line in lines:
        digest.update(last)
        last = line
        count += 1
    try:
        trailer = Trailer.model_validate_json(last)
    except ValidationError:
        raise Refused("the file is cut off: its last line is no trailer") from None
    rows = trailer.participants + sum(map(trailer.records, _RECORDS)) + trailer.events
    if trailer.sha256 != digest.hexdigest() or count != rows + 3:  # header, budget, trailer
        raise Refused("the file is damaged: it is not what its last line says")
    return header, trailer


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(LINE_BYTES_MAX):
        if not line.endswith(b"\n"):
            raise Refused("the file is cut off or damaged: a line has no end")
        yield line


def _array(lines: Iterable[bytes]) -> str:
    """The lines as one JSON array."""
    return (b"[" + b",".join(lines) + b"]").decode()


@contextmanager
def _rereadable(file: BinaryIO) -> Iterator[BinaryIO]:
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as spooled:
        shutil.copyfileobj(file, spooled)
        yield spooled
