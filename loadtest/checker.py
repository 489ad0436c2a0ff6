"""The history checker: what devices sent, were told and saw, held against the log.

A history is recorded while a hub works, or is tormented, all on one clock. When everything is
quiet again `check` reads it once, with the logs and the snapshots, and raises at the first thing
that must not be; its work is linear in the history's length. What it finds, by `Violation.rule`:

| rule        | it is broken by                                                                 |
|-------------|---------------------------------------------------------------------------------|
| `dense`     | a log that is not 1..n, or that holds another budget's events (P2)              |
| `twice`     | an event that stands in the log more than once (P3)                             |
| `foreign`   | an event in the log that nobody sent, or with other content                     |
| `members`   | an event by somebody who did not take part, or after the budget's end; somebody |
|             | who joined twice, or left without having been there (P9)                        |
| `lost`      | an accepted event that is not in the log as the verdict says (P1, P11)          |
| `verdicts`  | verdicts about one event that do not agree, `duplicate` aside (P3)              |
| `refused`   | an event that was refused and yet is in the log (P4)                            |
| `time`      | an event sent after another's acceptance was known, but ordered before it (P2)  |
| `versions`  | a record whose accepted versions are not the chain 1, 2, 3 … (P5)               |
| `contest`   | a stale edit that won, be it of what was deleted, or a conflict about a version |
|             | that nobody won (P5)                                                            |
| `record`    | a verdict with another record than the log makes (P5)                           |
| `replay`    | a log whose events do not make the digests they carry (P6)                      |
| `state`     | a snapshot that is not what the log makes (P6)                                  |
| `order`     | an observer that was not given every event after its cursor, in order, once     |
|             | (P2), or that was not given the last ones (P7)                                  |
| `content`   | an observer that was given something else than what is in the log (P6)          |
| `private`   | an observer that was given an event while its user did not take part (P9)       |
| `replica`   | an observer that has, at the end, something else than the server (P6)           |
| `broken`    | anything else that a device refused to believe                                  |

An event without a final verdict may be in the log or not, but never twice. A device sends one again
when it can no longer be answered for the last time that it did. Of the events that the
server makes by itself (`participant.*`) nobody has to have asked for them.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from operator import itemgetter
from typing import NoReturn, TypeAlias

from loadtest.history import EventKey, History, Json, Seen, Sent, Start, Watch, checksum
from loadtest.replica import FIELDS, Diverged, RecordKey, Replica

Version: TypeAlias = tuple[RecordKey, int]  # one of a record's

STORY_LINES_MAX = 60


class Violation(AssertionError):
    """The hub broke `rule`; `story` tells about the first event that shows it, a line each."""

    def __init__(self, rule: str, what: str, story: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([f"{rule}: {what}", *story]))
        self.rule = rule
        self.what = what
        self.story = list(story)


@dataclass
class Figures:
    """How much was checked. `resent` counts repetitions of an event that was sent before."""

    sent: int = 0
    resent: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    retryable: int = 0
    unknown: int = 0  # events without a final verdict
    budgets: int = 0
    logged: int = 0
    contested: int = 0  # versions that several events wanted to follow
    observers: int = 0
    observed: int = 0
    replicas: int = 0
    snapshots: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{number} {name}" for name, number in vars(self).items())


def check(
    history: History,
    logs: Mapping[str, Iterable[Json]],
    snapshots: Mapping[str, Sequence[Json]],
) -> Figures:
    """Raises `Violation`. The logs are whole, as stream events in their order, by budget; so are
    the snapshots, at least one of each budget that was not deleted. All were read when nothing
    happened any more."""
    return _Check(history, logs, snapshots).run()


class _Log:
    """One budget's log, and who took part when."""

    def __init__(self, budget_id: str, events: Iterable[Json]) -> None:
        self.budget_id = budget_id
        self.events = list(events)
        self.checksums = [checksum(event) for event in self.events]
        # By place: when the last of the events up to there was first sent, at the earliest.
        self.sent_s: list[float] = []
        self.owner: str | None = None
        self.deleted = False
        # By user: where in the log he came and went in turn, beginning with coming.
        self.turns: dict[str, list[int]] = {}

    def event_id(self, sequence: int) -> str:
        event_id: str = self.events[sequence - 1]["eventId"]
        return event_id

    def takes_part(self, user_id: str) -> bool:
        """At the end of what was taken in so far."""
        return len(self.turns.get(user_id, ())) % 2 == 1

    @property
    def members(self) -> set[str]:
        return {user_id for user_id in self.turns if self.takes_part(user_id)}

    def hides(self, seen: Seen, user_id: str) -> bool:
        """Whether the user did not take part when he saw the event.

        Who takes part may read everything, what happened while he was away too. So it must have
        come before he could come back, which cannot have been before all that the log has before
        it was sent."""
        turns = self.turns.get(user_id, [])
        number = bisect_right(turns, seen.sequence)
        if number % 2 == 1 or (number > 0 and turns[number - 1] == seen.sequence):
            return False  # he took part, or is told that he does no longer
        if number == len(turns):
            return True
        came = turns[number]
        return came > 1 and seen.at_s < self.sent_s[came - 2]


class _Check:
    def __init__(
        self,
        history: History,
        logs: Mapping[str, Iterable[Json]],
        snapshots: Mapping[str, Sequence[Json]],
    ) -> None:
        self._history = history
        self._logs = {budget_id: _Log(budget_id, logs[budget_id]) for budget_id in logs}
        self._snapshots = snapshots
        self._places: dict[EventKey, int] = {}  # sequences
        # Of events with a conflict, by budget; the records told there are compared later on.
        self._conflicts: dict[str, list[tuple[EventKey, Json, Json]]] = {}
        self._figures = Figures()

    def run(self) -> Figures:
        for log in self._logs.values():
            self._check_log(log)
        for at_s, verdict in self._history.stray:
            what = f"about an event that nobody sent, at {at_s:.6f}: {verdict}"
            raise Violation("verdicts", what)
        for key, sent in self._history.sent.items():
            self._check_verdicts(key, sent)
        for log in self._logs.values():
            self._check_real_time(log)
            self._check_records(log)
        for budget_id, conflicts in self._conflicts.items():
            for key, _, verdict in conflicts if budget_id not in self._logs else ():
                self._fail("contest", f"in a budget that nobody made: {verdict}", key)
        for watch in self._history.watches.values():
            self._check_watch(watch)
        for observer, budget_id, sequence, digest in self._history.replicas:
            self._check_replica(observer, budget_id, sequence, digest)
        for observer, how in self._history.broken:
            raise Violation("broken", f"{observer} was given {how}")
        self._figures.budgets = len(self._logs)
        self._figures.observers = len({name for name, _ in self._history.watches})
        return self._figures

    # The log

    def _check_log(self, log: _Log) -> None:
        budget_id = log.budget_id
        for due, event in enumerate(log.events, 1):
            key = budget_id, event["eventId"]
            if event["sequence"] != due:
                self._fail("dense", f"sequence {event['sequence']} where {due} is next", key)
            if event["budgetId"] != budget_id:
                self._fail("dense", f"in the log of {budget_id}: {event}", key)
            if key in self._places:
                first = self._places[key]
                self._fail("twice", f"in the log as {first} and {due}", key)
            self._places[key] = due
            sent_s = log.sent_s[-1] if log.sent_s else float("-inf")
            sent = self._history.sent.get(key)
            log.sent_s.append(sent_s if sent is None else max(sent_s, sent.at_s[0]))
            if event["eventType"].startswith("participant."):
                self._check_membership(log, event)
                continue
            if sent is None:
                self._fail("foreign", f"nobody sent {event}", key)
            self._check_content(key, sent, event)
            self._check_author(log, event)
        self._figures.logged += len(log.events)

    def _check_content(self, key: EventKey, sent: Sent, event: Json) -> None:
        wanted = sent.event
        wanted.pop("version", None)  # of the record it was an edit of
        if alias := wanted.pop("event", None):
            wanted["eventType"] = alias
        for name, value in (*wanted.items(), ("actorId", sent.user_id)):
            stored = event.get(name)
            if value != stored and not (name in _MONEY and _same_amount(value, stored)):
                self._fail("foreign", f"{name} was sent as {value!r} and stored as {stored!r}", key)

    def _check_author(self, log: _Log, event: Json) -> None:
        key = log.budget_id, event["eventId"]
        actor = event["actorId"]
        if log.deleted:
            self._fail("members", f"after the budget's end: {event}", key)
        if event["eventType"] == "budget.create":
            log.owner = log.owner or actor
            log.turns.setdefault(actor, [event["sequence"]])
        if not log.takes_part(actor):
            self._fail("members", f"{actor} did not take part: {event}", key)
        if event["eventType"] == "budget.delete":
            if actor != log.owner:
                self._fail("members", f"{actor} is not the owner, who is {log.owner}", key)
            log.deleted = True

    def _check_membership(self, log: _Log, event: Json) -> None:
        key = log.budget_id, event["eventId"]
        user_id = event["recordId"]
        participant = event["participant"]
        if (participant["userId"], participant["budgetId"]) != (user_id, log.budget_id):
            self._fail("members", f"about two at once: {event}", key)
        if key in self._history.sent:
            self._fail("members", f"a device could send {event}", key)
        joins, takes_part = event["eventType"] == "participant.add", log.takes_part(user_id)
        left = not joins and not takes_part and user_id in log.turns
        if left and event["actorId"] == log.owner:
            return  # removed by the owner, so that they stay out
        if takes_part == joins:
            self._fail("members", f"{user_id} takes part: {takes_part}", key)
        log.turns.setdefault(user_id, []).append(event["sequence"])
        log.owner = event.get("owner", log.owner)

    # What devices were told

    def _check_verdicts(self, key: EventKey, sent: Sent) -> None:
        place = self._places.get(key)
        verdicts = sorted(sent.verdicts, key=itemgetter(0))
        accepted: Json | None = None
        rejected_s = float("-inf")  # the last time
        final = False
        for at_s, verdict in verdicts:
            match verdict["status"]:
                case "accepted":
                    self._check_accepted(key, accepted, verdict, place)
                    accepted = verdict
                case "rejected" if verdict["error"]["retryable"]:
                    self._figures.retryable += 1
                    continue
                case "rejected":
                    rejected_s = at_s
                case "conflict":
                    event = sent.event
                    conflict = key, event, verdict
                    self._conflicts.setdefault(key[0], []).append(conflict)
                case other:
                    self._fail("verdicts", f"{other!r} is none", key)
            if accepted is not None and verdict["status"] != "accepted":
                self._fail("verdicts", f"accepted, and refused at {at_s:.6f}", key)
            final = True
        conflicts = sum(verdict["status"] == "conflict" for _, verdict in verdicts)
        # A rejection is forgotten, and the event decided afresh when it is sent again: its category
        # may be there by then. What was stale stays stale.
        if conflicts and accepted is not None:
            self._fail("verdicts", "refused as stale, and accepted", key)
        if place is not None and (conflicts or rejected_s >= max(sent.at_s)):
            self._fail("refused", f"refused, and in the log as {place}", key)
        figures = self._figures
        figures.sent += 1
        figures.resent += len(sent.at_s) - 1
        figures.accepted += accepted is not None
        figures.duplicates += sum("duplicate" in verdict for _, verdict in verdicts)
        figures.conflicts += conflicts > 0
        figures.rejected += rejected_s > float("-inf")
        figures.unknown += not final

    def _check_accepted(
        self, key: EventKey, before: Json | None, verdict: Json, place: int | None
    ) -> None:
        if before is not None and _plain(before) != _plain(verdict):
            self._fail("verdicts", "accepted in two ways", key)
        told = verdict["sequence"], verdict.get("version")
        if place is None:
            self._fail("lost", f"accepted as {told[0]}, not in the log", key)
        logged = self._logs[key[0]].events[place - 1]
        stored = place, logged.get("version")
        if told != stored:
            told_as, stored_as = (f"{sequence}, version {v}" for sequence, v in (told, stored))
            self._fail("lost", f"accepted as {told_as}; in the log as {stored_as}", key)

    def _check_real_time(self, log: _Log) -> None:
        """From the end: nothing may have been sent after a later sequence was acknowledged."""
        known_s, known_key = float("inf"), ("", "")
        for event in reversed(log.events):
            key = log.budget_id, event["eventId"]
            sent = self._history.sent.get(key)
            if sent is None:
                continue  # the server's own
            if sent.at_s[0] > known_s:
                what = f"{event['sequence']} was sent after {known_key[1]} had been accepted"
                self._fail("time", what, key, known_key)
            at_s = min(
                (at_s for at_s, verdict in sent.verdicts if verdict["status"] == "accepted"),
                default=known_s,
            )
            if at_s < known_s:
                known_s, known_key = at_s, key

    # Records

    def _check_records(self, log: _Log) -> None:
        """Versions, conflicts, verdicts' records and the final state."""
        replica = Replica(log.budget_id)
        versions: dict[RecordKey, int] = {}
        conflicts = self._conflicts.get(log.budget_id, [])
        told = {_told_version(verdict) for _, _, verdict in conflicts}
        records: dict[Version, Json] = {}  # those that were told
        for event in log.events:
            key = log.budget_id, event["eventId"]
            kind, _, verb = event["eventType"].partition(".")
            if kind in FIELDS:
                self._check_version(key, event, versions)
                if verb in ("edit", "delete") and (kind, event["recordId"]) not in replica.records:
                    self._fail("contest", f"changed what was deleted: {event}", key)
                if kind == "category" and verb == "delete":
                    for expense_id in replica.expenses_of(event["recordId"]):
                        versions["expense", expense_id] += 1
            try:
                replica.apply(event)
            except (Diverged, KeyError) as diverged:
                self._fail("replay", repr(diverged), key)
            record_key = kind, event["recordId"]
            record = replica.records.get(record_key)
            if record is None or kind not in FIELDS:
                continue
            if (record_key, record["version"]) in told:
                records[record_key, record["version"]] = record
            for _, verdict in self._history.sent[key].verdicts:
                if verdict["status"] == "accepted" and not _shows(verdict["record"], record):
                    self._fail("record", f"told {verdict['record']}, is {record}", key)
        contested = {
            self._check_conflict(conflict, versions, records, replica) for conflict in conflicts
        }
        self._figures.contested += len(contested)
        self._check_state(log, replica)

    def _check_version(self, key: EventKey, event: Json, versions: dict[RecordKey, int]) -> None:
        record_key = event["eventType"].partition(".")[0], event["recordId"]
        before = versions.get(record_key, 0)
        if event["version"] != before + 1:
            what = f"version {event['version']} of {record_key[1]} after {before}"
            self._fail("versions", what, key)
        stated = self._history.sent[key].event.get("version", 0)
        if stated != before:
            self._fail("contest", f"stated version {stated}, changed version {before}", key)
        versions[record_key] = before + 1

    def _check_conflict(
        self,
        conflict: tuple[EventKey, Json, Json],
        versions: Mapping[RecordKey, int],
        records: Mapping[Version, Json],
        replica: Replica,
    ) -> Version:
        """The version that somebody else must have won, and did."""
        key, event, verdict = conflict
        stated, current = event.get("version", 0), verdict["currentRecord"]
        record_key, version = _told_version(verdict)
        won = versions.get(record_key, 0)
        if not stated < version <= won:
            what = f"conflict at version {stated} with {version}, the last one is {won}"
            # A tombstone is a conflict for whatever version.
            if not (
                current.get("deleted") and version == won and record_key not in replica.records
            ):
                self._fail("contest", what, key)
        record = records.get((record_key, version))
        if record is not None and not _shows(current, record):
            self._fail("record", f"in conflict with {current}, is {record}", key)
        return record_key, stated

    def _check_state(self, log: _Log, replica: Replica) -> None:
        snapshots = self._snapshots.get(log.budget_id, ())
        if log.deleted == bool(snapshots):
            what = f"deleted: {log.deleted}, snapshots: {len(snapshots)}"
            raise Violation("state", f"{log.budget_id}, {what}")
        for snapshot in snapshots:
            self._figures.snapshots += 1
            try:
                difference = replica.difference(Replica.from_snapshot(snapshot))
            except (Diverged, KeyError) as diverged:
                difference = repr(diverged)
            participants = {participant["userId"] for participant in snapshot["participants"]}
            if difference is None and participants != log.members:
                difference = f"{log.members} take part, against {participants}"
            if difference is not None:
                what = f"{log.budget_id}, the log against a snapshot: {difference}"
                raise Violation("state", what)

    # Observers

    def _check_watch(self, watch: Watch) -> None:
        log = self._logs.get(watch.budget_id, _Log(watch.budget_id, []))
        cursor: int | None = None
        for item in watch.given:
            if isinstance(item, Start):
                if not item.snapshot and cursor not in (None, item.key):
                    what = f"{watch.observer} resumed at {item.key}, not {cursor}"
                    raise Violation("order", what, [f"budget {watch.budget_id}"])
                cursor = item.key
                continue
            self._figures.observed += 1
            key = watch.budget_id, item.event_id
            if cursor is None or item.sequence != cursor + 1:
                self._fail("order", f"{watch.observer} saw {item.sequence} after {cursor}", key)
            if item.sequence > len(log.events):
                self._fail("content", f"{watch.observer} saw {item.sequence}: not in the log", key)
            stored = log.events[item.sequence - 1]
            expected = stored["eventId"], log.checksums[item.sequence - 1]
            if (item.event_id, item.checksum) != expected:
                what = f"{watch.observer} saw {item.sequence} otherwise than in the log: {stored}"
                self._fail("content", what, key)
            if watch.user_id is not None and log.hides(item, watch.user_id):
                what = f"{watch.observer} saw {stored}; {watch.user_id} did not take part"
                self._fail("private", what, key)
            cursor = item.sequence
        if cursor != len(log.events) and not self._excused(watch.observer, log):
            what = f"{watch.observer} saw {cursor} as the last of {len(log.events)}"
            missed = log.events[cursor or 0 :][:1]
            self._fail("order", what, *((log.budget_id, event["eventId"]) for event in missed))

    def _check_replica(self, observer: str, budget_id: str, sequence: int, digest: str) -> None:
        self._figures.replicas += 1
        log = self._logs.get(budget_id, _Log(budget_id, []))
        head = len(log.events)
        what = f"{observer} has {digest} at {sequence}"
        if not 0 <= sequence <= head or (sequence < head and not self._excused(observer, log)):
            raise Violation("replica", f"{what}, the log of {budget_id} ends at {head}")
        stored = log.events[sequence - 1]["digest"] if sequence else _EMPTY_DIGEST
        if digest != stored:
            keys = [(budget_id, log.events[sequence - 1]["eventId"])] if sequence else []
            self._fail("replica", f"{what}, the log of {budget_id} has {stored}", *keys)

    def _excused(self, observer: str, log: _Log) -> bool:
        """Whether it does not have to have the last events."""
        if observer in self._history.gone:
            return True
        watch = self._history.watches.get((observer, log.budget_id))
        return watch is not None and watch.user_id is not None and not log.takes_part(watch.user_id)

    def _fail(self, rule: str, what: str, *keys: EventKey) -> NoReturn:
        raise Violation(rule, what, [line for key in keys for line in self._story(key)])

    def _story(self, key: EventKey) -> list[str]:
        """Everything that is known about one event, in the order it happened."""
        budget_id, event_id = key
        moments: list[tuple[float, str]] = []
        sent = self._history.sent.get(key)
        if sent is not None:
            moments += [(at_s, f"sent by {sent.user_id}") for at_s in sent.at_s]
            moments += [(at_s, f"told {verdict}") for at_s, verdict in sent.verdicts]
        for watch in self._history.watches.values():
            for seen in watch.given if watch.budget_id == budget_id else ():
                if isinstance(seen, Seen) and seen.event_id == event_id:
                    moments.append((seen.at_s, f"seen by {watch.observer} as {seen.sequence}"))
        lines = [f"{at_s:.6f} {what}" for at_s, what in sorted(moments, key=itemgetter(0))]
        if len(lines) > STORY_LINES_MAX:
            lines[STORY_LINES_MAX:] = [f"… and {len(lines) - STORY_LINES_MAX} more"]
        title = f"event {event_id} of budget {budget_id}: {None if sent is None else sent.event}"
        return [title, *lines]


_MONEY = ("amount", "allocate")
_EMPTY_DIGEST = "0" * 16


def _told_version(conflict: Json) -> Version:
    kind, current = conflict["eventType"].partition(".")[0], conflict["currentRecord"]
    return (kind, current["id"]), current["version"]


def _shows(told: Json, record: Json) -> bool:
    """Whether it is the record, though a newer hub may tell more of it."""
    return all(name in told and told[name] == value for name, value in record.items())


def _same_amount(sent: object, stored: object) -> bool:
    try:
        return Decimal(str(sent)) == Decimal(str(stored))
    except InvalidOperation:
        return False


def _plain(verdict: Json) -> Json:
    return {name: value for name, value in verdict.items() if name != "duplicate"}
