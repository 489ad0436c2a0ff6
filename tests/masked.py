"""WebSocket frames of a client. The mask is always the same, so that runs are repeatable."""

from itertools import cycle

from websockets.frames import Frame, Opcode

MASK = b"\x5a\x00\xff\x81"


def masked(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    whole = Frame(Opcode(opcode), data, fin=fin).serialize(mask=False)
    head = whole[: len(whole) - len(data)]
    hidden = bytes(byte ^ mask for byte, mask in zip(data, cycle(MASK), strict=False))
    return bytes((head[0], head[1] | 0x80)) + head[2:] + MASK + hidden
