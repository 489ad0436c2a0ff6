"""`verify` on a real Postgres: silent about what the hub wrote, and every planted damage named."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from api.cli.main import main
from storage.care.comparison import Difference, compare
from storage.care.verify import NoSuchBudget, Progress, verify
from storage.postgres.database import Database
from tests.history import submit, write_history, write_membership

if TYPE_CHECKING:
    Raw: TypeAlias = asyncpg.Connection[asyncpg.Record]

BUDGET = "00000000-0000-4000-8000-00000000000b"
CATEGORY = "00000000-0000-4000-8000-00000000000c"
GONE = "00000000-0000-4000-8000-0000000000dd"  # a deleted expense
EXPENSE = "00000000-0000-4000-8000-00000000000e"
NOWHERE = "ffffffff-ffff-ffff-ffff-ffffffffffff"  # the last id there can be, of no budget


@pytest.fixture
async def raw(database_url: str) -> AsyncIterator["Raw"]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def story(database: Database) -> None:
    """Seven events: a category, an expense in it, and an expense that is deleted again."""
    events: list[dict[str, Any]] = [
        {"eventType": "budget.create", "title": "secret", "currency": "EUR"},
        {"eventType": "category.add", "recordId": CATEGORY, "name": "secret", "allocate": "200"},
        {
            "eventType": "expense.add", "recordId": EXPENSE, "categoryId": CATEGORY,
            "amount": "12.50", "date": "2026-03-01", "note": "secret",
        },
        {"eventType": "expense.add", "recordId": GONE, "amount": "0.99", "date": "2026-03-02"},
        {"eventType": "expense.edit", "recordId": EXPENSE, "version": 1, "amount": "13.00"},
        {"eventType": "expense.delete", "recordId": GONE, "version": 1},
        {"eventType": "budget.edit", "version": 1, "details": "secret"},
    ]  # fmt: skip
    batch = [
        {**event, "eventId": str(UUID(int=number)), "budgetId": BUDGET, "when": 1_000}
        for number, event in enumerate(events, start=1)
    ]
    verdicts = await submit(database, "ann", batch)
    assert [verdict.sequence for verdict in verdicts] == [1, 2, 3, 4, 5, 6, 7]


async def differences(database: Database, budget_id: str | None = None) -> list[Difference]:
    return [found async for found in verify(database, budget_id, lambda progress: None)]


async def test_what_the_hub_wrote_is_clean(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.care.comparison.PAGE", 10)
    budgets = [str(UUID(int=0)), BUDGET, NOWHERE]
    accepted = [
        await write_history(database, budget_id, seed, delete=seed == 1)
        for seed, budget_id in enumerate(budgets)
    ]
    events = [event for history in accepted for event in history]
    assert {event["eventType"] for event in events} == {
        "budget.create", "budget.edit", "budget.delete", "category.add", "category.edit",
        "category.delete", "expense.add", "expense.edit", "expense.delete",
    }  # fmt: skip
    seen: list[Progress] = []
    assert [found async for found in verify(database, None, seen.append)] == []
    assert seen[-1] == Progress(budgets=3, budgets_total=3, events=len(events))
    assert await differences(database, NOWHERE) == []


async def test_a_budget_is_seen_at_one_instant_while_it_changes(
    database: Database, raw: "Raw", story: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.care.comparison.PAGE", 2)
    await raw.execute("UPDATE accepted_events SET version = 9 WHERE sequence = 1")
    verifying = verify(database, None, lambda progress: None)
    assert (await anext(verifying)).what == "log row 1: version"
    event = {"eventId": GONE, "eventType": "budget.edit", "budgetId": BUDGET, "when": 1}
    [verdict] = await submit(database, "ann", [{**event, "version": 2, "title": "later"}])
    assert verdict.sequence == 8
    assert [found async for found in verifying] == []


async def test_membership_events_are_followed(database: Database, raw: "Raw", story: None) -> None:
    for event_type, user_id, at_ms in (
        ("participant.add", "bob", 58),
        ("participant.add", "eve\n", 60),
        ("participant.remove", "eve\n", 61),
        ("participant.remove", "ann", 62),  # which makes bob the owner
    ):
        await write_membership(database, BUDGET, event_type, user_id, at_ms=at_ms)
    assert await differences(database) == []
    await raw.execute("UPDATE participants SET active = true, joined_at = 59 WHERE joined_at = 60")
    found = [str(difference) for difference in await differences(database)]
    assert found[:-1] == [
        rf"'budget {BUDGET}: participant eve\n: active: expected False, found True'",
        rf"'budget {BUDGET}: participant eve\n: joined_at: expected 60, found 59'",
    ]
    assert "digest of the records" in found[-1]


# What is done to the story → what is named.
DAMAGE: Mapping[str, tuple[str, list[str]]] = {
    "amount": (
        "UPDATE expenses SET amount = 99 WHERE NOT deleted",
        [f"expense {EXPENSE}: amount", "digest of the records"],
    ),
    "record version": (
        "UPDATE expenses SET version = 9 WHERE NOT deleted",
        [f"expense {EXPENSE}: version", "digest of the records"],
    ),
    "several fields": (
        """
        UPDATE expenses SET note = NULL, date = '2026-01-01', category_id = NULL
        WHERE NOT deleted
        """,
        [
            f"expense {EXPENSE}: categoryId",
            f"expense {EXPENSE}: date",
            f"expense {EXPENSE}: note",
            "digest of the records",
        ],
    ),
    "resurrected": (
        "UPDATE expenses SET deleted = false",
        [f"expense {GONE}: deleted", "digest of the records"],
    ),
    "not in the digest": (
        "UPDATE categories SET created_by = 'eve', fingerprint = 1, offline_last_modified = 1",
        [
            f"category {CATEGORY}: created_by",
            f"category {CATEGORY}: when",
            f"category {CATEGORY}: fingerprint",
        ],
    ),
    "sequences of a record": (
        "UPDATE categories SET created_sequence = 1, last_sequence = 3",
        [f"category {CATEGORY}: created_sequence", f"category {CATEGORY}: last_sequence"],
    ),
    "extra record": (
        """
        INSERT INTO expenses
        SELECT budget_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff', created_by, category_id, amount,
               date, note, version, deleted, offline_last_modified, fingerprint, created_sequence,
               last_sequence, fields_hash
        FROM expenses WHERE NOT deleted
        """,
        [f"expense {NOWHERE}", "digest of the records"],
    ),
    "missing record": (
        "DELETE FROM expenses WHERE NOT deleted",
        [f"expense {EXPENSE}", "digest of the records"],
    ),
    "title and owner": (
        "UPDATE budgets SET title = 'other', owner_id = 'eve'",
        [f"budget {BUDGET}: title", f"budget {BUDGET}: owner_id", "digest of the records"],
    ),
    "head": ("UPDATE budgets SET last_sequence = 8", ["head"]),
    "digest": ("UPDATE budgets SET digest = digest + 1", ["digest"]),
    "used": (
        "UPDATE budgets SET log_bytes = 1, record_count = 1",
        ["log bytes", "number of records"],
    ),
    "inactive member": (
        "UPDATE participants SET active = false",
        ["participant ann: active", "digest of the records"],
    ),
    "missing member": ("DELETE FROM participants", ["participant ann", "digest of the records"]),
    "C": ("UPDATE expenses SET fields_hash = '' WHERE NOT deleted", [f"expense {EXPENSE}: C"]),
    "extra member": (
        "INSERT INTO participants (budget_id, user_id, joined_at) SELECT id, 'eve', 1 FROM budgets",
        ["participant eve", "digest of the records"],
    ),
    "missing log row": (
        "DELETE FROM accepted_events WHERE sequence = 4",
        ["log row 5: sequence", "log rows", "log bytes"],
    ),
    "missing end of the log": (
        "DELETE FROM accepted_events WHERE sequence = 7",
        [
            f"budget {BUDGET}: version",
            f"budget {BUDGET}: fingerprint",
            f"budget {BUDGET}: last_sequence",
            f"budget {BUDGET}: details",
            f"budget {BUDGET}: C",
            "head",
            "log bytes",
            "digest",
            "digest of the records",
        ],
    ),
    "renumbered log row": (
        "UPDATE accepted_events SET sequence = 17 WHERE sequence = 7",
        ["log row 17: sequence", "head", "log rows"],
    ),
    "verdict": (
        "UPDATE accepted_events SET record = replace(record, '13.00', '13') WHERE sequence = 5",
        ["log row 5: verdict record: amount", "log bytes"],
    ),
    "lost verdict": (
        "UPDATE accepted_events SET record = NULL WHERE sequence = 5",
        ["log row 5: verdict has a record", "log bytes"],
    ),
    "log columns": (
        "UPDATE accepted_events SET actor_id = 'eve', version = 3 WHERE sequence = 5",
        ["log row 5: actorId", "log row 5: version"],
    ),
    "event text": (
        "UPDATE accepted_events SET event = replace(event, '13.', '14.') WHERE sequence = 5",
        ["log row 5: digest"],
    ),
    "one eventId twice": (
        """
        ALTER TABLE accepted_events DROP CONSTRAINT accepted_events_pkey;
        UPDATE accepted_events SET event_id = first.event_id,
            event = replace(event, accepted_events.event_id::text, first.event_id::text)
        FROM (SELECT event_id FROM accepted_events WHERE sequence = 1) first WHERE sequence = 7
        """,
        ["eventIds"],
    ),
}


async def test_every_damage_is_named(raw: "Raw", story: None) -> None:
    for damage, (statement, named) in DAMAGE.items():
        transaction = raw.transaction()
        await transaction.start()
        await raw.execute(statement)
        found = [difference async for difference in compare(raw, BUDGET, lambda rows: None)]
        await transaction.rollback()
        assert (damage, [difference.what for difference in found]) == (damage, named)
        assert {difference.budget_id for difference in found} == {BUDGET}
        assert "secret" not in "".join(map(str, found))


async def test_log_text_that_is_no_json_is_named(
    database: Database, raw: "Raw", story: None
) -> None:
    await raw.execute("UPDATE accepted_events SET event = left(event, -1) WHERE sequence = 5")
    found = [difference.what for difference in await differences(database)]
    assert {"log row 5: eventId", "log row 5: sequence"} <= set(found)


async def test_a_difference_says_what_follows_from_the_log_and_what_stands_there(
    database: Database, raw: "Raw", story: None
) -> None:
    await raw.execute("UPDATE expenses SET amount = 99, note = NULL, version = 2, fingerprint = -1")
    found = {d.what: (d.expected, d.found) for d in await differences(database, BUDGET)}
    assert found[f"expense {EXPENSE}: amount"] == ("13.00", "99.00")
    assert found[f"expense {EXPENSE}: note"] == ("a text (not shown)", "null")
    assert found[f"expense {EXPENSE}: fingerprint"][1] == "f" * 16


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("DELETE FROM budgets", [f"budget {BUDGET}", "head", "digest", "digest of the records"]),
        (
            "DELETE FROM accepted_events",
            [
                f"budget {BUDGET}",
                f"category {CATEGORY}",
                f"expense {GONE}",
                f"expense {EXPENSE}",
                "participant ann",
                "head",
                "log bytes",
                "number of records",
                "digest",
                "digest of the records",
            ],
        ),
        (
            """
            DELETE FROM budgets; DELETE FROM accepted_events; DELETE FROM participants;
            DELETE FROM expenses
            """,
            [f"category {CATEGORY}", "head", "digest", "digest of the records"],
        ),
    ],
)
async def test_rows_that_lost_their_budget_or_their_log_are_found(
    database: Database, raw: "Raw", story: None, damage: str, named: list[str]
) -> None:
    await raw.execute("SET session_replication_role = replica")  # foreign keys look away
    await raw.execute(damage)
    assert sorted(found.what for found in await differences(database)) == sorted(named)


async def test_one_damaged_budget_does_not_hide_the_others(
    database: Database, raw: "Raw", story: None
) -> None:
    await write_history(database, NOWHERE, seed=3)
    await raw.execute("UPDATE budgets SET last_sequence = last_sequence + 1")
    assert [(d.budget_id, d.what) for d in await differences(database)] == [
        (BUDGET, "head"),
        (NOWHERE, "head"),
    ]
    assert [d.budget_id for d in await differences(database, NOWHERE)] == [NOWHERE]


async def test_an_unknown_budget_is_no_clean_budget(database: Database, story: None) -> None:
    with pytest.raises(NoSuchBudget):
        await differences(database, GONE)


async def test_the_command_tells_clean_from_different_by_its_exit_code(
    database_url: str, raw: "Raw", story: None
) -> None:
    clean = await run(database_url, "verify")
    assert (clean.exit_code, clean.stdout) == (0, "")
    assert clean.stderr == "1 budgets, 7 events, 0 differences\n"
    await raw.execute("UPDATE budgets SET last_sequence = 8")
    different = await run(database_url, "verify", "--budget", BUDGET)
    assert different.exit_code == 1
    assert different.stdout == f"budget {BUDGET}: head: expected 7, found 8\n"
    unknown = await run(database_url, "verify", "--budget", GONE)
    assert (unknown.exit_code, unknown.stderr) == (2, f"budget-hub: no such budget: {GONE}\n")
    assert (await run(database_url, "verify", "--budget", "home")).exit_code == 2
    missing = await run("", "verify")
    assert (missing.exit_code, missing.stderr) == (2, "budget-hub: DATABASE_URL: is missing\n")


async def run(database_url: str, *arguments: str) -> Result:
    """The command line, in a thread of its own because it brings its own loop."""
    environ = {"DATABASE_URL": database_url}
    return await asyncio.to_thread(lambda: CliRunner().invoke(main, arguments, env=environ))
