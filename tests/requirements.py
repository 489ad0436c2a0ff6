"""What some tests need and not every machine has."""

import os
import shutil
from typing import NoReturn

import pytest

REQUIRE_ALL = "REQUIRE_ALL"


def unmet(what: str) -> NoReturn:
    """Skip this test; fail it where everything has to run (`REQUIRE_ALL=1`, as in CI)."""
    if os.environ.get(REQUIRE_ALL) == "1":
        pytest.fail(f"{what} ({REQUIRE_ALL}=1)", pytrace=False)
    pytest.skip(what)


def program(name: str, package: str) -> str:
    """The path of a program; `package` is Debian's that has it."""
    found = shutil.which(name)
    return unmet(f"there is no {name}: apt-get install {package}") if found is None else found
