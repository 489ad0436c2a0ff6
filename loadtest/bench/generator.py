"""The devices of the commit bench, in a process of their own.

Each budget has one device that writes, always with `window` frames of one event awaiting their
verdict, and further devices that only follow. Started as
`python -m loadtest.bench.generator`, with its plan as JSON on stdin; prints one JSON line.
"""

import asyncio
import json
import resource
import sys
import time
import uuid
from typing import Any

import uvloop

from loadtest.bench.fast_socket import FastSocket, connect


class Writer:
    """A device that adds an expense as soon as one of its verdicts arrives."""

    def __init__(self, budget_id: str, category_id: str) -> None:
        self.accepted = 0
        self.refused = 0
        self.ack_ms: list[float] = []
        self.socket: FastSocket | None = None
        self.sampling = False
        self.stopped = False
        self._sent_at: dict[int, float] = {}
        self._number = 0
        self._head = (
            f'"eventType":"expense.add","budgetId":"{budget_id}","categoryId":"{category_id}",'
            '"amount":"12.50","date":"2026-11-21","note":"weekly groceries","when":1795000000000'
        ).encode()

    def send(self) -> None:
        assert self.socket is not None
        self._number += 1
        self.socket.send(
            b'{"type":"events","id":%d,"events":[{"eventId":"%b","recordId":"%b",%b}]}'
            % (self._number, _uuid(), _uuid(), self._head)
        )
        if self.sampling:
            self._sent_at[self._number] = time.perf_counter()

    def received(self, text: bytes) -> None:
        if not text.startswith(b'{"type":"results"'):
            return
        if b'"status":"accepted"' in text:
            self.accepted += 1
        else:
            self.refused += 1
        if self._sent_at:
            number = int(text[23 : text.index(b",", 23)])
            sent_at = self._sent_at.pop(number, None)
            if sent_at is not None:
                self.ack_ms.append((time.perf_counter() - sent_at) * 1000)
        if not self.stopped:
            self.send()


class Follower:
    def __init__(self) -> None:
        self.delivered = 0

    def received(self, text: bytes) -> None:
        if text.startswith(b'{"type":"events"'):
            self.delivered += text.count(b'"sequence":')


def _uuid() -> bytes:
    return str(uuid.uuid4()).encode()


async def run(plan: dict[str, Any]) -> dict[str, float]:
    writers, followers = [], []
    for budget_id, category_id, head in plan["budgets"]:
        subscribe = b'{"type":"subscribe","budgetId":"%b","key":%d}' % (budget_id.encode(), head)
        writer = Writer(budget_id, category_id)
        writer.socket = await connect(plan["url"], plan["token"], writer.received)
        writer.socket.send(subscribe)
        writers.append(writer)
        for _ in range(plan["devices"] - 1):
            follower = Follower()
            (await connect(plan["url"], plan["token"], follower.received)).send(subscribe)
            followers.append(follower)
    await asyncio.sleep(0.5)
    for writer in writers:
        for _ in range(plan["window"]):
            writer.send()
    await asyncio.sleep(plan["warmup_s"])
    before, delivered = sum(w.accepted for w in writers), sum(f.delivered for f in followers)
    cpu_s, began_s = _cpu_s(), time.perf_counter()
    for writer in writers:
        writer.sampling = True
    await asyncio.sleep(plan["duration_s"])
    elapsed_s = time.perf_counter() - began_s
    accepted = sum(w.accepted for w in writers) - before
    delivered = sum(f.delivered for f in followers) - delivered
    cpu = (_cpu_s() - cpu_s) / elapsed_s
    for writer in writers:
        writer.stopped = True
    await asyncio.sleep(0.5)
    acks = sorted(ms for writer in writers for ms in writer.ack_ms)
    return {
        "accepted_per_s": accepted / elapsed_s,
        "delivered_per_s": delivered / elapsed_s,
        "refused": sum(w.refused for w in writers),
        "cpu": cpu,
        "ack_p50_ms": acks[len(acks) // 2],
        "ack_p99_ms": acks[len(acks) * 99 // 100],
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.write(json.dumps(runner.run(run(json.load(sys.stdin)))) + "\n")
