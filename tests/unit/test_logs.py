"""P9: whatever is logged, no secret is in it."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from api.logs import configure
from api.settings import Settings

SECRET = "the-secret-that-nobody-may-ever-read"
URL = "postgresql://postgres:hidden-word@127.0.0.1/budgets"


@pytest.fixture(params=["json", "console"])
def settings(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Iterator[Settings]:
    settings = Settings(database_url=URL, auth_secret=SECRET, log_format=request.param)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure(settings)
    yield settings
    root.handlers[:], root.level = before
    structlog.reset_defaults()


def test_p9_a_traceback_shows_no_values(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(token: str, of: Settings) -> None:
        raise RuntimeError("a defect")

    try:
        fail(SECRET, settings)
    except RuntimeError:
        structlog.get_logger().exception("ours")
        logging.getLogger("library").exception("theirs")
    said = capsys.readouterr().err
    assert "ours" in said
    assert "theirs" in said
    assert said.count("a defect") >= 2
    assert SECRET not in said
    assert "hidden-word" not in said


def test_p9_settings_do_not_show_their_secrets(settings: Settings) -> None:
    assert SECRET not in repr(settings)
    assert "hidden-word" not in repr(settings)
