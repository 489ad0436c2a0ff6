"""A hub is found by its open files, also while they come and go."""

import os
import socket

import pytest

from loadtest.resources import hubs
from loadtest.target import Target


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="reads /proc")
def test_who_listens_is_found_while_it_opens_and_closes_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readlink = os.readlink
    gone: list[object] = []

    def late(path: str) -> str:
        """Of each process, the first file is closed before it is looked at."""
        folder = os.path.dirname(path)
        if folder not in gone:
            gone.append(folder)
            raise FileNotFoundError(path)
        return readlink(path)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        target = Target.parse(f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr("loadtest.resources.os.readlink", late)
        assert hubs([target]) == (os.getpid(),)
    assert gone
