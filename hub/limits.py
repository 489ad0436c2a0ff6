"""Limits: a token bucket, the buckets of connections and users, and places that may be taken. Time
is an argument."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from hub.budget.events import Event, Submitted
from hub.budget.records import UserId
from hub.recent import Recent

BURST_S = 10  # of the rate may be taken at once
USERS_MAX = 10_000
# WebSocket frames, including fragments and control frames: how many for each event of the rate, and
# how many at once at least.
FRAMES_PER_EVENT = 10
FRAMES_AT_ONCE = 1_000
UNSIGNED_FRAMES_PER_S = 10  # while nobody has signed in on the connection
UNSIGNED_FRAMES_AT_ONCE = 100
COST_BYTES = 8192  # of a frame or body, for each 1 of cost: one of 256 KiB costs 32
# Bytes of text, of one user: how many for each event of the rate, and for how many seconds at once.
# What a long text leaves in the log is for ever.
TEXT_PER_EVENT = 256
TEXT_BURST_S = 42
ORDINARY_BYTES = 512  # of an event; where a batch has no more of each, nobody counts its text


class Rate(NamedTuple):
    """So many a second in the long run, and `burst` at once."""

    per_s: float
    burst: float


class Bucket:
    """What is left to take, as of `at_s`. Full at first."""

    __slots__ = ("__weakref__", "at_s", "rate", "tokens")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self.rate = rate
        self.tokens = rate.burst
        self.at_s = now_s

    def take(self, cost: float, now_s: float) -> float:
        """Take `cost`; how many seconds are missing.

        0 seconds: it was taken. Otherwise nothing was taken, and it can be after that time. A cost
        above the burst counts as the burst, so that it can be taken at all."""
        tokens = self.left(now_s)
        cost = min(cost, self.rate.burst)
        if tokens < cost:
            return (cost - tokens) / self.rate.per_s
        self.tokens = tokens - cost
        return 0.0

    def left(self, now_s: float) -> float:
        """How much can be taken now."""
        if now_s > self.at_s:
            per_s, burst = self.rate
            self.tokens = min(self.tokens + (now_s - self.at_s) * per_s, burst)
            self.at_s = now_s
        return self.tokens


def cost_of(size_bytes: int, events: int = 0) -> int:
    """Of a frame or body of so many bytes that names so many events, before it is known whether it
    is as documented: what is refused was work too."""
    return max(1, events, size_bytes // COST_BYTES)


def text_of(events: Sequence[Submitted], size_bytes: int) -> int:
    """The bytes of UTF-8 in the texts of a batch that had so many bytes; 0 where these are few."""
    if size_bytes <= ORDINARY_BYTES * len(events):
        return 0
    return sum(
        len(value.encode())
        for event in events
        if isinstance(event, Event)
        for value in event.named.values()
        if isinstance(value, str)
    )


class Rates:
    """How much a connection and a user may ask for.

    | what                                         | costs                                         |
    |----------------------------------------------|-----------------------------------------------|
    | a batch of events, by socket or REST,        | 1 for each event; 1 for every `COST_BYTES`,   |
    | accepted, rejected or refused as a whole     | where that is more                            |
    | any other frame                              | 1; 1 for every `COST_BYTES`, where that is    |
    |                                              | more                                          |
    | the texts of a batch of long events          | their bytes, of a rate of their own           |
    | a WebSocket frame, also a fragment or a ping | 1 of rates of their own, for frames           |
    """

    def __init__(self, connection_per_s: float, user_per_s: float) -> None:
        self._connection = Rate(connection_per_s, BURST_S * connection_per_s)
        self._user = Rate(user_per_s, BURST_S * user_per_s)
        frames_per_s = FRAMES_PER_EVENT * connection_per_s
        self._frames = Rate(frames_per_s, max(frames_per_s, FRAMES_AT_ONCE))
        self._unsigned_frames = Rate(UNSIGNED_FRAMES_PER_S, UNSIGNED_FRAMES_AT_ONCE)
        user_frames_per_s = FRAMES_PER_EVENT * user_per_s
        self._user_frames = Rate(user_frames_per_s, max(user_frames_per_s, FRAMES_AT_ONCE))
        text_per_s = TEXT_PER_EVENT * user_per_s
        self._texts_of_users = _Shared(Rate(text_per_s, TEXT_BURST_S * text_per_s))
        self._events_of_users = _Shared(self._user)
        self._frames_of_users = _Shared(self._user_frames)

    def of_connection(self, now_s: float) -> Bucket:
        return Bucket(self._connection, now_s)

    def of_frames(self, now_s: float, user_id: UserId | None) -> tuple[Bucket, ...]:
        """The rates of WebSocket frames of one connection, and of all of its user's to this
        process. Above either, the connection is read more slowly. Nothing is refused, because a
        message may come in any number of fragments."""
        if user_id is None:
            return (Bucket(self._unsigned_frames, now_s),)
        return Bucket(self._frames, now_s), self._frames_of_users.of(user_id, now_s)

    def of_user(self, user_id: UserId, now_s: float) -> Bucket:
        """The one bucket of all that the user sends to this process."""
        return self._events_of_users.of(user_id, now_s)

    def of_text(self, user_id: UserId, now_s: float) -> Bucket:
        """The one bucket of the user's texts."""
        return self._texts_of_users.of(user_id, now_s)


class _Shared:
    """The buckets of users. One lives as long as a session has it, and after that as long as it is
    one of the `USERS_MAX` last asked for: coming back is no way to a full one."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._buckets: WeakValueDictionary[UserId, Bucket] = WeakValueDictionary()
        self._recent: Recent[UserId, Bucket] = Recent(USERS_MAX)

    def of(self, user_id: UserId, now_s: float) -> Bucket:
        bucket = self._buckets.get(user_id)
        if bucket is None:
            bucket = self._buckets[user_id] = Bucket(self._rate, now_s)
        self._recent[user_id] = bucket
        return bucket


class Places:
    """How many things each holder has: at most `most`, or with 0 any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._holders: dict[object, str] = {}
        self._held: Counter[str] = Counter()

    def take(self, thing: object, holder: str) -> bool:
        """Count the thing; return whether there was a place. A thing that has one keeps it."""
        if not self._most or thing in self._holders:
            return True
        if not self.left(holder):
            return False
        self._holders[thing] = holder
        self._held[holder] += 1
        return True

    def left(self, holder: str) -> bool:
        """Whether the holder may take one more."""
        return not self._most or self._held[holder] < self._most

    def give_back(self, thing: object) -> None:
        """The thing is gone; again, or without a place, changes nothing."""
        holder = self._holders.pop(thing, None)
        if holder is not None:
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]
