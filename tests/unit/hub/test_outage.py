"""What is lost is said once, and so is that it is back."""

import pytest
from structlog.testing import capture_logs

from hub.outage import Outage


def test_each_loss_and_each_return_is_said_once() -> None:
    outage = Outage("bus lost", "bus back", shard="a")
    with capture_logs() as logs:
        assert not outage.back()  # it was never away
        for _ in range(3):
            outage.lost("ConnectionError")
            assert outage.on
        assert outage.back(channels=2)
        assert not outage.on
        assert not outage.back()
        outage.lost("ConnectionError")
    assert [(line["event"], line["shard"], line["log_level"]) for line in logs] == [
        ("bus lost", "a", "warning"),
        ("bus back", "a", "warning"),
        ("bus lost", "a", "warning"),
    ]
    assert logs[1]["channels"] == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError("refused"), "OSError: refused"), ("OSError", "OSError")],
    ids=["an error", "its kind only"],
)
def test_a_loss_has_its_cause(error: Exception | str, said: str) -> None:
    with capture_logs() as logs:
        Outage("bus lost", "bus back").lost(error)
    assert [line["error"] for line in logs] == [said]
