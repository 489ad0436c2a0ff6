"""`/metrics`: what this hub has counted and what it has now, for Prometheus.

`METRICS` is the one table of them: names, labels, meanings, and where each is read. Nothing is kept
here: values are read when somebody asks (`readings`), for each worker process of the server, and
every series says which `worker` it is of. They are never added up: a worker that is deaf or late
shows as itself, and one that is replaced begins anew, which Prometheus knows how to treat.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeAlias

import orjson
from prometheus_client import ProcessCollector, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric as Family,
)
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.auth.token_cache import CachedTokens
from api.http.edge import Edge
from api.telemetry.siblings import Siblings
from hub.hub import Census, Hub
from hub.measures import Histogram
from storage.objects.photos import Photos
from storage.postgres.database import Database
from storage.redis.bus import RedisBus
from storage.redis.cluster_bus import ClusterBus

PREFIX = "budget_hub_"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
# By the values of the labels, in their order.
Values: TypeAlias = Mapping[tuple[str, ...], float | Histogram]
# As nodes answer each other, in JSON: by name, label values and a number, or counts and a sum.
Reading: TypeAlias = dict[str, list[tuple[list[str], Any]]]


@dataclass(frozen=True)
class Sources:
    """Where the values are read. `bus` is None for a single node; `workers` is how many this server
    should have."""

    hub: Hub
    database: Database
    bus: RedisBus | ClusterBus | None
    photos: Photos
    tokens: CachedTokens
    edge: Edge
    workers: int
    lag_s: Histogram
    lost_lines: Callable[[], int]  # of the log


class Moment(NamedTuple):
    """What costs something to find out, found out once for all metrics."""

    sources: Sources
    census: Census
    process: Mapping[str, float]


class Metric(NamedTuple):
    """`name` is without prefix and `_total`. `tells` is what one learns from it."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    tells: str
    read: Callable[[Moment], Values]

    @property
    def series(self) -> str:
        """The name as it stands in rules; histograms add `_bucket`, `_sum` and `_count`."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


def _one(value: float | Histogram) -> Values:
    return {(): value}


def _by(counts: Mapping[str, float], *always: str) -> Values:
    """By one label; the values `always` there are zero at first, so that a rate sees the first."""
    return {(key,): value for key, value in {**dict.fromkeys(always, 0), **counts}.items()}


def _by_two(counts: Mapping[tuple[str, str], float], *always: tuple[str, str]) -> Values:
    labelled: dict[tuple[str, ...], float | Histogram] = dict.fromkeys(always, 0)
    labelled.update(counts.items())
    return labelled


def _pools(take: Callable[[Any], float]) -> Callable[[Moment], Values]:
    return lambda of: {(name,): take(use) for name, use in of.sources.database.pools().items()}


def _process(name: str) -> Callable[[Moment], Values]:
    # Not on every system.
    return lambda of: _one(of.process[name]) if name in of.process else {}


_PROCESS = ProcessCollector(registry=None)
# What a schema that is not ours, missing rights and a damaged database give.
_DEFECTS = ("42P01", "42703", "42883", "42501", "XX000", "XX001", "XX002")
_CONNECTIONS = {"Session": "socket", "Poll": "poll", "EventStream": "stream"}

METRICS: Sequence[Metric] = (
    # Are devices getting their events, and how fast?
    Metric(
        "delivery_seconds",
        "histogram",
        (),
        "From the writing of an event's log row to its local write to a follower's wire, once for"
        " each follower that was live",
        "How fast devices get their events, on whatever node they are; P7 allows 2 s. Its count is"
        " how many events went out. Without the bus it is about a second",
        lambda of: _one(of.sources.hub.measures.delivery_s),
    ),
    Metric(
        "fed_events",
        "counter",
        ("source",),
        "Events that feeds of this worker got from its own `commit`, from the `bus`, or late from"
        " the `log`",
        "What the sweeper and gaps had to fetch; `log` is next to nothing while the bus works",
        lambda of: _by(of.sources.hub.measures.fed, "commit", "bus", "log"),
    ),
    Metric(
        "gaps_filled",
        "counter",
        (),
        "Times that a feed read what it had missed from the log",
        "Lost or overtaken messages; a few at each reconnection of the bus are normal",
        lambda of: _one(of.sources.hub.measures.gaps_filled),
    ),
    Metric(
        "sweeps",
        "counter",
        ("outcome",),
        "Comparisons of the feeds with the log: `clean`, `found` one behind, or `failed` because"
        " it could not be read",
        "Whether the safety net under the bus works, and whether anything falls into it",
        lambda of: _by(of.sources.hub.measures.sweeps, "clean", "found", "failed"),
    ),
    Metric(
        "swept_behind_feeds",
        "counter",
        (),
        "Feeds that a sweep found behind their log",
        "How much of it",
        lambda of: _one(of.sources.hub.measures.swept_behind),
    ),
    # Who is here.
    Metric(
        "connections",
        "gauge",
        ("kind",),
        "Who is connected: a `socket`, a long-`poll` that waits, a `stream` of Server-Sent Events",
        "Load, and whether clients could stay after a deploy",
        lambda of: _by(
            {_CONNECTIONS.get(name, name): n for name, n in of.census.connections.items()},
            *_CONNECTIONS.values(),
        ),
    ),
    Metric(
        "subscriptions",
        "gauge",
        ("state",),
        "Followers of budgets: `live`, `lagging` because their peer does not take what was written,"
        " or `catching up` from the log",
        "`lagging` are slow peers; many `catching up` for long: the log is slow to read",
        lambda of: _subscriptions(of),
    ),
    Metric(
        "feeds",
        "gauge",
        (),
        "Budgets that somebody follows here",
        "How many channels the bus has for this worker",
        lambda of: _one(of.census.feeds),
    ),
    # Events in.
    Metric(
        "events",
        "counter",
        ("type", "verdict"),
        "Submitted events by type and verdict: `accepted`, `duplicate`, `conflict`, `rejected`;"
        " `invalid` is the type of what was not of the documented shape",
        "What people do; many duplicates: clients lose answers; many conflicts: stale clients",
        lambda of: _by_two(of.sources.hub.measures.verdicts),
    ),
    Metric(
        "rejected_events",
        "counter",
        ("code",),
        "Rejected events by the code of the error",
        "`UNAVAILABLE` and `BUSY`: the hub could not take them, clients send them again;"
        " `INTERNAL_SERVER_ERROR`: a defect; others: what clients do wrong",
        lambda of: _by(
            of.sources.hub.measures.rejections, "UNAVAILABLE", "BUSY", "INTERNAL_SERVER_ERROR"
        ),
    ),
    Metric(
        "waiting_events",
        "gauge",
        (),
        "Events in the queue before the committer",
        "Zero or little; at 20,000 the answer is `BUSY`",
        lambda of: _one(of.census.waiting_events),
    ),
    Metric(
        "batch_events",
        "histogram",
        (),
        "Events decided in one transaction that wrote",
        "How well group commit works: it grows with the load",
        lambda of: _one(of.sources.hub.measures.batch_events),
    ),
    Metric(
        "commit_seconds",
        "histogram",
        (),
        "From the lock to the end of COMMIT, of transactions that wrote",
        "How fast Postgres is, its disk and its synchronous replica included",
        lambda of: _one(of.sources.hub.measures.commit_s),
    ),
    Metric(
        "commit_failures",
        "counter",
        ("cause",),
        "Transactions that did not commit: `disconnected`, out of time or of room, a lost `race`, a"
        " budget `held` by another node, `bad data`, a `defect`. Each is tried again or answered",
        "`disconnected`: Postgres is away, or its disk is full; `bad data` and `defect`: look into"
        " the log; the others are normal while several nodes write to one budget",
        lambda of: _by(
            of.sources.hub.measures.commit_failures,
            *("disconnected", "race", "held", "bad data", "defect"),
        ),
    ),
    # What it needs.
    Metric(
        "bus_connected",
        "gauge",
        (),
        "1 while this worker hears itself through Redis, else 0; absent without `REDIS_URL`",
        "0: this node is deaf; it delivers from the log, up to two seconds later",
        lambda of: {} if of.sources.bus is None else _one(float(of.sources.bus.connected)),
    ),
    Metric(
        "bus_losses",
        "counter",
        ("cause",),
        "Connections to Redis that were lost: by an `error`, or `deaf`, which is silence",
        "A bus that comes and goes",
        lambda of: {} if of.sources.bus is None else _by(of.sources.bus.losses, "error", "deaf"),
    ),
    Metric(
        "bus_frames",
        "counter",
        ("outcome",),
        "Frames of events `published`, `received` from other nodes, or `dropped` because the bus"
        " was away or too slow",
        "Traffic between nodes; what is dropped the others find in the log",
        lambda of: (
            _by(of.sources.bus.frames, "published", "received", "dropped") if of.sources.bus else {}
        ),
    ),
    Metric(
        "pool_connections",
        "gauge",
        ("pool",),
        "Connections to Postgres that are in use, by what for: `commits`, `gaps`, `feeds`,"
        " `watch`, `rest`, `owners`, `housekeeping`",
        "How near a pool is to its end",
        _pools(lambda use: use.used),
    ),
    Metric(
        "pool_connections_max",
        "gauge",
        ("pool",),
        "How many the pool may have",
        "The end",
        _pools(lambda use: use.size_max),
    ),
    Metric(
        "pool_waiting",
        "gauge",
        ("pool",),
        "Who waits for a connection of the pool: there is none, or their user has a share already",
        "Anything for long: statements are slow or held up, or one user asks for too much",
        _pools(lambda use: use.waiting),
    ),
    Metric(
        "pool_timeouts",
        "counter",
        ("pool",),
        "Who got none within 5 s (`feeds`, `gaps`: 30), and was answered `BUSY` or `UNAVAILABLE`",
        "The pool was at its end, or Postgres silent",
        _pools(lambda use: use.timeouts),
    ),
    Metric(
        "storage_defects",
        "counter",
        ("sqlstate",),
        "Statements that Postgres refused for a reason nobody foresaw, by its SQLSTATE; `driver` is"
        " what asyncpg refused itself",
        "A defect, of ours or of the database: `/readyz` names it too, the log has the traceback",
        lambda of: _by(of.sources.database.defects.counts, *_DEFECTS),
    ),
    Metric(
        "photo_calls",
        "counter",
        ("call", "outcome"),
        "Calls of the photo store: `look`, `publish`, `delete`, `check`; `done` or `failed`",
        "Whether S3, or the disk, works",
        lambda of: _by_two(of.sources.photos.calls, ("check", "done"), ("check", "failed")),
    ),
    Metric(
        "photo_store_up",
        "gauge",
        (),
        "Whether the photo store answered when last asked",
        "0: `/readyz` says `degraded`, and photos are answered `PHOTOS_UNAVAILABLE`",
        lambda of: _one(float(of.sources.photos.up)),
    ),
    # Who is let in.
    Metric(
        "tokens",
        "counter",
        ("outcome",),
        "Tokens that came: `remembered` from before, `verified`, `refused`, or `unknown` because"
        " nobody could tell",
        "The hit rate of the cache; `refused`: a wrong secret, project or clock, or an attack;"
        " `unknown`: the issuer's keys are out of reach",
        lambda of: _by(of.sources.tokens.outcomes, "remembered", "verified", "refused", "unknown"),
    ),
    Metric(
        "refusals",
        "counter",
        ("door", "code"),
        "Requests (`rest`) and frames (`socket`) that were answered with an error, by its code",
        "What clients do wrong, who is limited, what fails",
        lambda of: _refusals(of),
    ),
    # The process.
    Metric(
        "workers",
        "gauge",
        (),
        "How many worker processes this server should have; each of them tells it",
        "Fewer that tell it than it says: one hangs",
        lambda of: _one(of.sources.workers),
    ),
    Metric(
        "loop_lag_seconds",
        "histogram",
        (),
        "How late the event loop was, measured four times a second",
        "Above some tens of milliseconds: the worker has more than its core can do, or something"
        " blocks it",
        lambda of: _one(of.sources.lag_s),
    ),
    Metric(
        "log_lines_lost",
        "counter",
        (),
        "Lines of this worker's log that could not be written, or came while too many waited",
        "Who reads the log is gone or too slow, or its disk is full. The worker goes on without",
        lambda of: _one(of.sources.lost_lines()),
    ),
    Metric(
        "process_cpu_seconds",
        "counter",
        (),
        "Processor time",
        "A worker can use one core",
        _process("process_cpu_seconds"),
    ),
    Metric(
        "process_resident_memory_bytes",
        "gauge",
        (),
        "Memory",
        "Follows the number of sockets; anything else that grows is a defect",
        _process("process_resident_memory_bytes"),
    ),
    Metric(
        "process_open_fds",
        "gauge",
        (),
        "Open files, sockets among them",
        "How near the process is to `ulimit -n`",
        _process("process_open_fds"),
    ),
)


def routes(sources: Sources, siblings: Siblings) -> list[Route]:
    async def metrics(request: Request) -> Response:
        told = await siblings.told()
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Page({**told, siblings.number: reading(sources)}))
        return Response(encode(registry), media_type=content_type)

    return [Route("/metrics", metrics)]


def reading(sources: Sources) -> Reading:
    """Everything this worker has to tell."""
    process = {family.name: family.samples[0].value for family in _PROCESS.collect()}
    moment = Moment(sources, sources.hub.census(), process)
    return {
        metric.name: [(list(labels), _plain(value)) for labels, value in values.items()]
        for metric in METRICS
        if (values := metric.read(moment))
    }


def table() -> str:
    """All of them as a Markdown table, as infra/README.md shows them."""
    lines = ["| metric | kind | labels | what it is | what it tells |", "|---|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(
            f"| `{metric.series}` | {metric.kind} | {labels} | {metric.meaning} | {metric.tells} |"
        )
    return "\n".join(lines) + "\n"


class _Page(Collector):
    def __init__(self, readings: Mapping[int, Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Family]:
        for metric in METRICS:
            family = _FAMILIES[metric.kind](
                PREFIX + metric.name, metric.meaning, labels=["worker", *metric.labels]
            )
            for number, told in sorted(self._readings.items()):
                for labels, value in told.get(metric.name, []):
                    _add(family, [str(number), *labels], value)
            if family.samples:
                yield family


_FAMILIES: Mapping[Kind, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _add(family: Any, labels: Sequence[str], value: Any) -> None:
    if not isinstance(family, HistogramMetricFamily):
        family.add_metric(labels, value)
        return
    bounds = [*map(floatToGoString, value["bounds"]), "+Inf"]
    buckets = list(zip(bounds, accumulate(value["counts"]), strict=True))
    family.add_metric(labels, buckets, value["sum"])


def _plain(value: float | Histogram) -> Any:
    if isinstance(value, Histogram):
        return {"bounds": value.bounds, "counts": list(value.counts), "sum": value.sum}
    return value


def _subscriptions(of: Moment) -> Values:
    census = of.census
    catching_up = census.followers - census.live - census.lagging
    return _by({"live": census.live, "lagging": census.lagging, "catching up": catching_up})


def _refusals(of: Moment) -> Values:
    told = {"rest": of.sources.edge.refusals, "socket": of.sources.hub.measures.refusals}
    return {(door, code): n for door, codes in told.items() for code, n in codes.items()}


def told_as_json(sources: Sources) -> bytes:
    """What the other nodes of this server ask for."""
    return orjson.dumps(reading(sources))
