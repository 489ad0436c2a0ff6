"""What each error of Postgres and its driver means: what may be tried again is a closed list, and
everything else a defect. The log has its traceback, and nothing that Postgres quotes (P9)."""

import traceback
from collections.abc import Iterator

import asyncpg
import pytest
from asyncpg import exceptions
from structlog.testing import capture_logs

from hub.errors import (
    BadData,
    Disconnected,
    Held,
    LostRace,
    ReadOnly,
    StatementFailed,
    StorageError,
)
from storage.postgres.errors import DRIVER, RECENT_S, Defects, closed, translated

PRIVATE = "what-nobody-may-ever-read"
RETRIED = (
    "25006 25P03 25P04 57P05 28000 28P01 3D000 40003 53000 53100 53200 53300 53400 55006 57014"
    " 57P01 57P02 57P03 57P04 58030"
).split()


def expected(error: type[asyncpg.PostgresError]) -> type[StorageError]:
    """Written from the document, not from the table."""
    state = error.sqlstate or ""
    if issubclass(error, asyncpg.InvalidCachedStatementError):
        return Disconnected
    if state in ("23505", "40001", "40P01"):
        return LostRace
    if state == "55P03":
        return Held
    if state == "25006":
        return ReadOnly
    if state[:2] in ("22", "23"):
        return BadData
    return Disconnected if state[:2] == "08" or state in RETRIED else StatementFailed


def of_postgres() -> Iterator[type[asyncpg.PostgresError]]:
    for found in vars(exceptions).values():
        if isinstance(found, type) and issubclass(found, asyncpg.PostgresError):
            yield found


def test_the_list_has_states_that_there_are() -> None:
    states = {error.sqlstate for error in of_postgres()}
    # Younger than the driver, which gives such an error the class of its class.
    assert set(RETRIED) - states <= {"25P04", "57P05", "40003"}


@pytest.mark.parametrize("error", [*of_postgres()], ids=lambda error: error.__name__)
def test_a_state_has_its_meaning(error: type[asyncpg.PostgresError]) -> None:
    with pytest.raises(StorageError) as raised, translated():
        raise error("why")
    assert type(raised.value) is expected(error)


@pytest.mark.parametrize("state", RETRIED)
def test_a_state_counts_whatever_class_the_driver_gives_it(state: str) -> None:
    error = asyncpg.PostgresError("why")
    setattr(error, "sqlstate", state)  # noqa: B010 - as the driver does
    with pytest.raises(Disconnected, match=state), translated():
        raise error


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (ValueError, BadData),  # what the driver could not encode
        (exceptions.DataError, BadData),
        (asyncpg.InternalClientError, Disconnected),
        (asyncpg.OutdatedSchemaCacheError, Disconnected),
        (asyncpg.TargetServerAttributeNotMatched, ReadOnly),
        (ConnectionResetError, Disconnected),
        (TimeoutError, Disconnected),
        (LostRace, LostRace),
        (AssertionError, AssertionError),  # a defect stays one
    ],
)
def test_what_an_error_of_the_driver_means(
    error: type[Exception], meaning: type[Exception]
) -> None:
    with pytest.raises(meaning) as raised, translated():
        raise error("why")
    assert type(raised.value) is meaning


@pytest.mark.parametrize(
    ("gone", "meaning"), [(True, Disconnected), (False, StatementFailed)], ids=["closed", "open"]
)
def test_a_refusal_of_the_driver_is_a_defect_where_the_connection_is_open(
    gone: bool, meaning: type[StorageError]
) -> None:
    defects = Defects()
    with (
        capture_logs(),
        pytest.raises(meaning),
        translated(lambda: gone, defects.note),
    ):
        raise asyncpg.InterfaceError("the server expects 1 argument for this query, 2 were passed")
    assert defects.counts == ({} if gone else {DRIVER: 1})


def test_a_connection_that_the_pool_took_back_is_closed() -> None:
    class Released:
        def is_closed(self) -> bool:
            raise asyncpg.InterfaceError("it has been released back to the pool")

    assert closed(Released())


def quoting(message: str = 'relation "budgets" does not exist') -> asyncpg.PostgresError:
    error = asyncpg.UndefinedTableError(message)
    error.detail = f"Key (email)=({PRIVATE}) already exists."
    assert PRIVATE in str(error)
    return error


def test_p9_a_defect_has_its_traceback_and_nothing_that_postgres_quotes() -> None:
    defects = Defects()
    with (
        capture_logs() as logs,
        pytest.raises(StatementFailed) as raised,
        translated(note=defects.note),
    ):
        raise quoting()
    failed = raised.value
    assert failed.sqlstate == "42P01"
    assert str(failed) == 'UndefinedTableError 42P01: relation "budgets" does not exist'
    told = "".join(traceback.format_exception(failed))
    assert "raise quoting()" in told  # where it happened
    assert PRIVATE not in told
    [line] = logs
    assert (line["event"], line["sqlstate"], line["log_level"]) == (
        "statement failed",
        "42P01",
        "error",
    )
    assert line["exc_info"] is failed


def test_defects_are_counted_and_told_once_in_a_while() -> None:
    now_s = 0.0
    defects = Defects(lambda: now_s)

    def happen(message: str = "first") -> None:
        with pytest.raises(StatementFailed), translated(note=defects.note):
            raise quoting(message)

    with capture_logs() as logs:
        for _ in range(3):
            happen()
        assert (len(logs), defects.recent()) == (1, ["42P01"])
        happen("second")  # the same state of another statement
        assert (len(logs), defects.recent()) == (2, ["42P01"])
        now_s = RECENT_S - 1
        happen()
        assert len(logs) == 2
        now_s = RECENT_S
        happen()  # it goes on
        assert len(logs) == 3
        now_s = 2 * RECENT_S
        assert defects.recent() == []
    assert defects.counts == {"42P01": 6}
