"""Export and import: the same budget elsewhere, or nothing at all."""

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from api.cli.main import main
from storage.care.transfer import Refused, export_budget, import_budget
from storage.care.verify import NoSuchBudget, verify
from storage.embedded.postgres import EmbeddedPostgres
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.core.snapshots import Snapshots
from storage.postgres.database import Database
from tests.conftest import with_database
from tests.history import submit, write_history, write_membership

BUDGET = "00000000-0000-4000-8000-00000000000b"
OTHER_BUDGET = "00000000-0000-4000-8000-0000000000bb"
STORED = (  # everything that goes along; a participant's number is of its database
    "SELECT * FROM budgets WHERE id = $1",
    """
    SELECT user_id, joined_at, active, removed_at FROM participants WHERE budget_id = $1
    ORDER BY number
    """,
    "SELECT * FROM categories WHERE budget_id = $1 ORDER BY id",
    "SELECT * FROM expenses WHERE budget_id = $1 ORDER BY id",
    "SELECT * FROM accepted_events WHERE budget_id = $1 ORDER BY sequence",
)
COUNT_ALL = """
SELECT (SELECT count(*) FROM budgets) + (SELECT count(*) FROM participants)
     + (SELECT count(*) FROM categories) + (SELECT count(*) FROM expenses)
     + (SELECT count(*) FROM accepted_events)
"""


@pytest.fixture
async def elsewhere_url(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """A second fresh database, of another identity than the first."""
    url = with_database(postgres.url, "elsewhere")
    await execute(postgres.url, f"CREATE DATABASE elsewhere TEMPLATE {template}")
    await execute(url, "UPDATE log_identity SET log_id = gen_random_uuid()")
    yield url
    await execute(postgres.url, "DROP DATABASE elsewhere WITH (FORCE)")


@pytest.fixture
async def elsewhere(elsewhere_url: str) -> AsyncIterator[Database]:
    database = await Database.connect(elsewhere_url)
    yield database
    await database.close()


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def exported(database: Database, budget_id: str = BUDGET) -> list[bytes]:
    return [line async for line in export_budget(database, budget_id)]


async def imported(database: Database, lines: Sequence[bytes]) -> None:
    await import_budget(database, io.BytesIO(b"".join(lines)))


async def stored(database: Database) -> list[list[asyncpg.Record]]:
    async with database.connection("rest") as connection:
        return [await connection.fetch(statement, BUDGET) for statement in STORED]


async def is_empty(database: Database) -> bool:
    async with database.connection("rest") as connection:
        count: int = await connection.fetchval(COUNT_ALL)
    return count == 0


async def is_clean(database: Database) -> bool:
    return [found async for found in verify(database, None, lambda progress: None)] == []


async def test_a_budget_is_the_same_elsewhere(
    database: Database, elsewhere: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.care.transfer.PAGE", 10)
    await write_history(database, OTHER_BUDGET, seed=6)
    events = await write_history(database, BUDGET, seed=7)
    for event_type, user_id in (
        ("participant.add", "zoe"),
        ("participant.add", "bob"),
        ("participant.remove", "zoe"),
    ):
        await write_membership(database, BUDGET, event_type, user_id, at_ms=50)
    async with database.connection("rest") as connection:
        await connection.execute(
            "UPDATE participants SET removed_at = 1795000000000 WHERE NOT active"
        )
        await connection.execute("UPDATE budgets SET link_sharing = false")

    await imported(elsewhere, await exported(database))

    assert await stored(elsewhere) == await stored(database)
    assert await is_clean(elsewhere)
    snapshots = [
        (await Snapshots(which).read(BUDGET, "bob")).text for which in (database, elsewhere)
    ]
    log_ids = [await PostgresLog(which).log_id() for which in (database, elsewhere)]
    assert log_ids[0] != log_ids[1]
    assert snapshots[0].replace(log_ids[0].encode(), log_ids[1].encode()) == snapshots[1]
    originals = await submit(database, "ann", events)
    assert await submit(elsewhere, "ann", events) == originals
    assert all(verdict.duplicate for verdict in originals)
    with pytest.raises(NoSuchBudget):
        await exported(elsewhere, OTHER_BUDGET)


async def test_an_imported_budget_goes_on(database: Database, elsewhere: Database) -> None:
    accepted = await write_history(database, BUDGET, seed=8)
    await imported(elsewhere, await exported(database))
    event = {**accepted[0], "eventId": BUDGET, "eventType": "budget.edit", "title": "on"}
    for version in range(1, len(accepted)):  # one of them is the current one
        [verdict] = await submit(elsewhere, "ann", [{**event, "version": version}])
        if verdict.status == "accepted":
            break
    assert verdict.sequence == len(accepted) + 1
    assert await is_clean(elsewhere)


async def test_a_deleted_budget_goes_along(database: Database, elsewhere: Database) -> None:
    await write_history(database, BUDGET, seed=9, delete=True)
    lines = await exported(database)
    await imported(elsewhere, lines)
    assert await stored(elsewhere) == await stored(database)
    again = await exported(elsewhere)
    assert again[1:-1] == lines[1:-1]  # the header names another log


async def test_a_budget_is_exported_as_of_one_instant_while_it_changes(
    database: Database, elsewhere: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.care.transfer.PAGE", 10)
    events = await write_history(database, BUDGET, seed=10)
    before = await stored(database)
    exporting = export_budget(database, BUDGET)
    lines = [await anext(exporting)]
    later = {"eventType": "category.add", "recordId": BUDGET, "name": "later", "allocate": "1"}
    [verdict] = await submit(database, "ann", [{**events[0], **later, "eventId": BUDGET}])
    assert verdict.sequence == len(events) + 1
    lines += [line async for line in exporting]
    await imported(elsewhere, lines)
    assert await stored(elsewhere) == before


async def test_a_file_holds_no_names_of_people_and_no_invites(database: Database) -> None:
    async with database.connection("rest") as connection:
        await connection.execute(
            "INSERT INTO users (id, email, first_name) VALUES ('ann', 'ann@example.org', 'Anna')"
        )
    await write_history(database, BUDGET, seed=11)
    async with database.connection("rest") as connection:
        await connection.execute(
            """
            INSERT INTO invites (budget_id, id, token_hash, created_at, expires_at, max_uses,
                                 created_sequence)
            VALUES ($1, $1, 'token', 1, 2, 1, 1)
            """,
            BUDGET,
        )
    lines = await exported(database)
    kinds = {json.loads(line)["kind"] for line in lines}
    assert kinds == {"header", "budget", "participant", "category", "expense", "event", "trailer"}
    assert not any(text in b"".join(lines) for text in (b"Anna", b"example.org", b"token"))


async def test_what_is_there_already_is_refused_and_stays(database: Database) -> None:
    await write_history(database, BUDGET, seed=12)
    lines = await exported(database)
    before = await stored(database)
    with pytest.raises(Refused, match=f"budget {BUDGET} is here already"):
        await imported(database, lines)
    assert await stored(database) == before


def resealed(lines: Sequence[bytes]) -> list[bytes]:
    """With a trailer that vouches for them."""
    *body, trailer = lines
    seal = {**json.loads(trailer), "sha256": sha256(b"".join(body)).hexdigest()}
    return [*body, json.dumps(seal).encode() + b"\n"]


def position(lines: Sequence[bytes], kind: str) -> int:
    return next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == kind)


def changed(lines: Sequence[bytes], kind: str, before: bytes, after: bytes) -> list[bytes]:
    """The first line of the kind with something else in it."""
    i = position(lines, kind)
    assert before in lines[i]
    return [*lines[:i], lines[i].replace(before, after, 1), *lines[i + 1 :]]


def without(lines: Sequence[bytes], kind: str) -> list[bytes]:
    i = position(lines, kind)
    return [*lines[:i], *lines[i + 1 :]]


Damage: TypeAlias = Callable[[list[bytes]], list[bytes]]
DAMAGED: Sequence[Damage] = (  # not what `export` wrote
    lambda lines: [],
    lambda lines: lines[1:],
    lambda lines: [lines[0]],
    lambda lines: lines[:-1],
    lambda lines: [*lines[:-1], lines[-1][:-1]],
    lambda lines: [*lines[:-2], lines[-2][:-9]],
    lambda lines: [*lines, b"more\n"],
    lambda lines: [b"x" * 3_000_000],
    lambda lines: without(lines, "event"),
    lambda lines: [*lines[:5], lines[5], *lines[5:]],
    lambda lines: changed(lines, "expense", b'"version":', b'"version": '),
    lambda lines: changed(lines, "event", b"budget.create", b"budget.creatE"),
    lambda lines: changed(lines, "header", b'"head":', b'"head":1'),
    lambda lines: resealed(changed(lines, "header", b'"version":2', b'"version":3')),
)
CONTRADICTING: Sequence[Damage] = (  # whole as a file, but its rows are not what its log says
    lambda lines: changed(lines, "expense", b'"ann"', b'"eve"'),
    lambda lines: changed(lines, "participant", b'"ann"', b'"[/eve]"'),
    lambda lines: changed(lines, "header", b'"head":', b'"head":1'),
    lambda lines: changed(lines, "header", BUDGET[:8].encode(), b"ffffffff"),
)
NO_ROWS: Sequence[Damage] = (  # whole as a file, but the database takes no such rows
    lambda lines: changed(lines, "category", b'"name":', b'"n":'),
    lambda lines: changed(lines, "expense", b'"id":"', b'"id":"x'),
    lambda lines: changed(lines, "event", b"{", b""),
    lambda lines: changed(lines, "event", b"ann", b"\xff"),
)


async def test_a_bad_file_is_refused_and_nothing_written(
    database: Database, elsewhere: Database
) -> None:
    await write_history(database, BUDGET, seed=13)
    lines = await exported(database)
    for damage in DAMAGED:
        with pytest.raises(Refused, match=r"is damaged|is cut off|not a budget as"):
            await imported(elsewhere, damage(lines))
    for damage in CONTRADICTING:
        with pytest.raises(Refused, match=r"the file contradicts itself: budget .*: expected"):
            await imported(elsewhere, resealed(damage(lines)))
    for damage in NO_ROWS:
        with pytest.raises(Refused, match="the file's rows are not those of a budget"):
            await imported(elsewhere, resealed(damage(lines)))
    assert await is_empty(elsewhere)
    await imported(elsewhere, lines)  # and the attempts are in nobody's way


async def test_a_pipe_is_as_good_as_a_file(database: Database, elsewhere: Database) -> None:
    await write_history(database, BUDGET, seed=14)
    content = b"".join(await exported(database))
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(content)

    with os.fdopen(reading, "rb") as file:
        await asyncio.gather(asyncio.to_thread(write), import_budget(elsewhere, file))
    assert await stored(elsewhere) == await stored(database)


async def test_the_commands_carry_a_budget_over(
    database: Database,
    database_url: str,
    elsewhere: Database,
    elsewhere_url: str,
    tmp_path: Path,
) -> None:
    accepted = await write_history(database, BUDGET, seed=15)
    written = await run(database_url, "export", BUDGET)
    assert (written.exit_code, written.stderr) == (0, "")
    assert written.stdout_bytes == b"".join(await exported(database))
    file = tmp_path / "budget.jsonl"
    file.write_bytes(written.stdout_bytes)

    taken = await run(elsewhere_url, "import", str(file))
    assert (taken.exit_code, taken.stderr) == (0, "")
    assert taken.stdout == f"imported budget {BUDGET}, {len(accepted)} events\n"
    assert await stored(elsewhere) == await stored(database)

    twice = await run(elsewhere_url, "import", "-", stdin=written.stdout_bytes)
    assert twice.exit_code == 1
    assert twice.stderr == f"budget-hub: not imported: budget {BUDGET} is here already\n"
    cut = await run(elsewhere_url, "import", "-", stdin=written.stdout_bytes[:-3])
    assert (cut.exit_code, cut.stderr.count("\n")) == (1, 1)
    unknown = await run(database_url, "export", OTHER_BUDGET)
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr == f"budget-hub: no such budget: {OTHER_BUDGET}\n"
    assert (await run(elsewhere_url, "import", str(tmp_path / "missing"))).exit_code == 2


async def run(database_url: str, *arguments: str, stdin: bytes = b"") -> Result:
    """The command line, in a thread of its own because it brings its own loop."""
    environ = {"DATABASE_URL": database_url}
    return await asyncio.to_thread(
        lambda: CliRunner().invoke(main, arguments, input=stdin, env=environ)
    )
