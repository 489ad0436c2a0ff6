"""How long storage waits, beside the hub.

What a session of Postgres may take the server counts (`SESSION` in `storage.postgres.database`).
"""

from dataclasses import dataclass

from hub.timeouts import Timeouts


@dataclass(frozen=True)
class StorageTimeouts(Timeouts):
    """In seconds."""

    # Postgres
    command_s: float = 10.0  # ours, for a server that has gone silent
    connect_s: float = 5.0

    # The bus
    heartbeat_s: float = 0.5  # between two of them
    deaf_s: float = 2.0  # without one's own; noticed a heartbeat later at most
    silent_s: float = 10.0  # without another node's: it is gone
    stalled_s: float = 3.0  # for frames to be taken
    redis_connect_s: float = 2.0
    look_s: float = 1.0  # between two looks at a cluster while a link is missing
    look_calm_s: float = 10.0  # and while none is
    looking_s: float = 10.0  # for one look; it asks one node after the other
    redis_answer_s: float = 2.0  # of a cluster's node, of a counter: then it counts as dead

    # Rate limits
    patience_s: float = 0.02  # for an answer of Redis; then it is counted here
    away_s: float = 1.0  # between two attempts while it does not answer: one request has to wait

    # S3
    s3_turn_s: float = 5.0  # for others' calls
    s3_connect_s: float = 3.0
    s3_answer_s: float = 5.0


STORAGE_TIMEOUTS = StorageTimeouts()
