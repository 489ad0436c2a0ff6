"""P9: whatever is logged, no secret is in it."""

import logging
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog

from api.settings import Settings
from api.telemetry.logs import configure
from hub.errors import BadData, Held, LostRace, StatementFailed
from storage.postgres.errors import translated

SECRET = "the-secret-that-nobody-may-ever-read"
PATIENCE_S = 30.0
SETTINGS: dict[str, Any] = {
    "database_url": "postgresql://postgres:hidden-word@127.0.0.1/budgets",
    "auth_secret": SECRET,
    "api_keys": f"{SECRET}-too",
}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_p9_a_traceback_shows_no_values(
    log_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(token: str, of: Settings) -> None:
        raise RuntimeError("a defect")

    stderr = (tmp_path / "stderr").open("w+")
    monkeypatch.setattr(sys, "stderr", stderr)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    settings = Settings(**SETTINGS, log_format=log_format)
    try:
        writer = configure(settings)
        try:
            fail(SECRET, settings)
        except RuntimeError:
            structlog.get_logger().exception("ours")
            logging.getLogger("library").exception("theirs")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        structlog.reset_defaults()
    writer.finish(PATIENCE_S)
    with stderr:
        text = (tmp_path / "stderr").read_text()
    assert "ours" in text
    assert "theirs" in text
    assert text.count("a defect") >= 2
    assert SECRET not in text
    assert "hidden-word" not in text


def test_p9_settings_do_not_show_their_secrets() -> None:
    shown = repr(Settings(**SETTINGS))
    assert SECRET not in shown
    assert "hidden-word" not in shown


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.UniqueViolationError("duplicate key value violates unique constraint"),
        asyncpg.CheckViolationError("new row violates check constraint"),
        asyncpg.LockNotAvailableError("lock timeout"),
        asyncpg.ProgramLimitExceededError("index row size exceeds maximum"),
    ],
)
def test_p9_what_postgres_quotes_goes_no_further(error: asyncpg.PostgresError) -> None:
    error.detail = f"Key (email)=({SECRET}) already exists."
    assert SECRET in str(error)
    with pytest.raises((LostRace, BadData, Held, StatementFailed)) as raised, translated():
        raise error
    assert SECRET not in str(raised.value)
