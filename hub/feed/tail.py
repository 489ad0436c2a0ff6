"""The tail: a feed's latest frames, kept while a subscriber is behind, so that a short lag costs no
read of the log."""

from collections import deque
from collections.abc import Sequence

from hub.frames.events import Frame

TAIL_BYTES_MAX = 64 * 1024  # as much as a wire holds before it counts as full


class Tail:
    """Consecutive frames, the oldest dropped first."""

    __slots__ = ("_bytes", "_frames")

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._bytes = 0

    def append(self, frame: Frame) -> None:
        """The frame that follows the last one."""
        self._frames.append(frame)
        self._bytes += len(frame.data)
        while self._bytes > TAIL_BYTES_MAX:
            self._bytes -= len(self._frames.popleft().data)

    def after(self, cursor: int) -> Sequence[Frame]:
        """Every frame behind the cursor; none if the tail does not begin early enough, or the
        cursor stands inside a frame."""
        found: list[Frame] = []
        for frame in reversed(self._frames):
            if frame.to_sequence <= cursor:
                break
            found.append(frame)
        found.reverse()
        return found if found and found[0].from_sequence == cursor + 1 else ()
