"""Where an event belongs, relative to a cursor: pure arithmetic on sequences.

A feed or a subscriber stands at `position`, the last sequence it has been given. Frames carry a
range `from..to`; they can come early (a publisher was faster than another), late or twice (the bus
and the log overlap), or never (the bus lost them).

| frame                        | placed as | what follows                                       |
|------------------------------|-----------|----------------------------------------------------|
| to <= position               | SKIP      | it was delivered before                            |
| from == position + 1         | DELIVER   | position becomes `to`                              |
| from > position + 1          | GAP       | something is missing: read the log up to `to`      |
| from <= position < to        | GAP       | overlaps: part was delivered, the rest is read     |
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
