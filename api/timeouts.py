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
    head_s: float = 10.0  # for the head of a request to arrive, or for a new connection's first one
    body_s: float = 20.0  # for a body, and a second more for each `BODY_BYTES_PER_S`
    unread_s: float = 30.0  # what a peer does not take for as long is dropped with the connection
    ping_s: float = 20.0  # between two pings of a socket; a peer that shows no life in it is closed
    close_s: float = 10.0  # for the peer's close frame or end, after ours
    flush_s: float = 1.0  # for the last bytes to leave, where nothing is awaited any more
    farewell_s: float = 3.0  # for the peer's close frame, when the process ends

    # Closing an account: until then it may still have done something; later it is a new one.
    late_s: float = 10.0


APP_TIMEOUTS = AppTimeouts()
