"""Who may read the time of day: whoever measures, limits or waits for something may not, because it
jumps (P10). What is stored, signed or compared with rows goes by `storage.postgres.clock`."""

import ast
import gc
from collections.abc import Iterator, Mapping

import pytest

from tests import ROOT

# Each module with the reason; a new one needs a better one than that it is convenient.
READERS: Mapping[str, str] = {
    "api/cli/main.py": "`token` has no database to ask; `doctor` compares this clock with others",
}
FUNCTIONS = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
CLOCKS = {"CLOCK_REALTIME", "CLOCK_REALTIME_COARSE", "CLOCK_TAI"}


def reads(tree: ast.AST) -> Iterator[int]:
    """The lines where a module names the time of day."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = node.value
            owner = of.id if isinstance(of, ast.Name) else getattr(of, "attr", "")
            if node.attr in FUNCTIONS.get(owner, ()) or node.attr in CLOCKS:
                yield node.lineno
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and {alias.name for alias in node.names} & (FUNCTIONS["time"] | CLOCKS)
        ):
            yield node.lineno


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """CPython 3.11 raises `SystemError` where a finalizer runs into `ast.parse` and parses too."""
    gc.disable()
    yield
    gc.enable()


def test_p10_only_who_has_a_reason_reads_the_time_of_day() -> None:
    found = {}
    for room in ("hub", "storage", "api"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if lines := [*reads(ast.parse(path.read_text()))]:
                found[str(path.relative_to(ROOT))] = lines
    assert found.keys() == READERS.keys(), found


def test_it_sees_every_way_to_read_it() -> None:
    ways = (
        "import time\ntime.time()",
        "keep = time.time",
        "from time import time_ns",
        "import datetime\ndatetime.datetime.now(UTC)",
        "datetime.utcnow()",
        "date.today()",
        "datetime.date.today()",
        "time.clock_gettime(time.CLOCK_REALTIME)",
        "time.strftime('%Y')",
    )
    for way in ways:
        assert [*reads(ast.parse(way))], way
    for other in (
        "time.monotonic()",
        "loop.time()",
        "self.clock.now()",
        "datetime.fromtimestamp(1)",
    ):
        assert not [*reads(ast.parse(other))], other
