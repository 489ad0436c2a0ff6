"""Lines on their way to a stream that may be gone, full, or read by nobody.

| the stream                     | its lines                                                     |
|--------------------------------|---------------------------------------------------------------|
| takes them                     | are written one by one, by a thread of their own              |
| is slow, or nobody reads       | wait, up to `LINES_MAX` and `BYTES_MAX`; more than that is    |
|                                | lost                                                          |
| is gone, full, broken, closed  | are lost one by one; each further one is tried                |
| is any of it when the process  | are waited for `FINISH_S` at most                             |
| ends                           |                                                               |

Whoever writes a line never waits and gets no exception. What is lost is counted.
"""

import os
import select
import threading
from collections import deque
from io import TextIOBase

LINES_MAX = 10_000
BYTES_MAX = 4 * 1024 * 1024
FINISH_S = 2.0


class Backlog:
    """Lines that wait, the oldest first. A line for which there is no room is lost."""

    def __init__(self, lines_max: int = LINES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.lost = 0
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._lines_max = lines_max
        self._bytes_max = bytes_max

    def __len__(self) -> int:
        return len(self._lines)

    def put(self, line: bytes) -> None:
        if len(self._lines) >= self._lines_max or self._bytes + len(line) > self._bytes_max:
            self.lost += 1
            return
        self._lines.append(line)
        self._bytes += len(line)

    def take(self) -> bytes:
        line = self._lines.popleft()
        self._bytes -= len(line)
        return line


class LineWriter(TextIOBase):
    """A text stream onto the descriptor, for whole lines: each `write` is one or several of them.

    `descriptor` None is a stream that was closed from the start: every line is lost."""

    def __init__(self, descriptor: int | None, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._backlog = Backlog()
        # Reentrant: a finalizer may log while its thread is inside `write`.
        self._some = threading.Condition(threading.RLock())
        self._writing = False  # a line that was taken
        self._torn = False  # the last line is there in part
        self._failed = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="log lines", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """How many lines nobody will read."""
        return self._backlog.lost + self._failed

    def write(self, text: str) -> int:
        line = text.encode(self._encoding, "backslashreplace")
        with self._some:
            if self._ended:
                self._failed += 1
            elif line:
                self._backlog.put(line)
                self._some.notify_all()
        return len(text)

    def flush(self) -> None:
        """Does nothing: who logs does not wait."""

    def finish(self, within_s: float = FINISH_S) -> None:
        """Wait until everything is written, `within_s` at most. What comes later is lost."""
        with self._some:
            self._some.wait_for(self._idle, within_s)
            self._ended = True
            self._some.notify_all()

    def _idle(self) -> bool:
        return not self._backlog and not self._writing

    def _run(self) -> None:
        while True:
            with self._some:
                self._writing = False
                self._some.notify_all()
                self._some.wait_for(lambda: self._backlog or self._ended)
                if self._ended:
                    return
                line = self._backlog.take()
                self._writing = True
            self._put(line)

    def _put(self, line: bytes) -> None:
        if self._descriptor is None:
            self._failed += 1
            return
        if self._torn:
            line = b"\n" + line  # the rest of the torn one is lost; this one stays readable
        left = memoryview(line)
        try:
            while left:
                left = left[self._some_of(self._descriptor, left) :]
            self._torn = False
        except OSError:  # there is nowhere to say it; the count is what tells
            self._failed += 1
            self._torn = self._torn or len(left) < len(line)

    @staticmethod
    def _some_of(descriptor: int, data: memoryview) -> int:
        """Write some of it; how many bytes. Waits as long as the stream takes nothing."""
        while True:
            try:
                return os.write(descriptor, data)
            except BlockingIOError:  # another process made it non-blocking: a terminal's is shared
                ready = select.poll()
                ready.register(descriptor, select.POLLOUT)
                ready.poll()
