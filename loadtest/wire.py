"""What a device needs of a connection, whatever it is made of.

All three kinds speak the frames of `budget.sync.v2`: the two over HTTP put their answers into the
same frames, so that a device has one logic. `opened` gives one that is signed in.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

import orjson

Frame: TypeAlias = Mapping[str, Any]
Decode: TypeAlias = Callable[[bytes], Any]  # `orjson.loads`, or one that remembers

FRAME_BYTES_MAX = 256 * 1024  # the server promises no larger frame
ABNORMAL = 1006  # the close code of a connection that just ended


class Transport(StrEnum):
    SOCKET = "socket"
    LONG_POLL = "long-poll"
    EVENT_STREAM = "event-stream"


class Lost(NamedTuple):
    """How a connection ended: by a WebSocket close code (the HTTP kinds use the same ones), or
    because the device closed it."""

    code: int
    reason: str
    by_device: bool = False


class Receiver(Protocol):
    """The device, as its wire sees it. Both are called on the loop and must not wait."""

    def received(self, frame: Frame) -> None:
        """Raises nothing, whatever the frame is."""

    def lost(self, lost: Lost) -> None:
        """Once, at the end."""


class Wire(Protocol):
    def send(self, frame: Frame) -> None:
        """Goes out some time; where the wire is lost already, nowhere."""

    def close(self) -> None:
        """`lost` comes soon."""

    def abort(self) -> None:
        """Be gone without a word, as a phone in a tunnel; `lost` comes soon."""

    def pause_reading(self) -> None:
        """Take nothing from the kernel any more, as a device that hangs."""

    def resume_reading(self) -> None: ...


def text(frame: Frame) -> bytes:
    return orjson.dumps(frame)
