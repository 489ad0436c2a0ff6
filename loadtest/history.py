"""What devices did and were given, on record: the evidence that `loadtest.checker` judges.

A `Recorder` in each generator process appends a line for each thing that happened; `read` merges
the files of all processes into a `History`, which can also be told the same things directly. A line
is the name of a method of `History` and its arguments, in JSON:

    ["submitted","u1",{"eventId":"…",…},81.3]            an event is sent, or sent again
    ["answered",{"eventId":"…","status":…,…},81.4]       any verdict
    ["subscribed","phone 3","6414…",7,81.2,"u1",false]   from now on it is given what follows 7
    ["given","phone 3","6414…",[[8,"0d3a…",301]],81.4]   stream events: sequence, eventId, checksum
    ["left","phone 3"]                                   it went away before the end
    ["replica","phone 3","6414…",8,"9f03…"]              what it has at the end
    ["broke","phone 3","a repeated event"]               it was given what it cannot believe
    ["log","6414…",[{…},…]]                              afterwards: a budget's log, in pieces, and
    ["snapshot","6414…",{…}]                             snapshots, to judge the run again

Times are seconds of `time.monotonic`, which all processes of a machine share. An event whose
content changes, an edit that was rebased say, has a new `eventId`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias
from zlib import crc32

import orjson

Json: TypeAlias = Mapping[str, Any]
EventKey: TypeAlias = tuple[str, str]  # budgetId, eventId
Given: TypeAlias = tuple[int, str, int]  # sequence, eventId, checksum

_BUFFER_BYTES = 1 << 20


class BadHistory(ValueError):
    """A file is no history, or its devices broke the rules of recording one."""


class Recorder:
    """Appends what happens to the file `path`, buffered. Use as a context manager, or `close`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=_BUFFER_BYTES)

    def submitted(self, user_id: str, event: Json, at_s: float) -> None:
        """A device is about to send the event, for the first time or again."""
        self._write("submitted", user_id, event, at_s)

    def answered(self, verdict: Json, at_s: float) -> None:
        """A device was told what became of an event."""
        self._write("answered", verdict, at_s)

    def subscribed(
        self,
        observer: str,
        budget_id: str,
        key: int,
        at_s: float,
        *,
        user_id: str | None = None,
        snapshot: bool = False,
    ) -> None:
        """From now on the observer is to be given what follows `key`: where it had come to, or the
        sequence of a `snapshot` it took. With `user_id`, whether that user may see it is judged."""
        self._write("subscribed", observer, budget_id, key, at_s, user_id, snapshot)

    def saw(self, observer: str, budget_id: str, events: Sequence[Json], at_s: float) -> None:
        """The observer was given these stream events."""
        given = [(event["sequence"], event["eventId"], checksum(event)) for event in events]
        self._write("given", observer, budget_id, given, at_s)

    def left(self, observer: str) -> None:
        """The observer went away: it does not have to have seen the last events."""
        self._write("left", observer)

    def replica(self, observer: str, budget_id: str, sequence: int, digest: str) -> None:
        """At the end: what the observer made of everything it was given."""
        self._write("replica", observer, budget_id, sequence, digest)

    def broke(self, observer: str, how: str) -> None:
        """A device was given what it could not believe."""
        self._write("broke", observer, how)

    def log(self, budget_id: str, events: Sequence[Json]) -> None:
        """The next stream events of the budget's log, from its start, when all is quiet."""
        self._write("log", budget_id, events)

    def snapshot(self, budget_id: str, snapshot: Json) -> None:
        """What `GET /budgets/:id` shows when all is quiet."""
        self._write("snapshot", budget_id, snapshot)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, *line: object) -> None:
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


class Sent:
    """One event, however often it was sent. Kept as text, which takes a fifth of the memory."""

    __slots__ = ("_event", "_verdicts", "at_s", "user_id")

    def __init__(self, user_id: str, event: bytes) -> None:
        self.user_id = user_id
        self.at_s: list[float] = []
        self._event = event
        self._verdicts: list[tuple[float, bytes]] = []

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = orjson.loads(self._event)
        return event

    @property
    def verdicts(self) -> list[tuple[float, dict[str, Any]]]:
        """With the moments when they came, which is their order."""
        return [(at_s, orjson.loads(verdict)) for at_s, verdict in self._verdicts]

    def answered(self, verdict: Json, at_s: float) -> None:
        self._verdicts.append((at_s, orjson.dumps(verdict)))


class Seen(NamedTuple):
    at_s: float
    sequence: int
    event_id: str
    checksum: int


class Start(NamedTuple):
    """The observer is to be given what follows `key`."""

    key: int
    snapshot: bool


class Watch:
    """One observer of one budget: what it was given, and between that where it started."""

    __slots__ = ("budget_id", "given", "observer", "user_id")

    def __init__(self, observer: str, budget_id: str) -> None:
        self.observer = observer
        self.budget_id = budget_id
        self.user_id: str | None = None
        self.given: list[Seen | Start] = []


class History:
    """Everything on record. The methods of the first half are those of `Recorder`."""

    def __init__(self) -> None:
        self.sent: dict[EventKey, Sent] = {}
        # Verdicts about events that nobody sent, or whose sending stands in a later file.
        self.stray: list[tuple[float, Json]] = []
        self.watches: dict[tuple[str, str], Watch] = {}  # by observer and budget
        self.gone: set[str] = set()  # observers that left
        self.replicas: list[tuple[str, str, int, str]] = []
        self.broken: list[tuple[str, str]] = []
        self.logs: dict[str, list[Json]] = {}
        self.snapshots: dict[str, list[Json]] = {}

    def submitted(self, user_id: str, event: Json, at_s: float) -> None:
        """Raises `BadHistory` where it is not the event that was sent under this id before."""
        text = orjson.dumps(event)
        key = _interned(event["budgetId"], event["eventId"])
        sent = self.sent.get(key)
        if sent is None:
            sent = self.sent[key] = Sent(sys.intern(user_id), text)
        elif sent.user_id != user_id or sent.event != event:
            raise BadHistory(f"a device changed event {key[1]}: {sent.event} became {event}")
        sent.at_s.append(at_s)

    def answered(self, verdict: Json, at_s: float) -> None:
        sent = self.sent.get((verdict["budgetId"], verdict["eventId"]))
        if sent is None:
            self.stray.append((at_s, verdict))
        else:
            sent.answered(verdict, at_s)

    def subscribed(
        self,
        observer: str,
        budget_id: str,
        key: int,
        at_s: float,
        user_id: str | None = None,
        snapshot: bool = False,
    ) -> None:
        watch = self._watch(observer, budget_id)
        watch.user_id = user_id
        watch.given.append(Start(key, snapshot))

    def saw(self, observer: str, budget_id: str, events: Sequence[Json], at_s: float) -> None:
        given = [(event["sequence"], event["eventId"], checksum(event)) for event in events]
        self.given(observer, budget_id, given, at_s)

    def left(self, observer: str) -> None:
        self.gone.add(observer)

    def replica(self, observer: str, budget_id: str, sequence: int, digest: str) -> None:
        self.replicas.append((observer, budget_id, sequence, digest))

    def broke(self, observer: str, how: str) -> None:
        self.broken.append((observer, how))

    def log(self, budget_id: str, events: Sequence[Json]) -> None:
        self.logs.setdefault(budget_id, []).extend(events)

    def snapshot(self, budget_id: str, snapshot: Json) -> None:
        self.snapshots.setdefault(budget_id, []).append(snapshot)

    def given(self, observer: str, budget_id: str, events: Iterable[Given], at_s: float) -> None:
        """What `saw` comes to."""
        self._watch(observer, budget_id).given += [
            Seen(at_s, sequence, sys.intern(event_id), total)
            for sequence, event_id, total in events
        ]

    def refusals(self) -> Iterator[Json]:
        """The final rejections: for whoever sends nothing that could be rejected."""
        for sent in self.sent.values():
            for _, verdict in sent.verdicts:
                if verdict["status"] == "rejected" and not verdict["error"]["retryable"]:
                    yield verdict

    def _watch(self, observer: str, budget_id: str) -> Watch:
        key = _interned(observer, budget_id)
        watch = self.watches.get(key)
        if watch is None:
            watch = self.watches[key] = Watch(*key)
        return watch


_METHODS: Mapping[str, Callable[..., None]] = {
    method.__name__: method
    for method in (
        History.submitted,
        History.answered,
        History.subscribed,
        History.given,
        History.left,
        History.replica,
        History.broke,
        History.log,
        History.snapshot,
    )
}


def read(paths: Iterable[Path]) -> History:
    """The history that stands in these files, in any order of them: what one observer was given is
    in one file. Raises `BadHistory`, and `OSError` for a file that cannot be read."""
    history = History()
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    name, *arguments = orjson.loads(line)
                    _METHODS[name](history, *arguments)
                except BadHistory as bad:
                    raise BadHistory(f"{path}:{number}: {bad}") from bad
                except (ValueError, TypeError, KeyError) as error:
                    raise BadHistory(f"{path}:{number} is no line of a history") from error
    stray, history.stray = history.stray, []
    for at_s, verdict in stray:
        history.answered(verdict, at_s)
    return history


def checksum(event: Json) -> int:
    """Of everything a stream event says, whatever it came by: REST repeats `eventType` as `event`.

    Against accidents, which is all that has to be noticed here, CRC-32 is enough, and quick."""
    if "event" in event:
        event = {name: value for name, value in event.items() if name != "event"}
    return crc32(orjson.dumps(event, option=orjson.OPT_SORT_KEYS))


def _interned(first: str, second: str) -> tuple[str, str]:
    # Ids come again and again, from each observer; one copy of each is enough.
    return sys.intern(first), sys.intern(second)
