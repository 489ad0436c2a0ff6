"""What a profile photo may be, by its media type and by its first bytes."""

from enum import StrEnum, unique

PHOTO_BYTES_MAX = 5 * 1024 * 1024
HEAD_BYTES = 64  # of a file's beginning, enough for `sniffed`

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


def _is_heic(head: bytes) -> bool:
    """A box `ftyp`: its length, its name, the major brand, a version, the compatible brands."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    compatible = {head[at : at + 4] for at in range(16, length - 3, 4)}
    return major in _HEIC_BRANDS or (
        major in _HEIF_BRANDS and not _HEIC_BRANDS.isdisjoint(compatible)
    )
