"""The history checker: what clients sent, were told and saw, held against the log.

A `History` is recorded while a hub is tormented, all on one clock. When everything is quiet again
`check` reads it once, with the log and the snapshots, and raises at the first thing that must not
be; its work is linear in the history's length. What it finds, by `Violation.rule`:

| rule        | it is broken by                                                                 |
|-------------|---------------------------------------------------------------------------------|
| `dense`     | a log that is not 1..n, or whose rows are not what they say they are (P2)       |
| `twice`     | an event that stands in the log more than once (P3)                             |
| `foreign`   | an event in the log that nobody sent, or with other content                     |
| `lost`      | an accepted event that is not in the log as the verdict says (P1, P11)          |
| `verdicts`  | verdicts about one event that do not agree, `duplicate` aside (P3)              |
| `refused`   | an event that was refused and yet is in the log (P4)                            |
| `time`      | an event sent after another's acceptance was known, but ordered before it (P2)  |
| `versions`  | a record whose accepted versions are not the chain 1, 2, 3 … (P5)               |
| `contest`   | a stale edit that won, or a conflict about a version that nobody won (P5)       |
| `record`    | a verdict with another record than the log makes (P5)                           |
| `order`     | an observer that was not given every event after its cursor, in order, once     |
|             | (P2), or that was not given the last ones (P7)                                  |
| `bytes`     | an observer that was given something else than what is in the log (P6)          |
| `replay`    | a log whose events do not make the digests they carry (P6)                      |
| `state`     | a snapshot that is not what the log makes (P6)                                  |
| `broken`    | anything else that a device refused to believe                                  |

An event without a final verdict may be in the log or not, but never twice. Histories with events
of the server's own making (`participant.*`) are not for this checker.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, NoReturn, TypeAlias

import orjson

from loadtest.replica import Diverged, Replica
from tests.device import Frame, Json, raw_events

EventKey: TypeAlias = tuple[str, str]  # budgetId, eventId


class Violation(AssertionError):
    """The hub broke `rule`; the message tells the story of the first event that shows it."""

    def __init__(self, rule: str, what: str, story: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([f"{rule}: {what}", *story]))
        self.rule = rule


class LogRow(NamedTuple):
    """`event` is the stream event as it is stored."""

    budget_id: str
    sequence: int
    event_id: str
    version: int
    event: bytes


@dataclass
class _Sent:
    """One event, however often it was sent."""

    event: Json
    user_id: str
    at_s: list[float] = field(default_factory=list)
    verdicts: list[tuple[float, Json]] = field(default_factory=list)

    @property
    def accepted(self) -> list[tuple[float, Json]]:
        return [(at_s, v) for at_s, v in self.verdicts if v["status"] == "accepted"]


class _Seen(NamedTuple):
    at_s: float
    sequence: int
    event_id: str
    raw: bytes


@dataclass
class _Watch:
    """One observer of one budget: what it was given, and between that the keys it asked for."""

    observer: str
    budget_id: str
    given: list[_Seen | int] = field(default_factory=list)
    left: bool = False


@dataclass
class Figures:
    """How much was checked. `resent` counts repetitions of an event that was sent before."""

    sent: int = 0
    resent: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    retryable: int = 0
    unknown: int = 0  # events without a final verdict
    budgets: int = 0
    contested: int = 0  # versions that several events wanted to follow
    observers: int = 0
    observed: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{number} {name}" for name, number in vars(self).items())


class History:
    """Times are of `time.monotonic`."""

    def __init__(self) -> None:
        self._sent: dict[EventKey, _Sent] = {}
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._broken: list[tuple[str, str]] = []

    # What happened.

    def invoked(self, user_id: str, event: Json, at_s: float) -> None:
        """A device is about to send the event, for the first time or again."""
        sent = self._sent.setdefault(_key(event), _Sent(event, user_id))
        assert (sent.user_id, sent.event) == (user_id, event), "a test must not change an event"
        sent.at_s.append(at_s)

    def answered(self, verdict: Json, at_s: float) -> None:
        """A device was told what became of an event."""
        sent = self._sent.get(_key(verdict))
        if sent is None:
            raise Violation("verdicts", f"about an event that nobody sent: {verdict}")
        sent.verdicts.append((at_s, verdict))

    def subscribed(self, observer: str, budget_id: str, key: int) -> None:
        self._watch(observer, budget_id).given.append(key)

    def saw(self, observer: str, budget_id: str, raw: bytes, at_s: float) -> None:
        """An observer was given an event; `raw` are the event's own bytes."""
        body = orjson.loads(raw)
        seen = _Seen(at_s, body["sequence"], body["eventId"], raw)
        self._watch(observer, budget_id).given.append(seen)

    def left(self, observer: str) -> None:
        """The observer went away: it does not have to have seen the last events."""
        for watch in self._watches.values():
            if watch.observer == observer:
                watch.left = True

    def broke(self, observer: str, how: str) -> None:
        """A device raised `Broken`."""
        self._broken.append((observer, how))

    def received(self, device: str, frames: Iterable[Frame]) -> None:
        """Everything that arrived on one connection of a device."""
        for frame in frames:
            body = frame.body
            match body["type"]:
                case "results":
                    for verdict in body["results"]:
                        self.answered(verdict, frame.at_s)
                case "subscribed":
                    self.subscribed(device, body["budgetId"], body["key"])
                case "events":
                    for raw in raw_events(frame.raw.decode()):
                        self.saw(device, body["budgetId"], raw, frame.at_s)

    # What it must have been.

    def check(self, log: Iterable[LogRow], snapshots: Mapping[str, Sequence[Json]]) -> Figures:
        """Raises `Violation`. `log` is whole and in order of budget and sequence; `snapshots` are
        those of each budget, at least one, taken when nothing happened any more."""
        budgets = {
            budget_id: list(rows) for budget_id, rows in groupby(log, lambda row: row.budget_id)
        }
        places: dict[EventKey, LogRow] = {}
        for rows in budgets.values():
            self._check_log(rows, places)
        for key, sent in self._sent.items():
            self._check_verdicts(sent, places.get(key))
        conflicts: dict[str, list[_Sent]] = {budget_id: [] for budget_id in budgets}
        for sent in self._sent.values():
            if any(verdict["status"] == "conflict" for _, verdict in sent.verdicts):
                conflicts.setdefault(sent.event["budgetId"], []).append(sent)
        contested = 0
        for budget_id, rows in budgets.items():
            self._check_real_time(rows)
            contested += self._check_records(rows, conflicts[budget_id], snapshots[budget_id])
        for watch in self._watches.values():
            self._check_watch(watch, budgets.get(watch.budget_id, []))
        for observer, how in self._broken:
            raise Violation("broken", f"{observer} was given {how}")
        return self._figures(len(budgets), contested)

    def refusals(self) -> list[Json]:
        """The final rejections: for whoever sends nothing that could be rejected."""
        return [
            verdict
            for sent in self._sent.values()
            for _, verdict in sent.verdicts
            if verdict["status"] == "rejected" and not verdict["error"]["retryable"]
        ]

    def _check_log(self, rows: Sequence[LogRow], places: dict[EventKey, LogRow]) -> None:
        for due, row in enumerate(rows, 1):
            key = row.budget_id, row.event_id
            body = orjson.loads(row.event)
            if row.sequence != due:
                self._fail("dense", f"sequence {row.sequence} where {due} is next", key)
            stored = (row.budget_id, row.sequence, row.event_id, row.version)
            if stored != (*(body[name] for name in _NAMES), body.get("version")):
                self._fail("dense", f"the row {stored} holds another event: {body}", key)
            if key in places:
                first = places[key].sequence
                self._fail("twice", f"in the log as {first} and {row.sequence}", key)
            places[key] = row
            sent = self._sent.get(key)
            if sent is None:
                self._fail("foreign", f"nobody sent {body}", key)
            wanted = {name: v for name, v in sent.event.items() if name != "version"}
            wanted["actorId"] = sent.user_id
            for name, value in wanted.items():
                if body.get(name) != value:
                    what = f"{name} was sent as {value!r} and stored as {body.get(name)!r}"
                    self._fail("foreign", what, key)

    def _check_verdicts(self, sent: _Sent, row: LogRow | None) -> None:
        key = _key(sent.event)
        accepted = sent.accepted
        if accepted:
            (_, first), *others = accepted
            for _, other in others:
                if _plain(other) != _plain(first):
                    self._fail("verdicts", "accepted in two ways", key)
            if row is None:
                self._fail("lost", f"accepted as {first['sequence']}, not in the log", key)
            told = first["sequence"], first.get("version")
            if told != (row.sequence, row.version):
                stored = f"in the log as {row.sequence}, version {row.version}"
                self._fail("lost", f"accepted as {told[0]}, version {told[1]}; {stored}", key)
        for _, verdict in sent.verdicts:
            if _refused(verdict):
                if accepted:
                    self._fail("verdicts", "accepted and refused", key)
                if row is not None:
                    self._fail("refused", f"refused, and in the log as {row.sequence}", key)

    def _check_real_time(self, rows: Sequence[LogRow]) -> None:
        """From the end: nothing may have been sent after a later sequence was acknowledged."""
        known_s, known_key = float("inf"), ("", "")
        for row in reversed(rows):
            key = row.budget_id, row.event_id
            sent = self._sent[key]
            if sent.at_s[0] > known_s:
                what = f"{row.sequence} was sent after {known_key[1]} had been accepted"
                self._fail("time", what, key, known_key)
            if accepted := sent.accepted:
                at_s = min(at_s for at_s, _ in accepted)
                if at_s < known_s:
                    known_s, known_key = at_s, key

    def _check_records(
        self, rows: Sequence[LogRow], conflicts: Sequence[_Sent], snapshots: Sequence[Json]
    ) -> int:
        """Versions, conflicts, verdicts' records and the final state; how many were contested."""
        budget_id = rows[0].budget_id
        replica = Replica(budget_id)
        versions: dict[str, int] = {}
        records: dict[tuple[str, int], Json] = {}  # by id and version
        for row in rows:
            key = budget_id, row.event_id
            sent = self._sent[key]
            body = orjson.loads(row.event)
            record_id, kind = body["recordId"], body["eventType"].partition(".")[0]
            before = versions.get(record_id, 0)
            if row.version != before + 1:
                self._fail("versions", f"version {row.version} of {record_id} after {before}", key)
            stated = sent.event.get("version", 0)
            if stated != before:
                self._fail("contest", f"stated version {stated}, changed version {before}", key)
            versions[record_id] = before + 1
            try:
                replica.apply(body)
            except (Diverged, KeyError) as diverged:
                self._fail("replay", repr(diverged), key)
            record = replica.records.get((kind, record_id))
            if record is not None:
                records[record_id, before + 1] = record
                for _, verdict in sent.accepted:
                    if verdict["record"] != record:
                        self._fail("record", f"told {verdict['record']}, is {record}", key)
        contested: set[tuple[str, int]] = set()
        for sent in conflicts:
            contested |= self._check_conflicts(sent, versions, records)
        for snapshot in snapshots:
            try:
                difference = replica.difference(Replica.from_snapshot(snapshot))
            except Diverged as diverged:
                difference = str(diverged)
            if difference is not None:
                raise Violation("state", f"{budget_id}, the log against a snapshot: {difference}")
        return len(contested)

    def _check_conflicts(
        self,
        sent: _Sent,
        versions: Mapping[str, int],
        records: Mapping[tuple[str, int], Json],
    ) -> set[tuple[str, int]]:
        """The versions, by record, that somebody else must have won, and did."""
        key, stated = _key(sent.event), sent.event["version"]
        contested: set[tuple[str, int]] = set()
        for _, verdict in sent.verdicts:
            if verdict["status"] != "conflict":
                continue
            current = verdict["currentRecord"]
            record_id, version = current["id"], current["version"]
            won = versions.get(record_id, 0)
            if not stated < version <= won and not current.get("deleted"):
                what = f"conflict at version {stated} with {version}, the last one is {won}"
                self._fail("contest", what, key)
            record = records.get((record_id, version))
            if record is not None and record != current:
                self._fail("record", f"in conflict with {current}, is {record}", key)
            contested.add((record_id, stated))
        return contested

    def _check_watch(self, watch: _Watch, rows: Sequence[LogRow]) -> None:
        cursor: int | None = None
        for seen in watch.given:
            if isinstance(seen, int):
                if seen != (seen if cursor is None else cursor):
                    raise Violation("order", f"{watch.observer} resumed at {seen}, not {cursor}")
                cursor = seen
                continue
            key = watch.budget_id, seen.event_id
            if cursor is None or seen.sequence != cursor + 1:
                self._fail("order", f"{watch.observer} saw {seen.sequence} after {cursor}", key)
            if seen.sequence > len(rows):
                self._fail("bytes", f"{watch.observer} saw {seen.sequence}: not in the log", key)
            if seen.raw != rows[seen.sequence - 1].event:
                stored = rows[seen.sequence - 1].event
                what = f"{watch.observer} saw {seen.raw!r}, in the log is {stored!r}"
                self._fail("bytes", what, key)
            cursor = seen.sequence
        if cursor != len(rows) and not watch.left:
            what = f"{watch.observer} saw {cursor} as the last of {len(rows)}"
            self._fail("order", what, *_keys_after(rows, cursor or 0))

    def _watch(self, observer: str, budget_id: str) -> _Watch:
        return self._watches.setdefault((observer, budget_id), _Watch(observer, budget_id))

    def _figures(self, budgets: int, contested: int) -> Figures:
        figures = Figures(budgets=budgets, contested=contested)
        for sent in self._sent.values():
            figures.sent += 1
            figures.resent += len(sent.at_s) - 1
            figures.accepted += bool(sent.accepted)
            verdicts = [verdict for _, verdict in sent.verdicts]
            figures.duplicates += sum("duplicate" in verdict for verdict in verdicts)
            figures.conflicts += any(verdict["status"] == "conflict" for verdict in verdicts)
            figures.retryable += sum(not _final(verdict) for verdict in verdicts)
            figures.unknown += not any(_final(verdict) for verdict in verdicts)
        figures.observers = len({watch.observer for watch in self._watches.values()})
        for watch in self._watches.values():
            figures.observed += sum(isinstance(seen, _Seen) for seen in watch.given)
        return figures

    def _fail(self, rule: str, what: str, *keys: EventKey) -> NoReturn:
        raise Violation(rule, what, [line for key in keys for line in self._story(key)])

    def _story(self, key: EventKey) -> list[str]:
        """Everything that is known about one event, in the order it happened."""
        moments: list[tuple[float, str]] = []
        sent = self._sent.get(key)
        if sent is not None:
            moments += [(at_s, f"sent by {sent.user_id}") for at_s in sent.at_s]
            moments += [(at_s, f"told {verdict}") for at_s, verdict in sent.verdicts]
        for watch in self._watches.values():
            for seen in watch.given:
                if isinstance(seen, _Seen) and (watch.budget_id, seen.event_id) == key:
                    moments.append((seen.at_s, f"seen by {watch.observer} as {seen.sequence}"))
        title = f"event {key[1]} of budget {key[0]}: {None if sent is None else sent.event}"
        return [title, *(f"{at_s:.6f} {what}" for at_s, what in sorted(moments))]


_NAMES = ("budgetId", "sequence", "eventId")


def _key(item: Json) -> EventKey:
    return item["budgetId"], item["eventId"]


def _keys_after(rows: Sequence[LogRow], cursor: int) -> list[EventKey]:
    return [(row.budget_id, row.event_id) for row in rows[cursor : cursor + 1]]


def _plain(verdict: Json) -> Json:
    return {name: value for name, value in verdict.items() if name != "duplicate"}


def _final(verdict: Json) -> bool:
    return not (verdict["status"] == "rejected" and verdict["error"]["retryable"])


def _refused(verdict: Json) -> bool:
    return _final(verdict) and verdict["status"] != "accepted"
