"""The way of a photo, the same on both stores: a folder on disk, and S3 over HTTP, where
signatures, lengths and types are checked as S3 checks them (`tests/s3.py`)."""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
import boto3
import httpx2
import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect

from api.auth.tokens import Tokens
from api.http import requests
from api.http.edge import Edge
from api.http.errors import ERROR_HANDLERS
from api.rest.files.disk_store import DiskStoreRoutes
from api.rest.people.photos import PhotoRoutes
from hub.errors import Code, Disconnected, HubError, StoreDown
from loadtest.proxy import Proxy
from storage.embedded.postgres import EmbeddedPostgres
from storage.objects.disk import DiskPhotos
from storage.objects.media_types import PHOTO_BYTES_MAX, PhotoType
from storage.objects.names import public_object, temp_object
from storage.objects.photos import EXPIRES_IN_S, FORGOTTEN_S, PENDING_MAX, Photos
from storage.objects.s3 import S3Photos
from storage.objects.store import PhotoStore
from storage.postgres.database import Database
from storage.postgres.people.profiles import Profiles
from storage.timeouts import StorageTimeouts
from tests.conftest import with_database
from tests.device import new_id
from tests.patience import PATIENT
from tests.pictures import HEADS, TEXT, picture
from tests.s3 import ACCESS_KEY_ID, POLICY, REGION, SECRET_ACCESS_KEY, S3Front, s3_service

SECRET = b"s" * 32
CDN = "https://cdn.example.org"
DAY_S = 24 * 3600
LATER = datetime(9999, 1, 1, tzinfo=UTC)
# Never used, all is plain HTTP; but to make one for each client takes a tenth of a second.
NO_TLS = ssl.create_default_context()


class Clock:
    """Real time, moved on when told to."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Watched:
    """A store whose calls can be made to fail, and waited for.

    What stands in `around` under a call's name is awaited before and after it."""

    def __init__(self, store: PhotoStore) -> None:
        self._store = store
        self.around: dict[str, Callable[[str], Awaitable[None]]] = {}
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        called = getattr(self._store, name)
        if name == "address":
            return called

        async def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            hook = self.around.get(name)
            if hook is None:
                return await called(*arguments)
            await hook("before")
            answer = await called(*arguments)
            await hook("after")
            return answer

        return call


class World:
    """A hub's photo routes over one store, and how to get at the store from outside."""

    store: PhotoStore
    watched: Watched
    photos: Photos
    hub: AsyncClient

    def __init__(self, database: Database) -> None:
        self.database = database
        self.profiles = Profiles(database)
        self.clock = Clock()
        self.tokens = Tokens([SECRET], now=time.time)

    def open(self, store: PhotoStore) -> None:
        self.store = store
        self.watched = Watched(store)
        self.photos = Photos(
            self.database,
            self.watched,
            now=self.clock,
            new_id=new_id,
        )
        app = Starlette(
            routes=[
                *PhotoRoutes(self.photos, behind_proxy=False).routes(
                    partial(requests.signed_in, self.tokens)
                ),
                *(DiskStoreRoutes(store).routes() if isinstance(store, DiskPhotos) else []),
            ],
            exception_handlers=ERROR_HANDLERS,
        )
        self.hub = AsyncClient(transport=ASGITransport(Edge(app)), base_url="http://hub")

    async def forget(self) -> None:
        """As housekeeping does, and then what is left over goes."""
        await self.photos.forget()
        await self.photos.sweep()

    async def ask(self, method: str, path: str, user_id: str = "ann", **how: Any) -> Response:
        token, _ = self.tokens.issue(user_id)
        headers = {"Authorization": f"Bearer {token}"}
        return await self.hub.request(method, path, headers=headers, **how)

    async def begin(self, content: bytes, photo_type: str, user_id: str = "ann") -> dict[str, Any]:
        path = f"/user/photo-upload-url?type={photo_type}&size={len(content)}"
        answer = await self.ask("GET", path, user_id)
        assert answer.status_code == 200, answer.text
        begun: dict[str, Any] = answer.json()
        return begun

    async def put(self, url: str, content: bytes, photo_type: str | None = None) -> int:
        """A plain PUT as a client makes it; the status."""
        headers = {} if photo_type is None else {"Content-Type": photo_type}
        if url.startswith("http://hub"):
            return (await self.hub.put(url, content=content, headers=headers)).status_code
        async with AsyncClient(trust_env=False, timeout=60, verify=NO_TLS) as client:
            return (await client.put(url, content=content, headers=headers)).status_code

    async def upload(
        self,
        content: bytes,
        photo_type: PhotoType = PhotoType.JPEG,
        user_id: str = "ann",
    ) -> str:
        """The key of what now waits to be confirmed."""
        begun = await self.begin(content, photo_type, user_id)
        assert await self.put(begun["url"], content, photo_type) == 200
        return str(begun["key"])

    async def confirm(self, key: str, user_id: str = "ann") -> Response:
        return await self.ask("POST", "/user/confirm-photo-upload", user_id, json={"key": key})

    async def confirmed(self, content: bytes, user_id: str = "ann") -> str:
        """The key of the user's new photo."""
        key = await self.upload(content, user_id=user_id)
        answer = await self.confirm(key, user_id)
        assert answer.status_code == 201, answer.text
        return key

    async def photo(self, user_id: str = "ann") -> str | None:
        return (await self.profiles.read(user_id)).photo

    async def changes(self, user_id: str = "ann") -> int:
        """How often the profile has changed."""
        async with self.database.connection("rest") as connection:
            version = await connection.fetchval(
                "SELECT profile_version FROM users WHERE id = $1", user_id
            )
        return int(version)

    async def public(self) -> set[str]:
        return {name for name in await self.objects() if name.startswith("public/")}

    async def objects(self) -> set[str]:
        raise NotImplementedError

    async def content(self, object: str) -> tuple[bytes, str]:
        """Of a public object, with its type, as everybody may read it."""
        raise NotImplementedError

    async def go_down(self) -> None:
        raise NotImplementedError

    async def come_back(self) -> None:
        raise NotImplementedError

    async def overwrite(self, object: str, content: bytes) -> None:
        """As whoever has the URL may do until it runs out."""
        raise NotImplementedError

    async def later(self, s: float) -> None:
        """So many seconds later."""
        self.clock.ahead_s = s


class OnDisk(World):
    def __init__(self, database: Database, folder: Path) -> None:
        super().__init__(database)
        self.folder = folder
        self.open(DiskPhotos(folder, [SECRET], base_url="/photos", now=self.clock))

    async def objects(self) -> set[str]:
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix() for path in found}

    async def content(self, object: str) -> tuple[bytes, str]:
        answer = await self.hub.get("/photos/" + object.removeprefix("public/"))
        assert answer.status_code == 200
        return answer.content, answer.headers["Content-Type"]

    async def go_down(self) -> None:
        """Something else is there: also for root there is nothing to be done in it."""
        self.folder.mkdir(exist_ok=True)
        self.folder.rename(self.folder.with_suffix(".away"))
        self.folder.write_text("no folder")

    async def come_back(self) -> None:
        self.folder.unlink()
        self.folder.with_suffix(".away").rename(self.folder)

    async def overwrite(self, object: str, content: bytes) -> None:
        other = self.folder / "other"
        other.write_bytes(content)
        other.replace(self.folder / object)


class OnS3(World):
    def __init__(
        self,
        database: Database,
        front: S3Front,
        proxy: Proxy,
        bucket: str,
        session: boto3.Session,
    ) -> None:
        super().__init__(database)
        self.front, self.proxy, self.bucket = front, proxy, bucket
        self.open(self.photos_of(session))

    def photos_of(self, session: boto3.Session, timeouts: StorageTimeouts = PATIENT) -> S3Photos:
        return S3Photos(
            session,
            self.bucket,
            REGION,
            endpoint_url=self.proxy.url,
            cdn_base_url=CDN,
            timeouts=timeouts,
        )

    async def objects(self) -> set[str]:
        return await self.front.objects(self.bucket)

    async def content(self, object: str) -> tuple[bytes, str]:
        answer = await self.front.direct("GET", f"/{self.bucket}/{object}")
        assert answer.status_code == 200
        return answer.content, answer.headers["Content-Type"]

    async def go_down(self) -> None:
        await self.proxy.cut()

    async def come_back(self) -> None:
        await self.proxy.heal()

    async def overwrite(self, object: str, content: bytes) -> None:
        answer = await self.front.direct("PUT", f"/{self.bucket}/{object}", content=content)
        assert answer.status_code == 200

    async def later(self, s: float) -> None:
        await super().later(s)
        self.front.ahead_s = s


@pytest.fixture(scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[S3Front]:
    async with s3_service(tmp_path_factory.mktemp("s3")) as front:
        yield front


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    return signed_in(SECRET_ACCESS_KEY)


def signed_in(secret: str) -> boto3.Session:
    return boto3.Session(aws_access_key_id=ACCESS_KEY_ID, aws_secret_access_key=secret)


@asynccontextmanager
async def on_disk(database: Database, folder: Path) -> AsyncIterator[OnDisk]:
    world = OnDisk(database, folder)
    async with world.hub:
        yield world


@asynccontextmanager
async def on_s3(database: Database, front: S3Front, session: boto3.Session) -> AsyncIterator[OnS3]:
    """A bucket of its own, behind a network of its own."""
    bucket = f"photos-{new_id()}"
    await front.make_bucket(bucket)
    async with Proxy(front.url) as proxy:
        world = OnS3(database, front, proxy, bucket, session)
        async with world.hub:
            yield world
        front.ahead_s = 0
        await world.store.aclose()


@pytest.fixture(scope="module")
async def one_database(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[Database]:
    """For all tests here: a new one for each would take most of their time."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE photos TEMPLATE {template}")
    database = await Database.connect(with_database(postgres.url, "photos"), timeouts=PATIENT)
    yield database
    await database.close()
    await admin.execute("DROP DATABASE photos WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def database(one_database: Database) -> Database:
    async with one_database.connection("rest") as connection:
        await connection.execute("DELETE FROM users")
        await connection.execute("DELETE FROM photo_uploads")
        await connection.execute("DELETE FROM photo_leftovers")
    return one_database


@pytest.fixture
async def disk(database: Database, tmp_path: Path) -> AsyncIterator[OnDisk]:
    async with on_disk(database, tmp_path / "photos") as world:
        yield world


@pytest.fixture
async def s3(database: Database, front: S3Front, session: boto3.Session) -> AsyncIterator[OnS3]:
    async with on_s3(database, front, session) as world:
        yield world


@pytest.fixture(params=["disk", "s3"])
async def world(
    request: pytest.FixtureRequest,
    database: Database,
    tmp_path: Path,
    front: S3Front,
    session: boto3.Session,
) -> AsyncIterator[World]:
    if request.param == "disk":
        async with on_disk(database, tmp_path / "photos") as world:
            yield world
    else:
        async with on_s3(database, front, session) as world_s3:
            yield world_s3


def refused(answer: Response, code: Code) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["message"]) == (code.status, code.name), answer.text
    assert error["retryable"] == code.retryable


# From the URL to the photo


@pytest.mark.parametrize("photo_type", PhotoType)
async def test_a_photo_goes_straight_to_the_store_and_is_confirmed(
    world: World, photo_type: PhotoType
) -> None:
    content = picture(photo_type)
    begun = await world.begin(content, photo_type)
    assert begun["expiresInSeconds"] == 1800
    assert await world.put(begun["url"], content, begun["headers"]["Content-Type"]) == 200
    assert await world.objects() == {temp_object("ann", begun["key"])}
    answer = await world.confirm(begun["key"])
    assert answer.status_code == 201
    photo = answer.json()["photo"]
    assert await world.photo() == photo
    assert photo.endswith(f"/user-photos/ann/{begun['key']}")
    object = public_object("ann", begun["key"])
    assert await world.public() == {object}
    assert await world.content(object) == (content, photo_type)


async def test_the_legacy_way_to_confirm(world: World) -> None:
    key = await world.upload(picture())
    answer = await world.ask("PUT", "/user/photo-upload-confirm", json={"key": key.upper()})
    assert (answer.status_code, answer.json()["photo"]) == (201, await world.photo())


async def test_the_largest_photo_there_may_be(world: World) -> None:
    content = picture(size_bytes=PHOTO_BYTES_MAX)
    key = await world.confirmed(content)
    stored, _ = await world.content(public_object("ann", key))
    assert stored == content


async def test_a_new_photo_replaces_the_old_one(world: World) -> None:
    first = await world.confirmed(picture(mark=1))
    before = await world.changes()
    second = await world.confirmed(picture(mark=2))
    assert first != second
    assert await world.public() == {public_object("ann", second)}
    assert await world.changes() == before + 1  # which is in the tag of every snapshot


async def test_a_photo_is_taken_away(world: World) -> None:
    await world.profiles.write("ann", {"first_name": "Ann"})
    assert (await world.ask("DELETE", "/user/profile-photo")).status_code == 204
    unchanged = await world.changes()
    await world.confirmed(picture())
    for _ in range(2):
        answer = await world.ask("DELETE", "/user/profile-photo")
        assert (answer.status_code, answer.content) == (204, b"")
    assert await world.photo() is None
    assert await world.public() == set()
    assert await world.changes() == unchanged + 2
    assert (await world.ask("DELETE", "/user/profile-photo", "nobody")).status_code == 204


async def test_any_user_id_has_a_place_of_its_own(world: World) -> None:
    expected = set()
    for user_id in ("..", "a/../../b", "x" * 128, "Ünï cödé 🎉", "%2e%2e", "a\nb"):
        key = await world.confirmed(picture(), user_id)
        expected |= {temp_object(user_id, key), public_object(user_id, key)}
    assert await world.objects() == expected


# What is refused


async def test_what_can_be_no_photo_gets_no_url(disk: OnDisk) -> None:
    for query, code in [
        (f"type=image/jpeg&size={PHOTO_BYTES_MAX + 1}", Code.PHOTO_TOO_BIG),
        ("type=image/jpeg&size=9007199254740991", Code.PHOTO_TOO_BIG),
        ("type=image/jpeg&size=0", Code.BAD_REQUEST),
        ("type=image/jpeg&size=-1", Code.BAD_REQUEST),
        ("type=image/jpeg&size=1.5", Code.BAD_REQUEST),
        ("type=image/jpeg", Code.BAD_REQUEST),
        ("type=image/gif&size=10", Code.BAD_REQUEST),
        ("type=image/svg%2Bxml&size=10", Code.BAD_REQUEST),
        ("size=10", Code.BAD_REQUEST),
    ]:
        refused(await disk.ask("GET", f"/user/photo-upload-url?{query}"), code)


async def test_an_upload_is_exactly_what_was_announced(world: World) -> None:
    content = picture()
    begun = await world.begin(content, PhotoType.JPEG)
    for sent, photo_type in [
        (content + b"x", "image/jpeg"),
        (content[:-1], "image/jpeg"),
        (b"", "image/jpeg"),
        (content, "image/png"),
        (content, None),
    ]:
        assert await world.put(begun["url"], sent, photo_type) in (400, 403)
        assert await world.objects() == set()
        refused(await world.confirm(begun["key"]), Code.PHOTO_NOT_FOUND)
    assert await world.put(begun["url"], content, "image/jpeg") == 200  # the URL still counts
    assert (await world.confirm(begun["key"])).status_code == 201


async def test_every_part_of_an_upload_url_counts(world: World) -> None:
    content = picture()
    url = (await world.begin(content, PhotoType.JPEG))["url"]
    foreign = (await world.begin(content, PhotoType.JPEG, "ben"))["url"]
    parts = urlsplit(url)
    forged = [urlunsplit(parts._replace(path=urlsplit(foreign).path)), url.partition("?")[0]]
    query = parse_qsl(parts.query)
    for number, (name, value) in enumerate(query):
        other = value[:-1] + ("0" if value[-1] != "0" else "1")
        changed = [*query[:number], (name, other), *query[number + 1 :]]
        forged.append(urlunsplit(parts._replace(query=urlencode(changed))))
        left_out = [*query[:number], *query[number + 1 :]]
        forged.append(urlunsplit(parts._replace(query=urlencode(left_out))))
    assert len(forged) >= 8
    for each in forged:
        assert await world.put(each, content, "image/jpeg") == 403, each
    assert await world.objects() == set()
    assert await world.put(url, content, "image/jpeg") == 200


async def test_an_upload_url_runs_out(world: World) -> None:
    content = picture()
    url = (await world.begin(content, PhotoType.JPEG))["url"]
    await world.later(EXPIRES_IN_S + 5)
    assert await world.put(url, content, "image/jpeg") == 403
    assert await world.objects() == set()
    await world.later(EXPIRES_IN_S - 60)
    assert await world.put(url, content, "image/jpeg") == 200


async def test_a_text_named_jpg_is_no_photo(world: World) -> None:
    await world.confirmed(picture())
    before = await world.photo(), await world.changes(), await world.public()
    key = await world.upload(TEXT)
    for _ in range(2):
        refused(await world.confirm(key), Code.PHOTO_NOT_VALID)
    assert (await world.photo(), await world.changes(), await world.public()) == before


async def test_a_photo_is_of_the_type_announced(world: World) -> None:
    for photo_type in PhotoType:
        other = next(each for each in PhotoType if each is not photo_type)
        key = await world.upload(HEADS[other].ljust(50), photo_type)
        refused(await world.confirm(key), Code.PHOTO_NOT_VALID)
    assert await world.public() == set()


async def test_size_is_checked_again_at_the_end(world: World) -> None:
    """Whatever the store may have let in."""
    key = await world.upload(picture())
    await world.overwrite(temp_object("ann", key), picture(size_bytes=999))
    refused(await world.confirm(key), Code.PHOTO_NOT_VALID)
    await world.overwrite(temp_object("ann", key), picture(size_bytes=PHOTO_BYTES_MAX + 1))
    refused(await world.confirm(key), Code.PHOTO_TOO_BIG)
    await world.overwrite(temp_object("ann", key), b"")
    refused(await world.confirm(key), Code.PHOTO_NOT_VALID)
    assert await world.public() == set()


async def test_a_key_belongs_to_who_asked_for_it(world: World) -> None:
    key = await world.upload(picture())
    refused(await world.confirm(key, "ben"), Code.PHOTO_NOT_FOUND)
    assert await world.public() == set()
    assert (await world.confirm(key)).status_code == 201
    refused(await world.confirm(key, "ben"), Code.PHOTO_NOT_FOUND)
    assert await world.public() == {public_object("ann", key)}


async def test_a_key_is_a_uuid(disk: OnDisk) -> None:
    bodies: list[object] = [{}, {"key": 1}, {"key": "../x"}, {"key": None}, [], "key"]
    for body in bodies:
        refused(await disk.ask("POST", "/user/confirm-photo-upload", json=body), Code.BAD_REQUEST)


async def test_who_asks_must_be_signed_in(disk: OnDisk) -> None:
    for method, path in [
        ("GET", "/user/photo-upload-url?type=image/png&size=10"),
        ("POST", "/user/confirm-photo-upload"),
        ("PUT", "/user/photo-upload-confirm"),
        ("DELETE", "/user/profile-photo"),
    ]:
        refused(await disk.hub.request(method, path), Code.NOT_LOGGED_IN)


async def test_urls_that_have_not_run_out_are_bounded(disk: OnDisk) -> None:
    content = picture()
    for _ in range(PENDING_MAX):
        await disk.begin(content, PhotoType.JPEG)
    answer = await disk.ask("GET", "/user/photo-upload-url?type=image/jpeg&size=9")
    refused(answer, Code.RATE_LIMITED)
    assert answer.headers["Retry-After"] == "1800"
    await disk.begin(content, PhotoType.JPEG, "ben")
    disk.clock.ahead_s = EXPIRES_IN_S + 1
    await disk.begin(content, PhotoType.JPEG)


# Again, at once, and in the face of failures


async def test_a_photo_that_came_from_elsewhere_can_be_replaced_and_taken_away(
    disk: OnDisk,
) -> None:
    """With a token of the identity, say: no object of ours stands for it."""
    for user_id in ("ann", "ben"):
        await disk.profiles.write(user_id, {})
    async with disk.database.connection("rest") as connection:
        await connection.execute("UPDATE users SET photo = 'https://example.org/somebody.jpg'")
    key = await disk.confirmed(picture())
    assert key in str(await disk.photo())
    assert (await disk.ask("DELETE", "/user/profile-photo", "ben")).status_code == 204
    assert await disk.photo("ben") is None
    assert await disk.public() == {public_object("ann", key)}


async def test_a_repeat_changes_nothing(world: World) -> None:
    key = await world.upload(picture())
    refused(await world.confirm(new_id()), Code.PHOTO_NOT_FOUND)
    answers = [(await world.confirm(key)) for _ in range(3)]
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}
    assert await world.changes() == 2
    newer = await world.confirmed(picture(mark=2))
    assert (await world.confirm(key)).text == answers[0].text
    assert await world.public() == {public_object("ann", newer)}
    assert newer in str(await world.photo())


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["uploaded", "publish", "delete"])
async def test_every_step_may_fail_and_be_tried_again(world: World, step: str, moment: str) -> None:
    old = await world.confirmed(picture(mark=1))
    key = await world.upload(picture(mark=2))
    failures: list[str] = []

    async def fail_once(now: str) -> None:
        if now == moment and not failures:
            failures.append(now)
            raise StoreDown("planted")

    world.watched.around[step] = fail_once
    answer = await world.confirm(key)
    if step == "delete":  # the change is committed; the old one is deleted later
        assert answer.status_code == 201
        assert public_object("ann", key) in await world.public()
    else:
        refused(answer, Code.PHOTOS_UNAVAILABLE)
        assert old in str(await world.photo())
        assert public_object("ann", old) in await world.public()
    assert failures == [moment]
    assert (await world.confirm(key)).status_code == 201
    assert key in str(await world.photo())
    await world.photos.sweep()
    assert await world.public() == {public_object("ann", key)}


async def test_a_change_that_is_not_committed_leaves_the_old_photo(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is made; then the database is away."""
    old = await world.confirmed(picture(mark=1))
    key = await world.upload(picture(mark=2))
    lost: list[str] = []

    async def lose_the_database(now: str) -> None:
        if now == "after" and not lost:
            lost.append(now)
            monkeypatch.setattr(world.database, "connection", away)

    def away(purpose: str, user_id: str) -> Any:
        monkeypatch.undo()
        raise Disconnected("planted")

    world.watched.around["publish"] = lose_the_database
    refused(await world.confirm(key), Code.UNAVAILABLE)
    assert lost
    assert old in str(await world.photo())
    assert public_object("ann", old) in await world.public()
    assert (await world.confirm(key)).status_code == 201
    assert await world.public() == {public_object("ann", key)}


async def test_p10_store_down_and_nothing_lost(world: World) -> None:
    old = await world.confirmed(picture(mark=1))
    key = await world.upload(picture(mark=2))
    await world.go_down()
    refused(await world.confirm(key), Code.PHOTOS_UNAVAILABLE)
    assert not world.photos.up
    with pytest.raises(StoreDown):
        await world.photos.sweep()
    assert old in str(await world.photo())
    assert (await world.ask("DELETE", "/user/profile-photo")).status_code == 204
    await world.come_back()
    assert public_object("ann", old) in await world.public()
    await world.photos.sweep()
    assert world.photos.up
    assert await world.public() == set()
    assert (await world.confirm(key)).status_code == 201
    assert await world.public() == {public_object("ann", key)}


async def test_confirms_of_one_key_at_once(world: World) -> None:
    """All of them have checked and copied before the first one commits."""
    old = await world.confirmed(picture(mark=1))
    before = await world.changes()
    key = await world.upload(picture(mark=2))
    everybody = asyncio.Barrier(6)

    async def together(now: str) -> None:
        if now == "after":
            await everybody.wait()

    world.watched.around["publish"] = together
    answers = await asyncio.gather(*(world.confirm(key) for _ in range(6)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}
    assert await world.changes() == before + 1
    assert old not in str(await world.photo())
    await world.photos.sweep()
    assert await world.public() == {public_object("ann", key)}


async def test_confirms_of_several_keys_at_once(world: World) -> None:
    keys = [await world.upload(picture(mark=mark)) for mark in range(5)]
    everybody = asyncio.Barrier(5)

    async def together(now: str) -> None:
        if now == "after":
            await everybody.wait()

    world.watched.around["publish"] = together
    answers = await asyncio.gather(*(world.confirm(key) for key in keys))
    assert {answer.status_code for answer in answers} == {201}
    await world.photos.sweep()
    [left] = await world.public()
    assert str(await world.photo()).endswith(left.removeprefix("public"))
    assert await world.changes() == 6


async def test_a_repeat_that_comes_late_brings_nothing_back(world: World) -> None:
    """It copies again what was replaced and deleted meanwhile."""
    key = await world.upload(picture(mark=1))
    replaced, arrived = asyncio.Event(), asyncio.Event()

    async def slow(now: str) -> None:
        if now == "before" and world.watched.calls["publish"] == 1:
            arrived.set()
            await replaced.wait()

    world.watched.around["publish"] = slow
    late = asyncio.create_task(world.confirm(key))
    await arrived.wait()
    assert (await world.confirm(key)).status_code == 201
    newer = await world.confirmed(picture(mark=2))
    assert await world.public() == {public_object("ann", newer)}
    replaced.set()
    assert (await late).status_code == 201
    assert newer in str(await world.photo())
    assert await world.public() == {public_object("ann", newer)}


async def test_what_is_copied_is_what_was_checked(world: World) -> None:
    key = await world.upload(picture())

    async def swap(now: str) -> None:
        if now == "after":
            await world.overwrite(temp_object("ann", key), TEXT.ljust(1000)[:1000])

    world.watched.around["uploaded"] = swap
    refused(await world.confirm(key), Code.PHOTO_NOT_VALID)
    assert await world.public() == set()
    assert world.watched.calls["uploaded"] == 2


async def test_an_upload_that_never_stops_changing_is_given_up(world: World) -> None:
    key = await world.upload(picture())

    async def swap(now: str) -> None:
        if now == "after":
            mark = world.watched.calls["uploaded"]
            await world.overwrite(temp_object("ann", key), picture(mark=mark))

    world.watched.around["uploaded"] = swap
    refused(await world.confirm(key), Code.BUSY)
    assert await world.public() == set()


# What is left over


async def test_a_closed_account_leaves_no_photo(world: World) -> None:
    await world.confirmed(picture(mark=1))
    copied = await world.upload(picture(mark=2))

    async def fail(now: str) -> None:
        if now == "after":
            raise StoreDown("planted")

    world.watched.around["publish"] = fail
    refused(await world.confirm(copied), Code.PHOTOS_UNAVAILABLE)
    del world.watched.around["publish"]
    bens = await world.confirmed(picture(mark=3), "ben")
    assert len(await world.public()) == 3
    await world.profiles.delete("ann", made_until=LATER)
    await world.photos.sweep()
    assert await world.public() == {public_object("ben", bens)}
    refused(await world.confirm(copied), Code.PHOTO_NOT_FOUND)
    assert await world.public() == {public_object("ben", bens)}


async def test_an_account_that_closes_during_a_confirm_stays_closed(world: World) -> None:
    key = await world.upload(picture())

    async def close(now: str) -> None:
        if now == "after":
            await world.profiles.delete("ann", made_until=LATER)

    world.watched.around["publish"] = close
    refused(await world.confirm(key), Code.PHOTO_NOT_FOUND)
    assert await world.public() == set()
    async with world.database.connection("rest") as connection:
        assert await connection.fetchval("SELECT count(*) FROM users") == 0


async def test_uploads_are_forgotten_with_what_was_copied_of_them(world: World) -> None:
    used = await world.confirmed(picture(mark=1))
    copied = await world.upload(picture(mark=2))

    async def fail(now: str) -> None:
        if now == "after":
            raise StoreDown("planted")

    world.watched.around["publish"] = fail
    refused(await world.confirm(copied), Code.PHOTOS_UNAVAILABLE)
    world.clock.ahead_s = FORGOTTEN_S - 60
    await world.forget()
    assert len(await world.public()) == 2
    world.clock.ahead_s = FORGOTTEN_S + 60
    await world.forget()
    assert await world.public() == {public_object("ann", used)}
    async with world.database.connection("rest") as connection:
        assert await connection.fetchval("SELECT count(*) FROM photo_leftovers") == 0
        assert await connection.fetchval("SELECT count(*) FROM photo_uploads") == 1
    assert used in (await world.confirm(used)).json()["photo"]


async def test_a_photo_in_use_is_never_deleted(world: World) -> None:
    """Whatever stands among the leftovers."""
    key = await world.confirmed(picture())
    async with world.database.connection("rest") as connection:
        await connection.execute(
            "INSERT INTO photo_leftovers (object, user_id) VALUES ($1, 'ann')",
            public_object("ann", key),
        )
    await world.photos.clear("ann")
    await world.photos.sweep()
    assert await world.public() == {public_object("ann", key)}


# Only on disk


async def received(disk: OnDisk, url: str, body: AsyncIterator[bytes]) -> None:
    """What the route does with a body of unknown length."""
    assert isinstance(disk.store, DiskPhotos)
    parts = urlsplit(url)
    *_, folder, key = parts.path.split("/")
    query = dict(parse_qsl(parts.query))
    await disk.store.receive(
        folder, key, content_type="image/jpeg", content_length=None, body=body, **query
    )


async def test_disk_reads_no_further_than_the_signed_size(disk: OnDisk) -> None:
    content = picture()
    begun = await disk.begin(content, PhotoType.JPEG)
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        while asked < 1_000_000:
            asked += 1
            yield b"x" * 600

    with pytest.raises(HubError, match="PHOTO_NOT_VALID"):
        await received(disk, begun["url"], endless())
    assert asked == 2
    assert await disk.objects() == set()


@pytest.mark.parametrize("ending", [ClientDisconnect, asyncio.CancelledError])
async def test_disk_keeps_nothing_of_an_upload_that_ends_early(
    disk: OnDisk, ending: type[BaseException]
) -> None:
    content = picture(size_bytes=1_000_000)
    begun = await disk.begin(content, PhotoType.JPEG)

    async def body() -> AsyncIterator[bytes]:
        yield content[:900_000]
        raise ending

    with pytest.raises(ending):
        await received(disk, begun["url"], body())
    assert await disk.objects() == set()


async def test_p20_a_user_whose_uploads_never_end_leaves_others_room(disk: OnDisk) -> None:
    content, ends = picture(size_bytes=1_000_000), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield content[:1]
        await ends.wait()
        yield content[1:]

    async with asyncio.TaskGroup() as group:
        urls = [(await disk.begin(content, PhotoType.JPEG))["url"] for _ in range(9)]
        uploads = [group.create_task(received(disk, url, slow())) for url in urls[:8]]
        await asyncio.sleep(0)
        with pytest.raises(HubError, match="BUSY"):
            await received(disk, urls[8], slow())
        others = await disk.begin(content, PhotoType.JPEG, "ben")
        await received(disk, others["url"], whole(content))
        assert not any(upload.done() for upload in uploads)
        ends.set()


async def whole(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.mark.parametrize(
    "path", ["../secret", "%2e%2e/secret", "..%2f..%2fsecret/x", "ann/..%2f..%2f..%2fsecret", "~/x"]
)
async def test_disk_shows_nothing_outside_of_its_public_folder(disk: OnDisk, path: str) -> None:
    key = await disk.upload(picture())
    (disk.folder / "public" / "user-photos").mkdir(parents=True)
    for secret in ("secret", "public/secret", "public/user-photos/secret"):
        (disk.folder / secret).write_text("secret")
    before = await disk.objects()
    for each in (path, f"../../temp/ann/{key}", f"..%2f..%2ftemp%2fann/{key}", f"ann/{key}"):
        url = httpx2.URL(f"http://hub/photos/user-photos/{each}")
        answer = await disk.hub.get(url)
        assert answer.status_code == 404, each
        url = httpx2.URL(f"http://hub/photos/temp/{each}?size=4&expires=99999999999&signature=00")
        assert (await disk.hub.put(url, content=b"evil")).status_code in (403, 404, 405)
    assert await disk.objects() == before
    assert isinstance(disk.store, DiskPhotos)
    for folder in ("..", "../..", "ann/..", ".", "", "/", "../../temp/ann"):
        for name in ("secret", key, f"../{key}", ".."):  # however a server takes paths apart
            assert await disk.store.public_file(folder, name) is None


async def test_disk_makes_no_folder_before_the_first_photo(disk: OnDisk) -> None:
    await disk.photos.sweep()
    assert disk.photos.up
    assert not disk.folder.exists()


async def test_disk_forgets_what_was_not_confirmed_for_a_day(disk: OnDisk) -> None:
    used = await disk.confirmed(picture(mark=1))
    await disk.upload(picture(mark=2))
    (disk.folder / "incoming" / "left-by-a-crash").write_bytes(b"half")
    await disk.later(DAY_S - 60)
    await disk.forget()
    assert len(await disk.objects()) == 4
    await disk.later(DAY_S + 60)
    await disk.forget()
    assert await disk.objects() == {public_object("ann", used)}


# Only on S3


async def test_s3_photos_are_read_through_the_cdn(s3: OnS3) -> None:
    key = await s3.confirmed(picture())
    assert await s3.photo() == f"{CDN}/user-photos/ann/{key}"
    path = f"/{s3.bucket}/{public_object('ann', key)}"
    headers = (await s3.front.direct("HEAD", path)).headers
    assert headers["Cache-Control"] == "public, max-age=31536000, immutable"


async def test_s3_silent_is_down_within_its_timeouts(s3: OnS3, session: boto3.Session) -> None:
    impatient = s3.photos_of(session, replace(PATIENT, s3_answer_s=0.2))
    s3.proxy.black_hole()
    async with asyncio.timeout(30):
        with pytest.raises(StoreDown, match="ReadTimeout"):
            await impatient.check()
        await s3.proxy.heal()
        while True:  # the service may be slower than that
            with suppress(StoreDown):
                await impatient.check()
                break
    await impatient.aclose()


async def test_s3_calls_are_bounded_and_do_not_wait_for_ever(
    s3: OnS3, session: boto3.Session
) -> None:
    store = s3.photos_of(session, replace(PATIENT, s3_turn_s=0.05))
    s3.front.hold(lambda asked: asked.method == "GET")
    looks = [asyncio.create_task(store.uploaded(f"user{n}", new_id())) for n in range(12)]
    try:
        done, held = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 4:
            more, held = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        assert {str(look.exception()) for look in done} == {"too many calls of S3 at a time"}
        assert len(held) == 8
    finally:
        s3.front.release()
    await asyncio.gather(*held)
    await store.aclose()


async def test_p20_calls_of_s3_for_one_user_leave_others_theirs(s3: OnS3) -> None:
    s3.front.hold(lambda asked: asked.method == "GET")  # what is read for `uploaded`
    async with asyncio.TaskGroup() as group:
        flood = [group.create_task(s3.store.uploaded("flood", new_id())) for _ in range(20)]
        try:
            await s3.store.check()
            await s3.store.upload_url("ann", new_id(), PhotoType.JPEG, 1000, 60)
            assert not any(task.done() for task in flood)
        finally:
            s3.front.release()


async def test_s3_refuses_who_has_not_the_secret(s3: OnS3) -> None:
    """Not the hub's own doing: it shows that the service of these tests does check signatures."""
    stranger = s3.photos_of(signed_in("another secret"))
    content = picture()
    url = await stranger.upload_url("ann", new_id(), PhotoType.JPEG, len(content), 60)
    assert await s3.put(url, content, "image/jpeg") == 403
    with pytest.raises(StoreDown, match="AccessDenied"):
        await stranger.uploaded("ann", new_id())
    await stranger.aclose()


async def test_s3_policy_of_the_hub_is_what_it_needs_and_no_more(s3: OnS3) -> None:
    """With less than that every other test here would fail."""
    assert len(POLICY) == 5
    s3.front.used.clear()
    await s3.photos.sweep()
    await s3.confirmed(picture(mark=1))
    await s3.confirmed(picture(mark=2))
    assert s3.front.used == POLICY
