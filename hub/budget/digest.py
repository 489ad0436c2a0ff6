"""The digest: one number that is equal where live records, members and roles are (design-2 3).

    digest      = Σ fingerprint  mod 2^64, over all live records and active participants
    fingerprint = first 8 bytes, big-endian, of
                  SHA-256( netstring(kind) netstring(id) netstring(version) ‖ C )
    C           = SHA-256 of `netstring(name) value` of each field whose value is not its default,
                  in the order of the bytes of the names
    netstring   = <number of bytes>:<UTF-8>,

A value is the netstring of its text; `-` for null where null is not the default; an integer in
decimal digits; `true` or `false`; a list is the netstring of its items' values one after another.
A field without a default always stands. So a field that is added later changes no digest that there
is. A participant counts as kind `participant`, its user id, version 1, with the one field `role`.

`hub/digest-vectors.json` has examples for every client.
"""

from collections.abc import Sequence
from decimal import Decimal
from hashlib import sha256
from typing import Literal, TypeAlias

from hub.budget.kinds import REQUIRED, Kind

Role: TypeAlias = Literal["owner", "editor"]

DIGEST_MODULUS = 1 << 64


def fields_hash(kind: Kind, values: Sequence[object]) -> bytes:
    """C, 32 bytes. `values` are those of `kind.fields`, in their order."""
    parts: list[str] = []
    for position, name, default in kind.canonical:
        value = values[position]
        if default is REQUIRED or value != default:
            parts += (name, netstring(value) if type(value) is str else value_text(value))
    return sha256("".join(parts).encode()).digest()


def fingerprint(kind: str, id: str, version: int, fields: bytes) -> int:
    """Of a record whose C is `fields`; an unsigned 64-bit integer."""
    digits = str(version)
    head = f"{netstring(kind)}{netstring(id)}{len(digits)}:{digits},"
    return int.from_bytes(sha256(head.encode() + fields).digest()[:8], "big")


def participant_fingerprint(user_id: str, role: Role) -> int:
    return fingerprint("participant", user_id, 1, _ROLES[role])


def digest_text(digest: int) -> str:
    """16 lower-case hex digits, as the wire shows a digest."""
    return f"{digest:016x}"


def value_text(value: object) -> str:
    """Raises `TypeError` for what no field can hold."""
    if isinstance(value, Decimal):  # first: most values that are no text
        return netstring(str(value))
    if value is None:
        return "-"
    if isinstance(value, str):
        return netstring(value)
    if isinstance(value, bool):
        return netstring("true" if value else "false")
    if isinstance(value, int):
        return netstring(str(value))
    if isinstance(value, list | tuple):
        return netstring("".join(map(value_text, value)))
    raise TypeError(f"no field holds a {type(value).__name__}")


def netstring(text: str) -> str:
    size = len(text) if text.isascii() else len(text.encode())
    return f"{size}:{text},"


_ROLES = {
    role: sha256(f"{netstring('role')}{netstring(role)}".encode()).digest()
    for role in ("owner", "editor")
}
