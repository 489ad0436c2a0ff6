"""The load script as its users meet it: every scenario proves what it measures, and says so by its
exit code."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from loadtest import report
from loadtest.__main__ import main
from loadtest.cluster import Port
from loadtest.runner import INVALID, PROVEN, REFUSED, VIOLATED
from loadtest.scenarios import SCENARIOS
from storage.embedded.redis import EmbeddedRedis
from tests.cluster import AUTH_SECRET, Cluster, Node, Process, family, kill_left, until
from tests.crowd import patched

RUN_S = 150.0


@pytest.fixture(scope="module")
async def nodes(cluster: Cluster) -> Sequence[Node]:
    return await cluster.start_some(2)


@pytest.fixture
def run_away() -> Iterator[str]:
    """An address where nobody listens."""
    port = Port()
    yield f"http://127.0.0.1:{port.number}"
    port.close()


@pytest.fixture(scope="module", autouse=True)
async def outliving(
    cluster_database_url: str, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Process]:
    """A run that goes on beside the other tests, at a hub whose tokens end after 12 s, and which
    says so 11 s before: a busy machine may take seconds to renew one."""
    folder = tmp_path_factory.mktemp("outliving")
    program = patched(
        "import api.auth.local, hub.session",
        "api.auth.local.LocalIdentity.__init__.__kwdefaults__['token_ttl_s'] = 12",
        "hub.session.EXPIRING_S = 11",
    )
    cluster = Cluster(folder, cluster_database_url, redis.url, program)
    try:
        node = await cluster.start()
        options = ("--devices", "12", "--budgets", "4", "--users", "2", "--rate", "30")
        process = started(
            folder, [node], "smoke", *options, "--duration", "14", "--processes", "2", secret=""
        )
        try:
            yield process
        finally:
            await process.close()
    finally:
        await cluster.close()


async def load(
    folder: Path,
    nodes: Sequence[Node],
    scenario: str,
    *options: str,
    secret: str = AUTH_SECRET,
) -> Process:
    """One run, at its end."""
    process = started(folder, nodes, scenario, *options, secret=secret)
    try:
        await process.ended(RUN_S)
    finally:
        await process.close()
    return process


def started(
    folder: Path, nodes: Sequence[Node], scenario: str, *options: str, secret: str
) -> Process:
    targets = [option for node in nodes for option in ("--target", node.url)]
    arguments = ["-m", "loadtest", scenario, *targets, *options, "--out", str(folder / "out")]
    return Process(folder, scenario, arguments, {"AUTH_SECRET": secret}, program=[sys.executable])


SMALL = {
    "steady": ("--devices", "40", "--budgets", "12", "--rate", "60", "--processes", "2"),
    "ramp": ("--devices", "12", "--budgets", "4", "--rate", "20", "--duration", "8.5"),
    "hot-budget": ("--devices", "40", "--rate", "10", "--processes", "2"),
    "offline": ("--devices", "16", "--budgets", "4", "--rate", "40"),
    "storm": ("--devices", "30", "--budgets", "10", "--rate", "30", "--duration", "8.5"),
    "slow-readers": ("--devices", "12", "--budgets", "2", "--rate", "30"),
    "legacy": ("--devices", "12", "--budgets", "4", "--rate", "20"),
    "mixed": ("--devices", "40", "--budgets", "10", "--rate", "60"),
    "soak": ("--devices", "20", "--budgets", "5", "--rate", "20"),
}


def test_all_scenarios_are_tried() -> None:
    assert {*SMALL, "smoke"} == SCENARIOS.keys()


async def test_every_scenario_proves_two_nodes(nodes: Sequence[Node], tmp_path: Path) -> None:
    """All at once: each has budgets of its own. On a machine that is busy with that, figures may
    not count; the proof does."""

    async def one(scenario: str, options: Sequence[str]) -> None:
        folder = tmp_path / scenario
        folder.mkdir()
        with_duration = ("--duration", "2.5", *options)
        process = await load(folder, nodes, scenario, *with_duration)
        assert process.exit_code in (PROVEN, INVALID), (scenario, process.out, process.err)
        made = report.read(folder / "out")
        assert made["proof"]["passed"], scenario
        assert made["totals"]["accepted"] > 10, scenario
        if sys.platform == "linux":
            assert made["resources"] is not None, scenario
            assert made["resources"]["hubProcesses"] == len(nodes), scenario
        assert made["totals"]["deliveries"] > 10, scenario
        if not SCENARIOS[scenario].offline_share:  # who was away is not measured
            assert made["latency"]["deliveryMs"]["count"] > 10, scenario
        assert made["proof"]["checked"]["replicas"] >= made["options"]["devices"], scenario

    await asyncio.gather(*(one(name, options) for name, options in SMALL.items()))
    storm = report.read(tmp_path / "storm" / "out")
    # More than once all came back; who is late for the next storm is spared.
    assert storm["totals"]["reconnects"] > storm["options"]["devices"]


async def test_smoke_registers_its_users_and_can_be_checked_again(
    nodes: Sequence[Node], tmp_path: Path
) -> None:
    process = await load(
        tmp_path, nodes, "smoke", "--duration", "1", "--users", "2", "--seed", "7", secret=""
    )
    assert process.exit_code == PROVEN, process.out + process.err
    assert "PROVEN" in process.out and "7" in process.out
    assert (tmp_path / "out" / "report.html").exists()
    histories = sorted((tmp_path / "out").glob("history-*.jsonl"))
    assert main(["check", *map(str, histories)]) == PROVEN
    # A delivery that the device did not get.
    lines = histories[0].read_bytes().splitlines(keepends=True)
    given = [number for number, line in enumerate(lines) if line.startswith(b'["given"')]
    del lines[given[len(given) // 2]]
    histories[0].write_bytes(b"".join(lines))
    assert main(["check", *map(str, histories)]) == VIOLATED


async def test_a_run_outlives_its_tokens(outliving: Process, tmp_path: Path) -> None:
    """Devices renew theirs in time, which many share, by refresh tokens that count once: no
    connection is lost. The audit comes after all that."""
    assert await outliving.ended(RUN_S) == PROVEN, outliving.out + outliving.err
    totals = report.read(outliving.out_path.parent / "out")["totals"]
    assert totals["accepted"] > 100
    assert (totals["reconnects"], totals["errors"]) == (0, 0)


async def test_a_hub_that_refuses_the_set_up_is_named(
    nodes: Sequence[Node], tmp_path: Path
) -> None:
    process = await load(tmp_path, nodes, "smoke", secret="another secret, which is long enough")
    assert process.exit_code == VIOLATED
    assert "failed:" in process.err and "NOT_LOGGED_IN" in process.err


async def test_no_hub_is_one_line_and_exit_2(run_away: str, tmp_path: Path) -> None:
    arguments = ["-m", "loadtest", "steady", "--target", run_away]
    process = Process(tmp_path, "nobody", arguments, {}, program=[sys.executable])
    assert await process.ended() == REFUSED
    [line] = process.err.splitlines()
    assert line.startswith("loadtest: ") and "no hub answers" in line


async def test_budget_hub_load_is_the_same_command(tmp_path: Path) -> None:
    process = Process(tmp_path, "load", ["load", "ramp", "--rate", "0"], {})
    assert await process.ended() == REFUSED
    assert process.err.startswith("budget-hub load: ") and "--rate" in process.err


async def test_a_generator_that_dies_ends_the_run(nodes: Sequence[Node], tmp_path: Path) -> None:
    target = nodes[0].url
    options = ["--target", target, "--duration", "60", "--processes", "2"]
    arguments = ["-m", "loadtest", "smoke", *options, "--out", str(tmp_path / "out")]
    process = Process(
        tmp_path, "dying", arguments, {"AUTH_SECRET": AUTH_SECRET}, program=[sys.executable]
    )
    try:
        await until(lambda: "connected" in process.err, RUN_S)
        generators = family(process.pid)
        assert len(generators) == 2
        kill_left(list(generators)[:1])
        assert await process.ended() == VIOLATED
        assert "a generator ended with exit code -9" in process.err
    finally:
        await process.close()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["steady", "--devices", "0"], "--devices"),
        (["steady", "--devices", "3", "--budgets", "4"], "every budget needs a device"),
        (["steady", "--rate", "nan"], "--rate"),
        (["steady", "--duration", "-1"], "--duration"),
        (["steady", "--target", "ftp://x"], "ftp://x"),
        (["steady", "--secret", "short"], "too short"),
        (["unheard-of"], "unheard-of"),
        (["compare", "nothing", "nowhere"], "nothing"),
        (["check", "nothing"], "nothing"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == REFUSED
    [line] = capsys.readouterr().err.splitlines()
    assert complaint in line
