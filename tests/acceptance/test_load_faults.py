"""The load script's fault runs: a hub as it is breaks no rule, whatever befalls it, and one with a
defect does."""

import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from loadtest import faults, generator
from loadtest.cluster import Cluster
from loadtest.faults import WORK_S, Case, Fault, cases, run
from loadtest.process import PROGRAM
from tests.planted import BUGS

pytestmark = pytest.mark.timeout(180)  # three seconds each, on a quiet machine

SEED = 20261121
FIRST_OF_EACH = {case.fault: case for case in reversed(list(cases(42, SEED)))}
SETTLE_S = 3.0  # what has not come by then does not come; a hub without a defect has longer

# Which rules may be the first to notice, and the load under which the bug is sure to strike.
NOTICED_BY = {
    "sequence_skipped": ("dense", "smoke"),
    "no_publish_no_sweep": ("order", "smoke"),
    "gap_fill_dropped": ("order", "smoke"),
    "delivered_twice": ("order", "smoke"),
    "removed_and_still_served": ("private", "smoke"),
    "catch_up_off_by_one": ("order", "offline"),
    "stale_edit_wins": ("contest", "offline"),
    "change_not_stored": ("versions", "offline"),
}


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One for all. At the end the tables are what the logs make, and no log holds a defect."""
    async with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
        assert cluster.complaints() == []


@pytest.mark.parametrize("fault", Fault)
async def test_whatever_befalls_a_hub_it_keeps_its_promises(
    fault: Fault, cluster: Cluster, tmp_path: Path
) -> None:
    """P1 to P7, P9 to P11: one run of each kind; `make faults` has 200."""
    result = await run(cluster, FIRST_OF_EACH[fault], tmp_path)
    assert result.violation is None, f"{result.case}\n{result.violation}"
    assert result.figures is not None
    assert result.figures.unknown == 0
    assert result.figures.accepted > 0
    assert result.figures.observers == FIRST_OF_EACH[fault].devices + 1


async def test_after_all_that_the_tables_are_what_the_logs_make(cluster: Cluster) -> None:
    verified = await cluster.run("verify")
    assert verified.exit_code == 0, verified.out + verified.err


@pytest.mark.parametrize("bug", NOTICED_BY)
async def test_a_planted_bug_is_found(
    bug: str, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bug in BUGS
    rule, scenario = NOTICED_BY[bug]
    monkeypatch.setattr(generator, "SETTLE_S", SETTLE_S)
    monkeypatch.setattr(Case, "blows", lambda case: iter(()))
    await become(cluster, [sys.executable, "-m", "tests.planted", bug])
    result = await run(cluster, Case(1, SEED, Fault.RANDOM, 10, 40, scenario), tmp_path)
    assert result.violation is not None
    assert result.violation.rule == rule, str(result.violation)


async def become(cluster: Cluster, program: Sequence[str | Path]) -> None:
    """Put other hubs in the place of the cluster's."""
    for node in cluster.nodes:
        node.program = program
        await node.hub.kill()
        await node.start()
