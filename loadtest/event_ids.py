"""The eventIds of a run, which also say when their event was meant to be sent.

UUIDs of version 7 with the moment in them, to a quarter of a microsecond (RFC 9562, section 6.2,
method 3): whichever process sees the event arrive can tell how long it took, without a table of all
events and without a word between processes. What must not be measured, because a person made it
while the device was offline, gets a UUID of version 4.
"""

from random import Random

_FRACTIONS = 1 << 12  # of a millisecond


def timed_id(at_s: float, rng: Random) -> str:
    """An eventId for an event that is due at `at_s`, in seconds since the epoch."""
    ticks = int(at_s * 1000 * _FRACTIONS)
    ms, fraction = divmod(ticks, _FRACTIONS)
    return _text((ms << 80) | (0x7 << 76) | (fraction << 64) | (0x2 << 62) | rng.getrandbits(62))


def untimed_id(rng: Random) -> str:
    bits = rng.getrandbits(128)
    bits &= ~(0xF << 76) & ~(0x3 << 62)
    return _text(bits | (0x4 << 76) | (0x2 << 62))


def due_s(event_id: str) -> float | None:
    """When the event was meant to be sent, in seconds since the epoch; None for an untimed one."""
    if event_id[14] != "7":
        return None
    ms = int(event_id[:8] + event_id[9:13], 16)
    return (ms + int(event_id[15:18], 16) / _FRACTIONS) / 1000


def _text(bits: int) -> str:
    digits = f"{bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
