"""Locks on files, which the system frees however their holder ends."""

import fcntl
import os
import time
from contextlib import ExitStack
from pathlib import Path

from storage.embedded import EmbeddedError

POLL_S = 0.01


def lock(path: Path, held: ExitStack, *, wait_s: float, refusal: str) -> int:
    fd = open_held(path, os.O_RDWR | os.O_CREAT, held)
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError as error:
            if time.monotonic() >= deadline_s:
                raise EmbeddedError(refusal) from error
        time.sleep(POLL_S)


def open_held(path: Path, flags: int, held: ExitStack) -> int:
    # A bare number: a file object would close, and lose its lock, when nobody refers to it.
    fd = os.open(path, flags, 0o600)
    held.callback(os.close, fd)
    return fd
