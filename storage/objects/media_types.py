"""What a profile photo may be, and where it lies in a store. Pure: names and bytes, no I/O."""

import hashlib
import re
from enum import StrEnum, unique

from hub.budget.records import UserId

PHOTO_BYTES_MAX = 5 * 1024 * 1024
HEAD_BYTES = 64  # of a file's beginning, enough for `sniffed`

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis"})
_HEIF_BRANDS = frozenset({b"mif1", b"msf1"})  # any codec; the compatible brands say which


@unique
class PhotoType(StrEnum):
    """The media types a photo may have."""

    JPEG = "image/jpeg"
    PNG = "image/png"
    WEBP = "image/webp"
    HEIC = "image/heic"


def sniffed(head: bytes) -> PhotoType | None:
    """What a file really is, by its first `HEAD_BYTES` bytes; None if no photo."""
    if head.startswith(b"\xff\xd8\xff"):
        return PhotoType.JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PhotoType.PNG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return PhotoType.WEBP
    if head[4:8] == b"ftyp" and _is_heic(head):
        return PhotoType.HEIC
    return None


def temp_object(user_id: UserId, key: str) -> str:
    """Where a client uploads to."""
    return f"temp/{folder(user_id)}/{key}"


def public_object(user_id: UserId, key: str) -> str:
    """Where a confirmed photo lies. Everything below `public/` is readable by everybody."""
    return f"public/{public_path(user_id, key)}"


def public_path(user_id: UserId, key: str) -> str:
    """The same below `public/`, as the addresses of photos end."""
    return f"user-photos/{folder(user_id)}/{key}"


def folder(user_id: UserId) -> str:
    """A user's folder: one safe path segment, another one for each user.

    User ids are any text, `..` and 128 emoji included: those that are not plain go by their hash,
    which no plain one can look like."""
    if _PLAIN.fullmatch(user_id):
        return user_id
    return "~" + hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()


def _is_heic(head: bytes) -> bool:
    """A box `ftyp`: its length, its name, the major brand, a version, the compatible brands."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    compatible = {head[at : at + 4] for at in range(16, length - 3, 4)}
    return major in _HEIC_BRANDS or (
        major in _HEIF_BRANDS and not _HEIC_BRANDS.isdisjoint(compatible)
    )
