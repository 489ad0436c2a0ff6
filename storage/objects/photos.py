"""Photos of profiles: from a signed upload URL to a confirmed photo (design section 6).

What may fail, and what follows:

    after the copy, before the commit    the profile names its old photo; a retry copies again, and
                                         what nobody confirms any more is deleted when its upload
                                         is forgotten (`storage.postgres.housekeeping`)
    the answer is lost                   a repeat finds the key confirmed and answers the same
    after the commit, before the         the old object stands in photo_leftovers, from the same
    deletion                             transaction; `sweep` deletes it later
    two confirm one key at once          the upload's row is locked: one changes the profile, the
                                         other finds it done
    a slow repeat copies again what      it finds the key confirmed and not in use, and leaves the
    was replaced meanwhile               copy to be deleted
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import structlog

from hub.budget.records import UserId
from hub.errors import Code, HubError, StorageError, StoreDown
from hub.outage import Outage
from storage.objects.media_types import PHOTO_BYTES_MAX, PhotoType, sniffed
from storage.objects.names import public_object
from storage.objects.store import PhotoStore
from storage.postgres.database import Database

if TYPE_CHECKING:
    from storage.postgres.database import Connection

EXPIRES_IN_S = 1800
PENDING_MAX = 100  # URLs of one user that have not run out
FORGOTTEN_S = 2 * 24 * 3600  # more than a store keeps an upload for
CHECKS_MAX = 3  # of an upload that changes while it is being confirmed
FORGOTTEN_MAX = 100  # in one statement
DELETED_MAX = 20  # in one go
SWEEP_S = 60.0
RETRY_S = 5.0  # while the store is away

BEGIN = """
INSERT INTO photo_uploads (user_id, key, content_type, size_bytes, public_object, created_at)
SELECT $1, $2, $3, $4, $5, $6
WHERE (SELECT count(*) FROM photo_uploads WHERE user_id = $1 AND created_at > $7) < $8
RETURNING key
"""
READ = """
SELECT content_type, size_bytes, public_object, photo FROM photo_uploads
WHERE user_id = $1 AND key = $2
"""
MAKE_PROFILE = "INSERT INTO users (id) VALUES ($1) ON CONFLICT (id) DO NOTHING"
LOCK_PROFILE = "SELECT photo_key FROM users WHERE id = $1 FOR UPDATE"
CONFIRM = """
UPDATE photo_uploads SET photo = $3 WHERE user_id = $1 AND key = $2 AND photo IS NULL
RETURNING key
"""
# Snapshots carry the photo, so a change shows in their tags (`profile_version`).
SET_PHOTO = """
UPDATE users SET photo = $2, photo_key = $3, profile_version = profile_version + 1 WHERE id = $1
"""
TAKE_AWAY = """
UPDATE users SET photo = NULL, photo_key = NULL, profile_version = profile_version + 1
WHERE id = $1 AND photo IS NOT NULL
"""
LEAVE = "INSERT INTO photo_leftovers (object, user_id) VALUES ($2, $1) ON CONFLICT DO NOTHING"
FORGET = """
WITH forgotten AS (
    DELETE FROM photo_uploads WHERE (user_id, key) IN (
        SELECT p.user_id, p.key FROM photo_uploads p
        WHERE p.created_at < $1 AND NOT EXISTS (
            SELECT FROM users u WHERE u.id = p.user_id AND u.photo_key = p.public_object
        )
        ORDER BY p.created_at LIMIT $2 FOR UPDATE SKIP LOCKED
    )
    RETURNING public_object, user_id
)
INSERT INTO photo_leftovers (object, user_id)
SELECT public_object, user_id FROM forgotten ON CONFLICT DO NOTHING
"""
# Only what no profile names is deleted, whatever stands in the table.
READ_LEFTOVERS = """
SELECT l.user_id, l.object FROM photo_leftovers l
WHERE NOT EXISTS (SELECT FROM users u WHERE u.id = l.user_id AND u.photo_key = l.object)
ORDER BY l.user_id, l.object LIMIT $1
"""
READ_LEFTOVERS_OF = """
SELECT l.object FROM photo_leftovers l
WHERE l.user_id = $1
  AND NOT EXISTS (SELECT FROM users u WHERE u.id = l.user_id AND u.photo_key = l.object)
ORDER BY l.object LIMIT $2
"""
DELETE_LEFTOVER = "DELETE FROM photo_leftovers WHERE user_id = $1 AND object = $2"

_T = TypeVar("_T")
_log = structlog.get_logger()


class Upload(NamedTuple):
    """Where to PUT a photo, and the key to confirm it by."""

    url: str
    key: str
    content_type: PhotoType
    expires_in_s: int


class Photos:
    """All methods raise `StoreDown`, `Held` and `Disconnected`, and may then be tried again.

    `now` gives epoch seconds. `up` says whether the store answered when last asked."""

    def __init__(
        self,
        database: Database,
        store: PhotoStore,
        *,
        now: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()  # of the store, and what became of them
        self._database = database
        self._store = store
        self._now = now
        self._new_id = new_id
        self._outage = Outage("photo store lost", "photo store back")

    @property
    def up(self) -> bool:
        return not self._outage.on

    async def begin(self, user_id: UserId, content_type: PhotoType, size_bytes: int) -> Upload:
        """A URL that takes one photo. Raises `HubError`: `PHOTO_TOO_BIG`, `RATE_LIMITED`."""
        if size_bytes > PHOTO_BYTES_MAX:
            raise HubError(Code.PHOTO_TOO_BIG)
        key = self._new_id()
        now = self._time()
        async with self._database.connection("rest", user_id) as connection:
            begun = await connection.fetchval(
                BEGIN,
                user_id,
                key,
                content_type.value,
                size_bytes,
                public_object(user_id, key),
                now,
                now - timedelta(seconds=EXPIRES_IN_S),
                PENDING_MAX,
            )
        if begun is None:
            raise HubError(
                Code.RATE_LIMITED, f"{PENDING_MAX} uploads begun", retry_after_s=EXPIRES_IN_S
            )
        url = await self._store.upload_url(user_id, key, content_type, size_bytes, EXPIRES_IN_S)
        return Upload(url, key, content_type, EXPIRES_IN_S)

    async def confirm(self, user_id: UserId, key: str) -> str:
        """Make what was uploaded the user's photo; its address. Again changes nothing.

        Raises `HubError`: `PHOTO_NOT_FOUND`, `PHOTO_TOO_BIG`, `PHOTO_NOT_VALID`, `BUSY`."""
        async with self._database.connection("rest", user_id) as connection:
            row = await connection.fetchrow(READ, user_id, key)
        if row is None:
            raise HubError(Code.PHOTO_NOT_FOUND)
        content_type, size_bytes, object, photo = row
        if photo is not None:
            return str(photo)
        await self._publish(user_id, key, PhotoType(content_type), size_bytes)
        photo = self._store.address(user_id, key)
        async with (
            self._database.connection("rest", user_id) as connection,
            connection.transaction(),
        ):
            confirmed = await _confirm(connection, user_id, key, object, photo)
        await self.clear(user_id)
        if not confirmed:
            raise HubError(Code.PHOTO_NOT_FOUND)
        return photo

    async def remove(self, user_id: UserId) -> None:
        """Take the user's photo away. Nothing happens where there is none."""
        async with (
            self._database.connection("rest", user_id) as connection,
            connection.transaction(),
        ):
            old = await connection.fetchval(LOCK_PROFILE, user_id)
            await connection.execute(TAKE_AWAY, user_id)
            if old is not None:
                await connection.execute(LEAVE, user_id, old)
        await self.clear(user_id)

    async def clear(self, user_id: UserId) -> None:
        """Delete what this user has left; what fails is left to `sweep`. Raises nothing."""
        try:
            async with self._database.connection("rest", user_id) as connection:
                rows = await connection.fetch(READ_LEFTOVERS_OF, user_id, DELETED_MAX)
            for [object] in rows:
                await self._delete(user_id, object)
        except StorageError as error:
            _log.info("photo is deleted later", error=f"{type(error).__name__}: {error}")

    async def forget(self) -> None:
        """Forget uploads that nobody can confirm any more; what was copied of them is left over
        then. For housekeeping: one node is enough."""
        await self._store.expire()
        old = self._time() - timedelta(seconds=FORGOTTEN_S)
        while True:
            async with self._database.connection("rest") as connection:
                done = await connection.execute(FORGET, old, FORGOTTEN_MAX)
            if int(done.rpartition(" ")[2]) < FORGOTTEN_MAX:
                return

    async def sweep(self) -> None:
        """See whether the store is there, and delete what no profile names. Every `SWEEP_S`, and
        after `RETRY_S` while it is away."""
        await self._asked("check", self._store.check())
        while True:
            async with self._database.connection("rest") as connection:
                rows = await connection.fetch(READ_LEFTOVERS, DELETED_MAX)
            for user_id, object in rows:
                await self._delete(user_id, object)
            if len(rows) < DELETED_MAX:
                return

    async def _publish(
        self, user_id: UserId, key: str, content_type: PhotoType, size_bytes: int
    ) -> None:
        """Check what was uploaded, and copy exactly that."""
        for _ in range(CHECKS_MAX):
            uploaded = await self._asked("look", self._store.uploaded(user_id, key))
            if uploaded is None:
                raise HubError(Code.PHOTO_NOT_FOUND)
            if uploaded.size_bytes > PHOTO_BYTES_MAX:
                raise HubError(Code.PHOTO_TOO_BIG)
            if uploaded.size_bytes != size_bytes:
                raise HubError(Code.PHOTO_NOT_VALID, f"it has not the {size_bytes} bytes announced")
            if sniffed(uploaded.head) is not content_type:
                raise HubError(Code.PHOTO_NOT_VALID, f"it is no {content_type}")
            publishing = self._store.publish(user_id, key, uploaded, content_type)
            if await self._asked("publish", publishing):
                return
        raise HubError(Code.BUSY, "the upload keeps changing")

    async def _delete(self, user_id: UserId, object: str) -> None:
        await self._asked("delete", self._store.delete(object))
        async with self._database.connection("rest", user_id) as connection:
            await connection.execute(DELETE_LEFTOVER, user_id, object)

    async def _asked(self, call: str, asking: Awaitable[_T]) -> _T:
        try:
            answer = await asking
        except StoreDown as down:
            self.calls[call, "failed"] += 1
            self._outage.lost(str(down))
            raise
        self.calls[call, "done"] += 1
        self._outage.back()
        return answer

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)


async def _confirm(
    connection: "Connection", user_id: UserId, key: str, object: str, photo: str
) -> bool:
    """Whether the key is confirmed, by this or before."""
    if await connection.fetchval(CONFIRM, user_id, key, photo) is not None:
        await connection.execute(MAKE_PROFILE, user_id)
        old = await connection.fetchval(LOCK_PROFILE, user_id)
        await connection.execute(SET_PHOTO, user_id, photo, object)
        if old is not None:
            await connection.execute(LEAVE, user_id, old)
        return True
    # Another was first: with the same key, or by forgetting the upload. If the copy is not in use,
    # it was made for nothing.
    if await connection.fetchval(LOCK_PROFILE, user_id) != object:
        await connection.execute(LEAVE, user_id, object)
    return await connection.fetchrow(READ, user_id, key) is not None
