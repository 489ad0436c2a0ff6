"""Photos in a folder on disk, for development and a single machine: the hub itself takes uploads
and serves what is public (`api/rest/files/disk_store.py`).

    folder/incoming/<random>                  an upload while it comes in
    folder/temp/<user>/<key>                  a complete one, put there by a rename
    folder/public/user-photos/<user>/<key>    a confirmed one

A file never changes once it has its name, so an open file keeps its content.
"""

import asyncio
import errno
import hmac
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlencode

import anyio.to_thread
from anyio import CapacityLimiter

from hub.budget.records import UserId
from hub.errors import Code, Held, HubError, StoreDown
from hub.gate import Gate
from hub.limits import Places
from hub.turns import Crowded
from storage.objects.media_types import HEAD_BYTES, PhotoType
from storage.objects.names import folder, public_object, public_path, temp_object
from storage.objects.store import Uploaded

CALLS_MAX = 8  # threads
CALLS_PER_USER = 4
UPLOADS_MAX = 64  # coming in at a time
UPLOADS_PER_USER = 8
UPLOAD_S = 120
PIECE_BYTES = 256 * 1024
TEMP_S = 24 * 3600
UPLOAD_PATH = "/photos/temp"
PUBLIC_PATH = "/photos"

_SEGMENT = re.compile(r"[A-Za-z0-9_-]{1,128}|~[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGITS = re.compile(r"[0-9]{1,15}")
_T = TypeVar("_T")


class DiskPhotos:
    """A `PhotoStore`.

    The first of `secrets` signs upload URLs and all of them count. `now` gives epoch seconds. Of
    several processes on one folder each may take what another has signed."""

    def __init__(
        self,
        folder: Path,
        secrets: Sequence[bytes],
        *,
        base_url: str,
        now: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._keys = [hmac.digest(secret, b"budget-hub photos", "sha256") for secret in secrets]
        self._base_url = base_url.rstrip("/")
        self._now = now
        self._threads = CapacityLimiter(CALLS_MAX)
        self._turns = Gate(CALLS_MAX, CALLS_PER_USER)  # of users by their folders
        self._incoming = 0
        self._incoming_of = Places(UPLOADS_PER_USER)

    async def upload_url(
        self,
        user_id: UserId,
        key: str,
        content_type: PhotoType,
        size_bytes: int,
        expires_in_s: int,
    ) -> str:
        object = temp_object(user_id, key)
        expires = str(int(self._now()) + expires_in_s)
        signature = self._signature(self._keys[0], object, content_type, size_bytes, expires)
        query = urlencode({"size": size_bytes, "expires": expires, "signature": signature})
        return f"{UPLOAD_PATH}/{object.removeprefix('temp/')}?{query}"

    async def receive(
        self,
        user_folder: str,
        key: str,
        *,
        content_type: str,
        content_length: str | None,
        size: str,
        expires: str,
        signature: str,
        body: AsyncIterator[bytes],
    ) -> None:
        """Take an upload, all its parameters as the client sent them.

        Raises `HubError`: `UPLOAD_NOT_SIGNED`, `PHOTO_NOT_VALID` where the body is not of the
        signed length (no more of it is read, and nothing kept), `BUSY`."""
        object = _object("temp", user_folder, key)
        if object is None or not _DIGITS.fullmatch(size) or not _DIGITS.fullmatch(expires):
            raise HubError(Code.UPLOAD_NOT_SIGNED)
        wanted = [
            self._signature(each, object, content_type, int(size), expires) for each in self._keys
        ]
        given = signature.encode()
        if not sum(hmac.compare_digest(given, each.encode()) for each in wanted):
            raise HubError(Code.UPLOAD_NOT_SIGNED)
        if self._now() >= int(expires):
            raise HubError(Code.UPLOAD_NOT_SIGNED, "The upload URL has run out.")
        if content_length is not None and content_length != size:
            raise HubError(Code.PHOTO_NOT_VALID, f"the body must have {size} bytes")
        if self._incoming >= UPLOADS_MAX or not self._incoming_of.take(body, user_folder):
            raise HubError(Code.BUSY)
        self._incoming += 1
        try:
            async with asyncio.timeout(UPLOAD_S):
                await self._take(object, user_folder, int(size), body)
        except TimeoutError:
            raise HubError(Code.BUSY, f"an upload may take {UPLOAD_S} s") from None
        finally:
            self._incoming -= 1
            self._incoming_of.give_back(body)

    async def uploaded(self, user_id: UserId, key: str) -> Uploaded | None:
        def read() -> Uploaded | None:
            try:
                with self._path(temp_object(user_id, key)).open("rb") as file:
                    return Uploaded(_size(file), file.read(HEAD_BYTES), _mark(file))
            except FileNotFoundError:
                return None

        return await self._call(read, folder(user_id))

    async def publish(
        self, user_id: UserId, key: str, uploaded: Uploaded, content_type: PhotoType
    ) -> bool:
        def copy() -> bool:
            try:
                source = self._path(temp_object(user_id, key)).open("rb")
            except FileNotFoundError:
                return False
            with source:
                if _mark(source) != uploaded.mark:
                    return False
                path, file = self._new()
                try:
                    shutil.copyfileobj(source, file)
                    _put(file, self._path(public_object(user_id, key)))
                finally:
                    _drop(file, path)
            return True

        return await self._call(copy, folder(user_id))

    def address(self, user_id: UserId, key: str) -> str:
        return f"{self._base_url}/{public_path(user_id, key)}"

    async def delete(self, object: str) -> None:
        await self._call(lambda: self._path(object).unlink(missing_ok=True))

    async def check(self) -> None:
        """Whether the folder can be written to, or made: there is none before the first photo."""

        def look() -> None:
            path = self._folder.absolute()
            there = next(each for each in (path, *path.parents) if each.exists())
            if not there.is_dir() or not os.access(there, os.W_OK):
                raise OSError(errno.EACCES, "not writable")

        await self._call(look)

    async def expire(self) -> None:
        def sweep() -> None:
            oldest_s = self._now() - TEMP_S
            for place in ("incoming", "temp"):
                for path in self._path(place).glob("**/*"):
                    try:
                        if path.is_file() and path.stat().st_mtime < oldest_s:
                            path.unlink()
                    except FileNotFoundError:
                        pass  # another process was first

        await self._call(sweep)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def public_file(self, user_folder: str, key: str) -> tuple[Path, bytes] | None:
        """A confirmed photo and its first bytes, None if there is none."""
        object = _object("public/user-photos", user_folder, key)
        if object is None:
            return None
        path = self._path(object)

        def head() -> tuple[Path, bytes] | None:
            try:
                with path.open("rb") as file:
                    return path, file.read(HEAD_BYTES)
            except FileNotFoundError:
                return None

        return await self._call(head, user_folder)

    async def _take(
        self, object: str, user_folder: str, size_bytes: int, body: AsyncIterator[bytes]
    ) -> None:
        """The body into its place, if it has the right length."""
        path, file = await self._call(self._new, user_folder)
        try:
            received, piece = 0, b""
            async for chunk in body:
                received += len(chunk)
                if received > size_bytes:
                    break
                piece += chunk
                if len(piece) >= PIECE_BYTES:
                    await self._call(partial(file.write, piece), user_folder)
                    piece = b""
            if received != size_bytes:
                raise HubError(Code.PHOTO_NOT_VALID, f"the body must have {size_bytes} bytes")
            await self._call(partial(file.write, piece), user_folder)
            await self._call(partial(_put, file, self._path(object)), user_folder)
        finally:
            _drop(file, path)

    def _new(self) -> tuple[Path, BinaryIO]:
        """A file without its name yet."""
        incoming = self._path("incoming")
        incoming.mkdir(parents=True, exist_ok=True)
        path = incoming / secrets.token_hex(16)
        return path, path.open("xb")

    def _path(self, object: str) -> Path:
        return self._folder / object

    @staticmethod
    def _signature(
        key: bytes, object: str, content_type: str, size_bytes: int, expires: str
    ) -> str:
        said = "\n".join((object, content_type, str(size_bytes), expires))
        return hmac.digest(key, said.encode(), "sha256").hex()

    async def _call(self, call: Callable[[], _T], user_folder: str | None = None) -> _T:
        try:
            async with self._turns.turn(user_folder):
                return await anyio.to_thread.run_sync(call, limiter=self._threads)
        except Crowded:
            raise Held("too many of one user wait") from None
        except OSError as error:  # its message holds the path, which names the user
            raise StoreDown(f"{type(error).__name__} {error.errno}") from None


def _object(place: str, user_folder: str, key: str) -> str | None:
    """The name of an object by what a URL says, None where no object can have it: nothing of it
    may lead out of its folder."""
    if _SEGMENT.fullmatch(user_folder) and _KEY.fullmatch(key):
        return f"{place}/{user_folder}/{key}"
    return None


def _put(file: BinaryIO, path: Path) -> None:
    """Give the complete file its name, so that not even a crash shows half of it."""
    file.flush()
    os.fsync(file.fileno())
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file.name, path)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _mark(file: BinaryIO) -> str:
    stat = os.fstat(file.fileno())
    return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"


def _drop(file: BinaryIO, path: Path) -> None:
    """What has not got its name. A few system calls, made at once: also while a task is being
    cancelled."""
    with suppress(OSError):
        file.close()
    path.unlink(missing_ok=True)
