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

    # Closing an account: until then it may still have done something; later it is a new one.
    late_s: float = 10.0


APP_TIMEOUTS = AppTimeouts()
