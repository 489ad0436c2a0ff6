"""What every photo store does: S3 (`s3`) and a folder on disk (`disk`)."""

from typing import NamedTuple, Protocol

from hub.budget.records import UserId
from storage.objects.media_types import PhotoType

# Of what is public: the address of an object is never used for another one.
CACHE_CONTROL = "public, max-age=31536000, immutable"


class Uploaded(NamedTuple):
    """A file that a client has uploaded: its size, its first `HEAD_BYTES` bytes, and a mark that
    changes with its content."""

    size_bytes: int
    head: bytes
    mark: str


class PhotoStore(Protocol):
    """Two places: clients write to `temp/` with signed URLs, everybody reads `public/`. What is in
    `temp/` goes by itself after a day.

    Raises `StoreDown` whenever the store does not do what was asked, be it out of reach, out of
    room or badly set up; everything may be tried again."""

    async def upload_url(
        self,
        user_id: UserId,
        key: str,
        content_type: PhotoType,
        size_bytes: int,
        expires_in_s: int,
    ) -> str:
        """Where to PUT exactly `size_bytes` bytes, with exactly this `Content-Type`. A path where
        the hub itself takes them."""
        ...

    async def uploaded(self, user_id: UserId, key: str) -> Uploaded | None:
        """What was put there, None if nothing."""
        ...

    async def publish(
        self, user_id: UserId, key: str, uploaded: Uploaded, content_type: PhotoType
    ) -> bool:
        """Copy to the public place exactly what `uploaded` saw; False if it is not that any more.
        Again is harmless."""
        ...

    def address(self, user_id: UserId, key: str) -> str:
        """Where the published photo is read; a path where it is the hub itself that serves it."""
        ...

    async def delete(self, object: str) -> None:
        """Nothing happens where there is none."""
        ...

    async def check(self) -> None:
        """Whether it is there."""
        ...

    async def expire(self) -> None:
        """Delete what has been in `temp/` for more than a day."""
        ...

    async def aclose(self) -> None: ...
