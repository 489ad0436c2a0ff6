"""Where an event belongs, relative to a cursor: pure arithmetic on sequences.

`place` is for one frame and one position. `Track` is a feed's: it merges what is offered with what
is read from the log. `next_step` is a subscription's: how it goes from history to live.

A feed or a subscriber stands at `position`, the last sequence it has been given. Frames carry a
range `from..to`; they can come early (a publisher was faster than another), late or twice (the bus
and the log overlap), or never (the bus lost them).

| frame                        | placed as | what follows                                       |
|------------------------------|-----------|----------------------------------------------------|
| to <= position               | SKIP      | it was delivered before                            |
| from == position + 1         | DELIVER   | position becomes `to`                              |
| from > position + 1          | GAP       | something is missing: read the log up to `to`      |
| from <= position < to        | GAP       | overlaps: part was delivered, the rest is read     |

A subscription's states, and its next step. It is asked again after each step, and whenever its wire
has drained.

| state       | its cursor, its wire          | next step                                          |
|-------------|-------------------------------|----------------------------------------------------|
| CATCHING_UP | cursor > the feed's position  | WAIT until the feed gets there too                 |
| CATCHING_UP | the wire is full              | LAG: it costs nothing from here on but its cursor  |
| CATCHING_UP | cursor == the feed's position | GO_LIVE, in the same turn of the loop              |
| CATCHING_UP | behind                        | READ what follows the cursor, from tail or log     |
| LIVE        | moves with the feed           | STOP; when its wire is full it is LAGGING          |
| LAGGING     | stands still                  | STOP; when its wire has drained it is CATCHING_UP  |
| ENDED       |                               | STOP                                               |
"""

from enum import Enum


class Place(Enum):
    DELIVER = "deliver"
    SKIP = "skip"
    GAP = "gap"


def place(position: int, from_sequence: int, to_sequence: int) -> Place:
    """Where a frame `from_sequence`..`to_sequence` belongs for someone who is at `position`."""
    if to_sequence <= position:
        return Place.SKIP
    if from_sequence == position + 1:
        return Place.DELIVER
    return Place.GAP


class Track:
    """Where a feed stands: `position` is the last sequence delivered, and means nothing before it
    is `known`. While a gap is being filled (`filling`), what is offered is not kept: only how far
    the log reaches (P8)."""

    __slots__ = ("_missing_to", "filling", "known", "position")

    def __init__(self) -> None:
        self.position = 0
        self.known = False
        self.filling = False
        self._missing_to = 0

    def begin(self, position: int) -> None:
        """It is known now where the feed stands."""
        self.position = position
        self.known = True

    def offered(self, from_sequence: int, to_sequence: int) -> Place:
        """What to do with a frame that comes from the committer or the bus."""
        if not self.known or self.filling:
            self.noticed(to_sequence)
            return Place.SKIP
        placed = place(self.position, from_sequence, to_sequence)
        if placed is Place.GAP:
            self.noticed(to_sequence)
        return placed

    def noticed(self, head: int) -> None:
        """The log is at least this long."""
        self._missing_to = max(self._missing_to, head)

    @property
    def missing_to(self) -> int | None:
        """Up to where the log must be read; None if nothing is known to be missing."""
        return self._missing_to if self.known and self._missing_to > self.position else None

    def forget_missing(self) -> None:
        """The log does not have what was said to be in it."""
        self._missing_to = self.position


class SubscriptionState(Enum):
    CATCHING_UP = "catching up"
    LIVE = "live"
    LAGGING = "lagging"
    ENDED = "ended"


class Step(Enum):
    WAIT = "wait"
    GO_LIVE = "go live"
    LAG = "lag"
    READ = "read"
    STOP = "stop"


def next_step(state: SubscriptionState, cursor: int, position: int, *, full: bool) -> Step:
    """What a subscription at `cursor` does next, on a feed that is at `position`."""
    if state is not SubscriptionState.CATCHING_UP:
        return Step.STOP
    if cursor > position:
        return Step.WAIT
    if full:
        return Step.LAG
    return Step.GO_LIVE if cursor == position else Step.READ
