"""Where an object lies in a store: the names of uploads and of confirmed photos."""

import hashlib
import re

from hub.budget.records import UserId

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}")


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
