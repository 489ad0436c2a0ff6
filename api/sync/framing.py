"""The frames of a WebSocket client: cut out of its bytes, checked, and joined to messages.

| a frame with                                            | is                                |
|---------------------------------------------------------|-----------------------------------|
| no mask, a reserved bit, a reserved opcode              | a violation, 1002 (RFC 6455, 5.2) |
| a ping, pong or close that is a fragment or over 125    | a violation, 1002 (5.5)           |
| a continuation of nothing, a message within a message   | a violation, 1002 (5.4)           |
| more bytes than the message may still have              | a violation, 1009                 |
| the end of a text that is not UTF-8                     | a violation, 1007 (8.1)           |
| the end of a message                                    | `TEXT` or `BINARY`, the whole     |
| the beginning or middle of a message                    | `CONT`, and nothing else          |
| a ping, pong or close, also between fragments           | `PING`, `PONG` or `CLOSE`         |

Pure: bytes in, frames out. Frames come out one at a time, so the caller decides how many to handle
in a turn of the loop. The parser of `websockets` cannot do that: it parses everything that was
read at once. It also takes four times as long, accepts bad UTF-8, and fails at a close between
fragments.
"""

from typing import TypeAlias

from websockets.frames import Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the compiled part
    from websockets.utils import apply_mask

# As plain numbers: the arithmetic of an `IntEnum` costs more than all the rest of a frame.
CONT, TEXT, BINARY, CLOSE, PING, PONG = map(int, Opcode)
PROTOCOL_ERROR, NOT_UTF8, TOO_BIG = 1002, 1007, 1009
CONTROL_BYTES_MAX = 125
DROPPED_MAX = 20_000  # frames behind the end of a connection; even these take 10 ms of the loop

_FIN, _RESERVED, _OPCODE = 0x80, 0x70, 0x0F
_MASKED, _SIZE = 0x80, 0x7F
_WHOLE_TEXT = _FIN | TEXT
_CONTROL = 0x08  # the bit of opcodes that control frames have


Received: TypeAlias = tuple[int, bytes]  # opcode and payload; a named tuple would cost a third more


class Violation(Exception):
    """The bytes break the WebSocket protocol or a limit of ours; `code` is the close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


_FRAGMENT: Received = (CONT, b"")


class Frames:
    """The bytes that a client sent, taken out as frames. Holds what was fed and not taken, and one
    message in fragments of at most `message_bytes_max` bytes. `pending` is true while bytes are
    left."""

    __slots__ = (
        "_at",
        "_buffer",
        "_message",
        "_opcode",
        "_skipped",
        "dropped",
        "message_bytes_max",
        "pending",
    )

    def __init__(self, message_bytes_max: int) -> None:
        self.message_bytes_max = message_bytes_max
        self.pending = False
        self._buffer: bytes | bytearray = b""
        self._at = 0  # where the next frame begins
        self._opcode = 0  # of the message whose fragments come; 0: of none
        self._message: bytearray | None = None  # its fragments so far
        self._skipped = 0  # bytes of a dropped frame that have yet to come
        self.dropped = 0  # frames, so far

    def feed(self, data: bytes) -> None:
        if not self.pending:
            self._buffer = data
        elif isinstance(self._buffer, bytearray):
            del self._buffer[: self._at]
            self._buffer += data
        else:  # a frame in many pieces: do not copy all of it for each piece
            self._buffer = bytearray(self._buffer[self._at :])
            self._buffer += data
        self._at = 0
        self.pending = bool(self._buffer)

    def next(self) -> Received | None:
        """The next frame; None until more bytes come. Raises `Violation`, after which only `drop`
        goes on."""
        buffer, at = self._buffer, self._at
        end = len(buffer)
        if end - at < 2:
            return None
        first, second = buffer[at], buffer[at + 1]
        size, body = second & _SIZE, at + 2
        if size == 126:
            body += 2
            size = int.from_bytes(buffer[at + 2 : body], "big")
        elif size == 127:
            body += 8
            size = int.from_bytes(buffer[at + 2 : body], "big")
        body += 4
        if first != _WHOLE_TEXT or self._opcode or not second & _MASKED:
            self._check(first, second)
        if body - 4 > end:
            return None
        before = 0 if self._message is None else len(self._message)
        if before + size > self.message_bytes_max and not first & _CONTROL:
            raise Violation(TOO_BIG, f"over {self.message_bytes_max} bytes")
        after = body + size
        if after > end:
            return None
        data = apply_mask(buffer[body:after], buffer[body - 4 : body])
        if after < end:
            self._at = after
        else:  # an idle connection keeps nothing of what it read
            self._buffer, self._at, self.pending = b"", 0, False
        return self._taken(first, data)

    def drop(self) -> bool:
        """Discard what was fed; return whether it held a close frame. Frame lengths still count, so
        that a close frame is found behind a frame that was too big. Stops at `DROPPED_MAX`."""
        buffer, at, end = self._buffer, self._at + self._skipped, len(self._buffer)
        self._message = None
        while end - at >= 2 and self.dropped < DROPPED_MAX:
            self.dropped += 1
            size, body = buffer[at + 1] & _SIZE, at + 2
            if buffer[at] & _OPCODE == CLOSE:
                return True
            if size >= 126:
                body += 2 if size == 126 else 8
                if body > end:
                    break
                size = int.from_bytes(buffer[at + 2 : body], "big")
            at = body + size + (4 if buffer[at + 1] & _MASKED else 0)
        self._skipped = max(at - end, 0)
        self._buffer, self._at = buffer[min(at, end) :], 0
        self.pending = bool(self._buffer)
        return False

    def _taken(self, first: int, data: bytes) -> Received:
        """The frame, and the message if it is its last."""
        opcode = first & _OPCODE
        if opcode & _CONTROL:
            return opcode, data
        if not first & _FIN or not opcode:
            if opcode:
                self._opcode, self._message = opcode, bytearray()
            assert self._message is not None
            self._message += data
            if not first & _FIN:
                return _FRAGMENT
            opcode, data = self._opcode, bytes(self._message)
            self._opcode, self._message = 0, None
        if opcode == TEXT and not _is_utf8(data):
            raise Violation(NOT_UTF8, "not UTF-8")
        return opcode, data

    def _check(self, first: int, second: int) -> None:
        """Raises `Violation` for a head that may not stand here."""
        opcode, size = first & _OPCODE, second & _SIZE
        if first & _RESERVED:
            raise Violation(PROTOCOL_ERROR, "reserved bits must be 0")
        if opcode not in _OPCODES:
            raise Violation(PROTOCOL_ERROR, "invalid opcode")
        if not second & _MASKED:
            raise Violation(PROTOCOL_ERROR, "not masked")
        if opcode & _CONTROL:
            if size > CONTROL_BYTES_MAX:
                raise Violation(PROTOCOL_ERROR, "control frame too long")
            if not first & _FIN:
                raise Violation(PROTOCOL_ERROR, "fragmented control frame")
        elif opcode and self._opcode:
            raise Violation(PROTOCOL_ERROR, "expected a continuation frame")
        elif not opcode and not self._opcode:
            raise Violation(PROTOCOL_ERROR, "unexpected continuation frame")


_OPCODES = frozenset((CONT, TEXT, BINARY, CLOSE, PING, PONG))


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
