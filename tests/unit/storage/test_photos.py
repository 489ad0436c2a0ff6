"""What a photo may be, and where it lies."""

import pytest
from hypothesis import given, strategies as st

from api.settings import Settings, SettingsError
from storage.objects.media_types import HEAD_BYTES, PhotoType, sniffed
from storage.objects.names import folder, public_object, temp_object
from tests.pictures import HEADS, TEXT

KEY = "0d3a9f0e-54c7-4b3d-9a57-6b1f6f0e7a02"


@pytest.mark.parametrize("photo_type", PhotoType)
def test_a_photo_is_known_by_its_first_bytes(photo_type: PhotoType) -> None:
    assert sniffed(HEADS[photo_type] + b"\0" * 1000) is photo_type
    assert sniffed(HEADS[photo_type][:HEAD_BYTES]) is photo_type


@pytest.mark.parametrize(
    "head",
    [
        b"",
        TEXT,
        b"\xff\xd8",
        b"GIF89a",
        b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1miaf",
        b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom",
        b"\x00\x00\x00\x10ftypmif1\x00\x00\x00\x00heic",  # after the end of the box
    ],
)
def test_anything_else_is_none(head: bytes) -> None:
    assert sniffed(head) is None


def test_heic_may_be_named_among_the_compatible_brands() -> None:
    assert sniffed(b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1heicmiaf") is PhotoType.HEIC


@given(st.binary(max_size=80))
def test_no_bytes_are_too_strange(head: bytes) -> None:
    sniffed(head)
    for of_type in HEADS.values():
        sniffed(of_type[:8] + head)


@given(st.text(min_size=1, max_size=128))
def test_a_folder_is_one_safe_segment(user_id: str) -> None:
    name = folder(user_id)
    assert len(name) <= 128 and name.isascii() and name not in (".", "..")
    assert not set(name) & set("/\\%\0 ")
    assert temp_object(user_id, KEY) == f"temp/{name}/{KEY}"
    assert public_object(user_id, KEY) == f"public/user-photos/{name}/{KEY}"


@given(st.text(max_size=20), st.text(max_size=20))
def test_users_do_not_share_a_folder(one: str, other: str) -> None:
    assert (folder(one) == folder(other)) == (one == other)


def test_no_plain_user_id_looks_like_a_hash() -> None:
    assert folder(folder("..")) != folder("..")
    assert folder("alice_2-B") == "alice_2-B"


ENVIRON = {"DATABASE_URL": "postgresql://db/hub", "AUTH_SECRET": "s" * 32}
S3 = {"S3_BUCKET": "photos", "S3_REGION": "eu-west-1", "CDN_BASE_URL": "https://cdn.example.org"}


def test_settings_of_s3_come_together() -> None:
    settings = Settings.from_env({**ENVIRON, **S3})
    assert Settings.from_env(settings.to_env()) == settings  # what workers are given
    for name in ("S3_REGION", "CDN_BASE_URL"):
        with pytest.raises(SettingsError, match=f"^{name}: is needed with S3_BUCKET$"):
            Settings.from_env({**ENVIRON, **S3, name: ""})
    assert Settings.from_env(ENVIRON).s3_bucket is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("S3_BUCKET", "Photos"),
        ("S3_BUCKET", "a/b"),
        ("S3_REGION", "eu west"),
        ("S3_ENDPOINT_URL", "https://user@minio"),
        ("S3_ENDPOINT_URL", "minio:9000"),
        ("CDN_BASE_URL", "cdn.example.org"),
        ("CDN_BASE_URL", "https://cdn.example.org/?x"),
    ],
)
def test_settings_of_s3_that_cannot_be(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: "):
        Settings.from_env({**ENVIRON, **S3, name: value})
