"""Two real nodes and a collector: one trace, and a client's own id, from a frame to who sees it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest

from loadtest.cluster import Port
from tests.cluster import Cluster, Node, all_say, until
from tests.device import Json, Refused, budget_create, connect, expense_add, expense_edit, new_id
from tests.lateness import TooLate, again_if_too_late
from tests.otlp import Collector, collecting

DEADLINE_S = 30.0
CALLED = "budget_hub.correlation_id"
OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "50", "LOG_LEVEL": "debug"}  # the delay in ms


class Traced(NamedTuple):
    """`unheard` tells a collector that is not there."""

    nodes: list[Node]
    unheard: Node
    collector: Collector


@pytest.fixture(scope="module")
async def traced(cluster: Cluster) -> AsyncIterator[Traced]:
    port = Port()  # where nobody listens
    nowhere = f"http://127.0.0.1:{port.number}"
    with closing(port), collecting() as (address, collector):
        *nodes, unheard = await asyncio.gather(
            cluster.start(OTEL_EXPORTER_OTLP_ENDPOINT=address, **OFTEN),
            cluster.start(OTEL_EXPORTER_OTLP_ENDPOINT=address, **OFTEN),
            cluster.start(OTEL_EXPORTER_OTLP_ENDPOINT=nowhere, OTEL_BSP_SCHEDULE_DELAY="50"),
        )
        await all_say(nodes, cluster.token("ann"), "ok")  # on the bus, which carries the context
        yield Traced(nodes, unheard, collector)
        await cluster.close()  # before the collector that it would miss


def lines(node: Node, correlation_id: str) -> list[dict[str, Any]]:
    """What the node's log says about it."""
    return [
        line
        for line in node.log()
        if correlation_id in (*line.get("correlation_ids", ()), line.get("correlation_id"))
    ]


@again_if_too_late
async def test_a_socket_s_frame_is_followed_to_the_observer_on_another_node(
    cluster: Cluster, traced: Traced
) -> None:
    here, there = traced.nodes
    budget_id, token, called = new_id(), cluster.token("ann"), f"tap-{new_id()}"
    async with connect(here.url, token) as sender, connect(there.url, token) as observer:
        await sender.accepted(budget_create(budget_id))
        await observer.subscribe(budget_id)
        await observer.reached(budget_id, 1)
        frame = {"type": "events", "events": [expense_add(budget_id)], "correlationId": called}
        answer = await sender_asks(sender, frame)
        assert answer["results"][0]["status"] == "accepted"
        await observer.reached(budget_id, 2)
        seen = live(observer.of_type("events")[-1])
        assert seen["correlationIds"] == {"2": called}
    spans = traced.collector

    def of_it(name: str) -> list[Any]:
        submits = [s for s in spans.named("submit") if s.attributes.get(CALLED) == called]
        return [s for s in spans.named(name) if submits and s.trace == submits[0].trace]

    await until(lambda: bool(of_it("deliver")), DEADLINE_S)
    await until(lambda: bool(of_it("publish") and of_it("batch")), DEADLINE_S)
    [submit], [batch], [commit], [publish], [deliver] = map(
        of_it, ("submit", "batch", "commit", "publish", "deliver")
    )
    assert (batch.parent, commit.parent) == (submit.id, batch.id)
    assert (publish.parent, deliver.parent) == (submit.id, publish.id)
    assert {span.node for span in (submit, batch, commit, publish)} == {submit.node}
    assert deliver.node != submit.node
    await until(lambda: bool(lines(there, called)), DEADLINE_S)
    [line] = lines(there, called)
    assert (line["event"], line["level"], line["source"]) == ("events delivered", "debug", "bus")


def live(frame: Json) -> Json:
    """The frame, if it came by the bus. A sweep may have found the events before: what is read from
    the log tells of no correlation. Raises `TooLate`."""
    if "correlationIds" not in frame:
        raise TooLate("the sweeper was quicker than the bus")
    return frame


async def sender_asks(device: Any, frame: Json) -> Json:
    """An `events` frame with more than `Device.post` says."""
    request_id = 1_000_000
    device.expect(request_id, frame["events"], None)
    await device.send({**frame, "id": request_id})
    return {"results": await device.verdicts(request_id)}


@again_if_too_late
async def test_a_request_s_own_id_goes_with_its_events_and_one_made_up_does_not(
    cluster: Cluster, traced: Traced
) -> None:
    here, there = traced.nodes
    budget_id, token = new_id(), cluster.token("ann")
    called, refused_as = f"tap-{new_id()}", f"tap-{new_id()}"
    async with connect(there.url, token) as observer, here.rest(token) as rest:
        creation = {"events": [budget_create(budget_id)]}
        made_up = (await rest.post("/events", json=creation)).headers["X-Request-Id"]
        await observer.subscribe(budget_id)
        await observer.reached(budget_id, 1)
        named = {"X-Request-Id": called}
        await rest.post("/events", json={"events": [expense_add(budget_id)]}, headers=named)
        await rest.post("/events", json={"events": [expense_add(budget_id)]})
        await observer.reached(budget_id, 3)
        *_, second, third = observer.of_type("events")
        assert live(second)["correlationIds"] == {"2": called}
        assert "correlationIds" not in third
        # What is read from the log is what it was before.
        page = (await rest.get(f"/events?budgetId={budget_id}")).text
        assert "correlation" not in page
        assert called not in page
        stale = {"events": [expense_edit(budget_id, new_id(), 1)]}
        await rest.post("/events", json=stale, headers={"X-Request-Id": refused_as})
    await until(lambda: bool(lines(here, refused_as)), DEADLINE_S)
    [refused] = lines(here, refused_as)
    assert (refused["event"], refused["code"]) == ("event not accepted", "EXPENSE_NOT_EXISTS")
    spans = traced.collector
    await until(
        lambda: any(s.attributes.get(CALLED) == made_up for s in spans.named("submit")), DEADLINE_S
    )


@again_if_too_late
async def test_who_closes_the_account_leaves_by_events_that_carry_the_request_s_id(
    cluster: Cluster, traced: Traced
) -> None:
    here, there = traced.nodes
    budget_id, called = new_id(), f"tap-{new_id()}"
    async with (
        connect(there.url, cluster.token("ann")) as observer,
        here.rest(cluster.token(f"eve-{new_id()}")) as rest,
    ):
        await observer.accepted(budget_create(budget_id))
        await observer.subscribe(budget_id)
        assert (await rest.post(f"/budgets/{budget_id}/join")).status_code == 200
        closed = await rest.delete("/user", headers={"X-Request-Id": called})
        assert closed.status_code == 200
        await observer.reached(budget_id, 3)
        assert live(observer.of_type("events")[-1])["correlationIds"] == {"3": called}


async def test_a_frame_with_a_bad_id_is_refused_and_leaves_nothing_of_it_in_the_log(
    cluster: Cluster, traced: Traced
) -> None:
    here, _ = traced.nodes
    async with connect(here.url, cluster.token("ann")) as device:
        for bad in ("ann@example.org", "", "x" * 65, 7):
            frame = {"type": "events", "events": [budget_create(new_id())], "correlationId": bad}
            with pytest.raises(Refused, match="BAD_FRAME: correlationId"):
                await device.ask(frame)
        # And one that is refused for something else is named.
        with pytest.raises(Refused, match="BAD_REQUEST"):
            await device.ask({"type": "events", "events": [], "correlationId": "tap-4"})
    await until(lambda: bool(lines(here, "tap-4")), DEADLINE_S)
    assert "ann@example.org" not in here.err


async def test_p10_a_collector_that_is_away_costs_only_its_traces(
    cluster: Cluster, traced: Traced
) -> None:
    node = traced.unheard
    async with connect(node.url, cluster.token("ann")) as device:
        await device.accepted(budget_create(new_id()))
    assert await node.stop(DEADLINE_S) == 0
    said = [line["event"] for line in node.log() if line["level"] != "info"]
    assert set(said) <= {"collector of traces lost", "the last traces were not taken"}
    assert 1 <= len(said) <= 2
