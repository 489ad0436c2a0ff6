"""The checkers are checked: a hub with a defect does not get through a storm.

Two bugs are enough to show that; all the others are found by the load script's own runs.
"""

import sys
from pathlib import Path

import asyncpg
import pytest

from loadtest.checker import Violation
from storage.embedded.redis import EmbeddedRedis
from tests.acceptance.loadtest.test_load_faults import BUGS_HERE
from tests.cluster import Cluster
from tests.planted import BUGS
from tests.storm import Plan, storm

CALM = Plan(seed=7, writers=10, calm=120)
QUICK = CALM._replace(delivery_s=3)  # what has not come by then does not come

STORMS_MAX = 5

# Which rules of `loadtest.checker` may be the first to notice.
NOTICED_BY = {
    "no_dedup": {"verdicts", "refused"},
    "sequence_reused": {"dense"},
}


def test_every_planted_bug_is_to_be_noticed() -> None:
    assert BUGS.keys() == {"none", *NOTICED_BY, *BUGS_HERE}


@pytest.mark.parametrize("bug", ["none", *NOTICED_BY])
async def test_a_storm_finds_a_planted_bug(
    bug: str, database_url: str, redis: EmbeddedRedis, tmp_path: Path
) -> None:
    if bug == "sequence_reused":
        await _execute(database_url, "DROP INDEX accepted_events_by_sequence")
    program = [sys.executable, "-m", "tests.planted", bug]
    cluster = Cluster(tmp_path, database_url, redis.url, program)
    try:
        if bug == "none":  # the same storm leaves no trace
            await storm(CALM, cluster)
        else:
            found = await _violation(QUICK, cluster)
            assert found.rule in NOTICED_BY[bug], str(found)
    finally:
        await cluster.close()


async def _violation(plan: Plan, cluster: Cluster) -> Violation:
    """Of the first storm that brings one. How processes interleave is chance, and some bugs show
    only where something happens between two reads: one storm may miss them, not so many."""
    for seed in range(plan.seed, plan.seed + STORMS_MAX):
        try:
            await storm(plan._replace(seed=seed), cluster)
        except Violation as violation:
            return violation
    raise AssertionError(f"{STORMS_MAX} storms noticed nothing")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
