"""Files that are photos by their first bytes, and some that are not."""

from storage.objects.media_types import PhotoType

HEADS = {
    PhotoType.JPEG: b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    PhotoType.PNG: b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    PhotoType.WEBP: b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    PhotoType.HEIC: b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
}
TEXT = b"This is no picture, whatever its name says.\n" * 20


def picture(photo_type: PhotoType = PhotoType.JPEG, size_bytes: int = 1000, mark: int = 0) -> bytes:
    """A file of this type and size; another `mark`, another content."""
    head = HEADS[photo_type]
    return head + bytes([mark]) * (size_bytes - len(head))
