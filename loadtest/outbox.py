"""What a device has not yet been given a verdict on: pure, no socket, no clock.

| an event is   | until                                                                            |
|---------------|----------------------------------------------------------------------------------|
| waiting       | `next_batch` sends it, in the order in which events were added                   |
| in flight     | its verdict comes; or the batch ends before it, or the connection is lost: then  |
|               | it waits again, in its old place, under its old id (P3: a repetition is safe)    |
| settled       | for ever: accepted                                                               |
| quarantined   | for ever: rejected, for a person to look at; what comes after it is not held up  |
| moot          | for ever: an edit or deletion of what somebody else has deleted meanwhile        |

One batch is in flight at a time, in mode `stop`: so no event is ever decided before the one in
front of it, and a change of a record may build on the change before it though that one has no
verdict yet. A conflict means that somebody else's change came first: the event is *rebased*, which
is to say made again under a new id upon the current record, and with it all that build on it.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

import orjson

Event: TypeAlias = Mapping[str, Any]  # never changed once it was added
RecordId: TypeAlias = str

EVENTS_MAX = 10_000
BATCH_EVENTS_MAX = 100  # the wire's bound for a frame; 25 over REST
BATCH_BYTES_MAX = 200 * 1024  # a frame is at most 256 KiB
QUARANTINE_MAX = 100


class OutboxFull(Exception):
    """The device has been away, or its events refused, for longer than it can keep them."""


class Unexpected(Exception):
    """A verdict that nothing was waiting for."""


class Outcome(Enum):
    ACCEPTED = "accepted"
    REBASED = "rebased"  # in conflict; its successor waits
    MOOT = "moot"  # in conflict with a deletion; there is nothing left to change
    QUARANTINED = "quarantined"
    UNDECIDED = "undecided"  # waits again; send it a little later


class Quarantined(NamedTuple):
    event: Event
    code: str


class Outbox:
    """`new_id` gives the eventId of a rebased event. Not more than `events_max` events are kept,
    and the last `QUARANTINE_MAX` rejected ones."""

    def __init__(
        self,
        new_id: Callable[[], str],
        *,
        events_max: int = EVENTS_MAX,
        batch_events_max: int = BATCH_EVENTS_MAX,
    ) -> None:
        self.quarantine: deque[Quarantined] = deque(maxlen=QUARANTINE_MAX)
        self.batch_events_max = batch_events_max
        self._new_id = new_id
        self._events_max = events_max
        self._waiting: deque[Event] = deque()
        self._in_flight: deque[Event] = deque()
        self._sent: set[str] = set()  # eventIds, of all that wait again
        self._versions: dict[RecordId, int] = {}  # after all of this device's own changes
        self._alone = 0  # so many events to send in batches of one

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    @property
    def waiting(self) -> Sequence[Event]:
        return tuple(self._waiting)

    @property
    def in_flight(self) -> Sequence[Event]:
        return tuple(self._in_flight)

    def add(self, event: Event) -> None:
        """Keep the event until it has its verdict. Raises `OutboxFull`."""
        if len(self) >= self._events_max:
            raise OutboxFull(f"{len(self)} events wait already")
        self._waiting.append(event)
        self._versions[record_id(event)] = _version_after(event)

    def version(self, record: RecordId, version: int) -> int:
        """Upon which version the next change of a record builds: the replica's `version`, or a
        later one that this device's own changes will have made."""
        return max(version, self._versions.get(record, 0))

    def arrived(self, event: Event) -> None:
        """The stream has brought an event: where it shows the last of this device's own changes of
        a record, the replica knows as much about that record as the outbox."""
        record = event["recordId"]
        known = self._versions.get(record)
        if known is not None and event.get("version", 0) >= known:
            del self._versions[record]

    def next_batch(self) -> Sequence[Event]:
        """The events to send now, or none: as long as others are in flight, or nothing waits."""
        if self._in_flight or not self._waiting:
            return ()
        events_max, size_bytes = (1 if self._alone else self.batch_events_max), 0
        while self._waiting and len(self._in_flight) < events_max:
            if events_max > 1:
                size_bytes += len(orjson.dumps(self._waiting[0]))
                if self._in_flight and size_bytes > BATCH_BYTES_MAX:
                    break
            self._in_flight.append(self._waiting.popleft())
        self._sent.update(event["eventId"] for event in self._in_flight)
        return self.in_flight

    def settle(self, verdict: Mapping[str, Any]) -> Outcome:
        """Take the next verdict of the batch in flight. Raises `Unexpected`."""
        if not self._in_flight or self._in_flight[0]["eventId"] != verdict["eventId"]:
            raise Unexpected(f"a verdict on {verdict['eventId']}, which is not the next in flight")
        event = self._in_flight.popleft()
        status = verdict["status"]
        if status == "accepted":
            self._forget(event)
            return Outcome.ACCEPTED
        if status == "rejected" and verdict["error"]["retryable"]:
            self._in_flight.appendleft(event)
            self.interrupted()
            return Outcome.UNDECIDED
        # Mode `stop`: the batch has ended with this event.
        self.interrupted()
        self._forget(event)
        if status == "conflict":
            return self._rebase(event, verdict["currentRecord"])
        self._quarantine(event, verdict["error"]["message"])
        return Outcome.QUARANTINED

    def interrupted(self) -> None:
        """The batch is over, or the connection lost: what has no verdict waits again, in front."""
        self._waiting.extendleft(reversed(self._in_flight))
        self._in_flight.clear()

    def refused(self, code: str) -> None:
        """The hub has refused the batch as a whole and for good, as malformed. Which event is to
        blame shows when each is sent alone."""
        guilty = self._in_flight[0] if len(self._in_flight) == 1 else None
        self._alone = 0 if guilty else len(self._in_flight)
        self.interrupted()
        if guilty is not None:
            self._waiting.popleft()
            self._forget(guilty)
            self._quarantine(guilty, code)

    def _forget(self, event: Event) -> None:
        self._sent.discard(event["eventId"])
        self._alone = max(0, self._alone - 1)

    def _rebase(self, event: Event, current: Mapping[str, Any]) -> Outcome:
        record = record_id(event)
        if current.get("deleted") or "version" not in event:
            for each in (each for each in self._waiting if record_id(each) == record):
                self._forget(each)
            self._waiting = deque(each for each in self._waiting if record_id(each) != record)
            self._versions.pop(record, None)
            return Outcome.MOOT
        self._waiting.appendleft({**event, "eventId": self._new_id()})
        self._restack(record, current["version"])
        return Outcome.REBASED

    def _quarantine(self, event: Event, code: str) -> None:
        self.quarantine.append(Quarantined(event, code))
        if "version" in event:  # what was to build on it builds on what it was to build on
            self._restack(record_id(event), event["version"])
        else:
            self._versions.pop(record_id(event), None)

    def _restack(self, record: RecordId, version: int) -> None:
        """Let the waiting changes of the record build on this version, and each on the one before
        it."""
        restacked = []
        for each in self._waiting:
            if record_id(each) == record and "version" in each:
                if each["version"] != version:
                    each = self._moved(each, version)
                version += 1
            restacked.append(each)
        self._waiting = deque(restacked)
        self._versions[record] = version

    def _moved(self, event: Event, version: int) -> Event:
        """The event upon another version; under a new id where the hub may know the old one, since
        an id means one content for ever."""
        event_id = event["eventId"]
        if event_id in self._sent:
            self._forget(event)
            event_id = self._new_id()
        return {**event, "eventId": event_id, "version": version}


def record_id(event: Event) -> RecordId:
    """The record that an event is about; the budget's own id where it names none."""
    return event.get("recordId") or event["budgetId"]  # type: ignore[no-any-return]


def _version_after(event: Event) -> int:
    return event["version"] + 1 if "version" in event else 1
