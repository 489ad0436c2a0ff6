"""Text as WebSocket frames of a server, and back."""

import struct
from collections.abc import Iterator

PROTOCOL = "budget.sync.v2"
FRAME_BYTES_MAX = 256 * 1024  # in either direction
UNSIGNED_FRAME_BYTES_MAX = 16 * 1024  # until a user has signed in: only `auth` comes before

# RFC 6455 section 5.2: FIN and opcode, then the length in 7, 16 or 64 bits. A server does not mask.


def framed(text: bytes) -> bytes:
    """`text` as one unfragmented WebSocket text frame."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 65536:
        return b"\x81\x7e%b%b" % (struct.pack("!H", size), text)
    return b"\x81\x7f%b%b" % (struct.pack("!Q", size), text)


def texts(data: bytes) -> Iterator[bytes]:
    """The texts of frames made by `framed`, for transports that do their own framing."""
    start = 0
    while start < len(data):
        size = data[start + 1]
        start += 2
        if size == 126:
            (size,) = struct.unpack_from("!H", data, start)
            start += 2
        elif size == 127:
            (size,) = struct.unpack_from("!Q", data, start)
            start += 8
        yield data[start : start + size]
        start += size
