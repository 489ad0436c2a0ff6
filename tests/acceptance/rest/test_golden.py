"""The legacy contract, as recorded requests and answers (`tests/golden/`), is kept to the letter.

A transcript is a list of steps: who asks, what, and the status and body that came back. What
differs from run to run (`joinedAt`, `logId`, ids and times that the server makes) is replaced by
`…` in both. `GOLDEN=record` writes the answers anew, for a change that is meant.
"""

import os
from pathlib import Path

import orjson
import pytest

from tests import ROOT
from tests.cluster import Cluster, Node
from tests.device import Json

FOLDER = ROOT / "tests" / "golden"
RECORD = os.environ.get("GOLDEN") == "record"
VOLATILE = {"joinedAt", "logId", "requestId"}


@pytest.fixture(scope="module")
async def node(cluster: Cluster) -> Node:
    return await cluster.start(MAX_PARTICIPANTS="3")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
async def test_the_legacy_contract_is_kept(cluster: Cluster, node: Node, path: Path) -> None:
    steps = orjson.loads(path.read_bytes())  # noqa: ASYNC240  (nothing else runs here)
    answers = [await answer(cluster, node, step) for step in steps]
    if RECORD:
        recorded = [{**step, **answer} for step, answer in zip(steps, answers, strict=True)]
        path.write_bytes(  # noqa: ASYNC240
            orjson.dumps(recorded, option=orjson.OPT_INDENT_2) + b"\n"
        )
    for number, (step, got) in enumerate(zip(steps, answers, strict=True)):
        expected = {"status": step["status"], "body": step["body"]}
        assert got == expected, f"step {number}: {step['method']} {step['path']}"


async def answer(cluster: Cluster, node: Node, step: Json) -> Json:
    token = cluster.token(step["user"]) if "user" in step else None
    async with node.rest(token) as rest:
        response = await rest.request(step["method"], step["path"], json=step.get("json"))
    return {"status": response.status_code, "body": steady(response.json())}


def steady(value: object) -> object:
    """The value without what differs from run to run."""
    if isinstance(value, list):
        return [steady(item) for item in value]
    if not isinstance(value, dict):
        return value
    by_server = str(value.get("eventType", "")).startswith("participant.")
    volatile = VOLATILE | ({"eventId", "when"} if by_server else set())
    if "budgets" in value:  # numbers of memberships
        volatile |= {"nextKey"}
    return {key: "…" if key in volatile else steady(item) for key, item in value.items()}


def test_there_are_transcripts_of_all_that_legacy_clients_do() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} >= {
        "happy-path",
        "duplicate",
        "mismatch",
        "partial-batch",
        "long-poll",
        "join-leave",
        "snapshot",
    }
