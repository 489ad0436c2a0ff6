"""Hubs whose kernel keeps little of what nobody reads: on a loopback it would take megabytes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from tests.cluster import BUSY_S
from tests.crowd import SMALL_BYTES

SMALL_BUFFERS = """
import socket
bind = api.process.server.bind
def bind_small(*args):
    listening = bind(*args)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listening
api.process.server.bind = bind_small
"""  # for `tests.crowd.patched`


@asynccontextmanager
async def silent(url: str, receive_bytes: int = SMALL_BYTES) -> AsyncIterator[socket.socket]:
    """A connection whose peer reads nothing unless told to, and whose kernel has no room either."""
    parts = urlsplit(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
        yield connection


async def sent(connection: socket.socket, data: bytes, *, answered: bool = True) -> None:
    """Wait until the hub has begun to answer."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(BUSY_S):
        await loop.sock_sendall(connection, data)
        if answered:
            assert await loop.sock_recv(connection, 1)
