"""`verify` on a real Postgres: silent about what the hub wrote, and it names every planted damage."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import asyncpg
import pytest
from typer.testing import CliRunner

from api.cli import main
from storage.database import Database
from storage.verify import Difference, NoSuchBudget, Progress, verify
from tests.history import submit, write_history

BUDGET = "00000000-0000-4000-8000-00000000000b"
CATEGORY = "00000000-0000-4000-8000-00000000000c"
GONE = "00000000-0000-4000-8000-0000000000dd"  # a deleted expense
EXPENSE = "00000000-0000-4000-8000-00000000000e"
NEW = "00000000-0000-4000-8000-0000000000ff"
NOWHERE = "ffffffff-ffff-ffff-ffff-ffffffffffff"  # the last id there can be, of no budget


@pytest.fixture
async def raw(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def story(database: Database) -> None:
    """Seven events: a category, an expense in it, and an expense that is deleted again."""
    about = {"budgetId": BUDGET, "when": 1_000}
    events = [
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
        {**about, **event, "eventId": str(UUID(int=number))}
        for number, event in enumerate(events, start=1)
    ]
    verdicts = await submit(database, "ann", batch)
    assert [verdict.sequence for verdict in verdicts] == [1, 2, 3, 4, 5, 6, 7]


async def differences(database: Database, budget_id: str | None = None) -> list[Difference]:
    return [found async for found in verify(database, budget_id, lambda progress: None)]


async def test_what_the_hub_wrote_is_clean(database: Database) -> None:
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


MEMBERSHIP = """
WITH event AS (
    INSERT INTO accepted_events (budget_id, sequence, event_id, event_type, record_id, actor_id,
                                 content_hash, content_fields, event)
    SELECT id, last_sequence + 1, gen_random_uuid(), $2, $3, $3, '', 1, '{}'
    FROM budgets WHERE id = $1
    RETURNING budget_id, sequence, event_id
)
UPDATE budgets SET last_sequence = event.sequence FROM event WHERE id = event.budget_id
RETURNING event.sequence, event.event_id::text, lpad(to_hex(digest), 16, '0')
"""
