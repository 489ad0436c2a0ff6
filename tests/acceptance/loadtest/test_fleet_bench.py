"""The bench of a fleet, in small: a real hub, the load script on it, and what that cost."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtest.bench import fleet
from loadtest.bench.fleet import Fleet, drive
from loadtest.compare import compare
from loadtest.page import page, plots, verdict
from storage.embedded.redis import EmbeddedRedis


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_run_of_the_load_script_gives_figures_a_proof_and_what_the_hub_took(
    database_url: str, redis: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So often that it is seen at work more than once, whatever else the machine does.
    monkeypatch.setattr(fleet, "LOOK_EVERY_S", 0.05)
    run = drive(Fleet("steady", 6, 40, 3), database_url, redis.url, tmp_path)
    assert verdict(run.report) in ("PROVEN", "INVALID")  # a busy machine is no defect
    assert run.report["totals"]["deliveries"] > run.report["totals"]["accepted"] > 0
    # More than nothing, and less than would stand out: 100 ms for an event, 10 MiB for a device.
    assert 0 < run.cpu_us_per_event < 100_000
    assert 0 < run.memory_kib_per_device < 10_240
    assert (tmp_path / "report.html").read_text() == page(run.report)
    for svg in plots(run.report).values():
        ElementTree.fromstring(svg)
    assert not any(difference.matters for difference in compare(run.report, run.report))
