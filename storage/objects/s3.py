"""Photos in an S3 bucket, read through a CDN.

boto3 blocks, so each call runs in a thread; how many there are, of one user too, how long one may
take and how long one waits for its turn are bounded.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread
import boto3
from anyio import CapacityLimiter
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from hub.budget.records import UserId
from hub.errors import Held, StoreDown
from hub.gate import Gate
from hub.turns import Crowded
from storage.objects.media_types import HEAD_BYTES, PhotoType
from storage.objects.names import public_object, public_path, temp_object
from storage.objects.store import CACHE_CONTROL, Uploaded
from storage.timeouts import STORAGE_TIMEOUTS, StorageTimeouts

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CALLS_MAX = 8  # at a time
CALLS_PER_USER = 4
ATTEMPTS = 2

_T = TypeVar("_T")


class S3Photos:
    """A `PhotoStore`. `session` knows the credentials.

    `endpoint_url` is for another service with the same interface; `cdn_base_url` leads to what is
    `public/` in the bucket."""

    def __init__(
        self,
        session: boto3.Session,
        bucket: str,
        region: str,
        *,
        endpoint_url: str | None,
        cdn_base_url: str,
        timeouts: StorageTimeouts = STORAGE_TIMEOUTS,
    ) -> None:
        self._turn_s = timeouts.s3_turn_s
        self._bucket = bucket
        self._base_url = cdn_base_url.rstrip("/")
        self._turns = Gate(CALLS_MAX, CALLS_PER_USER)
        self._threads = CapacityLimiter(CALLS_MAX)  # not those that others wait for too
        self._client: S3Client = session.client(
            "s3",
            region_name=region,
            endpoint_url=endpoint_url,
            config=Config(
                signature_version="s3v4",
                connect_timeout=timeouts.s3_connect_s,
                read_timeout=timeouts.s3_answer_s,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                max_pool_connections=CALLS_MAX,
                # A checksum in the signed URL would have to be sent by the client.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "virtual" if endpoint_url is None else "path"},
            ),
        )

    async def upload_url(
        self,
        user_id: UserId,
        key: str,
        content_type: PhotoType,
        size_bytes: int,
        expires_in_s: int,
    ) -> str:
        # Asks nobody, but may have to renew the credentials of the machine's role.
        return await self._call(
            lambda: self._client.generate_presigned_url(
                "put_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": temp_object(user_id, key),
                    "ContentType": content_type.value,
                    "ContentLength": size_bytes,
                },
                ExpiresIn=expires_in_s,
            ),
            user_id,
        )

    async def uploaded(self, user_id: UserId, key: str) -> Uploaded | None:
        def read() -> Uploaded | None:
            try:
                found = self._client.get_object(
                    Bucket=self._bucket,
                    Key=temp_object(user_id, key),
                    Range=f"bytes=0-{HEAD_BYTES - 1}",
                )
            except ClientError as error:
                if _code(error) == "NoSuchKey":
                    return None
                if _code(error) == "InvalidRange":
                    return Uploaded(0, b"", "")
                raise
            with found["Body"] as body:
                head = body.read(HEAD_BYTES)
            size = found.get("ContentRange", "").rpartition("/")[2] or found["ContentLength"]
            return Uploaded(int(size), head, found["ETag"])

        return await self._call(read, user_id)

    async def publish(
        self, user_id: UserId, key: str, uploaded: Uploaded, content_type: PhotoType
    ) -> bool:
        def copy() -> bool:
            try:
                self._client.copy_object(
                    Bucket=self._bucket,
                    Key=public_object(user_id, key),
                    CopySource={"Bucket": self._bucket, "Key": temp_object(user_id, key)},
                    CopySourceIfMatch=uploaded.mark,
                    MetadataDirective="REPLACE",  # nothing that the client has said of it
                    ContentType=content_type.value,
                    CacheControl=CACHE_CONTROL,
                )
            except ClientError as error:
                if _code(error) in ("PreconditionFailed", "NoSuchKey"):
                    return False
                raise
            return True

        return await self._call(copy, user_id)

    def address(self, user_id: UserId, key: str) -> str:
        return f"{self._base_url}/{public_path(user_id, key)}"

    async def delete(self, object: str) -> None:
        await self._call(lambda: self._client.delete_object(Bucket=self._bucket, Key=object))

    async def check(self) -> None:
        await self._call(lambda: self._client.head_bucket(Bucket=self._bucket))

    async def expire(self) -> None:
        """The bucket's own rule does that (`infra/terraform`)."""

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._client.close)

    async def _call(self, call: Callable[[], _T], user_id: UserId | None = None) -> _T:
        try:
            await self._turns.enter(user_id, self._turn_s)
        except Crowded:
            raise Held("too many of one user wait") from None
        except TimeoutError:
            raise StoreDown("too many calls of S3 at a time") from None
        try:
            return await anyio.to_thread.run_sync(call, limiter=self._threads)
        except ClientError as error:
            raise StoreDown(f"S3 answers {_code(error)} to {error.operation_name}") from error
        except (BotoCoreError, HTTPClientError, OSError) as error:
            raise StoreDown(type(error).__name__) from error
        finally:
            self._turns.leave(user_id)


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")
