"""Photos on real nodes: one with a folder, one with S3 over HTTP."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx2
import pytest

from loadtest.proxy import Proxy
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis
from storage.objects.media_types import PhotoType
from tests.cluster import REST_S, Cluster, Node, all_say, checked
from tests.conftest import migrated
from tests.device import budget_create, new_id
from tests.pictures import picture
from tests.s3 import CREDENTIALS, REGION, S3Front, s3_service

BUCKET = "photos-of-the-acceptance-tests"
CDN = "https://cdn.example.org"
API_KEY = "android-key-0123456789"


class S3(NamedTuple):
    """`proxy` stands between the node and the service."""

    front: S3Front
    proxy: Proxy


@pytest.fixture(scope="module")
async def s3(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[S3]:
    async with s3_service(tmp_path_factory.mktemp("s3")) as front, Proxy(front.url) as proxy:
        await front.make_bucket(BUCKET)
        yield S3(front, proxy)


@pytest.fixture(scope="module")
async def disk_cluster(
    postgres: EmbeddedPostgres, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    """With a database of its own, as all nodes on one database have one store."""
    url = await migrated(postgres.url, "photos_on_disk")
    folder = tmp_path_factory.mktemp("disk")
    async with checked(Cluster(folder, url, redis.url)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
async def on_disk(disk_cluster: Cluster) -> Node:
    return await disk_cluster.start(**in_folder(disk_cluster))


def in_folder(cluster: Cluster) -> dict[str, str]:
    return {"PHOTO_DIR": str(cluster.folder / "photos")}


@pytest.fixture(scope="module")
async def on_s3(cluster: Cluster, s3: S3) -> AsyncIterator[Node]:
    node = await cluster.start(
        S3_BUCKET=BUCKET,
        S3_REGION=REGION,
        S3_ENDPOINT_URL=s3.proxy.url,
        CDN_BASE_URL=CDN,
        **CREDENTIALS,
    )
    yield node
    await node.close()  # before the service it would miss


async def new_photo(rest: httpx2.AsyncClient, mark: int = 0) -> str:
    """The address of the user's new photo."""
    content = picture(PhotoType.PNG, 2000, mark)
    query = {"type": "image/png", "size": str(len(content))}
    begun = (await rest.get("/user/photo-upload-url", params=query)).json()
    # The token does not go to the store; what goes there is what a plain client would send.
    async with httpx2.AsyncClient(trust_env=False, timeout=REST_S) as store:
        put = await store.put(begun["url"], content=content, headers=begun["headers"])
    assert put.status_code == 200, put.text
    confirmed = await rest.post("/user/confirm-photo-upload", json={"key": begun["key"]})
    assert confirmed.status_code == 201, confirmed.text
    return str(confirmed.json()["photo"])


@pytest.mark.parametrize("store", ["disk", "s3"])
async def test_a_new_photo_is_in_every_snapshot(
    cluster: Cluster, on_disk: Node, on_s3: Node, store: str
) -> None:
    """Whoever asks with the tag of before gets it, not 304."""
    node = on_disk if store == "disk" else on_s3
    ann, budget_id = f"ann-{new_id()}", new_id()
    async with node.rest(cluster.token(ann)) as rest, node.rest(cluster.token("ben")) as other:
        await rest.post("/events", json={"events": [budget_create(budget_id)]})
        await other.post(f"/budgets/{budget_id}/join")
        tags: list[str] = []
        for mark in (1, 2, None):
            if mark is None:
                assert (await rest.delete("/user/profile-photo")).status_code == 204
                photo = None
            else:
                photo = await new_photo(rest, mark)
            seen = {"If-None-Match": tags[-1]} if tags else {}
            snapshot = await other.get(f"/budgets/{budget_id}", headers=seen)
            assert snapshot.status_code == 200
            assert snapshot.json()["participants"][0]["photo"] == photo
            assert (await other.get(f"/profiles/{ann}")).json()["photo"] == photo
            tags.append(snapshot.headers["ETag"])
            again = await other.get(f"/budgets/{budget_id}", headers={"If-None-Match": tags[-1]})
            assert again.status_code == 304
        assert len(set(tags)) == 3


async def test_an_account_that_closes_takes_its_photo_along(
    cluster: Cluster, on_s3: Node, s3: S3
) -> None:
    user_id = f"ann-{new_id()}"
    async with on_s3.rest(cluster.token(user_id)) as rest:
        photo = await new_photo(rest)
        object = photo.replace(CDN, "public")
        assert object in await s3.front.objects(BUCKET)
        assert (await rest.delete("/user")).status_code == 200
        assert object not in await s3.front.objects(BUCKET)


async def test_the_hub_serves_the_photos_of_its_folder_to_everybody(
    disk_cluster: Cluster, on_disk: Node
) -> None:
    async with on_disk.rest(disk_cluster.token(f"ann-{new_id()}")) as rest:
        photo = await new_photo(rest)
    async with on_disk.rest() as anybody:
        answer = await anybody.get(photo)
        assert answer.content == picture(PhotoType.PNG, 2000)
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        missing = await anybody.get(photo[:-36] + new_id())
        assert missing.json()["error"]["message"] == "PHOTO_NOT_FOUND"


async def test_a_folder_survives_a_restart_and_a_second_node(
    disk_cluster: Cluster, on_disk: Node
) -> None:
    """URLs signed by one node are taken by another one with the same secret and folder."""
    content = picture(PhotoType.PNG)
    second = await disk_cluster.start(API_KEYS=API_KEY, **in_folder(disk_cluster))
    async with (
        on_disk.rest(disk_cluster.token(f"ann-{new_id()}")) as one,
        second.rest() as two,
    ):
        query = {"type": "image/png", "size": str(len(content))}
        begun = (await one.get("/user/photo-upload-url", params=query)).json()
        path = begun["url"].removeprefix(on_disk.url)
        put = await two.put(path, content=content, headers=begun["headers"])  # without its API key
        assert put.status_code == 200
        body = {"key": begun["key"]}
        photo = (await one.put("/user/photo-upload-confirm", json=body)).json()["photo"]
        assert (await two.get(photo)).content == content


async def test_behind_a_proxy_upload_urls_are_as_the_client_sees_the_hub(
    disk_cluster: Cluster, on_disk: Node
) -> None:
    behind = await disk_cluster.start(TRUSTED_PROXIES="1", **in_folder(disk_cluster))
    says = {"X-Forwarded-Proto": "https", "Host": "hub.example.org"}
    path = "/user/photo-upload-url?type=image/png&size=10"
    for node, origin in (
        (behind, "https://hub.example.org/"),
        (on_disk, "http://hub.example.org/"),
    ):
        async with node.rest(disk_cluster.token("ann")) as rest:
            url = (await rest.get(path, headers=says)).json()["url"]
            assert url.startswith(origin + "photos/temp/ann/")


async def test_p10_without_the_store_only_photos_fail(
    cluster: Cluster, on_s3: Node, s3: S3
) -> None:
    token = cluster.token(f"ann-{new_id()}")
    async with on_s3.rest(token) as rest:
        photo = await new_photo(rest, 1)
        content = picture(PhotoType.PNG)
        query = {"type": "image/png", "size": str(len(content))}
        begun = (await rest.get("/user/photo-upload-url", params=query)).json()
        async with httpx2.AsyncClient(trust_env=False, timeout=REST_S) as store:
            await store.put(begun["url"], content=content, headers=begun["headers"])
        await s3.proxy.cut()
        try:
            failed = await rest.post("/user/confirm-photo-upload", json={"key": begun["key"]})
            error = failed.json()["error"]
            assert (failed.status_code, error["message"]) == (503, "PHOTOS_UNAVAILABLE")
            assert error["retryable"]
            await all_say([on_s3], token, "degraded")
            assert (await rest.get("/user")).json()["photo"] == photo
            create = {"events": [budget_create(new_id())]}
            [verdict] = (await rest.post("/events", json=create)).json()["events"]
            assert verdict["status"] == "accepted"
        finally:
            await s3.proxy.heal()
        again = await rest.post("/user/confirm-photo-upload", json={"key": begun["key"]})
        assert again.status_code == 201
        assert (await rest.get("/user")).json()["photo"] == again.json()["photo"] != photo
        await all_say([on_s3], token, "ok")
    lines = [line for line in on_s3.log() if line.get("code") == "PHOTOS_UNAVAILABLE"]
    assert lines and all(line["cause"].startswith("photo store: ") for line in lines)


async def test_logs_hold_no_signed_url_and_no_credentials(on_s3: Node, on_disk: Node) -> None:
    """After all that was done to these nodes above."""
    for node in (on_s3, on_disk):
        for secret in ("Signature", "signature", CREDENTIALS["AWS_SECRET_ACCESS_KEY"], "temp/"):
            assert secret not in node.err
