"""How long the parts of a hub wait. Storage and the edge add theirs (`api.timeouts`)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds."""

    settle_s: float = 8.0  # a lost commit is tried again for as long, then it is UNAVAILABLE
    turn_s: float = 5.0  # a budget that another node holds waits for its turn, then it is BUSY
    join_s: float = 30.0  # a subscription waits for its turn to read, then it is UNAVAILABLE
    retry_s: float = 0.25  # between two reads of a feed while the log is out of reach
    presence_s: float = 0.5  # changes of presence are gathered before they are told
    sweep_s: float = 1.0  # between two sweeps
    drain_s: float = 8.0  # submitted events have until their verdicts when the hub drains


TIMEOUTS = Timeouts()
