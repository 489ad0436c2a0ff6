"""What is not installed skips a test, and fails it where everything has to run."""

import pytest

from tests.requirements import REQUIRE_ALL, program, unmet


@pytest.mark.parametrize(
    ("value", "outcome"),
    [(None, pytest.skip.Exception), ("0", pytest.skip.Exception), ("1", pytest.fail.Exception)],
)
def test_what_is_missing_skips_or_fails(
    value: str | None, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(REQUIRE_ALL, raising=False)
    else:
        monkeypatch.setenv(REQUIRE_ALL, value)
    with pytest.raises(outcome, match="there is no moon"):
        unmet("there is no moon")
    with pytest.raises(outcome, match="there is no moon-tool: apt-get install moon"):
        program("moon-tool", "moon")


def test_what_is_there_is_found() -> None:
    assert program("sh", "dash").endswith("/sh")
