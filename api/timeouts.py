"""How long all parts wait, in one object. Passed in where something is opened."""

from dataclasses import dataclass

from storage.timeouts import StorageTimeouts


@dataclass(frozen=True)
class AppTimeouts(StorageTimeouts):
    """In seconds."""

    # Firebase
    standing_s: float = 2.0  # how long a new token waits for word about its user
    introducing_s: float = 2.0  # and for the profile to be written

    # Between two comments on a silent stream; also finds peers that are gone.
    keep_alive_s: float = 15.0

    # Connections
    head_s: float = 10.0  # for the head of a request, and for the first byte of a connection
    body_s: float = 20.0  # for a body, plus a second for each `BODY_BYTES_PER_S` received
    unread_s: float = 30.0  # a connection whose peer takes no data for this long is dropped
    ping_s: float = 20.0  # between two pings; a socket without a sign of life in between is closed
    close_s: float = 10.0  # for the peer's close frame or end, after ours
    flush_s: float = 1.0  # for the last bytes to be sent, when no answer is awaited
    farewell_s: float = 3.0  # for the peer's close frame, when the process ends

    # Closing an account: until then it may still have done something; later it is a new one.
    late_s: float = 10.0


APP_TIMEOUTS = AppTimeouts()
