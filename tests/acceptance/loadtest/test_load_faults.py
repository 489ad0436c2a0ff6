"""The load script's fault runs: a hub as it is breaks no rule, whatever befalls it, and one with a
defect does."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from loadtest import faults, generator
from loadtest.checker import Violation, check
from loadtest.cluster import NODES, Cluster, Node
from loadtest.faults import BUDGETS, Blow, Case, Fault, Partition, cases, run
from loadtest.history import read

SEED = 20261121
FIRST_OF_EACH = {case.fault: case for case in reversed(list(cases(42, SEED)))}
TRIES_MAX = 5
# What has not come by then does not come; a hub without a defect has longer.
CALM_S = QUIET_S = SETTLE_S = 3.0
# What a machine that stood still for as long breaks too: then another run tells.
LATE = {"order", "replica", "silent"}


class Bug(NamedTuple):
    """Which rules may be the first to notice, and under what it is sure to strike."""

    rules: set[str]
    scenario: str = "smoke"
    blows: Sequence[Blow] = ()


# All devices lose their verdicts, and send again what was accepted.
UNHEARD = [Blow(0.5, Fault.CLIENT_PARTITION, n, 0.6, Partition.UNHEARD) for n in range(NODES)]
KILLED = [Blow(1.0, Fault.HUB_KILL, n, 0, Partition.CUT) for n in range(NODES)]
BUGS_HERE = {
    "sequence_skipped": Bug({"dense"}),
    "no_publish_no_sweep": Bug({"order"}),
    "gap_fill_dropped": Bug({"order"}),
    "delivered_twice": Bug({"order"}),
    "removed_and_still_served": Bug({"private"}),
    "no_dedup": Bug({"refused", "verdicts"}, blows=UNHEARD),
    "ack_before_commit": Bug({"lost", "verdicts"}, blows=KILLED),
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
    """How processes interleave is chance: one run might miss a bug, not so many."""
    monkeypatch.setattr(faults, "CALM_S", CALM_S)
    monkeypatch.setattr(generator, "QUIET_S", QUIET_S)
    monkeypatch.setattr(generator, "SETTLE_S", SETTLE_S)
    rules, scenario, blows = BUGS_HERE[bug]
    monkeypatch.setattr(Case, "blows", lambda case: iter(blows))
    planted = [sys.executable, "-m", "tests.planted", bug]
    await asyncio.gather(*(become(node, planted) for node in cluster.nodes))
    for number in range(TRIES_MAX):
        folder = tmp_path / f"{number}"
        await asyncio.to_thread(folder.mkdir)
        case = Case(number, SEED + number, Fault.RANDOM, 10, 40, scenario)
        result = await run(cluster, case, folder)
        if result.violation is not None and result.violation.rule not in LATE - rules:
            break
    assert result.violation is not None
    assert result.violation.rule in rules, str(result.violation)
    with pytest.raises(Violation) as found:
        judge_again(folder)
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
