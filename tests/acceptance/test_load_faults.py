"""The load script's fault runs: a hub as it is breaks no rule, whatever befalls it, and one with a
defect does."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from loadtest import generator
from loadtest.checker import Violation, check
from loadtest.cluster import Cluster, Node
from loadtest.faults import BUDGETS, Case, Fault, cases, run
from loadtest.history import read

pytestmark = pytest.mark.timeout(180)  # three seconds each, on a quiet machine

SEED = 20261121
FIRST_OF_EACH = {case.fault: case for case in reversed(list(cases(42, SEED)))}
# What has not come by then does not come; a hub without a defect has longer.
QUIET_S = SETTLE_S = 3.0


class Bug(NamedTuple):
    """Which rules may be the first to notice, and the load under which it is sure to strike."""

    rules: set[str]
    scenario: str = "smoke"


BUGS_HERE = {
    "sequence_skipped": Bug({"dense"}),
    "no_publish_no_sweep": Bug({"order"}),
    "gap_fill_dropped": Bug({"order"}),
    "delivered_twice": Bug({"order"}),
    "removed_and_still_served": Bug({"private"}),
    # Devices that were away, and that edit the same few expenses.
    "catch_up_off_by_one": Bug({"order"}, "offline"),
    "stale_edit_wins": Bug({"contest"}, "offline"),
    "change_not_stored": Bug({"versions", "contest", "record", "replay", "state"}, "offline"),
}


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One for all."""
    async with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.mark.parametrize("fault", Fault)
async def test_whatever_befalls_a_hub_it_keeps_its_promises(
    fault: Fault, cluster: Cluster, tmp_path: Path
) -> None:
    """P1 to P7, P9 to P11: one run of each kind; `make faults` has 200."""
    result = await run(cluster, FIRST_OF_EACH[fault], tmp_path)
    assert result.violation is None, f"{result.case}\n{result.violation}"
    assert result.figures is not None
    assert result.figures.accepted > BUDGETS
    # Everybody had something to say at the end, but the guest, who was gone.
    assert result.figures.replicas == result.figures.observers - 1 >= result.case.devices


async def test_after_all_that_nothing_is_amiss(cluster: Cluster) -> None:
    """The tables are what the logs make, and no hub has noticed a defect."""
    verified = await cluster.run("verify")
    assert verified.exit_code == 0, verified.out + verified.err
    assert cluster.complaints() == []


@pytest.mark.parametrize("bug", BUGS_HERE)
async def test_a_planted_bug_is_found(
    bug: str, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "QUIET_S", QUIET_S)
    monkeypatch.setattr(generator, "SETTLE_S", SETTLE_S)
    monkeypatch.setattr(Case, "blows", lambda case: iter(()))
    planted = [sys.executable, "-m", "tests.planted", bug]
    await asyncio.gather(*(become(node, planted) for node in cluster.nodes))
    rules, scenario = BUGS_HERE[bug]
    result = await run(cluster, Case(1, SEED, Fault.RANDOM, 10, 40, scenario), tmp_path)
    assert result.violation is not None
    assert result.violation.rule in rules, str(result.violation)
    with pytest.raises(Violation) as found:
        judge_again(tmp_path)
    assert str(found.value) == str(result.violation)


def judge_again(folder: Path) -> None:
    """From the files alone."""
    history = read(sorted(folder.glob("*.jsonl")))
    check(history, history.logs, history.snapshots)


async def become(node: Node, program: Sequence[str | Path]) -> None:
    """Put another hub in the place of the node's."""
    node.program = program
    await node.hub.kill()
    await node.start()
