"""What an error of Postgres, or of its driver, means to the hub.

The table is closed: a state that is not in it is a defect of ours or of the database, and not
"out of reach". Who takes a defect for an outage tries it again for ever, and nobody hears of it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import asyncpg
import structlog

from hub.errors import (
    BadData,
    Disconnected,
    Held,
    LostRace,
    ReadOnly,
    StatementFailed,
    StorageError,
)
from hub.recent import Recent

# By SQLSTATE, or by its first two characters, which are its class.
MEANINGS: Mapping[str, type[StorageError]] = {
    # Somebody else was first.
    "23505": LostRace,  # unique violation
    "40001": LostRace,  # serialization failure
    "40P01": LostRace,  # deadlock
    "55P03": Held,  # the lock timeout
    # A value that Postgres does not take.
    "22": BadData,
    "23": BadData,
    # Out of reach: the same may work when it is tried again.
    "08": Disconnected,  # the connection was lost, or refused
    "25006": ReadOnly,  # a standby, which is about to take over or has not yet
    "25P03": Disconnected,  # timeouts of the session, which was cut off: in a transaction,
    "25P04": Disconnected,  # … of a transaction,
    "57P05": Disconnected,  # … without one
    "28000": Disconnected,  # not let in: while passwords and addresses are being changed
    "28P01": Disconnected,  # … by a wrong password
    "3D000": Disconnected,  # no such database: it is being restored
    "40003": Disconnected,  # the outcome is unknown, as after a lost COMMIT
    "53000": Disconnected,  # no resources,
    "53100": Disconnected,  # … a full disk,
    "53200": Disconnected,  # … no memory,
    "53300": Disconnected,  # … too many connections,
    "53400": Disconnected,  # … a limit that somebody set
    "55006": Disconnected,  # in use: a database that is being copied or dropped
    "57014": Disconnected,  # the statement timeout, or somebody cancelled it
    "57P01": Disconnected,  # shut down,
    "57P02": Disconnected,  # … after a crash of another session,
    "57P03": Disconnected,  # … or not up yet
    "57P04": Disconnected,  # the database was dropped
    "58030": Disconnected,  # the disk failed
}
DRIVER = "driver"  # instead of a SQLSTATE, for what asyncpg itself refuses

RECENT_S = 300.0
_TOLD_MAX = 100

_log = structlog.get_logger()


def meaning(sqlstate: str) -> type[StorageError]:
    return MEANINGS.get(sqlstate) or MEANINGS.get(sqlstate[:2]) or StatementFailed


class Defects:
    """Statements that failed as `StatementFailed`, counted by SQLSTATE. Each is in the log with
    its traceback, and when it goes on again every `RECENT_S`: a sweep fails every second. `now_s`
    is any clock that goes steadily."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._now_s = now_s
        self._last_s: dict[str, float] = {}
        self._told_s: Recent[str, float] = Recent(_TOLD_MAX)

    def note(self, failed: StatementFailed) -> None:
        now_s = self._now_s()
        self.counts[failed.sqlstate] += 1
        self._last_s[failed.sqlstate] = now_s
        told_s = self._told_s.get(str(failed))
        if told_s is None or now_s - told_s >= RECENT_S:
            self._told_s[str(failed)] = now_s
            _log.error("statement failed", sqlstate=failed.sqlstate, exc_info=failed)

    def recent(self) -> list[str]:
        """The SQLSTATEs of the last `RECENT_S`."""
        since_s = self._now_s() - RECENT_S
        return sorted(state for state, last_s in self._last_s.items() if last_s > since_s)


@contextmanager
def translated(
    gone: Callable[[], bool] = lambda: False,
    note: Callable[[StatementFailed], None] = lambda failed: None,
) -> Iterator[None]:
    """Turn driver errors into the ones the hub knows. `gone` tells whether the connection is
    closed: then the driver's refusal to use it is no defect. `note` gets what is one."""
    try:
        yield
    except ValueError as error:  # a parameter that the driver could not encode
        raise BadData(type(error).__name__) from None
    except asyncpg.InvalidCachedStatementError as error:  # after a migration; has a state of others
        raise Disconnected(_said(error)) from error
    except asyncpg.PostgresError as error:
        kind = meaning(error.sqlstate or "")
        if kind is BadData:
            # The driver's own words may quote the value; they stay out of the log (P9).
            constraint = getattr(error, "constraint_name", None)
            raise BadData(" ".join(filter(None, [type(error).__name__, constraint]))) from None
        if kind is StatementFailed:
            failed = StatementFailed(error.sqlstate or "", _said(error))
            raise _noted(failed, error, note) from None
        raise kind(_said(error)) from error
    except asyncpg.InterfaceError as error:
        if gone():
            raise Disconnected(_said(error)) from error
        raise _noted(StatementFailed(DRIVER, _said(error)), error, note) from None
    except asyncpg.TargetServerAttributeNotMatched as error:
        raise ReadOnly("no server that can be reached takes writes") from error
    except (asyncpg.InternalClientError, OSError, TimeoutError) as error:
        raise Disconnected(_said(error)) from error


class Closable(Protocol):
    def is_closed(self) -> bool: ...


def closed(connection: Closable) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool took it back, as it does with one that was lost
        return True


def _noted(
    failed: StatementFailed, error: Exception, note: Callable[[StatementFailed], None]
) -> StatementFailed:
    """With the traceback of the error, which itself has to stay behind: it quotes rows (P9)."""
    failed = failed.with_traceback(error.__traceback__)
    note(failed)
    return failed


def _said(error: Exception) -> str:
    """For the log: without the DETAIL, in which Postgres quotes keys and rows (P9)."""
    if not isinstance(error, asyncpg.PostgresError):
        return f"{type(error).__name__}: {error}"
    said = error.args[0] if error.args else ""
    return f"{type(error).__name__} {error.sqlstate}: {said}"
